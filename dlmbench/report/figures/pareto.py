"""The picture: accuracy against cost, one panel a task, the front drawn and everything named where it stands.

A method is a colour, a marker and a direct label; points that another setting beats are faded. Fronts are computed a
series: rows whose target has other weights, or that ran on other hardware, than most of a panel get hollow markers and
the words *other weights* or the name of the device. Published figures are grey diamonds, tied to our point of the same
setting by a dotted line. Labels are placed by a small search that avoids markers, bars, front lines and each other,
with a thin leader where the place is not beside its point. Colours follow Okabe and Ito and differ in lightness;
markers differ too, so the figure survives grey printing. curves.py has the other pictures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dlmbench.analysis.published import Pair
from dlmbench.analysis.row import Row
from dlmbench.errors import RequestError
from dlmbench.report.columns import COLUMNS, Axis
from dlmbench.report.figures.style import COLUMN_WIDTH, GREY, INK, dress, figure_of, renderer_of, save, styles, subplots
from dlmbench.stats import pareto_front

AXES = {column.axis.name: column.axis for column in COLUMNS if column.axis}  # --x
SCORES = {  # --y
    name: Axis(name, attrgetter(f"metrics.{name}"), f"{name} (%)", True) for name in ("accuracy", "strict", "flexible")
}
OWN_PANEL = 3  # settings from which on weights get a panel of their own


def plot(
    rows: Sequence[Row],
    folder: str | Path,
    x: str = "cost",
    y: str = "accuracy",
    name: str = "pareto",
    published: Sequence[Pair] = (),
    column: bool = False,
) -> list[Path]:
    """Write the figure of these rows as ``folder/name.{png,svg,pdf}``; the paths are returned.

    published: pairs to overlay; column: sized for one column of a page, panels below each other. Raises RequestError
    when an axis is unknown or no row has a value on it.
    """
    if x not in AXES or y not in SCORES:
        wrong, known = (x, AXES) if x not in AXES else (y, SCORES)
        raise RequestError(f"Axis {wrong!r} is unknown; choose one of {', '.join(known)}.")
    if not placed(rows, x, y):
        why = " (it is counted from samples, which did not come along)" if x in ("bytes", "flops", "8b") else ""
        raise RequestError(f"No row has a value for {x}{why}; choose another --x or finish the runs first.")
    return save(lambda: draw(rows, x, y, published, column), folder, name)


def placed(rows: Iterable[Row], x: str, y: str) -> list[Row]:
    """The rows that have a place in the figure."""
    return [row for row in rows if AXES[x].value(row) is not None and SCORES[y].value(row) is not None]


def draw(rows: Sequence[Row], x: str, y: str, published: Sequence[Pair] = (), column: bool = False) -> Figure:
    """The figure: a panel a task and weights, at most three a line; one below the other in a column."""
    rows = placed(rows, x, y)
    tasks: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        tasks.setdefault((row.task, row.split), []).append(row)
    panels = [part for group in tasks.values() for part in _by_weights(group)]
    across = 1 if column else min(3, len(panels))
    down = -(-len(panels) // across)
    size = (COLUMN_WIDTH, 3.1 * down) if column else (max(4.6 * across, 5.2), 3.9 * down)
    figure, axes = subplots(down, across, size, layout=None)
    _fix_margins(figure, down, across)
    style = styles([row.method for row in rows])
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    drawn = [(ax, _panel(ax, group, x, y, style, published)) for ax, group in zip(axes.flat, panels)]
    for ax, panel in drawn:
        _place_labels(ax, panel)
    return figure


def _fix_margins(figure: Figure, down: int, across: int) -> None:
    """Room around the panels in inches, the same in every figure: finding it anew takes as long as drawing it, and
    labels can be placed in final pixels at once."""
    wide, high = figure.get_size_inches()
    left, right, above = 0.58, 0.12, 0.32
    below = 0.62 if wide <= COLUMN_WIDTH else 0.48  # two lines below an axis, or one
    panel_width = (wide - across * (left + right)) / across
    panel_height = (high - down * (below + above)) / down
    figure.subplots_adjust(
        left=left / wide,
        right=1 - right / wide,
        bottom=below / high,
        top=1 - above / high,
        wspace=(left + right) / panel_width,
        hspace=(below + above) / panel_height,
    )


def _most(values: Sequence[str]) -> str:
    """The most frequent value; of equals the first in the alphabet."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _by_weights(group: list[Row]) -> list[list[Row]]:
    """Weights with several settings get a panel of their own, the others ride along with those that have most."""
    counts = Counter(row.weights for row in group)  # of equally frequent ones the first
    main = counts.most_common(1)[0][0]
    own = [weights for weights, number in counts.items() if number >= OWN_PANEL and weights != main]
    rest = [row for row in group if row.weights not in own]
    return [rest, *([row for row in group if row.weights == weights] for weights in own)]


