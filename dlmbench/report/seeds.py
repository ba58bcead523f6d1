"""Several seeds of one setting: the mean, how far the seeds spread, and an interval over items.

Runs that differ in their seed alone are samples of the same decoder on the same items. Their mean is taken item by item
first, and the interval draws items again (a bootstrap of those means), so that ten seeds on fifty items do not count as
five hundred items. Runs that differ in anything else, hardware and weights above all, are refused.

Left out: the best of several samples (pass@k is the tasks').
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlmbench import stats
from dlmbench.errors import RequestError
from dlmbench.report.table import PAIRED_ON, interval, number, percent, pipe, row
from dlmbench.runs import RunFolder

_SAME = (
    *(name for name in PAIRED_ON if name != "seed"),
    *("method", "parameters", "method_version", "helper_weights"),
    "label",  # names the options of cache and sampling too
)


@dataclass(frozen=True)
class Averaged:
    """One setting over its seeds; accuracies are shares."""

    row: dict[str, Any]  # of the first seed: what all of them share
    seeds: list[int]
    accuracy: float
    low: float
    high: float
    each: list[float]  # accuracy of every seed
    nfe: list[float]

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracy between seeds."""
        return float(np.std(self.each, ddof=1)) if len(self.each) > 1 else 0.0


def average(runs: Sequence[RunFolder]) -> Averaged:
    """Runs of one setting with different seeds as one.

    Raises RequestError when they differ in anything but the seed, or when a seed comes twice.
    """
    rows = sorted(((row(run), run) for run in runs), key=lambda pair: pair[0]["seed"])
    first = rows[0][0]
    for record, _ in rows[1:]:
        other = next((name for name in _SAME if record[name] != first[name]), None)
        if other:
            raise RequestError(
                f"Runs {first['folder']} and {record['folder']} differ in {other} ({first[other]} and {record[other]}) "
                "and are not averaged: they are separate series."
            )
    seeds = [record["seed"] for record, _ in rows]
    if len(set(seeds)) != len(seeds):
        raise RequestError(f"Seed {max(seeds, key=seeds.count)} of {first['label']} is there twice; keep one of them.")
    scores = [{sample.key: sample.accuracy for sample in run.samples} for _, run in rows]
    keys = sorted(set.intersection(*(set(one) for one in scores)))
    means = np.mean([[one[key] for key in keys] for one in scores], axis=0)
    low, high = stats.mean_interval(means)
    each = [record["accuracy"] for record, _ in rows]
    return Averaged(first, seeds, float(means.mean()), low, high, each, [record["nfe"] for record, _ in rows])


def over_seeds(runs: Iterable[RunFolder]) -> list[Averaged]:
    """Every setting that was run with several seeds, averaged; settings with one seed are left out."""
    groups: dict[tuple, list[RunFolder]] = {}
    for run in runs:
        record = row(run)
        groups.setdefault(tuple(record[name] for name in _SAME), []).append(run)
    return [average(group) for group in groups.values() if len(group) > 1]


def seeds_markdown(found: Sequence[Averaged]) -> str:
    """A section for table.md; empty where no setting has several seeds."""
    if not found:
        return ""
    table = {
        "setting": [f"{one.row['task']} {one.row['label']}" for one in found],
        "model": [one.row["model"] for one in found],
        "device": [one.row["device"] for one in found],
        "seeds": [str(len(one.seeds)) for one in found],
        "accuracy": [interval(one.accuracy, one.low, one.high) for one in found],
        "deviation": [percent(one.deviation) for one in found],
        "lowest, highest": [f"{percent(min(one.each))}, {percent(max(one.each))}" for one in found],
        "NFE": [f"{number(min(one.nfe))} to {number(max(one.nfe))}" for one in found],
    }
    return "\n".join(["## Over seeds", "", pipe(table), "", _LEGEND, ""])


_LEGEND = (
    "Mean over seeds with a 95 % interval over items (items are drawn again, all seeds of an item together); deviation "
    "and range are between seeds. Only runs that differ in nothing but their seed are averaged."
)
