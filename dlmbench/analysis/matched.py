"""What methods reach at one cost, and what they pay for one accuracy, against the reference of their group.

A method is a curve (`dlmbench.analysis.fronts`) whose points are its settings. Left out: groups without samples, which
have no items to draw from, and groups without a row of static decoding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from dlmbench.analysis import fronts
from dlmbench.analysis.row import RIVAL, Group, Row
from dlmbench.stats import wilson

RESAMPLES = 1_000
BUDGET = 0.5  # the matched cost, as a share of the reference row's
DROP = 0.01  # the matched accuracy lies this share below the reference row's

Means = list[tuple[np.ndarray, np.ndarray]]  # of each curve: (cost [settings], accuracy [settings])


@dataclass(frozen=True)
class Matched:
    """One method beside the reference."""

    method: str
    settings: int
    hypervolume: float
    accuracy: fronts.Estimate
    """At `BUDGET` of the reference's cost."""
    against: fronts.Estimate | None
    """The same minus that of plain threshold decoding; None for that itself, and where there is none."""
    cost: fronts.Estimate
    """For the reference's accuracy less `DROP`, as a share of the reference's."""


@functools.lru_cache(maxsize=256)
def matched(group: Group) -> tuple[Matched, ...]:
    """One record a method; empty where there is no reference row, or no item that all rows hold."""
    base = group.reference
    if base is None or not group.items:
        return ()
    methods = group.methods()
    return tuple(_matched(group, base, method, rows, methods.get(RIVAL)) for method, rows in methods.items())


def _matched(group: Group, base: Row, method: str, rows: list[Row], rivals: list[Row] | None) -> Matched:
    curve, reference = group.curve(*rows), group.curve(base)
    cost, accuracy = curve.means()
    against = None
    if rivals and method != RIVAL:
        against = fronts.estimate([curve, reference, group.curve(*rivals)], _gap_at_budget, resamples=RESAMPLES)
    return Matched(
        method,
        len(rows),
        fronts.hypervolume(cost, accuracy, float(reference.cost.mean())),
        _widened(fronts.estimate([curve, reference], _at_budget, resamples=RESAMPLES), group),
        against,
        fronts.estimate([curve, reference], _cost_needed, resamples=RESAMPLES),
    )


def _widened(found: fronts.Estimate, group: Group) -> fronts.Estimate:
    """An accuracy that no draw moves (all items right) is as unsure as its Wilson interval says."""
    if not found.sure or found.high - found.low > 1e-9:
        return found
    low, high = wilson(round(found.value * len(group.items), 6), len(group.items))
    return replace(found, low=low, high=high)


def _at_budget(means: Means) -> float:
    return fronts.accuracy_at(*means[0], BUDGET * means[1][0][0])


def _gap_at_budget(means: Means) -> float:
    budget = BUDGET * means[1][0][0]
    return fronts.accuracy_at(*means[0], budget) - fronts.accuracy_at(*means[2], budget)


def _cost_needed(means: Means) -> float:
    return fronts.cost_at(*means[0], means[1][1][0] - DROP) / means[1][0][0]
