"""The other pictures: accuracy and cost against the threshold, accepted lengths, speed against batch size.

A series is one method (or setting) with one set of weights on one device; what is not the panel's main series says so
in its label, and nothing is averaged.

Left out: thresholds of different units in one panel; each unit has its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dlmbench.analysis.row import Row
from dlmbench.analysis.text import told
from dlmbench.errors import RequestError
from dlmbench.report.figures.style import COLUMN_WIDTH, INK, dress, save, styles, subplots
from dlmbench.runs.record import Metrics, Rate

_LINES = ("-", "--", "-.", ":")  # settings of one method


@dataclass(frozen=True)
class Panel:
    """Rows that share a pair of axes."""

    title: str
    axis: str
    rows: list[Row]


@dataclass(frozen=True)
class Name:
    """What is written at the end of a line."""

    ax: Axes
    x: float
    y: float
    text: str
    colour: str


def threshold_curves(rows: Sequence[Row], folder: Path, name: str, column: bool = False) -> list[Path]:
    """Accuracy (above, with 95 % intervals) and cost (below) against the threshold: a pair of panels a task and unit.

    Raises RequestError when no method has two settings of its threshold.
    """
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.manifest.threshold is not None:
            unit = row.manifest.threshold_unit or row.method
            found.setdefault((row.task, row.split, unit), []).append(row)
    panels = [
        Panel(f"{task} ({split})", f"threshold ({unit})" if unit == "confidence" else f"{unit}: threshold", part)
        for (task, split, unit), part in sorted(found.items(), key=lambda pair: pair[0])
        if len({row.manifest.threshold for row in part}) > 1
    ]
    if not panels:
        raise RequestError(
            "No method was run at several values of its threshold; sweep one, as --threshold 0.3:0.9:0.1."
        )
    return save(lambda: draw_thresholds(panels, column), folder, name)


def draw_thresholds(panels: Sequence[Panel], column: bool) -> Figure:
    """Two rows of axes for each row of panels."""
    across = 1 if column else min(3, len(panels))
    down = -(-len(panels) // across)
    figure, axes = subplots(
        2 * down, across, (COLUMN_WIDTH, 3.6 * down) if column else (3.9 * across + 0.6, 4.2 * down)
    )
    style = styles([row.method for panel in panels for row in panel.rows])
    names: list[Name] = []
    for n in range(down * across):
        line, place = 2 * (n // across), n % across
        pair = axes[line, place], axes[line + 1, place]
        if n < len(panels):
            names += _threshold_panel(*pair, panels[n], style)
        else:
            for ax in pair:
                ax.set_visible(False)
    return _finish(figure, names)


def _threshold_panel(upper: Axes, lower: Axes, panel: Panel, style: dict[str, tuple[str, str]]) -> list[Name]:
    """Accuracy in the upper axes, cost in the lower."""
    rows, names = panel.rows, []
    priced = all(row.cost is not None for row in rows)
    main = Counter(row.weights + row.device for row in rows).most_common(1)[0][0]
    for series in _series(rows, lambda row: row.method):
        series.rows.sort(key=lambda row: row.manifest.threshold or 0.0)
        first = series.rows[0]
        colour, marker = style[first.method]
        own = first.weights + first.device == main
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.2}
        look |= {"linestyle": "-" if own else "--", "markerfacecolor": colour if own else "white"}
        x = np.array([row.manifest.threshold for row in series.rows], float)
        y, low, high = (
            np.array([100 * getattr(row.metrics, name) for row in series.rows])
            for name in ("accuracy", "accuracy_low", "accuracy_high")
        )
        upper.errorbar(x, y, np.stack([y - low, high - y]).clip(0), capsize=1.5, elinewidth=0.8, **look)
        lower.plot(x, [(row.cost or 0.0) if priced else row.nfe for row in series.rows], **look)
        names.append(Name(upper, x[-1], y[-1], series.name, colour))
    dress(upper, panel.title, "", "accuracy (%)")
    dress(lower, "", panel.axis, "cost, forwards" if priced else "NFE")
    lower.set_ylim(0, 1.06 * lower.get_ylim()[1])
    values = [row.manifest.threshold or 0.0 for row in rows]
    left, right = min(values), max(values)
    for ax in (upper, lower):
        ax.set_xlim(left - 0.05 * (right - left), right + 0.42 * (right - left))
        ax.set_xticks([tick for tick in ax.get_xticks() if left - 1e-9 <= tick <= right + 1e-9])
    upper.tick_params(labelbottom=False)
    return names


def acceptance(rows: Sequence[Row], folder: Path, name: str, column: bool = False) -> list[Path]:
    """How many drafted tokens a verification accepts: a histogram a run, at most twelve a task, the mean marked.

    Raises RequestError when no run drafted anything.
    """
    tasks: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.label):
        if row.metrics.accepted_lengths:
            tasks.setdefault(row.task, []).append(row)
    if not tasks and any(row.metrics.acceptance is not None for row in rows):
        raise RequestError("The lengths that these runs accepted did not come along with them; run the sweep again.")
    if not tasks:
        raise RequestError("No run drafted tokens, so nothing was accepted; simsd and mrp (mode=speculative) draft.")
    for task, drafting in tasks.items():
        if len(drafting) > 12:
            raise RequestError(
                f"{len(drafting)} runs drafted on {task} and a figure shows twelve: name the run folders to show."
            )
    return save(lambda: _draw_acceptance(tasks, column), folder, name)


def _draw_acceptance(tasks: dict[str, list[Row]], column: bool) -> Figure:
    most = max(map(len, tasks.values()))
    across = min(2 if column else 4, most)
    lines = [drafting[i : i + across] for drafting in tasks.values() for i in range(0, len(drafting), across)]
    size = (COLUMN_WIDTH, 2.0 * len(lines)) if column else (max(2.5 * across, 3.4), 2.5 * len(lines))
    figure, axes = subplots(len(lines), across, size)
    longest = max(int(length) for line in lines for row in line for length in row.metrics.accepted_lengths)
    for line, places in zip(lines, axes):
        for ax, row in zip(places, line):
            _histogram(ax, f"{row.label}, {row.task}", row.metrics, longest)
        for ax in places[len(line) :]:
            ax.set_visible(False)
    return figure


def _histogram(ax: Axes, title: str, metrics: Metrics, longest: int) -> None:
    lengths = {int(length): count for length, count in metrics.accepted_lengths.items()}
    total = sum(lengths.values())
    mean = sum(length * count for length, count in lengths.items()) / total
    bars = range(longest + 1)
    ax.bar(bars, [100 * lengths.get(n, 0) / total for n in bars], color="#0072B2", width=0.8)
    ax.axvline(mean, color=INK, linewidth=1, linestyle="--")
    lines = wrap(title, 27, break_on_hyphens=False)
    lines.append(f"mean {mean:.1f}, {100 * (metrics.acceptance or 0):.0f} % of drafts")
    dress(ax, "\n".join(lines), "accepted tokens", "verifications (%)", size=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def batch_curves(rows: Sequence[Row], folder: Path, name: str, column: bool = False) -> list[Path]:
    """Decoded tokens/s against batch size, with the range of the repeats: one panel a task and device.

    Raises RequestError when no setting was timed at two batch sizes.
    """
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.metrics.speed:
            found.setdefault((row.task, row.split, row.device), []).append(row)
    panels = [
        Panel(f"{task} ({split}), {device}", "batch size", part)
        for (task, split, device), part in found.items()
        if len({row.batch_size for row in part}) > 1
    ]
    if not panels:
        raise RequestError("No setting was timed at several batch sizes; sweep them, as --batch-size 1,4,16.")
    return save(lambda: _draw_batches(panels, column), folder, name)


def _draw_batches(panels: Sequence[Panel], column: bool) -> Figure:
    down, across = (len(panels), 1) if column else (1, len(panels))
    figure, axes = subplots(down, across, (COLUMN_WIDTH, 2.8 * down) if column else (4.3 * across + 0.6, 3.5))
    style = styles([row.method for panel in panels for row in panel.rows])
    names = [name for ax, panel in zip(axes.flat, panels) for name in _batch_panel(ax, panel, style)]
    return _finish(figure, names)


def _batch_panel(ax: Axes, panel: Panel, style: dict[str, tuple[str, str]]) -> list[Name]:
    names: list[Name] = []
    seen: Counter[str] = Counter()
    for series in _series(panel.rows, lambda row: row.label, but="batch_size"):
        series.rows.sort(key=lambda row: row.batch_size)
        speeds = [(row.batch_size, row.metrics.speed) for row in series.rows]
        timed = [(size, speed.decode) for size, speed in speeds if speed and speed.decode]
        method = series.rows[0].method
        colour, marker = style[method]
        x = [size for size, _ in timed]
        rates: list[Rate] = [rate for _, rate in timed]
        line = _LINES[seen[method] % len(_LINES)]
        seen[method] += 1
        ax.fill_between(
            x, [rate.low for rate in rates], [rate.high for rate in rates], color=colour, alpha=0.15, linewidth=0
        )
        y = [rate.median for rate in rates]
        ax.plot(x, y, color=colour, marker=marker, linestyle=line, markersize=4, linewidth=1.2)
        names.append(Name(ax, x[-1], y[-1], series.name, colour))
    sizes = sorted({row.batch_size for row in panel.rows})
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(one) for one in sizes])
    ax.minorticks_off()
    ax.set_xlim(sizes[0] / 1.15, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.45)
    labels = dict.fromkeys(row.metrics.speed.label for row in panel.rows if row.metrics.speed)
    words = "".join(f"\n({label.partition(':')[0]})" for label in labels if label)
    dress(ax, panel.title, panel.axis + words, "tokens/s, decode only")
    ax.set_ylim(0)
    return names


# --- shared ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """Rows that a line joins, and its name."""

    name: str
    rows: list[Row]


def _series(rows: Sequence[Row], name: Callable[[Row], str], but: str = "") -> list[Series]:
    """Rows of one `name` that are comparable (in all `but` one option); what tells a series from the panel's others
    stands in its name."""

    def facts(row: Row) -> dict[str, Hashable]:
        shared = {key: value for key, value in row.paired.items() if key not in (but, "weights", "prompt_hash")}
        return {"model": row.model, "weights": row.weights, **shared}

    all_facts = [facts(row) for row in rows]
    differing = [key for key in all_facts[0] if len({fact[key] for fact in all_facts}) > 1]
    if "model" in differing:
        differing = [key for key in differing if key != "weights"]
    found: dict[tuple[Hashable, ...], list[Row]] = {}
    for row, fact in zip(rows, all_facts):
        found.setdefault((name(row), *fact.values()), []).append(row)
    return [
        Series(name(part[0]) + _telling([told(key, facts(part[0])[key]) for key in differing]), part)
        for part in found.values()
    ]


def _telling(words: Sequence[str]) -> str:
    return f"\n({', '.join(word[:24] for word in words)})" if words else ""


def _finish(figure: Figure, names: Sequence[Name]) -> Figure:
    """Put each name right of its line's last point; names that would overlap are moved apart and get a leader."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    beside: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}
    for ax in dict.fromkeys(name.ax for name in names):
        mine = sorted((name for name in names if name.ax is ax), key=lambda name: name.y)
        made = [
            ax.annotate(one.text, (one.x, one.y), (9, 0), va="center", color=one.colour, fontsize=7.5, **beside)
            for one in mine
        ]
        heights = [one.get_window_extent().height for one in made]
        wanted = [float(ax.transData.transform((one.x, one.y))[1]) for one in mine]
        for label, one, place, before in zip(made, mine, apart(wanted, heights), wanted):
            shift = (place - before) * 72 / figure.dpi
            label.set_position((9, shift))
            if abs(shift) > 3:
                ends = {"arrowstyle": "-", "color": one.colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
                ax.annotate("", (one.x, one.y), (8, shift), arrowprops=ends, **beside)
    return figure


def apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places near the wanted ones (in rising order) that keep boxes of these heights apart."""
    places = list(wanted)
    for _ in range(200):
        moved = False
        for i in range(len(places) - 1):
            gap = (heights[i] + heights[i + 1]) / 2 + 1 - (places[i + 1] - places[i])
            if gap > 0.01:
                places[i], places[i + 1], moved = places[i] - gap / 2, places[i + 1] + gap / 2, True
        if not moved:
            break
    return places
