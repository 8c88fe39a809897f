"""All 32 builds of extra 12 under its evaluator: writes data/search.json.

    python tests/benchmarks/search.py          # after './lab run', on a quiet machine

Olive's own search, with a sampler that leaves nothing out, and the workflow as the notebook fills
it in. The cells of the notebook down to that are run as they are.
"""

import json
import os
import sys
import time
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from labkit.course import notebook_path
from labkit.files import write_json
from labkit.machine import machine
from labkit.profiles import ROOT


def main() -> None:
    notebook = notebook_path("12")
    os.chdir(notebook.parent)
    cells = [c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]
    names = {}
    last = next(at for at, text in enumerate(cells) if "def search(" in text)
    for text in cells[:last]:
        exec(text, names)
    exec(cells[last].partition("\nseconds, points = ")[0], names)
    wanted = names["workflow"](tries=None, **names["LIMITS"])
    wanted["search_strategy"] |= {"sampler": "sequential", "stop_when_goals_met": False}
    wanted["search_strategy"].pop("sampler_config")
    started = time.perf_counter()
    _, points = names["search"](wanted | {"clean_cache": True})
    about = machine() | {"seconds": time.perf_counter() - started, "base": names["base"]}
    write_json(ROOT / "data" / "search.json", {"about": about, "points": points})
    print(json.dumps(points, indent=1))


if __name__ == "__main__":
    main()
