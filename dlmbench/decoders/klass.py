"""`klass`: reveal positions that are sure and have stopped changing (KLASS, arXiv 2511.05664;
docs/methods/klass.md).

A position is ready when its confidence passes `tau` and the divergence of its distribution from that of the forward
before was below `kl` in each of the last `history` forwards. Where nothing is ready, the fall-back schedule reveals its
number. Under full attention the distributions of the whole answer are remembered and histories run across block
borders, as in the release; in block-causal blocks memory begins with the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, Networks, StepDecoder, Traits, View, option, top_n
from dlmbench.decoders.static import share

FLOOR = 1e-12  # added inside the logarithms


@dataclass(frozen=True)
class KlassConfig:
    tau: float = option(
        0.6,
        "confidence that a position must pass (LLaDA GSM8K and MATH: 0.6; HumanEval: 0.9)",
        threshold=True,
        unit="confidence",
    )
    kl: float = option(0.015, "divergence in nats that a position must stay below (LLaDA GSM8K: 0.015; Dream: 0.001)")
    history: int = option(2, "forwards in a row that the divergence must be low in")
    steps: int = option(0, "steps a block of the fall-back schedule; 0: one token a step")
    only: str = option(
        "all", "all ready positions, or one: the most confident or the one that changed least",
        choices=("all", "confidence", "kl"),
    )  # fmt: skip

    def __post_init__(self):
        if self.history < 1 or self.steps < 0:
            raise ValueError("history must be at least 1 and steps at least 0")


class Klass(StepDecoder):
    name = "klass"
    group = "selectors"
    evidence = Evidence("read only")
    Config = KlassConfig
    attention = ("full", "block_causal")
    caches = ("none", "prefix", "freecache")
    equalities = ("tau=1.1 == static:k=1", "kl=0 == static:k=1")
    reads = ("tail",)  # divergences of whole distributions

    def bind(self, nets: Networks, block_length: int) -> Traits:
        config = nets["target"].config
        self.vocab_size = config.vocab_size
        return Traits(scope="answer" if config.attention == "full" else "block")

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {
            "before": torch.zeros(rows, width, self.vocab_size, device=device),
            "changes": torch.full((rows, width, self.config.history), float("inf"), device=device),
        }

    def decide(self, view: View, forward: Forward) -> Decision:
        best = view.candidates(forward.logits)
        changes = self._remember(view, best.logits.softmax(-1), forward.predicted)
        stable = (changes < self.config.kl).all(-1) & (view.step >= self.config.history - 1).unsqueeze(1)
        ready = stable & (best.confidence > self.threshold) & view.eligible
        any_ready = ready.any(1)
        if self.config.only != "all":
            score = best.log_odds if self.config.only == "confidence" else -changes[..., -1]
            ready = top_n(score, ready, 1)
        due = share(self.config.steps, view.block_length, view.step) if self.config.steps else 1
        least = top_n(best.log_odds, view.eligible, due)
        return Decision(best.tokens, torch.where(any_ready.unsqueeze(1), ready, least), fallback=~any_ready)

    def _remember(self, view: View, now: Tensor, predicted: Tensor | None) -> Tensor:
        """Note the new distributions [R,W,V] and return the last changes [R,W,history], newest last."""
        before, changes = view.state["before"], view.state["changes"]
        if view.attention != "full":
            begins = view.fresh.view(-1, 1, 1)
            before, changes = before.masked_fill(begins, 0.0), changes.masked_fill(begins, float("inf"))
        change = (now * ((now + FLOOR).log() - (before + FLOOR).log())).sum(-1, keepdim=True)
        changes = torch.cat([changes[..., 1:], change], -1)
        if predicted is not None:
            known = predicted.unsqueeze(-1)
            now, changes = torch.where(known, now, before), torch.where(known, changes, view.state["changes"])
        view.state["before"].copy_(now)
        view.state["changes"].copy_(changes)
        return changes
