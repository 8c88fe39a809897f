"""Pictures of the ideas in the labs, made of the reader's own model where that can be.

Each returns its Axes, and says in words what it shows (the label, from which a notebook makes the
alternative text of the image).
"""

from labkit.pictures.course import loss_against_size, route
from labkit.pictures.graph import graph_block
from labkit.pictures.grid import channel_scales, group_on_grid
from labkit.pictures.model import low_rank, reading_and_writing

__all__ = [
    "channel_scales",
    "graph_block",
    "group_on_grid",
    "loss_against_size",
    "low_rank",
    "reading_and_writing",
    "route",
]
