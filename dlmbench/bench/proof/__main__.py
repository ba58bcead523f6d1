"""``python -m dlmbench.bench.proof``: the stages of the proof, a line each, and the screen that sums them up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dlmbench.bench.proof import supervisor
from dlmbench.bench.proof.stage import FAILED, SIZES, STOPPED
from dlmbench.bench.proof.summary import screen_of
from dlmbench.errors import DlmbenchError, RequestError


def main(
    out: Annotated[Path, typer.Option(help="folder for the records; what is finished there is kept")],
    budget: Annotated[float, typer.Option(help="seconds for everything, the start of the worker included")] = 375,
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu")] = "cuda",
    shapes: Annotated[str, typer.Option(help="full, or tiny for a rehearsal")] = "full",
    only: Annotated[str, typer.Option(help=f"of {','.join(supervisor.EVERY)}")] = "",
    skip: Annotated[str, typer.Option(help="stages to leave out")] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="measure finished stages again")] = False,
) -> None:
    """Prove on this device what can only be proved there; exit code 1 when a stage fails or is stopped."""
    if shapes not in SIZES:
        raise RequestError(f"Shapes {shapes!r} are unknown: give {' or '.join(SIZES)}.")
    if not 0 < budget < float("inf"):
        raise RequestError(f"--budget is {budget:g}; give seconds above 0.")
    stages = supervisor.chosen(only, skip)
    summary = supervisor.prove(out, device, shapes, budget, stages, fresh=fresh, say=lambda row: print(row, flush=True))
    print("\n" + screen_of(summary), end="")
    names = {stage.name for stage in stages}
    if any(one["status"] in (FAILED, STOPPED) for one in summary["stages"] if one["stage"] in names):
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except DlmbenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
