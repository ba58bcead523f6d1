"""`prophet`: stop as soon as the answer is settled, and fill in the rest at once (Prophet, arXiv 2508.19982;
docs/methods/prophet.md).

`static` with a stopping rule: after every forward the gap between the best and the second best logit is averaged over a
short answer window. When it reaches a bound that falls with progress, every mask left in the row is filled with the
current best token; the deciding forward is the filling one.

The window begins `answer_start` positions behind the prompt, which a task's metadata says; without one the rule never
fires. Inside a block-causal block the window is the block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Evidence, Marker, View, option
from dlmbench.decoders.early_commit import EarlyCommit, logit_gap
from dlmbench.decoders.static import StaticConfig
from dlmbench.errors import RequestError

EARLY_UNTIL, MID_UNTIL = 0.33, 0.67  # shares of the steps


@dataclass(frozen=True)
class ProphetConfig(StaticConfig):
    early: float = option(7.5, "gap in logits that ends decoding in the first third of the steps")
    mid: float = option(5.0, "the same in the second third")
    late: float = option(2.5, "the same in the last third")
    answer_start: int = option(-1, "first position of the answer window, counted from the prompt's end; -1: the task's")
    answer_length: int = option(5, "positions of the answer window")

    def __post_init__(self):
        super().__post_init__()
        if self.answer_length < 1:
            raise ValueError("answer_length must be at least 1")


class Prophet(EarlyCommit):
    name = "prophet"
    group = "early commit"
    evidence = Evidence("official trace", ("prophet",))
    Config = ProphetConfig
    equalities = (
        "early=1e9,mid=1e9,late=1e9,answer_start=2 == static:k=1",
        "early=1e9,mid=1e9,late=1e9,answer_start=2,steps=3,schedule=quota == static:steps=3,schedule=quota",
    )

    reads = ("filled",)  # gaps of the whole window

    @classmethod
    def on_task(
        cls, config: ProphetConfig, attention: str | None, fixed: Marker | None, offered: bool
    ) -> ProphetConfig:
        if attention == "block_causal" or config.answer_start >= 0:
            return config
        if fixed:
            return replace(config, answer_start=fixed["window"])
        marker = "--set sampling.constraint=true, which fixes the task's answer marker for the baselines too, or "
        raise RequestError(
            "Method prophet watches an answer window, and without one it would never stop early: give "
            f"{marker if offered else ''}--set prophet.answer_start=N, counted from the prompt's end."
        )

    def settled(self, view: View, forward: Forward) -> tuple[Tensor, dict[str, Tensor]]:
        gap, known = self._gap(view, forward)
        behind, planned = self.clock(view)
        progress = (behind + 1).double() / planned.clamp_min(1)
        bound = torch.where(progress < EARLY_UNTIL, self.config.early, self.config.late)
        bound = torch.where((progress >= EARLY_UNTIL) & (progress < MID_UNTIL), self.config.mid, bound)
        return known & (gap >= bound), {"gap": gap.masked_fill(~known, float("nan"))}

    def _gap(self, view: View, forward: Forward) -> tuple[Tensor, Tensor]:
        """Mean gap [R] over the window, and the rows [R] in which any of it has been predicted."""
        inside = view.valid
        if view.attention == "full":
            first = view.prompt_length.unsqueeze(1) + self.config.answer_start
            inside = inside & (view.positions >= first) & (view.positions < first + self.config.answer_length)
            if self.config.answer_start < 0:
                inside = torch.zeros_like(inside)
        if forward.predicted is not None:
            inside = inside & forward.predicted
        count = inside.sum(1)
        mean = logit_gap(forward.logits).masked_fill(~inside, 0.0).sum(1) / count.clamp_min(1)
        return mean, count > 0
