"""`dlmbench verify DIR...`: run golden cases and say for each whether it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmbench.request.resolved import Machine


def verify(
    folders: Annotated[list[Path], typer.Argument(help="folders of golden cases", show_default=False)],
    device: Annotated[str, typer.Option(help="where the networks run: cpu, cuda")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Replay golden traces; exit code 1 when any case fails."""
    import json as json_module

    from rich.console import Console

    from dlmbench.verify import run_folder

    device = Machine().device(device)
    console = Console(highlight=False, markup=False)
    colours = {"passed": "green", "failed": "red", "skipped": "yellow"}
    outcomes = []
    for folder in folders:
        area = folder.name
        for outcome in run_folder(folder, device):
            outcomes.append((area, outcome))
            if not json:
                detail = f"  {outcome.detail}" if outcome.detail else ""
                console.print(f"{outcome.status:8} ", style=colours[outcome.status], end="")
                console.print(f"{area}/{outcome.case}  ({outcome.source})", detail, soft_wrap=True)
    counts = {status: sum(o.status == status for _, o in outcomes) for status in colours}
    if json:
        cases = [{"area": area, **outcome.__dict__} for area, outcome in outcomes]
        print(json_module.dumps({**counts, "cases": cases}))
    else:
        console.print(", ".join(f"{n} {status}" for status, n in counts.items()))
    if counts["failed"]:
        raise typer.Exit(1)
