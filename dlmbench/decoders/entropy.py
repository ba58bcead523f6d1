"""`entropy`: reveal the most certain positions while their summed entropy stays below a budget.

``rule=cumulative`` is SDAR's entropy_bounded in the form that works (JetEngine's; docs/methods/entropy.md): positions
by ascending entropy, as many as there are prefix sums below the budget, at least one. ``rule=eb`` (EB-Sampler, arXiv
2505.24857): the longest prefix, by `proxy`, whose entropies without the largest one sum to at most the budget, the mask
token left out. ``rule=gate`` (dParallel, arXiv 2509.26488) judges each position by itself: entropy against the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlmbench.backbone.descriptor import GRIDS
from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, StepDecoder, View, option, top_n
from dlmbench.decoders.predict import without
from dlmbench.decoders.static import scores


@dataclass(frozen=True)
class EntropyConfig:
    budget: float = option(
        0.35,
        "entropy in nats that the positions of a step may sum to (JetEngine: 0.35; try 0.1 with eb), or that each may "
        "have (gate; dParallel: 0.5)",
        threshold=True,
    )
    rule: str = option(
        "cumulative",
        "how the budget is spent; chosen: as cumulative, on -p log p of the proposed token alone, which is small for "
        "very unlikely tokens too (DreamReasoner); gate: every position on its own (dParallel)",
        choices=("cumulative", "eb", "chosen", "gate"),
    )
    steps: int = option(0, "forwards a block, the last of which reveals all that is left; 0: no limit", added=True)
    proxy: str = option("entropy", "what rule=eb orders positions by", choices=("entropy", "confidence", "margin"))

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("steps must be at least 0")


class Entropy(StepDecoder):
    name = "entropy"
    group = "selectors"
    evidence = Evidence("official trace", ("entropy_gate",), but="rule=gate alone; the others are read only")
    Config = EntropyConfig
    attention = ("block_causal", "full")
    grids = GRIDS
    equalities = (
        "budget=-1,rule=eb,proxy=confidence == static:k=1",
        "budget=-1,rule=gate == static:k=1,order=entropy",
        "budget=99,rule=gate == threshold:tau=0",
    )

    def decide(self, view: View, forward: Forward) -> Decision:
        logits = forward.logits
        if self.config.rule == "eb":
            logits = without(logits, (view.mask_id,))
        best = view.candidates(logits)
        uncertain = best.entropy
        if self.config.rule == "chosen":
            uncertain = -torch.xlogy(best.confidence, best.confidence)
        score = scores(best, self.config.proxy) if self.config.rule == "eb" else -uncertain
        score = score.masked_fill(~view.eligible, float("-inf"))
        order = score.argsort(dim=1, descending=True, stable=True)
        entropy = uncertain.masked_fill(~view.eligible, float("inf")).gather(1, order)
        spent = entropy.cumsum(1)
        if self.config.rule == "gate":  # equality passes, as in dParallel's sampler of LLaDA
            within = (entropy <= self.config.budget).sum(1)
        elif self.config.rule == "eb":
            spent = spent - entropy.cummax(1).values
            within = (spent <= self.threshold).sum(1)  # inf - inf is no number and compares as false
        else:
            within = (spent < self.threshold).sum(1)
        due = within.clamp_min(1)
        if self.config.steps:
            due = torch.where(view.step + 1 >= self.config.steps, view.block_length, due)
        return Decision(best.tokens, top_n(score, view.eligible, due), fallback=within < 1)
