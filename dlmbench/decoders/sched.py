"""`sched`: stop when the gap between the best two logits passes a bar that falls smoothly with the steps (SchED,
arXiv 2512.02892; docs/methods/sched.md).

`static` with a stopping rule, like `prophet`, but without an answer window: the gap is averaged over the masks that are
left. By default, as in the release, no mask's best token may have changed since the call before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Evidence, View, option
from dlmbench.decoders.early_commit import EarlyCommit, logit_gap
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.static import StaticConfig


@dataclass(frozen=True)
class SchedConfig(StaticConfig):
    high: float = option(7.5, "gap in logits that ends decoding at the first step (SchED: 7.5)")
    low: float = option(2.5, "the same at the last step (SchED: 2.5 or 0)")
    curve: str = option("cosine", "how the bar falls from high to low", choices=("cosine", "linear", "exp"))
    rate: float = option(4.0, "rate of curve=exp, e^(-rate t) from t 0 to 1 (SchED: 2 to 16)")
    stat: str = option("mean", "what becomes of the gaps", choices=("mean", "median", "quantile"))
    quantile: float = option(0.2, "which one, of stat=quantile")
    average: str = option(
        "masks",
        "gaps of the masks that are left, or of filled positions of the answer too",
        choices=("masks", "answer"),
    )
    region: str = option(
        "row", "whose filled share is the progress: the row's, prompt included, or the answer's",
        choices=("row", "answer"),
    )  # fmt: skip
    min_progress: float = option(0.0, "progress from which on decoding may end")
    patience: int = option(0, "still calls in a row that have to go before")
    max_change: float = option(
        0.0, "share of masks whose best token may change in a still call; 1: the gap alone decides"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.patience < 0 or not 0 <= self.quantile <= 1:
            raise ValueError("patience must be at least 0 and quantile between 0 and 1")


class Sched(EarlyCommit):
    name = "sched"
    group = "early commit"
    evidence = Evidence("official trace", ("sched",))
    Config = SchedConfig
    equalities = (
        "high=1e9,low=1e9 == static:k=1",
        "high=1e9,low=1e9,steps=3,schedule=quota == static:steps=3,schedule=quota",
    )

    @property
    def reads(self) -> tuple[str, ...]:
        return ("filled",) if self.config.average == "answer" else ()

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {
            "before": torch.zeros(rows, width, dtype=torch.long, device=device),  # best tokens of the call before
            "still": torch.zeros(rows, dtype=torch.long, device=device),  # calls in a row that changed little
        }

    def settled(self, view: View, forward: Forward) -> tuple[Tensor, dict[str, Tensor]]:
        masks = view.masked if forward.predicted is None else view.masked & forward.predicted
        inside = masks if self.config.average == "masks" else view.valid
        if forward.predicted is not None:
            inside = inside & forward.predicted
        gap, bar = self._aggregate(logit_gap(forward.logits), inside), self._bar(*self.clock(view))
        started = self._progress(view) >= self.config.min_progress
        still = self._still_calls(view, forward, masks, started)
        settled = masks.any(1) & started & (gap >= bar) & (still > self.config.patience)
        return settled, {"gap": gap, "bar": bar}

    def _bar(self, behind: Tensor, planned: Tensor) -> Tensor:
        """The gap [R] to pass: t runs from 0 at the first call to 1 at the last."""
        t = (behind.double() / (planned - 1).clamp_min(1)).clamp_max(1.0)
        match self.config.curve:
            case "cosine":
                left = (1 + (math.pi * t).cos()) / 2
            case "linear":
                left = 1 - t
            case _:
                left = (-self.config.rate * t).exp()
        left = torch.where(planned > 1, left, 0.0)
        return self.config.low + (self.config.high - self.config.low) * left

    def _progress(self, view: View) -> Tensor:
        """Filled share [R] of the region; under block-causal attention of the block."""
        positions = view.valid.sum(1)
        if view.attention == "full" and self.config.region == "row":
            positions = view.ends
        return 1 - view.masked.sum(1).double() / positions.clamp_min(1)

    def _still_calls(self, view: View, forward: Forward, masks: Tensor, started: Tensor) -> Tensor:
        """How many calls in a row [R], this one included, changed the best tokens of no more masks than allowed."""
        best = view.candidates(forward.logits, sampling=Sampling(banned=view.sampling.banned), traced=False).tokens
        first = view.total_steps == 0 if view.attention == "full" else view.fresh
        changed = (masks & (best != view.state["before"])).sum(1).double() / masks.sum(1).clamp_min(1)
        calm = started & (torch.where(first, 1.0, changed) <= self.config.max_change)
        still = torch.where(calm, torch.where(first, 0, view.state["still"]) + 1, 0)
        view.state["still"].copy_(still)
        known = best if forward.predicted is None else torch.where(forward.predicted, best, view.state["before"])
        view.state["before"].copy_(known)
        return still

    def _aggregate(self, gap: Tensor, inside: Tensor) -> Tensor:
        """One number [R] from the gaps [R,W] of the positions `inside`."""
        count = inside.sum(1)
        if self.config.stat == "mean":
            return gap.masked_fill(~inside, 0.0).sum(1) / count.clamp_min(1)
        ordered = gap.masked_fill(~inside, float("inf")).sort(1).values
        last = (count - 1).clamp_min(0).unsqueeze(1)
        at = (
            last // 2 if self.config.stat == "median" else last * self.config.quantile
        )  # of two in the middle the lower
        low, high = (ordered.gather(1, place.long()) for place in (at.floor(), at.ceil()))
        return torch.lerp(low, high, (at - at.floor()).float()).squeeze(1)
