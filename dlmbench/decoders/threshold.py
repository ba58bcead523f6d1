"""`threshold`: reveal every position whose confidence passes tau, and always the best (SDAR's low_confidence_dynamic,
card section 5; Fast-dLLM's threshold rule, card of the threshold family, section 2).

If fewer positions pass than the static schedule would reveal, the schedule's number is revealed instead. SDAR compares
strictly, Fast-dLLM lets equality pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, StepDecoder, View, option, top_n
from dlmbench.decoders.static import share


@dataclass(frozen=True)
class ThresholdConfig:
    tau: float = option(
        0.9, "confidence that a position must pass (Fast-dLLM and LMDeploy: 0.9; SDAR's script: 0.85)", knob=True
    )
    steps: int = option(0, "denoising steps a block that the fall-back schedule divides it into; 0: one token a step")
    inclusive: bool = option(False, "a confidence equal to tau passes (Fast-dLLM; SDAR compares strictly)")


class Threshold(StepDecoder):
    name = "threshold"
    Config = ThresholdConfig
    equalities = ("tau=1.1 == static:k=1",)

    def decide(self, view: View, logits: Tensor) -> Decision:
        best = view.candidates(logits)
        confident = best.confidence >= self.config.tau if self.config.inclusive else best.confidence > self.config.tau
        passed = confident & view.eligible
        due = share(self.config.steps, view.block_length, view.step) if self.config.steps else 1
        least = top_n(best.log_odds, view.eligible, due)
        enough = (passed.sum(1) >= least.sum(1)).unsqueeze(1)
        return Decision(best.tokens, torch.where(enough, passed, least), guard=~enough.squeeze(1))
