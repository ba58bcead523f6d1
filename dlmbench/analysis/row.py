"""One finished run as a row of a table, and the rows that it may be compared with.

Rows are *comparable* when they are paired item by item: the same weights, the same prompts, and the same value of every
option of a run that is marked so (`dlmbench.request.run_spec.PAIRED`), the same answer places fixed before decoding and
options of the cache policy, on the same hardware. They form a `Group`;
nothing is ever compared or averaged across groups. Within a group the rows of one method are *one curve*, whose points
are its settings.

Whatever follows from items (paired differences, shares of the front) is computed when it is asked for, and once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from dlmbench import stats
from dlmbench.analysis import fronts
from dlmbench.request.run_spec import PAIRED
from dlmbench.runs.aggregate import cost_interval, item_costs
from dlmbench.runs.folder import RunFolder
from dlmbench.runs.record import Json, Manifest, Metrics, Sample, Work, typed

REFERENCE, RIVAL, ORDER, CURVE = "static", "threshold", "order", "curve"
BASELINES = (REFERENCE, RIVAL, ORDER, CURVE)  # order: the best one-token order; curve: threshold at equal work
ONE_TOKEN = ("static", "sequential")  # methods whose setting with the most forwards reveals one token a step


@dataclass(frozen=True)
class Reads:
    """Bytes that a forward of one role reads for a single row."""

    weights: float
    key: float
    """Each key that it sees, with its value."""


@dataclass(frozen=True)
class Against:
    """A row's paired difference (row minus baseline) on the items that all rows of its group hold; shares."""

    baseline: Row
    """Of a mixture the row with the larger share."""
    difference: float
    low: float
    """Of the 95 % interval, as `high`: Tango's for right and wrong, which has a width even where no item tells the two
    apart; the bootstrap's for graded items and for mixtures of settings."""
    high: float
    p_value: float
    """McNemar, exact; of graded items and mixtures a test of the mean by signs drawn at random."""
    p_holm: float
    """The same, corrected over all rows that the group compares with this baseline."""
    p_equal: float = math.nan
    """Of a difference as large as `stats.MARGIN`, one way or the other; nan for graded items."""
    label: str = ""
    """What the row is compared with; of a mixture all that is in it."""

    @property
    def verdict(self) -> str:
        """better or worse by the corrected test, equal by that of the margin."""
        if self.p_holm <= stats.ALPHA:
            return "better" if self.difference > 0 else "worse"
        return "equal" if self.p_equal <= stats.ALPHA else "too close to tell"


def differences(
    baselines: Sequence[Row], pairs: Sequence[tuple[Sequence[float], Sequence[float]]], labels: Sequence[str] = ()
) -> list[Against]:
    """The differences of a family of comparisons, corrected for their number: `pairs` has the values of the row and
    of its baseline on the same items; `labels` what the baselines are called where that is not their own."""
    labels = labels or [row.label for row in baselines]
    alone = [_alone(row, label, *pair) for row, label, pair in zip(baselines, labels, pairs)]
    corrected = stats.holm([one.p_value for one in alone])
    return [replace(one, p_holm=p_value) for one, p_value in zip(alone, corrected)]


