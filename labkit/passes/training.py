"""Olive's LoRA pass, which says how far it is and computes no logits that nobody asks for."""

from unittest import mock

import torch
from olive.data.constants import IGNORE_INDEX
from olive.passes.pytorch import lora
from transformers import TrainerCallback, trainer

from labkit.progress import report

NAMES = {"loss": "loss", "eval_loss": "held_out"}  # in the Trainer's log -> as it is shown


class StepReport(TrainerCallback):
    """Reports each step, and the losses when the Trainer logs them."""

    def on_train_begin(self, args, state, control, **_):
        report("steps", state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, **_):
        report("steps", state.global_step, state.max_steps)

    def on_log(self, args, state, control, logs=None, **_):
        losses = {NAMES[key]: float(value) for key, value in (logs or {}).items() if key in NAMES}
        report("steps", state.global_step, state.max_steps, **losses)


class ReportedLoRA(lora.LoRA):
    """Olive's LoRA, with a callback that reports.

    The head computes logits from the first token of an answer on: before it, no loss is taken.
    """

    @staticmethod
    def collate_batch(batch, tokenizer):
        inputs = lora.LoRA.collate_batch(batch, tokenizer)
        labels = inputs["labels"]  # [records, tokens]
        first = int((labels != IGNORE_INDEX).any(0).int().argmax())
        first = max(0, first - 1)  # a token's loss is of the logits before it
        # as numbers of tokens: a slice would have the head's weights copied in each step
        kept = torch.arange(first, labels.shape[1])
        return inputs | {"labels": labels[:, first:], "logits_to_keep": kept}

    def train_and_save_new_model(self, *args):
        callbacks = [*trainer.DEFAULT_CALLBACKS, StepReport]
        with mock.patch.object(trainer, "DEFAULT_CALLBACKS", callbacks):
            return super().train_and_save_new_model(*args)
