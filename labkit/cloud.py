"""Azure: signing in without a question, errors that say what to do, and files of a registered model in bounded memory."""

import base64
import contextlib
import json
import logging
import os
import re
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

from labkit.errors import LabError, disk_is_full, network_reason

WORKSPACE = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")
SILENCE_S = 60  # longest wait for a connection or for the next byte
RANGE = (
    32 * 2**20
)  # bytes that are asked for at once, held in memory, and lost with a dropped connection
ATTEMPTS = 5


def credential():
    """DefaultAzureCredential: environment, identity of a compute instance, Azure CLI; it opens no browser, asks nothing."""
    from azure.identity import DefaultAzureCredential

    logging.getLogger("azure.identity").setLevel(
        logging.CRITICAL
    )  # what it tried stands in the error, too
    return DefaultAzureCredential()


def client(signed_in, *workspace: str, **registry: str):
    """MLClient of a workspace or registry, without telemetry, and with an end to its patience."""
    from azure.ai.ml import MLClient
    from azure.ai.ml._utils import _asset_utils

    # the SDK's own value is four hours: an upload whose connection stalls would hang the cell
    _asset_utils.DEFAULT_CONNECTION_TIMEOUT = SILENCE_S
    patience = {
        "connection_timeout": SILENCE_S / 3,
        "read_timeout": SILENCE_S,
        "retry_total": 4,
        "retry_backoff_max": 20,
    }
    return MLClient(signed_in, *workspace, enable_telemetry=False, **patience, **registry)


def find_workspace() -> tuple[str, str, str] | None:
    """(subscription, resource group, workspace) from three variables, else from a config.json as the SDK finds it, else None.

    Raises LabError where only some of the variables are set, or the config.json is damaged.
    """
    from azure.ai.ml import MLClient

    given = tuple(os.environ.get(name, "") for name in WORKSPACE)
    if any(given) and not all(given):
        missing = ", ".join(n for n, v in zip(WORKSPACE, given, strict=True) if not v)
        raise LabError(
            f"the workspace is half configured: {missing} is not set. Set all three variables, or none to rehearse."
        )
    if all(given):
        return given
    try:
        found = MLClient.from_config(object(), enable_telemetry=False)
    except Exception as error:  # of many kinds, as the file may be damaged in many ways
        if "could not find" in str(error):
            return None
        raise LabError(
            f"the config.json of the workspace, in this folder or above, names no usable workspace ({error}). Download it "
            "again from the studio, delete it, or set LAB_REHEARSE=1 to leave it alone."
        ) from error
    return found.subscription_id, found.resource_group_name, found.workspace_name


def identity(signed_in) -> tuple[str, str]:
    """(who is signed in, tenant), as the token for Azure's management says it."""
    body = signed_in.get_token("https://management.azure.com/.default").token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    names = [
        claims[name] for name in ("upn", "unique_name", "preferred_username") if claims.get(name)
    ]
    return names[
        0
    ] if names else f"application {claims.get('appid', claims.get('oid', '?'))}", claims.get(
        "tid", ""
    )


@contextlib.contextmanager
def azure_errors(doing: str, workspace: tuple[str, str, str] | None = None):
    """Turns what Azure's libraries raise within the block into one LabError: what failed while *doing*, and what mends it.

    Without a *workspace* it is a registry of models that was asked.
    """
    from azure.core.exceptions import AzureError

    try:
        yield
    except LabError:
        raise
    except Exception as error:
        if disk_is_full(error):
            text = f"{doing}: no space is left on the disk. Free some and run the cell again: it goes on there."
            raise LabError(text) from error
        azure = (
            error if isinstance(error, AzureError) else error.__cause__
        )  # the SDK wraps some in a plain Exception
        if not isinstance(azure, AzureError):
            raise
        raise _as_lab_error(doing, azure, workspace) from error


