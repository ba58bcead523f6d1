"""`dlmbench selectors DIR`: recorded states of finished runs, shown to other selectors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout
from dlmbench.errors import RequestError
from dlmbench.registry import load_plugin
from dlmbench.runs import RunFolder, find_runs
from dlmbench.runs.recording import recorded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from dlmbench.lab.selectors import OtherToken, Selector, Tally

LABEL = "same states, not same trajectory"


def selectors(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one of many runs.", show_default=False)],
    method: Annotated[
        str | None,
        typer.Option(help="Selectors, as a,b:threshold=0.8:low=0.3.", show_default="all, at their defaults"),
    ] = None,
    plugin: flags.Plugin = None,
    json: flags.Json = False,
) -> None:
    """Show the states that --record-logits kept to other selectors: who reveals what, without a model."""
    if plugin:
        load_plugin(plugin)
    wanted = [one.strip() for one in (method or "").split(",") if one.strip()]
    runs = [run for run in find_runs(folder) if recorded(run.path)]
    if not runs:
        raise RequestError(
            f"{str(folder)!r} holds no run with recorded logits: give --record-logits 4 to the command that made it."
        )
    from dlmbench.lab.selectors import laboratory

    found = [(run, *laboratory(run, wanted)) for run in runs]
    if json:
        print_json({"label": LABEL, "runs": [_record(*one) for one in found]})
        return
    for one in found:
        _print(stdout(), *one)


def _record(run: RunFolder, tallies: Sequence[Tally], left_out: Sequence[Selector]) -> dict[str, object]:
    rows = [
        {
            "selector": one.selector.label,
            "recorded": one.selector.recorded,
            "steps": one.steps,
            "agreement": one.agreement,
            "overlap": one.overlap,
            "tokens_per_step": one.tokens_per_step,
            "other_tokens": one.other_share,
            "first_other_tokens": [asdict(other) for other in one.first.values()],
        }
        for one in tallies
    ]
    return {
        "run": run.name,
        "method": run.manifest.label,
        "selectors": rows,
        "left_out": {selector.label: selector.left_out for selector in left_out},
    }


def _print(console: Console, run: RunFolder, tallies: Sequence[Tally], left_out: Sequence[Selector]) -> None:
    from rich.table import Table

    manifest = run.manifest
    console.print(f"{manifest.label} on {manifest.task.name} with {manifest.spec.model}, {run.name}")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", caption=LABEL)
    for name in ("selector", "agrees", "overlap", "tokens/step", "other"):
        table.add_column(name, justify="left" if name == "selector" else "right", no_wrap=name != "selector")
    table.add_column("first other token")
    words = {int(token): word for trace in run.traces for token, word in trace.words.items()}
    for one in sorted(tallies, key=lambda one: (one.selector.recorded, one.overlap), reverse=True):
        table.add_row(
            one.selector.label, f"{one.agreement:.1%}", f"{one.overlap:.1%}", f"{one.tokens_per_step:.2f}",
            f"{one.other_share:.1%}", _first(one.earliest, words),
        )  # fmt: skip
    console.print(table)
    for reason in dict.fromkeys(selector.left_out for selector in left_out):
        labels = ", ".join(selector.label for selector in left_out if selector.left_out == reason)
        console.print(f"left out  {labels}: {reason}", style="dim", soft_wrap=True)


def _first(other: OtherToken | None, words: Mapping[int, str]) -> str:
    """Where a selector first commits a token that differs from the final text, in words."""
    if other is None:
        return "-"
    token, final = (repr(words.get(one, f"token {one}")) for one in (other.token, other.final))
    return f"step {other.step + 1}/{other.steps}: {token} for {final}"
