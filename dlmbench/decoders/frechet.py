"""`frechet`: reveal as many of the surest positions as a bound on all of them together allows (Fast-dLLM++,
arXiv 2606.02955; docs/methods/frechet.md).

Fréchet's lower bound of "the n best are all right" is c(1) + ... + c(n) - (n - 1); what speaks against the n-th is at
most 1 - c(n). Their difference never grows with n, and the largest n at which it exceeds `margin` is revealed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, StepDecoder, View, option, ranks


@dataclass(frozen=True)
class FrechetConfig:
    margin: float = option(
        0.25,
        "what the bound must exceed (Fast-dLLM++: GSM8K 0.25 to 0.30, HumanEval 0.20 to 0.25, MBPP and MATH from 0.02)",
        threshold=True,
    )


class Frechet(StepDecoder):
    name = "frechet"
    group = "selectors"
    evidence = Evidence("official trace", ("frechet",))
    Config = FrechetConfig
    attention = ("full", "block_causal")
    equalities = ("margin=1 == static:k=1", "margin=-1e9 == threshold:tau=0")

    def decide(self, view: View, forward: Forward) -> Decision:
        best = view.candidates(forward.logits)
        rank = ranks(best.log_odds, view.eligible)
        passed = within(best.confidence.masked_fill(~view.eligible, float("-inf")), rank, self.config.margin)
        n = passed.clamp_min(1).unsqueeze(1)
        return Decision(best.tokens, view.eligible & (rank < n), fallback=passed < 1)


def within(confidence: Tensor, rank: Tensor, margin: float) -> Tensor:
    """The largest n [R] with c(1) + ... + c(n) - (n - 1) - (1 - c(n)) > margin, 0 where there is none.

    confidence [R,W], -inf where it does not count; rank [R,W] its places from 0. In float64: the sum is close to n.
    """
    best_first = torch.empty_like(confidence).scatter_(1, rank, confidence).double()
    n = torch.arange(1, rank.shape[1] + 1, device=rank.device)
    bound = best_first.cumsum(1) - (n - 1) - (1 - best_first)
    return (bound > margin).int().cumprod(1).sum(1)
