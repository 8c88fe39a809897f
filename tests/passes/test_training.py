"""Lab 03's workflow on a tiny model: the pass says how far the training is."""

from dataclasses import replace

import torch
from olive.passes.pytorch.lora import LoRA
from samples import CPU, qa, tiny_config, write_lines
from transformers import LlamaForCausalLM, trainer

import labkit
from labkit.passes.training import ReportedLoRA, StepReport
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
    written = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert written == {"adapter"}  # and not the model that it is for


def test_the_loss_is_the_same_without_the_logits_of_the_questions(byte_tokenizer):
    def row(length, start):
        ids = torch.arange(40, 40 + length)
        return {"input_ids": ids, "labels": torch.where(torch.arange(length) < start, -100, ids)}

    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config())
    for rows, computed in (
        ([row(30, 20), row(12, 9)], 22),  # from token 8 on, whose logits are of token 9
        ([row(8, 0)], 8),
        ([row(9, 8), row(8, 8)], 2),
    ):
        whole, less = (
            model(**kind.collate_batch(rows, byte_tokenizer)) for kind in (LoRA, ReportedLoRA)
        )
        assert less.logits.shape[1] == computed
        assert torch.allclose(less.loss, whole.loss, rtol=1e-6), rows
