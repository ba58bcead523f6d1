"""`dlmbench compare DIR...`: published figures beside ours."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.analysis import published
from dlmbench.analysis.load import Results
from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout
from dlmbench.errors import RequestError
from dlmbench.report.columns import record
from dlmbench.report.published import NOTE, columns

if TYPE_CHECKING:
    from dlmbench.analysis.published import Pair, Published


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", show_default=False)],
    figures: Annotated[Path | None, typer.Option(help="Folder of CSV files.", show_default="recipes/published")] = None,
    json: flags.Json = False,
) -> None:
    """Print published figures, ours of the same setting, and the difference."""
    rows = Results.load(*folders, split="test").rows  # trials on dev items choose settings, they are no results
    known = published.known_for(rows, published.read(figures))
    if not known:
        ours = ", ".join(dict.fromkeys(f"{row.model} on {row.task}" for row in rows))
        raise RequestError(f"Nothing was published for {ours}; recipes/papers has the settings that papers report.")
    pairs = published.pairs(rows, known)
    if json:
        record = {
            "pairs": [_record(pair) for pair in pairs],
            "not_run": len(known) - len(pairs),
            "note": NOTE,
        }
        print_json(record)
        return
    table, sources = columns(pairs)
    _print(table, [*sources, _not_run(known, pairs), NOTE])


def _record(pair: Pair) -> dict[str, object]:
    theirs, ours = pair.forwards
    row = record(pair.ours, samples=False)
    names = ("label", "accuracy", "accuracy_low", "accuracy_high", "items", "device", "weights", "folder")
    return {
        "published": asdict(pair.published),
        "ours": {name: row[name] for name in names},
        "difference": pair.gap,
        "inside_our_interval": pair.inside,
        "forwards_without_stores": {"published": theirs, "ours": ours},
        "our_speed": pair.speed,
        "differs_in": list(pair.differs),
    }


def _not_run(known: list[Published], pairs: list[Pair]) -> str:
    missing = [one for one in known if one not in [pair.published for pair in pairs]]
    if not missing:
        return "Every published setting of these models and tasks was run."
    some = ", ".join(dict.fromkeys(f"{one.label} on {one.task}" for one in missing[:4]))
    return f"{len(missing)} published settings of these models and tasks were not run here, such as {some}."


def _print(columns: dict[str, list[str]], lines: list[str]) -> None:
    from rich.table import Table

    console = stdout()
    if columns.get("task"):
        table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(name, overflow="fold", no_wrap=name not in ("task", "model", "setting"))
        for cells in zip(*columns.values()):
            table.add_row(*cells)
        console.print(table)
    for line in lines:
        console.print(line, style="dim", markup=False, soft_wrap=True)
