"""The other pictures: accuracy and cost against the threshold, accepted lengths, speed against batch size.

All share pareto.py's colours, markers and direct labels. A series is one method (or setting) with one set of weights on
one device; what is not the panel's main series says so in its label, and nothing is averaged.

Left out: thresholds of different units in one panel; each unit has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from dlmbench.errors import RequestError
from dlmbench.report.pareto import COLUMN_WIDTH, plt, save, styles
from dlmbench.runs import Metrics, RunFolder

KINDS = ("pareto", "threshold", "acceptance", "batch")
_INK, _GREY = "#222222", "#8A8A8A"
_LINES = ("-", "--", "-.", ":")  # settings of one method


def threshold_curves(frame: pd.DataFrame, folder: Path, name: str, column: bool = False) -> list[Path]:
    """Accuracy (above, with 95 % intervals) and cost (below) against the threshold: a pair of panels a task and unit.

    Raises RequestError when no method has two settings of its threshold.
    """
    numeric = pd.to_numeric(frame["threshold"], errors="coerce")
    shown = frame.assign(threshold=numeric)[numeric.notna()]
    panels = []
    for (task, split), part in shown.groupby(["task", "split"], sort=False):
        unit = part["threshold_unit"].where(part["threshold_unit"] != "", part["method"])
        for word, group in part.groupby(unit, sort=True):
            if group["threshold"].nunique() > 1:
                axis = f"threshold ({word})" if word == "confidence" else f"{word}: threshold"
                panels.append((f"{task} ({split})", axis, group))
    if not panels:
        raise RequestError(
            "No method was run at several values of its threshold; sweep one, as --threshold 0.3:0.9:0.1."
        )
    return save(lambda: _draw_thresholds(panels, column), folder, name)


def _draw_thresholds(panels: Sequence[tuple[str, str, pd.DataFrame]], column: bool) -> Any:
    across = 1 if column else min(3, len(panels))
    down = -(-len(panels) // across)
    size = (COLUMN_WIDTH, 3.6 * down) if column else (3.9 * across + 0.6, 4.2 * down)
    figure, axes = plt.subplots(2 * down, across, figsize=size, squeeze=False, layout="constrained")
    style = styles(pd.concat([group for *_, group in panels])["method"].unique())
    labels = []
    for n in range(down * across):
        row, place = 2 * (n // across), n % across
        pair = axes[row, place], axes[row + 1, place]
        if n < len(panels):
            labels += _threshold_panel(*pair, *panels[n], style)
        else:
            for ax in pair:
                ax.set_visible(False)
    return _finish(figure, labels)


def _threshold_panel(upper: Any, lower: Any, title: str, word: str, group: pd.DataFrame, style: dict) -> list[tuple]:
    """Accuracy in the upper axes, cost in the lower; the labels to place are returned."""
    priced, labels = group["cost"].notna().all(), []
    main = (group["weights"] + group["device"]).mode()[0]
    for key, series in _series(group, ["method"]):
        series = series.sort_values("threshold")
        colour, marker = style[key[0]]
        own = (series["weights"] + series["device"]).iloc[0] == main
        look = dict(color=colour, marker=marker, markersize=4, linewidth=1.2)
        look |= dict(linestyle="-" if own else "--", markerfacecolor=colour if own else "white")
        y = 100 * series["accuracy"].to_numpy(float)
        ends = np.stack([y - 100 * series["accuracy_low"], 100 * series["accuracy_high"] - y]).clip(0)
        upper.errorbar(series["threshold"], y, ends, capsize=1.5, elinewidth=0.8, **look)
        lower.plot(series["threshold"], series["cost" if priced else "nfe"], **look)
        labels.append((upper, series["threshold"].iloc[-1], y[-1], _name(key, group), colour))
    _dress(upper, title, "", "accuracy (%)")
    _dress(lower, "", word, "cost, forwards" if priced else "NFE")
    lower.set_ylim(0, 1.06 * lower.get_ylim()[1])
    low, high = group["threshold"].min(), group["threshold"].max()
    for ax in (upper, lower):
        ax.set_xlim(low - 0.05 * (high - low), high + 0.42 * (high - low))
        ax.set_xticks([tick for tick in ax.get_xticks() if low - 1e-9 <= tick <= high + 1e-9])
    upper.tick_params(labelbottom=False)
    return labels


def acceptance(runs: Sequence[RunFolder], folder: Path, name: str, column: bool = False) -> list[Path]:
    """How many drafted tokens a verification accepts: a histogram a run, at most twelve a task, the mean marked.

    Raises RequestError when no run drafted anything.
    """
    tasks: dict[str, list[tuple[str, Metrics]]] = {}
    for run in runs:
        if run.metrics.accepted_lengths:
            tasks.setdefault(run.manifest.task.name, []).append((run.manifest.label, run.metrics))
    if not tasks:
        raise RequestError("No run drafted tokens, so nothing was accepted; simsd and mrp (mode=speculative) draft.")
    for task, drafting in tasks.items():
        drafting.sort(key=lambda pair: pair[0])
        if len(drafting) > 12:
            raise RequestError(
                f"{len(drafting)} runs drafted on {task} and a figure shows twelve: name the run folders to show."
            )
    return save(lambda: _draw_acceptance(tasks, column), folder, name)


def _draw_acceptance(tasks: dict[str, list[tuple[str, Metrics]]], column: bool) -> Any:
    most = max(map(len, tasks.values()))
    across = min(2 if column else 4, most)
    rows = [(task, row[i : i + across]) for task, row in tasks.items() for i in range(0, len(row), across)]
    size = (COLUMN_WIDTH, 2.0 * len(rows)) if column else (max(2.5 * across, 3.4), 2.5 * len(rows))
    figure, axes = plt.subplots(len(rows), across, figsize=size, squeeze=False, layout="constrained")
    longest = max(int(length) for row in tasks.values() for _, metrics in row for length in metrics.accepted_lengths)
    for (task, row), line in zip(rows, axes):
        for ax, (label, metrics) in zip(line, row):
            _histogram(ax, f"{label}, {task}", metrics, longest)
        for ax in line[len(row) :]:
            ax.set_visible(False)
    return figure


def _histogram(ax: Any, title: str, metrics: Metrics, longest: int) -> None:
    lengths = {int(length): count for length, count in metrics.accepted_lengths.items()}
    total = sum(lengths.values())
    mean = sum(length * count for length, count in lengths.items()) / total
    bars = range(longest + 1)
    ax.bar(bars, [100 * lengths.get(n, 0) / total for n in bars], color="#0072B2", width=0.8)
    ax.axvline(mean, color=_INK, linewidth=1, linestyle="--")
    lines = wrap(title, 27, break_on_hyphens=False)
    lines.append(f"mean {mean:.1f}, {100 * (metrics.acceptance or 0):.0f} % of drafts")
    _dress(ax, "\n".join(lines), "accepted tokens", "verifications (%)", size=8)
    ax.xaxis.get_major_locator().set_params(integer=True)


def batch_curves(frame: pd.DataFrame, folder: Path, name: str, column: bool = False) -> list[Path]:
    """Decoded tokens/s against batch size, with the range of the repeats: one panel a task and device.

    Raises RequestError when no setting was timed at two batch sizes.
    """
    timed = frame[frame["tps_decode"].notna()]
    panels = [
        (f"{task} ({split}), {device}", group)
        for (task, split, device), group in timed.groupby(["task", "split", "device"], sort=False)
        if group["batch_size"].nunique() > 1
    ]
    if not panels:
        raise RequestError("No setting was timed at several batch sizes; sweep them, as --batch-size 1,4,16.")
    return save(lambda: _draw_batches(panels, column), folder, name)


def _draw_batches(panels: Sequence[tuple[str, pd.DataFrame]], column: bool) -> Any:
    down, across = (len(panels), 1) if column else (1, len(panels))
    size = (COLUMN_WIDTH, 2.8 * down) if column else (4.3 * across + 0.6, 3.5)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    style = styles(pd.concat([group for _, group in panels])["method"].unique())
    labels = []
    for ax, (title, group) in zip(axes.flat, panels):
        seen: dict[str, int] = {}
        for key, series in _series(group, ["method", "label"]):
            series = series.sort_values("batch_size")
            colour, marker = style[key[0]]
            line = _LINES[seen.setdefault(key[0], 0) % len(_LINES)]
            seen[key[0]] += 1
            x, y = series["batch_size"].to_numpy(float), series["tps_decode"].to_numpy(float)
            ax.fill_between(
                x, series["tps_decode_low"], series["tps_decode_high"], color=colour, alpha=0.15, linewidth=0
            )
            ax.plot(x, y, color=colour, marker=marker, linestyle=line, markersize=4, linewidth=1.2)
            labels.append((ax, x[-1], y[-1], _name(key[1:], group), colour))
        sizes = sorted(group["batch_size"].unique())
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [str(one) for one in sizes])
        ax.minorticks_off()
        ax.set_xlim(sizes[0] / 1.15, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.45)
        words = group["speed_label"].dropna().unique()
        _dress(
            ax,
            title,
            "batch size" + "".join(f"\n({str(word).partition(':')[0]})" for word in words),
            "tokens/s, decode only",
        )
        ax.set_ylim(0)
    return _finish(figure, labels)


# --- shared ---------------------------------------------------------------------------------------------------------


def _series(group: pd.DataFrame, names: list[str]) -> list[tuple[tuple, pd.DataFrame]]:
    """Rows that may be joined by a line: same `names`, weights, hardware, precision, cache, seed; the key first."""
    same = [*names, "model", "weights", "device", "dtype", "cache", "seed"]
    if "label" not in names and group["batch_size"].nunique() > 1:
        same.append("batch_size")
    return [(key, part) for key, part in group.groupby(same, sort=False)]


def _name(key: tuple, group: pd.DataFrame) -> str:
    """What a series is called: its method or label, and what tells it from others in the panel."""
    name, *rest = key
    columns = ("model", "weights", "device", "dtype", "cache", "seed", "batch_size")
    telling = [
        f"{word}{value}"
        for column, value, word in zip(columns, rest, ("", "weights ", "", "", "", "seed ", "batch "))
        if group[column].nunique() > 1 and not (column == "weights" and group["model"].nunique() > 1)
    ]
    return name + (f"\n({', '.join(str(one)[:24] for one in telling)})" if telling else "")


def _dress(ax: Any, title: str, x: str, y: str, size: float = 9.5) -> None:
    if title:
        ax.set_title(title, loc="left", fontsize=size, color=_INK)
    ax.set_xlabel(x, color=_INK)
    ax.set_ylabel(y, color=_INK)
    ax.tick_params(color=_GREY, labelcolor=_INK)
    ax.grid(color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _finish(figure: Any, labels: Sequence[tuple[Any, float, float, str, str]]) -> Any:
    """Put each name right of its line's last point; names that would overlap are moved apart and get a leader."""
    figure.canvas.draw()
    figure.set_layout_engine("none")
    for ax in dict.fromkeys(label[0] for label in labels):
        mine = sorted((label for label in labels if label[0] is ax), key=lambda label: label[2])
        made = [
            ax.annotate(
                text,
                (x, y),
                (9, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                fontsize=7.5,
                annotation_clip=False,
            )
            for _, x, y, text, colour in mine
        ]
        heights = [one.get_window_extent().height for one in made]
        wanted = [float(ax.transData.transform((x, y))[1]) for _, x, y, *_ in mine]
        for one, (_, x, y, _, colour), place, before in zip(made, mine, _apart(wanted, heights), wanted):
            shift = (place - before) * 72 / figure.dpi
            one.set_position((9, shift))
            if abs(shift) > 3:
                ends = {"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
                ax.annotate("", (x, y), (8, shift), textcoords="offset points", arrowprops=ends, annotation_clip=False)
    return figure


def _apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
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
