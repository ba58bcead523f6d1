"""`daedal`: the model decides how long its answer is (DAEDAL, arXiv 2508.00819; docs/methods/daedal.md).

e       certainty that the answer ends: probabilities of EOS where it is the best token, the last `checked` of them
        in the answer, summed and divided by `checked`
size    before anything is revealed: `expansion` more masks a forward until e >= `enough`, then checked / 2 EOS
fill    in the active block what exceeds `tau`, and always something
insert  where e < `ending`, `expansion` masks for the block's least certain mask below `low`
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.decoders.base import (
    Decision,
    Evidence,
    Marker,
    Networks,
    RoundDecoder,
    Traits,
    View,
    option,
    refuse_fixed,
    top_n,
)
from dlmbench.errors import RequestError


@dataclass(frozen=True)
class DaedalConfig:
    tau: float = option(0.9, "confidence that a mask must exceed to be filled (0.9)", threshold=True, unit="confidence")
    low: float = option(0.1, "confidence below which a mask may be where something is missing (0.1)")
    initial: int = option(64, "masks that an answer begins with (64)")
    expansion: int = option(8, "masks that are added at a time (8)")
    enough: float = option(0.5, "certainty of the end at which the first length is enough (0.5)")
    ending: float = option(0.9, "certainty of the end from which nothing is inserted (0.9)")
    checked: int = option(32, "positions that could be EOS over which the certainty is averaged (32)")

    def __post_init__(self):
        if min(self.initial, self.expansion, self.checked) < 1:
            raise ValueError("initial, expansion and checked must be at least 1")


class Daedal(RoundDecoder):
    name = "daedal"
    group = "length"
    evidence = Evidence("official trace", ("daedal",))
    Config = DaedalConfig
    attention = ("full",)
    caches = ("none",)
    guidable = False

    @classmethod
    def on_task(cls, config: DaedalConfig, attention: str | None, fixed: Marker | None, offered: bool) -> DaedalConfig:
        refuse_fixed(cls.name, fixed)
        return config

    def bind(self, nets: Networks, block_length: int) -> Traits:
        eos = nets["target"].config.eos_ids
        if not eos:
            raise RequestError("Method daedal looks for the end of an answer, and this model's files name no EOS.")
        self._eos = eos[0]
        return Traits(initial=self.config.initial, growth=max(self.config.expansion, self.config.checked // 2))

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {"sized": torch.zeros(rows, dtype=torch.bool, device=device)}

    def round(self, view: View, nets: Networks) -> Decision:
        config, sized = self.config, view.state["sized"]
        assert view.limit is not None  # of a canvas that grows
        forward, eos = nets["target"].surveyed(view, self._eos, {"estimate": ~sized, "": sized})
        end, shorter = self._certainty(eos), view.ends < view.limit

        best, may = view.candidates(forward.logits), view.eligible & sized.unsqueeze(1)
        passed = may & (best.confidence > config.tau)
        fill = torch.where(passed.any(1, keepdim=True), passed, top_n(best.log_odds, may, 1))
        weak = may & ~fill & (best.confidence < config.low)
        gap = top_n(-best.log_odds, weak, 1) & (shorter & (end < config.ending)).unsqueeze(1)
        place, count = view.start + gap.byte().argmax(1), gap.any(1) * (config.expansion - 1)

        ready = ~sized & ((end >= config.enough) | ~shorter)
        tail = torch.minimum(view.limit - view.ends, ready * (config.checked // 2))
        view.state["sized"] = sized | ready
        return Decision(
            best.tokens, fill, fallback=sized & ~passed.any(1), planned_empty=~sized, insert=(place, count),
            ends=view.ends + torch.where(sized, count, torch.where(ready, tail, config.expansion)), tail=tail,
            extra=self._shown(view, fill, gap, end) if view.tracing else None,
        )  # fmt: skip

    def _certainty(self, eos: Tensor) -> Tensor:
        """Certainty [R] of the end. eos [R,T]: probability of EOS where it is the best token, else 0."""
        seen = (eos > 0).flip(1).cumsum(1).flip(1)  # of these positions, from here to the end
        return torch.where(seen <= self.config.checked, eos, 0.0).sum(1) / self.config.checked

    def _shown(self, view: View, fill: Tensor, gap: Tensor, end: Tensor) -> dict[str, Tensor]:
        """For traces: where was filled [R,W] and inserted [R,W], before anything moves (-1 elsewhere); lengths [R]."""
        filled, inserted = (torch.where(chosen, view.positions, -1) for chosen in (fill, gap))
        return {"filled": filled, "inserted": inserted, "length": view.ends - view.prompt_length, "certainty": end}
