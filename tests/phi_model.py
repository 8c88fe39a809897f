"""Phi-3.5-mini-instruct as it is published, but for its weights: configuration, generation
settings, tokenizer; any size.
"""

import json
from pathlib import Path

from templates import template

LONG = (
    "1.08 1.11 1.14 1.34 1.59 1.6 1.62 2.62 3.23 3.23 4.79 7.4 7.7 9.09 12.2 17.67 24.46 28.57 "
    "30.42 30.84 32.59 32.93 42.32 44.96 50.34 50.45 57.55 57.93 58.21 60.14 62.61 62.62 62.71 "
    "63.14 63.14 63.77 63.93 63.96 63.97 64.03 64.07 64.08 64.12 64.41 64.48 64.51 64.53 64.84"
)
SHORT = (
    "1.0 1.02 1.03 1.03 1.05 1.05 1.05 1.05 1.05 1.07 1.1 1.11 1.16 1.16 1.17 1.29 1.34 1.68 "
    "1.79 1.82 1.85 1.88 1.91 1.94 1.99 2.02 2.02 2.02 2.02 2.02 2.02 2.03 2.03 2.03 2.03 2.03 "
    "2.03 2.03 2.03 2.03 2.08 2.09 2.19 2.22 2.59 2.73 2.75 2.84"
)
# where somebody has put the tokenizer of the published model, beside the repository; it is not
# part of it
PUBLISHED_TOKENIZER = (
    Path(__file__).resolve().parents[2] / "shared" / "models" / "phi-3-mini-tokenizer"
)
STOP_IDS = [32007, 32001, 32000]
CONTROL = [
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
]
CONTROL += ["<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>"]


def write_phi(
    folder: Path,
    *,
    tokenizer: Path | None = None,
    layers: int = 32,
    hidden: int = 3072,
    mlp: int = 8192,
    tied: bool = False,
) -> None:
    """Writes a checkpoint with seeded random weights to *folder*.

    Every 64th channel of a norm is 20 times the rest.
    The *tokenizer* is a folder with that of the published model; without one, a small one with the
    same flags is made. Source: config.json, generation_config.json and tokenizer_config.json of
    microsoft/Phi-3.5-mini-instruct.
    """
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

    published = published_config(layers=layers, hidden=hidden, mlp=mlp) | {
        "tie_word_embeddings": tied
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Phi3ForCausalLM(Phi3Config(**published))
    finally:
        torch.set_default_dtype(before)
    for block in model.model.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data[::64] *= 20
    model.save_pretrained(folder, max_shard_size="5GB")  # in two files, as the published one
    (folder / "config.json").write_text(json.dumps(published, indent=2))
    settings = {
        "_from_model_config": True,
        "bos_token_id": 1,
        "eos_token_id": STOP_IDS,
        "pad_token_id": 32000,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2))
    if tokenizer:
        PreTrainedTokenizerFast.from_pretrained(tokenizer).save_pretrained(folder)
        for path in tokenizer.iterdir():  # as published, and not as a library would write it
            (folder / path.name).write_bytes(path.read_bytes())
    else:
        small_tokenizer().save_pretrained(folder)


def published_config(*, layers: int, hidden: int, mlp: int) -> dict:
    """config.json of Phi-3.5-mini-instruct with other sizes; a head keeps its 96 channels."""
    code = "microsoft/Phi-3.5-mini-instruct--"
    factors = {
        "long_factor": [float(x) for x in LONG.split()],
        "short_factor": [float(x) for x in SHORT.split()],
    }
    return {
        "_name_or_path": "Phi-3.5-mini-instruct",
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": f"{code}configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": f"{code}modeling_phi3.Phi3ForCausalLM",
        },
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": 32000,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": mlp,
        "max_position_embeddings": 131072,
        "model_type": "phi3",
        "num_attention_heads": hidden // 96,
        "num_hidden_layers": layers,
        "num_key_value_heads": hidden // 96,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 32000,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": factors | {"type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.3",
        "use_cache": True,
        "vocab_size": 32064,
    }


def small_tokenizer():
    """Characters and bytes in Phi-3's manner: a word begins with "▁", and a control token takes
    the spaces after it.
    """
    from string import printable

    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *printable[:95],
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    vocabulary |= {f"filler{number}": number for number in range(len(vocabulary), 32000)}
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>")]
    )
    backend.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=token != "<|endoftext|>")
            for token in CONTROL
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        chat_template=template("phi3"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=131072,
    )
