"""A room in an Azure ML workspace: created, checked and deleted. The workspace itself is asked
what there is; nothing is remembered here, so any call may be cut off and made again.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from azure.ai.ml.entities import (
    AssignedUserConfiguration,
    ComputeInstance,
    ComputeSchedules,
    ComputeStartStopSchedule,
    CronTrigger,
    ScriptReference,
    SetupScripts,
)
from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.storage.fileshare import ShareDirectoryClient, ShareFileClient

from labkit.errors import LabError
from labkit.registry import sdk
from labkit.registry.azure import WorkspaceRegistry, meters
from labkit.room.attendees import Attendee
from labkit.room.prices import Prices

AT_ONCE = 4  # requests that create or delete; a subscription bears few before it says 429
LOOK_S = 15  # between two looks at an instance that is being made
SCRIPT_MINUTES, CREATE_S, DELETE_S = 30, 3600, 1800
IDLE_MINUTES = 60
SHARE = "workspaceworkingdirectory"  # the datastore of the notebooks' share, where scripts must be
FOLDER = "Users/labkit"
UNDER_WAY = {"creating", "updating", "starting", "settingup", "usersettingup", "deleting"}
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
        workspace = sdk.find_workspace()
        if workspace is None:
            raise LabError(
                "no workspace is configured, and a room is made in one. Set the three variables "
                "of docs/AZURE.md, or put the workspace's config.json into this folder."
            )
        registry = WorkspaceRegistry(workspace, Path())
        self.client, self.tenant, self.errors = registry.client, registry.tenant, registry.errors

    def up(self, attendees: list[Attendee], *, size: str, stop: str, script: str) -> list[Row]:
        """Makes the instances that are missing, starts those that are stopped, waits for all.

        *size* is of the virtual machines, *stop* the time HH:MM (UTC) at which they stop each
        day, *script* the text that each runs once. What fails is in its attendee's row, and the
        others go on. Raises LabError where nothing can be made at all.
        """
        computes = self._computes()
        with self.errors("putting the set-up script on the workspace's file share"):
            self._put_script(script)

        def make(attendee: Attendee):
            return self._begin(attendee, computes.get(attendee.compute), size, stop)

        end = time.monotonic() + CREATE_S
        with ThreadPoolExecutor(AT_ONCE) as pool:
            begun = list(pool.map(make, attendees))
        return [self._end(who, one, end) for who, one in zip(attendees, begun, strict=True)]

    def status(self, attendees: list[Attendee]) -> list[Row]:
        """A row for each attendee, and one for each compute of the event that is nobody's here."""
        computes = self._computes()
        rows = [self._row(who, computes.get(who.compute)) for who in attendees]
        known = {attendee.compute for attendee in attendees}
        for compute in computes.values():
            if self._tagged(compute) and compute.name not in known:
                state = _state(compute)
                rows.append(Row("", compute.name, state, "of this event, not in the CSV", ok=False))
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
            with self.errors("deleting the set-up script"):
                self._drop_script()
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
        """A poller or None for what is under way or done, a LabError for what cannot be made."""
        try:
            with self.errors("creating"):
                if there is not None:
                    if (row := self._row(attendee, there)).state == "taken":
                        raise LabError(row.note)
                    if row.state.lower() == "stopped":
                        return self.client.compute.begin_start(attendee.compute)
                    if "fail" not in row.state.lower():
                        return None
                    # nobody has worked on what never ran
                    self.client.compute.begin_delete(attendee.compute).result(timeout=DELETE_S)
                return self.client.compute.begin_create_or_update(
                    self._instance(attendee, size, stop)
                )
        except LabError as error:
            return error

    def _end(self, attendee: Attendee, begun, end: float) -> Row:
        """The row of an instance when it is made, or was given up."""
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
                # also after an error: an answer may be lost, and the instance made
                while there is not None and _under_way(there) and time.monotonic() < end:
                    time.sleep(LOOK_S)
                    there = self._look(attendee.compute)
        except LabError as one:
            return Row(attendee.name, attendee.compute, "unknown", str(error or one), ok=False)
        row = self._row(attendee, there)
        if error is None or row.ok:
            return row
        if there is None and isinstance(error.__cause__, ResourceExistsError):
            row = Row(attendee.name, attendee.compute, "taken", _TAKEN, ok=False)
            return row
        return Row(row.who, row.what, row.state, str(error), ok=False)

    def _row(self, attendee: Attendee, there) -> Row:
        """What an instance that is *there*, or is not, means for its attendee."""
        who, name = attendee.name, attendee.compute
        if there is None:
            return Row(who, name, "missing", "./lab room up makes it", ok=False)
        user = getattr(there, "create_on_behalf_of", None)
        if not self._tagged(there) or not user or user.user_object_id != attendee.object_id:
            return Row(who, name, "taken", _TAKEN, ok=False)
        state = _state(there)
        if _under_way(there):
            return Row(who, name, state, "being made", ok=False)
        if "fail" in state.lower():
            why = there.provisioning_errors or "see its logs in the studio, 'Compute'"
            return Row(who, name, state, f"{why}; ./lab room up makes it anew", ok=False)
        return Row(who, name, state)

    def _instance(self, attendee: Attendee, size: str, stop: str) -> ComputeInstance:
        hour, minute = map(int, stop.split(":"))
        daily = CronTrigger(expression=f"{minute} {hour} * * *", time_zone="UTC")
        return ComputeInstance(
            name=attendee.compute,
            size=size,
            tags={sdk.EVENT_TAG: self.event},
            create_on_behalf_of=AssignedUserConfiguration(
                user_tenant_id=attendee.tenant_id or self.tenant,
                user_object_id=attendee.object_id,
            ),
            idle_time_before_shutdown_minutes=IDLE_MINUTES,
            # an open kernel or terminal keeps an instance from being idle, also over night
            schedules=ComputeSchedules(
                compute_start_stop=[ComputeStartStopSchedule(trigger=daily, action="stop")]
            ),
            setup_scripts=SetupScripts(
                creation_script=ScriptReference(
                    path=f"{FOLDER}/{self.event}.sh", timeout_minutes=SCRIPT_MINUTES
                )
            ),
        )

    def _computes(self) -> dict:
        with self.errors("listing the computes"):
            return {compute.name: compute for compute in self.client.compute.list()}

    def _look(self, name: str):
        try:
            return self.client.compute.get(name)
        except ResourceNotFoundError:
            return None

    def _tagged(self, thing) -> bool:
        return (thing.tags or {}).get(sdk.EVENT_TAG) == self.event

    # -- the script, on the file share

    def _put_script(self, text: str) -> None:
        for folder in ("Users", FOLDER):
            client = self._on_share(ShareDirectoryClient, directory_path=folder)
            try:
                client.create_directory()
            except ResourceExistsError:
                pass
        self._script().upload_file(text.encode())

    def _drop_script(self) -> None:
        try:
            self._script().delete_file()
        except ResourceNotFoundError:
            pass

    def _script(self) -> ShareFileClient:
        return self._on_share(ShareFileClient, file_path=f"{FOLDER}/{self.event}.sh")

    def _on_share(self, kind, **path):
        store = self.client.datastores.get(SHARE, include_secrets=True)
        secrets = store.credentials
        key = getattr(secrets, "account_key", None) or getattr(secrets, "sas_token", None)
        if not key:
            raise LabError(
                f"the datastore {SHARE} gives no key, and compute instances need one, too. The "
                "storage account's owner allows 'storage account key access'."
            )
        url = f"https://{store.account_name}.file.{store.endpoint}"
        return kind(url, store.file_share_name, **path, credential=key)


_TAKEN = (
    "a compute of that name is in this region, and it is not this attendee's of this event. "
    "Choose another --event"
)


def _state(compute) -> str:
    state = getattr(compute, "state", None)
    state = getattr(state, "value", state) or ""
    failed = (compute.provisioning_state or "").lower() in ("failed", "canceled")
    return "Failed" if failed else state or compute.provisioning_state or "unknown"


def _under_way(compute) -> bool:
    states = (compute.provisioning_state, _state(compute))
    return bool(UNDER_WAY & {str(state).lower() for state in states})
