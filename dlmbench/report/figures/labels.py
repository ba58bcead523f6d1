"""Names beside their points: a small search that keeps labels off markers, lines and each other, inside the axes.

A label that must be there looks far and gets a thin leader where it does not stand beside its point; others are left
out where there is no room close by. What must not be covered are boxes; what should not be, lines: a place that crosses
fewer of them wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from dlmbench.report.figures.style import figure_of, renderer_of

_ANGLES = np.deg2rad([20, 160, -20, -160, 60, 120, -60, -120, 90, -90, 0, 180, 40, 140, -40, -140])
_RADII = (7, 11, 16, 23, 32, 44, 60, 80, 105, 140)  # points
_NEAR = 3  # so many of them are close by
_LEADER_FROM = 14  # a label farther than this from its point gets a line
_MARKER = 4.5  # half the width of a marker, points
_STEP = 5  # a line is so many points from one of its boxes to the next
_CROSSING = 5  # a place that crosses one of these boxes must be so many points nearer


@dataclass(frozen=True)
class Wish:
    """A label that is wanted: `texts` are tried in turn, the shorter later."""

    x: float
    y: float
    texts: tuple[str, ...]
    colour: str
    size: float
    needed: bool


def place(ax: Axes, wishes: Sequence[Wish], points: np.ndarray, lines: Sequence[np.ndarray]) -> None:
    """Write the wanted labels.

    points: [N, 2] centres of markers; lines: each [M, 2], corners of what labels should not cross. Both in data.
    """
    figure = figure_of(ax)
    scale, renderer = figure.dpi / 72, renderer_of(figure)
    centres = ax.transData.transform(points)
    taken, written = (
        list(_around(centres, np.full(2, 2 * _MARKER * scale))),
        [np.full(4, np.nan)],
    )  # nothing overlaps that
    if legend := ax.get_legend():
        taken.append(np.array(legend.get_window_extent(renderer).extents))
    soft = _along(ax, lines, scale)
    area = np.array(ax.get_window_extent().extents) + np.array([3, 3, -1, -1]) * scale
    for wish in wishes:
        point = ax.transData.transform((wish.x, wish.y))
        tries = [(text, np.array(written)) for text in wish.texts]
        tries += [(wish.texts[-1], np.array(written[:1]))] * wish.needed  # rather a leader across a label than no name
        for text, uncrossed in tries:
            label = ax.annotate(
                text,
                xy=(wish.x, wish.y),
                xytext=(0, 0),
                textcoords="offset points",
                fontsize=wish.size,
                color=wish.colour,
                ha="center",
                va="center",
                zorder=6,
                fontweight="bold" if wish.needed else "normal",
                annotation_clip=False,
            )
            box = label.get_window_extent(renderer)
            extent = np.array([box.width, box.height])
            spot = _best_spot(point, extent, np.array(taken), uncrossed, soft, area, scale, wish.needed)
            if spot is None:
                label.remove()
                continue
            centre, radius = spot
            label.set_position(tuple((centre - point) / scale))
            written.append(_around(centre, extent * (1.04, 1.15)))
            taken.append(written[-1])
            if radius >= _LEADER_FROM:
                end = _leader(ax, point, _around(centre, extent), wish.colour)
                taken += list(_around(_between(point, end), np.full(2, scale)))
            break


def _along(ax: Axes, lines: Sequence[np.ndarray], scale: float) -> np.ndarray:
    """Small boxes [N, 4] along lines."""
    found = [np.empty((0, 2))]
    for line in lines:
        corners = ax.transData.transform(line)
        for start, end in zip(corners[:-1], corners[1:]):
            number = max(2, int(np.hypot(*(end - start)) / (_STEP * scale)) + 1)
            found.append(np.linspace(start, end, number))
    return _around(np.concatenate(found), np.full(2, 1.5 * scale))


def _best_spot(
    point: np.ndarray,
    extent: np.ndarray,
    taken: np.ndarray,
    written: np.ndarray,
    soft: np.ndarray,
    area: np.ndarray,
    scale: float,
    wide: bool,
) -> tuple[np.ndarray, float] | None:
    """Nearest place for a box of this extent around `point` that overlaps nothing taken, its leader nothing written;
    without `wide` only close by.

    Boxes are (x0, y0, x1, y1) in pixels. Returns (centre, distance in points), None when there is no room.
    """
    radii = np.repeat(_RADII if wide else _RADII[:_NEAR], len(_ANGLES))
    ways = np.tile(np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)]), (len(radii) // len(_ANGLES), 1))
    sides = np.sign(np.round(ways, 3)) * extent / 2 * np.column_stack([np.abs(ways[:, 0]), np.ones(len(ways))])
    centres = point + ways * radii[:, None] * scale + sides
    boxes = _around(centres, extent)
    free = (boxes[:, :2] >= area[:2]).all(1) & (boxes[:, 2:] <= area[2:]).all(1) & ~_overlaps(boxes, taken).any(1)
    dots = _between(point, np.clip(point, boxes[:, :2], boxes[:, 2:]))  # [dots, places, 2]
    free &= ~_overlaps(_around(dots.reshape(-1, 2), np.zeros(2)), written).any(1).reshape(len(dots), -1).any(0)
    crossed = _overlaps(boxes, soft).sum(1)
    if not wide:
        free &= crossed == 0
    if not free.any():
        return None
    best = int(np.argmin(np.where(free, radii + _CROSSING * crossed, np.inf)))
    return centres[best], float(radii[best])


def _around(centre: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """The boxes [..., 4] of this extent around centres [..., 2]."""
    return np.concatenate([centre - extent / 2, centre + extent / 2], axis=-1)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of boxes [N, 4] touch which of others [M, 4]: [N, M]."""
    a, b = boxes[:, None], others[None]
    return np.all((a[..., :2] <= b[..., 2:]) & (b[..., :2] <= a[..., 2:]), axis=-1)


def _between(start: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Dots [12, ..., 2] on the way from a point to others, without the ends."""
    shares = np.linspace(0, 1, 14)[1:-1].reshape(-1, *(1,) * ends.ndim)
    return start + shares * (ends - start)


def _leader(ax: Axes, point: np.ndarray, box: np.ndarray, colour: str) -> np.ndarray:
    """A thin line from the point to the nearest edge of its label; returns where it ends."""
    end = np.clip(point, box[:2], box[2:])
    start, stop = ax.transData.inverted().transform([point, end])
    ax.plot([start[0], stop[0]], [start[1], stop[1]], color=colour, linewidth=0.6, alpha=0.7, zorder=3)
    return end
