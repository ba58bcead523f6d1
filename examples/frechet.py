"""A published rule as a plug-in: Fast-dLLM++'s Frechet bound (arXiv 2606.02955), the same as `--method frechet`.

dlmbench check examples/frechet.py
dlmbench run --plugin examples/frechet.py --method my-frechet --task nano-gsm --limit 50
"""

from dataclasses import dataclass

import torch

from dlmbench.decoders.base import Decision, StepDecoder, option, ranks
from dlmbench.registry import DECODERS


@dataclass(frozen=True)
class Options:
    margin: float = option(0.25, "what the bound must exceed", threshold=True)


class MyFrechet(StepDecoder):
    name = "my-frechet"
    Config = Options
    attention = ("full", "block_causal")
    equalities = ("margin=0.25 == frechet:margin=0.25", "margin=1 == static:k=1")

    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        rank = ranks(best.log_odds, view.eligible)  # 0 is the surest mask of the block
        confidence = best.confidence.masked_fill(~view.eligible, float("-inf")).double()
        best_first = torch.empty_like(confidence).scatter_(1, rank, confidence)
        n = torch.arange(1, rank.shape[1] + 1, device=rank.device)
        all_right, nth_wrong = best_first.cumsum(1) - (n - 1), 1 - best_first
        passed = (all_right - nth_wrong > self.config.margin).int().cumprod(1).sum(1, keepdim=True)
        return Decision(best.tokens, view.eligible & (rank < passed.clamp_min(1)))


DECODERS.register("my-frechet", MyFrechet)
