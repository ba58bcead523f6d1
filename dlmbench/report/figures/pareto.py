"""The picture: accuracy against cost, one panel a task, the front drawn and everything named where it stands.

One model by default, the one that most can be said of; tasks in which no setting can be told from another are a line
below the panels. A method is a colour, a marker, a line through its settings and a direct label; points that another
setting beats are faded. Fronts are computed a series: rows whose target has other weights, or that ran on other
hardware, on another number of items or with another seed than most of a panel get hollow markers and a word on it.
What the ideal model reaches, where it was run on the task, is a grey area's edge behind the points. Published figures
are grey diamonds, tied to our point of the same setting by a dotted line. Labels are placed by a small search
(labels.py).
Colours follow Okabe and Ito and differ in lightness; markers differ too, so the figure survives grey printing.
curves.py has the other pictures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from textwrap import wrap
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dlmbench.analysis.parts import IDEAL, is_ideal
from dlmbench.analysis.published import Pair
from dlmbench.analysis.row import Row
from dlmbench.errors import RequestError
from dlmbench.report.answer import decided, undecided
from dlmbench.report.columns import COLUMNS, Axis
from dlmbench.report.figures.labels import Wish, place
from dlmbench.report.figures.style import COLUMN_WIDTH, GREY, INK, LINE, dress, figure_of, save, styles, subplots
from dlmbench.stats import pareto_front

AXES = {column.axis.name: column.axis for column in COLUMNS if column.axis}  # --x
SCORES = {  # --y
    name: Axis(name, attrgetter(f"metrics.{name}"), f"{name} (%)", True) for name in ("accuracy", "strict", "flexible")
}
OWN_PANEL = 3  # settings from which on weights get a panel of their own
ALL = "all"
LARGE = 1e5  # amounts from here on are written with a letter


@dataclass(frozen=True)
class Shown:
    """What a figure draws: panels of rows, and a line for every task that has none."""

    panels: list[list[Row]]
    ideal: list[Row]
    captions: list[str]


def plot(
    rows: Sequence[Row],
    folder: str | Path,
    x: str = "cost",
    y: str = "accuracy",
    name: str = "pareto",
    published: Sequence[Pair] = (),
    column: bool = False,
    model: str | None = None,
) -> list[Path]:
    """Write the figure of these rows as ``folder/name.{png,svg,pdf}``; the paths are returned.

    x: an axis, or several with commas between them, a panel each; published: pairs to overlay; column: sized for one
    column of a page, panels below each other; model: "all", or one of the rows', by default the one of which most
    can be said. Raises RequestError when an axis or model is unknown or no row has a value on an axis.
    """
    axes = x.split(",")
    for one, known in (*((one, AXES) for one in axes), (y, SCORES)):
        if one not in known:
            raise RequestError(f"Axis {one!r} is unknown; choose one of {', '.join(known)}.")
        if known is AXES and not placed(rows, one, y):
            why = " (it is counted from samples, which did not come along)" if one in ("bytes", "flops", "8b") else ""
            raise RequestError(f"No row has a value for {one}{why}; choose another --x or finish the runs first.")
    models = list(dict.fromkeys(row.model for row in rows))
    if model not in (None, ALL, *models):
        raise RequestError(f"No run here is of model {model!r}; --model takes {', '.join(models)} or all.")
    return save(lambda: draw(rows, x, y, published, column, model), folder, name)


def placed(rows: Iterable[Row], x: str, y: str) -> list[Row]:
    """The rows that have a place in the figure."""
    return [row for row in rows if AXES[x].value(row) is not None and SCORES[y].value(row) is not None]


def draw(
    rows: Sequence[Row],
    x: str,
    y: str,
    published: Sequence[Pair] = (),
    column: bool = False,
    model: str | None = ALL,
) -> Figure:
    """The figure: a panel a task, weights and axis, at most three a line; one below the other in a column."""
    axes = x.split(",")
    shown = chosen(placed(rows, axes[0], y), model)
    panels = [(known, one) for part in shown.panels for one in axes if (known := placed(part, one, y))]
    across = 1 if column else min(3, len(panels))
    down = -(-len(panels) // across)
    width, high = (COLUMN_WIDTH, 3.1) if column else (max(4.6 * across, 5.2), 3.9)
    captions = [line for text in shown.captions for line in wrap(text, round(15 * width))]
    below = 0.15 * len(captions)
    figure, places = subplots(down, across, (width, high * down + below), layout=None)
    _fix_margins(figure, down, across, below)
    style = styles([row.method for part in shown.panels for row in part])
    for ax in places.flat[len(panels) :]:
        ax.set_visible(False)
    drawn = [
        (ax, _panel(ax, part, one, y, style, published, shown.ideal)) for ax, (part, one) in zip(places.flat, panels)
    ]
    for ax, panel in drawn:
        place(ax, _wishes(panel), np.concatenate([np.column_stack([panel.x, panel.y]), panel.marks]), panel.lines)
    if captions:
        figure.text(0.1 / width, 0.08 / figure.get_figheight(), "\n".join(captions), fontsize=7, color=INK, va="bottom")
    return figure


def chosen(rows: Sequence[Row], model: str | None) -> Shown:
    """The panels of a model ("all": of all; None: of the one with most settings in tasks that tell them apart).

    Tasks in which no setting can be told from another are left to a line each, unless nothing else is there.
    """
    ideal = [row for row in rows if is_ideal(row)]
    rest = [row for row in rows if not row.manifest.spec.model.startswith(IDEAL)] or list(rows)
    tasks: dict[tuple[str, str], list[Row]] = {}
    for row in rest:
        tasks.setdefault((row.task, row.split), []).append(row)
    panels = [part for group in tasks.values() for part in by_weights(group)]
    if model is None:
        told = Counter(main_model(part) for part in panels for _ in part if _telling(part))
        model = _most(list(told.elements()) or [main_model(part) for part in panels for _ in part])
    if model != ALL:
        panels = [part for part in panels if main_model(part) == model]
    telling = [part for part in panels if _telling(part)]
    if not telling:
        return Shown(panels, ideal, [])
    silent = dict.fromkeys(row.group for part in panels if part not in telling for row in part)
    lines = [undecided(group, group.rows[0].model if model == ALL else "") for group in silent if len(group.rows) > 1]
    return Shown(telling, ideal, lines)


def main_model(part: Sequence[Row]) -> str:
    """The model that most rows of a panel have."""
    return _most([row.model for row in part])


def _telling(part: Sequence[Row]) -> bool:
    return any(decided(row.group) for row in part)


def _fix_margins(figure: Figure, down: int, across: int, captions: float) -> None:
    """Room around the panels in inches, the same in every figure: finding it anew takes as long as drawing it, and
    labels can be placed in final pixels at once."""
    wide, high = figure.get_size_inches()
    left, right, above = 0.58, 0.12, 0.32
    below = 0.62 if wide <= COLUMN_WIDTH else 0.48  # two lines below an axis, or one
    panel_width = (wide - across * (left + right)) / across
    panel_height = (high - captions - down * (below + above)) / down
    figure.subplots_adjust(
        left=left / wide,
        right=1 - right / wide,
        bottom=(below + captions) / high,
        top=1 - above / high,
        wspace=(left + right) / panel_width,
        hspace=(below + above) / panel_height,
    )


def _most(values: Sequence[str]) -> str:
    """The most frequent value; of equals the first in the alphabet."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


