"""The models of an Azure ML workspace as a registry."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
from azure.ai.ml.constants import ListViewType
from azure.core.exceptions import AzureError, ResourceNotFoundError

from labkit.errors import LabError
from labkit.progress import Progress
from labkit.registry import sdk
from labkit.registry.azure_errors import cut_off
from labkit.registry.base import Registry, number
from labkit.registry.blobs import blobs, download
from labkit.registry.manifest import LIMIT, MANIFEST, check_names, read_manifest


class Meter(NamedTuple):
    """Something in a workspace that costs money, and how many machines of *size* that is now."""

    kind: str
    name: str
    why: str
    size: str | None = None
    machines: int = 0


def power_state(compute) -> str:
    """Azure's word for it, such as Running; "" where it has none."""
    state = getattr(compute, "state", None)
    return getattr(state, "value", state) or ""


def meters(client) -> Iterator[Meter]:
    """What costs money in the workspace of *client*, whoever made it; also what is stopped."""
    for compute in client.compute.list():
        state = power_state(compute)
        size = getattr(compute, "size", None)
        if nodes := getattr(compute, "min_instances", None):
            why = f"keeps {nodes} nodes also at rest"
            yield Meter("cluster", compute.name, why, size, int(nodes))
        elif state:
            runs = state.lower() not in ("stopped", "stopping", "deleting")
            yield Meter("compute", compute.name, state, size, int(runs))
    for endpoint in client.online_endpoints.list():
        yield Meter("endpoint", endpoint.name, "by the hour, while it exists")


class WorkspaceRegistry(Registry):
    """A workspace, with the files in its storage account; prints who is signed in, and where."""

    def __init__(self, workspace: tuple[str, str, str], logs: Path):
        signed_in = sdk.credential()
        super().__init__(sdk.client(signed_in, *workspace), logs, workspace)
        subscription, group, name = workspace
        with self.errors(f"opening the workspace {name}"):
            who, self.tenant = sdk.identity(signed_in)
            print(f"signed in as {who}")
            place = self.client.workspaces.get(name).location
        print(f"workspace {name} ({place}), resource group {group}, subscription {subscription}")

    def contents(self, name: str) -> dict[str, str | None]:
        """As the base says; None also where a version is archived, which keeps its number."""
        contents = dict.fromkeys(model.version for model in self._versions(name, archived=True))
        for model in self._versions(name):
            contents[model.version] = _registered(model) or self._stored_content(model)
        return contents

    def vouched(self, name: str, version: str) -> str | None:
        check_names(name, version)
        return _registered(self.client.models.get(name, version))

    def files(self, name: str, version: str) -> dict[str, int]:
        check_names(name, version)
        found = blobs(*sdk.stored(self.client, name, version))
        return {path: blob.size for path, blob in found.items()}

    def costs(self, name: str) -> list[str]:
        """Compute that runs, endpoints, and the storage of model *name*, one line each."""
        rows = []
        with self.errors("listing the costs"):
            for meter in meters(self.client):
                if meter.machines or meter.kind == "endpoint":
                    rows.append(f"{meter.kind} {meter.name}: {meter.why}")
            active = {model.version for model in self._versions(name)}
            for version in self._with_files(name):
                if mb := sum(self.files(name, version).values()) / 1e6:
                    kind = "version" if version in active else "archived version"
                    rows.append(f"{kind} {version} of {name}: {mb:,.1f} MB of storage")
        return rows

    def remove(self, name: str, version: str) -> None:
        """Archives a version, whose number stays taken, and deletes its files.

        They stay where another version of the model has the same. Other models have other files:
        the name is part of the content that the storage's path is made from.
        """
        with self.errors(f"removing {name} {version}"):
            self.content(name, version)
            container, prefix = sdk.stored(self.client, name, version)
            model = self.client.models.get(name, version)
            model.tags["files"] = "deleted"
            self.client.models.create_or_update(model)
            self.client.models.archive(name, version)
            others = [sdk.stored(self.client, name, other) for other in self._with_files(name)]
            if prefix not in {other for _, other in others}:
                for blob in blobs(container, prefix).values():
                    container.delete_blob(blob.name)

    def stop(self, compute: str) -> None:
        """Stops a compute instance; LabError where that takes longer than ten minutes."""
        with self.errors(f"stopping {compute}"):
            poller = self.client.compute.begin_stop(compute)
            poller.result(timeout=600)
            if not poller.done():
                raise LabError(
                    f"{compute} has not stopped after ten minutes. "
                    "Look at it in the studio, 'Compute'."
                )

    def url(self, name: str, version: str) -> str:
        subscription, group, workspace = self.workspace
        scope = f"/subscriptions/{subscription}/resourcegroups/{group}/workspaces/{workspace}"
        return (
            f"https://ml.azure.com/model/{name}:{version}/details?wsid={scope}&tid={self.tenant}"
        )

    def fetch(self, name: str, version: str, out: Path) -> None:
        with Progress(every=5) as progress:
            progress.show("download")
            download(*sdk.stored(self.client, name, version), out)

    @contextlib.contextmanager
    def progress(self, mb: float):
        """What the machine has sent: the SDK counts whole files only, and a model is one file."""
        before = psutil.net_io_counters().bytes_sent

        def sent() -> str:
            sent_mb = (psutil.net_io_counters().bytes_sent - before) / 1e6
            return f"this machine has sent {sent_mb:,.0f} MB"

        with Progress(every=5) as progress:
            progress.show(f"{mb:,.0f} MB to send", detail=sent)
            yield

    def _versions(self, name: str, *, archived: bool = False) -> list:
        """The model's versions as MLClient lists them, the oldest first; with *archived* all."""
        check_names(name)
        view = ListViewType.ALL if archived else ListViewType.ACTIVE_ONLY
        try:
            found = list(self.client.models.list(name, list_view_type=view))
        except ResourceNotFoundError:
            return []
        return sorted(found, key=lambda model: number(model.version))

    def _with_files(self, name: str) -> list[str]:
        """The versions whose files :meth:`remove` has not deleted."""
        every = self._versions(name, archived=True)
        return [model.version for model in every if model.tags.get("files") != "deleted"]

    def _stored_content(self, model) -> str | None:
        """What the manifest of a version that another tool made says; None without one."""
        try:
            container, prefix = sdk.stored(self.client, model.name, model.version)
            stored = container.download_blob(prefix + MANIFEST, offset=0, length=LIMIT + 1)
            return read_manifest(stored.readall())["content_sha256"]
        except (AzureError, LabError, ValueError) as error:
            if cut_off(error):
                raise
            return None


def _registered(model) -> str | None:
    return (model.properties or {}).get("content_sha256")
