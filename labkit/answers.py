"""How much room an answer has, and what is shown of it."""

import re
from collections.abc import Sized

from labkit.errors import LabError

LEAST = 16  # tokens; with less room an answer stops in its first sentence

# a mark that ends a sentence, with the quotes and brackets that may close after it
END = re.compile(r"[.!?…][\"'’”)\]]*(?=\s|$)|[。！？]")


def whole_sentences(text: str) -> str:
    """*text* up to the end of its last whole sentence; all of it where no sentence ends.

    For answers that were stopped at a limit of tokens, which is seldom the end of a sentence.
    """
    ends = [found.end() for found in END.finditer(text)]
    return text[: ends[-1]] if ends else text


def room_for_answer(prompt: Sized, max_length: int, limit: int | None = None) -> int:
    """How many tokens may follow the ids of *prompt*: *limit*, or what they leave of *max_length*.

    Raises LabError where fewer than 16 are left. With none left, ONNX Runtime GenAI ends the
    kernel, instead of an error.
    """
    left = max_length - len(prompt)
    if left < LEAST:
        raise LabError(
            f"the question takes {len(prompt)} of the {max_length} tokens (max_length) that it "
            f"shares with its answer, and {LEAST} must be left for that. Shorten it by "
            f"{LEAST - left} and ask again."
        )
    return left if limit is None else min(limit, left)
