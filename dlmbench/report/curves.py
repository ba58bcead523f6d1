"""Finished runs as curves: which rows may be compared, how sure the front is, and what methods reach at equal cost.

Rows are comparable when they decode the same items with the same weights in the same circumstances; rows of other
weights, hardware, precision or batch size form a group of their own, and nothing is ever averaged over groups.
Methods of a group are curves (`dlmbench.fronts`) whose points are its settings, cache policy and block length included.

Left out: runs without samples (the committed manifests), which have no items to draw from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dlmbench import fronts
from dlmbench.errors import RequestError
from dlmbench.report.table import circumstances_of, number, percent, pipe, row, signed, sort_key
from dlmbench.runs import RunFolder, find_runs
from dlmbench.runs.aggregate import item_costs
from dlmbench.stats import verdict, wilson

RESAMPLES = 1_000
REFERENCE, RIVAL = "static", "threshold"
BUDGET = 0.5  # the matched cost, as a share of the reference row's
DROP = 0.01  # the matched accuracy lies this share below the reference row's


@dataclass(frozen=True)
class Group:
    """Comparable rows and what each did on every item, items in the same order."""

    rows: list[dict[str, Any]]
    accuracy: np.ndarray  # [rows, items]
    cost: np.ndarray  # [rows, items], in `unit`
    unit: str  # "cost", or "nfe" where a row has no prices

    def curve(self, chosen: Sequence[int]) -> fronts.Curve:
        """These rows as one curve."""
        return fronts.Curve(self.accuracy[list(chosen)], self.cost[list(chosen)])

    def methods(self) -> dict[str, list[int]]:
        """method -> its rows."""
        found: dict[str, list[int]] = {}
        for i, record in enumerate(self.rows):
            found.setdefault(record["method"], []).append(i)
        return found

    def reference(self) -> int | None:
        """The row of static decoding with the most forwards, one token a step; None when there is none."""
        static = self.methods().get(REFERENCE, [])
        return max(static, key=lambda i: self.rows[i]["nfe"]) if static else None


def finished(*folders: str | Path) -> list[RunFolder]:
    """Finished runs at or below these folders. Raises RequestError for a missing folder and where there is none."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise RequestError(f"Folder {str(folder)!r} does not exist; give the folder of a run or of a sweep.")
    runs = [run for run in find_runs(*folders) if run.finished]
    if not runs:
        names = ", ".join(Path(folder).name or "." for folder in folders)
        raise RequestError(f"No finished run in {names}; make one with dlmbench run or dlmbench sweep.")
    return runs


def groups(runs: Iterable[RunFolder]) -> list[Group]:
    """The comparable groups among finished runs, on the items that all of a group's rows hold, in the table's order."""
    members: dict[tuple, list[tuple[dict[str, Any], RunFolder]]] = {}
    for record, run in sorted(((row(run), run) for run in runs), key=lambda pair: sort_key(pair[0])):
        members.setdefault(circumstances_of(record), []).append((record, run))
    made = (_group([record for record, _ in group], [run for _, run in group]) for group in members.values())
    return [group for group in made if group.accuracy.shape[1]]


def _group(rows: list[dict[str, Any]], runs: list[RunFolder]) -> Group:
    samples = [{sample.key: sample for sample in run.samples} for run in runs]
    keys = sorted(set.intersection(*(set(one) for one in samples)))
    ordered = [[one[key] for key in keys] for one in samples]
    costs = [item_costs(one, run.manifest.prices) if run.manifest.prices else None for one, run in zip(ordered, runs)]
    priced = None not in costs
    if not priced:
        costs = [[float(sample.calls()) for sample in one] for one in ordered]
    accuracy = np.array([[sample.accuracy for sample in one] for one in ordered])
    shape = (len(rows), len(keys))
    return Group(rows, accuracy.reshape(shape), np.array(costs, float).reshape(shape), "cost" if priced else "nfe")


def front_shares(group: Group) -> dict[str, float]:
    """key of a row -> how often it is on the group's front when the items are drawn again."""
    shares = fronts.front_shares(group.curve(range(len(group.rows))))
    return {record["key"]: float(share) for record, share in zip(group.rows, shares)}


