"""One finished run as a row of a table, and the rows that it may be compared with.

Rows are *comparable* when they are paired item by item: the same weights, the same prompts, and the same value of every
option of a run that is marked so (`dlmbench.request.run_spec.PAIRED`), on the same hardware. They form a `Group`;
nothing is ever compared or averaged across groups. Within a group the rows of one method are *one curve*, whose points
are its settings.

Whatever follows from items (paired differences, shares of the front) is computed when it is asked for, and once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dlmbench import stats
from dlmbench.analysis import fronts
from dlmbench.request.run_spec import PAIRED
from dlmbench.runs.aggregate import item_costs
from dlmbench.runs.folder import RunFolder
from dlmbench.runs.record import Json, Manifest, Metrics, Sample

REFERENCE, RIVAL = "static", "threshold"  # the two baselines


@dataclass(frozen=True)
class Against:
    """A row's paired difference (row minus baseline) on the items that both hold; shares."""

    baseline: Row
    difference: stats.Difference
    floor: float
    """The largest loss, as a negative number, that the items do not rule out: the score interval's lower end."""

    @property
    def verdict(self) -> str:
        return self.difference.verdict


@dataclass(frozen=True, eq=False)
class Row:
    """One finished run."""

    run: RunFolder
    manifest: Manifest
    metrics: Metrics
    model: str
    """Its name; with the beginning of its weights' hash where several checkpoints have that name."""
    group: Group = field(repr=False)
    """The rows that it may be compared with, itself among them."""

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def label(self) -> str:
        return self.manifest.label

    @property
    def method(self) -> str:
        return self.manifest.spec.method

    @property
    def task(self) -> str:
        return self.manifest.task.name

    @property
    def split(self) -> str:
        return self.manifest.spec.split

    @property
    def batch_size(self) -> int:
        return int(self.manifest.spec.batch_size)

    @property
    def weights(self) -> str:
        return self.manifest.weights["target"]

    @property
    def device(self) -> str:
        return self.manifest.environment.device

    @property
    def accuracy(self) -> float:
        return self.metrics.accuracy

    @property
    def nfe(self) -> float:
        return self.metrics.nfe or 0.0

    @property
    def cost(self) -> float | None:
        return self.metrics.cost

    @property
    def tps(self) -> float | None:
        """Median tokens/s of decoding alone."""
        return self.metrics.speed.decode.median if self.metrics.speed else None

    @property
    def unit_seconds(self) -> float | None:
        """Seconds of the forward that costs 1."""
        return self.manifest.calibration.seconds_per_denoise if self.manifest.calibration else None

    @cached_property
    def paired(self) -> dict[str, Hashable]:
        """What comparable rows share, by name."""
        return paired(self.manifest)

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """Item -> its sample; empty where the samples did not come along."""
        return {sample.key: sample for sample in self.run.samples}

    @cached_property
    def against(self) -> dict[str, Against]:
        """Baseline (`REFERENCE`, `RIVAL`) -> the difference to it; without those that it has none of."""
        found = {name: self._against(name) for name in (REFERENCE, RIVAL)}
        return {name: one for name, one in found.items() if one}

    def _against(self, name: str) -> Against | None:
        baseline = self.group.baseline(self, name)
        if baseline is None:
            return None
        shared = sorted(self.samples.keys() & baseline.samples.keys())
        if not shared:
            return None
        ours, theirs = ([row.samples[key].accuracy for key in shared] for row in (self, baseline))
        floor = stats.paired_score_interval(ours, theirs)[0]
        return Against(baseline, stats.paired_difference(ours, theirs), floor)

    @cached_property
    def changed(self) -> float | None:
        """Share of the items whose tokens are not those of the static row; 0 for a lossless method."""
        baseline = self.group.baseline(self, REFERENCE)
        shared = self.samples.keys() & baseline.samples.keys() if baseline else set()
        if not baseline or not shared:
            return None
        return sum(self.samples[key].ids != baseline.samples[key].ids for key in shared) / len(shared)

    @property
    def front_share(self) -> float | None:
        """How often it is on the front of its group when the items are drawn again."""
        return self.group.front_shares.get(self)