@dataclass(frozen=True)
class _Panel:
    """What the labels of a panel need."""

    rows: list[Row]
    names: list[str]  # of the settings
    x: np.ndarray  # [rows]
    y: np.ndarray  # [rows]
    bars: np.ndarray | None  # [2, rows]: distances of the interval's ends
    curve: np.ndarray  # [corners, 2]: the front
    front: np.ndarray  # [rows]: is it on the front of its series?
    own: np.ndarray  # [rows]: is it of the panel's main series?
    marks: np.ndarray  # [published, 2]
    style: dict[str, tuple[str, str]]
    larger: bool


def _panel(
    ax: Axes, group: list[Row], x: str, y: str, style: dict[str, tuple[str, str]], published: Sequence[Pair]
) -> _Panel:
    """Draw one panel."""
    larger = AXES[x].larger
    series = [f"{row.weights} {row.device}" for row in group]
    own = np.array(series) == _most(series)
    xs, ys = (np.array([axis.value(row) for row in group], float) for axis in (AXES[x], SCORES[y]))
    ys = 100 * ys
    if x == "cost":
        xs = xs * _exchange(group, own)
    front = np.zeros(len(group), dtype=bool)
    for one in set(series):
        chosen = np.array(series) == one
        front[chosen] = pareto_front(xs[chosen], ys[chosen], larger)
    logarithmic = bool(xs.min() > 0 and xs.max() / xs.min() > 8)
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(_tick))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    curve = _draw_front(ax, xs[own & front], ys[own & front], larger)
    bars = _error_bars(group, ys) if y == "accuracy" else None
    _draw_threads(ax, group, xs, ys, own, style)
    for i, row in enumerate(group):
        colour, marker = style[row.method]
        strength = 1.0 if front[i] and own[i] else 0.45 if own[i] else 0.85
        if bars is not None:
            ends = bars[:, i : i + 1]
            ax.errorbar(
                xs[i], ys[i], yerr=ends, color=colour, alpha=0.5 * strength, linewidth=0.9, capsize=1.5, zorder=2
            )
        ax.plot(
            xs[i],
            ys[i],
            marker,
            color=colour,
            markersize=6.5 if marker in "*P" else 5.2,
            alpha=strength,
            markerfacecolor=colour if own[i] else "white",
            markeredgewidth=1.0,
            zorder=4,
        )
    marks = _overlay(ax, group, xs, ys, x, published) if y == "accuracy" else np.empty((0, 2))
    _limits(ax, xs, np.concatenate([ys, marks[:, 1]]), bars, logarithmic)
    _dress(ax, group, AXES[x], y)
    return _Panel(group, _names(group), xs, ys, bars, curve, front, own, marks, style, larger)


