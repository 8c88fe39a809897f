"""The commands of ./lab.

Each is a module here with ``main(arguments) -> exit status``; importing this needs no package.
"""

import argparse
import importlib
import os
import select
import signal
import sys

from labkit.errors import LabError, file_problem, plain
from labkit.profiles import path_of

COMMANDS = {
    "setup": (
        "install everything into .venv: [--gpu] [--extra NAME] [--download DIR] [--wheels DIR]",
        "no",
    ),
    "doctor": ("check this machine: memory, disk, packages, model", "where set up"),
    "run": ("run all labs and write a report: [--force] [--from NN] [--only NN]", "yes"),
    "open": ("open the notebooks in JupyterLab: [--port N]", "yes"),
    "present": ("the labs for a projector, with speaker notes: [NN] [--blank] [--port N]", "yes"),
    "serve": (
        "answer as OpenAI's interface: [--run DIR] [--host H] [--port N] [--token T]",
        "yes",
    ),
    "status": ("say which labs are complete", "where set up"),
    "page": ("write the model as a page for a browser: [--serve] [--lan] [--port N]", "yes"),
    "bundle": ("pack what the labs have made into one file: [--out FILE] [--key PRIVATE]", "yes"),
    "catch-up": (
        "take from a bundle what the labs before NN make: NN --from FILE [--fingerprint HEX]"
        " [--key PUBLIC] [--replace]",
        "yes",
    ),
    "room": (
        "a compute instance in Azure ML for each line of a CSV: plan, up, status, down",
        "yes",
    ),
    "submit": (
        "run the labs on a cluster of Azure ML: [--dry-run] [--compute C] [--gpus N]"
        " [--nightly CRON]",
        "yes",
    ),
    "endpoint": ("serve the packaged model in Azure ML: test, up or down", "yes"),
    "reset": ("delete outputs: [--from NN] [--all], or edits: [--notebooks]", "where set up"),
    "nightly": (
        "run everything, and write a page of it: [--only PART] [--history DIR] [--accept]",
        "yes",
    ),
    "test": ("run the tests: [--quick] [--all] [pytest's arguments]", "yes"),
    "help": ("print this list", "no"),
}
"""Name -> (one line of help, whether it runs in the environment that setup makes)."""


def main(argv: list[str]) -> int:
    """Runs one command; its exit status.

    Errors that the user can mend are printed as a paragraph.
    """
    name, *arguments = argv or ["help"]
    if name not in (*COMMANDS, "-h", "--help"):
        print(
            f"error: unknown command '{name}'. './lab help' lists the commands.", file=sys.stderr
        )
        return 2
    # as Ctrl-C does: what is half done is put in order, and one line says why it ended
    for number in signal.SIGTERM, signal.SIGHUP:  # the latter: its terminal was closed
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, signal.default_int_handler)
    try:
        if name in ("help", "-h", "--help"):
            print("usage: ./lab COMMAND [options]\n")
            print("\n".join(f"  {command:9}{line}" for command, (line, _) in COMMANDS.items()))
            return 0
        for setting in ("LAB_RUNS", "LAB_DATA", "LAB_MODEL"):
            if given := os.environ.get(setting):
                path = path_of(setting, given)
                if setting != "LAB_MODEL" or path.is_dir():
                    os.environ[setting] = str(path)  # kernels run in another folder
        if COMMANDS[name][1] != "no":
            from labkit.commands import setup

            asks = {"-h", "--help"} & set(arguments)
            setup.enter(argv, install_first=COMMANDS[name][1] == "yes" and not asks)
        return importlib.import_module(f"labkit.commands.{name.replace('-', '_')}").main(arguments)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        how = "Run './lab setup' first"
        if python := os.environ.get("LAB_PYTHON"):
            how = (
                f"LAB_PYTHON names {python}, without the packages: unset it and run './lab setup'"
            )
        print(
            plain(
                f"error: the environment is not set up yet ({error.name} is missing). {how}, then "
                f"'./lab {name}'."
            ),
            file=sys.stderr,
        )
        return 1
    except OSError as error:  # what nobody has foreseen has a path and a reason all the same
        if isinstance(error, BrokenPipeError) and not _is_read():
            # Python would say so once more as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        print(f"error: {plain(file_problem(error) or _unforeseen(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished stays", file=sys.stderr)
        return 130


def _is_read() -> bool:
    """Whether somebody reads what is printed: `./lab status | head -1` reads one line of it."""
    printed = select.poll()
    printed.register(sys.stdout, 0)  # that nobody does is told without being asked
    return not printed.poll(0)


def _unforeseen(error: OSError) -> str:
    what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    return (
        f"{what}. See that it is there and that you may read and write it, or set LAB_RUNS to "
        "another folder, and run './lab' again; './lab doctor' checks this machine."
    )


def lab_number(text: str) -> str:
    """argparse type: "4" or "04" -> "04"."""
    from labkit.course import LABS

    if text.zfill(2) not in LABS:
        raise argparse.ArgumentTypeError(f"'{text}' is not a lab: {min(LABS)} to {max(LABS)}")
    return text.zfill(2)


def agreed(command: str, question: str) -> bool:
    """Whether the user lets *command* delete; a script is not asked, it says --yes."""
    if not sys.stdin.isatty():
        raise LabError(
            f"'./lab {command}' asks before it deletes, and nobody can answer here. Add --yes."
        )
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
