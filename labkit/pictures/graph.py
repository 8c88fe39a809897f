"""The graph of one transformer block, drawn from its ONNX nodes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from labkit.drawing import CHARACTER, COLOURS, arrow, box, label, sheet

PLAIN = {
    "qkv_proj": "q, k and v",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "output",
    "gate_up_proj": "gate and up",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}
ADDED = "add, then normalise"
LOOKS = {
    "product": {"facecolor": "#B3DAF3", "linewidth": 2.5},
    "adapter": {"facecolor": COLOURS[1], "hatch": "//"},
    "attention": {"facecolor": "#8FD3BE", "hatch": ".."},
    "other": {"facecolor": "white"},
}
MAIN = 2.75  # middle of the flow, in inches
LANE = 0.55  # where the residual goes down
PITCH = 0.72  # from one step to the next
HALF = 0.19  # height of a box, halved


@dataclass
class Step:
    """What one box stands for: some nodes, and the steps that they take their input from."""

    kind: str
    names: list[str]
    nodes: list = field(default_factory=list)
    sources: set[int] = field(default_factory=set)

    @property
    def adapter(self) -> bool:
        return any("/lora_" in node.name for node in self.nodes)

    @property
    def text(self) -> str:
        products = [node for node in self.nodes if _kind(node) == "product"]
        if not products:
            return self.names[0]
        bits = max(map(_bits, products))
        return f"{', '.join(self.names)} ({f'{bits} bits' if bits else 'float'})"


def graph_block(nodes: Sequence):
    """The main operators of one block, from top to bottom, with the adapters at their right.

    *nodes* are those of an ONNX graph (name, op_type, input, output), in their order. Raises
    ValueError where there is none.
    """
    steps, small = _steps(nodes)
    if not steps:
        raise ValueError("There is nothing to draw: no node of a transformer block is given.")
    ax = sheet(9, PITCH * len(steps) + 1.32)
    places = [PITCH * (len(steps) - at) + 0.52 for at in range(len(steps))]
    arrow(ax, (MAIN, places[0] + 0.7), (MAIN, places[0] + HALF))
    label(ax, (MAIN + 0.15, places[0] + 0.52), "from the block before", ha="left", color="0.25")
    for step, y in zip(steps, places, strict=True):
        _draw_step(ax, step, y)
    used = {name for node in nodes for name in node.input}
    for at, step in enumerate(steps):
        for source in step.sources:
            if step.names[0] == ADDED and source < at - 1:
                start = places[0] + PITCH if source < 0 else places[source]
                _draw_residual(ax, start, places[at])
        sums = [node.output[3] for node in step.nodes if len(node.output) > 3]
        if set(filter(None, sums)) - used:
            _draw_residual(ax, places[at], None)
    label(ax, (MAIN + 0.15, places[-1] - 0.52), "to the next block", ha="left", color="0.25")
    _draw_legend(ax, steps)
    ax.set_label(_described(steps, small, len(nodes)))
    return ax


def _steps(nodes: Sequence) -> tuple[list[Step], Counter]:
    """(the steps in their order, how many small operators of each kind are in none)."""
    steps, small, made_by, at_module = [], Counter(), {}, {}
    for node in nodes:
        kind, module = _kind(node), _module(node)
        known = {made_by[name] for name in node.input if name in made_by}
        if kind == "small":
            small[node.op_type] += 1
            at = max(known, default=-1)
        else:
            at = at_module.get(module)
            if at is None:
                at = _same_input(steps, node) if kind in ("product", "adapter") else None
            if at is None:
                at = len(steps)
                steps.append(Step("product" if kind == "adapter" else kind, []))
            if module not in at_module:
                at_module[module] = at
                steps[at].names.append(_plain(node, module))
            steps[at].nodes.append(node)
            steps[at].sources |= known - {at}
        if not made_by and kind != "small":
            made_by[node.input[0]] = -1  # what comes into the block
        made_by |= dict.fromkeys(filter(None, node.output), at)
    return steps, small


def _same_input(steps: list[Step], node) -> int | None:
    """The last step, if it is a product of the same input: q, k and v are drawn as one."""
    if not steps or steps[-1].kind != "product":
        return None
    return len(steps) - 1 if steps[-1].nodes[0].input[0] == node.input[0] else None


def _kind(node) -> str:
    if "/lora" in node.name:
        return "adapter"
    if node.op_type.startswith("MatMul"):
        return "product"
    if node.op_type.endswith("Attention"):
        return "attention"
    if "LayerNorm" in node.op_type:
        return "other"
    return "other" if "/mlp/" in node.name and node.op_type not in ("Split", "Add") else "small"


def _module(node) -> str:
    """What the boxes are made by: /model/layers.1/attn/qkv_proj/lora_A/MatMul is attn/qkv_proj."""
    parts = node.name.split("/layers.")[-1].split("/")[1:-1]
    parts = [part for part in parts if not part.startswith("lora")]
    kind = _kind(node)
    if kind == "other" and parts[-1] in ("q_norm", "k_norm"):
        return "norms of q and k"
    if kind == "other" and "LayerNorm" not in node.op_type:
        return "activation"
    return "/".join(parts) + kind.replace("adapter", "product")


def _plain(node, module: str) -> str:
    if module == "activation":
        return "activation of gate, times up"
    if "LayerNorm" in node.op_type:
        normalise = "normalise q and k" if module == "norms of q and k" else "normalise"
        return ADDED if node.op_type.startswith("Skip") else normalise
    if _kind(node) == "attention":
        return "attention, with its cache"
    name = module.removesuffix("product").split("/")[-1]
    return PLAIN.get(name, name)


def _bits(node) -> int:
    """Bits of a packed weight; 0 where it is a float."""
    if node.op_type != "MatMulNBits":
        return 0
    return next((one.i for one in getattr(node, "attribute", ()) if one.name == "bits"), 4)


def _draw_step(ax, step: Step, y: float) -> None:
    """A box, the arrow that leaves it, and the adapter that joins there."""
    box(ax, (MAIN, y), (3.3, 2 * HALF), step.text, fontsize=14, **LOOKS[step.kind])
    arrow(ax, (MAIN, y - HALF), (MAIN, y + HALF - PITCH))
    if not step.adapter:
        kinds = dict.fromkeys(node.op_type for node in step.nodes)
        label(ax, (4.65, y), ", ".join(kinds), ha="left", color="0.25")
        return
    for x, name in ((5.7, "A"), (7.2, "B")):
        box(ax, (x, y), (0.8, 2 * HALF), name, fontsize=15, fontweight="bold", **LOOKS["adapter"])
    top, low = y + HALF + 0.11, y - HALF - 0.13
    ax.plot([MAIN, 5.7], [top, top], color="black", linewidth=1.5)
    arrow(ax, (5.7, top), (5.7, y + HALF))
    arrow(ax, (6.1, y), (6.8, y))
    ax.plot([7.2, 7.2], [y - HALF, low], color="black", linewidth=1.5)
    arrow(ax, (7.2, low), (MAIN + 0.1, low))
    ring = {"boxstyle": "circle,pad=0.02", "facecolor": "white"}
    label(ax, (MAIN, low), "+", bbox=ring, zorder=4)


def _draw_residual(ax, start: float, end: float | None) -> None:
    """The path around the steps, to the one that adds it: at the height *end*, or further on."""
    top = start - HALF - 0.1
    bottom = 0.72 if end is None else end
    ax.plot([MAIN, LANE, LANE], [top, top, bottom], color="black", linewidth=2.5)
    ends = (LANE, bottom - 0.1) if end is None else (MAIN - 1.65, end)
    arrow(ax, (LANE, bottom), ends, linewidth=2.5)
    label(ax, (LANE - 0.2, (top + bottom) / 2), "residual", rotation=90)


def _draw_legend(ax, steps: list[Step]) -> None:
    x = 0.4
    texts = {
        "product": "packed weights (MatMulNBits)",
        "adapter": "adapter (MatMul)",
        "attention": "attention",
    }
    for kind, text in texts.items():
        if kind == "adapter" and not any(step.adapter for step in steps):
            continue
        box(ax, (x + 0.15, 0.22), (0.3, 0.26), **LOOKS[kind])
        label(ax, (x + 0.4, 0.22), text, ha="left")
        x += 0.8 + CHARACTER * len(text)


def _described(steps: list[Step], small: Counter, count: int) -> str:
    said = [f"{step.text}{' with an adapter' if step.adapter else ''}" for step in steps]
    rest = ", ".join(f"{number} {kind}" for kind, number in small.items())
    left = f" Not drawn: {rest}." if rest else ""
    return f"One block, {count} nodes, from top to bottom: {'; '.join(said)}.{left}"
