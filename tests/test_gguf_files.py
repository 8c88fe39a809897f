"""The GGUF files for llama.cpp: AWQ's integers as they are, adapters with their ranks, and what is
refused.
"""

import json
import shutil

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from samples import tiny_config

from labkit import gguf_files
from labkit.errors import LabError
from labkit.gguf_checkpoint import PARTS, GgufFile
from labkit.gguf_files import compare_gguf, q4_1, write_gguf, write_gguf_adapter
from labkit.grid import Grid, awq_grid, pack_awq, round_to_grid, tensors_of

SIZES = tiny_config()
HEADS, KV_HEADS = SIZES.num_attention_heads, SIZES.num_key_value_heads


@pytest.fixture
def awq(tiny):
    """The tiny Llama, packed as AutoAWQ packs; some groups use 3 of their 16 values only."""
    tensors = load_file(tiny / "model.safetensors")
    packed = {name: tensor.half() for name, tensor in tensors.items() if "_proj" not in name}
    for name in tensors.keys() - packed.keys():
        grid = round_to_grid(tensors[name], 32)
        grid.integers[::7] = grid.integers[::7].clamp(6, 8)
        layer = name.removesuffix(".weight")
        packed[f"{layer}.qweight"] = pack_awq(grid.integers.flatten(-2))
        packed[f"{layer}.qzeros"] = pack_awq(grid.zeros.squeeze(-1))
        packed[f"{layer}.scales"] = grid.scales.squeeze(-1).T.half().contiguous()
    save_file(packed, tiny / "model.safetensors")
    change(tiny / "config.json", quantization_config={"group_size": 32})
    return tiny


