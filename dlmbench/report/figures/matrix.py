"""Decoders beside each other: what each costs, and what breaks where.

A decoder stands there at one setting of each group: the one chosen on dev items, where the sweep did so; else the
cheapest that loses at most the margin, and where none does the one that loses least. Groups without one token a step
are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dlmbench.analysis import text
from dlmbench.analysis.parts import IDEAL
from dlmbench.analysis.row import REFERENCE, Group, Row
from dlmbench.errors import RequestError
from dlmbench.report.answer import STRESS
from dlmbench.report.figures.style import COLUMN_WIDTH, GREY, INK, LINE, dress, save, styles, subplots
from dlmbench.stats import MARGIN, points

_LOSS = LinearSegmentedColormap.from_list("loss", ["#A03A00", "#F3C9A8", "#FFFFFF", "#BFD9EC", "#0072B2"])
_MOST = 50.0  # points of a loss from which on the colour does not change


def cost_ratios(rows: Sequence[Row], folder: Path, name: str, column: bool = False) -> list[Path]:
    """Cost of each decoder as a share of one token a step: a panel a task, model and machine, the cheapest above.

    Hollow: worse than one token a step. Raises RequestError where nothing can be compared.
    """
    groups = _compared(rows)
    return save(lambda: _draw_ratios(groups, column), folder, name)


def tasks(rows: Sequence[Row], folder: Path, name: str, column: bool = False) -> list[Path]:
    """What breaks where: decoder by task, points of accuracy that it loses or wins against one token a step, in bold
    where that can be told, and below them what it costs; a map a model and machine.

    Raises RequestError where nothing can be compared.
    """
    maps: dict[str, list[Group]] = {}
    for group in _compared(rows):
        first = group.rows[0]
        where = "" if first.manifest.spec.model.startswith(IDEAL) else f" on {first.device}"  # no machine matters there
        maps.setdefault(first.model + where, []).append(group)
    return save(lambda: _draw_maps(maps, column), folder, name)


def _compared(rows: Sequence[Row]) -> list[Group]:
    groups = [group for group in dict.fromkeys(row.group for row in rows) if group.judged_by and len(group.rows) > 1]
    if not groups:
        if rows and not any(row.run.samples for row in rows):
            raise RequestError("Rows are paired by their samples, which did not come along: make the runs again.")
        raise RequestError("Nothing here stands beside static of one token a step: run it along (--against static).")
    return groups


def shown(group: Group) -> list[Row]:
    """One setting a decoder, the reference last, the cheapest first."""
    found = []
    for rows in group.methods().values():
        others = [row for row in rows if row is not group.reference]
        chosen = [row for row in others if row.tried is not None]
        kept = chosen or [row for row in others if row.against[REFERENCE].difference >= -MARGIN]
        if kept:
            found.append(min(kept, key=group.spent))
        elif others:
            found.append(max(others, key=lambda row: row.accuracy))
    return sorted(found, key=group.spent)


def _draw_ratios(groups: Sequence[Group], column: bool) -> Figure:
    across = 1 if column else min(3, len(groups))
    down = -(-len(groups) // across)
    longest = max(len(shown(group)) for group in groups)
    width = COLUMN_WIDTH if column else 4.2 * across
    figure, axes = subplots(down, across, (width, (0.23 * longest + 1.1) * down))
    style = styles([row.method for group in groups for row in group.rows])
    for ax, group in zip(axes.flat, groups):
        _ratios(ax, group, style)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    return figure


def _ratios(ax: Axes, group: Group, style: dict[str, tuple[str, str]]) -> None:
    rows, first = shown(group), group.rows[0]
    shares = [group.share(row) or 0.0 for row in rows]
    places = range(len(rows))
    ax.hlines(places, 0, shares, color=LINE, linewidth=2)
    for place, row, share in zip(places, rows, shares):
        colour, marker = style[row.method]
        worse = row.against[REFERENCE].verdict == "worse"
        ax.plot([share], [place], marker, color=colour, markerfacecolor="white" if worse else colour, markersize=5)
        ax.annotate(f"{share:.2f}", (share, place), (7, 0), textcoords="offset points", va="center", fontsize=7)
    ax.axvline(1, color=GREY, linewidth=0.8, linestyle="--")
    ax.set_yticks(list(places), [row.label for row in rows])
    unit = "cost" if group.priced else "NFE"
    dress(ax, f"{_task(group)}, {first.model}", f"{unit}, as a share of one token a step", "", size=8.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, 1.18 * max(*shares, 1.0))
    ax.grid(axis="y", visible=False)


def _draw_maps(maps: dict[str, list[Group]], column: bool) -> Figure:
    tables = [_table(groups) for groups in maps.values()]
    widest = max(len(groups) for groups in maps.values())
    across = 1 if column else min(2, len(tables))
    down = -(-len(tables) // across)
    high = 0.34 * max(len(methods) for methods, _ in tables) + 1.3
    width = COLUMN_WIDTH if column else across * max(0.78 * widest + 1.3, 3.2)
    figure, axes = subplots(down, across, (width, high * down))
    for ax in axes.flat[len(tables) :]:
        ax.set_visible(False)
    for ax, (title, groups), (methods, cells) in zip(axes.flat, maps.items(), tables):
        _map(ax, title, [_task(group) for group in groups], methods, cells)
    unit = "cost" if all(group.priced for groups in maps.values() for group in groups) else "forwards"
    legend = f"points against one token a step, bold beyond chance;\nbelow: {unit}, as a share of one token a step's"
    axes.flat[len(tables) - 1].set_xlabel(legend, fontsize=7, color=GREY)
    return figure


def _task(group: Group) -> str:
    first = group.rows[0]
    cache = first.manifest.spec.cache
    more = [one for one, usual in ((first.split, "test"), (cache, "none")) if one != usual]
    name = first.task.removeprefix(STRESS)
    return f"{name} ({', '.join(more)})" if more else name


def _table(groups: Sequence[Group]) -> tuple[list[str], dict[tuple[str, int], Row]]:
    """Methods, those that lose least on average first, and the row of each method and group."""
    cells = {(row.method, n): row for n, group in enumerate(groups) for row in shown(group)}
    methods = dict.fromkeys(method for method, _ in cells)

    def loss(method: str) -> float:
        return float(np.mean([row.against[REFERENCE].difference for (name, _), row in cells.items() if name == method]))

    return sorted(methods, key=loss, reverse=True), cells


def _map(ax: Axes, title: str, names: Sequence[str], methods: Sequence[str], cells: dict[tuple[str, int], Row]) -> None:
    values = np.full((len(methods), len(names)), np.nan)
    for (method, n), row in cells.items():
        values[methods.index(method), n] = 100 * row.against[REFERENCE].difference
    ax.imshow(np.ma.masked_invalid(values), cmap=_LOSS, vmin=-_MOST, vmax=_MOST, aspect="auto")
    for (method, n), row in cells.items():
        found, line = row.against[REFERENCE], methods.index(method)
        told = found.verdict in ("better", "worse")
        dark, pale = abs(values[line, n]) > 0.7 * _MOST, abs(values[line, n]) < 0.1 * _MOST
        ax.text(
            n, line, points(found.difference, signed=True), ha="center", va="bottom", fontsize=7,
            color="white" if dark else INK, fontweight="bold" if told else "normal",
        )  # fmt: skip
        share, ink = text.number(row.group.share(row), 2), "white" if dark else GREY if pale else INK
        ax.text(n, line + 0.06, share, ha="center", va="top", fontsize=5.5, color=ink)
    dress(ax, title, "", "", size=8.5)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(methods)), methods)
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
