"""What all figures share: colours, markers, axes, and how they are written.

Colours follow Okabe and Ito and differ in lightness; markers differ too, so a figure survives grey printing. Figures
are made without pyplot, which takes longer to import than a figure to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from PIL import Image

rcParams["text.parse_math"] = False  # names of models and settings are no formulas

# Okabe-Ito without yellow (too light on white), then darker relatives for more than seven methods
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#000000",
    "#E69F00",
    "#7A3E00",
    "#44337A",
    "#5F6B00",
    "#8C1D40",
    "#2F5D62",
    "#A05AB4",
    "#6B6B6B",
)
MARKERS = "osD^vPXp<>hd8H"
_PARENT = "ar"
FORMATS = ("png", "svg", "pdf")
COLUMN_WIDTH = 3.4  # inches: one column of a two-column page, at the size it is printed in
INK, GREY, LINE = "#222222", "#8A8A8A", "#E6E6E6"


def subplots(
    down: int, across: int, size: tuple[float, float], layout: Literal["constrained"] | None = "constrained"
) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches and its axes [down, across]."""
    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(down, across, squeeze=False)


def figure_of(ax: Axes) -> Figure:
    """The figure that these axes are in."""
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def renderer_of(figure: Figure) -> RendererAgg:
    """What measures its texts."""
    assert isinstance(figure.canvas, FigureCanvasAgg)
    return figure.canvas.get_renderer()


def save(make: Callable[[], Figure], folder: str | Path, name: str) -> list[Path]:
    """Draw a figure in the house style and write it in all formats; the paths are returned."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with house_style("dlmbench"):
        figure = make()
        paths = [folder / f"{name}.{suffix}" for suffix in FORMATS]
        for path in paths:
            metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
            figure.savefig(path, dpi=200, metadata=metadata)
            if path.suffix == ".png":
                fewer_colours(path)
    return paths


def fewer_colours(path: Path) -> None:
    """A PNG in 256 colours, which a chart needs no more than: a third of the size."""
    with Image.open(path) as image:
        drawn = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        drawn.save(path, optimize=True, dpi=image.info.get("dpi"))


@contextmanager
def house_style(salt: str) -> Iterator[None]:
    """The settings of a figure; `salt` makes the names inside an SVG."""
    with rc_context({"font.size": 8.5, "axes.edgecolor": GREY, "svg.hashsalt": salt, "pdf.fonttype": 42}):
        yield


def styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker a method; the baselines always look the same, and autoregressive decoding is a star."""
    names = set(methods) - {_PARENT}
    fixed = [name for name in ("static", "threshold", "entropy") if name in names]
    order = fixed + sorted(names - set(fixed))
    found = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(order)}
    return {**found, _PARENT: (INK, "*")}


def dress(ax: Axes, title: str, x: str, y: str, size: float = 9.5) -> None:
    """Title, names of the axes, grid."""
    if title:
        ax.set_title(title, loc="left", fontsize=size, color=INK)
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    ax.tick_params(color=GREY, labelcolor=INK)
    ax.grid(color=LINE, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
