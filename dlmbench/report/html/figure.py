"""What the report's figure draws: settings as points with their interval, a panel a task and model, and the colours.

The drawing itself is Observable Plot's (assets/plot.min.js, assets/chart.js). Colours are CSS variables, so that a dark
page gets lighter ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypedDict

from dlmbench.analysis import needs, text
from dlmbench.analysis.row import REFERENCE, Row
from dlmbench.report.columns import COLUMNS
from dlmbench.report.figures import pareto
from dlmbench.report.figures.style import COLOURS, styles

DARK_CARD = 0.012  # luminance of the page's dark cards, for the contrast of the figure's colours
_CONTRAST = 4.5
_SYMBOLS = ("circle", "square", "diamond", "triangle", "cross", "wye", "hexagon")  # Plot's names
_STAR = "*"


class Point(TypedDict):
    """One setting."""

    setting: int
    name: str
    method: str
    thread: str  # settings of one thread are joined by a line
    told: str  # its difference and verdict
    x: dict[str, float]  # by the name of an axis
    y: list[float]  # accuracy and the ends of its interval, in percent
    own: bool  # is it of the weights and hardware that most of the panel have? These have a front


class FigurePanel(TypedDict):
    """One task and model."""

    title: str
    section: int
    points: list[Point]


def panels(sections: Sequence[tuple[str, list[Row]]]) -> list[FigurePanel]:
    """All panels, the one to begin with first; sections: (title, rows)."""
    found: list[tuple[bool, FigurePanel]] = []
    rows = [row for _, part in sections for row in part]
    first = pareto.chosen(rows, None).panels if rows else []
    for number, (title, mine) in enumerate(sections):
        numbers = {row: setting for setting, row in enumerate(mine)}
        for part in pareto.by_weights(mine):
            made: FigurePanel = {
                "title": f"{title}, {pareto.main_model(part)}",
                "section": number,
                "points": _points(part, numbers),
            }
            if any(point["x"] for point in made["points"]):
                found.append((bool(first) and set(part) == set(first[0]), made))
    return [panel for _, panel in sorted(found, key=lambda pair: not pair[0])]


def _points(rows: list[Row], numbers: dict[Row, int]) -> list[Point]:
    own = pareto.own_series(rows)
    places: dict[str, list[float | None]] = {}
    for name, axis in pareto.AXES.items():
        places[name] = [axis.value(row) for row in rows]
    factors = pareto.exchange(rows, own)
    places["cost"] = [None if cost is None else cost * factor for cost, factor in zip(places["cost"], factors)]
    several = len({row.batch_size for row in rows}) > 1
    return [
        {
            "setting": numbers[row],
            "name": f"{row.label}, batch {row.batch_size}" if several else row.label,
            "method": row.method,
            "thread": f"{' '.join(map(str, one))} {row.batch_size} {re.sub(r'[0-9.]+', '#', row.label)}",
            "told": _told(row),
            "x": {name: round(float(value), 4) for name, values in places.items() if (value := values[i]) is not None},
            "y": [
                round(100 * share, 2) for share in (row.accuracy, row.metrics.accuracy_low, row.metrics.accuracy_high)
            ],
            "own": bool(own[i]),
        }
        for i, (row, one) in enumerate(zip(rows, pareto.series_of(rows)))
    ]


def _told(row: Row) -> str:
    gap = row.against.get(REFERENCE)
    if gap is None:
        return "other weights" if len(row.group.rows) == 1 else ""
    shown = f"{text.signed(gap.difference, gap.low, gap.high)} points against {gap.baseline.label}"
    return f"{shown}, {needs.verdict(row)}"


def axes() -> dict[str, tuple[str, str, bool]]:
    """What each axis is called, in short too, and whether more of it is better."""
    shown = [(column.title or column.axis.name, column.axis) for column in COLUMNS if column.axis]
    shown.sort(key=lambda pair: pair[1].name != "cost")  # the others in their order
    return {axis.name: (axis.title, short, axis.larger) for short, axis in shown}


def marks(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each method; the same colours as in the figures of files."""
    found = {}
    for number, (name, (colour, marker)) in enumerate(styles(methods).items()):
        place = COLOURS.index(colour) if colour in COLOURS else None
        shown = "var(--ink)" if place is None else f"var(--c{place})"
        found[name] = (shown, "star" if marker == _STAR else _SYMBOLS[number % len(_SYMBOLS)])
    return found


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
