"""The AWQ search of labkit against AutoAWQ's own: the same file format, errors that are as low or lower."""

import pytest
import torch
from awq.modules.linear import WQLinear_GEMM
from awq.quantize.quantizer import AwqQuantizer
from benchmarks.quantize import CopyingQuantizer, block_errors, load

from labkit.errors import LabError
from labkit.passes.awq_search import DeviceQuantizer, grouped, quantizer_on, rounded

SETTINGS = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}


@pytest.fixture
def search():
    """A quantizer without a model."""
    made = object.__new__(DeviceQuantizer)
    made.w_bit, made.group_size = 4, 32
    return made


def heavy(rows: int, columns: int) -> torch.Tensor:
    """Random weights with a few that are far larger than the rest, as in a trained model."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    weight[:, ::37] *= 12
    return weight


def test_words_are_packed_as_autoawq_packs_them(search):
    linear = torch.nn.Linear(96, 64, bias=True)
    linear.weight.data = heavy(64, 96)
    integers, scales, zeros = grouped(linear.weight.data, 32)
    ours = search._packed(linear, linear.weight.data)
    linear.weight.data = rounded(linear.weight.data, 32)
    theirs = WQLinear_GEMM.from_linear(
        linear,
        4,
        32,
        scales=scales.squeeze(-1).T.contiguous(),
        zeros=zeros.squeeze(-1).T.contiguous(),
    )
    assert integers.unique().numel() == 16
    for part in ("qweight", "qzeros", "scales", "bias"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part)), part


def test_rounding_is_that_of_autoawq(search):
    plain = object.__new__(AwqQuantizer)
    plain.w_bit, plain.group_size, plain.zero_point = 4, 32, True
    weight = heavy(64, 96)
    wanted = plain.pseudo_quantize_tensor(weight.clone())[0]
    # theirs keeps the scale in float32, ours has the half that is written: a few weights fall to the other side
    close = (rounded(weight, 32) - wanted).abs() <= 0.01 * wanted.abs().max()
    assert close.float().mean() > 0.99


class Overflowing(torch.nn.Sequential):
    """One linear layer whose output is not a number in the calls *bad*; call 0 is that with the weights as they are."""

    calls, bad = -1, ()

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (torch.nan if self.calls in self.bad else 1.0)


@pytest.fixture
def best(search):
    """bad calls -> the scales that the search chooses, for one layer that is judged by the output of a module around it."""
    search.duo_scaling, search.device, search.n_parallel_calib_samples = True, "cpu", None

    def scales(bad):
        linear = torch.nn.Linear(96, 64, bias=False)
        linear.weight.data, x = (
            heavy(64, 96),
            torch.randn(1, 64, 96, generator=torch.Generator().manual_seed(2)),
        )
        module = Overflowing(linear)
        module.bad = bad
        return search._best_scales(None, [linear], x, module2inspect=module)

    with torch.no_grad():
        yield scales


def test_an_overflow_is_no_best_scale(best):
    wanted = best(())
    assert torch.equal(best((1,)), wanted)  # strength 0 is not the best here
    with pytest.raises(LabError, match="overflow"):
        best(range(100))


def test_clipping_is_never_worse_on_its_data(search):
    weight, x = heavy(64, 96), torch.randn(4, 128, 96, generator=torch.Generator().manual_seed(2))
    search.apply_clip = True

    def error(w):
        return ((x @ (rounded(w, 32) - weight).T) ** 2).mean()

    assert error(search._clipped(weight, x)) < error(weight)


def test_clipped_groups_come_back_as_the_same_integers(search):
    """Rounding is repeated by the ONNX model builder, on the values that were rounded here."""
    draw = torch.Generator().manual_seed(2)
    weight, x = torch.randn(64, 96, generator=draw), torch.randn(4, 128, 96, generator=draw)
    for column, sign in (
        (3, 1),
        (5, -1),
    ):  # large on both sides, and of little effect: both are cut
        weight[:, column::32] = sign * (4 + torch.rand(64, 3, generator=draw))
        x[..., column::32] *= 0.02
    clipped = search._clipped(weight, x)
    assert (clipped.abs().amax() < weight.abs().amax()) and not torch.equal(clipped, weight)
    once = rounded(clipped, 32)
    assert ((once - rounded(once, 32)).abs() <= 0.01 * once.abs().max()).float().mean() > 0.999


def test_the_error_of_each_block_is_as_low_as_autoawqs(tiny):
    """On the same inputs; a twentieth is left, since the search looks at one module at a time."""
    draw = torch.Generator().manual_seed(7)
    data = torch.randint(0, 256, (16, 128), generator=draw).tolist()

    def errors(engine, apply_clip):
        model = load(tiny, "float32", "cpu")
        settings = {
            "calib_data": data,
            "max_calib_seq_len": 128,
            "apply_clip": apply_clip,
            "quantizer_cls": engine,
        }
        model.quantize(None, quant_config=SETTINGS, **settings)
        return block_errors(tiny, model, torch.tensor(data), 32, "cpu")

    theirs, ours, clipped = (
        errors(CopyingQuantizer, False),
        errors(quantizer_on("cpu"), False),
        errors(quantizer_on("cpu"), True),
    )
    for block in zip(theirs, ours, clipped, strict=True):
        assert 0 < block[2] < 0.75 * block[1] and block[1] <= 1.05 * block[0], block
