"""A GGUF file as a Hugging Face checkpoint: its weights in float16, its own tokenizer.

By the reader of the file format's own authors. transformers reads such files, too, to the same
weights, in 40 s instead of 6 on two cores, and with a tokenizer that GenAI cannot use.
"""

import re
from pathlib import Path

# GGUF's names of llama's parts -> Hugging Face's
PARTS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hub_name(tensor: str) -> tuple[str, str]:
    """(Hugging Face's name of the layer, GGUF's name of its part) of a tensor of the file."""
    block, part = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor).groups()
    return f"model.layers.{block}.{PARTS[part]}" if block else PARTS[part], part


class GgufFile:
    """An open GGUF file of a Llama model."""

    def __init__(self, path: Path):
        from gguf import GGUFReader

        self.reader = GGUFReader(path)

    def model(self):
        """The model, with transformers' own class, in float16."""
        import torch
        from transformers import LlamaForCausalLM

        config = self.config()
        with torch.device("meta"):  # no memory for weights that are replaced at once
            model = LlamaForCausalLM(config)
        weights = dict(self._weight(tensor, config) for tensor in self.reader.tensors)
        if config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.load_state_dict(weights, assign=True)  # each name, and no other
        model.tie_weights()
        return model

    def tokens(self) -> list[str]:
        """The vocabulary, in the order of its ids."""
        return self._token("ggml.tokens")

    def tokenizer(self):
        """The byte-level BPE tokenizer, built from its own tokens and merges.

        The one that transformers derives from the file prepends a start token and decodes with
        byte fallback, which ONNX Runtime GenAI turns into garbage.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokens, kinds = self.tokens(), self._token("ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self._token("ggml.merges")]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        control = 3  # GGUF's token type for tokens such as <|im_end|>
        special = [
            AddedToken(t, special=True, normalized=False)
            for t, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
        bpe.add_special_tokens(special)
        end = tokens[self._token("ggml.eos_token_id")]
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            bos_token=tokens[self._token("ggml.bos_token_id")],
            eos_token=end,
            pad_token=end,
            unk_token=None,
            additional_special_tokens=special,
            chat_template=self._token("chat_template"),
            model_max_length=2048,
            clean_up_tokenization_spaces=False,
        )

    def config(self):
        """Its configuration, of transformers' class."""
        from transformers import LlamaConfig

        names = [tensor.name for tensor in self.reader.tensors]
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            dtype="float16",
            vocab_size=self._value("llama.vocab_size"),
            hidden_size=self._value("llama.embedding_length"),
            intermediate_size=self._value("llama.feed_forward_length"),
            num_hidden_layers=self._value("llama.block_count"),
            num_attention_heads=self._value("llama.attention.head_count"),
            num_key_value_heads=self._value("llama.attention.head_count_kv"),
            max_position_embeddings=self._value("llama.context_length"),
            rms_norm_eps=self._value("llama.attention.layer_norm_rms_epsilon"),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": self._value("llama.rope.freq_base"),
            },
            tie_word_embeddings="output.weight" not in names,
            bos_token_id=self._token("ggml.bos_token_id"),
            eos_token_id=self._token("ggml.eos_token_id"),
            pad_token_id=self._token("ggml.eos_token_id"),
        )

    def _weight(self, tensor, config) -> tuple:
        """(Hugging Face's name, values in float16) of one tensor of the file."""
        import numpy as np
        import torch
        from gguf.quants import dequantize

        name, part = hub_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        if part in ("attn_q", "attn_k"):
            # llama.cpp rotates neighbours, transformers a channel and the one half a head away
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            pairs = values.reshape(heads, -1, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        return f"{name}.weight", torch.from_numpy(values.astype(np.float16))

    def _value(self, key: str):
        return self.reader.fields[key].contents()

    def _token(self, key: str):
        return self._value(f"tokenizer.{key}")
