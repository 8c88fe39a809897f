"""Small records, and slow steps that are not slow, for the tests of labkit."""

import json
from collections.abc import Callable
from pathlib import Path

from labkit.profiles import PROFILES

CPU = PROFILES["cpu"]


def qa(n: int) -> dict:
    """A record of one question and its answer."""
    return {"prompt": f"Question {n}?", "response": f"Answer {n}."}


def write_lines(path: Path, *rows: dict) -> Path:
    """Writes a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_config(**changes):
    """Configuration of a tiny Llama for the byte-level tokenizer, with *changes*."""
    from transformers import LlamaConfig

    config = {
        "vocab_size": 257,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "eos_token_id": 256,
        "pad_token_id": 256,
        "max_position_embeddings": 256,
    }
    return LlamaConfig(**config | changes)


def writes(text: str) -> Callable:
    """A build for lab.keep that writes a file with *text*."""

    def build(recipe, out):
        out.write_text(text)

    return build
