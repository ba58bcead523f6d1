"""`entropy`: reveal the most certain positions while their summed entropy stays below a budget.

``rule=cumulative`` is SDAR's entropy_bounded in the form that works (JetEngine; card of SDAR, section 5): positions by
ascending entropy, as many as there are prefix sums below the budget, at least one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, StepDecoder, View, option, top_n


@dataclass(frozen=True)
class EntropyConfig:
    budget: float = option(0.35, "entropy in nats that the positions of a step may sum to (JetEngine: 0.35)", knob=True)
    rule: str = option("cumulative", "how the budget is spent", choices=("cumulative",))


class Entropy(StepDecoder):
    name = "entropy"
    Config = EntropyConfig

    def decide(self, view: View, logits: Tensor) -> Decision:
        best = view.candidates(logits)
        entropy = best.entropy.masked_fill(~view.eligible, float("inf"))
        within = (entropy.sort(1).values.cumsum(1) < self.config.budget).sum(1)
        reveal = top_n(-entropy, view.eligible, within.clamp_min(1))
        return Decision(best.tokens, reveal, guard=torch.eq(within, 0))