def _alone(baseline: Row, label: str, ours: Sequence[float], theirs: Sequence[float]) -> Against:
    """A comparison by itself: the exact tests where both are right or wrong, those of means where one is graded."""
    if all(value in (0.0, 1.0) for value in (*ours, *theirs)):
        pairs = stats.Pairs.of(ours, theirs)
        p_value, p_equal = stats.mcnemar(pairs.only_a, pairs.only_b), stats.equivalence(pairs, stats.MARGIN)
        return Against(baseline, pairs.difference, *stats.tango(pairs), p_value, math.nan, p_equal, label)
    found = stats.paired_difference(ours, theirs)
    p_value = stats.mean_test(np.subtract(ours, theirs))
    return Against(baseline, found.mean, found.low, found.high, p_value, math.nan, math.nan, label)


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
    tried: int | None = None
    """Settings that competed on dev items before this one was taken; None where none did."""
    autoregressive_tps: float | None = None
    """Tokens/s, prefill included, of an autoregressive model on the same engine, prompts and hardware."""

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

    @cached_property
    def prefill(self) -> float | None:
        """Cost of an item's prefill, every network's, in plain forwards; None where something was not priced.

        Without samples, every helper has read the prompt as often as the target.
        """
        prices, samples = self.manifest.prices, self.run.samples
        whole, decoding = item_costs(samples, prices), item_costs(samples, prices, decoding_alone=True)
        if whole and decoding:
            return (sum(whole) - sum(decoding)) / len(whole)
        if self.metrics.cost is None or not prices:
            return None
        roles = ("target", *self.metrics.helpers)
        each = sum(value for forward, value in prices.items() if forward.kind == "prefill" and forward.role in roles)
        return each * (self.metrics.prefills or 0.0)

    @property
    def cost(self) -> float | None:
        """Of an item's decoding alone, in plain forwards, so that ratios of costs have no prompt in them."""
        return None if self.metrics.cost is None or self.prefill is None else self.metrics.cost - self.prefill

    @cached_property
    def cost_interval(self) -> tuple[float, float] | None:
        """95 % interval of `cost`, over items and over the repeats of prices; None without samples or prices."""
        return cost_interval(self.run.samples, self.manifest.prices, self.manifest.spreads)

    @cached_property
    def flops(self) -> float | None:
        """Multiplications and additions of an item's decoding, of all networks: the limit at large batch. None
        without samples."""
        return self._mean(lambda role, work: work.flops)

    @cached_property
    def bytes_read(self) -> float | None:
        """Weights, keys and values that an item's decoding reads where it has the device for itself: the limit at batch
        1. None without samples, and where the run did not note how large they are."""
        reads = self.manifest.model.get("reads")
        if not isinstance(reads, dict):
            return None
        sizes = {role: typed(Reads, one) for role, one in reads.items() if isinstance(one, dict)}
        return self._mean(lambda role, work: work.calls * sizes[role].weights + work.keys * sizes[role].key)

    def _mean(self, measure: Callable[[str, Work], float]) -> float | None:
        """Of a measure of the forwards of one role and kind, summed over an item's, prefill left out."""
        if not all(sample.counted for sample in self.samples.values()):
            return None
        found = [
            sum(
                measure(role, work)
                for role, kinds in sample.counts.items()
                for kind, work in kinds.items()
                if kind != "prefill"
            )
            for sample in self.samples.values()
        ]
        return math.fsum(found) / len(found) if found else None  # whatever order the items were finished in

    @property
    def denoising(self) -> float:
        """Forwards of the target that decide something, whoever writes the keys and values."""
        return self.nfe - (self.metrics.store_forwards or 0.0)

    @property
    def tps(self) -> float | None:
        """Median tokens/s of decoding alone; None for a server, which does not tell it from prefill."""
        speed = self.metrics.speed
        return speed.decode.median if speed and speed.decode else None

    @property
    def tps_end_to_end(self) -> float | None:
        """The same, prefill included."""
        return self.metrics.speed.end_to_end.median if self.metrics.speed else None

    @property
    def times_ar(self) -> float | None:
        """`tps_end_to_end` over that of an autoregressive model on the same engine; None for such a row itself."""
        if self.tps_end_to_end is None or not self.autoregressive_tps or self.manifest.autoregressive:
            return None
        return self.tps_end_to_end / self.autoregressive_tps

    @property
    def outside(self) -> float | None:
        """Share of the seconds of decoding that pass outside forwards."""
        return self.metrics.speed.outside if self.metrics.speed else None

    @property
    def unit_seconds(self) -> float | None:
        """Seconds of the forward that costs 1."""
        return self.manifest.calibration.seconds_per_denoise if self.manifest.calibration else None

    @cached_property
    def paired(self) -> dict[str, Hashable]:
        """What comparable rows share, by name."""
        return paired(self.manifest)

    @property
    def circumstances(self) -> dict[str, Hashable]:
        """The same beside task and weights, for readers: a budget is named where it is not the task's own."""
        found = {name: value for name, value in self.paired.items() if name not in ("task", "weights", "prompt_hash")}
        return {**found, "gen_length": self.manifest.spec.gen_length}

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """Item -> its sample; empty where the samples did not come along."""
        return {sample.key: sample for sample in self.run.samples}

    @property
    def against(self) -> dict[str, Against]:
        """Name of `BASELINES` -> the difference to it; without those that it has none of."""
        return {name: found[self] for name, found in self.group.differences.items() if self in found}

    @cached_property
    def changed(self) -> float | None:
        """Share of the items whose tokens are not those of the static row; 0 for a lossless method in float32."""
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
        """[rows, items], of decoding: plain forwards; forwards of the target where a row has no prices (`unit`)."""
        costs = self._prices
        if costs is None:
            costs = [[float(row.samples[key].nfe or 0) for key in self.items] for row in self.rows]
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
            samples = [row.samples[key] for key in self.items]
            costs = item_costs(samples, prices, decoding_alone=True) if prices else None
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

        static: the one with the most forwards (one token a step). order: the most accurate of those of `ONE_TOKEN`,
        where that is another, so that nobody shines beside a poor order alone. threshold: for a method whose threshold
        is a confidence the one at the same or nearest value; for any other the one whose bytes and FLOPs are nearest
        (forwards, where these are not known), whatever the clock of this machine says. Never a row of the same method,
        except static at more forwards.
        """
        if name == ORDER:
            best = self._best_order
            return None if best in (row, self.reference) else best
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
        return min(found, key=lambda other: max(_apart(of(row), of(other)) for of in _measures([row, *found])))

    def mixture(self, row: Row) -> list[tuple[Row, float]]:
        """Plain threshold decoding that does as much work as `row`: the settings between which a coin decides item by
        item, with their shares; empty for threshold itself, and for a row that does less than every threshold.

        Both lie on the front of the threshold rows. Work is bytes or FLOPs (forwards, where these are not known),
        whichever gives the threshold more.
        """
        rows = self.methods().get(RIVAL, [])
        if row in rows or not rows:
            return []
        accuracy = dict(zip(self.rows, self.accuracy.mean(1)))
        found = []
        for of in _measures([row, *rows]):
            work = np.array([of(one) for one in rows])
            parts = fronts.mixture(work, np.array([accuracy[one] for one in rows]), of(row) or 0.0)
            if parts:
                found.append([(rows[i], share) for i, share in parts])
        return max(found, key=lambda parts: sum(accuracy[one] * share for one, share in parts), default=[])

    @cached_property
    def _best_order(self) -> Row | None:
        slowest = [max(rows, key=lambda row: row.nfe) for name, rows in self.methods().items() if name in ONE_TOKEN]
        return max(slowest, key=lambda row: row.accuracy, default=None)

    @cached_property
    def front_shares(self) -> dict[Row, float]:
        """How often each row is on the front of all of them when the items are drawn again."""
        if not self.items or not self.counted:
            return {}
        return dict(zip(self.rows, map(float, fronts.front_shares(self.curve(*self.rows)))))

    @cached_property
    def differences(self) -> dict[str, dict[Row, Against]]:
        """Name of `BASELINES` -> each row's difference to its baseline of that name."""
        return {name: self._differences(name) for name in BASELINES} if self.items else {}

    def _differences(self, name: str) -> dict[Row, Against]:
        baselines = {row: parts for row in self.rows if (parts := self._beside(row, name))}
        values = dict(zip(self.rows, self.accuracy))
        pairs = [
            (values[row].tolist(), np.sum([values[one] * share for one, share in parts], 0).round(9).tolist())
            for row, parts in baselines.items()
        ]
        main = [max(parts, key=lambda part: part[1])[0] for parts in baselines.values()]
        labels = [
            " + ".join(f"{one.label} x {share:.2f}" if len(parts) > 1 else one.label for one, share in parts)
            for parts in baselines.values()
        ]
        return dict(zip(baselines, differences(main, pairs, labels)))

    def _beside(self, row: Row, name: str) -> list[tuple[Row, float]]:
        """What the row is compared with, in shares."""
        if name == CURVE:
            return self.mixture(row)
        baseline = self.baseline(row, name)
        return [(baseline, 1.0)] if baseline else []

    @cached_property
    def least_difference(self) -> float | None:
        """The least true difference to the reference that the items show with 80 % power, as the first of all
        comparisons of the group; None where no difference does, or nothing is compared."""
        found = self.differences.get(REFERENCE, {})
        if not found:
            return None
        rows = list(self.rows)
        gaps = [self.accuracy[rows.index(row)] != self.accuracy[rows.index(one.baseline)] for row, one in found.items()]
        discordance = max(float(np.mean([gap.mean() for gap in gaps])), 1 / len(self.items))
        return stats.least_difference(len(self.items), discordance, alpha=stats.ALPHA / len(found))

    @property
    def counted(self) -> bool:
        """Has every row a number of forwards? Not every server tells it."""
        return all(row.metrics.nfe is not None for row in self.rows)

    @property
    def priced(self) -> bool:
        """Has every row a cost?"""
        return all(row.cost is not None for row in self.rows)

    def spent(self, row: Row) -> float:
        """What an item costs: in plain forwards, or in forwards where something was not priced."""
        return _in_cost(row) if self.priced else row.nfe

    def share(self, row: Row) -> float | None:
        """The same as a share of what the reference costs."""
        return self.relative(row, self.spent)

    def relative(self, row: Row, measure: Callable[[Row], float | None]) -> float | None:
        """A measure of a row over that of the reference."""
        ours, theirs = measure(row), measure(self.reference) if self.reference else None
        return ours / theirs if ours is not None and theirs else None

    def pays(self, row: Row) -> str | None:
        """Does the row need less than the reference? Asked of bytes (the limit at batch 1) and of FLOPs (the limit at
        large batch): "pays" or "does not pay" where both say so, else "depends on the batch"; None where one is not
        known, and for the reference."""
        ratios = [self.relative(row, measure) for measure in (_bytes, _flops)]
        if row is self.reference or None in ratios:
            return None
        less = {ratio < 1 for ratio in ratios if ratio is not None}
        return "depends on the batch" if len(less) > 1 else "pays" if less == {True} else "does not pay"

    def reveals(self, row: Row) -> float | None:
        """Tokens a denoising forward, as a multiple of the reference's: 1.00 is one position a forward."""
        return self.relative(row, lambda one: (one.metrics.tokens or 0.0) / one.denoising if one.denoising else None)


