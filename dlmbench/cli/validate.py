"""`dlmbench validate DIR`: do the figures of run folders follow from what stands in them?"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.analysis.load import Results
from dlmbench.cli import flags
from dlmbench.cli.console import Bars, print_json, stdout
from dlmbench.errors import RequestError, RunError
from dlmbench.report.columns import record
from dlmbench.runs import RunFolder, find_runs
from dlmbench.runs.reruns import Rerun, keep_rerun
from dlmbench.runs.validate import Examined, Rows, Validator, validate_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Model = Annotated[str | None, typer.Option(help="Where the runs' checkpoint is here.", show_default="by run")]


def validate(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", show_default=False)],
    rerun: Annotated[int, typer.Option(min=0, help="Decode N items of each run again, drawn at random.")] = 0,
    by: Annotated[
        str | None, typer.Option(help="Your name, kept with what --rerun found.", show_default="nothing is kept")
    ] = None,
    data_dir: flags.DataDir = None,
    model: Model = None,
    json: flags.Json = False,
) -> None:
    """Check that hashes, counts, scores and tables follow from the samples; exit code 1 if not."""
    if by and not rerun:
        raise RequestError("--by names who decoded items again; give --rerun too, for example --rerun 20.")
    runs = find_runs(*folders)
    if not runs:
        raise RequestError(f"No run folder in {', '.join(map(str, folders))}; give the folder of a run or of a sweep.")
    verdicts = _verdicts(runs, Validator(data_dir, model), rerun, by)
    tables = {str(place): problems for place in _places(folders, runs) if (problems := _tables(place, runs))}
    if json:
        print_json({"runs": [_record(one) for one in verdicts], "tables": tables})
    else:
        _print(verdicts, tables)
    if tables or any(one.problems for one in verdicts):
        raise typer.Exit(1)


def _verdicts(runs: Sequence[RunFolder], validator: Validator, items: int, by: str | None) -> list[Examined]:
    found, seed = [], secrets.randbelow(1 << 31)  # which items, nobody knows beforehand
    with Bars(len(runs)) as bars:
        for run in runs:
            bars.begin(run.name, 0, 1)
            verdict = validator.rerun(run, items, seed) if items else validator.look(run)
            if verdict.rerun and verdict.again and by:
                keep_rerun(run, Rerun.here(by, *verdict.rerun, seed, verdict.again.resolved.device))
            found.append(verdict)
            bars.end()
    return found


def _places(folders: Sequence[Path], runs: Sequence[RunFolder]) -> list[Path]:
    """The folders that may hold tables of the runs."""
    return list(dict.fromkeys([*folders, *(run.path.parent for run in runs)]))


def _tables(place: Path, runs: Sequence[RunFolder]) -> list[str]:
    """Problems of the tables in a folder; of a run that cannot be read they say nothing."""

    def rows_of(some: Sequence[RunFolder]) -> Rows:
        rows = Results([run for run in some if _readable(run)]).rows
        return {one.key: record(one, samples=all(beside.run.samples for beside in one.group.rows)) for one in rows}

    return validate_tables(place, [run for run in runs if place in run.path.parents], rows_of)


def _readable(run: RunFolder) -> bool:
    try:
        return run.finished and run.samples is not None
    except RunError:
        return False


def _record(verdict: Examined) -> dict[str, object]:
    return {
        "run": verdict.run,
        "items": verdict.items,
        "problems": verdict.problems,
        "unchecked": verdict.unchecked,
        "rerun": verdict.rerun and dict(zip(("items", "same"), verdict.rerun)),
    }


_SHOWN = 3  # problems of a run


def _print(verdicts: Sequence[Examined], tables: Mapping[str, Sequence[str]]) -> None:
    console = stdout()

    def line(word: str, text: str) -> None:
        console.print(f"{word:<9}{text}", soft_wrap=True)

    for verdict in verdicts:
        again = f", {verdict.rerun[1]} of {verdict.rerun[0]} reproduced" if verdict.rerun else ""
        line("refused" if verdict.problems else "ok", f"{verdict.run}  {verdict.items} items{again}")
        for problem in verdict.problems[:_SHOWN]:
            line("", problem)
        if more := len(verdict.problems) - _SHOWN:
            if more > 0:
                line("", f"... and {more} more of the kind (--json has all).")
    for place, problems in tables.items():
        line("refused", place)
        for problem in problems[:_SHOWN]:
            line("", problem)
    for text in dict.fromkeys(text for verdict in verdicts for text in verdict.unchecked):
        count = sum(text in verdict.unchecked for verdict in verdicts)
        line("unseen", f"{text} ({count} of {len(verdicts)} runs)")
    if not tables and not any(verdict.problems or verdict.rerun for verdict in verdicts):
        line("", _MEANING)


_MEANING = "Consistent, which is not yet honest: --rerun 20 decodes items again and compares."
