"""The picture: accuracy against cost, one panel a task, the front drawn and everything named where it stands.

A method is a colour, a marker and a direct label; points that another setting beats are faded. Fronts are computed a
series: rows whose target has other weights, or that ran on other hardware, than most of a panel get hollow markers and
the words *other weights* or the name of the device. Published figures are grey diamonds, tied to our point of the same
setting by a dotted line. Labels are placed by a small search that avoids markers, bars, front lines and each other,
with a thin leader where the place is not beside its point. Colours follow Okabe and Ito and differ in lightness;
markers differ too, so the figure survives grey printing. figures.py has the other pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first: no display is needed)
from matplotlib.transforms import Bbox  # noqa: E402

from dlmbench.errors import RequestError  # noqa: E402
from dlmbench.stats import pareto_front  # noqa: E402

plt.rcParams["text.parse_math"] = False  # names of models and settings are no formulas

AXES = {  # --x -> column, title, whether larger is better
    "cost": ("cost", "cost an item, in plain forwards", False),
    "nfe": ("nfe", "forwards an item (NFE)", False),
    "tps": ("tps_decode", "tokens/s, decode only", True),
    "flops": ("flops", "FLOPs an item", False),
    "tpf": ("tpf", "tokens a forward (TPF)", True),
}
SCORES = ("accuracy", "strict", "flexible")
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
MARKERS = "osD^vP*Xp<>hd8"
FORMATS = ("png", "svg", "pdf")
OWN_PANEL = 3  # settings from which on weights get a panel of their own
COLUMN_WIDTH = 3.4  # inches: one column of a two-column page, at the size it is printed in
_INK, _GREY = "#222222", "#8A8A8A"


def plot(
    frame: pd.DataFrame,
    folder: str | Path,
    x: str = "cost",
    y: str = "accuracy",
    name: str = "pareto",
    formats: Sequence[str] = FORMATS,
    published: Sequence[Any] = (),
    column: bool = False,
) -> list[Path]:
    """Write the figure of these rows as ``folder/name.{png,svg,pdf}``; the paths are returned.

    published: pairs (`published.Pair`) to overlay; column: sized for one column of a page, panels below each other.
    Raises RequestError when an axis is unknown or no row has a value on it.
    """
    if x not in AXES or y not in SCORES:
        wrong, known = (x, AXES) if x not in AXES else (y, SCORES)
        raise RequestError(f"Axis {wrong!r} is unknown; choose one of {', '.join(known)}.")
    shown = frame[frame[AXES[x][0]].notna() & frame[y].notna()]
    if shown.empty:
        raise RequestError(f"No row has a value for {x}; choose another --x or finish the runs first.")
    return save(lambda: draw(shown, x, y, published, column), folder, name, formats)


def save(make: Callable[[], Any], folder: str | Path, name: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw a figure in the house style and write it in these formats; the paths are returned."""
    with plt.rc_context({"font.size": 8.5, "axes.edgecolor": _GREY, "svg.hashsalt": "dlmbench", "pdf.fonttype": 42}):
        figure = make()
        paths = []
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in formats:
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
            figure.savefig(folder / f"{name}.{suffix}", dpi=200, metadata=metadata)
            paths.append(folder / f"{name}.{suffix}")
        plt.close(figure)
    return paths


