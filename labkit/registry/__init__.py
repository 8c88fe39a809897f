"""Model registries with one interface: an Azure ML workspace, and a folder to rehearse in."""

import os

from labkit.files import sha256
from labkit.profiles import ROOT
from labkit.registry.manifest import check_manifest, write_manifest

VARIABLES = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")

__all__ = ["check_manifest", "open_registry", "write_manifest"]


def open_registry(lab):
    """The registry of the configured workspace, or a local one in the run folder of *lab*.

    Prints which one it is, and who is signed in. LAB_REHEARSE=1 leaves a workspace alone. Raises
    LabError where the workspace is unknown or cannot be reached, or nobody is signed in.
    """
    # imported here: Azure's libraries load slowly, and only lab 06 needs them
    from labkit.registry import azure, local, sdk

    workspace = None if _rehearse() else sdk.find_workspace()
    if workspace:
        return azure.WorkspaceRegistry(workspace, lab.logs)
    print(f"no workspace is configured: a rehearsal, in {lab.folder / 'registry'}")
    return local.LocalRegistry(lab.folder / "registry", lab.logs)


def destination() -> dict[str, str]:
    """What says where lab 06 registers: the variables that are set, and the SHA-256 of the
    config.json that the SDK would find.
    """
    if _rehearse():
        return {}
    told = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    notebooks = ROOT / "notebooks"
    for folder in () if told else (notebooks, *notebooks.parents):
        for config in (folder / ".azureml" / "config.json", folder / "config.json"):
            if config.is_file():
                return {"config.json": sha256(config)}
    return told


def _rehearse() -> bool:
    return os.environ.get("LAB_REHEARSE", "0") not in ("", "0")