class Series(NamedTuple):
    """What rows share that one front is drawn through."""

    weights: str
    device: str
    items: int
    seed: int

    def remark(self, main: Series) -> str:
        """What it differs in from the panel's main one, in words."""
        words = ("other weights", f"on {self.device}", f"{self.items} items", f"seed {self.seed}")
        return next((word for word, ours, theirs in zip(words, self, main) if ours != theirs), "")


def series_of(group: Sequence[Row]) -> list[Series]:
    return [Series(row.weights, row.device, row.metrics.items, row.manifest.spec.seed) for row in group]


def own_series(group: Sequence[Row]) -> np.ndarray:
    """[rows]: is it of the panel's main series, that of most rows?"""
    main = _main(group)
    return np.array([one == main for one in series_of(group)])


def _main(group: Sequence[Row]) -> Series:
    counts = Counter(series_of(group))
    return min(counts, key=lambda one: (-counts[one], -one.items, one))


def by_weights(group: list[Row]) -> list[list[Row]]:
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
    lines: list[np.ndarray]  # each [corners, 2]: what labels should not cross
    front: np.ndarray  # [rows]: is it on the front of its series?
    own: np.ndarray  # [rows]: is it of the panel's main series?
    marks: np.ndarray  # [published, 2]
    style: dict[str, tuple[str, str]]


