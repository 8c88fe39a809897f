"""What labkit hands to the ONNX model builder: joined layers and packed 4-bit weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from labkit.passes.awq_search import rounded
from labkit.passes.builder import _packed, joined


def lora_layers(targets):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"q": torch.nn.Linear(8, 6, bias=False), "k": torch.nn.Linear(8, 4, bias=False)}
    )
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(model, config).base_model.model
    return model["q"], model["k"]


@pytest.mark.parametrize("targets", [["q", "k"], ["k"]])
def test_joined_layers_give_the_outputs_of_each_after_one_another(targets):
    q, k = lora_layers(targets)
    x = torch.randn(3, 8)
    one = joined(q, k)
    down, up = one.lora_A.default.weight, one.lora_B.default.weight
    assert len(down) == 2 * len(targets)
    found = x @ one.base_layer.weight.T + x @ down.T @ up.T * one.scaling["default"]
    torch.testing.assert_close(found, torch.cat([q(x), k(x)], -1))


def test_layers_that_were_one_in_the_checkpoint_keep_one_down_projection():
    q, k = lora_layers(["q", "k"])
    k.lora_A["default"] = q.lora_A["default"]
    one, x = joined(q, k), torch.randn(3, 8)
    assert one.lora_A.default.weight.shape == (2, 8)
    wanted = torch.cat([q(x), k(x)], -1)
    torch.testing.assert_close(
        x @ one.weight.T + x @ one.lora_A.default.weight.T @ one.lora_B.default.weight.T, wanted
    )


def test_without_an_adapter_there_is_none():
    assert not hasattr(
        joined(torch.nn.Linear(8, 6, bias=False), torch.nn.Linear(8, 4, bias=False)), "base_layer"
    )


@pytest.mark.parametrize("groups", [4, 3])
def test_packed_weights_are_those_of_the_grid(groups):
    torch.manual_seed(0)
    weight = torch.randn(5, 16 * groups)
    packed = _packed(weight, 16)
    assert packed.qweight.dtype == packed.qzeros.dtype == torch.uint8
    q = torch.stack([packed.qweight & 15, packed.qweight >> 4], -1).reshape(5, groups, 16)
    zero = torch.stack([packed.qzeros & 15, packed.qzeros >> 4], -1).reshape(5, -1)[
        :, :groups, None
    ]
    torch.testing.assert_close(
        ((q.float() - zero) * packed.scales.unsqueeze(-1)).reshape(5, -1), rounded(weight, 16)
    )
