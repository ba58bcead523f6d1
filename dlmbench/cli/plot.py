"""`dlmbench plot`: the Pareto figure of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import print_json


def plot(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", show_default=False)],
    x: Annotated[str, typer.Option("--x", help="cost, nfe, tps, flops or tpf.")] = "cost",
    y: Annotated[str, typer.Option("--y", help="accuracy, strict or flexible.")] = "accuracy",
    split: Annotated[str, typer.Option(help="test, dev or all.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Where the figure goes.", show_default="first folder")] = None,
    name: Annotated[str, typer.Option(help="Name of the files.")] = "pareto",
    json: flags.Json = False,
) -> None:
    """Draw accuracy against cost: pareto.png, .svg and .pdf."""
    from dlmbench.errors import RequestError
    from dlmbench.report.pareto import plot as draw
    from dlmbench.report.table import read_results

    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"Folder {str(folder)!r} does not exist; give the folder of a run or of a sweep.")
    frame = read_results(*folders, samples=False)
    if split != "all":
        frame = frame[frame["split"] == split]
        if frame.empty:
            raise RequestError(f"No finished run on {split} items there; --split takes test, dev or all.")
    written = draw(frame, out or folders[0], x=x, y=y, name=name)
    if json:
        print_json({"files": [str(path) for path in written], "rows": len(frame)})
    else:
        for path in written:
            print(path)
