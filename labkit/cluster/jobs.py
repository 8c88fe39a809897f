"""The six labs as a pipeline of Azure ML, a step for each, and a night's run as a schedule."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.course import LABS
from labkit.errors import LabError
from labkit.machine import git
from labkit.profiles import ROOT, Profile

EXPERIMENT = "on-device-lab"
SIZES = {"cpu": "Standard_D4ds_v5", "gpu": "Standard_NC24ads_A100_v4"}  # virtual machines
# Kept beside the notebooks' store: the nights before, which the next one is compared with
HISTORY = "azureml://datastores/workspaceblobstore/paths/labkit/nights"
# A clone as anybody has it, with an environment of its own. What lies in ./outputs is kept also of
# a job that fails, and the page of a night that has failed is the one that is read.
NIGHT = (
    "here=$PWD; unset LAB_PYTHON; git clone -q labs.bundle $LAB_RUNS/clone && cd $LAB_RUNS/clone"
    " && bash lab nightly --history ${{outputs.history}}; night=$?"
    "; mkdir -p $here/outputs; cd $LAB_RUNS/night"
    "; cp -r --parents night.* logs sbom-* runs/*/report.html runs/*/notebooks $here/outputs"
    "; exit $night"
)
IDLE_S = 600  # a cluster keeps its node so long after the last step; then it costs nothing


@dataclass(frozen=True)
class Order:
    """What is asked of a cluster; *gpus* are the processes of lab 03's training."""

    profile: Profile
    compute: str
    gpus: int = 1
    steps: int | None = None


def step_command(number: str, *, gpus: int = 1) -> str:
    """The command line of lab *number*'s step, with Azure ML's places for folders.

    It takes what the labs before it have made, runs one lab, and hands on what is there now. Every
    file is compared with its SHA-256 on the way in.
    """
    take = f"bash lab catch-up {number} --from ${{{{inputs.before}}}}/bundle.tar"
    run = f"bash lab run --only {number}"
    hand_on = (
        "bash lab bundle --out ${{outputs.after}}/bundle.tar"
        " && cp -r $LAB_RUNS/*/notebooks ${{outputs.after}}"
    )
    if number == "03" and gpus > 1:
        # Azure ML starts this once for each GPU; each process has a run folder of its own, and
        # the first one, alone again, runs the lab, which finds its adapter there
        train = "export LAB_RUNS=$LAB_RUNS-$RANK && {} && $LAB_PYTHON -m labkit.cluster.train"
        alone = "if [ $RANK = 0 ]; then unset RANK LOCAL_RANK WORLD_SIZE; {} && {}; fi"
        return f"{train.format(take)} && {alone.format(run, hand_on)}"
    return " && ".join([take, run, hand_on] if number > min(LABS) else [run, hand_on])


@contextlib.contextmanager
def staged(lock: str, *, clone: bool = False) -> Iterator[tuple[Path, Path]]:
    """Folders for as long as the block lasts: the files that git tracks, as they are now, and what
    the image of the environment is built from, with locks/*lock* in it.

    If *clone*, the first holds a bundle of git in their place: the last commit, with its tests and
    links. Neither has outputs or anything that git does not track. Raises LabError outside of a
    clone.
    """
    listed = git("ls-files", "-z")
    if listed.returncode:
        raise LabError(
            f"{ROOT} is no clone: a job is sent the files that git tracks, and git names none "
            f"({listed.stderr.strip()[:100]}). Submit from a 'git clone' of the labs."
        )
    with tempfile.TemporaryDirectory(prefix="labkit-job-") as folder:
        code, image = Path(folder) / "code", Path(folder) / "environment"
        for name in filter(None, listed.stdout.split("\0")):
            source = ROOT / name
            if source.is_file() and not source.is_symlink() and not name.startswith("tests/"):
                (code / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, code / name)
        shutil.copytree(code / "labkit", image / "labkit")
        shutil.copyfile(code / "lab", image / "lab")
        (image / "locks").mkdir()
        shutil.copyfile(code / "locks" / lock, image / "locks" / lock)
        gpu = " --gpu" if lock == "gpu.txt" else ""
        dockerfile = (ROOT / "labkit" / "cluster" / "Dockerfile").read_text()
        (image / "Dockerfile").write_text(dockerfile.replace("lab setup", f"lab setup{gpu}"))
        if clone:
            code = Path(folder) / "clone"
            code.mkdir()
            bundle = str(code / "labs.bundle")
            git("bundle", "create", "--quiet", bundle, "HEAD").check_returncode()
        yield code, image


