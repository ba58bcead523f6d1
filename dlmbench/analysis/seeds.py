"""Several seeds of one setting: the mean, how far the seeds spread, and an interval over items.

Runs that differ in their seed alone are samples of the same decoder on the same items. Their mean is taken item by item
first, and the interval draws items again (a bootstrap of those means), so that ten seeds on fifty items do not count as
five hundred items. Runs that differ in anything else, hardware and weights above all, are refused.

Left out: the best of several samples (pass@k is the tasks').
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from dlmbench import stats
from dlmbench.analysis.load import Results
from dlmbench.analysis.row import Row, setting
from dlmbench.errors import RequestError


@dataclass(frozen=True)
class Averaged:
    """One setting over its seeds; accuracies are shares."""

    row: Row  # of the first seed: what all of them share
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


def average(rows: Sequence[Row]) -> Averaged:
    """Runs of one setting with different seeds as one.

    Raises RequestError when they differ in anything but the seed, or when a seed comes twice.
    """
    rows = sorted(rows, key=_seed)
    first, same = rows[0], but_the_seed(rows[0])
    for row in rows[1:]:
        theirs = but_the_seed(row)
        other = next((name for name in same if theirs[name] != same[name]), None)
        if other:
            raise RequestError(
                f"Runs {first.run.name} and {row.run.name} differ in {other} ({same[other]} and {theirs[other]}) "
                "and are not averaged: they are separate series."
            )
    seeds = list(map(_seed, rows))
    if len(set(seeds)) != len(seeds):
        raise RequestError(f"Seed {max(seeds, key=seeds.count)} of {first.label} is there twice; keep one of them.")
    keys = sorted(set.intersection(*(set(row.samples) for row in rows)))
    means = np.mean([[row.samples[key].accuracy for key in keys] for row in rows], axis=0)
    low, high = stats.mean_interval(means)
    return Averaged(
        first, seeds, float(means.mean()), low, high, [row.accuracy for row in rows], [row.nfe for row in rows]
    )


def over_seeds(results: Results) -> list[Averaged]:
    """Every setting that was run with several seeds, averaged. Left out are settings with one seed, and those with a
    seed that is there twice (the same run in two folders)."""
    series: dict[tuple[Hashable, ...], list[Row]] = {}
    for row in results.rows:
        series.setdefault(tuple(but_the_seed(row).values()), []).append(row)
    return [average(rows) for rows in series.values() if len(rows) > 1 and len(set(map(_seed, rows))) == len(rows)]


def _seed(row: Row) -> int:
    return row.manifest.spec.seed


def but_the_seed(row: Row) -> dict[str, Hashable]:
    """What runs of one setting share: all that makes rows comparable, but the seed, and what the decoder was set to."""
    return {**{name: value for name, value in row.paired.items() if name != "seed"}, **setting(row)}
