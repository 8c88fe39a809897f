"""All providers of extra 14: writes data/targets.json.

    python tests/benchmarks/targets.py [NOTE]     # after './lab run' and './lab setup --extra targets'

The cells of the notebook are run as they are, but those that read what is stored, and with all
providers in place of three. NOTE is kept beside the figures.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from labkit.commands.setup import pins
from labkit.course import notebook_path
from labkit.extras import lock_of
from labkit.files import write_json
from labkit.machine import machine
from labkit.profiles import ROOT

PACKAGES = ("olive-ai", "onnxruntime", "onnxruntime-genai")


def main() -> None:
    notebook = notebook_path("14")
    os.chdir(notebook.parent)
    cells = [c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]
    names = {}
    for text in cells:
        if "stored" in text or "truth" in text:
            continue
        if "LIVE = [" in text:
            assert text.count("\nbuilt = {") == 1
            text = text.replace("\nbuilt = {", "\nLIVE = PROVIDERS[1:]\nbuilt = {")
        exec(text, names)
    about = {"model": names["lab"].profile.model_name, "processor": machine()["processor"]}
    about |= {name: version(name) for name in PACKAGES} | pins(lock_of("targets"))
    about |= {"note": sys.argv[1]} if sys.argv[1:] else {}
    found = {"about": about, "rows": names["rows"], "forms": names["forms"]}
    found["answers"] = names["answer_rows"](names["answers"])
    write_json(ROOT / "data" / "targets.json", found)
    print(json.dumps(found, indent=1)[-3000:])


if __name__ == "__main__":
    main()