def _panel(
    ax: Axes,
    group: list[Row],
    x: str,
    y: str,
    style: dict[str, tuple[str, str]],
    published: Sequence[Pair],
    ideal: Sequence[Row] = (),
) -> _Panel:
    """Draw one panel."""
    larger = AXES[x].larger
    series, own = series_of(group), own_series(group)
    xs, ys = (np.array([axis.value(row) for row in group], float) for axis in (AXES[x], SCORES[y]))
    ys = 100 * ys
    if x == "cost":
        xs = xs * exchange(group, own)
    front = np.zeros(len(group), dtype=bool)
    for one in set(series):
        chosen = np.array([row == one for row in series])
        front[chosen] = pareto_front(xs[chosen], ys[chosen], larger)
    logarithmic = bool(xs.min() > 0 and xs.max() / xs.min() > 8)
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    if logarithmic or xs.max() >= LARGE:
        ax.xaxis.set_major_formatter(FuncFormatter(_tick))
    lines = [_draw_front(ax, xs[own & front], ys[own & front], larger)]
    bars = _error_bars(group, ys) if y == "accuracy" else None
    lines += _draw_threads(ax, group, xs, ys, own, style)
    lines += [] if bars is None else [np.array([[a, b - low], [a, b + high]]) for a, b, low, high in zip(xs, ys, *bars)]
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
            markersize=8.5 if marker == "*" else 5.2,
            alpha=strength,
            markerfacecolor=colour if own[i] else "white",
            markeredgewidth=1.0,
            zorder=4,
        )
    marks = _overlay(ax, group, xs, ys, x, published) if y == "accuracy" else np.empty((0, 2))
    _limits(ax, xs, np.concatenate([ys, marks[:, 1]]), bars, logarithmic)
    asked = {_asked(row) for row in group}
    _draw_ideal(ax, [row for row in ideal if _asked(row) in asked], x, y)
    _dress(ax, group, AXES[x], y)
    return _Panel(group, _names(group), xs, ys, lines, front, own, marks, style)


def _asked(row: Row) -> tuple[str, str, float]:
    """What the ideal model has to share with a panel: it draws, too, only where the others draw."""
    return row.task, row.split, row.manifest.spec.temperature


