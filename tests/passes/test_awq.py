"""AWQ: AutoAWQ's file format, and a search that is no worse than AutoAWQ's grid."""

import pytest
import torch
from awq import AutoAWQForCausalLM
from awq.modules.linear import WQLinear_GEMM
from awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import labkit
from labkit.errors import LabError
from labkit.grid import round_to_grid
from labkit.passes.awq import awq_quantize
from labkit.passes.awq_blocks import DeviceQuantizer, quantizer_on
from labkit.passes.awq_search import best_scales, clipped
from labkit.progress import Progress

SETTINGS = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}


def draw(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy(rows: int, columns: int) -> torch.Tensor:
    """Random weights with a few that are far larger than the rest, as in a trained model."""
    weight = draw(rows, columns, seed=1)
    weight[:, ::37] *= 12
    return weight


def linear(weight: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return round_to_grid(weight, 32).values()


# ---- the format


def test_words_are_packed_as_autoawq_packs_them():
    quantizer = object.__new__(DeviceQuantizer)
    quantizer.w_bit, quantizer.group_size = 4, 32
    layer = torch.nn.Linear(96, 64, bias=True)
    layer.weight.data = heavy(64, 96)
    ours = quantizer._packed(layer, layer.weight.data)
    integers, scales, zeros = round_to_grid(layer.weight.data, 32)
    layer.weight.data = rounded(layer.weight.data)
    columns = [part.squeeze(-1).T.contiguous() for part in (scales, zeros)]
    theirs = WQLinear_GEMM.from_linear(layer, 4, 32, scales=columns[0], zeros=columns[1])
    assert integers.unique().numel() == 16
    for part in ("qweight", "qzeros", "scales", "bias"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part)), part


# ---- the search


class Overflowing(torch.nn.Sequential):
    """A linear layer whose output is not a number in the calls *bad*; call 0 is the wanted one."""

    calls, bad = -1, ()

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (torch.nan if self.calls in self.bad else 1.0)


def scales_of_a_module(bad) -> torch.Tensor:
    layer = linear(heavy(64, 96))
    module = Overflowing(layer)
    module.bad = bad
    with torch.no_grad():
        return best_scales([layer], draw(1, 64, 96), 32, module)


def test_an_overflow_is_no_best_scale():
    wanted = scales_of_a_module(())
    assert torch.equal(scales_of_a_module((1,)), wanted)  # exponent 0 is not the best here
    with pytest.raises(LabError, match="overflow"):
        scales_of_a_module(range(100))


def losses_on_autoawqs_grid(layers, x, forward) -> list[float]:
    """AutoAWQ's search as its paper has it, step by step; the layers are as before afterwards."""
    weights = [layer.weight.data for layer in layers]
    groups = torch.cat(weights).view(-1, 32).abs()
    sizes = (groups / (groups.amax(1, keepdim=True) + 1e-6)).view(-1, x.shape[-1]).mean(0)
    wanted, losses = forward(x), []
    for step in range(20):
        exponent = step / 20
        scales = x.abs().mean((0, 1)) ** exponent / (sizes ** (1 - exponent) + 1e-4)
        scales = scales.clamp(min=1e-4)
        losses.append(loss_with(scales / (scales.max() * scales.min()).sqrt(), layers, x, forward))
    assert torch.equal(forward(x), wanted)
    return losses


def loss_with(scales, layers, x, forward) -> float:
    wanted = forward(x)
    weights = [layer.weight.data for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = rounded(weight * scales) / scales
    loss = (forward(x) - wanted).pow(2).sum().item()
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = weight
    return loss


@pytest.mark.parametrize("tokens", [16, 128])  # fewer and more than there are channels
@pytest.mark.parametrize("count", [1, 2])
@torch.no_grad()
def test_the_scales_are_as_good_as_the_best_of_autoawq(count, tokens):
    """Of one layer at its own output, and of two at the output of a module that calls both.

    A part of the records chooses the candidates for all of them: it may miss the best one closely.
    """
    layers = [linear(heavy(64, 96)), linear(draw(64, 96, seed=3))][:count]
    x = draw(8, tokens // 8, 96) * torch.linspace(0.1, 3, 96)

    def forward(x):
        return layers[0](x) if count == 1 else layers[0](x).sigmoid() * layers[1](x)

    scales = best_scales(layers, x, 32, None if count == 1 else forward)
    losses = losses_on_autoawqs_grid(layers, x, forward)
    found = loss_with(scales, layers, x, forward)
    assert found <= 1.03 * min(losses) < 0.95 * losses[0]


# ---- clipping


def test_clipping_is_never_worse_on_its_data():
    weight, x = heavy(64, 96), draw(4, 128, 96)

    def error(changed):
        return ((x @ (rounded(changed) - weight).T) ** 2).mean()

    assert error(clipped(weight, x, 32)) < error(weight)


def test_clipped_groups_come_back_as_the_same_integers():
    """Rounding is repeated by the ONNX model builder, on the values that were rounded here."""
    weight, x = draw(64, 96), draw(4, 128, 96, seed=3)
    for column, sign in ((3, 1), (5, -1)):
        # large on both sides, and of little effect: both are cut
        weight[:, column::32] = sign * (4 + draw(64, 3, seed=4).abs().clamp(max=1))
        x[..., column::32] *= 0.02
    cut = clipped(weight, x, 32)
    assert cut.abs().amax() < weight.abs().amax()
    once = rounded(cut)
    assert ((once - rounded(once)).abs() <= 0.01 * once.abs().max()).float().mean() > 0.999


# ---- a whole model


def dense(tiny) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)


def linears(model) -> dict[str, torch.nn.Linear]:
    modules = model.model.layers.named_modules()
    return {name: module for name, module in modules if isinstance(module, torch.nn.Linear)}


def awq_quantized(tiny, calibration, apply_clip: bool) -> torch.nn.Module:
    """The model with AWQ's weights, as float32."""
    packed = AutoAWQForCausalLM.from_pretrained(
        str(tiny), torch_dtype=torch.float32, device_map="cpu"
    )
    packed.quantize(
        None,
        quant_config=SETTINGS,
        calib_data=calibration,
        max_calib_seq_len=128,
        apply_clip=apply_clip,
        quantizer_cls=quantizer_on("cpu"),
    )
    model, blocks = dense(tiny), packed.model.model.layers
    for name, layer in linears(model).items():
        part = blocks.get_submodule(name)
        weight = dequantize_gemm(part.qweight, part.qzeros, part.scales, 4, 32)
        layer.weight.data = weight.T.float()
    rest = {name: tensor.float() for name, tensor in blocks.state_dict().items() if "norm" in name}
    model.model.layers.load_state_dict(rest, strict=False)
    return model


@torch.no_grad()
def block_errors(original, changed, ids: torch.Tensor) -> list[float]:
    """|changed block(x) - block(x)|^2 / |block(x) - x|^2, on the inputs that the original has."""
    calls = []

    def note(block, args, kwargs, output):
        calls.append((args, kwargs, output))

    hooks = [
        block.register_forward_hook(note, with_kwargs=True) for block in original.model.layers
    ]
    original(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    errors = []
    for block, (args, kwargs, wanted) in zip(changed.model.layers, calls, strict=True):
        error = block(*args, **kwargs) - wanted
        errors.append((error.pow(2).sum() / (wanted - args[0]).pow(2).sum()).item())
    return errors


def test_each_block_gets_better_by_scales_and_better_by_clipping(tiny):
    ids = torch.randint(0, 256, (16, 128), generator=torch.Generator().manual_seed(7))
    original, plain = dense(tiny), dense(tiny)
    for layer in linears(plain).values():
        layer.weight.data = rounded(layer.weight.data)
    models = [plain] + [awq_quantized(tiny, ids.tolist(), clip) for clip in (False, True)]
    for errors in zip(*(block_errors(original, model, ids) for model in models), strict=True):
        assert errors[0] > 1.2 * errors[1] > 1.5 * errors[2] > 0, errors


def test_a_packed_checkpoint_is_unpacked_with_its_weights_on_the_grid(tiny, tmp_path, monkeypatch):
    calibration = torch.randint(0, 256, (8, 128), generator=torch.Generator().manual_seed(1))
    settings = {"group_size": 32, "dtype": "float32", "device": "cpu"}
    with Progress() as progress:
        awq_quantize(tiny, tmp_path / "awq", calibration=calibration.tolist(), **settings)
    assert str(progress.stage) == "2 of 2 blocks"
    packed = load_file(next((tmp_path / "awq").glob("*.safetensors")))
    # whatever the search computed in
    assert {tensor.dtype for tensor in packed.values()} == {torch.int32, torch.float16}
    labkit.unpack_awq(tmp_path / "awq", tmp_path / "dense")
    base, awq = dense(tiny), dense(tmp_path / "dense")
    for name, layer in linears(awq).items():
        groups = layer.weight.view(-1, 32)
        assert max(group.unique().numel() for group in groups) <= 16, name
    plain = dense(tiny)
    for layer in linears(plain).values():
        layer.weight.data = rounded(layer.weight.data)
    with torch.no_grad():
        wanted, from_awq, from_rounding = (m(calibration).logits for m in (base, awq, plain))
    assert (from_awq - wanted).norm() < (from_rounding - wanted).norm()
    monkeypatch.setattr("labkit.packed.SHARD", "50KB")  # a large model is in several files
    labkit.unpack_awq(tmp_path / "awq", tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    with torch.no_grad():
        assert torch.equal(dense(tmp_path / "parts")(calibration).logits, from_awq)


def test_a_checkpoint_that_lacks_a_layer_is_not_unpacked(tiny, tmp_path):
    with pytest.raises(LabError, match="does not hold the whole model"):
        labkit.unpack_awq(without(tiny, "mlp.up_proj", tmp_path / "awq"), tmp_path / "dense")


def without(tiny, layer: str, out):
    import json
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(tiny, out)
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32}
    (out / "config.json").write_text(json.dumps(config))
    tensors = load_file(out / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if layer not in name}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_too_little_calibration_text(tiny, tmp_path):
    settings = {"group_size": 32, "dtype": "float32", "device": "cpu"}
    with pytest.raises(LabError, match="fewer than 128 tokens"):
        awq_quantize(tiny, tmp_path / "awq", calibration=[[1, 2, 3]], **settings)
