"""What forwards were measured to cost, kept so that rows which share a forward share its price.

A price of the target depends on its weights and on the circumstances (batch size, device, task and so on), not on the
helpers beside it; a helper's depends on the helper too. The measurement that came first stays: prices taken at
different moments of a busy machine would otherwise make equal work look unequal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlmbench.request import canonical
from dlmbench.runs import find_runs

UNIT = "seconds_per_denoise"  # what a price of 1 was, among the prices that an engine measures


class Prices:
    """Prices by circumstances; the circumstances of a run name the weights of each of its networks."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, float]] = {}

    def read(self, root: Path) -> None:
        """Learn what the finished runs below `root` have measured."""
        for folder in find_runs(root) if root.is_dir() else []:
            self.learn(folder.manifest().get("calibration") or {})

    def add(self, circumstances: Mapping[str, Any], prices: Mapping[str, float | None]) -> None:
        for forward, price in prices.items():
            if price is not None:
                role = forward.partition("/")[0] if forward != UNIT else "target"
                self._known.setdefault(_place(circumstances, role), {}).setdefault(forward, price)

    def learn(self, calibration: Mapping[str, Any]) -> None:
        """The same from what a manifest keeps (see `record`)."""
        if calibration:
            self.add(calibration["circumstances"], {**calibration["prices"], UNIT: calibration[UNIT]})

    def of(self, circumstances: Mapping[str, Any]) -> dict[str, float]:
        """All that is known there: the target's prices, and those of the helpers that stand beside it."""
        roles = {"target", *circumstances.get("weights", ())}
        places = [self._known.get(_place(circumstances, role), {}) for role in sorted(roles)]
        return {forward: price for known in places for forward, price in known.items()}

    def record(self, circumstances: Mapping[str, Any], needed: set[str]) -> dict[str, Any]:
        """What the manifest says about the prices of a run that needs those of the forwards `needed`."""
        known = self.of(circumstances)
        return {
            "circumstances": dict(circumstances),
            "interpolated": sorted(needed - known.keys()),  # met once, by no item that was made again
            UNIT: known.get(UNIT),
            "prices": {forward: price for forward, price in sorted(known.items()) if forward != UNIT},
        }


def _place(circumstances: Mapping[str, Any], role: str) -> str:
    weights = {name: value for name, value in circumstances.get("weights", {}).items() if name in ("target", role)}
    return canonical({**circumstances, "weights": weights})
