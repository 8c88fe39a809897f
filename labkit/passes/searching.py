"""Olive's search, with two things put right that stop it in 0.13.0."""

from functools import partialmethod

from olive.engine.engine import Engine
from olive.engine.footprint import FootprintNode


def mend_search() -> None:
    """Makes goals that are thresholds count, and two models that share a pass possible."""
    if not isinstance(vars(Engine)["resolve_goals"], partialmethod):
        Engine.resolve_goals = partialmethod(_goals, resolve=Engine.resolve_goals)
    FootprintNode.update = _update


def _goals(engine, input_config, input_id, metrics, accelerator, *, resolve) -> dict[str, float]:
    """The goals, thresholds included: Olive leaves these out without a word unless another goal
    needs the input model's figures, and then every model meets them.
    """
    goals = resolve(engine, input_config, input_id, metrics, accelerator)
    for metric in metrics:
        for name, goal in metric.get_sub_type_info("goal").items():
            if goal and goal.type == "threshold":
                goals[f"{metric.name}-{name}"] = goal.value
    return goals


def _update(node, **found) -> None:
    """Notes what was *found* of a model again: Olive asks for a field by its name outside, and
    fails, and with it each model that shares its first passes with an earlier one.
    """
    for name, value in found.items():
        setattr(node, "model_config_data" if name == "model_config" else name, value)
