"""Azure ML's SDK: which workspace, who is signed in, a client, and where a model's files are.

Private parts of the SDK are touched here and nowhere else, twice: in `client` and in `stored`.
"""

import logging
import os
from unittest.mock import patch

from azure.core.pipeline.policies import SansIOHTTPPolicy

from labkit.errors import LabError
from labkit.registry import VARIABLES

EVENT_TAG = "labkit-event"  # on all that an event has made, and may delete
SILENCE_S = 60  # longest wait for a connection or for the next byte


class RepeatPosts(SansIOHTTPPolicy):
    """azure-core repeats no POST that was cut off, and the storage's key is asked for with one."""

    def on_request(self, request) -> None:
        methods = ["HEAD", "GET", "PUT", "DELETE", "OPTIONS", "TRACE", "POST"]
        request.context.options["retry_on_methods"] = methods


def find_workspace() -> tuple[str, str, str] | None:
    """(subscription, resource group, workspace): three variables, or a config.json, or None.

    Raises LabError where only some of the variables are set, or the config.json is damaged.
    """
    from azure.ai.ml import MLClient

    given = {name: os.environ.get(name, "") for name in VARIABLES}
    if all(given.values()):
        return tuple(given.values())
    if any(given.values()):
        missing = ", ".join(name for name, value in given.items() if not value)
        raise LabError(
            f"the workspace is half configured: {missing} is not set. "
            "Set all three variables, or none to rehearse."
        )
    try:
        found = MLClient.from_config(object(), enable_telemetry=False)
    except Exception as error:  # of many kinds, as the file may be damaged in many ways
        if "could not find" in str(error):
            return None
        raise LabError(
            "the config.json of the workspace, in this folder or above, names no usable workspace "
            f"({error}). Download it again from the studio, delete it, or set LAB_REHEARSE=1 to "
            "leave it alone."
        ) from error
    return found.subscription_id, found.resource_group_name, found.workspace_name


def require_workspace() -> tuple[str, str, str]:
    """:func:`find_workspace`, or a LabError where none is configured."""
    workspace = find_workspace()
    if workspace is None:
        raise LabError(
            "no workspace is configured, and this is made in one. Set AZURE_SUBSCRIPTION_ID, "
            "AZURE_RESOURCE_GROUP and AZURE_ML_WORKSPACE, or put the workspace's config.json into "
            "this folder (docs/AZURE.md)."
        )
    return workspace


def credential():
    """DefaultAzureCredential: variables, a compute instance's identity, Azure CLI; no question."""
    from azure.identity import DefaultAzureCredential

    # what it tried is in the error, too
    logging.getLogger("azure.identity").setLevel(logging.CRITICAL)
    return DefaultAzureCredential()


def identity(signed_in) -> tuple[str, str]:
    """(who is signed in, tenant), as the token for Azure's management says it."""
    import jwt

    token = signed_in.get_token("https://management.azure.com/.default").token
    claims = jwt.decode(token, options={"verify_signature": False})  # to print, not to trust
    who = claims.get("upn") or claims.get("unique_name") or claims.get("preferred_username")
    application = f"application {claims.get('appid', claims.get('oid', '?'))}"
    return who or application, claims.get("tid", "")


def quiet() -> None:
    """Silences what the SDK says of its own classes, which nobody has asked about."""
    logging.getLogger("azure.ai.ml._utils._experimental").setLevel(logging.ERROR)


def client(signed_in, *workspace: str, **registry: str):
    """MLClient of a workspace or registry, without telemetry, and with an end to its patience."""
    from azure.ai.ml import MLClient
    from azure.ai.ml._utils import _asset_utils

    quiet()
    # four hours, and no setting changes that: an upload that stalls would hang the cell
    _asset_utils.DEFAULT_CONNECTION_TIMEOUT = SILENCE_S
    patience = {
        "connection_timeout": SILENCE_S / 3,
        "read_timeout": SILENCE_S,
        "retry_total": 4,
        "retry_backoff_max": 20,
        "per_call_policies": RepeatPosts(),
    }
    return MLClient(signed_in, *workspace, enable_telemetry=False, **patience, **registry)


def stored(ml_client, name: str, version: str) -> tuple:
    """(container client, prefix) of the files of a model's version; LabError for other storage.

    MLClient has no public call for this, least of all for a registry. Its own download holds each
    file in memory as a whole; so it is begun, and what it would read from is taken.
    """
    from azure.ai.ml._artifacts._blob_storage_helper import BlobStorageClient

    found = []

    def take(self, starts_with, **_):
        found.append((self.container_client, starts_with.rstrip("/") + "/"))

    logging.getLogger("azure.ai.ml.operations._model_operations").setLevel(logging.WARNING)
    with patch.object(BlobStorageClient, "download", take):
        ml_client.models.download(name, version, download_path=os.devnull)
    if not found:
        raise LabError(
            f"the files of {name} {version} do not lie in a blob storage, "
            "and other storage is not read here."
        )
    return found[-1]
