"""What an instructor has on stage: the notebooks without prose, and speaker notes with figures."""

import json
import re
from pathlib import Path

from labkit.files import write_json, write_text
from labkit.folders import own
from labkit.products import Products
from labkit.profiles import ROOT
from labkit.summary import Records
from labkit.working_copies import WorkingCopies

SPEAKER = ROOT / "notebooks" / "speaker"
# what stays of prose: headings, pictures, and the way to the next notebook
SHOWN = r"^#+ .+|^!\[.*\]\(.+\)|^\*\*Next:\*\* \[.+?\]\(\S+?\.ipynb\)"
FENCED = r"^```.*?^```|^~~~.*?^~~~"
DRAWS = r"\b(pictures|plt|labkit\.(bars|lines|table|chat_box))[.(]"
TAUGHT = r"\b(olive\.run|lab\.keep)\("


def slides(book: dict, *, blank: bool = False) -> dict:
    """The notebook *book* without prose and with all of its code.

    If *blank*, what is taught is to be typed: above each cell that neither starts nor checks nor
    draws stands an empty one, and the cell itself is collapsed.
    """
    cells, started = [], False
    for cell in book["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            bare = re.sub(FENCED, "", text, flags=re.MULTILINE | re.DOTALL)
            kept = "\n\n".join(re.findall(SHOWN, bare, re.MULTILINE))
            cells += [cell | {"source": kept}] * bool(kept)
            continue
        is_typed = started and not cell["metadata"].get("tags")
        is_typed &= not re.search(DRAWS, text) or bool(re.search(TAUGHT, text))
        if blank and is_typed:
            cells.append(cell | {"source": "", "id": f"{cell['id']}-typed"})
            hidden = {"jupyter": {"source_hidden": True}}
            cell = cell | {"metadata": cell["metadata"] | hidden}
        cells.append(cell)
        started |= "labkit.start(" in text
    return book | {"cells": cells}


def write_slides(root: Path, *, blank: bool = False) -> list[Path]:
    """Writes the slides of all notebooks of the clone *root*, anew.

    A copy in which something was typed is kept under another name; returns these.
    """
    copies, aside = WorkingCopies(root, "presenting"), []
    own(copies.folder)
    for name, path in copies.originals.items():
        book = json.loads(path.read_text(encoding="utf-8"))
        if (copies.folder / name).exists() and _code(copies.folder / name) - _code(path):
            aside.append(copies.set_aside(name))
        write_json(copies.folder / name, slides(book, blank=blank))
    return aside


def write_notes(root: Path, products: Products) -> None:
    """Writes the speaker notes beside the slides, with the figures of the run of *products*."""
    figures = Records(products).sections()
    seconds = {stamp.name: f"{stamp.seconds:.0f} s" for stamp in products.stamps()}

    def figure(found) -> str:
        section, name = found.groups()
        known = seconds if section == "seconds" else figures.get(section, {})
        text = str(known.get(name, "not measured yet"))
        shown = re.sub(r"[^\w .,()/%-]", "?", text)  # a bundle's unit is no Markdown
        return f"**{shown}**"

    for path in SPEAKER.glob("*.md"):
        text = re.sub(r"\{(\w+)\.([\w.-]+)\}", figure, path.read_text(encoding="utf-8"))
        write_text(root / "runs" / "presenting" / path.name, text)


def _code(path: Path) -> set[str]:
    """The texts of the cells of code in a notebook; its name where it is none any more."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return {"".join(c["source"]).strip() for c in cells if c["cell_type"] == "code"} - {""}
    except (ValueError, KeyError, TypeError):
        return {path.name}
