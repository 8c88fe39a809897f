"""Olive's search, with four things put right that stop it in 0.13.0."""

from functools import partialmethod

from olive.engine.config import FAILED_CONFIG
from olive.engine.engine import Engine
from olive.engine.footprint import FootprintNode
from olive.search.search_results import SearchResults


def mend_search() -> None:
    """Makes goals that are thresholds count, and two models that share a pass possible; a model
    that cannot be built meets no goals, and is tried again in another search.
    """
    for kind, name, better in (
        (Engine, "resolve_goals", _goals),
        (Engine, "_load_model", _load_model),
        (SearchResults, "meets_goals", _meets_goals),
    ):
        if not isinstance(vars(kind)[name], partialmethod):
            setattr(kind, name, partialmethod(better, before=getattr(kind, name)))
    FootprintNode.update = _update


def _goals(engine, input_config, input_id, metrics, accelerator, *, before) -> dict[str, float]:
    """The goals, thresholds included: Olive leaves these out without a word unless another goal
    needs the input model's figures, and then every model meets them.
    """
    goals = before(engine, input_config, input_id, metrics, accelerator)
    for metric in metrics:
        for name, goal in metric.get_sub_type_info("goal").items():
            if goal and goal.type == "threshold":
                goals[f"{metric.name}-{name}"] = goal.value
    return goals


def _load_model(engine, model_id: str, *, before):
    """What the cache holds of a model; nothing where its pass has failed, for which a full disk is
    a reason, too.
    """
    found = before(engine, model_id)
    return None if found == FAILED_CONFIG else found


def _meets_goals(results, index: int, *, before) -> bool:
    """Whether a model meets the goals. Olive asks also of one that was not built."""
    found = results._results[index : index + 1]
    return bool(found and found[0] and found[0][0]) and before(results, index)


def _update(node, **found) -> None:
    """Notes what was *found* of a model again: Olive asks for a field by its name outside, and
    fails, and with it each model that shares its first passes with an earlier one.
    """
    for name, value in found.items():
        setattr(node, "model_config_data" if name == "model_config" else name, value)
