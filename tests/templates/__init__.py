"""Chat templates in the manner of published models, without what tools and images need, and a
small tokenizer for each.
"""

from pathlib import Path

PUBLISHED = ("chatml", "llama3", "mistral", "gemma", "qwen3")
CONTROL = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
CONTROL += ["<start_of_turn>", "<end_of_turn>", "<|User|>", "<|Assistant|>", "[INST]", "[/INST]"]


def template(name: str) -> str:
    """Text of NAME.jinja in this folder."""
    return (Path(__file__).parent / f"{name}.jinja").read_text()


def tokenizer_with(chat_template: str):
    """A byte-level tokenizer with the control tokens of all templates, and the *chat_template*."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL]
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=chat_template
    )
