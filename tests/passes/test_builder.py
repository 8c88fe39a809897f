"""What labkit hands to the ONNX model builder: joined layers and packed 4-bit weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from labkit.grid import round_to_grid, unpack_onnx
from labkit.passes.builder import _packed, joined


def linear(columns: int, rows: int) -> torch.nn.Linear:
    return torch.nn.Linear(columns, rows, bias=False)


def lora_layers(targets):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"q": linear(8, 6), "k": linear(8, 4)})
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
    down, up = one.lora_A.default.weight, one.lora_B.default.weight
    assert down.shape == (2, 8)
    wanted = torch.cat([q(x), k(x)], -1)
    torch.testing.assert_close(x @ one.weight.T + x @ down.T @ up.T, wanted)


def test_without_an_adapter_there_is_none():
    assert not hasattr(joined(linear(8, 6), linear(8, 4)), "base_layer")


@pytest.mark.parametrize("groups", [4, 3])
def test_packed_weights_are_those_of_the_grid(groups):
    torch.manual_seed(0)
    weight = torch.randn(5, 16 * groups)
    grid = round_to_grid(weight, 16)
    packed = _packed(grid)
    assert packed.qweight.shape == (5, groups, 8) and packed.qzeros.shape == (
        5,
        groups // 2 + groups % 2,
    )
    assert torch.equal(unpack_onnx(packed.qweight), grid.integers)
    assert torch.equal(unpack_onnx(packed.qzeros)[:, :groups, None], grid.zeros)
    assert torch.equal(packed.scales, grid.scales.squeeze(-1))


def test_a_symmetric_grid_stores_no_zero_points():
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    grid = round_to_grid(weight, 16, symmetric=True)
    packed = _packed(grid, symmetric=True)
    assert packed.qzeros is None and (grid.zeros == 8).all()
    assert torch.equal(unpack_onnx(packed.qweight), grid.integers)