def draw(frame: pd.DataFrame, x: str, y: str, published: Sequence[Any] = (), column: bool = False) -> Any:
    """The matplotlib figure: a panel a task and weights, at most three a line; one below the other in a column."""
    panels = [
        (where, part) for where, group in frame.groupby(["task", "split"], sort=False) for part in _by_weights(group)
    ]
    across = 1 if column else min(3, len(panels))
    down = -(-len(panels) // across)
    size = (COLUMN_WIDTH, 3.1 * down) if column else (max(4.6 * across, 5.2), 3.9 * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    style = styles(frame["method"].unique())
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    drawn = [
        (ax, _panel(ax, task, split, group, x, y, style, published))
        for ax, ((task, split), group) in zip(axes.flat, panels)
    ]
    figure.canvas.draw()  # fixes the layout: labels are placed in final pixels
    figure.set_layout_engine("none")
    for ax, wishes in drawn:
        _place_labels(ax, wishes)
    return figure


def styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker a method; the two baselines and ar always look the same."""
    fixed = [name for name in ("static", "threshold", "entropy", "ar") if name in methods]
    order = fixed + sorted(set(methods) - set(fixed))
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(order)}


def _by_weights(group: pd.DataFrame) -> list[pd.DataFrame]:
    """Weights with several settings get a panel of their own, the others ride along with those that have most."""
    counts = group["weights"].value_counts()
    own = [one for one in group["weights"].unique() if counts[one] >= OWN_PANEL and one != counts.index[0]]
    return [group[~group["weights"].isin(own)], *(group[group["weights"] == one] for one in own)]


def _panel(
    ax: Any,
    task: str,
    split: str,
    group: pd.DataFrame,
    x: str,
    y: str,
    style: dict[str, tuple[str, str]],
    published: Sequence[Any] = (),
) -> dict[str, Any]:
    """Draw one panel; what the labels need is returned."""
    column, title, larger = AXES[x]
    series = group["weights"] + " " + group["device"].astype(str)
    own = (series == series.mode()[0]).to_numpy()
    xs, ys = group[column].to_numpy(float), 100 * group[y].to_numpy(float)
    if x == "cost":
        xs = xs * _exchange(group, own)
    front = np.zeros(len(group), dtype=bool)
    for one in series.unique():
        chosen = (series == one).to_numpy()
        front[chosen] = pareto_front(xs[chosen], ys[chosen], larger)
    logarithmic = xs.min() > 0 and xs.max() / xs.min() > 8
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_tick))
        ax.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(base=10, subs=(1, 2, 5)))
    curve = _draw_front(ax, xs[own & front], ys[own & front], larger)
    bars = _error_bars(group, y, ys)
    kinds = group["label"].str.replace(r"\d+(\.\d+)?", "#", regex=True).to_numpy()
    for kind in dict.fromkeys(kinds):  # a faint line holds settings together that differ in numbers only
        mine = np.flatnonzero((kinds == kind) & own)
        mine = mine[np.argsort(xs[mine])]
        if mine.size:
            colour = style[group["method"].iloc[mine[0]]][0]
            ax.plot(xs[mine], ys[mine], color=colour, linewidth=0.8, alpha=0.3, zorder=1)
    for i, method in enumerate(group["method"]):
        colour, marker = style[method]
        strength = 1.0 if front[i] and own[i] else 0.45 if own[i] else 0.85
        if bars is not None:
            ax.errorbar(
                xs[i],
                ys[i],
                yerr=bars[:, i : i + 1],
                color=colour,
                alpha=0.5 * strength,
                linewidth=0.9,
                capsize=1.5,
                zorder=2,
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
    _dress(ax, task, split, group, title, larger, y)
    return {
        "x": xs,
        "y": ys,
        "bars": bars,
        "curve": curve,
        "front": front,
        "own": own,
        "elsewhere": _elsewhere(group),
        "marks": marks,
        "style": style,
        "rows": _with_batch(group.to_dict("records")),
        "larger": larger,
    }


def _elsewhere(group: pd.DataFrame) -> list[str]:
    """What is different about each row that is not of the panel's main series."""
    weights = group["weights"].mode()[0]
    return ["other weights" if row["weights"] != weights else f"on {row['device']}" for row in group.to_dict("records")]


def _overlay(
    ax: Any, group: pd.DataFrame, xs: np.ndarray, ys: np.ndarray, x: str, published: Sequence[Any]
) -> np.ndarray:
    """Published accuracies of the settings in a panel, at our point's x or at their own NFE; places [M,2] drawn."""
    places, keys = [], list(group["key"])
    for pair in published:
        if pair.ours["key"] not in keys or pair.published.accuracy is None:
            continue
        i = keys.index(pair.ours["key"])
        theirs, ours = pair.forwards
        comparable = x == "nfe" and theirs is not None and abs(ours - xs[i]) < 1e-9
        places.append((theirs if comparable else xs[i], 100 * pair.published.accuracy))
        ax.plot([xs[i], places[-1][0]], [ys[i], places[-1][1]], ":", color=_GREY, linewidth=0.9, zorder=1)
    if not places:
        return np.empty((0, 2))
    found = np.array(places)
    ax.plot(
        *found.T,
        "D",
        color=_INK,
        markerfacecolor="white",
        markersize=4.6,
        markeredgewidth=0.8,
        zorder=5,
        label="published",
    )
    ax.legend(loc="lower right", frameon=False, fontsize=7, handletextpad=0.2, borderaxespad=0.1)
    return found


def _exchange(group: pd.DataFrame, own: np.ndarray) -> np.ndarray:
    """Factors [N] that turn cost in forwards of other weights into forwards of the panel's own, at the same batch."""
    factors = np.ones(len(group))
    seconds, batch = group["unit_seconds"].to_numpy(float), group["batch_size"].to_numpy()
    for i in np.flatnonzero(~own):
        units = seconds[own & (batch == batch[i])]
        if len(units) and np.isfinite(units).all() and np.isfinite(seconds[i]):
            factors[i] = seconds[i] / np.median(units)
    return factors


def _tick(value: float, _: Any) -> str:
    return f"{value:.3g}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _draw_front(ax: Any, xs: np.ndarray, ys: np.ndarray, larger: bool) -> np.ndarray:
    """Step line through the points of the front: what is reachable at a given price. Returns its corners [N,2]."""
    order = np.argsort(xs)
    xs, ys = xs[order], ys[order]
    if len(xs) > 1:
        ax.step(xs, ys, where="pre" if larger else "post", color=_GREY, linewidth=1.1, zorder=1)
    return np.column_stack([xs, ys])


def _error_bars(group: pd.DataFrame, y: str, ys: np.ndarray) -> np.ndarray | None:
    """Distances [2,N] of the interval's ends in points; intervals exist for the accuracy only."""
    if y != "accuracy":
        return None
    low, high = 100 * group["accuracy_low"].to_numpy(float), 100 * group["accuracy_high"].to_numpy(float)
    return np.clip(np.stack([ys - low, high - ys]), 0, None)


def _limits(ax: Any, xs: np.ndarray, ys: np.ndarray, bars: np.ndarray | None, logarithmic: bool) -> None:
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


def _dress(ax: Any, task: str, split: str, group: pd.DataFrame, title: str, larger: bool, y: str) -> None:
    items = sorted(set(group["items"]))
    count = f"{items[0]:.0f}" if len(items) == 1 else f"{items[0]:.0f} to {items[-1]:.0f}"
    batches = ", ".join(str(b) for b in sorted(set(group["batch_size"])))
    model = group["model"][group["weights"] == group["weights"].mode()[0]].iloc[0]
    ax.set_title(f"{task} ({split}, {count} items), {model}", loc="left", fontsize=9.5, color=_INK)
    wide = ax.figure.get_figwidth() > COLUMN_WIDTH
    remark = f"(batch {batches}; {'right' if larger else 'left'} is better)"
    ax.set_xlabel(f"{title}{' ' if wide else chr(10)}{remark}", color=_INK)
    ax.set_ylabel(f"{y} (%)" + (", 95 % interval" if y == "accuracy" else ""), color=_INK)
    ax.tick_params(color=_GREY, labelcolor=_INK)
    ax.grid(color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


# --- labels ---------------------------------------------------------------------------------------------------------

_ANGLES = np.deg2rad([20, 160, -20, -160, 60, 120, -60, -120, 90, -90, 0, 180, 40, 140, -40, -140])
_RADII = (7, 11, 16, 23, 32, 44, 60, 80, 105, 140)  # points
_CROWD = 6  # with more methods than this, settings of dominated points stay unnamed
_LEADER_FROM = 14  # a label farther than this from its point gets a line


def _place_labels(ax: Any, panel: dict[str, Any]) -> None:
    """Name every series of a method once, at its most telling point, then settings on the front while there is room."""
    scale = ax.figure.dpi / 72
    points = ax.transData.transform(np.column_stack([panel["x"], panel["y"]]))
    marks = ax.transData.transform(panel["marks"]) if len(panel["marks"]) else panel["marks"]
    taken = [Bbox.from_extents(*(p - 4 * scale), *(p + 4 * scale)) for p in (*points, *marks)]
    if ax.get_legend():
        taken.append(ax.get_legend().get_window_extent())
    soft = _soft_obstacles(ax, panel, scale)
    area = ax.get_window_extent()
    for i, text, size, needed in _wishes(panel):
        method = panel["rows"][i]["method"]
        colour = panel["style"][method][0]
        for shown in (text, method) if needed else (text,):  # where there is no room for a setting, the name alone
            label = ax.annotate(
                shown,
                xy=(panel["x"][i], panel["y"][i]),
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
            box = label.get_window_extent(ax.figure.canvas.get_renderer())
            spot = _best_spot(points[i], box.width, box.height, taken, soft, area, scale, wide=needed)
            if spot is None:
                label.remove()
                continue
            offset, found, radius = spot
            label.set_position(offset / scale)
            taken.append(found.expanded(1.04, 1.15))
            if radius >= _LEADER_FROM:
                _leader(ax, points[i], found, colour)
            break


def _wishes(panel: dict[str, Any]) -> list[tuple[int, str, float, bool]]:
    """(point, text, size, whether it must be shown): methods first, then settings along the front."""
    rows, wishes = panel["rows"], []
    for method, weights, device in dict.fromkeys((row["method"], row["weights"], row["device"]) for row in rows):
        mine = [
            i
            for i, row in enumerate(rows)
            if (row["method"], row["weights"], row["device"]) == (method, weights, device)
        ]
        chosen = max(mine, key=lambda i: (panel["front"][i], panel["y"][i]))
        single = len(mine) == 1
        text = rows[chosen]["label"] if single else f"{method} {_setting(rows[chosen])}".strip()
        if not panel["own"][chosen]:
            text += f"\n({panel['elsewhere'][chosen]})"
        wishes.append((chosen, text, 8.0, True))
    named = {wish[0] for wish in wishes}
    rest = [i for i in np.argsort(panel["x"]) if i not in named and panel["front"][i]]
    if len({row["method"] for row in rows}) <= _CROWD:
        rest += [i for i in np.argsort(panel["x"]) if i not in named and not panel["front"][i]]
    return wishes + [(int(i), _setting(rows[i]), 6.8, False) for i in rest]


def _setting(row: dict[str, Any]) -> str:
    """The label without the method's name."""
    return row["label"].removeprefix(row["method"]).strip()


def _with_batch(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose labels tell batch sizes apart, in a panel that has several."""
    if len({record["batch_size"] for record in records}) == 1:
        return records
    return [{**record, "label": f"{record['label']} b{record['batch_size']}"} for record in records]


def _soft_obstacles(ax: Any, panel: dict[str, Any], scale: float) -> list[Bbox]:
    """Error bars and the front line: labels keep off them where they can."""
    boxes = []
    if panel["bars"] is not None:
        for x, y, low, high in zip(panel["x"], panel["y"], *panel["bars"]):
            (left, bottom), (_, top) = ax.transData.transform([(x, y - low), (x, y + high)])
            boxes.append(Bbox.from_extents(left - scale, bottom, left + scale, top))
    corners = ax.transData.transform(panel["curve"]) if len(panel["curve"]) > 1 else np.empty((0, 2))
    for (x0, y0), (x1, y1) in zip(corners[:-1], corners[1:]):
        turn = (x0, y1) if panel["larger"] else (x1, y0)
        for start, end in (((x0, y0), turn), (turn, (x1, y1))):
            low, high = np.minimum(start, end) - 0.5 * scale, np.maximum(start, end) + 0.5 * scale
            boxes.append(Bbox.from_extents(*low, *high))
    return boxes


def _best_spot(
    point: np.ndarray,
    width: float,
    height: float,
    taken: list[Bbox],
    soft: list[Bbox],
    area: Bbox,
    scale: float,
    wide: bool,
) -> tuple[np.ndarray, Bbox, float] | None:
    """Nearest place for a box around `point` that overlaps nothing; optional labels look only close by.

    Returns (offset of the centre in pixels, the box, distance in points), None when there is no room.
    """
    best, lowest = None, np.inf
    for radius in _RADII if wide else _RADII[:3]:
        for angle in _ANGLES:
            direction = np.array([np.cos(angle), np.sin(angle)])
            offset = direction * (radius * scale) + np.sign(np.round(direction, 3)) * (width / 2, 0) * abs(direction[0])
            offset[1] += np.sign(np.round(direction[1], 3)) * height / 2 * abs(direction[1])
            centre = point + offset
            box = Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)
            if not _inside(box, area) or any(box.overlaps(other) for other in taken):
                continue
            crossed = sum(box.overlaps(other) for other in soft)
            if crossed and not wide:
                continue
            penalty = radius + 9 * crossed
            if penalty < lowest:
                best, lowest = (offset, box, radius), penalty
    return best


def _inside(box: Bbox, area: Bbox) -> bool:
    return box.x0 >= area.x0 and box.x1 <= area.x1 and box.y0 >= area.y0 and box.y1 <= area.y1


def _leader(ax: Any, point: np.ndarray, box: Bbox, colour: str) -> None:
    """A thin line from the point to the nearest edge of its label."""
    end = np.array([np.clip(point[0], box.x0, box.x1), np.clip(point[1], box.y0, box.y1)])
    start, stop = ax.transData.inverted().transform([point, end])
    ax.plot([start[0], stop[0]], [start[1], stop[1]], color=colour, linewidth=0.6, alpha=0.7, zorder=3)
