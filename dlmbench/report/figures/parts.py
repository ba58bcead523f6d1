"""A loss in its three parts, decoder by task: how much is the rule's, how much the model's, how much is both together.

A decoder stands there at one setting a task, chosen on the trained model as in `matrix`, but over all seeds. Colour is
the whole loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dlmbench.analysis import text
from dlmbench.analysis.parts import Parts, needed, parts
from dlmbench.analysis.row import Row
from dlmbench.errors import RequestError
from dlmbench.report.answer import STRESS
from dlmbench.report.figures.style import COLUMN_WIDTH, GREY, INK, dress, save, subplots
from dlmbench.stats import MARGIN, points

_LOSS = LinearSegmentedColormap.from_list("whole loss", ["#FFFFFF", "#F3C9A8", "#D9742F", "#A03A00"])
_LEGEND = (
    "the rule's own (ideal model) + the model's own (one token a step) + their interaction, in brackets where its 95 % "
    "interval holds 0; below: least forwards at which the ideal model keeps 99 %, as a share of one token a step's"
)
_DARK = 0.6  # losses from which on the letters are white


def losses(rows: Sequence[Row], folder: Path, name: str, column: bool = False) -> list[Path]:
    """Decoder by task, the points lost: all, then the rule's own + the model's own + their interaction, then the least
    forwards at which the ideal model keeps 99 %; a map a trained model.

    Raises RequestError where no task was run on both an ideal and a trained model at the same settings.
    """
    found = _shown(parts(rows))
    if not found:
        raise RequestError(
            "No losses to be divided: that takes the same settings on the ideal model and on a trained one, static of "
            "one token a step among them (--model oracle-block,nano2 or oracle,nano2-llada)."
        )
    maps: dict[str, list[Parts]] = {}
    for part in found:
        maps.setdefault(part.row.model, []).append(part)
    return save(lambda: _draw(maps, needed(rows), column), folder, name)


def _shown(found: Sequence[Parts]) -> list[Parts]:
    """One token a step, and of every decoder one setting: the one chosen on dev items, else the cheapest that loses
    little more than one token a step, else the one that loses least."""
    kept = [part for part in found if part.row is part.row.group.reference]
    decoders: dict[tuple[str, str, str], list[Parts]] = {}
    for part in found:
        if part.row is not part.row.group.reference:
            decoders.setdefault((part.row.model, part.row.task, part.row.method), []).append(part)
    for settings in decoders.values():
        tuned = [part for part in settings if part.row.tried is not None]
        if close := tuned or [part for part in settings if part.loss - part.model <= MARGIN]:
            kept.append(min(close, key=lambda part: part.row.group.spent(part.row)))
        else:
            kept.append(min(settings, key=lambda part: part.loss))
    return kept


def _draw(maps: dict[str, list[Parts]], forwards: dict[tuple[str, str], float], column: bool) -> Figure:
    names = [list(dict.fromkeys(part.row.task for part in cells)) for cells in maps.values()]
    methods = [_order(cells) for cells in maps.values()]
    width = COLUMN_WIDTH if column else 0.92 * max(map(len, names)) + 1.6
    heights = [0.5 * len(one) + 1.2 for one in methods]
    figure, axes = subplots(len(maps), 1, (width, sum(heights)))
    for ax, (model, cells), tasks, decoders in zip(axes.flat, maps.items(), names, methods):
        _map(ax, f"points lost on {model}", cells, tasks, decoders, forwards)
    axes.flat[-1].set_xlabel("\n".join(wrap(_LEGEND, round(13 * width))), fontsize=7, color=GREY)
    return figure


def _order(cells: Sequence[Parts]) -> list[str]:
    """One token a step above, then the decoders, those that lose least on average first."""
    losses: dict[str, list[float]] = {}
    for part in cells:
        losses.setdefault(_name(part), []).append(part.loss)
    return sorted(losses, key=lambda name: (name != _name_of_reference(cells), np.mean(losses[name])))


def _name_of_reference(cells: Sequence[Parts]) -> str:
    return next((_name(part) for part in cells if part.row is part.row.group.reference), "")


def _name(part: Parts) -> str:
    return part.row.label if part.row is part.row.group.reference else part.row.method


def _map(
    ax: Axes,
    title: str,
    cells: Sequence[Parts],
    tasks: Sequence[str],
    methods: Sequence[str],
    forwards: dict[tuple[str, str], float],
) -> None:
    values = np.full((len(methods), len(tasks)), np.nan)
    for part in cells:
        values[methods.index(_name(part)), tasks.index(part.row.task)] = part.loss
    ax.imshow(np.ma.masked_invalid(values), cmap=_LOSS, vmin=0, vmax=1, aspect="auto")
    for part in cells:
        x, y = tasks.index(part.row.task), methods.index(_name(part))
        ink = "white" if part.loss > _DARK else INK
        least = forwards.get((part.row.method, part.row.task))
        ax.text(x, y - 0.12, points(part.loss), ha="center", va="bottom", fontsize=7.5, color=ink, fontweight="bold")
        ax.text(x, y - 0.08, _sum(part), ha="center", va="top", fontsize=6, color=ink)
        ax.text(x, y + 0.22, text.number(least, 2), ha="center", va="top", fontsize=5.5, color=ink)
    dress(ax, title, "", "", size=8.5)
    ax.set_xticks(range(len(tasks)), [task.removeprefix(STRESS) for task in tasks], rotation=30, ha="right")
    ax.set_yticks(range(len(methods)), methods)
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)


def _sum(part: Parts) -> str:
    """In whole points: 60 + 10 − 5; 60 + 10 (− 5) where the interaction cannot be told from none."""
    rule, model, both = (round(100 * one) for one in (part.rule, part.model, part.interaction))
    rest = f"{'−' if both < 0 else '+'} {abs(both)}"
    low, high = part.interval
    return f"{rule} + {model} {rest if low > 0 or high < 0 else f'({rest})'}"
