"""The picture of how a forward grows with batch and context, measured beside the law that was fitted."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import LogLocator, StrMethodFormatter

from dlmbench.report.figures.style import fewer_colours, subplots


def draw_growth(record: dict, file: Path) -> None:
    """Milliseconds of a forward against keys in sight: a line a batch size, points measured, lines fitted."""
    figure, axes = subplots(1, 1, (5.2, 3.6))
    ax = axes[0, 0]
    rows = record["forwards"]
    for number, batch in enumerate(sorted({row["batch"] for row in rows})):
        part = sorted((row for row in rows if row["batch"] == batch), key=lambda row: row["context"])
        keys, colour = [row["context"] for row in part], f"C{number}"
        ends = [[abs(row["ms"] - row[f"ms_{end}"]) for row in part] for end in ("min", "max")]
        ax.errorbar(keys, [row["ms"] for row in part], ends, fmt="o", markersize=4, color=colour, capsize=2)
        ax.plot(keys, [row["fitted_ms"] for row in part], color=colour, linewidth=1)
        ax.annotate(f"batch {batch}", (keys[-1], part[-1]["fitted_ms"]), (5, 0), textcoords="offset points",
                    va="center", fontsize=8, color=colour)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="keys in sight", ylabel="ms a forward")
    ax.set_xticks(sorted({row["context"] for row in rows}), labels=sorted({row["context"] for row in rows}))
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.margins(x=0.14)
    off = record["growth"]["largest_error"]
    ax.set_title(
        f"{record['shape']}, block {record['block_length']}, {record['device']}: constant + rows + keys, "
        f"at most {off:.0%} off", fontsize=8, loc="left",
    )  # fmt: skip
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    figure.savefig(file, dpi=200)
    fewer_colours(file)
