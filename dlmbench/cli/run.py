"""`dlmbench run`: one method on one task, with its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench.analysis.load import Results
from dlmbench.cli import flags
from dlmbench.cli.console import Bars, print_json, print_notes, stdout
from dlmbench.cli.plan import print_plan
from dlmbench.cli.served import all_served, method_of, sentences, served_runner
from dlmbench.errors import RequestError
from dlmbench.files import Json
from dlmbench.report.columns import record
from dlmbench.report.terminal import print_run, print_served
from dlmbench.request import RunSpec
from dlmbench.request.key import same_request
from dlmbench.request.resolved import Anywhere, with_baselines
from dlmbench.request.values import number, optional, parse_values
from dlmbench.runs.local import LocalRunner

if TYPE_CHECKING:
    from dlmbench.request import ResolvedRun
    from dlmbench.request.resolved import Machine
    from dlmbench.runs import RunFolder


@flags.takes_options(required=("task",), many=("concurrency", "slo"))
def run(
    given: dict[str, Json],
    traces: flags.Traces = flags.TRACED,
    record_logits: flags.RecordLogits = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cost and what is missing, and stop.")] = False,
    gpu_hour: Annotated[
        float | None,
        typer.Option(min=0, help="What an hour of it costs: prices of tokens and answers.", rich_help_panel="Server"),
    ] = None,
    json: flags.Json = False,
) -> None:
    """Run one method on one task, with its baselines. The same command resumes it."""
    count = optional(number(int, 1))
    concurrency = [count(one, "concurrency") for one in parse_values(given.pop("concurrency", None))]
    given["method"] = method_of(given)
    spec = RunSpec.from_flags(given, concurrency=concurrency[0])
    if all_served([spec], dry_run=dry_run, logits=record_logits):
        return _served(spec, concurrency, gpu_hour, json)
    if gpu_hour is not None:
        raise RequestError("--gpu-hour prices a server: give --server, or leave it out.")
    runner = LocalRunner(traces=traces, logits=record_logits)
    runs, notes = with_its_baselines(spec, Anywhere() if dry_run else runner.machine)
    print_notes(notes)
    if dry_run:
        print_plan(runs[0].label, runs, runner, json)
        return
    with Bars(len(runs)) as bars:
        runner.progress = bars
        folders = runner.run(runs)
    _print(folders, json)


def with_its_baselines(spec: RunSpec, machine: Machine) -> tuple[list[ResolvedRun], list[str]]:
    """The run of `spec`, then its baselines that are other runs; and the notes for the user."""
    ours = spec.resolve(machine)
    found = {same_request(ours): ours}
    for baseline in with_baselines([spec])[:-1]:
        other = baseline.resolve(machine)
        found.setdefault(same_request(other), other)
    notes = list(ours.notes)
    if spec.against and ours.attention == "causal":
        notes.append(
            f"{spec.model} is autoregressive, so {' and '.join(spec.against)} cannot run on its weights: "
            "no baseline. A sweep shows it beside diffusion models."
        )
    return list(found.values()), notes


def _served(spec: RunSpec, many: Sequence[int | None], hour: float | None, json: bool) -> None:
    """A row of the server for each concurrency, beside those of the folders in ``--against``."""
    runs = [replace(spec, concurrency=one).resolve() for one in many]
    print_notes(note for run in runs for note in run.notes)
    with Bars(len(runs)) as bars:
        folders = served_runner(bars).run(runs)
    results = Results(folders)
    beside = sentences(results, spec.against)
    if json:
        rows = [{**record(row), "beside": beside[row]} for row in results.rows]
        print_json({"runs": rows, "saved": [str(folder.path) for folder in folders]})
        return
    print_served(stdout(), results, beside, hour)


def _print(folders: Sequence[RunFolder], json: bool) -> None:
    """The table of the runs; the first is the one that was asked for."""
    results = Results(folders)
    if json:
        ours = results.row(folders[0])
        others = [record(row) for row in results.rows if row is not ours]
        print_json({"run": record(ours), "baselines": others, "saved": str(folders[0].path)})
        return
    print_run(stdout(), results, folders[0])
