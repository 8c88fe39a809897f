"""Lab 03's workflow on a tiny model: the pass says how far the training is."""

from dataclasses import replace

from samples import CPU, qa, write_lines
from transformers import trainer

import labkit
from labkit.passes.training import StepReport
from labkit.progress import Progress
from labkit.session import Lab


def test_the_training_reports_its_steps_and_losses(tiny, tmp_path, runs):
    import olive

    train = write_lines(tmp_path / "train.jsonl", *map(qa, range(16)))
    slots = {"model": str(tiny), "train": str(train), "heldout": str(train), "steps": 4}
    workflow = Lab("03", replace(CPU, steps=4)).workflow("finetune", **slots)
    workflow["output_dir"] = str(tmp_path / "out")
    with Progress() as progress:
        assert olive.run(workflow, package_config=labkit.olive_passes()).has_output_model()
    stage = progress.stage
    assert (stage.unit, stage.done, stage.total, stage.first) == ("steps", 4, 4, 0)
    assert [step for step, _ in stage.values["loss"]] == [2, 4]
    assert stage.values["held out"][-1][0] == 4
    assert StepReport not in trainer.DEFAULT_CALLBACKS
