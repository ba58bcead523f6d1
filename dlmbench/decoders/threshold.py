"""`threshold`: reveal every position whose confidence passes tau, and always the best (SDAR's low_confidence_dynamic,
arXiv 2510.06303; Fast-dLLM's rules, arXiv 2505.22618; docs/methods/threshold.md).

If fewer positions pass than the static schedule would reveal, the schedule's number is revealed instead. SDAR compares
strictly, Fast-dLLM lets equality pass. ``rule=factor`` asks for less confidence the fewer tokens come together;
``rule=planned`` is what Fast-dLLM does on Dream without a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.descriptor import GRIDS
from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, Networks, StepDecoder, Traits, View, option, top_n
from dlmbench.decoders.predict import Candidates
from dlmbench.decoders.static import share
from dlmbench.errors import RequestError


@dataclass(frozen=True)
class ThresholdConfig:
    tau: float = option(
        0.9,
        "confidence that a position must pass (Fast-dLLM and LMDeploy: 0.9; SDAR's script: 0.85)",
        threshold=True,
        unit="confidence",
    )
    steps: int = option(
        0,
        "denoising steps a block that the fall-back schedule divides it into; 0: one token a step; "
        "under rule=planned: steps that the whole answer is planned for",
    )
    inclusive: bool | None = option(
        None, "a confidence equal to tau passes; none: yes with full attention (Fast-dLLM), no otherwise (SDAR)"
    )
    rule: str = option(
        "exact",
        "exact: confidence against tau; factor: the n best while (n + 1)(1 - confidence) < factor; planned: tau among "
        "the answer's share of a step and what earlier steps left over (Fast-dLLM on Dream without a cache)",
        choices=("exact", "factor", "planned"),
    )
    factor: float = option(1.0, "bound of rule=factor (Fast-dLLM: 1.0; explored 0.7 to 1.9)")
    factor_rule: str = option(
        "paper", "code also reveals a last masked position that fails alone, as the release does",
        choices=("paper", "code"),
    )  # fmt: skip

    early_eos: bool = option(
        False,
        "end a row in the step that reveals an EOS with nothing masked before it, and not with the EOS's block "
        "(LLaDA2's eos_early_stop; block-causal)",
        added=True,
    )

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("steps must be at least 0")
        if self.rule == "planned" and not self.steps:
            raise ValueError("rule=planned divides the answer over steps: give steps, for example 8 for 256 tokens")
        if self.rule == "factor" and self.steps:
            raise ValueError("rule=factor has no fall-back schedule: leave steps out")

    @property
    def uses_threshold(self) -> bool:
        return self.rule != "factor"


class Threshold(StepDecoder):
    name = "threshold"
    group = "selectors"
    evidence = Evidence("official trace", ("sdar", "fastdllm", "llada2"))
    Config = ThresholdConfig
    attention = ("block_causal", "full")
    grids = GRIDS
    equalities = ("tau=1.1 == static:k=1",)

    def bind(self, nets: Networks, block_length: int) -> Traits:
        target = nets["target"].config
        if self.config.early_eos and target.attention == "full":
            raise RequestError("early_eos is for block-causal models, whose rows end at an EOS: leave it out.")
        self._eos = target.eos_ids
        return Traits()

    def decide(self, view: View, forward: Forward) -> Decision:
        best = view.candidates(forward.logits)
        decision = self._by_factor(view, best) if self.config.rule == "factor" else self._by_confidence(view, best)
        if self.config.early_eos:
            decision.finish = self._ends(view, decision)
        return decision

    def _by_confidence(self, view: View, best: Candidates) -> Decision:
        passed = self._confident(view, best) & view.eligible
        due: int | Tensor = 1
        if self.config.rule == "planned":
            passed = passed & top_n(best.log_odds, view.eligible, self._planned(view))
        elif self.config.steps:
            due = share(self.config.steps, view.block_length, view.step)
        least = top_n(best.log_odds, view.eligible, due)
        short = passed.sum(1) < least.sum(1)
        return Decision(best.tokens, torch.where(short.unsqueeze(1), least, passed), fallback=short)

    def _ends(self, view: View, decision: Decision) -> Tensor:
        """Rows [R] where this step reveals an EOS, and nothing is masked before the first one of the answer."""
        reveal = decision.reveal & view.masked
        tokens = torch.where(reveal, decision.tokens, view.tokens)
        eos = torch.zeros_like(reveal)
        for token in self._eos:
            eos = eos | (tokens == token)
        eos = eos & (view.positions >= view.prompt_length.unsqueeze(1))
        before_first = eos.int().cumsum(1) == 0
        filled = ~(view.masked & ~reveal & before_first).any(1)
        return (eos & reveal).any(1) & filled

    def _confident(self, view: View, best: Candidates) -> Tensor:
        inclusive = self.config.inclusive
        if inclusive is None:
            inclusive = view.attention == "full"
        return best.confidence >= self.threshold if inclusive else best.confidence > self.threshold

    def _planned(self, view: View) -> Tensor:
        """Positions [R] that may come now, a step's share and the leftovers: all that later steps need not take."""
        share_of_step = (view.ends - view.prompt_length) // self.config.steps
        later = (self.config.steps - 1 - view.total_steps).clamp_min(0)
        left = view.masked.sum(1) - share_of_step * later
        rest = (view.ends - view.prompt_length) - share_of_step * self.config.steps  # what the shares do not cover
        return torch.where(later > 0, left - rest, left)

    def _by_factor(self, view: View, best: Candidates) -> Decision:
        """Reveal the largest n with (n + 1)(1 - c_n) < factor, c_n being the n-th highest confidence; at least one.

        The products never decrease with n. The release lets equality pass and, where only the last rank fails, reveals
        that one as well.
        """
        order = best.log_odds.masked_fill(~view.eligible, float("-inf")).argsort(dim=1, descending=True, stable=True)
        confidence = best.confidence.gather(1, order)
        rank = torch.arange(1, order.shape[1] + 1, device=order.device)
        masks = view.eligible.sum(1)
        bound = 1 - self.config.factor / (rank + 1)
        passes = confidence >= bound if self.config.factor_rule == "code" else confidence > bound
        passed = (passes & (rank <= masks.unsqueeze(1))).int().cumprod(1).sum(1)
        n = passed.clamp_min(1)
        last_rank = (n == masks - 1) & torch.full_like(view.live, self.config.factor_rule == "code")
        reveal = top_n(best.log_odds, view.eligible, n + last_rank)
        extra = {"last_rank": last_rank} if view.tracing else None
        return Decision(best.tokens, reveal, fallback=(passed < 1) & ~last_rank, extra=extra)
