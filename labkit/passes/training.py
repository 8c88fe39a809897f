"""Olive's LoRA pass, which says how far it is: it hands no callbacks on to the Trainer."""

from unittest import mock

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
    """Olive's LoRA, with a callback that reports."""

    def train_and_save_new_model(self, *args):
        callbacks = [*trainer.DEFAULT_CALLBACKS, StepReport]
        with mock.patch.object(trainer, "DEFAULT_CALLBACKS", callbacks):
            return super().train_and_save_new_model(*args)
