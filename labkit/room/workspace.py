"""A room in an Azure ML workspace: created, checked and deleted. The workspace itself is asked
what there is; nothing is remembered here, so any call may be cut off and made again.
"""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.storage.fileshare import ShareClient

from labkit.errors import LabError
from labkit.progress import report
from labkit.registry import sdk
from labkit.registry.azure import WorkspaceRegistry, meters
from labkit.room.attendees import Attendee
from labkit.room.instance import FOLDER, broken, failed, instance, script_of, state_of, under_way
from labkit.room.prices import Prices

AT_ONCE = 4  # requests that create or delete; a subscription bears few before it says 429
LOOK_S = 15  # between two looks at an instance that is being made
CREATE_S, DELETE_S = 3600, 1800
SHARE = "workspaceworkingdirectory"  # the datastore of the notebooks' share, where scripts must be
OURS = ("computeinstance", "amlcompute")  # what is attached is somebody's own


@dataclass(frozen=True)
class Row:
    """What became of one attendee's instance, or of another thing of the event."""

    who: str
    what: str
    state: str
    note: str = ""
    ok: bool = True


class Room:
    """The *event* in the configured workspace; prints who is signed in, and where.

    Raises LabError where no workspace is configured or it cannot be opened.
    """

    def __init__(self, event: str):
        self.event = event
        registry = WorkspaceRegistry(sdk.require_workspace(), Path())
        self.client, self.tenant, self.errors = registry.client, registry.tenant, registry.errors

    def up(self, attendees: list[Attendee], *, size: str, stop: str, script: str) -> list[Row]:
        """Makes the instances that are missing, starts those that are stopped, waits for all.

        *size* is of the virtual machines, *stop* the time HH:MM (UTC) at which they stop each
        day, *script* the text that each runs once. What fails is in its attendee's row, and the
        others go on. Raises LabError where nothing can be made at all.
        """
        computes = self._computes()
        with self.errors("putting the set-up script on the workspace's file share"):
            share = self._share()
            for folder in ("Users", FOLDER):
                with contextlib.suppress(ResourceExistsError):
                    share.get_directory_client(folder).create_directory()
            share.get_file_client(script_of(self.event)).upload_file(script.encode())

        def make(attendee: Attendee):
            return self._begin(attendee, computes.get(attendee.compute), size, stop)

        end, rows = time.monotonic() + CREATE_S, []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            begun = list(pool.map(make, attendees))
        for attendee, one in zip(attendees, begun, strict=True):
            rows.append(self._end(attendee, one, end))
            report("instances", len(rows), len(attendees))
        return rows

    def status(self, attendees: list[Attendee]) -> list[Row]:
        """A row for each attendee, and one for each compute of the event that is nobody's here."""
        computes = self._computes()
        rows = [self._row(who, computes.get(who.compute)) for who in attendees]
        known = {attendee.compute for attendee in attendees}
        for compute in computes.values():
            if self._tagged(compute) and compute.name not in known:
                state = state_of(compute)
                rows.append(
                    Row("", compute.name, state, "of this event, not in the CSV", ok=False)
                )
        return rows

    def things(self) -> list[tuple[str, str]]:
        """(kind, name) of all that the event made and that can be deleted."""
        with self.errors("listing what the event made"):
            endpoints = [e for e in self.client.online_endpoints.list() if self._tagged(e)]
        computes = [c for c in self._computes().values() if self._tagged(c) and c.type in OURS]
        found = [("compute", c.name) for c in computes] + [("endpoint", e.name) for e in endpoints]
        return sorted(found)

    def down(self, things: list[tuple[str, str]]) -> list[Row]:
        """Deletes *things* of :meth:`things`, and the script; a row for each.

        What is there is asked anew at the end: a row is ok if its thing is gone.
        """
        operations = {"compute": self.client.compute, "endpoint": self.client.online_endpoints}
        told: dict[tuple[str, str], str] = {}

        def begin(thing):
            try:
                with self.errors("deleting"):
                    return operations[thing[0]].begin_delete(thing[1])
            except LabError as error:
                told[thing] = str(error)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            pollers = list(pool.map(begin, things))
        end = time.monotonic() + DELETE_S
        for thing, poller in zip(things, pollers, strict=True):
            try:
                with self.errors("deleting"):
                    _ = poller and poller.result(timeout=max(0, end - time.monotonic()))
            except LabError as error:
                told[thing] = str(error)
        left = set(self.things())
        rows = [
            Row("", " ".join(thing), "still there", told.get(thing, "deleting takes long"), False)
            if thing in left
            else Row("", " ".join(thing), "deleted")
            for thing in things
        ]
        rows += [Row("", " ".join(one), "is new", ok=False) for one in sorted(left - {*things})]
        if not left:
            try:
                with self.errors("deleting"), contextlib.suppress(ResourceNotFoundError):
                    self._share().get_file_client(script_of(self.event)).delete_file()
            except LabError as error:
                name = script_of(self.event)
                rows.append(Row("", f"script {name}", "still there", str(error), ok=False))
        return rows

    def costs(self, prices: Prices) -> list[str]:
        """All in the workspace that costs money by the hour now, whoever made it, a line each."""
        lines = []
        with self.errors("listing the costs"):
            for meter in meters(self.client):
                parts = [(meter.size, meter.machines)]
                if meter.kind == "endpoint":
                    deployments = self.client.online_deployments.list(meter.name)
                    parts = [(one.instance_type, one.instance_count or 0) for one in deployments]
                text = f"{meter.kind} {meter.name}: {meter.why}"
                for size, count in parts:
                    price = prices.of(size)
                    known = "price unknown" if price is None else f"{count * price:.3f}"
                    text += f", {count} x {size}: {known} {prices.currency}/h" if count else ""
                if meter.kind == "compute" and not meter.machines:
                    text += ", disk and load balancer cost until it is deleted"
                lines.append(text)
        return lines

    # -- one instance

    def _begin(self, attendee: Attendee, there, size: str, stop: str):
        """A poller, None where nothing is to be begun, or the LabError that kept it from that."""
        compute, name = self.client.compute, attendee.compute
        try:
            with self.errors("creating"):
                if there is not None:
                    if not self._is_of(there, attendee) or under_way(there):
                        return None
                    if state_of(there).lower() == "stopped":
                        return compute.begin_start(name)
                    if not broken(there):
                        return None
                    compute.begin_delete(name).result(timeout=DELETE_S)
                return compute.begin_create_or_update(
                    instance(attendee, self.event, self.tenant, size, stop)
                )
        except LabError as error:
            return error

    def _end(self, attendee: Attendee, begun, end: float) -> Row:
        """The row of an instance when it is made, or was given up.

        The workspace decides, also after an error: an answer may be lost, and the instance made.
        """
        error = begun if isinstance(begun, LabError) else None
        try:
            if begun is not None and error is None:
                with self.errors("creating"):
                    begun.result(timeout=max(0, end - time.monotonic()))
        except LabError as one:
            error = one
        try:
            with self.errors("looking at it"):
                there = self._look(attendee.compute)
                while there is not None and under_way(there) and time.monotonic() < end:
                    time.sleep(LOOK_S)
                    there = self._look(attendee.compute)
        except LabError as one:
            return Row(attendee.name, attendee.compute, "unknown", str(error or one), ok=False)
        row = self._row(attendee, there)
        if error is None or row.ok and row.state.lower() == "running":
            return row
        return replace(row, note=str(error), ok=False)

    def _row(self, attendee: Attendee, there) -> Row:
        """What an instance that is *there*, or None, means for its attendee."""
        state, why = "missing", "./lab room up makes it"
        if there is not None and not self._is_of(there, attendee):
            state, why = (
                "taken",
                "not this attendee's of this event: choose another --event",
            )
        elif there is not None:
            state, why = state_of(there), "being made" if under_way(there) else ""
            if failed(there):
                what = "./lab room up makes it anew" if broken(there) else "it runs, and is kept"
                why = f"{there.provisioning_errors or 'its set-up'} failed; {what}"
        return Row(attendee.name, attendee.compute, state, why, ok=not why)

    def _computes(self) -> dict:
        with self.errors("listing the computes"):
            return {compute.name: compute for compute in self.client.compute.list()}

    def _look(self, name: str):
        with contextlib.suppress(ResourceNotFoundError):
            return self.client.compute.get(name)

    def _tagged(self, thing) -> bool:
        return (thing.tags or {}).get(sdk.EVENT_TAG) == self.event

    def _is_of(self, compute, attendee: Attendee) -> bool:
        user = getattr(compute, "create_on_behalf_of", None)
        mine = user is not None and user.user_object_id.lower() == attendee.object_id
        return mine and self._tagged(compute)

    def _share(self) -> ShareClient:
        """The notebooks' file share: the SDK uploads no set-up script."""
        store = self.client.datastores.get(SHARE, include_secrets=True)
        secrets = store.credentials
        key = getattr(secrets, "account_key", None) or getattr(secrets, "sas_token", None)
        if not key:
            raise LabError(
                f"the datastore {SHARE} gives no key, and compute instances need one, too. The "
                "storage account's owner allows 'storage account key access'."
            )
        url = f"https://{store.account_name}.file.{store.endpoint}"
        return ShareClient(url, store.file_share_name, credential=key)
