"""Curves of accuracy against cost: fronts and how sure they are, matched points, areas. Plain numpy.

A method's settings on the same items are a curve. Whatever is uncertain about it is found in one way: items are drawn
with replacement, the same draw for every setting and every method (paired), and the whole computation is done again,
the choice of the front included. Between two settings of a front the straight line counts, because deciding item by
item with a coin which of the two to use reaches every point on it.

Left out: the uncertainty of the clock. A price is measured once for all rows, so it cancels in a ratio of costs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dlmbench.stats import LEVEL

RESAMPLES = 2_000
_AT_ONCE = 250  # draws that are evaluated together

HYPERVOLUME = (
    "Hyper-volume: the share of the rectangle from cost 0 to that of the reference row and from 0 to 100 % that one of "
    "the method's settings beats in both; 0.9 means that 90 % of it is at least as dear and no more accurate."
)


@dataclass(frozen=True)
class Curve:
    """One method's settings on the same items."""

    accuracy: np.ndarray  # [settings, items], 0 to 1
    cost: np.ndarray  # [settings, items], in plain forwards (or any other price that adds up)

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """(cost [settings], accuracy [settings])."""
        return self.cost.mean(1), self.accuracy.mean(1)


@dataclass(frozen=True)
class Estimate:
    """A number from all items with its bootstrap interval.

    `missing` is the share of draws without a value (an accuracy that is not reached, a budget that is too small). Where
    that is more than an interval leaves out at one end, there is no interval: its ends are nan.
    """

    value: float
    low: float
    high: float
    missing: float = 0.0

    @property
    def sure(self) -> bool:
        """Does the interval exist?"""
        return not (math.isnan(self.value) or math.isnan(self.low))


@functools.lru_cache(maxsize=2)  # every statistic of a table is computed on the same draws
def draws(items: int, resamples: int = RESAMPLES, seed: int = 0) -> list[np.ndarray]:
    """Weights [some, items] of the items in bootstrap draws, `resamples` in all; each row sums to 1."""
    rng = np.random.default_rng(seed)
    share = np.full(items, 1 / items)
    sizes = (min(_AT_ONCE, resamples - start) for start in range(0, resamples, _AT_ONCE))
    return [rng.multinomial(items, share, size=size) / items for size in sizes]


def estimate(
    curves: Sequence[Curve],
    statistic: Callable[[list[tuple[np.ndarray, np.ndarray]]], float],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic of several curves on the same items, with its paired bootstrap interval.

    statistic: gets (cost [settings], accuracy [settings]) of every curve, returns a number or nan.
    Raises ValueError when the curves stand on different numbers of items, or on none.
    """
    items = {curve.accuracy.shape[1] for curve in curves}
    if len(items) != 1 or items == {0}:
        raise ValueError(f"curves need the same, non-zero number of items, got {sorted(items)}")
    found = []
    for weights in draws(items.pop(), resamples, seed):
        means = [(weights @ curve.cost.T, weights @ curve.accuracy.T) for curve in curves]
        found += [statistic([(cost[i], accuracy[i]) for cost, accuracy in means]) for i in range(len(weights))]
    values = np.array(found)
    known = values[~np.isnan(values)]
    missing = 1 - len(known) / len(values)
    value = statistic([curve.means() for curve in curves])
    if missing > (1 - level) / 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, missing)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), missing)


# --- the front ------------------------------------------------------------------------------------------------------


def front_shares(curve: Curve, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each setting is on the front of all of them when the items are drawn again; shares [settings].

    Settings that agree on every item stand on the front together. Sums are rounded, since equal ones may differ in the
    last bit.
    """
    counts = np.zeros(len(curve.accuracy))
    for weights in draws(curve.accuracy.shape[1], resamples, seed):
        cost, gain = ((weights @ values.T).round(12) for values in (curve.cost, curve.accuracy))  # [draws, settings]
        as_good = (cost[:, None] <= cost[:, :, None]) & (gain[:, None] >= gain[:, :, None])  # [draws, setting, other]
        better = (cost[:, None] < cost[:, :, None]) | (gain[:, None] > gain[:, :, None])
        counts += (~(as_good & better).any(2)).sum(0)
    return counts / resamples


def _front(cost: np.ndarray, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The front in the order of cost, equal points once: both arrays rise."""
    order = np.lexsort((-accuracy, cost))
    cost, accuracy = cost[order], accuracy[order]
    first = np.concatenate([[True], accuracy[1:] > np.maximum.accumulate(accuracy)[:-1]])
    return cost[first], accuracy[first]


# --- matched points -------------------------------------------------------------------------------------------------


def accuracy_at(cost: np.ndarray, accuracy: np.ndarray, budget: float) -> float:
    """Accuracy that a method with these settings reaches for `budget`; nan when its cheapest setting costs more."""
    xs, ys = _front(cost, accuracy)
    return math.nan if budget < xs[0] else float(np.interp(budget, xs, ys))


def cost_at(cost: np.ndarray, accuracy: np.ndarray, wanted: float) -> float:
    """Smallest cost at which a method with these settings reaches accuracy `wanted`; nan when it never does."""
    xs, ys = _front(cost, accuracy)
    return math.nan if wanted > ys[-1] else float(np.interp(wanted, ys, xs))


def accuracy_at_cost(ours: Curve, theirs: Curve, budget: float, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Accuracy of ours minus that of theirs where both cost `budget`, as shares."""

    def statistic(means: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return accuracy_at(*means[0], budget) - accuracy_at(*means[1], budget)

    return estimate([ours, theirs], statistic, resamples=resamples, seed=seed)


def cost_at_accuracy(
    ours: Curve, theirs: Curve, drop: float = 0.0, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Cost of ours over cost of theirs, both at the best accuracy of theirs less `drop` (a share)."""

    def statistic(means: list[tuple[np.ndarray, np.ndarray]]) -> float:
        wanted = means[1][1].max() - drop
        return cost_at(*means[0], wanted) / cost_at(*means[1], wanted)

    return estimate([ours, theirs], statistic, resamples=resamples, seed=seed)


def mixture(cost: np.ndarray, accuracy: np.ndarray, budget: float) -> list[tuple[int, float]]:
    """The settings of the front, and their shares, that together cost `budget`; the dearest alone where it costs less,
    none where the cheapest costs more."""
    xs, _ = _front(cost, accuracy)
    slack = 1e-9 * abs(budget)  # sums of the same amounts in another order are the same budget
    if budget < xs[0] - slack:
        return []
    places = [int(np.lexsort((-accuracy, cost != x))[0]) for x in xs]
    after = int(np.searchsorted(xs, budget + slack, side="right"))
    if after == len(xs) or xs[after - 1] >= budget - slack:
        return [(places[after - 1], 1.0)]
    share = float((budget - xs[after - 1]) / (xs[after] - xs[after - 1]))
    return [(places[after - 1], 1 - share), (places[after], share)]


# --- areas ----------------------------------------------------------------------------------------------------------


def hypervolume(cost: Sequence[float] | np.ndarray, accuracy: Sequence[float] | np.ndarray, reference: float) -> float:
    """Share of the rectangle [0, reference] x [0, 1] that the settings dominate; accuracies from 0 to 1."""
    xs, ys = _front(np.asarray(cost, dtype=float), np.asarray(accuracy, dtype=float))
    inside = xs < reference
    edges = np.append(xs[inside], reference)
    return float((np.diff(edges) * ys[inside]).sum() / reference)
