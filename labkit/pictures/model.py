"""What LoRA adds to the matrices of a block, and how a model reads and writes."""

from collections.abc import Mapping, Sequence

from labkit.drawing import CHARACTER, COLOURS, arrow, box, label, sheet

FROZEN = {"facecolor": "#B3DAF3", "edgecolor": "black", "linewidth": 1.5}
TRAINED = {"facecolor": COLOURS[5], "edgecolor": COLOURS[5], "linewidth": 2}
GAP = 0.08  # between a matrix and its strips, in inches


def low_rank(shapes: Mapping[str, tuple[int, int]], rank: int):
    """LoRA: its equation, and the matrices of a block, {name: (rows, columns)}, to scale.

    Each has B at its left and A above it, as thin as *rank* is, and two points at least.
    """
    count, space = len(shapes), 8.8
    tallest = max(rows for rows, _ in shapes.values())
    widest = sum(columns for _, columns in shapes.values())
    scale = min((space - count * 0.35) / widest, 2.6 / tallest)
    while sum(slots := _slots(shapes, rank, scale)) > space and scale * tallest > 0.5:
        scale *= 0.95
    tallest *= scale
    ax = sheet(max(9, sum(slots) + 0.2), tallest + 2.75)
    _draw_equation(ax, tallest + 1.95, rank)
    x, spare = 0.1, max(0, space - sum(slots)) / count
    for (name, shape), slot in zip(shapes.items(), slots, strict=True):
        _draw_matrix(ax, (x + (slot + spare) / 2, 0.75), shape, rank, scale)
        label(ax, (x + (slot + spare) / 2, 0.36), f"{name}\n{_size(shape)}")
        x += slot + spare
    frozen = sum(rows * columns for rows, columns in shapes.values())
    trained = rank * sum(rows + columns for rows, columns in shapes.values())
    listed = ", ".join(f"{name} {_size(shape)}" for name, shape in shapes.items())
    ax.set_label(
        f"LoRA: y = W x + (alpha/r) B (A x), with W frozen, A and B trained, r = {rank}. The "
        f"matrices W of one block to scale, each with a thin A and B: {listed}. Together "
        f"{frozen:,} frozen weights and {trained:,} trained ones, {trained / frozen:.1%}."
    )
    return ax


def _slots(shapes: Mapping[str, tuple[int, int]], rank: int, scale: float) -> list[float]:
    """Inches that each matrix takes, with B beside it and its label under it."""
    slots = []
    for name, shape in shapes.items():
        letters = CHARACTER * max(len(name), len(_size(shape)))
        slots.append(max(shape[1] * scale + GAP + rank * scale, letters) + 0.12)
    return slots


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _draw_matrix(ax, foot: tuple[float, float], shape: tuple[int, int], rank: int, scale: float):
    """W above *foot*, with B at its left and A above it."""
    from matplotlib.patches import Rectangle

    high, across, thin = (scale * size for size in (*shape, rank))
    x, y = foot[0] - across / 2, foot[1]
    ax.add_patch(Rectangle((x, y), across, high, **FROZEN))
    ax.add_patch(Rectangle((x, y + high + GAP), across, thin, **TRAINED))
    ax.add_patch(Rectangle((x - GAP - thin, y), thin, high, **TRAINED))


