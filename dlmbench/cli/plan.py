"""What ``--dry-run`` prints: the runs, what they will take here, and what is missing for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from dlmbench.cli.console import print_json, stderr, stdout
from dlmbench.runs.estimate import CostEstimate, Planned, estimate, plan
from dlmbench.runs.preflight import Need, Needs, disk, needed_by
from dlmbench.stats import ALPHA, least_difference

if TYPE_CHECKING:
    from rich.table import Table

    from dlmbench.request import ResolvedRun
    from dlmbench.runs.local import LocalRunner

_COLUMNS = ("task", "model", "method", "batch_size", "done", "items", "forwards", "minutes")
_TEXT = 3  # leading columns that are words


def print_plan(
    name: str, runs: Sequence[ResolvedRun], runner: LocalRunner, json: bool, tune_on: str | None = None
) -> None:
    """Plan `runs`, try them on a few items, print. Leaves no file."""
    needs = Needs()
    with stderr().status("trying a few items of every run ..."):
        planned = plan(runs, runner, needs)
        cost = estimate(planned, runner)
    found = needed_by(runs, needs)
    found.append(disk(runs[-1].spec.out, cost.results_bytes))
    missing = [need for need in found if need.state == "missing"]
    if json:
        print_json(_record(name, planned, cost, missing, tune_on))
        return
    console = stdout()
    console.print(_table(planned))
    finished = sum(one.finished for one in planned)
    todo = sum(one.todo for one in planned)
    tuned = f"; every setting on {tune_on} items, then the chosen ones on test items" if tune_on else ""
    unknown = any(one.items is None for one in planned)
    items = "an unknown number of" if unknown else f"{todo:,}"
    lines = [
        f"{name}: {_count(len(planned), 'run')}, {finished} finished, {items} items to generate, into "
        f"{runs[-1].spec.out}{tuned}."
    ]
    lines += [f"missing {need.what}: {need.detail}" for need in missing]
    lines.append(sentence(cost, planned))
    lines += [_what_shows(*one) for one in least_differences(planned)]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


DISCORDANCE = 0.1  # taken for what is not known before: the share of items that only one of two settings solves


def least_differences(planned: Sequence[Planned]) -> list[tuple[str, int, int, float | None]]:
    """(task, items, comparisons with static, least true difference that they show) of every task and split."""
    tasks: dict[tuple[str, str], list[int]] = {}
    for one in planned:
        if one.items:
            tasks.setdefault((one.resolved.spec.task, one.resolved.spec.split), []).append(one.items)
    found = []
    for (task, split), counts in tasks.items():
        items, others = min(counts), max(len(counts) - 1, 1)
        found.append((f"{task} ({split})", items, others, least_difference(items, DISCORDANCE, alpha=ALPHA / others)))
    return found


def _what_shows(task: str, items: int, others: int, least: float | None) -> str:
    """The same in words."""
    shown = f"a difference of {100 * least:.1f} points or more shows" if least else "no difference whatever shows"
    return (
        f"{task}: on {items:,} items, in {_count(others, 'comparison')} corrected for their number, {shown} in four of "
        f"five cases, if only one of two settings solves {100 * DISCORDANCE:g} % of them."
    )


def sentence(cost: CostEstimate, planned: Sequence[Planned]) -> str:
    """The estimate in words."""
    open_runs = sum(not one.finished for one in planned)
    if not open_runs:
        return "Everything is finished: the same command without --dry-run prints its table."
    if not cost.tried:
        return "Nothing can be tried before what is missing is here, so there is no estimate. Nothing was run."
    most = "At most" if cost.bound else "About"
    words = [
        f"{most} {_rounded(cost.forwards)} forwards",
        f"{_size(cost.memory_bytes)} of memory for the model",
        f"{_size(cost.results_bytes)} of results",
        f"{_duration(cost.seconds)} here",
    ]
    tried = f"{cost.tried} of {_count(cost.runs, 'run')} were tried on a few items, in {cost.spent:.0f} s"
    rest = f"; the other {cost.runs - cost.tried} are taken like their neighbours" if cost.tried < cost.runs else ""
    without = open_runs - cost.runs
    left_out = f" Not counted: {_count(without, 'run')} that something is missing for." if without else ""
    cut = " Answers were cut in the trials and are taken to reach their full length." if cost.bound else ""
    return f"{', '.join(words[:-1])} and {words[-1]} ({tried}{rest}).{cut}{left_out} Nothing was run."


def _rounded(number: float) -> str:
    """Three digits are all that a trial can tell."""
    whole = round(number)
    return f"{round(whole, min(3 - len(str(whole)), 0)):,}"


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


class PlanRow(TypedDict):
    """One run of a plan, as ``--dry-run --json`` prints it; None: not known."""

    task: str
    model: str
    method: str
    split: str
    batch_size: int
    folder: str | None
    done: int
    items: int | None
    finished: bool
    missing: list[str]
    forwards: float | None
    minutes: float | None


def _row(one: Planned) -> PlanRow:
    run, spec = one.resolved, one.resolved.spec
    return {
        "task": spec.task,
        "model": run.preset.name,
        "method": run.label,
        "split": spec.split,
        "batch_size": run.batch_size,
        "folder": one.folder,
        "done": one.done,
        "items": one.items,
        "finished": one.finished,
        "missing": [need.what for need in one.missing],
        "forwards": one.todo * one.trial.forwards if one.trial else None,
        "minutes": one.seconds / 60 if one.trial else None,
    }


def _record(
    name: str, planned: Sequence[Planned], cost: CostEstimate, missing: Sequence[Need], tune_on: str | None
) -> dict[str, object]:
    estimate = {
        "runs": cost.runs,
        "tried": cost.tried,
        "forwards": cost.forwards,
        "memory_gb": cost.memory_bytes / 1e9,
        "results_gb": cost.results_bytes / 1e9,
        "minutes": cost.seconds / 60,
        "upper_limit": cost.bound,
        "trial_seconds": cost.spent,
    }
    return {
        "name": name,
        "out": planned[-1].resolved.spec.out,
        "tune_on": tune_on,
        "cells": [_row(one) for one in planned],
        "items_to_do": sum(one.todo for one in planned),
        "estimate": estimate if cost.tried else None,
        "least_difference": {task: least for task, _, _, least in least_differences(planned)},
        "missing": [need._asdict() for need in missing],
    }


def _table(planned: Sequence[Planned]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for number, column in enumerate(_COLUMNS):
        table.add_column(column.replace("_", " "), justify="left" if number < _TEXT else "right")
    for one in planned:
        row = _row(one)
        words: dict[str, object] = {**row}
        words["forwards"] = "" if row["forwards"] is None else f"{row['forwards']:,.0f}"
        words["minutes"] = "" if row["minutes"] is None else f"{row['minutes']:.2f}"
        words["items"] = "?" if row["items"] is None else row["items"]
        table.add_row(*(str(words[column]) for column in _COLUMNS))
    return table