def lock_of(profile: Profile) -> str:
    """File name of the lock that *profile* runs on."""
    return "gpu.txt" if profile.device == "cuda" else "cpu.txt"


def pipeline(order: Order, code: Path, image: Path):
    """The PipelineJob: six steps, each on the output of the one before."""
    from azure.ai.ml import Input, Output, PyTorchDistribution, dsl

    steps = {}
    for number, lab in LABS.items():
        gpus = order.gpus if number == "03" else 1
        steps[number] = _step(
            order,
            code,
            image,
            name=f"labkit_{number}_{lab.name}",
            display_name=f"{number} {lab.name}",
            command=step_command(number, gpus=gpus),
            inputs={"before": Input(type="uri_folder")} if number > min(LABS) else {},
            outputs={"after": Output(type="uri_folder", mode="upload")},
            distribution=PyTorchDistribution(process_count_per_instance=gpus)
            if gpus > 1
            else None,
        )

    @dsl.pipeline(name="labkit_labs", display_name="on-device labs 01 to 06")
    def labs():
        after = {}
        for number, step in steps.items():
            node = step(**after)
            node.name = f"lab_{number}"
            after = {"before": node.outputs.after}
        return {"run": node.outputs.after}

    return _settled(labs(), order)


def nightly(order: Order, code: Path, image: Path, cron: str):
    """The JobSchedule of './lab nightly' at the times of the *cron* line, in UTC.

    *code* is that of a clone.
    """
    from azure.ai.ml import Output, dsl
    from azure.ai.ml.entities import CronTrigger, JobSchedule

    step = _step(
        order,
        code,
        image,
        name="labkit_nightly",
        display_name="nightly",
        command=NIGHT,
        outputs={"history": Output(type="uri_folder", mode="rw_mount")},
    )

    # a schedule takes no command, but a pipeline, which must not take last night's outputs
    @dsl.pipeline(name="labkit_night", display_name="on-device labs, nightly")
    def night():
        node = step()
        node.name = "nightly"
        node.outputs.history = Output(type="uri_folder", mode="rw_mount", path=HISTORY)

    job = _settled(night(), order)
    job.settings.force_rerun = True
    return JobSchedule(name="labkit-nightly", trigger=CronTrigger(expression=cron), create_job=job)


def ensure_cluster(client, order: Order, size: str | None = None) -> None:
    """Makes the cluster of *order*, of virtual machines of *size*, where there is none.

    It has no node while nothing runs, and one at most: so all steps run on the same machine, and
    figures of speed count to the end. Raises what Azure's libraries raise.
    """
    from azure.ai.ml.entities import AmlCompute
    from azure.core.exceptions import ResourceNotFoundError

    with contextlib.suppress(ResourceNotFoundError):
        client.compute.get(order.compute)
        return
    size = size or SIZES[order.profile.name]
    print(f"making the cluster {order.compute}: {size}, no node while nothing runs")
    wanted = AmlCompute(
        name=order.compute,
        size=size,
        min_instances=0,
        max_instances=1,
        idle_time_before_scale_down=IDLE_S,
    )
    client.compute.begin_create_or_update(wanted).result(timeout=600)


def as_yaml(job) -> str:
    """The *job* as the SDK writes it for 'az ml job create --file', or a schedule."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yml"
        job.dump(path)
        return path.read_text(encoding="utf-8")


def _step(order: Order, code: Path, image: Path, **about):
    from azure.ai.ml import command
    from azure.ai.ml.entities import BuildContext, Environment

    from labkit.registry.sdk import quiet

    quiet()
    settings = {"LAB_PROFILE": order.profile.name, "LAB_MODEL": order.profile.model}
    settings |= {"LAB_STEPS": str(order.steps)} if order.steps else {}
    # on the node's own disk; and no step has anybody's sign-in
    settings |= {"LAB_RUNS": "/tmp/labkit-runs", "LAB_REHEARSE": "1"}
    return command(
        code=str(code),
        environment=Environment(build=BuildContext(path=str(image))),
        environment_variables=settings,
        is_deterministic=False,  # speeds are measured anew
        **about,
    )


def _settled(job, order: Order):
    job.settings.default_compute = order.compute
    job.experiment_name = EXPERIMENT
    return job
