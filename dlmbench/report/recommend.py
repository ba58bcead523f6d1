"""Which decoder at which setting, if the accuracy may fall by so much and no more.

Among comparable rows (`curves.groups`) every setting is compared with one-token-a-step decoding on the same items.
A setting keeps the limit when the score interval of its difference does; because the best of many settings is chosen on
the items that judge it, the intervals are widened so that they hold for all candidates together (Bonferroni). Where the
items allow neither yes nor no, that is the answer, with a guess at how many would do.

Left out: the choice between models, and costs in money.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlmbench import fronts, stats
from dlmbench.report.curves import Group, ratio
from dlmbench.report.table import interval, number, signed, with_spread

BY = {"cost": "cost", "tps": "tokens/s"}


@dataclass(frozen=True)
class Candidate:
    """A setting, its loss against the reference and whether that keeps the limit."""

    row: dict[str, Any]
    difference: float
    low: float
    high: float
    cost: fronts.Estimate  # as a share of the reference's
    keeps: str  # "yes", "no" or stats.TOO_FEW


@dataclass(frozen=True)
class Advice:
    """What to take in one group of comparable rows; no `choice` where the items are too few, or nothing keeps it."""

    reference: dict[str, Any]
    drop: float
    tried: int
    choice: Candidate | None
    unsure: Candidate | None  # the best of those that may keep the limit, better than the choice
    needed: int | None  # about how many items would tell about it

    def sentences(self) -> list[str]:
        """The advice in words."""
        points, base = f"{100 * self.drop:g} point{'s' if self.drop != 0.01 else ''}", self.reference
        seed = f", seed {base['seed']}" if base["seed"] else ""
        place = f"{base['task']}, {base['model']}, batch {base['batch_size']}{seed}, {base['device']}"
        if self.choice:
            found = [f"{place}: take {self.choice.row['label']}; {_facts(self.choice, base)}."]
        elif self.unsure:
            found = [f"{place}: {stats.TOO_FEW} which setting loses at most {points} against {base['label']}."]
        else:
            found = [f"{place}: stay with {base['label']}; every cheaper setting loses more than {points}."]
        if self.unsure:
            more = f"about {_round(self.needed):,} items would tell" if self.needed else "it stands just at the limit"
            found.append(
                f"It may be {self.unsure.row['label']} ({_facts(self.unsure, base)}), but {base['items']:.0f} items "
                f"are too few to say so; {more}."
            )
        return found


def _round(count: int) -> int:
    """Two digits are all that such a guess is worth."""
    scale = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / scale) * scale


def _facts(one: Candidate, base: dict[str, Any]) -> str:
    row = one.row
    parts = [
        f"{interval(row['accuracy'], row['accuracy_low'], row['accuracy_high'])} %",
        f"{signed(one.difference, one.low, one.high)} points against {base['label']}",
        f"{ratio(one.cost)} of its cost",
    ]
    if with_spread(row, "tps_decode") != "-":
        parts.append(f"{with_spread(row, 'tps_decode')} tokens/s (there {number(base['tps_decode'], 0)})")
    return ", ".join(parts)


def recommend(group: Group, drop: float, by: str = "cost") -> Advice | None:
    """Advice for a group: the cheapest (`by` "cost") or fastest ("tps") setting that loses at most `drop`, a share.

    None where there is no reference row or nothing beside it.
    """
    base = group.reference()
    if base is None or len(group.rows) < 2:
        return None
    better = _better(group, base, by)
    level = 1 - (1 - stats.LEVEL) / max(1, len(better))
    candidates = [_candidate(group, i, base, drop, level) for i in better]
    order = sorted(candidates, key=lambda one: _price(one, by))
    choice = next((one for one in order if one.keeps == "yes"), None)
    unsure = next((one for one in order if one.keeps == stats.TOO_FEW and one.difference >= -drop), None)
    if choice and unsure and _price(unsure, by) >= _price(choice, by):
        unsure = None
    items, needed = group.accuracy.shape[1], None
    if unsure:
        needed = stats.items_needed(items, unsure.difference, unsure.low, unsure.high, -drop)
    return Advice(group.rows[base], drop, len(candidates), choice, unsure, needed)


def _better(group: Group, base: int, by: str) -> Sequence[int]:
    """Rows that are cheaper (or faster) than the reference."""
    if by == "tps":
        rates = [row["tps_decode"] or 0 for row in group.rows]
        return [i for i, rate in enumerate(rates) if rate > rates[base]]
    costs = group.cost.mean(1)
    return [i for i, cost in enumerate(costs) if cost < costs[base]]


def _candidate(group: Group, i: int, base: int, drop: float, level: float) -> Candidate:
    ours, theirs = group.accuracy[i], group.accuracy[base]
    low, high = stats.paired_score_interval(ours, theirs, level)
    cost = fronts.estimate([group.curve([i]), group.curve([base])], lambda m: m[0][0][0] / m[1][0][0], resamples=500)
    gap = float((ours - theirs).mean())
    return Candidate(group.rows[i], gap, low, high, cost, stats.within(low, high, drop))


def _price(one: Candidate, by: str) -> float:
    rate = one.row["tps_decode"] or math.nan
    return one.cost.value if by == "cost" else -rate
