"""Every quantizer of extra 13, in the same way: writes data/quantizers.json.

    python tests/benchmarks/quantizers.py          # after './lab run', on a quiet machine

The functions are those of the notebook: its cells are run as they are, down to where the stored
figures are read. What was made is kept, so that a run that was stopped goes on. Names of variants
as arguments: these alone.
"""

import os
import random
import sys
import time
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from labkit.course import notebook_path
from labkit.files import write_json
from labkit.machine import machine
from labkit.profiles import ROOT, SEED

STORED = ROOT / "data" / "quantizers.json"
READS_THE_STORED = "stored = json.loads("
LABELS = {
    "rtn": "RTN",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "kquant": "k-quant",
    "mixed": "mixed, measured",
    "mixed-rule": "mixed, Olive's rule",
    "mixed-random": "mixed, at random",
    "mixed-gptq": "mixed, measured, GPTQ",
    "builder": "k-quant mixed, in the builder",
}


def notebook_names() -> dict:
    """What the cells of the notebook define; the last ones without what reads the stored."""
    notebook = notebook_path("13")
    os.chdir(notebook.parent)
    cells = [c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]
    names, live = {}, True
    for text in cells:
        live &= READS_THE_STORED not in text
        if live:
            exec(text, names)
        elif "def peft_on(" in text:
            exec(text.partition("\n\nrefused = ")[0], names)
        elif "def train(" in text:
            exec(text.partition("\n\nmodel = blocks = None")[0], names)
    return names


def recipes(names: dict) -> dict:
    """Name of a variant -> the workflow that quantizes it."""
    shuffled = random.Random(SEED).sample(names["UNITS"], len(names["UNITS"]))
    measured, quantizing = names["eight_bits"](names["chosen"]), names["quantizing"]
    by_chance = names["eight_bits"](names["take"](shuffled))
    return {
        "rtn": quantizing("rtn"),
        "awq": quantizing("awq"),
        "gptq": quantizing("gptq"),
        "kquant": quantizing("kquant"),
        "mixed": quantizing("rtn", overrides=measured),
        "mixed-rule": quantizing("rule", "rtn"),
        "mixed-random": quantizing("rtn", overrides=by_chance),
        "mixed-gptq": quantizing("gptq", overrides=measured),
    }


def builder_alone(names: dict) -> tuple[Path, float]:
    """(graph, seconds) of the builder's own k-quant, which leaves no checkpoint."""
    recipe = names["lab"].workflow(
        "optimize", model=names["base_dir"], adapter=None, tied=names["tied"]
    )
    del recipe["passes"]["extract"]
    capture = recipe["passes"]["capture"]
    capture |= {"type": "ModelBuilder", "int4_algo_config": "k_quant_mixed"}
    folder = names["lab"].keep("onnx-builder", names["run_olive"], recipe, needs=("base",))
    return folder, names["lab"].products.stamp("onnx-builder").seconds


def mean_of(rows: list[list[float]]) -> list[float]:
    return [round(sum(row) / len(row), 5) for row in rows]


def main() -> None:
    started = time.perf_counter()
    names = notebook_names()
    lab, variants, graphs = names["lab"], {}, {}
    wanted = sys.argv[1:] or LABELS
    about = machine() | {
        "model": lab.profile.model,
        "tokens": [len(row) for row in names["base_losses"]],
        "base_losses": mean_of(names["base_losses"]),
        "sensitivity": {f"{i} {p}": kl for (i, p), kl in names["sensitivity"].items()},
    }

    def note(name: str, folder: Path, seconds: float, **more) -> None:
        losses = names["losses"].get(name) or names["losses_of"](folder)
        one = {"label": LABELS[name], "seconds": seconds, "mb": names["graph_mb"](folder)}
        variants[name], graphs[name] = one | more | {"losses": mean_of(losses)}, folder
        print(f"{time.perf_counter() - started:.0f} s: {name}", flush=True)

    for name, recipe in recipes(names).items():
        if name not in wanted:
            continue
        if name != "awq":  # lab 02 has made that one
            names["quantize"](name, recipe)
        folder, seconds = names["build"](name), lab.products.stamp(name).seconds
        before, after = names["trained_losses"](name)
        training = {"before": mean_of(before), "after": mean_of(after)}
        tried = {"peft": names["peft_on"](lab.path(name)), "again": names["found_again"](name)}
        eight = sorted(recipe["passes"].get("rtn", {}).get("overrides", {}))
        note(name, folder, seconds, **tried, training=training, eight=eight)
    if "builder" in wanted:
        folder, seconds = builder_alone(names)
        note("builder", folder, seconds, peft="no checkpoint", training=None)
    for name, speed in names["token_times"](graphs).items():
        variants[name]["speed"] = speed.as_dict()
    about["seconds"] = time.perf_counter() - started
    write_json(STORED, {"about": about, "variants": variants})


if __name__ == "__main__":
    main()
