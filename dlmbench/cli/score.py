"""`dlmbench score DIR`: judge stored generations again, without any model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import print_json, print_notes, stdout
from dlmbench.errors import RequestError
from dlmbench.runs import find_runs
from dlmbench.runs.aggregate import aggregate
from dlmbench.runs.scored import Tasks

if TYPE_CHECKING:
    from dlmbench.runs import RunFolder


class Rescored(TypedDict):
    """What became of one run; accuracy is None while it is unfinished."""

    run: str
    items: int
    accuracy: float | None
    changed: int


def score(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", show_default=False)],
    data_dir: flags.DataDir = None,
    model: Annotated[
        str | None, typer.Option(help="Where the runs' checkpoint is, for chat prompts.", show_default="by run")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Programs judged at a time.")] = 2,
    json: flags.Json = False,
) -> None:
    """Score stored generations again and renew their metrics; generated code runs in the sandbox only."""
    runs = find_runs(*folders)
    if not runs:
        raise RequestError(f"No run folder in {', '.join(map(str, folders))}; give the folder of a run or of a sweep.")
    tasks = Tasks(data_dir, model)
    rows = [_rescore(run, tasks, workers) for run in runs if run.samples]
    print_notes(f"{run.name}: no samples are here, nothing to score" for run in runs if not run.samples)
    print_notes(
        row["run"] + ": unfinished, its samples were scored and it has no metrics yet"
        for row in rows
        if row["accuracy"] is None
    )
    if json:
        print_json({"runs": rows})
        return
    console = stdout()
    for row in rows:
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
        console.print(
            f"{row['run']}  {row['items']} items, accuracy {accuracy}, {row['changed']} scores changed",
            markup=False,
            soft_wrap=True,
        )


def _rescore(run: RunFolder, tasks: Tasks, workers: int) -> Rescored:
    """Replace the scores of one run; speed and cost stay what they were measured to be."""
    manifest = run.manifest
    before = run.metrics if run.finished else None
    task = tasks.of(manifest)
    items = {item.key: item for item in task.items(manifest.spec.split, manifest.spec.limit)}
    with run.writing() as writer:
        samples = run.samples
        scores = task.score_many([(items[sample.key], sample.text) for sample in samples], workers=workers)
        changed = sum(dict(new) != sample.scores for sample, new in zip(samples, scores))
        samples = [replace(sample, scores=dict(new)) for sample, new in zip(samples, scores)]
        writer.unfinish()
        writer.samples(samples)
        metrics = aggregate(samples, manifest.prices, before.speed) if before else None
        if metrics:
            writer.metrics(metrics)
    return {
        "run": run.name,
        "items": len(samples),
        "accuracy": metrics.accuracy if metrics else None,
        "changed": changed,
    }
