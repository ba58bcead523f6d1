"""A sweep: all its runs, or with ``tune_on`` all settings on dev items and the chosen ones on test items.

Choosing: of a method's settings on one task and one set of weights, the cheapest whose dev accuracy is at most
`stats.MARGIN` below that of static decoding of one token a step; never the one with the highest dev accuracy, which is
luck. Static itself is the row of one token a step. How many settings were tried is kept and printed, because more
tries find more luck.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dlmbench.request import ResolvedRun, SweepSpec
from dlmbench.request.key import one_curve, same_items_and_weights
from dlmbench.runs.folder import RunFolder, write_bundle
from dlmbench.runs.runner import Runner
from dlmbench.stats import MARGIN
from dlmbench.tasks import load_task


@dataclass(frozen=True)
class Tried:
    """A setting that was tried on dev items."""

    label: str
    accuracy: float
    nfe: float
    cost: float | None = None
    """None where something was not priced."""


@dataclass(frozen=True)
class Choice:
    """Which setting of a method was taken, out of which."""

    task: str
    model: str
    method: str
    chosen: str
    tried: list[Tried]
    dev_items: int
    reference: Tried
    """The setting whose accuracy was to be kept."""

    @property
    def sentence(self) -> str:
        others = f"{len(self.tried)} setting{'s' if len(self.tried) != 1 else ''}"
        best = next(one for one in self.tried if one.label == self.chosen)
        if best == self.reference:
            why = f"{100 * best.accuracy:.1f} % there"
        elif best.accuracy >= _least(self.reference):
            why = (
                f"the cheapest that loses at most {100 * MARGIN:g} points against {self.reference.label}: "
                f"{100 * best.accuracy:.1f} % against {100 * self.reference.accuracy:.1f} % there"
            )
        else:
            why = (
                f"none keeps {self.reference.label}'s accuracy within {100 * MARGIN:g} points; it loses least, with "
                f"{100 * best.accuracy:.1f} % against {100 * self.reference.accuracy:.1f} % there"
            )
        return (
            f"{self.task}, {self.model}: {self.chosen} was chosen out of {others} of {self.method} "
            f"on {self.dev_items} dev items ({why})."
        )


@dataclass(frozen=True)
class Swept:
    """A finished sweep."""

    folders: list[RunFolder]
    choices: list[Choice]


def run_sweep(sweep: SweepSpec, runs: Sequence[ResolvedRun], runner: Runner) -> Swept:
    """Make, resume or find finished every run; writes sweep.json and manifests.jsonl into the sweep's folder.

    Raises RequestError, before anything is loaded but data, where a frozen suite's tasks have other items.
    """
    if sweep.suite:
        for task in sweep.suite.hashes.keys() & {run.spec.task for run in runs}:
            sweep.suite.check_data(task, load_task(task).content_hash)
    choices: list[Choice] = []
    if sweep.tune_on:
        runs, choices = _tuned(runs, runner)
    folders = runner.run(runs)
    record = {
        "name": sweep.name,
        "description": sweep.description,
        "tune_on": sweep.tune_on,
        "suite": sweep.suite and sweep.suite.name,
        "runs": [folder.name for folder in folders],
        "choices": [asdict(choice) for choice in choices],
    }
    place = Path(sweep.out) / "sweep.json"
    place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_bundle(folders, Path(sweep.out))
    return Swept(folders, choices)


def tries(runs: Sequence[ResolvedRun]) -> list[str]:
    """One sentence a task and model: how many settings each method tries, with a warning where the numbers differ."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for run in runs:
        found = counts.setdefault((run.spec.task, run.preset.name), {})
        found[run.spec.method] = found.get(run.spec.method, 0) + 1
    return [
        f"{task}, {model}: settings tried on dev: {', '.join(f'{name} {n}' for name, n in methods.items())}"
        + ("; unequal numbers favour the methods with more tries." if len(set(methods.values())) > 1 else ".")
        for (task, model), methods in counts.items()
    ]


def planned_runs(sweep: SweepSpec, runs: Sequence[ResolvedRun]) -> list[ResolvedRun]:
    """What will run, as far as it is known before: with ``tune_on`` every setting on dev items and, for the setting of
    each contest that will be chosen, the first one on test items."""
    if not sweep.tune_on:
        return list(runs)
    return [*(on_dev(run) for run in runs), *(group[0] for group in contests(runs))]


def contests(runs: Sequence[ResolvedRun]) -> list[list[ResolvedRun]]:
    """Runs in groups that compete: one a method, task and set of weights."""
    groups: dict[str, list[ResolvedRun]] = {}
    for run in runs:
        groups.setdefault(one_curve(run.spec), []).append(run)
    return list(groups.values())


def on_dev(run: ResolvedRun) -> ResolvedRun:
    """The same setting on dev items, kept below dev/."""
    return replace(run, spec=replace(run.spec, split="dev", out=str(Path(run.spec.out) / "dev")))


def _tuned(runs: Sequence[ResolvedRun], runner: Runner) -> tuple[list[ResolvedRun], list[Choice]]:
    """The runs whose settings were chosen on dev, one a contest."""
    groups = contests(runs)
    folders = iter(runner.run([on_dev(run) for group in groups for run in group]))
    results = [[(run, next(folders).metrics) for run in group] for group in groups]
    tried = [[Tried(run.label, one.accuracy, one.nfe or 0, one.cost) for run, one in group] for group in results]
    references = {
        same_items_and_weights(group[0].spec): slowest(settings)
        for group, settings in zip(groups, tried)
        if group[0].spec.method == "static"
    }
    winners: list[ResolvedRun] = []
    choices: list[Choice] = []
    for group, settings, found in zip(groups, tried, results):
        spec = group[0].spec
        reference = references.get(same_items_and_weights(spec)) or max(settings, key=lambda one: one.accuracy)
        chosen = reference if spec.method == "static" else cheapest_within(settings, reference)
        place = settings.index(chosen)
        winners.append(group[place])
        items = found[place][1].items
        choices.append(Choice(spec.task, group[0].preset.name, spec.method, chosen.label, settings, items, reference))
    return winners, choices


def slowest(settings: Sequence[Tried]) -> Tried:
    """Static's row of one token a step."""
    return max(settings, key=lambda one: one.nfe)


def cheapest_within(settings: Sequence[Tried], reference: Tried) -> Tried:
    """The cheapest setting (in forwards where something was not priced) that loses at most the margin; where none does,
    the one that loses least."""
    kept = [one for one in settings if one.accuracy >= _least(reference)]
    priced = all(one.cost is not None for one in settings)
    if kept:
        return min(kept, key=lambda one: ((one.cost or 0.0) if priced else one.nfe, -one.accuracy))
    return max(settings, key=lambda one: (one.accuracy, -one.nfe))


def _least(reference: Tried) -> float:
    """The lowest accuracy that keeps the reference's."""
    return reference.accuracy - MARGIN - 1e-9
