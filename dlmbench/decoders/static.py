"""`static`: a fixed number of tokens a step, best first (SDAR's low_confidence_static, arXiv 2510.06303;
LLaDA's low_confidence, arXiv 2502.09992; Dream's algorithms, arXiv 2508.15487; docs/methods/static.md).

Ordered by confidence, entropy, margin or at random, or (`origin`) every position on its own. With ``k=1`` this is the
quality reference of every table. The schedules of LLaDA and Dream prescribe their number of steps and spend it whatever
they reveal: steps that reveal nothing are counted like the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dlmbench.backbone.descriptor import GRIDS
from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, StepDecoder, View, option, top_n
from dlmbench.decoders.predict import Candidates

ORDERS = ("confidence", "entropy", "margin", "random", "origin")
SCHEDULES = ("share", "quota", "linear", "dream", "dream-block")


@dataclass(frozen=True)
class StaticConfig:
    k: int = option(1, "tokens revealed a step (quality setting of SDAR: 1)")
    steps: int = option(
        0, "denoising steps a block instead of k; the first B mod steps of them reveal one more; 0: use k"
    )
    order: str = option(
        "confidence", "which positions first; origin: each on its own (Dream's default)", choices=ORDERS
    )
    schedule: str = option(
        "share",
        "how `steps` divide a block: share of its length (SDAR), quota of its masks (LLaDA), dllm's linear clock over "
        "its masks, Dream's clock over the answer, or over each block (Fast-dLLM); all but share and linear spend "
        "every step, also empty ones",
        choices=SCHEDULES,
    )
    alg_temp: float = option(0.0, "temperature at which Dream draws positions by their score; 0: the best ones")
    eps: float = option(0.001, "last time of Dream's schedule, which runs from 1 to eps")

    def __post_init__(self):
        if self.k < 1 or self.steps < 0:
            raise ValueError("k must be at least 1 and steps at least 0")
        if self.alg_temp < 0 or not 0 < self.eps < 1:
            raise ValueError("alg_temp must be at least 0 and eps between 0 and 1")
        if self.schedule == "linear" and not self.steps:
            raise ValueError("schedule=linear divides a block over steps: give steps, for example 32 for 32 tokens")
        if self.order == "origin" and not self.schedule.startswith("dream"):
            raise ValueError("order=origin reveals by Dream's clock: set schedule=dream as well")


def share(steps: int, block_length: int, step: Tensor) -> Tensor:
    """Tokens due at `step` [R] when a block of `block_length` is split over `steps`; 1 after they are used up."""
    due = block_length // steps + (step < block_length % steps).long()
    return torch.where(step < steps, due, 1)


@lru_cache(maxsize=8)
def linear_quota(longest: int, steps: int, device: torch.device) -> Tensor:
    """Tokens due at every step when n masks are divided by dllm's linear schedule -> [longest+1, steps] by n and step.

    From time t to time s a mask is revealed with probability p = 1 - s/t: k = round(n p) of the n that are left, half
    to even, n in float64 and p in float32, as the released code computes them: products like x.5 are decided by the
    rounding of p. Steps that would reveal nothing are not run, so the others move up.
    """
    with torch.inference_mode(False):
        left = torch.arange(longest + 1, dtype=torch.float64)
        due = torch.zeros(longest + 1, steps, dtype=torch.long)
        at = torch.zeros(longest + 1, dtype=torch.long)
        for step in range(steps):
            t = torch.tensor((steps - step) / steps, dtype=torch.float32)
            s = torch.tensor((steps - step - 1) / steps, dtype=torch.float32)
            p = 1 - (1 - (1 - s)) / (1 - (1 - t))
            k = torch.minimum((left * p.double()).round(), left)
            kept = k > 0
            due[kept, at[kept]] = k[kept].long()
            left, at = left - k, at + kept
        return due.to(device)


def scores(best: Candidates, order: str) -> Tensor:
    """What positions [R,W] are ranked by, highest first."""
    match order:
        case "confidence":
            return best.log_odds
        case "entropy":
            return -best.entropy
        case "margin":
            return best.margin
        case _:
            return best.random


class Static(StepDecoder):
    name = "static"
    group = "selectors"
    evidence = Evidence("official trace", ("sdar", "llada", "dream", "a2d"))
    Config = StaticConfig
    attention = ("block_causal", "full")
    grids = GRIDS
    fixed_schedule = True

    def decide(self, view: View, forward: Forward) -> Decision:
        best = view.candidates(forward.logits)
        reveal = self.reveal(view, best)
        if self.config.schedule in ("share", "linear"):
            return Decision(best.tokens, reveal)
        more_to_come = view.step + 1 < self.steps(view)
        return Decision(best.tokens, reveal, keep_block_open=more_to_come, planned_empty=~reveal.any(1))

    def reveal(self, view: View, best: Candidates) -> Tensor:
        """Positions [R,W] to reveal now."""
        if self.config.order == "origin":
            return view.eligible & ((best.random < self._passed(view).unsqueeze(1)) | self._last(view).unsqueeze(1))
        return top_n(self._score(best), view.eligible, self.due(view))

    def _score(self, best: Candidates) -> Tensor:
        order = self.config.order
        if not self.config.alg_temp or order == "random":
            return scores(best, order)
        score = best.confidence if order == "confidence" else scores(best, order)
        gumbel = -(-best.random.clamp_min(1e-12).log()).log()  # ranks like draws without replacement from a softmax
        return score / self.config.alg_temp + gumbel

    def steps(self, view: View) -> Tensor:
        """Steps [R] that the block is meant to take."""
        if self.config.steps:
            return torch.full_like(view.step, self.config.steps)
        return (view.block_masks + self.config.k - 1) // self.config.k

    def due(self, view: View) -> int | Tensor:
        """How many tokens to reveal now: int, or [R]."""
        if self.config.schedule == "share":
            return share(self.config.steps, view.block_length, view.step) if self.config.steps else self.config.k
        masked = view.eligible.sum(1)
        if self.config.schedule == "linear":
            due = linear_quota(view.block_length, self.config.steps, view.step.device)
            return due[view.block_masks, view.step.clamp_max(self.config.steps - 1)]
        if self.config.schedule == "quota":
            steps = self.steps(view).clamp_min(1)
            due = view.block_masks // steps + (view.step < view.block_masks % steps)
        else:
            waiting = masked
            if self.config.schedule == "dream":  # later blocks are all masks still
                waiting = masked + (view.ends - view.start - view.block_length).clamp_min(0)
            due = (waiting * self._passed(view)).long()
        return torch.where(self._last(view), masked, due)

    def _last(self, view: View) -> Tensor:
        return view.step + 1 >= self.steps(view)

    def _passed(self, view: View) -> Tensor:
        """Share [R] of the remaining masks that Dream's clock reveals now: 1 - s/t from time t to time s."""
        step, steps = view.step, self.steps(view).clamp_min(1)
        if self.config.schedule == "dream":
            step, steps = view.total_steps, steps * self.blocks(view)
        remaining = 1 - self.config.eps
        return remaining / (steps - step * remaining).double()

    def blocks(self, view: View) -> Tensor:
        """Blocks [R] of the row's answer."""
        first = view.prompt_length if view.attention == "full" else view.prompt_length // view.block_length
        if view.attention == "full":
            return (view.ends - first + view.block_length - 1) // view.block_length
        return view.ends // view.block_length - first