def _draw_ideal(ax: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    """The front of the ideal model on this task, behind everything; what it never reaches stays white."""
    rows = placed(rows, x, y)
    if not rows:
        return
    xs, ys = (np.array([axis.value(row) for row in rows], float) for axis in (AXES[x], SCORES[y]))
    front = pareto_front(xs.tolist(), ys.tolist(), AXES[x].larger)
    order = np.argsort(xs[front])
    xs, ys = xs[front][order], 100 * ys[front][order]
    left, right = ax.get_xlim()
    where: Literal["pre", "post"]
    if AXES[x].larger:  # whoever is as accurate at more is as accurate at less
        xs, ys, where = np.append(left, xs), np.append(ys[0], ys), "pre"
    else:
        xs, ys, where = np.append(xs, right), np.append(ys, ys[-1]), "post"
    ax.fill_between(xs, ys, 0, step=where, color=LINE, alpha=0.55, linewidth=0, zorder=0)
    ax.step(xs, ys, where=where, color=GREY, linewidth=0.8, linestyle=":", zorder=0, label="ideal model")
    ax.set_xlim(left, right)
    ax.legend(loc="lower right", frameon=False, fontsize=7, borderaxespad=0.1)


def _draw_threads(
    ax: Axes, group: list[Row], xs: np.ndarray, ys: np.ndarray, own: np.ndarray, style: dict[str, tuple[str, str]]
) -> list[np.ndarray]:
    """A line joins settings that differ in numbers only; returns the lines, each [settings, 2]."""
    kinds = np.array([re.sub(r"\d+(\.\d+)?", "#", row.label) for row in group])
    found = []
    for kind in dict.fromkeys(kinds):
        mine = np.flatnonzero((kinds == kind) & own)
        mine = mine[np.argsort(xs[mine])]
        if mine.size > 1:
            colour = style[group[mine[0]].method][0]
            ax.plot(xs[mine], ys[mine], color=colour, linewidth=1.0, alpha=0.45, zorder=1)
            found.append(np.column_stack([xs[mine], ys[mine]]))
    return found


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


def exchange(group: list[Row], own: np.ndarray) -> np.ndarray:
    """Factors [N] that turn cost in forwards of other weights into forwards of the panel's own, at the same batch."""
    factors = np.ones(len(group))
    seconds = np.array([row.unit_seconds for row in group], float)  # None is nan
    batch = np.array([row.batch_size for row in group])
    ours = {(row.weights, row.device) for row, mine in zip(group, own) if mine}
    for i in (i for i, row in enumerate(group) if (row.weights, row.device) not in ours):
        units = seconds[own & (batch == batch[i])]
        if len(units) and np.isfinite(units).all() and np.isfinite(seconds[i]):
            factors[i] = seconds[i] / np.median(units)
    return factors


def _tick(value: float, _: object) -> str:
    """``200``, ``500 M``."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (LARGE, " k")):
        if value >= size:
            return f"{value / (1e3 if letter == ' k' else size):.3g}{letter}"
    return f"{value:.3g}"


def _draw_front(ax: Axes, xs: np.ndarray, ys: np.ndarray, larger: bool) -> np.ndarray:
    """Step line through the points of the front: what is reachable at a given price. Returns its corners [N,2]."""
    order = np.argsort(xs)
    xs, ys = xs[order], ys[order]
    if len(xs) > 1:
        ax.step(xs, ys, where="pre" if larger else "post", color=GREY, linewidth=1.3, zorder=1)
    turns = np.column_stack([xs[:-1], ys[1:]] if larger else [xs[1:], ys[:-1]])
    points = np.column_stack([xs, ys])
    return np.concatenate([np.stack([points[:-1], turns], 1).reshape(-1, 2), points[-1:]])


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
    ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= 100 and low.min() - 0.1 * height <= tick])
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
    batch = f"batch {batches}; " if axis.batched else ""
    remark = f"({batch}{'right' if axis.larger else 'left'} is better)"
    dress(
        ax,
        f"{group[0].task} ({group[0].split}, {count} items), {model}",
        f"{axis.title}{' ' if wide else chr(10)}{remark}",
        SCORES[y].title + (", 95 % interval" if y == "accuracy" else ""),
    )


# --- what is written beside points ----------------------------------------------------------------------------------

_CROWD = 6  # with more methods than this, settings of dominated points stay unnamed
_LONG = 22  # letters of a setting beside its method's name


def _wishes(panel: _Panel) -> list[Wish]:
    """Methods first, each at its most telling point, then settings along the front."""
    rows, main = panel.rows, _main(panel.rows)
    series: dict[tuple[str, Series], list[int]] = {}
    for i, (row, one) in enumerate(zip(rows, series_of(rows))):
        series.setdefault((row.method, one), []).append(i)
    wishes = {}
    for (method, one), mine in series.items():
        best = max(mine, key=lambda i: (panel.front[i], panel.y[i]))
        setting = panel.names[best]
        texts = [f"{method} {setting}".strip() if len(setting) <= _LONG else method, method]
        if not panel.own[best]:
            texts = [f"{text}\n({one.remark(main)})" for text in texts[:1]] + texts[1:]
        wishes[best] = _wish(panel, best, tuple(texts), needed=True)
    order = [int(i) for i in np.argsort(panel.x) if i not in wishes]
    rest = [i for i in order if panel.front[i]]
    if len({row.method for row in rows}) <= _CROWD:
        rest += [i for i in order if not panel.front[i]]
    named = [i for i in rest if 0 < len(panel.names[i]) <= _LONG]
    return [*wishes.values(), *(_wish(panel, i, (panel.names[i],), needed=False) for i in named)]


def _wish(panel: _Panel, i: int, texts: tuple[str, ...], needed: bool) -> Wish:
    colour = panel.style[panel.rows[i].method][0]
    return Wish(panel.x[i], panel.y[i], texts, colour, 8.0 if needed else 6.8, needed)


def _names(rows: list[Row]) -> list[str]:
    """Settings without their method's name and without what all of its settings here share; with the batch size in a
    panel that has several."""
    several = len({row.batch_size for row in rows}) > 1
    labels = [row.label.removeprefix(row.method).split() for row in rows]
    shared: dict[str, set[str]] = {}
    for row, words in zip(rows, labels):
        shared[row.method] = shared.get(row.method, set(words)) & set(words)
    alone = Counter(row.method for row in rows)
    return [
        " ".join(
            [word for word in words if word not in shared[row.method] or alone[row.method] == 1]
            + [f"b{row.batch_size}"] * several
        )
        for row, words in zip(rows, labels)
    ]
