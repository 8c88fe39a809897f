"""What Azure's libraries raise: whether another try may help, and what mends it."""

import contextlib
import os
import re

from azure.core import exceptions as core

from labkit.errors import LabError, disk_is_full, network_reason

PLACEHOLDERS = ("SUBSCRIPTION", "RG", "WORKSPACE")  # in a command, for what is not known


def command_options(workspace: tuple[str, str, str] | None) -> str:
    """What tells the Azure command line which *workspace* is meant."""
    subscription, group, name = workspace or PLACEHOLDERS
    return f"--subscription {subscription} --resource-group {group} --workspace-name {name}"


def cut_off(error: Exception) -> bool:
    """Whether there was no connection, or no whole answer: another try may help."""
    if isinstance(error, core.ClientAuthenticationError):
        # a sign-in that failed has what stopped it in its text only
        return bool(network_reason(error)) or "Max retries exceeded" in str(error)
    broken = isinstance(error, core.HttpResponseError) and not error.status_code
    return broken or isinstance(error, core.ServiceRequestError | core.ServiceResponseError)


@contextlib.contextmanager
def azure_errors(doing: str, workspace: tuple[str, str, str] | None = None):
    """Turns what Azure's libraries raise within the block into one LabError.

    It says what failed while *doing*, and what mends it. *workspace* is (subscription, resource
    group, name); without one, a registry of models was asked.
    """
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise LabError(
                f"{doing}: no space is left on the disk. "
                "Free some and run the cell again: it goes on there."
            ) from error
        # the SDK wraps some in a plain Exception
        azure = error if isinstance(error, core.AzureError) else error.__cause__
        if not isinstance(azure, core.AzureError):
            raise
        raise _lab_error(doing, azure, workspace) from error


def _lab_error(doing: str, error: core.AzureError, workspace: tuple | None) -> LabError:
    """One sentence on the cause and one that mends it, with Azure's code and no secret."""
    # Resource Manager has the code in one place, the storage in the other, and there as an enum
    code = getattr(getattr(error, "error", None), "code", None)
    code = code or getattr(error, "error_code", None) or ""
    code = str(getattr(code, "value", code))
    status = getattr(error, "status_code", None)
    told = f"{status} {code}".strip()
    entra = "".join(re.findall(r"AADSTS\d+", str(error))[:1])
    subscription, group, _ = workspace or PLACEHOLDERS
    scope = f"/subscriptions/{subscription}/resourceGroups/{group}"
    give = f"az role assignment create --assignee WHO --scope {scope} --role"

    if cut_off(error):
        reason = network_reason(error) or "it was cut off"
        text = (
            f"the network does not carry the connection: {reason}. "
            "Check it with 'curl -sSI https://management.azure.com', set what is missing (in a "
            "notebook: '%env NAME=value') and run it again."
        )
    elif entra and os.environ.get("AZURE_CLIENT_ID"):
        text = (
            f"the application of AZURE_CLIENT_ID is not let in ({entra}): its secret has expired, "
            "or one of the three variables is wrong. 'az ad app credential reset --id "
            "APPLICATION' makes a new secret. Or take the variables away, and use 'az login'."
        )
    elif status == 401 or (isinstance(error, core.ClientAuthenticationError) and status != 403):
        text = (
            f"nobody is signed in, or the sign-in has expired{entra and f' ({entra})'}. Sign in "
            "with 'az login' ('az login --identity' on a compute instance) and run the cell again."
        )
    elif not status:
        secret = r"(?i)(sig|key|secret|token)=[^&\s'\"]+"
        said = re.sub(secret, r"\1=...", str(error) or type(error).__name__)
        text = f"the SDK gave up: {said.splitlines()[0][:300]}."
    elif re.search("(?i)quota|LimitReached|LimitExceeded", code):
        text = (
            f"a quota is used up ({told}). 'az ml compute list {command_options(workspace)}' and "
            "the end of lab 06 show what can be removed. Or ask for more in the studio."
        )
    elif code in ("AuthenticationFailed", "InvalidAuthenticationInfo"):
        text = (
            f"the storage did not take its key or SAS ({told}): it has expired, or this machine's "
            "clock is wrong. Compare 'date -u' with the real time, and run the cell again."
        )
    elif re.match("KeyBasedAuth|Authorization(?!Failed$)", code):
        text = (
            f"the storage account does not let this identity in ({told}). Its owner opens its "
            f"firewall, or gives the right: {give} 'Storage Blob Data Contributor'."
        )
    elif not workspace and status in (403, 404):
        text = (
            f"the registry has no such model for this identity ({told}). Correct LAB_MODEL, or "
            "MODEL in lab 01: 'az ml model list --registry-name REGISTRY' shows what there is."
        )
    elif status == 403:
        text = (
            f"this identity lacks the permission ({told}). The workspace's owner gives it: "
            f"{give} 'AzureML Data Scientist'."
        )
    elif status == 404:
        text = (
            f"not found ({told}): a subscription, resource group, workspace, compute or version "
            f"of that name. Correct the variables or config.json: 'az ml workspace list "
            f"--resource-group {group}' shows what there is."
        )
    elif status == 429 or status >= 500:
        text = (
            f"Azure is busy or has a fault ({told}), also after several tries. Wait and try again."
        )
    else:
        site = "https://learn.microsoft.com/azure/machine-learning"
        said = getattr(getattr(error, "error", None), "message", None) or ""
        said = " ".join(said.split())[:200].rstrip(".") or "without a word"
        text = f"Azure said no ({told}): {said}. Look the code up at {site}."
    return LabError(f"{doing}: {text}")
