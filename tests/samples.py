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


def writes(text: str) -> Callable:
    """A build for lab.keep that writes a file with *text*."""

    def build(recipe, out):
        out.write_text(text)

    return build
