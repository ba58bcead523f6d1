"""`dlmbench train RECIPE.yaml`: train a nano backbone or a head beside one, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmbench.errors import RequestError
from dlmbench.training.recipe import read_recipe


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, for example recipes/train-nano.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoint, log and weights [default: training-runs/<recipe name>].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on a checkpoint to continue from.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Stop, with a checkpoint, after this many minutes.")] = None,
) -> None:
    """Train a model or a head as a recipe says, from the checkpoint in the output folder if there is one.

    A run that is at its last step is left as it is.
    """
    plan = read_recipe(recipe)
    out = out or Path("training-runs") / plan.name
    checkpoint = out / "checkpoint.pt"
    if resume and not checkpoint.is_file():
        raise RequestError(f"There is no checkpoint.pt in {str(out)!r} to resume from; leave out --resume to start.")
    from dlmbench.training import loop

    if not loop.finished(plan, out):
        loop.train(plan, out, checkpoint.is_file(), minutes)
    typer.echo(out / "weights")
