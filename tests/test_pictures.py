"""Pictures of ideas: what they say, and that their texts are large, in their boxes, and apart."""

from types import SimpleNamespace

import matplotlib.pyplot
import pytest
import torch
from drawn import nothing_is_covered, texts_of

matplotlib.use("agg")

from labkit import pictures
from labkit.figures import Estimate

SMOL = {
    "q_proj": (576, 576),
    "k_proj": (192, 576),
    "v_proj": (192, 576),
    "o_proj": (576, 576),
    "gate_proj": (1536, 576),
    "up_proj": (1536, 576),
    "down_proj": (576, 1536),
}
PHI = {
    "qkv_proj": (9216, 3072),
    "o_proj": (3072, 3072),
    "gate_up_proj": (16384, 3072),
    "down_proj": (3072, 8192),
}
LLAMA = {name: tuple({576: 4096, 192: 1024, 1536: 14336}[n] for n in shape)
         for name, shape in SMOL.items()}  # fmt: skip


def words(ax) -> list[str]:
    return [text.get_text() for text in texts_of(ax.figure)]


@pytest.mark.parametrize("here", ["01", "03", "06"])
def test_the_route_shows_where_you_are_also_without_colour(here):
    ax = pictures.route(here, figures={"01": "269 MB", "02": "118 MB"})
    nothing_is_covered(ax.figure)
    assert f"You are at lab {here}," in ax.get_label() and "02 quantize leaves" in ax.get_label()
    assert "01: 269 MB." in ax.get_label() and "269 MB" in words(ax)
    circles = [one for one in ax.patches if isinstance(one, matplotlib.patches.Circle)]
    looks = [(one.get_linestyle(), one.get_linewidth() > 3, grey(one)) for one in circles]
    at = int(here) - 1
    assert len(looks) == 6 and len({*looks[:at]}) <= 1 and len({*looks[at + 1 :]}) <= 1
    kinds = {*looks[:at]} | {looks[at]} | {*looks[at + 1 :]}
    assert len(kinds) == (at > 0) + 1 + (at < 5)


def grey(patch) -> float:
    red, green, blue, _ = patch.get_facecolor()
    return round(0.3 * red + 0.59 * green + 0.11 * blue, 1)


def test_a_lab_that_there_is_not_has_no_route():
    with pytest.raises(ValueError, match="There is no lab 99: the labs are 01, 02"):
        pictures.route("99")


def grid_of(group):
    """(rounded, scale, zero) of one group, as lab 02 rounds it."""
    low, high = group.min(), group.max()
    scale = (high - low) / 15
    zero = (-low / scale).round()
    return ((group / scale).round() - zero * 0) * scale, scale, zero


