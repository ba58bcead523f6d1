"""What forwards were measured to cost, kept so that rows which share a forward share its price.

A price of the target depends on its weights and on the circumstances (batch size, device, task and so on), not on the
helpers beside it; a helper's depends on the helper too. The measurement that came first stays: prices taken at
different moments of a busy machine would otherwise make equal work look unequal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from dlmbench.forwards import ForwardKey
from dlmbench.request.key import canonical
from dlmbench.runs.folder import RunFolder
from dlmbench.runs.record import Calibration, Circumstances, Prices, Spreads, plain


class PriceList:
    """Prices by circumstances; the circumstances of a run name the weights of each of its networks."""

    def __init__(self) -> None:
        self._known: dict[str, Prices] = {}
        self._spreads: dict[str, Spreads] = {}
        self._seconds: dict[str, float] = {}  # circumstances of a target -> what a price of 1 was in seconds

    def read(self, runs: Iterable[RunFolder]) -> None:
        """Learn what these runs have measured."""
        for run in runs:
            if run.begun:
                self.learn(run.manifest.calibration)

    def learn(self, found: Calibration | None) -> None:
        """The same from what a manifest keeps."""
        if found:
            self.add(found.circumstances, found.prices, found.seconds_per_denoise, found.spreads)

    def add(
        self,
        circumstances: Circumstances,
        prices: Prices,
        seconds: float | None,
        spreads: Mapping[ForwardKey, tuple[float, float]] = MappingProxyType({}),
    ) -> None:
        """New measurements; those that are known stay."""
        for forward, price in prices.items():
            place = _place(circumstances, forward.role)
            known = self._known.setdefault(place, {})
            if forward not in known:
                known[forward] = price
                if forward in spreads:
                    self._spreads.setdefault(place, {})[forward] = spreads[forward]
        if seconds is not None:
            self._seconds.setdefault(_place(circumstances, "target"), seconds)

    def of(self, circumstances: Circumstances) -> Prices:
        """All that is known there: the target's prices, and those of the helpers that stand beside it."""
        places = [self._known.get(place, {}) for place in _places(circumstances)]
        return {forward: price for known in places for forward, price in known.items()}

    def calibration(self, circumstances: Circumstances, needed: set[ForwardKey]) -> Calibration:
        """What the manifest says about the prices of a run that needs those of the forwards `needed`."""
        known = self.of(circumstances)
        spreads = [self._spreads.get(place, {}) for place in _places(circumstances)]
        return Calibration(
            circumstances,
            self._seconds.get(_place(circumstances, "target")),
            dict(sorted(known.items())),
            sorted(needed - known.keys()),  # met once, by no item that was made again
            dict(sorted((forward, ends) for spread in spreads for forward, ends in spread.items())),
        )


def _places(circumstances: Circumstances) -> list[str]:
    return [_place(circumstances, role) for role in sorted({"target", *circumstances.weights})]


def _place(circumstances: Circumstances, role: str) -> str:
    weights = {name: value for name, value in circumstances.weights.items() if name in ("target", role)}
    return canonical(plain(replace(circumstances, weights=weights)))
