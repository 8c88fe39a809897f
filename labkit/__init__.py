"""Plumbing of the lab series: what a reader of the cells would skim.

Names are loaded on first use, so that importing labkit needs the standard library only.
"""

import importlib

_HOME = {
    "start": "starting",
    "require": "machine",
    "measure_machine": "pace",
    "off_gpu": "machine",
    "fetch_model": "models",
    "model_source": "models",
    "load_records": "data",
    "fitting": "data",
    "split_records": "split",
    "load_tokenizer": "tokenizer",
    "genai_tokenizer": "tokenizer",
    "prompt_text": "prompts",
    "chat_ids": "prompts",
    "carry_settings": "settings",
    "stop_ids": "settings",
    "Estimate": "figures",
    "bootstrap": "figures",
    "torch_logits": "evaluate",
    "OnnxLogits": "evaluate",
    "record_losses": "evaluate",
    "track": "progress",
    "mean_loss": "evaluate",
    "loss_difference": "evaluate",
    "token_speed": "evaluate",
    "median": "evaluate",
    "ask_together": "serving.clients",
    "PeakMemory": "capture",
    "dir_mb": "files",
    "olive_passes": "passes",
    "unpack_awq": "passes.awq",
    "unpack_olive": "packed",
    "load_adapter": "weights",
    "extra_packages": "extras",
    "bake_adapter": "passes.adapters",
    "write_adapter": "passes.adapters",
    "compare_weights": "grid",
    "write_gguf": "gguf_files",
    "write_gguf_adapter": "gguf_files",
    "compare_gguf": "gguf_files",
    "bars": "charts",
    "lines": "charts",
    "table": "charts",
    "chat_box": "chat",
    "whole_sentences": "answers",
    "room_for_answer": "answers",
    "model_signing": "signing",
    "write_manifest": "registry",
    "open_registry": "registry",
}

__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'labkit' has no attribute '{name}'")
    return getattr(importlib.import_module(f"labkit.{_HOME[name]}"), name)
