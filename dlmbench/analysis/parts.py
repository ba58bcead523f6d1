"""A loss in three parts: the rule's own, the model's own, and what the two make of each other.

The *rule alone* loses what it loses on the ideal model, the *model alone* what it loses at one token a step; the
*interaction* is the rest, and may be less than nothing. Ideal model, trained model and one token a step are compared
item by item, at equal temperature, block length and settings of the decoder, over the seeds that all three have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dlmbench import stats
from dlmbench.analysis.row import Row
from dlmbench.analysis.seeds import but_the_seed

IDEAL = "oracle"  # models of this name know the right answers
PRACTICALLY_ALL = 0.99  # of the items: an ideal model's sampled rows may miss one by chance


@dataclass(frozen=True, eq=False)
class Parts:
    """One setting of a decoder on one task. The row is the trained model's, of the first seed; losses are shares."""

    row: Row
    seeds: int
    _ideal: np.ndarray
    """[items], of the seeds' mean, as the two that follow: the decoder on the ideal model."""
    _trained: np.ndarray
    _alone: np.ndarray
    """One token a step on the trained model."""

    @property
    def items(self) -> int:
        return len(self._trained)

    @property
    def loss(self) -> float:
        """All three together: 1 - accuracy."""
        return 1 - float(self._trained.mean())

    @property
    def rule(self) -> float:
        return 1 - float(self._ideal.mean())

    @property
    def model(self) -> float:
        return 1 - float(self._alone.mean())

    @property
    def interaction(self) -> float:
        return self.loss - self.rule - self.model

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the interaction: items drawn again, with all that belongs to one."""
        rest = self._ideal + self._alone - self._trained - 1
        return stats.bootstrap_mean(np.round(rest, 9))  # none is none, whatever the order of a sum


def parts(rows: Iterable[Row]) -> list[Parts]:
    """The losses of every setting that an ideal and a trained model both have, beside one token a step."""
    series: dict[tuple[Hashable, ...], list[Row]] = {}
    for row in rows:
        series.setdefault((row.model, *_alike(row)), []).append(row)
    found = []
    for (model, *where), trained in series.items():
        first = trained[0]
        ideal = next((series[key] for key in series if is_ideal(series[key][0]) and key[1:] == tuple(where)), None)
        reference = first.group.reference
        if is_ideal(first) or _overconfident(first) or ideal is None or reference is None:
            continue
        alone = series[model, *_alike(reference)]
        shared = set.intersection(*({(row.manifest.spec.seed, key) for row in one for key in row.samples}
                                    for one in (ideal, trained, alone)))  # fmt: skip
        if shared:
            means = (_means(one, shared) for one in (ideal, trained, alone))
            found.append(Parts(first, len({seed for seed, _ in shared}), *means))
    return found


def needed(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """(method, task) -> least forwards at which the ideal model keeps 99 % over all seeds, as a share of those of one
    token a step; nothing where no setting does."""
    settings: dict[tuple[Hashable, ...], list[Row]] = {}
    for row in rows:
        if is_ideal(row) and row.group.reference:
            settings.setdefault(_alike(row), []).append(row)
    found: dict[tuple[str, str], float] = {}
    for seeds in settings.values():
        if np.mean([row.accuracy for row in seeds]) >= PRACTICALLY_ALL:
            first = seeds[0]
            share = float(np.mean([row.nfe / row.group.reference.nfe for row in seeds if row.group.reference]))
            found[first.method, first.task] = min(share, found.get((first.method, first.task), share))
    return found


def is_ideal(row: Row) -> bool:
    """Does its model know the right answers, and nothing but them?"""
    return row.manifest.spec.model.startswith(IDEAL) and "oracle" not in row.manifest.spec.settings


def _overconfident(row: Row) -> bool:
    return row.manifest.spec.model.startswith(IDEAL) and not is_ideal(row)


def _alike(row: Row) -> tuple[Hashable, ...]:
    """What is equal between models that are asked the same in the same way: all that seeds share, but the weights."""
    return tuple(value for name, value in but_the_seed(row).items() if name != "weights")


def _means(rows: Sequence[Row], shared: set[tuple[int, str]]) -> np.ndarray:
    """Accuracy [items] over the seeds of an item."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for key, sample in row.samples.items():
            if (row.manifest.spec.seed, key) in shared:
                values.setdefault(key, []).append(sample.accuracy)
    return np.array([np.mean(values[key]) for key in sorted(values)])
