"""`static`: a fixed number of tokens a step, best first (SDAR's low_confidence_static, card section 5).

Ordered by confidence; the other orders are Dream's (entropy, margin) and a random one. With ``k=1`` this is the
quality reference of every table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, StepDecoder, View, option, top_n


@dataclass(frozen=True)
class StaticConfig:
    k: int = option(1, "tokens revealed a step (quality setting of SDAR: 1)")
    steps: int = option(
        0, "denoising steps a block instead of k; the first B mod steps of them reveal one more; 0: use k"
    )
    order: str = option("confidence", "which positions first", choices=("confidence", "entropy", "margin", "random"))

    def __post_init__(self):
        if self.k < 1 or self.steps < 0:
            raise ValueError("k must be at least 1 and steps at least 0")


def share(steps: int, block_length: int, step: Tensor) -> Tensor:
    """Tokens due at `step` [R] when a block of `block_length` is split over `steps`; 1 after they are used up."""
    due = block_length // steps + (step < block_length % steps).long()
    return torch.where(step < steps, due, 1)


class Static(StepDecoder):
    name = "static"
    Config = StaticConfig

    def due(self, view: View) -> int | Tensor:
        """How many tokens to reveal now: int, or [R]."""
        return share(self.config.steps, view.block_length, view.step) if self.config.steps else self.config.k

    def decide(self, view: View, logits: Tensor) -> Decision:
        best = view.candidates(logits)
        match self.config.order:
            case "confidence":
                score = best.log_odds
            case "entropy":
                score = -best.entropy
            case "margin":
                score = best.margin
            case "random":
                score = best.random
        return Decision(best.tokens, top_n(score, view.eligible, self.due(view)))
