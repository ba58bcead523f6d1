"""`dlmbench recommend DIR...`: which decoder at which setting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.analysis.load import Results
from dlmbench.analysis.recommend import BY
from dlmbench.analysis.recommend import recommend as advise
from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout
from dlmbench.errors import RequestError
from dlmbench.report.columns import record
from dlmbench.request.values import parse_values

if TYPE_CHECKING:
    from dlmbench.analysis.recommend import Advice, Candidate


def recommend(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", show_default=False)],
    max_drop: Annotated[float, typer.Option(help="Points of accuracy that may be lost against static k=1.")] = 2.0,
    batch: Annotated[str | None, typer.Option(help="Batch sizes, as 1,32.", show_default="all that were run")] = None,
    by: Annotated[str, typer.Option(help="What to save: cost, or time (tps).")] = "cost",
    split: Annotated[str, typer.Option(help="test, dev or all.")] = "test",
    json: flags.Json = False,
) -> None:
    """Say which setting to use, or that the items are too few to tell."""
    if by not in BY:
        raise RequestError(f"--by is {by!r}; it takes {' or '.join(BY)}.")
    if not 0 <= max_drop < 100:
        raise RequestError(f"--max-drop is {max_drop:g}; it takes points of accuracy, from 0 to below 100.")
    found = Results.load(*folders, split=split).groups
    wanted = [str(one) for one in parse_values(batch)] if batch else []
    here = sorted({str(group.rows[0].batch_size) for group in found}, key=lambda size: (len(size), size))
    missing = [size for size in wanted if size not in here]
    if missing:
        raise RequestError(
            f"No run on {split} items has batch size {missing[0]} (there are {', '.join(here) or 'none'}); "
            f"make them with dlmbench sweep --batch-size {missing[0]}."
        )
    chosen = [group for group in found if not wanted or str(group.rows[0].batch_size) in wanted]
    advice = [one for one in (advise(group, max_drop / 100, by) for group in chosen) if one]
    if not advice and not any(group.items for group in chosen):
        raise RequestError("The samples of these runs are not here, so nothing is paired; run the sweep again.")
    if not advice:
        raise RequestError("No setting stands beside a static run on its own weights and items; run static too.")
    if json:
        print_json({"max_drop": max_drop, "by": by, "advice": [_record(one) for one in advice]})
        return
    console = stdout()
    for one in advice:
        console.print("\n".join(one.sentences()), markup=False, soft_wrap=True)
    tried = ", ".join(dict.fromkeys(str(one.tried) for one in advice))
    console.print(
        f"Saved: {BY[by]}. Differences are paired on the same items; their intervals hold for all candidates of a "
        f"group together ({tried}). They do not cover settings that were chosen on these items by hand.",
        style="dim",
        markup=False,
        soft_wrap=True,
    )


def _record(one: Advice) -> dict[str, object]:
    return {
        "reference": record(one.reference, samples=False),
        "drop": one.drop,
        "tried": one.tried,
        "choice": _candidate(one.choice),
        "unsure": _candidate(one.unsure),
        "needed": one.needed,
        "sentences": one.sentences(),
    }


def _candidate(one: Candidate | None) -> dict[str, object] | None:
    from dataclasses import asdict

    if one is None:
        return None
    interval = {"difference": one.difference, "low": one.low, "high": one.high}
    return {"row": record(one.row, samples=False), **interval, "cost": asdict(one.cost), "keeps": one.keeps}
