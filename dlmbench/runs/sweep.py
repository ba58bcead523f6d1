"""A sweep: all its runs, or with ``tune_on`` all settings on dev items and the chosen ones on test items.

Choosing: of a method's settings on one task and one set of weights, the cheapest whose dev accuracy is at most
`stats.MARGIN` below that of static decoding of one token a step; never the one with the highest dev accuracy, which is
luck. Static itself is the row of one token a step. How many settings were tried is kept, printed and a column, because
more tries find more luck. A method with one setting has nothing to choose and is not tried; entries with
``report: all`` are reported at every setting beside the chosen one. A trial measures accuracy and cost alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dlmbench.request import ResolvedRun, SweepSpec
from dlmbench.request.key import one_curve, same_items_and_weights
from dlmbench.request.run_spec import HELPERS
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
    folder: str = ""
    """Of the chosen setting's run on test items."""

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
        runs, choices = _tuned(runs, runner, sweep.dev_limit)
    folders = runner.run(runs)
    choices = [replace(choice, folder=folder.name) for choice, folder in zip(choices, folders)]
    place = Path(sweep.out) / "sweep.json"
    made = [asdict(choice) for choice in choices]
    chosen = [(one["task"], one["model"], one["method"]) for one in made]
    earlier = [one for one in _choices(place) if (one["task"], one["model"], one["method"]) not in chosen]
    record = {
        "name": sweep.name,
        "description": sweep.description,
        "tune_on": sweep.tune_on,
        "suite": sweep.suite and sweep.suite.name,
        "runs": [folder.name for folder in folders],
        "choices": [*earlier, *made],  # a row that was once chosen stays so
    }
    place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_bundle(folders, Path(sweep.out))
    return Swept(folders, choices)


def trials_of(folder: Path) -> dict[str, int]:
    """Name of a run's folder -> how many settings competed on dev before it was made, from the sweep that filled
    `folder`; those that nothing was chosen for are not in it, and neither is static, which is the reference."""
    competed = [one for one in _choices(folder / "sweep.json") if one.get("folder") and one["method"] != "static"]
    return {choice["folder"]: len(choice["tried"]) for choice in competed}


def _choices(file: Path) -> list[dict[str, Any]]:
    """The choices in a sweep.json; those of no sweep, or of one that an earlier version wrote, are none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["choices"]
        needed = {field.name for field in fields(Choice)} - {"folder"}
        return [one for one in found if needed <= one.keys()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def tries(runs: Sequence[ResolvedRun]) -> list[str]:
    """One sentence a task and model: how many settings each method tries, with a warning where the numbers differ, and
    which methods keep the setting that was given. Static is left out, which is the reference."""
    places: dict[tuple[str, str], list[list[ResolvedRun]]] = {}
    for group in contests(runs):
        if group[0].spec.method != "static":
            places.setdefault((group[0].spec.task, group[0].preset.name), []).append(group)
    return [f"{task}, {model}: {_tries(groups)}" for (task, model), groups in places.items()]


def _tries(groups: Sequence[list[ResolvedRun]]) -> str:
    names = [" ".join([group[0].spec.method, *_circumstances(group[0])]) for group in groups]
    tried = [f"{name} {len(group)}" for name, group in zip(names, groups) if len(group) > 1]
    given = [name for name, group in zip(names, groups) if len(group) == 1]
    words = [f"settings tried on dev: {', '.join(tried) or 'none'}"]
    if len({len(group) for group in groups if len(group) > 1}) > 1:
        words.append("unequal numbers favour the methods with more tries")
    if given:
        words.append(f"at the setting that was given: {', '.join(given)}")
    return "; ".join(words) + "."


def _circumstances(run: ResolvedRun) -> list[str]:
    """What tells contests of one method apart: cache policy, helpers, shared options."""
    spec = run.spec
    helpers = [f"{role}={name}" for role in HELPERS if (name := getattr(spec, role))]
    shared = [f"{name.partition('.')[2]}={value}" for name, value in run.shared.chosen().items()]
    return [*([spec.cache] if spec.cache != "none" else []), *helpers, *shared]


def planned_runs(sweep: SweepSpec, runs: Sequence[ResolvedRun]) -> list[ResolvedRun]:
    """What will run, as far as it is known before: with ``tune_on`` the trials on dev items, then all that is reported
    and, for the setting of each other contest that will be chosen, the first one."""
    if not sweep.tune_on:
        return list(runs)
    tried = [on_dev(run, sweep.dev_limit) for group in _tried(contests(runs)) for run in group]
    chosen = [group[0] for group in contests(runs) if not any(run.reported for run in group)]
    return [*tried, *(run for run in runs if run.reported), *chosen]


def contests(runs: Sequence[ResolvedRun]) -> list[list[ResolvedRun]]:
    """Runs in groups that compete: one a method, task, set of weights, cache policy and whatever else rows share."""
    groups: dict[str, list[ResolvedRun]] = {}
    for run in runs:
        groups.setdefault(one_curve(run.spec), []).append(run)
    return list(groups.values())


def on_dev(run: ResolvedRun, limit: int | None = None) -> ResolvedRun:
    """The same setting as a trial on dev items, kept below dev/."""
    spec = replace(run.spec, split="dev", out=str(Path(run.spec.out) / "dev"))
    return replace(run, spec=replace(spec, limit=limit) if limit else spec, trial=True)


def _tried(groups: Sequence[list[ResolvedRun]]) -> list[list[ResolvedRun]]:
    """The contests that have something to choose, and the references that their settings are held against."""
    open_ones = [group for group in groups if len(group) > 1]
    beside = {same_items_and_weights(group[0].spec) for group in open_ones}
    return [
        group
        for group in groups
        if len(group) > 1 or (group[0].spec.method == "static" and same_items_and_weights(group[0].spec) in beside)
    ]


def _tuned(runs: Sequence[ResolvedRun], runner: Runner, limit: int | None) -> tuple[list[ResolvedRun], list[Choice]]:
    """The runs to report, and how the first of them were chosen on dev, one a contest."""
    groups = _tried(contests(runs))
    folders = iter(runner.run([on_dev(run, limit) for group in groups for run in group]))
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
    competed = [run for group in groups for run in group]
    others = [run for run in runs if run not in winners and (run.reported or run not in competed)]
    return [*winners, *others], choices


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