def _draw_equation(ax, y: float, rank: int) -> None:
    """The flow of y = W x + (alpha/r) B (A x), around the height *y*."""
    low, high = y - 0.32, y + 0.32
    box(ax, (0.6, y), (0.5, 0.4), "x", fontsize=16)
    box(ax, (2.9, high), (2.6, 0.44), "W", fontsize=16, fontweight="bold", **FROZEN)
    for x, name in ((2.0, "A"), (3.1, "B")):
        box(ax, (x, low), (0.7, 0.44), name, fontsize=16, fontweight="bold", **TRAINED)
    box(ax, (4.35, low), (0.8, 0.44), "× α/r")
    box(ax, (5.6, y), (0.44, 0.44), "+", fontsize=18)
    box(ax, (6.6, y), (0.5, 0.4), "y", fontsize=16)
    for start, end in (((0.85, y), (1.58, high)), ((0.85, y), (1.63, low))):
        arrow(ax, start, end)
    for start, end in ((2.37, 2.73), (3.47, 3.93)):
        arrow(ax, (start, low), (end, low))
    arrow(ax, (4.22, high), (5.36, y + 0.08))
    arrow(ax, (4.77, low), (5.36, y - 0.08))
    arrow(ax, (5.84, y), (6.33, y))
    label(ax, (7.15, high), "large: W, frozen", ha="left")
    label(ax, (7.15, low), f"thin: A and B,\ntrained, r = {rank}", ha="left")


def reading_and_writing(prompt_tokens: Sequence[str], answer_tokens: Sequence[str]):
    """How the prompt is read (one pass over the weights), and the answer written (a pass a token).

    Of long texts, the tokens that find room are drawn. Raises ValueError where one has no token.
    """
    if not prompt_tokens or not answer_tokens:
        raise ValueError("There is nothing to draw: give tokens of a prompt and of an answer.")
    ax, read, written = sheet(9, 4.1), len(prompt_tokens), len(answer_tokens)
    heading = {"ha": "left", "fontsize": 15, "fontweight": "bold"}
    label(ax, (0.1, 3.9), f"Reading {read} tokens: all at once", **heading)
    places = _places([_shown(token) for token in prompt_tokens], least=0.3)
    for x, wide, text in places:
        box(ax, (x, 3.4), (wide, 0.4), text)
        arrow(ax, (x, 3.2), (x, 2.9))
    end = places[-1][0] + places[-1][1] / 2
    weights = {"facecolor": FROZEN["facecolor"], "fontweight": "bold"}
    box(ax, ((0.1 + end) / 2, 2.67), (end - 0.1, 0.46), "all weights, once", **weights)

    places = _places([_shown(token) for token in answer_tokens], least=0.95)
    label(ax, (1.3, 2.05), f"Writing {written} tokens: one by one", **heading)
    arrow(ax, (places[0][0], 2.44), (places[0][0], 1.72))
    for at, (x, wide, text) in enumerate(places):
        box(ax, (x, 1.5), (wide, 0.4), text, facecolor="#FCE8C4")
        if not at:
            continue
        before, across, _ = places[at - 1]
        box(ax, (x, 0.5), (wide, 0.46), text if text == "…" else "weights", **weights)
        arrow(ax, (x, 0.73), (x, 1.28))
        arrow(ax, (before + across / 4, 1.3), (x - wide / 4, 0.75), linestyle="--")
    label(ax, (0.1, 0.5), "1 pass\neach:", ha="left")
    ax.set_label(
        f"Reading: the {read} tokens of the prompt go through the weights together, in one pass, "
        f"which gives the first token of the answer. Writing: each of the other {written - 1} "
        "tokens goes through all the weights alone, to give the next one."
    )
    return ax


def _shown(token: str) -> str:
    """*token* for a box: a blank at its start is left out, the end of a line is made visible."""
    text = token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n").strip(" ")
    text = text.replace("\n", "⏎") or "␣"
    return text if len(text) <= 14 else f"{text[:12]}…"


def _places(texts: Sequence[str], least: float) -> list[tuple[float, float, str]]:
    """(middle, width, text) of boxes in a row, as many as there is room for; then dots."""
    places, x = [], 0.1
    for at, text in enumerate(texts):
        wide = max(least, CHARACTER * len(text) + 0.14)
        is_last = at == len(texts) - 1
        if x + wide > (8.9 if is_last else 8.4):
            places.append((x + 0.2, 0.4, "…"))
            break
        places.append((x + wide / 2, wide, text))
        x += wide + 0.08
    return places