@pytest.fixture(autouse=True)
def known(tiny, tmp_path, monkeypatch, byte_tokenizer):
    """The file that the default model comes in is a tiny one: its metadata, and no weights."""
    writer = gguf.GGUFWriter(tmp_path / "known.gguf", "llama")
    writer.add_block_count(SIZES.num_hidden_layers)
    writer.add_context_length(SIZES.max_position_embeddings)
    writer.add_embedding_length(SIZES.hidden_size)
    writer.add_feed_forward_length(SIZES.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(SIZES.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(SIZES.rms_norm_eps)
    writer.add_vocab_size(SIZES.vocab_size)
    writer.add_token_list(byte_tokenizer.convert_ids_to_tokens(range(SIZES.vocab_size)))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(256)
    there = {here: name for name, here in PARTS.items()}
    for name, tensor in load_file(tiny / "model.safetensors").items():
        *_, number, room, part = ["", "", *name.removesuffix(".weight").split(".")]
        block = number.isdigit() or room.isdigit()
        kind = Kind.F32 if tensor.dim() == 1 else Kind.Q4_1 if "_proj" in name else Kind.Q8_0
        if not block:
            label = there[name.removesuffix(".weight")]
        elif room.isdigit():
            label = f"blk.{room}.{there[part]}"
        else:
            label = f"blk.{number}.{there[f'{room}.{part}']}"
        values = gguf.quants.quantize(torch.zeros_like(tensor).float().numpy(), kind)
        writer.add_tensor(f"{label}.weight", values, raw_dtype=kind)
    gguf_files._finish(writer)
    monkeypatch.setattr(gguf_files, "gguf_file", lambda wheel: tmp_path / "known.gguf")


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def lora(model, folder, **options):
    """An adapter of random numbers in *folder*, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(model)
    del config.quantization_config
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    options = {"r": 4, "lora_alpha": 8, "target_modules": targets} | options
    adapted = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(**options))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder)
    return folder


def test_a_block_holds_integers_scale_and_smallest_value():
    integers = torch.arange(32).mul(7).remainder(16).flip(0).float().view(1, 1, 32)
    integers[..., 20] = 3
    grid = Grid(integers, torch.full((1, 1, 1), 0.25), torch.full((1, 1, 1), 3.0))
    packed = q4_1(grid)
    assert packed.shape == (1, 20) and packed.dtype == "uint8"
    assert gguf.quants.dequantize(packed, Kind.Q4_1).tolist() == grid.values().tolist()


def test_every_group_has_the_integers_of_awq(awq, tmp_path):
    write_gguf(tmp_path / "base.gguf", awq)
    found = compare_gguf(tmp_path / "base.gguf", awq)
    assert found["same_groups"] == 1
    assert found["worst_relative_error"] < 2e-3  # of the smallest values, which are float16
    held = GgufFile(tmp_path / "base.gguf").model().state_dict()
    kept = tensors_of(awq)
    assert torch.equal(held["model.norm.weight"], kept["model.norm.weight"])
    assert torch.allclose(
        held["model.embed_tokens.weight"], kept["model.embed_tokens.weight"], atol=1e-3
    )


def test_a_group_that_differs_is_counted(awq, tmp_path):
    write_gguf(tmp_path / "base.gguf", awq)
    tensors = tensors_of(awq)
    layer = "model.layers.1.mlp.up_proj"
    tensors[f"{layer}.qweight"][0, 0] ^= 0b11  # the first number of one row
    save_file(tensors, awq / "model.safetensors")
    groups = sum(
        awq_grid(tensors, name.removesuffix(".qweight")).scales.numel()
        for name in tensors
        if name.endswith(".qweight")
    )
    found = compare_gguf(tmp_path / "base.gguf", awq)
    assert found["same_groups"] == pytest.approx(1 - 1 / groups)


@pytest.mark.parametrize("rank", [1, 4])
def test_an_adapter_is_carried_with_its_rank_and_strength(awq, tmp_path, rank):
    folder = lora(awq, tmp_path / "lora", r=rank)
    write_gguf_adapter(tmp_path / "lora.gguf", folder, awq_dir=awq)
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    assert reader.fields["adapter.lora.alpha"].contents() == 8
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    saved = load_file(folder / "adapter_model.safetensors")
    assert len(found) == len(saved) == 2 * 7 * SIZES.num_hidden_layers
    prefix = "base_model.model.model.layers.1"
    down = f"{prefix}.mlp.down_proj"
    assert torch.equal(found["blk.1.ffn_down.weight.lora_a"], saved[f"{down}.lora_A.weight"])
    assert torch.equal(found["blk.1.ffn_down.weight.lora_b"], saved[f"{down}.lora_B.weight"])
    key = saved[f"{prefix}.self_attn.k_proj.lora_B.weight"]
    pairs = found["blk.1.attn_k.weight.lora_b"]
    assert pairs.shape == key.shape == (32, rank)
    half = 32 // KV_HEADS // 2
    assert torch.equal(pairs[0], key[0]) and torch.equal(pairs[1], key[half])


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"model_type": "phi3"}, "the architecture 'phi3'"),
        ({"quantization_config": {"group_size": 128}}, "groups of 128"),
        ({"quantization_config": None}, "groups of None"),
        ({"num_hidden_layers": 3}, "num_hidden_layers"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_parameters"),
    ],
)
def test_another_model_is_refused(awq, tmp_path, settings, why):
    folder = lora(awq, tmp_path / "lora")
    change(awq / "config.json", **settings)
    with pytest.raises(LabError, match=f"cannot be written as GGUF here.*{why}"):
        write_gguf(tmp_path / "base.gguf", awq)
    with pytest.raises(LabError, match=f"cannot be written as GGUF here.*{why}"):
        write_gguf_adapter(tmp_path / "lora.gguf", folder, awq_dir=awq)


def test_another_vocabulary_is_refused(awq, tmp_path):
    file = awq / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    tokens = vocabulary["model"]["vocab"]
    tokens["A"], tokens["B"] = tokens["B"], tokens["A"]
    file.write_text(json.dumps(vocabulary))
    with pytest.raises(LabError, match="another vocabulary"):
        write_gguf(tmp_path / "base.gguf", awq)


def test_a_part_that_lacks_is_named(awq, tmp_path):
    tensors = tensors_of(awq)
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, awq / "model.safetensors")
    with pytest.raises(LabError, match="lacks a part of the model .*1.mlp.up_proj.scales"):
        write_gguf(tmp_path / "base.gguf", awq)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}},  # of one strength in PEFT
        {"lora_alpha": 0},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_more_than_plain_lora_is_refused(awq, tmp_path, options):
    folder = lora(awq, tmp_path / "lora", **options)
    with pytest.raises(LabError, match="is not one that llama.cpp can carry"):
        write_gguf_adapter(tmp_path / "lora.gguf", folder, awq_dir=awq)


def test_a_missing_or_damaged_adapter_is_refused(awq, tmp_path):
    folder = lora(awq, tmp_path / "lora")
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "lora_B" in name)
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, weights)
    with pytest.raises(LabError, match="is not one that llama.cpp can carry"):
        write_gguf_adapter(tmp_path / "lora.gguf", folder, awq_dir=awq)
    del tensors[name]
    save_file(tensors, weights)
    with pytest.raises(LabError, match="is not whole"):
        write_gguf_adapter(tmp_path / "lora.gguf", folder, awq_dir=awq)
    shutil.rmtree(folder)
    with pytest.raises(LabError, match="damaged or of another model"):
        write_gguf_adapter(tmp_path / "lora.gguf", folder, awq_dir=awq)
