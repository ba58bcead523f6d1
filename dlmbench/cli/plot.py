"""`dlmbench plot`: figures of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.analysis import published
from dlmbench.analysis.load import Results
from dlmbench.cli import flags
from dlmbench.cli.console import print_json
from dlmbench.errors import RequestError
from dlmbench.report.figures import curves, matrix, pareto, parts

if TYPE_CHECKING:
    from dlmbench.analysis.published import Pair
    from dlmbench.analysis.row import Row


def plot(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", show_default=False)],
    kind: Annotated[
        str,
        typer.Option(
            help="pareto; threshold (curves); cost (share, by decoder); tasks (what breaks where); losses (the "
            "rule's, the model's, where an ideal model ran too); acceptance (of drafts); batch (speed by batch size)."
        ),
    ] = "pareto",
    x: Annotated[
        str, typer.Option("--x", help="pareto: cost, bytes, flops, 8b, nfe, tps or tpf; several as bytes,flops.")
    ] = "cost",
    y: Annotated[str, typer.Option("--y", help="pareto: accuracy, strict or flexible.")] = "accuracy",
    model: Annotated[
        str | None,
        typer.Option(help="pareto: a model of these runs, or all.", show_default="the one with most to tell"),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="pareto: published accuracies of the same settings, as grey diamonds.")
    ] = False,
    column: Annotated[bool, typer.Option("--column", help="Sized for one column of a paper.")] = False,
    split: Annotated[str, typer.Option(help="test, dev or all.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Where the figure goes.", show_default="first folder")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the files.", show_default="the kind")] = None,
    json: flags.Json = False,
) -> None:
    """Draw finished runs, accuracy against cost by default: .png, .svg and .pdf."""
    others = {
        "threshold": curves.threshold_curves, "cost": matrix.cost_ratios, "tasks": matrix.tasks,
        "losses": parts.losses, "acceptance": curves.acceptance, "batch": curves.batch_curves,
    }  # fmt: skip
    if kind not in ("pareto", *others):
        raise RequestError(f"--kind is {kind!r}; it takes one of pareto, {', '.join(others)}.")
    given = {"--published": published, "--model": model, "--x": x != "cost", "--y": y != "accuracy"}
    for flag in (flag for flag, value in given.items() if value and kind != "pareto"):
        raise RequestError(f"{flag} is for --kind pareto, this is {kind}: leave it out.")
    rows = Results.load(*folders, split=split).rows
    place, name = out or folders[0], name or kind
    if kind == "pareto":
        written = pareto.plot(rows, place, x, y, name, _pairs(rows) if published else (), column, model)
    else:
        written = others[kind](rows, place, name, column)
    if json:
        print_json({"files": [str(path) for path in written], "rows": len(rows)})
    else:
        for path in written:
            print(path)


def _pairs(rows: list[Row]) -> list[Pair]:
    """Published figures of the settings that these rows have."""
    pairs = published.pairs(rows, published.read())
    if not pairs:
        raise RequestError(
            "Nothing was published for the models, tasks and settings of these runs: leave --published out."
        )
    return pairs
