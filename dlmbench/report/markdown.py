"""table.md: a table a task, the circumstances that hold for its rows, the legend, and matched points behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from dlmbench.analysis.load import Results
from dlmbench.analysis.matched import matched
from dlmbench.analysis.row import Group, Row
from dlmbench.analysis.seeds import Averaged, over_seeds
from dlmbench.analysis.text import interval, number, percent
from dlmbench.report import matched as equal_cost
from dlmbench.report.columns import MARKDOWN, Column, legend, table_columns, write_csv


def write_table(results: Results, folder: str | Path, title: str = "Results", notes: Sequence[str] = ()) -> list[Path]:
    """table.csv with every column and table.md for readers, in `folder`; `notes` are sentences below the title."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "table.md"
    text.write_text(markdown(results, title, notes), encoding="utf-8")
    return [write_csv(results.rows, folder / "table.csv"), text]


def markdown(results: Results, title: str, notes: Sequence[str] = ()) -> str:
    """The whole page."""
    parts, used = [f"# {title}", *notes], dict[Column, None]()
    for (task, split), rows in results.sections.items():
        columns = table_columns(MARKDOWN, rows)
        used |= dict.fromkeys(columns)
        items = values(row.metrics.items for row in rows)
        parts += [f"## {task} ({split}, {items} items)", _table(columns, rows), circumstances(rows)]
    parts += [_legend(legend(used)), matched_markdown(results.groups), seeds_markdown(over_seeds(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    return pipe({column.heading(rows): [column.text(row) for row in rows] for column in columns})


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"*{name}*: {help.removesuffix('.')}." for name, help in entries)


def matched_markdown(groups: Iterable[Group]) -> str:
    """A table a group of what methods reach at equal cost, then the definitions; empty without a reference row."""
    parts = []
    for group in groups:
        if base := matched(group) and group.reference:
            parts += [
                f"## {base.task} ({base.split}) at equal cost and at equal accuracy",
                pipe(equal_cost.columns(matched(group))),
                equal_cost.reference_sentence(group),
            ]
    return "\n\n".join([*parts, _legend(equal_cost.LEGEND.items())]) if parts else ""


def seeds_markdown(found: Sequence[Averaged]) -> str:
    """A section of the settings that were run with several seeds; empty where there is none."""
    if not found:
        return ""
    table = {
        "setting": [f"{one.row.task} {one.row.label}" for one in found],
        "model": [one.row.model for one in found],
        "device": [one.row.device for one in found],
        "seeds": [str(len(one.seeds)) for one in found],
        "accuracy": [interval(one.accuracy, one.low, one.high) for one in found],
        "deviation": [percent(one.deviation) for one in found],
        "lowest, highest": [f"{percent(min(one.each))}, {percent(max(one.each))}" for one in found],
        "NFE": [f"{number(min(one.nfe))} to {number(max(one.nfe))}" for one in found],
    }
    return "\n\n".join(["## Over seeds", pipe(table), _SEEDS])


_SEEDS = (
    "Mean over seeds with a 95 % interval over items (items are drawn again, all seeds of an item together); deviation "
    "and range are between seeds. Only runs that differ in nothing but their seed are averaged."
)


def circumstances(rows: Sequence[Row]) -> str:
    """One sentence with what all rows share; what differs lists its values."""
    manifests = [row.manifest for row in rows]
    parts = [
        f"model {values(row.model for row in rows)} (weights {values(row.weights[:8] for row in rows)})",
        f"batch {values(row.batch_size for row in rows)}",
        f"block {values(one.block_length for one in manifests)}",
        f"at most {values(one.gen_length for one in manifests)} tokens",
        f"store {values(one.spec.store for one in manifests)}",
        f"{values(one.spec.dtype for one in manifests)} on {values(row.device for row in rows)} "
        f"({values(one.environment.threads for one in manifests)} threads)",
        f"seed {values(one.spec.seed for one in manifests)}",
        f"prompts {values(one.prompts[:8] for one in manifests)}",
        f"versions {values(_versions(row) for row in rows)}",
    ]
    labels = dict.fromkeys(row.metrics.speed.label for row in rows if row.metrics.speed and row.metrics.speed.label)
    return "; ".join(parts) + "." + "".join(f" Speed: {label}." for label in labels) + _units(rows)


def _versions(row: Row) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(row.manifest.environment.versions.items()))


def _units(rows: Sequence[Row]) -> str:
    """Cost counts forwards of a row's own target; where there are several, how they compare."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.unit_seconds is not None:
            seconds.setdefault((row.model, row.weights), []).append(row.unit_seconds)
    if len(seconds) < 2 or len({row.batch_size for row in rows}) > 1:
        return ""
    weights = [row.weights for row in rows]
    main = max(sorted(set(weights)), key=weights.count)
    unit = next((median(found) for (_, one), found in seconds.items() if one == main), None)
    return "".join(
        f" A forward of {model} takes {median(found) / unit:.2f} of the others', and its cost counts its own."
        for (model, one), found in seconds.items()
        if one != main and unit
    )


def values(found: Iterable[object]) -> str:
    """Distinct values in their order."""
    return ", ".join(dict.fromkeys("-" if value is None else str(value) for value in found))


def pipe(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns of texts as a Markdown table with aligned bars; the first is left-aligned."""
    cells = [[name, *texts] for name, texts in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    sides = [str.ljust, *(len(cells) - 1) * [str.rjust]]
    head, *body = (
        "| " + " | ".join(side(cell, width) for side, cell, width in zip(sides, line, widths)) + " |"
        for line in zip(*cells)
    )
    rule = "|" + "|".join("-" * (width + 1) + (":" if n else "-") for n, width in enumerate(widths)) + "|"
    return "\n".join([head, rule, *body])
