"""What Olive's LoRA pass trains on: the very ids that the labs measure, from a file of records.

Olive's own pre-processing writes a start token, a space and an end token around each text, and
takes a chat template for a path. Its loader reads "[" and "::" in a path as patterns.
"""

from pathlib import Path

from olive.data.registry import Registry

from labkit.data import load_records
from labkit.prompts import chat_ids
from labkit.tokenizer import load_tokenizer


@Registry.register_dataset("lab_records")
def lab_records(*, path: str, first: int | None = None, **_) -> list[dict]:
    """The records of the file *path*, or the *first* of them."""
    return load_records(path)[:first]


@Registry.register_pre_process("lab_chat_ids")
def lab_chat_ids(
    records: list[dict], *, model_path: str, max_length: int, **_
) -> list[dict[str, list[int]]]:
    """{"input_ids": ids} of each record: :func:`labkit.chat_ids`, cut to *max_length* tokens."""
    tokenizer = load_tokenizer(Path(model_path))
    return [{"input_ids": chat_ids(tokenizer, record)[0][:max_length]} for record in records]
