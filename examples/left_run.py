"""The leftmost masked position, and the run after it while it stays confident."""

from dataclasses import dataclass

from dlmbench.decoders.base import Decision, StepDecoder, option
from dlmbench.registry import DECODERS


@dataclass(frozen=True)
class Options:
    tau: float = option(0.8, "confidence that every position of the run must pass", threshold=True, unit="confidence")


class LeftRun(StepDecoder):
    name = "left-run"
    Config = Options
    equalities = ("tau=1.1 == sequential:k=1",)

    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        first = view.eligible & (view.eligible.cumsum(1) == 1)
        sure = first | ~view.eligible | (best.confidence > self.config.tau)
        return Decision(best.tokens, view.eligible & sure.int().cumprod(1).bool())


DECODERS.register("left-run", LeftRun)
