"""`adablock`: a block ends where the model expects a delimiter (AdaBlock-dLLM, arXiv 2509.26432;
docs/methods/adablock.md).

    block   at its first step, looks at the next `window` of the answer: where proposals are delimiters and the surest
            of them passes `delimiter_tau`, the block ends with it; else it has the usual length
    reveal  what passes tau inside the block, from that same forward on, and always the best (Fast-dLLM's rule)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, Marker, Networks, StepDecoder, Traits, View, option, top_n
from dlmbench.decoders.predict import Candidates
from dlmbench.errors import RequestError


@dataclass(frozen=True)
class AdaBlockConfig:
    tau: float = option(0.9, "confidence at which a position passes (0.9)", threshold=True, unit="confidence")
    delimiters: tuple[int, ...] = option((), "ids of tokens that end a block, joined by + (LLaDA's newline: 198)")
    delimiter_tau: float = option(0.3, "confidence at which a delimiter ends the block (LLaDA 0.3, Dream 0.5)")
    window: float = option(0.25, "share of the answer, ahead of a block's start, in which it may end (0.25)")

    def __post_init__(self):
        if not 0 < self.window <= 1:
            raise ValueError("window must be above 0 and at most 1")


class AdaBlock(StepDecoder):
    name = "adablock"
    group = "length"
    evidence = Evidence("official trace", ("adablock",))
    Config = AdaBlockConfig
    attention = ("full",)
    caches = ("none", "prefix", "dual", "dkv")
    equalities = (
        "delimiters=5+6+7+8+9,delimiter_tau=2 == threshold",
        "delimiters=5+6+7+8+9,delimiter_tau=2,tau=1.1 == static:k=1",
    )

    @classmethod
    def on_task(
        cls, config: AdaBlockConfig, attention: str | None, fixed: Marker | None, offered: bool
    ) -> AdaBlockConfig:
        if config.delimiters:
            return config
        raise RequestError(
            "Method adablock ends blocks at delimiters, and those of this model are not known: give the ids of a "
            "newline and the like in its tokenizer, for example --set adablock.delimiters=198+271."
        )

    def bind(self, nets: Networks, block_length: int) -> Traits:
        self._delimiters = torch.tensor(self.config.delimiters, dtype=torch.long, device=nets["target"].device)
        return Traits(reach=self.config.window)

    def decide(self, view: View, forward: Forward) -> Decision:
        best = view.candidates(forward.logits)
        stop = torch.where(view.fresh, self._end(view, best), view.stop)
        eligible = view.masked & (view.positions < stop.unsqueeze(1))
        passed = eligible & (best.confidence >= self.config.tau)
        reveal = passed | top_n(best.log_odds, eligible, 1)
        return Decision(
            best.tokens, reveal, stop=stop, fallback=eligible.any(1) & ~passed.any(1),
            extra={"block_end": stop} if view.tracing else None,
        )  # fmt: skip

    def _end(self, view: View, best: Candidates) -> Tensor:
        """End [R] of the block that begins now."""
        reach = ((view.ends - view.prompt_length).double() * self.config.window).long()
        ahead = view.valid & (view.positions < (view.start + reach).unsqueeze(1))
        expected = ahead & (best.tokens.unsqueeze(2) == self._delimiters).any(2)
        surest = top_n(best.log_odds, expected, 1)
        found = (surest & (best.confidence >= self.config.delimiter_tau)).any(1)
        usual = torch.minimum(view.start + view.block_length, view.ends)
        return torch.where(found, view.start + surest.byte().argmax(1) + 1, usual)