@dataclass(frozen=True, eq=False)
class Group:
    """Comparable rows in the order of a table, and what each did on the items that all of them hold."""

    rows: list[Row] = field(default_factory=list)

    @cached_property
    def items(self) -> list[str]:
        """Keys of the items that all rows hold; empty where samples of a row did not come along."""
        return sorted(set.intersection(*(set(row.samples) for row in self.rows)))

    @cached_property
    def accuracy(self) -> np.ndarray:
        """[rows, items], 0 to 1."""
        return self._array([[row.samples[key].accuracy for key in self.items] for row in self.rows])

    @cached_property
    def cost(self) -> np.ndarray:
        """[rows, items]: plain forwards; forwards of the target where a row has no prices (`unit`)."""
        costs = self._prices
        if costs is None:
            costs = [[float(row.samples[key].calls()) for key in self.items] for row in self.rows]
        return self._array(costs)

    def _array(self, values: Sequence[Sequence[float]]) -> np.ndarray:
        return np.array(values, float).reshape(len(self.rows), len(self.items))

    @property
    def unit(self) -> str:
        """What `cost` counts: "cost", or "nfe" for want of prices."""
        return "nfe" if self._prices is None else "cost"

    @cached_property
    def _prices(self) -> list[list[float]] | None:
        found = []
        for row in self.rows:
            prices = row.manifest.prices
            costs = item_costs([row.samples[key] for key in self.items], prices) if prices else None
            if costs is None:
                return None
            found.append(costs)
        return found

    def curve(self, *rows: Row) -> fronts.Curve:
        """These rows as one curve."""
        chosen = [self.rows.index(row) for row in rows]
        return fronts.Curve(self.accuracy[chosen], self.cost[chosen])

    def methods(self) -> dict[str, list[Row]]:
        """The group's curves: method -> its rows."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.method, []).append(row)
        return found

    @property
    def reference(self) -> Row | None:
        """The row of static decoding with the most forwards, one token a step; None when there is none."""
        return max(self.methods().get(REFERENCE, []), key=lambda row: row.nfe, default=None)

    @property
    def judged_by(self) -> Row | None:
        """The reference, where every other row has been paired with it (samples may be missing)."""
        unpaired = [row for row in self.rows if row is not self.reference and REFERENCE not in row.against]
        return None if unpaired else self.reference

    def baseline(self, row: Row, name: str) -> Row | None:
        """The row that `row` is compared with, None for none.

        static: the one with the most forwards (one token a step). threshold: for a method whose threshold is a
        confidence the one at the same or nearest value; for any other the one nearest in cost (in forwards where
        nothing was priced). Never a row of the same method, except static at more forwards.
        """
        found = [other for other in self.methods().get(name, []) if other is not row]
        if not found or (name == RIVAL and row.method == name):
            return None
        if name == REFERENCE:
            best = max(found, key=lambda other: other.nfe)
            return None if row.method == name and best.nfe <= row.nfe else best
        ours = _confidence(row)
        confident = [(value, other) for other in found if (value := _confidence(other)) is not None]
        if ours is not None and confident:
            return min(confident, key=lambda pair: abs(pair[0] - ours))[1]
        spent = _in_forwards if any(one.cost is None for one in (row, *found)) else _in_cost
        return min(found, key=lambda other: abs(spent(other) - spent(row)))

    @cached_property
    def front_shares(self) -> dict[Row, float]:
        """How often each row is on the front of all of them when the items are drawn again."""
        if not self.items:
            return {}
        return dict(zip(self.rows, map(float, fronts.front_shares(self.curve(*self.rows)))))

    @property
    def priced(self) -> bool:
        """Has every row a cost?"""
        return all(row.cost is not None for row in self.rows)

    def spent(self, row: Row) -> float:
        """What an item costs: in plain forwards, or in forwards where something was not priced."""
        return _in_cost(row) if self.priced else row.nfe

    def share(self, row: Row) -> float | None:
        """The same as a share of what the reference costs."""
        return self.spent(row) / self.spent(self.reference) if self.reference and self.spent(self.reference) else None


def _in_cost(row: Row) -> float:
    return row.cost or 0.0


def _in_forwards(row: Row) -> float:
    return row.nfe


def _confidence(row: Row) -> float | None:
    """The row's threshold where that is a confidence."""
    return row.manifest.threshold if row.manifest.threshold_unit == "confidence" else None


def paired(manifest: Manifest) -> dict[str, Hashable]:
    """What two runs must share to be compared item by item, by name."""
    found: dict[str, Hashable] = {name: getattr(manifest.spec, name) for name in PAIRED}
    found |= {"task": manifest.task.name, "block_length": manifest.block_length}
    found |= {"device": manifest.environment.device, "weights": manifest.weights["target"]}
    return {**found, "prompt_hash": manifest.prompts}


def setting(row: Row) -> dict[str, Hashable]:
    """What a decoder was set to, by name; comparable rows that share it are the same run."""
    manifest = row.manifest
    return {
        "method": row.method,
        "parameters": compact(manifest.parameters),
        "method_version": manifest.method_version,
        "helper_weights": compact(dict(manifest.helper_weights)),
        "label": row.label,  # names the options of cache and sampling too
    }


def compact(record: Json | dict[str, str] | dict[str, int] | dict[str, Json]) -> str:
    """A mapping as one line."""
    return json.dumps(record, sort_keys=True)


def sort_key(manifest: Manifest, model: str) -> tuple[str, str, str, str, int, float, str, str]:
    """The order of rows everywhere: task, model, method, batch, then the threshold."""
    spec, threshold = manifest.spec, manifest.threshold
    return (
        manifest.task.name,
        spec.split,
        model,
        spec.method,
        int(spec.batch_size),
        math.inf if threshold is None else threshold,
        manifest.label,
        manifest.key,
    )
