"""One compute instance: what is asked for, and what its states mean."""

from azure.ai.ml.entities import (
    AssignedUserConfiguration,
    ComputeInstance,
    ComputePowerAction,
    ComputeSchedules,
    ComputeStartStopSchedule,
    CronTrigger,
    ScriptReference,
    SetupScripts,
)

from labkit.registry.azure import power_state
from labkit.registry.sdk import EVENT_TAG
from labkit.room.attendees import Attendee

IDLE_MINUTES, SCRIPT_MINUTES = 60, 30
FOLDER = "Users/labkit"  # of the notebooks' file share
UNDER_WAY = {"creating", "updating", "starting", "settingup", "usersettingup"}
UNDER_WAY |= {"restarting", "stopping", "deleting"}


def instance(attendee: Attendee, event: str, tenant: str, size: str, stop: str) -> ComputeInstance:
    """The instance of *attendee*; *stop* is HH:MM (UTC), *tenant* where the CSV names none."""
    hour, minute = map(int, stop.split(":"))
    daily = CronTrigger(expression=f"{minute} {hour} * * *", time_zone="UTC")
    return ComputeInstance(
        name=attendee.compute,
        size=size,
        tags={EVENT_TAG: event},
        create_on_behalf_of=AssignedUserConfiguration(
            user_tenant_id=attendee.tenant_id or tenant, user_object_id=attendee.object_id
        ),
        idle_time_before_shutdown_minutes=IDLE_MINUTES,
        # an open kernel or terminal keeps an instance from being idle, also over night
        schedules=ComputeSchedules(
            compute_start_stop=[
                ComputeStartStopSchedule(trigger=daily, action=ComputePowerAction.STOP)
            ]
        ),
        setup_scripts=SetupScripts(
            creation_script=ScriptReference(path=script_of(event), timeout_minutes=SCRIPT_MINUTES)
        ),
        enable_sso=False,  # Azure wants the attendee to do that, where a script was run
    )


def script_of(event: str) -> str:
    """Where the set-up script of *event* is, on the notebooks' file share."""
    return f"{FOLDER}/{event}.sh"


def state_of(compute) -> str:
    """Azure's word for it, such as Running, or what is known of its making."""
    return power_state(compute) or compute.provisioning_state or "unknown"


def under_way(compute) -> bool:
    """Whether Azure still works on it."""
    states = (compute.provisioning_state, state_of(compute))
    return bool(UNDER_WAY & {str(state).lower() for state in states})


def failed(compute) -> bool:
    """Whether it, or its set-up script, failed."""
    provisioning = (compute.provisioning_state or "").lower()
    return provisioning in ("failed", "canceled") or "fail" in state_of(compute).lower()


def broken(compute) -> bool:
    """Whether it may be deleted and made anew: on what runs, somebody may have worked."""
    return failed(compute) and state_of(compute).lower() not in ("running", "jobrunning")
