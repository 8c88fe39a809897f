"""What is looked at in a figure: its texts, and that none covers another or leaves its box."""

from itertools import combinations

from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

LEAST = 13  # points of a text that can be read from the back row
CONTRAST = 4.5  # of a text with what is behind it, as WCAG asks for


def texts_of(figure) -> list[Text]:
    figure.canvas.draw()
    found = figure.findobj(lambda one: isinstance(one, Text) and one.get_text().strip())
    hidden = [text for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for text in beyond(axis)]
    return [text for text in found if text.get_visible() and text not in hidden]


def beyond(axis) -> list[Text]:
    """The labels of ticks that are not drawn: the axis ends before them, or is off."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [
        text
        for tick in ticks
        for text in (tick.label1, tick.label2)
        if not axis.axes.axison or not low <= tick.get_loc() <= high
    ]


def behind(text: Text, place):
    """The colour of the box of *text*, or of the last shape drawn around its middle *place*."""
    if text.get_bbox_patch():
        return text.get_bbox_patch().get_facecolor()
    middle = (place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2
    shapes = [one for ax in text.figure.axes for one in ax.patches if one.get_fill()]
    around = [one for one in shapes if one.get_window_extent().contains(*middle)]
    return max(around, key=lambda one: one.get_zorder()).get_facecolor() if around else "white"


def contrast(one, other) -> float:
    """From 1, the same colour, to 21, black on white; by WCAG's formula."""
    first, second = sorted(map(luminance, (one, other)))
    return (second + 0.05) / (first + 0.05)


def luminance(colour) -> float:
    linear = [v / 12.92 if v <= 0.04 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def nothing_is_covered(figure) -> None:
    """Every text is large enough, stands out from what is behind it, is inside the figure and its
    box, and over no other text.
    """
    texts = texts_of(figure)
    places = {text: text.get_window_extent() for text in texts}
    for text, place in places.items():
        assert text.get_fontsize() >= LEAST, text
        assert contrast(text.get_color(), behind(text, place)) >= CONTRAST, text
        assert place.x0 >= -1 and place.x1 <= figure.bbox.x1 + 1, text
        assert place.y0 >= -1 and place.y1 <= figure.bbox.y1 + 1, text
    for one, other in combinations(texts, 2):
        assert not places[one].padded(-1).overlaps(places[other].padded(-1)), (one, other)
    for frame in figure.findobj(FancyBboxPatch):
        around = frame.get_window_extent()
        for text, place in places.items():
            middle = (place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2
            if around.contains(*middle):
                assert place.x0 >= around.x0 - 1 and place.x1 <= around.x1 + 1, text
                assert place.y0 >= around.y0 - 1 and place.y1 <= around.y1 + 1, text
