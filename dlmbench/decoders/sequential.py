"""`sequential`: the leftmost masked positions, a fixed number a step (SDAR's sequential, arXiv 2510.06303)."""

from __future__ import annotations

from dataclasses import dataclass

from dlmbench.backbone.descriptor import GRIDS
from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, StepDecoder, View, option
from dlmbench.decoders.static import share


@dataclass(frozen=True)
class SequentialConfig:
    k: int = option(1, "tokens revealed a step")
    steps: int = option(0, "denoising steps a block instead of k; 0: use k")

    def __post_init__(self):
        if self.k < 1 or self.steps < 0:
            raise ValueError("k must be at least 1 and steps at least 0")


class Sequential(StepDecoder):
    name = "sequential"
    group = "selectors"
    evidence = Evidence("official trace", ("sdar",))
    Config = SequentialConfig
    attention = ("block_causal", "full")
    grids = GRIDS

    def decide(self, view: View, forward: Forward) -> Decision:
        due = self.config.k
        if self.config.steps:
            due = share(self.config.steps, view.block_length, view.step).unsqueeze(1)
        return Decision(view.candidates(forward.logits).tokens, view.eligible & (view.eligible.cumsum(1) <= due))
