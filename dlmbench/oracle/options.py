"""What kind of oracle: ``--set oracle.*``. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
WEIGHTS = ("equal", "zipf")


def _option(default: T, help: str, choices: tuple[str, ...] = ()) -> T:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class OracleOptions:
    """The defaults are the ideal model of equally likely answers.

    Whatever is chosen, an impossible token stays impossible: one token at a time ends in a valid answer.
    """

    weights: str = _option("equal", "how likely the valid answers are: all equally, or 1, 1/2, 1/3, ...", WEIGHTS)
    temperature: float = _option(1.0, "divides the log-probabilities: below 1 the model is surer than it should be")
    noise: float = _option(0.0, "standard deviation, in nats, of errors that stay with an item's positions and tokens")

    def __post_init__(self):
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError("temperature must be above 0")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError("noise must be at least 0")


OVERCONFIDENT = OracleOptions(temperature=0.5, noise=1.0)  # sure of things that only look likely
MODELS = {
    "ideal": OracleOptions(),
    "ideal, unequal": OracleOptions(weights="zipf"),
    "overconfident": OVERCONFIDENT,
}  # on which the limits of decoders are measured
