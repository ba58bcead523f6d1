"""Which decoder at which setting, if the accuracy may fall by so much and no more.

Among comparable rows every setting is compared with one-token-a-step decoding on the same items.
A setting keeps the limit when the score interval of its difference does; because the best of many settings is chosen on
the items that judge it, the intervals are widened so that they hold for all candidates together (Bonferroni). Where the
items allow neither yes nor no, that is the answer, with a guess at how many would do.

Left out: the choice between models, and costs in money.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlmbench import stats
from dlmbench.analysis import fronts, text
from dlmbench.analysis.row import Group, Row

BY = {"cost": "cost", "tps": "tokens/s"}


@dataclass(frozen=True)
class Candidate:
    """A setting, its loss against the reference and whether that keeps the limit."""

    row: Row
    difference: float
    low: float
    high: float
    cost: fronts.Estimate  # as a share of the reference's
    keeps: str  # "yes", "no" or stats.TOO_FEW


@dataclass(frozen=True)
class Advice:
    """What to take in one group of comparable rows; no `choice` where the items are too few, or nothing keeps it."""

    reference: Row
    drop: float
    tried: int
    choice: Candidate | None
    unsure: Candidate | None  # the best of those that may keep the limit, better than the choice
    needed: int | None  # about how many items would tell about it
    better: str  # "cheaper" or "faster": what was looked for
    proven: bool  # do all that were tried lose more than the limit, for sure?

    def sentences(self) -> list[str]:
        """The advice in words."""
        points, base = f"{100 * self.drop:g} point{'s' if self.drop != 0.01 else ''}", self.reference
        number = base.manifest.spec.seed
        seed = f", seed {number}" if number else ""
        place = f"{base.task} ({base.metrics.items} items), {base.model}, batch {base.batch_size}{seed}, {base.device}"
        if self.choice:
            found = [f"{place}: take {self.choice.row.label}; {_facts(self.choice, base)}."]
        elif self.unsure:
            found = [f"{place}: {stats.TOO_FEW} which setting loses at most {points} against {base.label}."]
        elif not self.tried:
            found = [f"{place}: no {self.better} setting than {base.label} was run."]
        elif self.proven:
            found = [f"{place}: stay with {base.label}; every {self.better} setting loses more than {points}."]
        else:
            found = [
                f"{place}: every {self.better} setting lost more than {points} against {base.label}, but "
                f"{base.metrics.items} items are too few to be sure."
            ]
        if self.unsure:
            more = f"about {_round(self.needed):,} items would tell" if self.needed else "it stands just at the limit"
            found.append(
                f"It may be {self.unsure.row.label} ({_facts(self.unsure, base)}), but {base.metrics.items} items "
                f"are too few to say so; {more}."
            )
        return found


def _round(count: int) -> int:
    """Two digits are all that such a guess is worth."""
    scale = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / scale) * scale


def _facts(one: Candidate, base: Row) -> str:
    metrics = one.row.metrics
    parts = [
        f"{text.interval(metrics.accuracy, metrics.accuracy_low, metrics.accuracy_high)} %",
        f"{text.signed(one.difference, one.low, one.high)} points against {base.label}",
        f"{text.ratio(one.cost.value, one.cost.low, one.cost.high)} of its cost",
    ]
    if metrics.speed:
        speed = text.rate(metrics.speed.decode, metrics.speed.steady)
        parts.append(f"{speed} tokens/s (there {text.number(base.tps, 0)})")
    return ", ".join(parts)


def recommend(group: Group, drop: float, by: str = "cost") -> Advice | None:
    """Advice for a group: the cheapest (`by` "cost") or fastest ("tps") setting that loses at most `drop`, a share.

    None where there is no reference row, nothing beside it, or no item that all rows hold.
    """
    base = group.reference
    if base is None or len(group.rows) < 2 or not group.items:
        return None
    better = _better(group, base, by)
    level = 1 - (1 - stats.LEVEL) / max(1, len(better))
    candidates = [_candidate(group, row, base, drop, level) for row in better]
    order = sorted(candidates, key=lambda one: _price(one, by))
    choice = next((one for one in order if one.keeps == "yes"), None)
    unsure = next((one for one in order if one.keeps == stats.TOO_FEW and one.difference >= -drop), None)
    if choice and unsure and _price(unsure, by) >= _price(choice, by):
        unsure = None
    needed = None
    if unsure:
        needed = stats.items_needed(len(group.items), unsure.difference, unsure.low, unsure.high, -drop)
    proven = all(one.keeps == "no" for one in candidates)
    better_by = "faster" if by == "tps" else "cheaper"
    return Advice(base, drop, len(candidates), choice, unsure, needed, better_by, proven)


def _better(group: Group, base: Row, by: str) -> list[Row]:
    """Rows that are cheaper (or faster) than the reference."""
    if by == "tps":
        return [row for row in group.rows if (row.tps or 0) > (base.tps or 0)]
    costs = dict(zip(group.rows, group.cost.mean(1)))
    return [row for row, cost in costs.items() if cost < costs[base]]


def _candidate(group: Group, row: Row, base: Row, drop: float, level: float) -> Candidate:
    ours, theirs = group.curve(row), group.curve(base)
    low, high = stats.paired_score_interval(ours.accuracy[0].tolist(), theirs.accuracy[0].tolist(), level)
    cost = fronts.estimate([ours, theirs], lambda means: float(means[0][0][0] / means[1][0][0]), resamples=500)
    gap = float((ours.accuracy - theirs.accuracy).mean())
    return Candidate(row, gap, low, high, cost, stats.within(low, high, drop))


def _price(one: Candidate, by: str) -> float:
    return one.cost.value if by == "cost" else -(one.row.tps or math.nan)
