"""The plans of INSTRUCTORS.md, from the measured times: python docs/plans.py --write

A lab's cells run while you tell what they do, so a lab takes the longer of the two. Who steps
through it reads, runs, and reads on: that adds up. Exercises come on top. Times of cells are those
of data/seconds.json, of reading and exercises those of the notebooks' first cells.
What is said stands in the speaker notes. tests/test_plans.py fails where the page is older.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "INSTRUCTORS.md"
BEGIN, END = "<!-- plans -->\n", "<!-- /plans -->\n"
SECONDS = json.loads((ROOT / "data" / "seconds.json").read_text())["cpu"]
RUN = SECONDS["labs"] | SECONDS["extras"]  # lab -> seconds
# a machine without bfloat16 beside that of the table: six labs in 14 minutes (README)
SLOWER = 14 * 60 / sum(SECONDS["labs"].values())

# of a lab's speaker notes: what is said, where rooms get stuck, what is not told when late
HEAD = ("While it runs", "Stuck", "When late, not")


@dataclass
class Row:
    lab: str
    told: float | None = None  # minutes of an instructor's talk; None: attendees read
    exercises: bool = False

    def minutes(self, slower: float = 1.0) -> float:
        read, exercises = times_of(self.lab)
        run = slower * RUN[self.lab] / 60
        whole = read + run if self.told is None else max(self.told, run)
        return whole + self.exercises * exercises


# minutes -> what happens: the instructor alone; attendees with some; with all exercises
PLANS = {
    35: [Row("01", 5), Row("02", 5), Row("03", 7), Row("04", 5), Row("05", 7), Row("06", 3)],
    90: [Row("01"), Row("02", None, True), Row("03", None, True), Row("04"), Row("05"), Row("06")],
    180: [
        *(Row(lab, None, True) for lab in ("01", "02", "03", "04", "05", "06")),
        Row("08", None, True),
        Row("12", None, True),
    ],
}
TOLD = {
    35: "You alone, on a projector, the cells of each lab started at its beginning (Run All).",
    90: "Attendees read and run; the exercises of labs 02 and 03.",
    180: "Attendees read and run, with all exercises, 15 minutes of break after lab 03, and two "
    "extras.",
}
BREAKS = {180: {"03": 15.0}}


def notebook(lab: str) -> Path:
    return next(ROOT.glob(f"notebooks/**/{lab}_*.ipynb"))


def times_of(lab: str) -> tuple[float, float]:
    """Minutes of reading and of the exercises of a lab, as its first cell says them."""
    first = "".join(json.loads(notebook(lab).read_text(encoding="utf-8"))["cells"][0]["source"])
    read = re.search(r"read (\d+) min", first)
    exercises = re.search(r"exercises? (\d+) min", first)
    return float(read[1]), float(exercises[1])


def notes_of(lab: str) -> list[str]:
    """What the head of the speaker notes of a lab says."""
    text = next(ROOT.glob(f"notebooks/speaker/{lab}_*.md")).read_text(encoding="utf-8")
    return [re.search(rf"^- \*\*{name}:\*\* (.+)$", text, re.MULTILINE)[1] for name in HEAD]


def clock(minutes: float) -> str:
    return f"{round(minutes) // 60}:{round(minutes) % 60:02}"


def length(plan: int, slower: float = 1.0) -> float:
    """Minutes that a plan takes."""
    breaks = sum(BREAKS.get(plan, {}).values())
    return sum(row.minutes(slower) for row in PLANS[plan]) + breaks


def table(plan: int) -> str:
    lines = [
        f"### {plan} minutes\n",
        f"{TOLD[plan]} {length(plan):.0f} minutes on the machine of the table, "
        f"{length(plan, SLOWER):.0f} where the processor has no bfloat16.\n",
        "| from | lab | cells run | while they run | where rooms get stuck | when late, not |",
        "|---|---|---|---|---|---|",
    ]
    at = 0.0
    for row in PLANS[plan]:
        says, stuck, skip = notes_of(row.lab)
        name = notebook(row.lab).stem.replace("_", " ") + ", exercises" * row.exercises
        lines.append(
            f"| {clock(at)} | {name} | {RUN[row.lab] / 60:.1f} min | {says} | {stuck} | {skip} |"
        )
        at += row.minutes()
        if rest := BREAKS.get(plan, {}).get(row.lab):
            lines.append(f"| {clock(at)} | break | {rest:.0f} min | | | |")
            at += rest
    return "\n".join([*lines, f"| {clock(at)} | questions | | | | |\n"])


def text() -> str:
    return "\n".join(map(table, PLANS))


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    whole = before + BEGIN + text() + END + after
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(whole, encoding="utf-8")
    elif whole != page:
        sys.exit("docs/INSTRUCTORS.md is older than the times: python docs/plans.py --write")


if __name__ == "__main__":
    main()