def matched(group: Group) -> list[dict[str, Any]]:
    """One record a method: areas, accuracy at the matched cost, cost at the matched accuracy.

    Empty where there is no reference row. The matched cost is `BUDGET` of the reference's, the matched accuracy `DROP`
    below it; "accuracy" and "cost" are `Estimate`s, "against" is the accuracy's difference to plain threshold decoding.
    """
    base = group.reference()
    if base is None:
        return []
    reference, methods = group.curve([base]), group.methods()
    best = 100 * max(record["accuracy"] for record in group.rows)
    records = []
    for method, mine in methods.items():
        curve, rows = group.curve(mine), [group.rows[i] for i in mine]
        rival = group.curve(methods[RIVAL]) if RIVAL in methods and method != RIVAL else None
        cost, accuracy = curve.means()
        records.append(
            {
                "method": method,
                "settings": len(mine),
                "aup": fronts.aup([r["tpf"] or np.nan for r in rows], [100 * r["accuracy"] for r in rows], best),
                "hypervolume": fronts.hypervolume(cost, accuracy, group.cost[base].mean()),
                "accuracy": _widened(fronts.estimate([curve, reference], _at_budget, resamples=RESAMPLES), group),
                "against": rival and fronts.estimate([curve, reference, rival], _gap_at_budget, resamples=RESAMPLES),
                "cost": fronts.estimate([curve, reference], _cost_needed, resamples=RESAMPLES),
            }
        )
    return records


def _widened(found: fronts.Estimate, group: Group) -> fronts.Estimate:
    """An accuracy that no draw moves (all items right) is as unsure as its Wilson interval says."""
    if not found.sure or found.high - found.low > 1e-9:
        return found
    items = group.accuracy.shape[1]
    return replace(found, **dict(zip(("low", "high"), wilson(round(found.value * items, 6), items))))


def _at_budget(means: list) -> float:
    return fronts.accuracy_at(*means[0], BUDGET * means[1][0][0])


def _gap_at_budget(means: list) -> float:
    budget = BUDGET * means[1][0][0]
    return fronts.accuracy_at(*means[0], budget) - fronts.accuracy_at(*means[2], budget)


def _cost_needed(means: list) -> float:
    return fronts.cost_at(*means[0], means[1][1][0] - DROP) / means[1][0][0]


# --- as text --------------------------------------------------------------------------------------------------------


def matched_markdown(found: Sequence[Group]) -> str:
    """A section for table.md: a table a group, then the definitions; empty when no group has a reference row."""
    parts = []
    for group in found:
        records = matched(group)
        if not records:
            continue
        base = group.rows[group.reference()]
        parts += [
            f"## {base['task']} ({base['split']}) at equal cost and at equal accuracy",
            "",
            pipe(columns(records)),
            "",
            reference_sentence(group),
            "",
        ]
    return "\n".join([*parts, LEGEND]) if parts else ""


def reference_sentence(group: Group) -> str:
    """What a group's methods are compared with, and where it was measured."""
    base, paid = group.rows[group.reference()], group.cost[group.reference()].mean()
    unit = "plain forwards" if group.unit == "cost" else "forwards (NFE), for want of prices"
    return (
        f"Reference: {base['label']} ({percent(base['accuracy'])} % for {number(paid)} {unit}) with model "
        f"{base['model']}, batch {base['batch_size']}, seed {base['seed']}, {base['dtype']} on {base['device']}."
    )


LEGEND = (
    f"*At {BUDGET:g} of the cost*: what the method reaches when an item may cost that share of the reference row's, on "
    "the straight lines between the settings of its front; *vs threshold* is the paired difference to plain threshold "
    f"decoding there. *Cost at accuracy*: what it must pay for the reference's accuracy less {100 * DROP:g} point, as "
    "a share of the reference's cost. 95 % intervals by drawing the items again, the choice of the front included; a "
    "dash where the method does not get there, no interval where it gets there in too few draws to tell. "
    f"{fronts.AUP} {fronts.HYPERVOLUME}"
)


def columns(records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """What `matched` found, as the columns of a table in text."""
    return {
        "method": [r["method"] for r in records],
        "settings": [str(r["settings"]) for r in records],
        "AUP": [number(r["aup"]) for r in records],
        "hyper-volume": [number(r["hypervolume"], 3) for r in records],
        f"at {BUDGET:g} of the cost": [share(r["accuracy"]) for r in records],
        "vs threshold": [gap(r["against"]) for r in records],
        "cost at accuracy": [ratio(r["cost"]) for r in records],
    }


def share(found: fronts.Estimate) -> str:
    """An accuracy in percent with its interval."""
    inside = f" [{percent(found.low)}, {percent(found.high)}]" if found.sure else ""
    return percent(found.value) + inside


def gap(found: fronts.Estimate | None) -> str:
    """A difference in points with its interval and what it says."""
    if found is None or not found.sure:
        return "-"
    return f"{signed(found.value, found.low, found.high)} {verdict(found.low, found.high)}"


def ratio(found: fronts.Estimate) -> str:
    """A ratio of costs with its interval."""
    inside = f" [{number(found.low, 2)}, {number(found.high, 2)}]" if found.sure else ""
    return number(found.value, 2) + inside
