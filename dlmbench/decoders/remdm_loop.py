"""`remdm_loop`: fill most of the answer, then open its weakest tokens and fill the best masks, many times.

After ReMDM's loop (arXiv 2503.00307), in the deterministic form that the repositories of PC-Sampler and Saber compare
with; docs/methods/remdm_loop.md.

    fill    ratio * G of the answer's G positions, k a forward, most confident first
    loop    `loops` times two forwards: the k filled positions whose tokens are least probable by now become masks; then
            the k most confident masks are filled, wherever they are
    rest    k a forward until no mask is left

The rule knows no blocks. Left out: ReMDM's own schedules, which open every token at random with probability sigma.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, Networks, StepDecoder, Traits, View, option, top_n
from dlmbench.decoders.remasking import changes, standing, weakest


@dataclass(frozen=True)
class RemdmLoopConfig:
    ratio: float = option(0.875, "share of the answer that is filled before the loops (0.875; Sudoku, Countdown 1)")
    k: int = option(1, "tokens filled, or opened, by a forward")
    loops: int = option(32, "times that k tokens are opened and k masks filled, two forwards each (32)")

    def __post_init__(self):
        if not 0 <= self.ratio <= 1:
            raise ValueError("ratio must be between 0 and 1")
        if self.k < 1 or self.loops < 0:
            raise ValueError("k must be at least 1 and loops at least 0")


class RemdmLoop(StepDecoder):
    name = "remdm_loop"
    group = "remasking"
    evidence = Evidence("official trace", ("remdm_loop",))
    Config = RemdmLoopConfig
    attention = ("full",)
    caches = ("none",)
    fixed_schedule = False  # it is fixed, but under a model's EOS control nothing but EOS would be opened
    equalities = ("ratio=0 == remdm_loop:loops=0", "ratio=0.5,loops=0 == remdm_loop:ratio=1,loops=0")

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return Traits(scope="answer")

    def decide(self, view: View, forward: Forward) -> Decision:
        k, step = self.config.k, view.total_steps
        first = (view.own.sum(1) * self.config.ratio).round().long()  # positions filled before the loops
        loops_begin = (first + k - 1) // k
        loops_end = loops_begin + 2 * self.config.loops * (first > 0)
        filling, looping = step < loops_begin, (step >= loops_begin) & (step < loops_end)
        opening = looping & ((step - loops_begin) % 2 == 0)

        best, filled = standing(view, forward.logits), view.own & ~view.masked
        due = torch.where(filling, (first - filled.sum(1)).clamp(0, k), k)
        due = torch.where(looping, first.clamp_max(k), due).masked_fill(opening, 0)
        fill = top_n(best.log_odds, view.masked, due)
        opened = weakest(best.log_odds, filled, torch.where(opening, first.clamp_max(k), 0))

        decision = changes(view, best.tokens, fill, opened)
        decision.finish = (step + 1 >= loops_end) & ~((view.masked & ~fill) | opened).any(1)
        decision.keep_block_open = ~decision.finish
        decision.planned_empty = ~fill.any(1)
        return decision
