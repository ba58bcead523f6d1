"""Matched points (`dlmbench.analysis.matched`) as the columns of a table, and in words."""

from __future__ import annotations

from collections.abc import Sequence

from dlmbench.analysis import fronts
from dlmbench.analysis.matched import BUDGET, DROP, Matched
from dlmbench.analysis.row import Group
from dlmbench.analysis.text import DASH, number, percent, ratio, signed
from dlmbench.stats import verdict

LEGEND = {
    f"at {BUDGET:g} of the cost": "what the method reaches when an item may cost that share of the reference row's, on "
    "the straight lines between the settings of its front",
    "vs threshold": "the paired difference to plain threshold decoding there",
    "cost at accuracy": f"what it must pay for the reference's accuracy less {100 * DROP:g} point, as a share of the "
    "reference's cost. 95 % intervals by drawing the items again, the choice of the front included; a dash where the "
    "method does not get there, no interval where it gets there in too few draws to tell",
    "hyper-volume": fronts.HYPERVOLUME,
}


def columns(found: Sequence[Matched]) -> dict[str, list[str]]:
    """A column each of what was matched."""
    return {
        "method": [one.method for one in found],
        "settings": [str(one.settings) for one in found],
        "hyper-volume": [number(one.hypervolume, 3) for one in found],
        f"at {BUDGET:g} of the cost": [_share(one.accuracy) for one in found],
        "vs threshold": [_gap(one.against) for one in found],
        "cost at accuracy": [ratio(one.cost.value, one.cost.low, one.cost.high) for one in found],
    }


def reference_sentence(group: Group) -> str:
    """What a group's methods are compared with, and where it was measured."""
    base = group.reference
    if base is None:
        return ""
    paid, spec = group.curve(base).cost.mean(), base.manifest.spec
    unit = "plain forwards" if group.unit == "cost" else "forwards (NFE), for want of prices"
    return (
        f"Reference: {base.label} ({percent(base.accuracy)} % for {number(paid)} {unit}) with model {base.model}, "
        f"batch {base.batch_size}, seed {spec.seed}, {spec.dtype} on {base.device}."
    )


def _share(found: fronts.Estimate) -> str:
    inside = f" [{percent(found.low)}, {percent(found.high)}]" if found.sure else ""
    return percent(found.value) + inside


def _gap(found: fronts.Estimate | None) -> str:
    if found is None or not found.sure:
        return DASH
    return f"{signed(found.value, found.low, found.high)} {verdict(found.low, found.high)}"