def _as_lab_error(
    doing: str, error: Exception, workspace: tuple[str, str, str] | None
) -> LabError:
    """One sentence on the cause and one with the command that mends it, with Azure's code and none of its secrets."""
    from azure.core.exceptions import ClientAuthenticationError

    code = (
        getattr(getattr(error, "error", None), "code", None)
        or getattr(error, "error_code", None)
        or ""
    )
    code = str(getattr(code, "value", code))
    status = getattr(error, "status_code", None)
    told, entra = f"{status} {code}".strip(), re.search(r"AADSTS\d+|$", str(error))[0]
    subscription, group, name = workspace or ("SUBSCRIPTION", "RG", "WORKSPACE")
    scope = f"/subscriptions/{subscription}/resourceGroups/{group}"
    if cut_off(error):
        return LabError(
            f"{doing}: the network does not carry the connection: {network_reason(error) or 'it was cut off'}. Check it with "
            "'curl -sSI https://management.azure.com', set what is missing (in a notebook: '%env NAME=value') and run it again."
        )
    if entra and os.environ.get("AZURE_CLIENT_ID"):
        return LabError(
            f"{doing}: the application of AZURE_CLIENT_ID is not let in ({entra}): its secret has expired, or one of the "
            "three is wrong. 'az ad app credential reset --id APPLICATION' makes a new secret; set the three variables anew "
            "('%env' in a notebook), or take them away and sign in with 'az login'."
        )
    if status == 401 or (isinstance(error, ClientAuthenticationError) and status != 403):
        return LabError(
            f"{doing}: nobody is signed in, or the sign-in has expired{f' ({entra})' if entra else ''}. Sign in with "
            "'az login' ('az login --identity' on a compute instance) and run the cell again."
        )
    if not status:
        text = re.sub(
            r"(?i)(sig|key|secret|token)=[^&\s'\"]+", r"\1=...", str(error) or type(error).__name__
        )
        return LabError(f"{doing}: the SDK gave up: {text.splitlines()[0][:300]}.")
    if "quota" in code.lower() or "LimitReached" in code or "LimitExceeded" in code:
        return LabError(
            f"{doing}: a quota is used up ({told}). Remove what is not needed: lab 06 lists it at its end, and so does "
            f"'az ml compute list --resource-group {group} --workspace-name {name}'. Or ask for more in the studio."
        )
    if code in ("AuthenticationFailed", "InvalidAuthenticationInfo") or _sas_is_over(error):
        return LabError(
            f"{doing}: the storage did not take its key or SAS ({told}): it has expired, or this machine's clock is wrong. "
            "Compare 'date -u' with the real time, and run the cell again: a new SAS is asked for."
        )
    if code == "KeyBasedAuthenticationNotPermitted" or (
        code.startswith("Authorization") and code != "AuthorizationFailed"
    ):
        return LabError(
            f"{doing}: the storage account does not let this identity in ({told}). Its owner gives the right with 'az role "
            f'assignment create --role "Storage Blob Data Contributor" --assignee WHO --scope {scope}\', or opens its firewall.'
        )
    if not workspace and status in (403, 404):
        return LabError(
            f"{doing}: the registry has no such model for this identity ({told}). Correct LAB_MODEL, or MODEL in lab 01: "
            "'az ml model list --registry-name REGISTRY --output table' shows what there is."
        )
    if status == 403:
        return LabError(
            f"{doing}: this identity lacks the permission ({told}). The workspace's owner gives it with 'az role assignment "
            f'create --role "AzureML Data Scientist" --assignee WHO --scope {scope}\'.'
        )
    if status == 404:
        return LabError(
            f"{doing}: not found ({told}): a subscription, resource group, workspace, compute or version of that name. 'az ml "
            f"workspace list --resource-group {group} --output table' shows what there is; correct the variables or config.json."
        )
    if status == 429 or status >= 500:
        return LabError(
            f"{doing}: Azure is busy or has a fault ({told}), also after several tries. Wait and run the cell again."
        )
    return LabError(
        f"{doing}: Azure said no ({told}). Look the code up at https://learn.microsoft.com/azure/machine-learning."
    )


def _sas_is_over(error: Exception) -> bool:
    """Whether the refused request carried a SAS that had expired: its field "se" is the end of its time."""
    url = getattr(getattr(getattr(error, "response", None), "request", None), "url", "")
    end = parse_qs(urlsplit(url).query).get("se", [""])[0]
    return bool(end) and datetime.fromisoformat(end).replace(tzinfo=UTC) < datetime.now(UTC)


def cut_off(error: Exception) -> bool:
    """Whether there was no connection, or no whole answer: another try may help."""
    from azure.core.exceptions import (
        ClientAuthenticationError,
        HttpResponseError,
        ServiceRequestError,
        ServiceResponseError,
    )

    if isinstance(
        error, ClientAuthenticationError
    ):  # a sign-in that failed has what stopped it in its text only
        return bool(network_reason(error)) or "Max retries exceeded" in str(error)
    broken = isinstance(error, HttpResponseError) and not error.status_code
    return broken or isinstance(error, ServiceRequestError | ServiceResponseError)


