"""`credit`: votes of earlier forwards lift a token's logit, then another selector decides (CreditDecoding,
arXiv 2510.06133; docs/methods/credit.md).

Every forward of a block each masked position votes for its best token; votes fade by `beta` a forward. The selector
sees logits + alpha ln(1 + votes), this forward's own vote included, and need not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, Networks, StepDecoder, Traits, View, option
from dlmbench.decoders.hierarchy import Hierarchy, HierarchyConfig
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.threshold import Threshold, ThresholdConfig


@dataclass(frozen=True)
class CreditConfig:
    tau: float = option(
        0.9, "lifted confidence that a position must pass (dInfer: 0.9)", threshold=True, unit="confidence"
    )
    alpha: float = option(0.7, "weight of the votes in the logits (dInfer: 0.7; 0: the selector alone)")
    beta: float = option(0.8, "what is left of a vote after a forward (dInfer: 0.8)")
    gamma: float = option(
        0.2, "a vote is confidence ** gamma: small values count unsure votes nearly in full (dInfer: 0.2)"
    )
    selector: str = option("threshold", "the rule that decides on lifted logits", choices=("threshold", "hierarchy"))
    low: float = option(0.4, "lifted confidence that the best of a run must exceed (selector=hierarchy)")

    def __post_init__(self):
        if self.alpha < 0 or self.gamma < 0 or not 0 <= self.beta <= 1:
            raise ValueError("alpha and gamma must be at least 0 and beta between 0 and 1")


class Credit(StepDecoder):
    name = "credit"
    group = "selectors"
    evidence = Evidence("official trace", ("credit",))
    Config = CreditConfig
    attention = ("full", "block_causal")
    equalities = (
        "alpha=0,tau=0.05 == threshold:tau=0.05",
        "alpha=0,selector=hierarchy,tau=0.2,low=0.05 == hierarchy:tau=0.2,low=0.05",
        "tau=0,alpha=50 == threshold:tau=0",
    )

    def bind(self, nets: Networks, block_length: int) -> Traits:
        config = self.config
        threshold, hierarchy = (
            Threshold(ThresholdConfig(config.tau)),
            Hierarchy(HierarchyConfig(config.tau, config.low)),
        )
        self._selector = hierarchy if config.selector == "hierarchy" else threshold
        self._vocab_size = nets["target"].config.vocab_size
        return self._selector.bind(nets, block_length)

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {"votes": torch.zeros(rows, width, self._vocab_size, device=device)}

    def decide(self, view: View, forward: Forward) -> Decision:
        logits = forward.logits.float()
        lifted = logits + self.config.alpha * self._votes(view, logits).log1p()
        return self._selector.decide(view, forward._replace(logits=lifted))

    def _votes(self, view: View, logits: Tensor) -> Tensor:
        """Sums of faded votes [R,W,V] after those of this forward."""
        best = view.candidates(logits, sampling=Sampling(banned=view.sampling.banned), traced=False)
        vote = torch.where(view.masked, best.confidence**self.config.gamma, 0.0)
        votes = view.state["votes"].mul_(self.config.beta).masked_fill_(view.fresh.view(-1, 1, 1), 0.0)
        return votes.scatter_add_(-1, best.tokens.unsqueeze(-1), vote.unsqueeze(-1))
