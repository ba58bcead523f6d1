"""`saber`: fill what is surer than tokens were on average when they were filled, and open again where certainty has
fallen (Saber, arXiv 2510.18165; docs/methods/saber.md).

    bar     mean confidence of the fills so far, 1 before the first
    fill    masks with confidence > bar; the n best where these are fewer
    open    the j weakest of the filled positions, unless all is full; j = min(max(least, ceil(m / 8)), m - 1) after m
            fills

The two released files have two rules. ``change`` (LLaDA's) weighs a position by how its top-1 probability has changed
since the last forward, whatever token stands there; every fill counts in the mean, by blocks; least = n // 2. ``token``
(Dream's) weighs it by the probability of the token that stands there now; a position counts in the mean when it is
filled for the first time; no blocks; least = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, Networks, StepDecoder, Traits, View, option, top_n
from dlmbench.decoders.predict import Candidates
from dlmbench.decoders.remasking import changes, filled_after, standing, weakest

NEVER = -1.0  # confidence of a position that has not been filled yet


@dataclass(frozen=True)
class SaberConfig:
    n: int = option(2, "tokens that a forward fills at least (2)")
    rule: str = option(
        "change",
        "what is opened: change: where the top-1 probability has fallen most (LLaDA's file); token: where the present "
        "token is least probable (Dream's)",
        choices=("change", "token"),
    )

    def __post_init__(self):
        if self.n < 1:
            raise ValueError("n must be at least 1")


class Saber(StepDecoder):
    name = "saber"
    group = "remasking"
    evidence = Evidence("official trace", ("saber",))
    Config = SaberConfig
    attention = ("full",)
    caches = ("none",)
    equalities = ("n=64 == static:k=64",)

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return Traits(scope="answer")

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {
            "filled": torch.full((rows, width), NEVER, device=device),  # confidence of a fill: the last, or the first
            "last": torch.zeros(rows, width, device=device),  # top-1 probability at the forward before
        }

    def decide(self, view: View, forward: Forward) -> Decision:
        by_token = self.config.rule == "token"
        masks = view.masked if by_token else view.eligible
        best = standing(view, forward.logits) if by_token else view.candidates(forward.logits)
        fill, short = self._fill(view, best, masks)
        strength = best.log_odds if by_token else self._change(view, best)
        full = ~(masks & ~fill).any(1)
        count = fill.sum(1)
        back = ((count + 7) // 8).clamp_min(1 if by_token else self.config.n // 2)
        back = torch.minimum(back, count - 1).masked_fill(full, 0)
        decision = changes(view, best.tokens, fill, weakest(strength, filled_after(view, fill), back))
        decision.fallback = short
        if by_token:
            decision.finish, decision.keep_block_open = full, ~full
        return decision

    def _fill(self, view: View, best: Candidates, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [R,W] to fill, and the rows [R] where too few are above the bar."""
        memory = view.state["filled"]
        past = memory != NEVER
        mean = (memory * past).sum(1) / past.sum(1).clamp_min(1)
        bar = torch.where(past.any(1), mean, 1.0)
        sure = masks & (best.confidence > bar.unsqueeze(1))
        least = top_n(best.log_odds, masks, self.config.n)
        short = sure.sum(1) < least.sum(1)
        fill = torch.where(short.unsqueeze(1), least, sure)
        counts = fill & ~past if self.config.rule == "token" else fill
        view.state["filled"] = torch.where(counts, best.confidence, memory)
        return fill, short

    def _change(self, view: View, best: Candidates) -> Tensor:
        """Change of the top-1 probability [R,W] since the last forward; positions that have come with a later block
        have none yet."""
        entered = (view.fresh & (view.total_steps > 0)).unsqueeze(1) & (view.positions >= view.start.unsqueeze(1))
        change = (best.confidence - view.state["last"]).masked_fill(entered, float("inf"))
        view.state["last"] = best.confidence
        return change