def _draw_threads(
    ax: Axes, group: list[Row], xs: np.ndarray, ys: np.ndarray, own: np.ndarray, style: dict[str, tuple[str, str]]
) -> None:
    """A faint line holds settings together that differ in numbers only."""
    kinds = np.array([re.sub(r"\d+(\.\d+)?", "#", row.label) for row in group])
    for kind in dict.fromkeys(kinds):
        mine = np.flatnonzero((kinds == kind) & own)
        mine = mine[np.argsort(xs[mine])]
        if mine.size:
            ax.plot(xs[mine], ys[mine], color=style[group[mine[0]].method][0], linewidth=0.8, alpha=0.3, zorder=1)


def _overlay(
    ax: Axes, group: list[Row], xs: np.ndarray, ys: np.ndarray, x: str, published: Sequence[Pair]
) -> np.ndarray:
    """Published accuracies of the settings in a panel, at our point's x or at their own NFE; places [M,2] drawn."""
    places: list[tuple[float, float]] = []
    for pair in published:
        if pair.ours not in group or pair.published.accuracy is None:
            continue
        i = group.index(pair.ours)
        theirs, ours = pair.forwards
        same = x == "nfe" and theirs is not None and abs(ours - xs[i]) < 1e-9
        places.append((theirs if same and theirs is not None else xs[i], 100 * pair.published.accuracy))
        ax.plot([xs[i], places[-1][0]], [ys[i], places[-1][1]], ":", color=GREY, linewidth=0.9, zorder=1)
    if not places:
        return np.empty((0, 2))
    found = np.array(places)
    ax.plot(
        *found.T, "D", label="published",
        color=INK, markerfacecolor="white", markersize=4.6, markeredgewidth=0.8, zorder=5,
    )  # fmt: skip
    ax.legend(loc="lower right", frameon=False, fontsize=7, handletextpad=0.2, borderaxespad=0.1)
    return found


def _exchange(group: list[Row], own: np.ndarray) -> np.ndarray:
    """Factors [N] that turn cost in forwards of other weights into forwards of the panel's own, at the same batch."""
    factors = np.ones(len(group))
    seconds = np.array([row.unit_seconds for row in group], float)  # None is nan
    batch = np.array([row.batch_size for row in group])
    for i in np.flatnonzero(~own):
        units = seconds[own & (batch == batch[i])]
        if len(units) and np.isfinite(units).all() and np.isfinite(seconds[i]):
            factors[i] = seconds[i] / np.median(units)
    return factors


def _tick(value: float, _: object) -> str:
    return f"{value:.3g}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _draw_front(ax: Axes, xs: np.ndarray, ys: np.ndarray, larger: bool) -> np.ndarray:
    """Step line through the points of the front: what is reachable at a given price. Returns its corners [N,2]."""
    order = np.argsort(xs)
    xs, ys = xs[order], ys[order]
    if len(xs) > 1:
        ax.step(xs, ys, where="pre" if larger else "post", color=GREY, linewidth=1.1, zorder=1)
    return np.column_stack([xs, ys])


def _error_bars(group: list[Row], ys: np.ndarray) -> np.ndarray:
    """Distances [2,N] of the interval's ends in points."""
    low, high = (100 * np.array([getattr(row.metrics, f"accuracy_{end}") for row in group]) for end in ("low", "high"))
    return np.clip(np.stack([ys - low, high - ys]), 0, None)


def _limits(ax: Axes, xs: np.ndarray, ys: np.ndarray, bars: np.ndarray | None, logarithmic: bool) -> None:
    """Room for labels on all sides, whether there is one point or a hundred."""
    below, above = bars if bars is not None else (np.zeros(0), np.zeros(0))
    low, high = (np.concatenate([sign * end + ys[: len(end)], ys]) for sign, end in ((-1, below), (1, above)))
    height = max(high.max() - low.min(), 6.0)
    ax.set_ylim(low.min() - 0.10 * height, high.max() + 0.14 * height)
    if logarithmic:
        span = (xs.max() / xs.min()) ** 0.10
        ax.set_xlim(xs.min() / span, xs.max() * span**1.5)
    else:
        span = max(xs.max() - xs.min(), abs(xs.max()), 1e-9) if len(set(xs)) == 1 else xs.max() - xs.min()
        ax.set_xlim(xs.min() - 0.14 * span, xs.max() + 0.18 * span)


