"""./lab submit: the six labs as a pipeline on a cluster of Azure ML, or a night's run there."""

import argparse
import re

from labkit.cluster import jobs
from labkit.errors import LabError
from labkit.profiles import PROFILES, resolve_profile


def main(arguments: list[str]) -> int:
    """Submits the job, or prints it."""
    parser = argparse.ArgumentParser(
        prog="./lab submit",
        description="Runs the six labs as jobs of Azure ML, each on what the one before made.",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the job as YAML; needs no Azure"
    )
    parser.add_argument("--compute", default="labkit", help="the cluster, made if there is none")
    parser.add_argument("--size", help="virtual machine of a new cluster: a name of Azure's")
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="processes that train in lab 03"
    )
    parser.add_argument(
        "--nightly", metavar="CRON", help="run './lab nightly' at these times (UTC) instead"
    )
    options = parser.parse_args(arguments)
    order = ordered(options)
    with jobs.staged(jobs.lock_of(order.profile), clone=bool(options.nightly)) as folders:
        if options.nightly:
            job = jobs.nightly(order, *folders, options.nightly)
        else:
            job = jobs.pipeline(order, *folders)
        if options.dry_run:
            print(jobs.as_yaml(job), end="")
            return 0
        return submit(job, options, order)


def ordered(options) -> jobs.Order:
    """What the command line and the settings ask for; LabError where no cluster can do it."""
    profile = resolve_profile()
    if profile.data != PROFILES[profile.name].data or profile.model.startswith(("/", ".", "~")):
        raise LabError(
            "a job has what git tracks and what it can fetch: LAB_DATA, and a LAB_MODEL that is a "
            "folder of this machine, do not travel. Unset them, or name a model of the Hub."
        )
    if not 1 <= options.gpus <= 8 or profile.batch_size % options.gpus:
        raise LabError(
            f"--gpus is {options.gpus}, and lab 03 takes {profile.batch_size} records a step. "
            f"Choose a number that divides {profile.batch_size}."
        )
    # ten minutes apart at least is nothing that is checked here: the service refuses what it
    # cannot read, after everything was sent
    if options.nightly and not re.fullmatch(r"([\d*,/-]+ ){4}[\w*,/-]+", options.nightly):
        raise LabError(
            f"--nightly is '{options.nightly[:60]}', not five fields of cron. Write for example "
            "--nightly '17 3 * * *': every night at 03:17 UTC."
        )
    steps = profile.steps if profile.steps != PROFILES[profile.name].steps else None
    return jobs.Order(profile, options.compute, options.gpus, steps)


def submit(job, options, order: jobs.Order) -> int:
    """Sends the *job* to the configured workspace, and prints where it can be seen."""
    from labkit.commands.endpoint import connected
    from labkit.registry.azure_errors import azure_errors

    client, workspace = connected()
    with azure_errors("submitting the job", workspace):
        jobs.ensure_cluster(client, order, options.size)
        if options.nightly:
            made = client.schedules.begin_create_or_update(job).result(timeout=600)
            print(f"schedule {made.name}: {options.nightly} (UTC), on {order.compute}")
            print(f"az ml schedule disable --name {made.name} ends it")
        else:
            made = client.jobs.create_or_update(job)
            print(f"job {made.name}, on {order.compute}\n{made.studio_url}")
    return 0
