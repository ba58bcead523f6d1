"""`dlmbench check mine.py`: does a third-party decoder keep the promises that every decoder makes?"""

from __future__ import annotations

from typing import Annotated

import typer

from dlmbench.registry import DECODERS


def check(
    decoder: Annotated[
        str, typer.Argument(help="Python file that registers a decoder, or the name of a method", show_default=False)
    ],
    reference: Annotated[
        str | None, typer.Option(help="file with a slow version that must give the same tokens")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the random prompts")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Try a decoder on tiny random networks; exit code 1 when a promise is broken."""
    import json as json_module

    from rich.console import Console

    from dlmbench.decoders.testing import conformance, decoders_of

    classes = [DECODERS.get(decoder)] if decoder in DECODERS else decoders_of(decoder)
    slow = decoders_of(reference)[0] if reference else None
    console = Console(highlight=False, markup=False)
    records, broken = [], 0
    for cls in classes:
        for finding in conformance(cls, slow, seed):
            broken += not finding.holds
            records.append({"decoder": cls.name, **finding.__dict__})
            if not json:
                mark, colour = ("holds ", "green") if finding.holds else ("broken", "red")
                if finding.holds and finding.detail:
                    mark, colour = "loses ", "yellow"
                console.print(mark, style=colour, end="")
                console.print(f"  {cls.name}: {finding.promise}")
                if finding.detail:
                    console.print(f"        {finding.detail}")
    if json:
        print(json_module.dumps({"broken": broken, "findings": records}))
    if broken:
        raise typer.Exit(1)
