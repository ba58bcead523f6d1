"""`dlmbench plot`: figures of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import print_json


def plot(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", show_default=False)],
    kind: Annotated[
        str, typer.Option(help="pareto; threshold (curves); acceptance (of drafts); batch (speed by batch size).")
    ] = "pareto",
    x: Annotated[str, typer.Option("--x", help="pareto: cost, nfe, tps, flops or tpf.")] = "cost",
    y: Annotated[str, typer.Option("--y", help="pareto: accuracy, strict or flexible.")] = "accuracy",
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
    from dlmbench.errors import RequestError
    from dlmbench.report.curves import finished
    from dlmbench.report.figures import KINDS
    from dlmbench.report.table import table

    if kind not in KINDS:
        raise RequestError(f"--kind is {kind!r}; it takes one of {', '.join(KINDS)}.")
    if published and kind != "pareto":
        raise RequestError(f"--published is for --kind pareto, this is {kind}: leave it out.")
    runs = [run for run in finished(*folders) if split in ("all", run.manifest.spec.split)]
    if not runs:
        raise RequestError(f"No finished run on {split} items there; --split takes test, dev or all.")
    frame = table(runs, samples=False)
    place, name = out or folders[0], name or kind
    written = _draw(
        kind, frame, runs, place, name, column, {"x": x, "y": y, "published": _pairs(runs) if published else ()}
    )
    if json:
        print_json({"files": [str(path) for path in written], "rows": len(frame)})
    else:
        for path in written:
            print(path)


def _draw(kind: str, frame: Any, runs: list[Any], place: Path, name: str, column: bool, pareto: dict[str, Any]) -> Any:
    from dlmbench.report import figures
    from dlmbench.report.pareto import plot as draw

    if kind == "pareto":
        return draw(frame, place, name=name, column=column, **pareto)
    if kind == "acceptance":
        return figures.acceptance(runs, place, name, column)
    return {"threshold": figures.threshold_curves, "batch": figures.batch_curves}[kind](frame, place, name, column)


def _pairs(runs: list[Any]) -> list[Any]:
    """Published figures of the settings that these runs have."""
    from dlmbench.errors import RequestError
    from dlmbench.report import published
    from dlmbench.report.table import row

    pairs = published.pairs([row(run) for run in runs], published.read())
    if not pairs:
        raise RequestError(
            "Nothing was published for the models, tasks and settings of these runs: leave --published out."
        )
    return pairs
