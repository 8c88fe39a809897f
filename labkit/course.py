"""The six labs and the extras: their order, what each reads from those before it, and makes."""

from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from labkit.profiles import ROOT


class Entry(NamedTuple):
    """A lab: its name, the products that it *needs*, those that it *makes*, its other *outputs*,
    and the *packages* that it needs beside those of the labs: NAME in locks/extras-NAME.txt.
    """

    name: str
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    packages: str = ""


LABS = {
    "01": Entry("setup", makes=("base", "train.jsonl", "heldout.jsonl", "base-losses.json")),
    "02": Entry(
        "quantize",
        needs=("base", "train.jsonl", "heldout.jsonl", "base-losses.json"),
        makes=("calibration.jsonl", "awq", "awq-dense", "awq-losses.json"),
    ),
    "03": Entry(
        "finetune",
        needs=("awq-dense", "train.jsonl", "heldout.jsonl", "awq-losses.json"),
        makes=("lora", "tone-train.jsonl", "tone-heldout.jsonl", "lora-tone", "lora-losses.json"),
    ),
    "04": Entry(
        "optimize",
        needs=("awq", "awq-dense", "lora", "lora-tone", "heldout.jsonl", "lora-losses.json"),
        makes=(
            "onnx",
            "tone.onnx_adapter",
            "onnx-cpu",
            "merged",
            "onnx-merged",
            "onnx-head4",
            "onnx-baked",
        ),
    ),
    "05": Entry(
        "infer",
        needs=(
            "onnx",
            "onnx-baked",
            "tone.onnx_adapter",
            "base",
            "heldout.jsonl",
            "tone-heldout.jsonl",
        ),
        makes=("answers.json",),
    ),
    "06": Entry(
        "upload",
        needs=("onnx", "tone.onnx_adapter", "heldout.jsonl", "answers.json"),
        makes=("package",),
        outputs=("registry", "downloaded"),
    ),
}

# optional: each starts from the products of the labs, and no lab needs one
EXTRAS = {
    "07": Entry(
        "form",
        needs=("awq-dense", "onnx"),
        makes=("form-train.jsonl", "form-heldout.jsonl", "lora-form", "form.onnx_adapter"),
    ),
    "08": Entry("serve", needs=("onnx", "tone.onnx_adapter", "heldout.jsonl")),
    "09": Entry(
        "page",
        needs=("onnx", "tone.onnx_adapter", "heldout.jsonl", "tone-heldout.jsonl"),
        outputs=("page",),
    ),
    "10": Entry("app", needs=("onnx-baked", "heldout.jsonl"), makes=("app",), packages="app"),
    "11": Entry(
        "gguf",
        needs=("awq", "lora", "onnx", "heldout.jsonl"),
        makes=("base.gguf", "travel-lora.gguf"),
        packages="gguf",
    ),
    "12": Entry(
        "search",
        needs=("base", "calibration.jsonl", "heldout.jsonl"),
        makes=("search-calibration.jsonl", "searched.json", "searched.zip"),
    ),
    "13": Entry(
        "quantizers",
        needs=("base", "base-losses.json", "train.jsonl", "heldout.jsonl")
        + ("calibration.jsonl", "awq"),
        makes=("sensitivity.json", "rtn", "rtn-dense", "mixed", "mixed-dense")
        + ("onnx-rtn", "onnx-awq", "onnx-mixed", "lora-mixed"),
    ),
    "14": Entry(
        "targets",
        needs=("awq-dense", "lora", "onnx", "heldout.jsonl"),
        makes=("target-QNN", "target-WebGpu"),
        packages="targets",
    ),
    "15": Entry(
        "evaluate",
        needs=("onnx", "tone.onnx_adapter", "heldout.jsonl", "tone-heldout.jsonl"),
        makes=("evaluate-travel.jsonl", "evaluate-tone.jsonl", "evaluate-some.jsonl"),
        packages="evaluate",
    ),
    "16": Entry(
        "sign",
        needs=("package", "tone.onnx_adapter"),
        outputs=("keys", "signed", "altered"),
        packages="sign",
    ),
}

GPU_ONLY = ("onnx-cpu",)  # made only where onnx itself is not for the CPU


def entry(number: str) -> Entry:
    """The lab or extra *number*."""
    return (LABS | EXTRAS)[number]


def maker(product: str) -> str:
    """Number of the lab or extra that makes *product*; "" where none of them does."""
    return next((n for n, lab in (LABS | EXTRAS).items() if product in lab.makes), "")


def missing(number: str, present: Container[str], *, device: str) -> list[str]:
    """The products of lab *number* that are not *present*, on a route for *device*."""
    wanted = LABS[number].makes
    return [
        name
        for name in wanted
        if name not in present and (device == "cuda" or name not in GPU_ONLY)
    ]


def notebook_path(number: str) -> Path:
    """Path of the notebook of the lab or extra *number*."""
    folder = ROOT / "notebooks" / ("extras" if number in EXTRAS else "")
    return folder / f"{number}_{entry(number).name}.ipynb"