def _in_cost(row: Row) -> float:
    return row.cost or 0.0


def _bytes(row: Row) -> float | None:
    return row.bytes_read


def _flops(row: Row) -> float | None:
    return row.flops


def _apart(one: float | None, other: float | None) -> float:
    """Of two amounts above zero, their ratio as a logarithm."""
    return abs(math.log(one / other)) if one and other else math.inf


def _forwards(row: Row) -> float | None:
    return max(row.nfe, 1e-9)


def _measures(rows: Sequence[Row]) -> list[Callable[[Row], float | None]]:
    """What the work of these rows is measured in, whatever a clock says."""
    return [of for of in (_bytes, _flops) if all(of(row) for row in rows)] or [_forwards]


def _confidence(row: Row) -> float | None:
    """The row's threshold where that is a confidence."""
    return row.manifest.threshold if row.manifest.threshold_unit == "confidence" else None


def paired(manifest: Manifest) -> dict[str, Hashable]:
    """What two runs must share to be compared item by item, by name."""
    found = {name: manifest.settled(name) for name in PAIRED}
    shared = manifest.identity.get("shared")
    chosen = shared if isinstance(shared, dict) else {}
    found["cache"] = manifest.spec.shared_cache
    found["fixed_places"] = bool(chosen.get("fixed"))
    found["cache_options"] = compact({name: one for name, one in chosen.items() if name.startswith("cache.")})
    return {**found, "weights": manifest.weights["target"], "prompt_hash": manifest.prompts}


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
