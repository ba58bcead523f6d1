"""The Pareto figures of a report: inline SVG whose colours are CSS variables, so that a dark page gets lighter ones."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape

from dlmbench.analysis.load import Results
from dlmbench.analysis.row import Row
from dlmbench.analysis.text import number, percent
from dlmbench.report.figures import pareto
from dlmbench.report.figures.style import COLOURS, GREY, INK, LINE, house_style

_AXES = {"cost": "Cost", "nfe": "Forwards", "tps": "Tokens/s"}
_PAPER = {"#ffffff": "var(--card)", INK: "var(--ink)", GREY.lower(): "var(--quiet)", LINE.lower(): "var(--line)"}
DARK_CARD = 0.012  # luminance of the page's dark cards, for the contrast of a figure's colours
_CONTRAST = 4.5


def figures(results: Results) -> str:
    """One figure a task and axis; the axes are switched by buttons."""
    axes = [name for name in _AXES if pareto.placed(results.rows, name, "accuracy")]
    buttons = "".join(
        f'<button type="button" data-axis="{name}" aria-pressed="{str(name == axes[0]).lower()}">{_AXES[name]}</button>'
        for name in axes
    )
    parts = [
        f'<figure class="card" data-axis="{axis}">{figure(shown, axis, f"{task}-{split}")}</figure>'
        for axis in axes
        for (task, split), rows in results.sections.items()
        if (shown := pareto.placed(rows, axis, "accuracy"))
    ]
    choice = f'<div class="choice" role="group" aria-label="Horizontal axis of the figures">{buttons}</div>'
    return f'{choice}<div class="figures">{"".join(parts)}</div>'


def figure(rows: Sequence[Row], axis: str, salt: str) -> str:
    """The Pareto figure of one task as inline SVG whose colours are CSS variables."""
    stream = io.StringIO()
    with house_style(f"{salt} {axis}"):
        drawn = pareto.draw(rows, axis, "accuracy")
        drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(rf'(<g|<clipPath) id="(?:{_NAMED})[^"]*"', r"\1", svg)
    head, _, body = svg.partition(">")
    svg = re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + body
    svg = re.sub(r"#[0-9a-fA-F]{6}", _variable, svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(_spoken(rows, axis))}" ', 1)


def _variable(match: re.Match[str]) -> str:
    """CSS variable of a colour of the figure; unknown ones stay."""
    colour = match[0].lower()
    return _PAPER.get(colour) or _NAMES.get(colour, colour)


_NAMED = "figure|axes|matplotlib|xtick|ytick|text|line2d|patch|LineCollection"  # ids that nothing refers to
_NAMES = {colour.lower(): f"var(--c{i})" for i, colour in enumerate(COLOURS)}


def palette() -> str:
    """The figures' colours: as they are on light paper, mixed with white on dark until they can be read."""
    light = "".join(f"--c{i}:{colour};" for i, colour in enumerate(COLOURS))
    dark = "".join(f"--c{i}:{_lighter(colour)};" for i, colour in enumerate(COLOURS))
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


def _spoken(rows: Sequence[Row], name: str) -> str:
    """What the figure shows, for those who hear it; the tables hold every number."""
    axis = pareto.AXES[name]
    ordered = sorted(rows, key=lambda row: axis.value(row) or 0.0)
    ends = [f"{row.label} ({number(axis.value(row))}, {percent(row.accuracy)} %)" for row in (ordered[0], ordered[-1])]
    return (
        f"Accuracy against {axis.title} of {len(rows)} settings on {rows[0].task}: from {ends[0]} to {ends[1]}. "
        "The table below has every value."
    )