def _dress(ax: Axes, group: list[Row], axis: Axis, y: str) -> None:
    items = sorted({row.metrics.items for row in group})
    count = f"{items[0]}" if len(items) == 1 else f"{items[0]} to {items[-1]}"
    batches = ", ".join(str(batch) for batch in sorted({row.batch_size for row in group}))
    main = _most([row.weights for row in group])
    model = next(row.model for row in group if row.weights == main)
    wide = figure_of(ax).get_figwidth() > COLUMN_WIDTH
    remark = f"(batch {batches}; {'right' if axis.larger else 'left'} is better)"
    dress(
        ax,
        f"{group[0].task} ({group[0].split}, {count} items), {model}",
        f"{axis.title}{' ' if wide else chr(10)}{remark}",
        SCORES[y].title + (", 95 % interval" if y == "accuracy" else ""),
    )


# --- labels ---------------------------------------------------------------------------------------------------------

_ANGLES = np.deg2rad([20, 160, -20, -160, 60, 120, -60, -120, 90, -90, 0, 180, 40, 140, -40, -140])
_RADII = (7, 11, 16, 23, 32, 44, 60, 80, 105, 140)  # points
_CROWD = 6  # with more methods than this, settings of dominated points stay unnamed
_LEADER_FROM = 14  # a label farther than this from its point gets a line


def _place_labels(ax: Axes, panel: _Panel) -> None:
    """Name every series of a method once, at its most telling point, then settings on the front while there is room."""
    figure = figure_of(ax)
    scale, renderer = figure.dpi / 72, renderer_of(figure)
    points = ax.transData.transform(np.column_stack([panel.x, panel.y]))
    marks = ax.transData.transform(panel.marks) if len(panel.marks) else panel.marks
    taken = [np.concatenate([p - 4 * scale, p + 4 * scale]) for p in (*points, *marks)]
    if legend := ax.get_legend():
        taken.append(np.array(legend.get_window_extent(renderer).extents))
    soft = _soft_obstacles(ax, panel, scale)
    area = np.array(ax.get_window_extent().extents)
    for i, text, size, needed in _wishes(panel):
        method = panel.rows[i].method
        colour = panel.style[method][0]
        for shown in (text, method) if needed else (text,):  # where there is no room for a setting, the name alone
            label = ax.annotate(
                shown,
                xy=(panel.x[i], panel.y[i]),
                xytext=(0, 0),
                textcoords="offset points",
                fontsize=size,
                color=colour,
                ha="center",
                va="center",
                zorder=6,
                fontweight="bold" if needed else "normal",
                annotation_clip=False,
            )
            box = label.get_window_extent(renderer)
            extent = np.array([box.width, box.height])
            spot = _best_spot(points[i], extent, np.array(taken), soft, area, scale, wide=needed)
            if spot is None:
                label.remove()
                continue
            centre, radius = spot
            label.set_position(tuple((centre - points[i]) / scale))
            taken.append(_around(centre, extent * (1.04, 1.15)))
            if radius >= _LEADER_FROM:
                _leader(ax, points[i], _around(centre, extent), colour)
            break


def _wishes(panel: _Panel) -> list[tuple[int, str, float, bool]]:
    """(point, text, size, whether it must be shown): methods first, then settings along the front."""
    rows, main = panel.rows, _most([row.weights for row in panel.rows])
    series: dict[tuple[str, str, str], list[int]] = {}
    for i, row in enumerate(rows):
        series.setdefault((row.method, row.weights, row.device), []).append(i)
    wishes = []
    for (method, weights, device), mine in series.items():
        chosen = max(mine, key=lambda i: (panel.front[i], panel.y[i]))
        text = panel.names[chosen] if len(mine) == 1 else f"{method} {_setting(panel, chosen)}".strip()
        if not panel.own[chosen]:
            text += "\n(other weights)" if weights != main else f"\n(on {device})"
        wishes.append((chosen, text, 8.0, True))
    order = [int(i) for i in np.argsort(panel.x) if i not in {wish[0] for wish in wishes}]
    rest = [i for i in order if panel.front[i]]
    if len({row.method for row in rows}) <= _CROWD:
        rest += [i for i in order if not panel.front[i]]
    return wishes + [(i, _setting(panel, i), 6.8, False) for i in rest]


