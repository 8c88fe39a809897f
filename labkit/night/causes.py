"""What a failure is called, and where it began: read from what a part has printed and left."""

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from labkit import course
from labkit.errors import DISK, NETWORK, plain
from labkit.night.parts import Ran
from labkit.profiles import ROOT
from labkit.state import STRICT

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# the first that fits: a full disk breaks connections and imports, and not the other way round
CAUSES = {
    "disk": "|".join(pattern for pattern, _ in DISK) + r"|the disk that holds |GB are needed",
    "memory": r"MemoryError|Cannot allocate memory|[Oo]ut of memory|OutOfMemory|std::bad_alloc"
    r"|kernel died|worker '\w+' crashed",
    "network": "|".join(pattern for pattern, _ in NETWORK)
    + r"|Max retries exceeded|is there a network|there is no network|could not be asked about",
    "dependency": r"ModuleNotFoundError|ImportError|cannot import name|No module named"
    r"|has no attribute|unexpected keyword argument|undefined symbol|packages: \d+ differ"
    r"|pip failed|No matching distribution|cannot be imported|No solution found"
    r"|is not set up yet|Symbol not found|DistributionNotFound|PackageNotFoundError",
    "regression": r"checkpoint [\d.]+ failed|known weakness",
}
KILLED = (-9, 137)  # most often by the system, for want of memory
SHOWN = 300  # characters of what an error says


@dataclass(frozen=True)
class Failure:
    """What went wrong in a *part*: its *cause*, *where* it began, *what* was said."""

    __pydantic_config__ = STRICT

    part: str
    cause: str
    where: str
    what: str


def cause_of(said: str, *, status: int | None = 1, otherwise: str) -> str:
    """What the error that *said* this is called; *otherwise* where no pattern fits."""
    if status is None:
        return "time"
    found = (cause for cause, pattern in CAUSES.items() if re.search(pattern, said))
    return next(found, "memory" if status in KILLED else otherwise)


def of_command(name: str, ran: Ran, *, otherwise: str = "command") -> Failure:
    """The failure of a part of which only the *ran* output tells: its last lines of an error."""
    lines = [line for line in ANSI.sub("", ran.end).splitlines() if line.strip()]
    errors = [line for line in lines if _is_error(line)] or lines[-1:]
    said = errors[-1] if errors else f"exit status {ran.status}"
    if ran.status is None:
        said = f"it was ended after {ran.seconds / 60:.0f} minutes, its limit; at last: {said}"
    cause = cause_of("\n".join(errors), status=ran.status, otherwise=otherwise)
    return Failure(name, cause, "", short(said))


def of_labs(run: Path, ran: Ran) -> list[Failure]:
    """The first failing cell of each lab that failed in the folder *run*; else what was printed.

    Where the disk kept no notebook, the output alone tells.
    """
    found = []
    printed = ANSI.sub("", ran.end)
    for number, lab in course.LABS.items():
        name = f"{number} {lab.name}"
        match = re.search(rf"^{name}: FAILED in '(.*)'\n(?:error: )?(.*)", printed, re.MULTILINE)
        if not match:
            continue
        path = run / "notebooks" / f"{course.notebook_path(number).stem}.failed.ipynb"
        where, said = _first_failing_cell(path) or (f"'{match[1]}'", "")
        said = said or match[2]
        cause = cause_of(f"{said}\n{match[2]}", otherwise="notebook")
        found.append(Failure("labs", cause, f"lab {name}, {where}", short(said)))
    return found or [of_command("labs", ran)]


def of_tests(junit: Path, ran: Ran) -> list[Failure]:
    """A failure for each test that failed, as pytest's *junit* file tells them."""
    found = []
    try:
        cases = ElementTree.parse(junit).iter("testcase")
    except (OSError, ElementTree.ParseError):
        return [of_command("tests", ran, otherwise="test")]
    for case in cases:
        problem = case.find("failure")
        if problem is None:
            problem = case.find("error")
        if problem is None:
            continue
        text = ANSI.sub("", f"{problem.get('message', '')}\n{problem.text or ''}")
        name = case.get("name", "")
        errors = [line for line in text.splitlines() if _is_error(line)]
        said = (errors or text.strip().splitlines() or [""])[-1].removeprefix("E").strip()
        where = f"{case.get('classname', '').replace('.', '/')}::{name}"
        otherwise = "test"
        if name.endswith(".ipynb"):
            where, otherwise = f"{name}{_heading_of(name, text)}", "notebook"
        found.append(Failure("tests", cause_of(said, otherwise=otherwise), where, short(said)))
    return found or [of_command("tests", ran, otherwise="test")]


def short(text: str) -> str:
    """*text* on one line, without what a terminal would obey."""
    line = plain(" ".join(text.split()))
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 4]} ..."


def _is_error(line: str) -> bool:
    return bool(re.match(r"(E +)?([\w.]*([Ee]rror|Exception|Interrupt)\b.*|error: .*)", line))


def _first_failing_cell(path: Path) -> tuple[str, str] | None:
    """(which cell below which heading, what it said) of an executed notebook, or None."""
    import nbformat

    try:
        cells = nbformat.read(path, as_version=4).cells
        heading = ""
        for index, cell in enumerate(cells):
            if cell.cell_type == "markdown":
                heading = (re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE) or [heading])[-1]
            for output in cell.get("outputs", ()):
                if output.output_type == "error":
                    return f"cell {index} below '{heading}'", f"{output.ename}: {output.evalue}"
    except Exception:  # nbformat raises a dozen kinds for a file that is cut off
        pass
    return None


def _heading_of(name: str, text: str) -> str:
    """Where in the notebook *name* the cell stands whose code is in *text*; "" where none is."""
    import nbformat

    heading = ""
    for path in (ROOT / "notebooks").glob(f"**/{Path(name).name}"):
        for index, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "markdown":
                heading = (re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE) or [heading])[-1]
            elif cell.source.strip() and cell.source.strip() in text:
                return f", cell {index} below '{heading}'"
    return ""
