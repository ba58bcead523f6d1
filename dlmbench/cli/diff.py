"""`dlmbench diff A B`: two runs on the same items."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.analysis.diff import chosen, compare
from dlmbench.analysis.load import Results
from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout
from dlmbench.errors import RequestError
from dlmbench.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from dlmbench.analysis.diff import ItemDiff, Parting, RunDiff
    from dlmbench.analysis.row import Row


def diff(
    first: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another on the same items.", show_default=False)],
    items: Annotated[int, typer.Option(help="Items to show.")] = 5,
    every: Annotated[
        bool, typer.Option("--every", help="Also items whose text differs and whose verdict does not.")
    ] = False,
    json: flags.Json = False,
) -> None:
    """Show which items two runs answer differently, and the step in which they part."""
    found = compare(_row(first), _row(second))
    shown = chosen(found, not every, items)
    if json:
        labels = [row.label for row in found.rows]
        print_json(
            {
                "labels": labels,
                "items": len(found.items),
                "alone": list(found.alone),
                "difference": {**asdict(found.difference), "low": found.interval[0], "high": found.interval[1]},
                "flipped": [{"key": item.key, "scores": item.scores} for item in found.items if item.flipped],
                "shown": [{**asdict(item), "lead": item.parting and item.parting.lead} for item in shown],
            }
        )
        return
    _print(found, shown)


def _row(place: Path) -> Row:
    """The finished run in a folder."""
    run = RunFolder(place)
    if not run.begun:
        raise RequestError(f"{str(place)!r} is no run folder; give one that holds a manifest.json.")
    if not run.finished:
        raise RequestError(f"{place.name} is unfinished; the command that made it goes on where it stopped.")
    if not run.samples:
        raise RequestError(f"{place.name} came without its samples.jsonl; run it again to compare its items.")
    return Results([run]).rows[0]


def _print(found: RunDiff, shown: Sequence[ItemDiff]) -> None:
    console = stdout()
    console.print(found.sentence(), markup=False, soft_wrap=True)
    for name, count in zip(("first", "second"), found.alone):
        if count:
            console.print(f"{count} items are in the {name} run only and were not compared.", style="dim")
    for item in shown:
        console.print()
        console.print(_heading(item), style="bold", markup=False)
        console.print(_beside(found, item))
        if item.parting:
            _print_parting(console, item.parting)
        elif item.traced:
            console.print("recorded steps are the same in both", style="dim")
    if shown and not any(item.traced for item in shown):
        console.print(
            "\nsteps of these items were not recorded: run both with more --traces", style="dim", markup=False
        )


def _heading(item: ItemDiff) -> str:
    words = [("wrong", "right")[int(score)] if score in (0, 1) else f"{100 * score:.0f} %" for score in item.scores]
    return f"{item.key}: {words[0]} / {words[1]}"


def _beside(found: RunDiff, item: ItemDiff) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=False)
    for row in found.rows:
        table.add_column(row.label, overflow="fold", ratio=1)
    table.add_row(*(Text(text.strip()) for text in item.texts))
    return table


def _print_parting(console: Console, parting: Parting) -> None:
    lead = "" if parting.lead is None else f", smallest lead of a best logit over the second {parting.lead:.2f}"
    console.print(
        f"they part in step {parting.step} (of {parting.steps[0]} and {parting.steps[1]}){lead}", style="yellow"
    )
    for name, acts in (("first", parting.first), ("second", parting.second)):
        words = ", ".join(
            f"{position}: {word!r}" + ("" if value is None else f" (lead {value:.2f})")
            for position, word, value in acts
        )
        console.print(f"  {name:<6} {words or 'had ended'}", markup=False, soft_wrap=True)
    if parting.clash:
        place, *both = parting.clash
        words = " / ".join(
            f"{word!r} in step {step}" + ("" if value is None else f" (lead {value:.2f})") for word, step, value in both
        )
        console.print(f"  first other token, at {place}: {words}", markup=False, soft_wrap=True)
