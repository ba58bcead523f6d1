"""`rcr`: fill everything, keep what was surest when it was filled (running confidence remasking of MDPO,
arXiv 2508.13148; docs/methods/rcr.md).

A schedule says how many masks a block may still have after each of its S steps. Every step fills all masks of the block
and then opens that many filled positions, those that were least sure when they were last filled: anywhere in the
answer, finished blocks included. A score is that of the fill; it is not measured again.

    owed(i) = floor(M * clamp(f((i + 1) / S), 1e-6, 1))    M masks at the block's start, f as in MaskGIT (2202.04200)

Left out: MDPO's training, its schedules log and exp, and what the release does where scores are exactly 0 or 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, Networks, StepDecoder, Traits, View, option, top_n
from dlmbench.decoders.remasking import changes, filled_after, weakest
from dlmbench.decoders.static import scores


@dataclass(frozen=True)
class RCRConfig:
    steps: int = option(
        0, "denoising steps a block; 0: half as many as it has positions (the release: 64 for 128 tokens)"
    )
    schedule: str = option(
        "linear",
        "share f(r) of the masks left when a share r of the steps is spent: linear 1 - r, cosine cos(pi r / 2), pow "
        "1 - r^exponent",
        choices=("linear", "cosine", "pow"),
    )
    exponent: float = option(2.0, "of schedule=pow")
    order: str = option(
        "confidence", "the score of a position when it is filled", choices=("confidence", "entropy", "margin")
    )
    remask: bool = option(True, "false: the same schedule, best first, without opening anything")

    def __post_init__(self):
        if self.steps < 0 or self.exponent <= 0:
            raise ValueError("steps must be at least 0 and exponent above 0")

    def masks_left(self, spent: float) -> float:
        """Share of a block's masks left when a share `spent` of its steps is over."""
        match self.schedule:
            case "linear":
                left = 1 - spent
            case "cosine":
                left = math.cos(math.pi * 0.5 * spent)
            case _:
                left = 1 - spent**self.exponent
        return min(max(left, 1e-6), 1.0)


class RCR(StepDecoder):
    name = "rcr"
    group = "remasking"
    evidence = Evidence("official trace", ("rcr",))
    Config = RCRConfig
    attention = ("full",)
    caches = ("none",)
    fixed_schedule = False  # it is fixed, but under a model's EOS control nothing but EOS would be opened
    equalities = (
        "steps=1 == static:steps=1,schedule=quota",
        "steps=2,remask=false == static:steps=2,schedule=quota",
    )

    def bind(self, nets: Networks, block_length: int) -> Traits:
        self.steps = self.config.steps or max(block_length // 2, 1)
        shares = [self.config.masks_left((step + 1) / self.steps) for step in range(self.steps)]
        self._shares = torch.tensor(shares, dtype=torch.float64, device=nets["target"].device)
        return Traits(scope="answer")

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {"seen": torch.full((rows, width), float("inf"), device=device)}

    def decide(self, view: View, forward: Forward) -> Decision:
        best = view.candidates(forward.logits)
        score = scores(best, self.config.order)
        owed = (view.block_masks * self._shares[view.step.clamp_max(self.steps - 1)]).floor().long()
        if self.config.remask:
            fill = view.eligible
            view.state["seen"] = seen = torch.where(fill, score, view.state["seen"])
            opened = weakest(seen, filled_after(view, fill), owed)
        else:
            fill = top_n(score, view.eligible, view.eligible.sum(1) - owed)
            opened = torch.zeros_like(fill)
        decision = changes(view, best.tokens, fill, opened)
        decision.keep_block_open = view.step + 1 < self.steps
        decision.planned_empty = fill.sum(1) <= opened.sum(1)
        return decision
