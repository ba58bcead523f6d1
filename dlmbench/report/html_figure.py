"""The Pareto figures of a report: inline SVG whose colours are CSS variables, so that a dark page gets lighter ones."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape

import matplotlib.pyplot as plt
import pandas as pd

from dlmbench.report import pareto
from dlmbench.report.table import number, percent

_AXES = {"cost": "Cost", "nfe": "Forwards", "tps": "Tokens/s"}
_PAPER = {"#ffffff": "var(--card)", "#222222": "var(--ink)", "#8a8a8a": "var(--quiet)", "#e6e6e6": "var(--line)"}
DARK_CARD = 0.012  # luminance of the page's dark cards, for the contrast of a figure's colours
_CONTRAST = 4.5


def figures(frame: pd.DataFrame) -> str:
    """One figure a task and axis; the axes are switched by buttons."""
    axes = [name for name in _AXES if frame[pareto.AXES[name][0]].notna().any()]
    buttons = "".join(
        f'<button type="button" data-axis="{name}" aria-pressed="{str(name == axes[0]).lower()}">{_AXES[name]}</button>'
        for name in axes
    )
    parts = []
    for axis in axes:
        for (task, split), group in frame.groupby(["task", "split"], sort=False):
            shown = group[group[pareto.AXES[axis][0]].notna() & group["accuracy"].notna()]
            if not shown.empty:
                parts.append(
                    f'<figure class="card" data-axis="{axis}">{figure(shown, axis, f"{task}-{split}")}</figure>'
                )
    choice = f'<div class="choice" role="group" aria-label="Horizontal axis of the figures">{buttons}</div>'
    return f'{choice}<div class="figures">{"".join(parts)}</div>'


def figure(frame: pd.DataFrame, axis: str, salt: str) -> str:
    """The Pareto figure of one task as inline SVG whose colours are CSS variables."""
    settings = {"font.size": 8.5, "axes.edgecolor": "#8A8A8A", "svg.hashsalt": f"{salt} {axis}"}
    stream = io.StringIO()
    with plt.rc_context(settings):
        drawn = pareto.draw(frame, axis, "accuracy")
        drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        plt.close(drawn)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(rf'(<g|<clipPath) id="(?:{_NAMED})[^"]*"', r"\1", svg)
    head, _, body = svg.partition(">")
    svg = re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + body
    svg = re.sub(r"#[0-9a-fA-F]{6}", _variable, svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(_spoken(frame, axis))}" ', 1)


def _variable(match: re.Match) -> str:
    """CSS variable of a colour of the figure; unknown ones stay."""
    colour = match[0].lower()
    return _PAPER.get(colour) or _NAMES.get(colour, colour)


_NAMED = "figure|axes|matplotlib|xtick|ytick|text|line2d|patch|LineCollection"  # ids that nothing refers to
_NAMES = {colour.lower(): f"var(--c{i})" for i, colour in enumerate(pareto.COLOURS)}


def palette() -> str:
    """The figures' colours: as they are on light paper, mixed with white on dark until they can be read."""
    light = "".join(f"--c{i}:{colour};" for i, colour in enumerate(pareto.COLOURS))
    dark = "".join(f"--c{i}:{_lighter(colour)};" for i, colour in enumerate(pareto.COLOURS))
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _lighter(colour: str) -> str:
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    for share in range(0, 100, 5):
        mixed = [round(value + (255 - value) * share / 100) for value in channels]
        if (luminance(mixed) + 0.05) / (DARK_CARD + 0.05) >= _CONTRAST:
            break
    return "#" + "".join(f"{value:02x}" for value in mixed)


def luminance(channels: Sequence[int]) -> float:
    """Relative luminance of sRGB channels 0..255, as WCAG defines it."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in channels)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _spoken(frame: pd.DataFrame, axis: str) -> str:
    """What the figure shows, for those who hear it; the tables hold every number."""
    column, title, _ = pareto.AXES[axis]
    ends = frame.sort_values(column)
    low, high = ends.iloc[0], ends.iloc[-1]
    return (
        f"Accuracy against {title} of {len(frame)} settings on {low['task']}: from {low['label']} "
        f"({number(low[column])}, {percent(low['accuracy'])} %) to {high['label']} ({number(high[column])}, "
        f"{percent(high['accuracy'])} %). The table below has every value."
    )