def _setting(panel: _Panel, i: int) -> str:
    """The label without the method's name."""
    return panel.names[i].removeprefix(panel.rows[i].method).strip()


def _names(rows: list[Row]) -> list[str]:
    """Labels, which tell batch sizes apart in a panel that has several."""
    several = len({row.batch_size for row in rows}) > 1
    return [f"{row.label} b{row.batch_size}" if several else row.label for row in rows]


def _soft_obstacles(ax: Axes, panel: _Panel, scale: float) -> np.ndarray:
    """Error bars and the front line, as boxes [N, 4]: labels keep off them where they can."""
    boxes = []
    if panel.bars is not None:
        for x, y, low, high in zip(panel.x, panel.y, *panel.bars):
            (left, bottom), (_, top) = ax.transData.transform([(x, y - low), (x, y + high)])
            boxes.append((left - scale, bottom, left + scale, top))
    corners = ax.transData.transform(panel.curve) if len(panel.curve) > 1 else np.empty((0, 2))
    for (x0, y0), (x1, y1) in zip(corners[:-1], corners[1:]):
        turn = (x0, y1) if panel.larger else (x1, y0)
        for start, end in (((x0, y0), turn), (turn, (x1, y1))):
            boxes.append((*(np.minimum(start, end) - 0.5 * scale), *(np.maximum(start, end) + 0.5 * scale)))
    return np.array(boxes).reshape(-1, 4)


def _best_spot(
    point: np.ndarray,
    extent: np.ndarray,
    taken: np.ndarray,
    soft: np.ndarray,
    area: np.ndarray,
    scale: float,
    wide: bool,
) -> tuple[np.ndarray, float] | None:
    """Nearest place for a box of this extent around `point` that overlaps nothing; optional labels look only close by.

    Boxes are (x0, y0, x1, y1) in pixels. Returns (centre, distance in points), None when there is no room.
    """
    radii = np.repeat(_RADII if wide else _RADII[:3], len(_ANGLES))
    ways = np.tile(np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)]), (len(radii) // len(_ANGLES), 1))
    sides = np.sign(np.round(ways, 3)) * extent / 2 * np.column_stack([np.abs(ways[:, 0]), np.ones(len(ways))])
    centres = point + ways * radii[:, None] * scale + sides
    boxes = _around(centres, extent)
    free = (boxes[:, :2] >= area[:2]).all(1) & (boxes[:, 2:] <= area[2:]).all(1) & ~_overlaps(boxes, taken).any(1)
    crossed = _overlaps(boxes, soft).sum(1)
    if not wide:
        free &= crossed == 0
    if not free.any():
        return None
    best = int(np.argmin(np.where(free, radii + 9 * crossed, np.inf)))
    return centres[best], float(radii[best])


def _around(centre: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """The boxes [..., 4] of this extent around centres [..., 2]."""
    return np.concatenate([centre - extent / 2, centre + extent / 2], axis=-1)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of boxes [N, 4] touch which of others [M, 4]: [N, M]."""
    a, b = boxes[:, None], others[None]
    return np.all((a[..., :2] <= b[..., 2:]) & (b[..., :2] <= a[..., 2:]), axis=-1)


def _leader(ax: Axes, point: np.ndarray, box: np.ndarray, colour: str) -> None:
    """A thin line from the point to the nearest edge of its label."""
    start, stop = ax.transData.inverted().transform([point, np.clip(point, box[:2], box[2:])])
    ax.plot([start[0], stop[0]], [start[1], stop[1]], color=colour, linewidth=0.6, alpha=0.7, zorder=3)