def stored(ml_client, name: str, version: str) -> tuple:
    """(container client, prefix) of the files of a model's version, with the credential that MLClient finds for them.

    MLClient has no public call for this, least of all for a registry; so its own download, which holds each file in
    memory as a whole, is asked, and what it would read from is taken.
    """
    from azure.ai.ml._artifacts._blob_storage_helper import BlobStorageClient
    from azure.core.exceptions import AzureError

    found = []

    def take(self, starts_with, **_):
        found.append((self.container_client, starts_with.rstrip("/") + "/"))

    logging.getLogger("azure.ai.ml.operations._model_operations").setLevel(logging.WARNING)
    for attempt in range(
        1, ATTEMPTS + 1
    ):  # azure-core repeats no POST, and the storage's key is asked for with one
        try:
            with patch.object(BlobStorageClient, "download", take):
                ml_client.models.download(name, version, download_path=os.devnull)
            break
        except AzureError as error:
            if attempt == ATTEMPTS or not cut_off(error):
                raise
            time.sleep(attempt)
    if not found:
        raise LabError(
            f"the files of {name} {version} do not lie in a blob storage, and other storage is not read here."
        )
    return found[-1]


def blobs(container, prefix: str) -> dict:
    """Path below *prefix* -> properties (size in bytes, etag), of all files; the markers of folders are left out."""
    listed = container.list_blobs(name_starts_with=prefix, include=["metadata"])
    return {b.name[len(prefix) :]: b for b in listed if not (b.metadata or {}).get("hdi_isfolder")}


def download(container, prefix: str, out: Path) -> None:
    """Writes all files below *prefix* to the folder *out*, in ranges of 32 MiB; goes on where an earlier call was cut off.

    A file under way is FILE.ETAG.part: another content has another etag, so that two never mix. Raises LabError for a
    disk that is too small, and AzureError where the connection does not come back.
    """
    wanted = blobs(container, prefix)
    todo = {
        path: blob
        for path, blob in wanted.items()
        if not ((out / path).exists() and (out / path).stat().st_size == blob.size)
    }
    out.mkdir(parents=True, exist_ok=True)
    missing = sum(blob.size for blob in todo.values()) - sum(
        part.stat().st_size for part in out.rglob("*.part")
    )
    if (free := shutil.disk_usage(out).free) < missing:
        raise LabError(
            f"the model needs {missing / 1e9:.1f} GB, and the disk of {out} has {free / 1e9:.1f} GB free. Free some space, or "
            "set LAB_RUNS to a folder on a larger disk."
        )
    started = time.monotonic()
    for path, blob in todo.items():
        target = out / path
        if out.resolve() not in target.resolve().parents:
            raise LabError(
                f"the model's file {path} would lie outside {out}: it is not downloaded. Choose another model."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{re.sub(r'[^0-9A-Za-z]', '', blob.etag)}.part")
        for other in target.parent.glob(f"{target.name}.*.part"):
            if other != part:
                other.unlink()
        _fill(part, container, prefix + path, blob)
        part.rename(target)
        if blob.size > RANGE:
            print(f"{path}: {blob.size / 1e6:,.0f} MB, {time.monotonic() - started:.0f} s")


def _fill(part: Path, container, name: str, blob) -> None:
    """Appends to *part* what is missing of a blob; a range that fails is asked for again, at longer and longer intervals."""
    from azure.core import MatchConditions
    from azure.core.exceptions import AzureError

    unbroken = {
        "etag": blob.etag,
        "match_condition": MatchConditions.IfNotModified,
        "read_timeout": SILENCE_S,
        "retry_total": 0,
    }
    failures = 0
    with open(
        part, "ab"
    ) as file:  # only ever appended to: a killed process leaves no hole, whatever it was doing
        while (at := file.tell()) < blob.size:
            try:
                length = min(RANGE, blob.size - at)
                file.write(
                    container.download_blob(
                        name, offset=at, length=length, max_concurrency=4, **unbroken
                    ).readall()
                )
                failures = 0
            except AzureError as error:
                failures += 1
                if failures == ATTEMPTS or not (
                    cut_off(error) or (getattr(error, "status_code", None) or 0) >= 500
                ):
                    raise
                time.sleep(2**failures)
