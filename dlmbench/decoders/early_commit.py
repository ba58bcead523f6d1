"""`static` with a stopping rule, which `prophet` and `sched` share: where a row is settled, every mask left in it is
filled with the current best token; the deciding forward is the filling one, and its ordinary reveal is skipped.

Inside a block-causal block there is no answer to look ahead to: what is watched and filled is the block, and progress
is that of the block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Networks, Traits, View
from dlmbench.decoders.static import Static


class EarlyCommit(Static):
    """Base of decoders that stop early; they say when in `settled`."""

    attention = ("full", "block_causal")
    caches = ("none", "prefix", "freecache")  # dual predicts the block alone
    fixed_schedule = False

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return Traits(scope="answer" if nets["target"].config.attention == "full" else "block")

    def settled(self, view: View, forward: Forward) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows [R] to fill now, and what traces should show of the decision."""
        raise TypeError(f"decoder {self.name!r} has no settled()")

    def decide(self, view: View, forward: Forward) -> Decision:
        decision = super().decide(view, forward)
        settled, shown = self.settled(view, forward)
        decision.reveal = torch.where(settled.unsqueeze(1), view.masked, decision.reveal)
        if view.attention == "full":
            decision.finish = settled
        if decision.keep_block_open is not None and decision.planned_empty is not None:
            decision.keep_block_open = decision.keep_block_open & ~settled
            decision.planned_empty = decision.planned_empty & ~settled
        if view.tracing:
            decision.extra = {**shown, "settled": settled}
        return decision

    def clock(self, view: View) -> tuple[Tensor, Tensor]:
        """Steps [R] that are behind the row, and those [R] that it is planned for; the block's under block-causal
        attention."""
        if view.attention != "full":
            return view.step, self.steps(view)
        if self.config.steps:
            return view.total_steps, self.steps(view) * self.blocks(view)
        return view.total_steps, -(-(view.ends - view.prompt_length) // self.config.k)


def logit_gap(logits: Tensor) -> Tensor:
    """Largest minus second largest logit. [R,W,V] -> [R,W]."""
    top = logits.float().topk(2, -1).values
    return top[..., 0] - top[..., 1]