@pytest.mark.parametrize("count", [32, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_group_is_drawn_on_its_sixteen_lines(count, dtype):
    torch.manual_seed(0)
    group = torch.randn(count)
    rounded, scale, zero = grid_of(group)
    ax = pictures.group_on_grid(group.to(dtype), rounded, scale=scale, zero=zero)
    nothing_is_covered(ax.figure)
    before, after = (line.get_ydata() for line in ax.get_lines()[-2:])
    assert len(before) == len(after) == 32 and {str(q) for q in range(16)} <= set(words(ax))
    steps = abs(after - before) / float(scale)
    assert f"{steps.max():.2f} at most" in ax.get_label() and steps.max() <= 0.53
    assert f"on average and {steps.max():.2f} at most; " in ax.get_label()


def layer(columns=64, rows=48, size=32):
    """(weight, rounded, AWQ's, scale) of a layer whose column 5 is scaled up."""
    torch.manual_seed(0)
    weight, scale = torch.randn(rows, columns), torch.full((columns,), 0.6)
    scale[5] = 2.5

    def nearest(values):
        groups = values.reshape(-1, size)
        return torch.stack([grid_of(group)[0] for group in groups]).reshape(values.shape)

    return weight, nearest(weight), nearest(weight * scale) / scale, scale


@pytest.mark.parametrize("magnitude", [None, torch.rand(64) + 1])
def test_the_scaled_column_has_a_finer_grid_and_its_neighbour_a_coarser(magnitude):
    weight, rounded, awq, scale = layer()
    ax = pictures.channel_scales(
        weight, rounded, awq, scale, column=5, group_size=32, magnitude=magnitude
    )
    nothing_is_covered(ax.figure)
    text = ax.get_label()
    assert "Column 5, which AWQ multiplies by 2.50" in text and "multiplied by 0.60" in text
    coarse, fine = text.split("lines ")[1].split(" with AWQ")[0].split(" apart with rounding, ")
    assert float(fine) < 0.7 * float(coarse)
    right = ax.figure.axes[1]
    errors = [bar.get_height() for bar in right.patches]
    true = (awq - weight)[:, 5].norm() / (rounded - weight)[:, 5].norm()
    assert errors[0] == 100 and errors[1] == round(100 * true.item()) and errors[1] < 60
    assert errors[3] >= errors[2]
    assert right.get_label().startswith("Bar chart: Error of all rows. error ")


@pytest.mark.parametrize(
    ("shapes", "rank"), [(SMOL, 8), (PHI, 16), (LLAMA, 16), ({"o_proj": (64, 64)}, 4)]
)
def test_labels_of_matrices_are_beside_one_another(shapes, rank):
    ax = pictures.low_rank(shapes, rank)
    nothing_is_covered(ax.figure)
    rows, columns = shapes["o_proj"]
    assert f"o_proj {rows}×{columns}" in ax.get_label() and f"r = {rank}" in ax.get_label()
    trained = rank * sum(sum(shape) for shape in shapes.values())
    assert f"{trained:,} trained ones" in ax.get_label()
    # W of all in one scale
    sizes = [(one.get_height(), one.get_width()) for one in rectangles(ax)[::3]]
    ratios = [size / n for pair, shape in zip(sizes, shapes.values(), strict=True)
              for size, n in zip(pair, shape, strict=True)]  # fmt: skip
    assert max(ratios) == pytest.approx(min(ratios))


def rectangles(ax):
    return [one for one in ax.patches if isinstance(one, matplotlib.patches.Rectangle)]


def test_reading_is_one_pass_and_writing_many():
    prompt = ["<|im_start|>", "user", "Ċ", *("Ġword" for _ in range(9)), "Ġ$5", "Ġto", "Ġ$6", "?"]
    answer = ["Pr", "ague", ",", "Ġin", "Ġshort", *("Ġword" for _ in range(9))]
    ax = pictures.reading_and_writing(prompt, answer)
    nothing_is_covered(ax.figure)
    assert f"the {len(prompt)} tokens of the prompt go through" in ax.get_label()
    assert f"each of the other {len(answer) - 1} tokens" in ax.get_label()
    shown = words(ax)
    assert {"user", "word", "⏎", "Pr", "ague"} <= set(shown) and shown.count("…") == 3
    assert shown.count("weights") == 7
    with pytest.raises(ValueError, match="There is nothing to draw"):
        pictures.reading_and_writing(prompt, [])


def block(*, adapters=True, fused=True, first=False, norms=False, path="/model/layers.1"):
    """The nodes of one block, as the model builder names them."""
    nodes = []

    def add(name, kind, inputs, outputs=1):
        made = [f"{path}/{name}/output_{i}" for i in range(outputs)]
        fields = {"name": f"{path}/{name}", "op_type": kind, "input": inputs, "output": made}
        nodes.append(SimpleNamespace(**fields))
        return made[0]

    def linear(name, x):
        y = add(f"{name}/MatMulNBits", "MatMulNBits", [x, "packed", "scales", "zeros"])
        if not adapters:
            return y
        a = add(f"{name}/lora_A/MatMul", "MatMul", [x, f"{name}.A"])
        b = add(f"{name}/lora_B/MatMul", "MatMul", [a, f"{name}.B"])
        return add(f"{name}/lora/Add", "Add", [y, b])

    skip, residual = "SkipSimplifiedLayerNormalization", "residual"
    if first:
        normed = add("input_layernorm/LayerNorm", "SimplifiedLayerNormalization", [residual, "w"])
    else:
        normed = add("input_layernorm/SkipLayerNorm", skip, [residual, "mlp", "w"], 4)
        residual = nodes[0].output[3]
    names = ["qkv_proj"] if fused else ["q_proj", "k_proj", "v_proj"]
    qkv = [linear(f"attn/{name}", normed) for name in names]
    if norms:
        parts = [add("attn/qkv_proj/Split", "Split", [*qkv, "sizes"], 3)]
        parts += [nodes[-1].output[1], nodes[-1].output[2]]
        for at, which in enumerate("qk"):
            shaped = add(f"attn/{which}_norm/Reshape", "Reshape", [parts[at], "shape"])
            norm = f"attn/{which}_norm/SimplifiedLayerNormalization"
            parts[at] = add(norm, "SimplifiedLayerNormalization", [shaped, "w"])
        qkv = parts
    attended = add("attn/GroupQueryAttention", "GroupQueryAttention", [*qkv, "", "past"])
    out = linear("attn/o_proj", attended)
    normed = add("post_attention_layernorm/SkipLayerNorm", skip, [residual, out, "w"], 4)
    both = linear("mlp/gate_up_proj", normed)
    gate = add("mlp/gate_up_proj/Split", "Split", [both, "sizes"], 2)
    sigmoid = add("mlp/act_fn/Sigmoid", "Sigmoid", [gate])
    active = add("mlp/act_fn/Mul", "Mul", [gate, sigmoid])
    linear("mlp/down_proj", add("mlp/Mul", "Mul", [active, nodes[-3].output[1]]))
    return nodes


MAIN = [
    "add, then normalise",
    "q, k and v (4 bits)",
    "attention, with its cache",
    "output (4 bits)",
    "add, then normalise",
    "gate and up (4 bits)",
    "activation of gate, times up",
    "down (4 bits)",
]


def test_a_block_is_its_main_operators_with_adapters_and_residuals():
    nodes = block()
    ax = pictures.graph_block(nodes)
    nothing_is_covered(ax.figure)
    shown = words(ax)
    assert [text for text in shown if text in MAIN] == MAIN
    assert shown.count("A") == shown.count("B") == shown.count("+") == 4
    assert shown.count("residual") == 2 and "GroupQueryAttention" in shown
    assert ax.get_label().startswith(f"One block, {len(nodes)} nodes, from top to bottom: add,")
    assert "down (4 bits) with an adapter. Not drawn: 1 Split." in ax.get_label()


def test_a_block_without_adapters_or_with_q_k_and_v_apart():
    ax = pictures.graph_block(block(adapters=False, fused=False))
    nothing_is_covered(ax.figure)
    shown = words(ax)
    assert "q, k, v (4 bits)" in shown and not {"A", "B", "adapter (MatMul)"} & set(shown)
    assert len([text for text in shown if text in MAIN]) == 7
    assert (
        "q, k, v (4 bits) with an adapter" in pictures.graph_block(block(fused=False)).get_label()
    )


def test_the_norms_of_q_and_k_are_one_step_and_v_is_no_residual():
    ax = pictures.graph_block(block(norms=True))
    nothing_is_covered(ax.figure)
    shown = words(ax)
    assert shown.count("normalise q and k") == 1 and shown.count("residual") == 2
    assert "Not drawn: 2 Split, 2 Reshape." in ax.get_label()


def test_the_first_block_passes_its_input_around_the_attention():
    ax = pictures.graph_block(block(first=True))
    nothing_is_covered(ax.figure)
    assert words(ax).count("residual") == 2 and "normalise" in words(ax)
    lanes = [line.get_ydata() for line in ax.get_lines() if line.get_linewidth() == 2.5]
    top = max(text.get_position()[1] for text in ax.texts if text.get_text() == "normalise")
    assert max(lanes[0]) > top > max(lanes[1])  # before the first norm, and after the second


def test_no_block_is_said():
    with pytest.raises(ValueError, match="no node of a transformer block"):
        pictures.graph_block([])


def points(names):
    loss = {
        "base": 4.553,
        "rounded": 4.83,
        "AWQ": 4.697,
        "AWQ + LoRA": 3.44,
        "ONNX + adapter": 3.4,
    }
    size = {"base": 269.1, "rounded": 118, "AWQ": 118, "AWQ + LoRA": 122, "ONNX + adapter": 98.6}
    return {
        name: (
            Estimate(size[name], unit="MB"),
            Estimate(loss[name], loss[name] - 0.12, loss[name] + 0.13, "nats per token"),
            58.0 if "ONNX" in name else None,
        )
        for name in names
    }


@pytest.mark.parametrize(
    "names",
    [
        ["base"],
        ["base", "ONNX + adapter"],
        ["base", "rounded", "AWQ", "ONNX + adapter", "AWQ + LoRA"],
    ],
)
def test_loss_against_size_names_each_point(names):
    ax = pictures.loss_against_size(points(names))
    nothing_is_covered(ax.figure)
    assert "base: 269 MB, 4.55 (4.43 to 4.68) nats per token" in ax.get_label()
    assert "base  4.55" in words(ax)
    if len(names) > 1:
        assert "ONNX + adapter  3.40\n58 tokens/s" in words(ax)
        assert "3.40 (3.28 to 3.53) nats per token, 58 tokens/s" in ax.get_label()
    assert ax.get_xlabel() == "size on disk (MB)"
    with pytest.raises(ValueError, match="at least one point"):
        pictures.loss_against_size({})


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")
