"""Does the order matter? Quantize, then fine-tune (the route of the labs), or the other way.

It needs a run folder in which labs 01 to 03 are finished, and takes some ten minutes on two cores:

    python tests/benchmarks/order.py          # measures; writes data/order.json and docs/order.png
    python tests/benchmarks/order.py --draw   # draws again what data/order.json holds
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import labkit  # noqa: E402
from labkit.files import read_json, write_json  # noqa: E402
from labkit.machine import machine, versions  # noqa: E402

DATA, PICTURE = ROOT / "data" / "order.json", ROOT / "docs" / "order.png"
QUANTIZE_FIRST = "quantize, then fine-tune"
FINE_TUNE_FIRST = "fine-tune, then quantize"
FLOAT = "fine-tuned, 16 bits"


class Experiment:
    """Both orders with the data, the steps and the settings of one finished run."""

    def __init__(self, lab, work: Path):
        self.lab, self.work = lab, work
        self.tokenizer = labkit.load_tokenizer(lab.path("base"))
        self.heldout = labkit.load_records(lab.path("heldout.jsonl"))

    def losses(self) -> dict[str, list[list[float]]]:
        """Name of the order -> losses of the held-out records, in nats per token."""
        first = self.tuned(self.lab.path("awq-dense"), self.lab.path("lora") / "adapter")
        found = {QUANTIZE_FIRST: self.measure(first)}
        del first
        merged = self.tuned(self.lab.path("base"), self.fine_tune_base()).merge_and_unload()
        found[FLOAT] = self.measure(merged)
        merged.half().save_pretrained(self.work / "merged")
        self.tokenizer.save_pretrained(self.work / "merged")
        del merged
        found[FINE_TUNE_FIRST] = self.measure(self.load(self.quantize_merged()))
        return found

    def fine_tune_base(self) -> Path:
        """Folder of an adapter that is trained on the 16-bit model."""
        out, lab = self.work / "lora", self.lab
        workflow = lab.workflow(
            "finetune",
            model=lab.path("base"),
            train=lab.path("train.jsonl"),
            heldout=lab.path("heldout.jsonl"),
            steps=lab.profile.steps,
        )
        workflow["passes"]["lora"]["training_args"]["output_dir"] = str(out / "trainer")
        run_olive(workflow, out)
        return out / "adapter"

    def quantize_merged(self) -> Path:
        """Folder of the merged model on AWQ's grid, written out in 16 bits."""
        merged, calibration = self.work / "merged", self.lab.path("calibration.jsonl")
        workflow = self.lab.workflow("quantize", model=merged, calibration=calibration)
        run_olive(workflow, self.work / "awq")
        labkit.unpack_awq(self.work / "awq" / "model", self.work / "awq-dense")
        return self.work / "awq-dense"

    def load(self, folder: Path):
        from transformers import AutoModelForCausalLM

        profile = self.lab.profile
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=profile.eval_dtype, trust_remote_code=False
        )
        return model.to(profile.device).eval()

    def tuned(self, folder: Path, adapter: Path):
        from peft import PeftModel

        return PeftModel.from_pretrained(self.load(folder), adapter).eval()

    def measure(self, model) -> list[list[float]]:
        return labkit.record_losses(labkit.torch_logits(model), self.tokenizer, self.heldout)


def run_olive(workflow: dict, out: Path) -> None:
    import olive

    result = olive.run(workflow | {"output_dir": str(out)}, package_config=labkit.olive_passes())
    if not result.has_output_model():
        raise SystemExit(f"Olive produced no model in {out}: its log is above.")


def measure() -> dict:
    """What data/order.json holds: each loss, and the paired difference of the two orders."""
    lab = labkit.start("03")
    work = lab.folder / ".experiment-order"
    shutil.rmtree(work, ignore_errors=True)
    losses = Experiment(lab, work).losses()
    shutil.rmtree(work)
    difference = labkit.loss_difference(losses[FINE_TUNE_FIRST], losses[QUANTIZE_FIRST])
    names = (QUANTIZE_FIRST, FINE_TUNE_FIRST, FLOAT)
    return {
        "losses": {name: labkit.mean_loss(losses[name]).as_dict() for name in names},
        "fine_tune_first_minus_quantize_first": difference.as_dict(),
        "records": len(losses[FLOAT]),
        "steps": lab.profile.steps,
        "model": lab.profile.model_name,
        "date": time.strftime("%Y-%m-%d"),
        "processor": machine()["processor"],
        "versions": versions(),
    }


def draw(stored: dict) -> None:
    """Writes docs/order.png."""
    from matplotlib import pyplot as plt

    losses = {name: labkit.Estimate(**one) for name, one in stored["losses"].items()}
    records, steps = stored["records"], stored["steps"]
    title = f"Two orders, {steps} training steps, {records} held-out questions"
    ax = labkit.bars(losses, title=title, ylabel="held-out loss (nats per token)")
    ax.figure.savefig(PICTURE, dpi=120)
    plt.close(ax.figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="writes the figures there, and no picture")
    parser.add_argument("--draw", action="store_true", help="only draw the stored figures again")
    options = parser.parse_args()
    if options.out:
        write_json(options.out, measure())
        return
    if not options.draw:
        write_json(DATA, measure())
    draw(read_json(DATA))
    print(f"{DATA} and {PICTURE}")


if __name__ == "__main__":
    main()
