"""Loss above the base model by group size, of plain rounding and of AWQ.

    python tests/benchmarks/group_sizes.py --run runs/cpu   # 22 minutes on two cores; after lab 02
    python tests/benchmarks/group_sizes.py                  # draws what is stored

Measured on all records but the calibration data, record by record against the base model. Writes
data/group_sizes.json and docs/group_sizes.png, which lab 02 shows.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from labkit import unpack_awq
from labkit.data import load_records
from labkit.drawing import COLOURS, axes, finish, legend_above
from labkit.evaluate import loss_difference, record_losses, torch_logits
from labkit.figures import Estimate
from labkit.files import read_json, write_json
from labkit.grid import round_to_grid
from labkit.machine import machine, versions
from labkit.passes import olive_passes
from labkit.profiles import PROFILES, ROOT, Profile
from labkit.prompts import load_tokenizer
from labkit.session import TELEMETRY_OFF
from labkit.workflows import fill_workflow

STORED, PICTURE = ROOT / "data" / "group_sizes.json", ROOT / "docs" / "group_sizes.png"
ROUNDED, BY_AWQ = (16, 32, 64, 96, 192), (32, 64)  # groups that divide rows of 576


def measure(run: Path) -> dict:
    """The figures of the finished run folder *run*, {"RTN 32": Estimate as a dictionary, ...}."""
    profile = PROFILES[run.name]
    tokenizer = load_tokenizer(run / "base")
    calibrated = len((run / "calibration.jsonl").read_text().splitlines())
    records = load_records(run / "train.jsonl")[calibrated:] + load_records(run / "heldout.jsonl")

    def losses_of(model):
        return record_losses(torch_logits(model), tokenizer, records)

    base = _load(run / "base", profile)
    weights = sum(p.numel() for p in base.model.layers.parameters() if p.dim() == 2)
    reference = losses_of(base)
    figures = {}
    for name, model in _candidates(run, profile):
        figures[name] = loss_difference(losses_of(model), reference).as_dict()
        print(f"{name}: {Estimate(**figures[name])}", flush=True)
    return {
        "figures": figures,
        "tokens": sum(map(len, reference)),
        "weights": weights,
        "date": time.strftime("%Y-%m-%d"),
        "processor": machine()["processor"],
        "model": profile.model_name,
        "versions": versions(),
    }


def _candidates(run: Path, profile: Profile) -> Iterator[tuple[str, torch.nn.Module]]:
    """Each way to quantize, by its name, and the model that it gives."""
    for size in ROUNDED:
        model = _load(run / "base", profile)
        for module in model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                weight = module.weight.data
                module.weight.data = round_to_grid(weight, size).values().to(weight.dtype)
        yield f"RTN {size}", model
    import olive

    for size in BY_AWQ:
        with tempfile.TemporaryDirectory() as place:
            given = {"model": run / "base", "calibration": run / "calibration.jsonl"}
            known = vars(profile) | given | {"group_size": size}
            cache, out = Path(place, "cache"), Path(place, "awq")
            workflow = fill_workflow("quantize", known, profile.provider, cache=cache)
            olive.run(workflow | {"output_dir": str(out)}, package_config=olive_passes())
            unpack_awq(out / "model", Path(place, "dense"))
            yield f"AWQ {size}", _load(Path(place, "dense"), profile)


def _load(folder: Path, profile: Profile):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, profile.dtype), trust_remote_code=False
    )
    return model.to(profile.device).eval()


def draw(stored: dict) -> None:
    """Saves the picture of the *stored* figures: loss above base against the layers' size."""
    ax, said = axes(9, 4.6), []
    for method, marker, colour in (("RTN", "o", COLOURS[1]), ("AWQ", "s", COLOURS[0])):
        sizes, figures = [], []
        for name, figure in stored["figures"].items():
            if name.startswith(method):
                sizes.append(int(name.split()[1]))
                figures.append(Estimate(**figure))
        # each group stores a 16-bit scale and a 4-bit zero point
        mb = [stored["weights"] * (4 + 20 / size) / 8e6 for size in sizes]
        means = [figure.mean for figure in figures]
        reach = [
            [figure.mean - figure.low for figure in figures],
            [figure.high - figure.mean for figure in figures],
        ]
        label = {"RTN": "rounded to nearest", "AWQ": "AWQ"}[method]
        look = {"color": colour, "marker": marker, "markersize": 9, "capsize": 6}
        ax.errorbar(mb, means, yerr=reach, linewidth=2, label=label, **look)
        for x, y, size in zip(mb, means, sizes, strict=True):
            place = {"xytext": (8, 8), "textcoords": "offset points"}
            ax.annotate(str(size), (x, y), fontsize=13, **place)
            said.append(f"{method} {size}: {y:.2f} at {x:.0f} MB")
    ax.set_xlabel("size of the layers (MB); the number at each point is the group size")
    ax.set_ylim(0, 0.42)
    legend_above(ax)
    title = f"Harm against size, {stored['model']}"
    finish(ax, "loss above base (nats per token)", title, ", ".join(said))
    ax.figure.savefig(PICTURE, dpi=110)
    print(f"{PICTURE}: {', '.join(said)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="run folder; without it the stored figures")
    parser.add_argument("--out", type=Path, help="writes the figures there, and no picture")
    options = parser.parse_args()
    if options.run:
        os.environ.update(TELEMETRY_OFF)
        write_json(options.out or STORED, measure(options.run))
        if options.out:
            return
    draw(read_json(STORED))


if __name__ == "__main__":
    main()
