"""`dlmbench card DIR`: results for a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmbench.analysis.load import Results
from dlmbench.errors import RequestError
from dlmbench.report.answer import answer
from dlmbench.report.card import model_card


def card(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", show_default=False)],
    split: Annotated[str, typer.Option(help="test, dev or all.")] = "test",
    model: Annotated[str | None, typer.Option(help="This model alone.", show_default="all")] = None,
    every: Annotated[bool, typer.Option("--every", help="Every setting, not one a decoder.")] = False,
) -> None:
    """Print results as a block for a model card (model-index)."""
    results = Results.load(*folders, split=split)
    chosen = {line.row.label for line in answer(results).lines}
    rows = [row for row in results.rows if (every or row.label in chosen) and model in (None, row.model)]
    if not rows:
        names = ", ".join(dict.fromkeys(row.model for row in results.rows))
        raise RequestError(f"No run of {model!r} is here; there are {names}.")
    print(model_card(rows), end="")
