"""`entropy`: reveal the most certain positions while their summed entropy stays below a budget.

``rule=cumulative`` is SDAR's entropy_bounded in the form that works (JetEngine; card of SDAR, section 5): positions by
ascending entropy, as many as there are prefix sums below the budget, at least one. ``rule=eb`` is the EB-Sampler's
(card of the threshold family, section 10): the longest prefix, in the order of `proxy`, whose entropies without the
largest one sum to at most the budget; the mask token takes no part in the distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, StepDecoder, View, option, top_n
from dlmbench.decoders.predict import without
from dlmbench.decoders.static import scores


@dataclass(frozen=True)
class EntropyConfig:
    budget: float = option(
        0.35, "entropy in nats that the positions of a step may sum to (JetEngine: 0.35; try 0.1 with eb)", knob=True
    )
    rule: str = option("cumulative", "how the budget is spent", choices=("cumulative", "eb"))
    proxy: str = option("entropy", "what rule=eb orders positions by", choices=("entropy", "confidence", "margin"))


class Entropy(StepDecoder):
    name = "entropy"
    Config = EntropyConfig
    attention = ("block_causal", "full")
    equalities = ("budget=-1,rule=eb,proxy=confidence == static:k=1",)

    def decide(self, view: View, forward: Forward) -> Decision:
        logits = forward.logits
        if self.config.rule == "eb":
            logits = without(logits, (view.mask_id,))
        best = view.candidates(logits)
        proxy = self.config.proxy if self.config.rule == "eb" else "entropy"
        score = scores(best, proxy).masked_fill(~view.eligible, float("-inf"))
        order = score.argsort(dim=1, descending=True, stable=True)
        entropy = best.entropy.masked_fill(~view.eligible, float("inf")).gather(1, order)
        spent = entropy.cumsum(1)
        if self.config.rule == "eb":
            spent = spent - entropy.cummax(1).values
            within = (spent <= self.config.budget).sum(1)  # inf - inf is no number and compares as false
        else:
            within = (spent < self.config.budget).sum(1)
        return Decision(best.tokens, top_n(score, view.eligible, within.clamp_min(1)), fallback=within < 1)
