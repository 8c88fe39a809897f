"""Model registries with one interface: an Azure ML workspace, and a folder to rehearse in."""

import os

from labkit.registry.manifest import check_manifest, write_manifest

__all__ = ["check_manifest", "open_registry", "write_manifest"]


def open_registry(lab):
    """The registry of the configured workspace, or a local one in the run folder of *lab*.

    Prints which one it is, and who is signed in. LAB_REHEARSE=1 leaves a workspace alone. Raises
    LabError where the workspace is unknown or cannot be reached, or nobody is signed in.
    """
    # imported here: Azure's libraries load slowly, and only lab 06 needs them
    from labkit.registry import azure, local, sdk

    rehearse = os.environ.get("LAB_REHEARSE", "0") not in ("", "0")
    workspace = None if rehearse else sdk.find_workspace()
    if workspace:
        return azure.WorkspaceRegistry(workspace, lab.logs)
    print(f"no workspace is configured: a rehearsal, in {lab.folder / 'registry'}")
    return local.LocalRegistry(lab.folder / "registry", lab.logs)
