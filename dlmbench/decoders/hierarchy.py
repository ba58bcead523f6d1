"""`hierarchy`: the best position of every run of masks, so that runs split in two (dInfer's hierarchical decoding,
arXiv 2510.08666; docs/methods/hierarchy.md).

Tokens that are far apart disturb each other less than neighbours. A run is a stretch of adjacent masks inside the
block; its most confident position is revealed where its confidence exceeds `low`, every position above `tau` comes with
it, and the best one of the block always does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, StepDecoder, View, option, ranks


@dataclass(frozen=True)
class HierarchyConfig:
    tau: float = option(
        0.9,
        "confidence above which a position is revealed wherever it stands (dInfer's evaluation: 0.9; 1 turns it off)",
        threshold=True,
        unit="confidence",
    )
    low: float = option(
        0.4, "confidence that the best position of a run must exceed (dInfer: 0.4; its evaluation 0.3, LLaDA-MoE 0.62)"
    )


class Hierarchy(StepDecoder):
    name = "hierarchy"
    group = "selectors"
    evidence = Evidence("official trace", ("hierarchy",))
    Config = HierarchyConfig
    attention = ("full", "block_causal")
    equalities = (
        "tau=1.1,low=1.1 == static:k=1",
        "tau=0.05,low=0.05 == threshold:tau=0.05,inclusive=false",
        "tau=0 == threshold:tau=0",
    )

    def decide(self, view: View, forward: Forward) -> Decision:
        best = view.candidates(forward.logits)
        rank = ranks(best.log_odds, view.eligible)
        leads = first_of_runs(rank, view.eligible) & (best.confidence > self.config.low)
        passed = leads | view.eligible & (best.confidence > self.config.tau)
        return Decision(best.tokens, passed | view.eligible & (rank == 0), fallback=~passed.any(1))


def first_of_runs(rank: Tensor, masked: Tensor) -> Tensor:
    """Of every run of adjacent `masked` [R,W] positions the one of lowest `rank` [R,W]; -> [R,W]."""
    left = torch.nn.functional.pad(masked[:, :-1], (1, 0))
    run = ((masked & ~left).cumsum(1) - 1).clamp_min(0)  # a number for each run; what is no mask ranks last in it
    lowest = torch.full_like(rank, rank.shape[1]).scatter_reduce(1, run, rank, "amin")
    return masked & (rank == lowest.gather(1, run))
