"""What Olive's LoRA pass trains on: the very ids that the labs measure, from a file of records.

Olive's own pre-processing writes a start token, a space and an end token around each text, and
takes a chat template for a path. Its loader reads "[" and "::" in a path as patterns.
"""

import json
from pathlib import Path

from olive.data.constants import IGNORE_INDEX
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
    """{"input_ids", "labels"} of each record: :func:`labkit.chat_ids`, cut to *max_length* tokens.

    The tokens of the question have the label -100, so that the loss is that of the answer alone.
    """
    tokenizer = load_tokenizer(Path(model_path))
    rows = []
    for record in records:
        ids, start = chat_ids(tokenizer, record)
        labels = [IGNORE_INDEX] * start + ids[start:]
        rows.append({"input_ids": ids[:max_length], "labels": labels[:max_length]})
    return rows


@Registry.register_dataset("lab_calibration")
def lab_calibration(*, path: str, **_) -> list[tuple[dict, int]]:
    """What a pass of Olive calibrates on: the token ids in the file *path*, as AwqQuantizer reads
    them, one record a batch; Olive's loader wants a label beside each.
    """
    import torch

    rows = [json.loads(line)["token_ids"] for line in Path(path).read_text().splitlines()]
    return [
        ({"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=int)}, 0)
        for ids in rows
    ]
