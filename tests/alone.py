"""The loop of lab 05: what GenAI writes without anything of ours around it, one answer alone.

In a batch the sums of an adapter differ in their last digits, and now and then a word.
"""

from pathlib import Path
from typing import NamedTuple

from labkit.prompts import prompt_text
from labkit.tokenizer import load_tokenizer


class Answer(NamedTuple):
    """A text, whether it ended by itself, and how many tokens the question took."""

    text: str
    ended: bool
    read: int


def alone(folder: Path, question: str | dict, adapter: Path | None, limit: int) -> Answer:
    """The answer of the ONNX model in *folder*, of *limit* tokens at most."""
    import numpy as np
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    tokenizer, adapters = og.Tokenizer(model), og.Adapters(model)
    generator = og.Generator(model, og.GeneratorParams(model))
    if adapter:
        adapters.load(str(adapter), "it")
        generator.set_active_adapter(adapters, "it")
    ids = tokenizer.encode(prompt_text(load_tokenizer(folder), question))
    generator.append_tokens(np.array([ids]))
    pieces, text = tokenizer.create_stream(), ""
    while limit and not generator.is_done():
        generator.generate_next_token()
        text += pieces.decode(generator.get_next_tokens()[0])
        limit -= 1
    return Answer(text, generator.is_done(), len(ids))
