"""The route through the labs, and what it leads to."""

from collections.abc import Mapping

from labkit.course import EXTRAS
from labkit.drawing import COLOURS, arrow, axes, box, finish, label, numbers, sheet, verbatim
from labkit.figures import Estimate

# lab: (what it does, what it leaves)
STATIONS = {
    "01": ("setup", "base model\n16 bits"),
    "02": ("quantize", "4-bit\nweights"),
    "03": ("finetune", "adapters"),
    "04": ("optimize", "model.onnx\n+ adapters"),
    "05": ("infer", "answers"),
    "06": ("upload", "version 1"),
}
DONE = {"facecolor": COLOURS[0], "linestyle": "-"}
PRESENT = {"facecolor": COLOURS[1], "linewidth": 3.5}
TO_COME = {"facecolor": "white", "edgecolor": "0.4", "linestyle": "--"}

# where the text of a point may stand: offset in points, alignments
PLACES = (
    ((12, 0), "left", "center"),
    ((-12, 0), "right", "center"),
    ((12, 14), "left", "bottom"),
    ((12, -14), "left", "top"),
    ((-12, 14), "right", "bottom"),
    ((-12, -14), "right", "top"),
    ((0, 40), "center", "bottom"),
    ((0, -40), "center", "top"),
)


def route(here: str, figures: Mapping[str, object] | None = None):
    """The map of the six labs, with what each one leaves, and the reader at lab *here*, as "02".

    An extra, "07" and on, comes after all of them.
    *figures* are short texts under the products, such as {"01": "269 MB"}.
    """
    if here not in (*STATIONS, *EXTRAS):
        raise ValueError(f"There is no lab {here}: the labs are {', '.join(STATIONS)}.")
    below = 0.35 if figures else 0
    ax = sheet(9, 2.05 + below)
    for at, (lab, (name, product)) in enumerate(STATIONS.items()):
        x, to_come = 0.76 + 1.495 * at, lab > here
        look = TO_COME if to_come else DONE
        if at:
            ends = (x - 1.495 + 0.3, below + 1.4), (x - 0.3, below + 1.4)
            line = {"linestyle": "--", "color": "0.4"} if to_come else {"linewidth": 3}
            arrow(ax, *ends, **line)
        _station(ax, (x, below + 1.4), lab, PRESENT if lab == here else look)
        weight = "bold" if lab == here else "normal"
        label(ax, (x, below + 1.0), name, fontsize=14, fontweight=weight)
        paper = {"facecolor": "white" if lab >= here else "#CFE4F2"}
        box(ax, (x, below + 0.43), (1.36, 0.56), product, **look | paper)
        label(ax, (x, 0.18), str((figures or {}).get(lab, "")))
    names = (f"{lab} {name} leaves {what}" for lab, (name, what) in STATIONS.items())
    listed = ", ".join(names).replace("\n", " ")
    at = len(STATIONS) if here in EXTRAS else list(STATIONS).index(here)
    if here in STATIONS:
        label(ax, (0.76 + 1.495 * at, below + 1.93), "you are here", fontweight="bold")
    known = "".join(f" {lab}: {text}." for lab, text in (figures or {}).items())
    done = f"{at} of 6 labs are done"
    place = f"lab {here}, {STATIONS[here][0]}" if here in STATIONS else f"extra {here}"
    ax.set_label(f"The route: {listed}. You are at {place}; {done}.{known}")
    return ax


def _station(ax, middle, lab: str, look: dict) -> None:
    from matplotlib.patches import Circle

    ax.add_patch(Circle(middle, 0.27, zorder=3, **{"edgecolor": "black", "linewidth": 1.5} | look))
    ink = "white" if look is DONE else "black"
    label(ax, middle, lab[1:], fontsize=16, fontweight="bold", color=ink, zorder=4)


def loss_against_size(
    points: Mapping[str, tuple[Estimate, Estimate, float | None]],
    *,
    title: str = "Smaller is better, both ways",
):
    """Held-out loss against size, of {model: (size, loss, tokens per second or None)}.

    Raises ValueError where there is no point.
    """
    if not points:
        raise ValueError("There is nothing to draw: give loss_against_size() at least one point.")
    ax = axes(9, 5)
    for at, (size, loss, _) in enumerate(points.values()):
        reach = [[loss.mean - loss.low], [loss.high - loss.mean]]
        look = {"color": "black", "capsize": 6, "markeredgecolor": "black", "markersize": 13}
        look |= {"fmt": "osD^vP"[at % 6], "markerfacecolor": COLOURS[at % 6]}
        ax.errorbar(size.mean, loss.mean, yerr=reach, **look)
    sizes, losses = ([point[i] for point in points.values()] for i in range(2))
    low, high = min(loss.low for loss in losses), max(loss.high for loss in losses)
    span = (high - low) or 1
    ax.set_ylim(low - 0.3 * span, high + 0.15 * span)
    ax.set_xlim(0, 1.2 * max(size.mean for size in sizes))
    ax.set_xlabel(f"size on disk ({sizes[0].unit})")
    look = {"arrowstyle": "simple", "color": "0.8"}
    ax.annotate("", (0.01, 0.03), (0.13, 0.2), xycoords="axes fraction", arrowprops=look)
    ax.text(0.12, 0.06, "smaller and better", transform=ax.transAxes, fontsize=13, color="0.3")
    speeds = ["" if speed is None else f"{speed:.0f} tokens/s" for *_, speed in points.values()]
    said = [
        ", ".join(filter(None, (f"{name}: {size}, {loss}", speed)))
        for (name, (size, loss, _)), speed in zip(points.items(), speeds, strict=True)
    ]
    text = f"{title}. Held-out loss against size: {'; '.join(said)}."
    finish(ax, f"held-out loss ({losses[0].unit})", title, text)
    texts = [
        "\n".join(filter(None, (f"{name}  {loss}", speed)))
        for name, loss, speed in zip(
            points, numbers([one.mean for one in losses]), speeds, strict=True
        )
    ]
    _place_texts(ax, [(size.mean, loss) for size, loss, _ in points.values()], texts)
    return ax


def _place_texts(ax, points: list[tuple[float, Estimate]], texts: list[str]) -> None:
    """Each of the *texts* beside its point, where it covers neither point nor text, if it can."""
    from matplotlib.transforms import Bbox

    ax.figure.draw_without_rendering()  # from here on the axes stay where they are
    ax.figure.set_layout_engine("none")
    taken = []
    for x, loss in points:
        low, high = ax.transData.transform([(x, loss.low), (x, loss.high)])
        taken.append(Bbox([low - 9, high + 9]))
    for (x, loss), text in zip(points, texts, strict=True):
        for offset, ha, va in PLACES:
            place = {"xytext": offset, "textcoords": "offset points", "ha": ha, "va": va}
            note = ax.annotate(verbatim(text), (x, loss.mean), fontsize=13, **place)
            around = note.get_window_extent()
            inside = ax.bbox.x0 <= around.x0 and around.x1 <= ax.figure.bbox.x1
            if inside and not around.count_overlaps(taken):
                break
            note.remove()
        else:
            note = ax.annotate(verbatim(text), (x, loss.mean), fontsize=13)
        taken.append(note.get_window_extent())
