"""`pcsampler`: rare and likely tokens first, and rather on the left (PC-Sampler, arXiv 2508.13021;
docs/methods/pcsampler.md).

An order for `static` with LLaDA's quota of a step, not a speed-up: as many forwards as tokens unless `k` or `steps`
says otherwise. How rare a token is says a table of frequencies that belongs to the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlmbench.decoders.base import Evidence, Marker, Networks, Traits, View, option, top_n
from dlmbench.decoders.frequencies import Table
from dlmbench.decoders.predict import Candidates
from dlmbench.decoders.static import Static
from dlmbench.errors import RequestError


@dataclass(frozen=True)
class PCSamplerConfig:
    k: int = option(1, "tokens revealed a step")
    steps: int = option(0, "steps that a block's masks are divided over instead of k; 0: use k")
    decay: float = option(
        0.25,
        "lambda: a position j behind the block's start weighs exp(-lambda j) (PC-Sampler: 0.25; Sudoku 0, Countdown 1)",
    )
    alpha: float = option(10.0, "largest score before that weight (PC-Sampler: 10)")
    table: str = option("", "JSON file with token counts, made for the model's tokenizer; empty: the model's own")

    schedule: ClassVar[str] = "quota"

    def __post_init__(self):
        if self.k < 1 or self.steps < 0 or self.decay < 0 or self.alpha <= 0:
            raise ValueError("k must be at least 1, steps and decay at least 0 and alpha above 0")
        if self.table and not isinstance(self.table, Table):
            object.__setattr__(self, "table", Table.of(self.table))


class PCSampler(Static):
    name = "pcsampler"
    group = "selectors"
    evidence = Evidence("official trace", ("pcsampler",))
    Config = PCSamplerConfig  # type: ignore[assignment]  # its options are not those of static
    attention = ("full", "block_causal")
    fixed_schedule = False  # EOS comes late by its frequency, and not by LLaDA's control of it
    equalities = (  # the first where all tokens are equally frequent
        "decay=0 == static:schedule=quota", "decay=50 == sequential", "alpha=1e-6 == sequential",
    )  # fmt: skip

    @classmethod
    def on_task(
        cls, config: PCSamplerConfig, attention: str | None, fixed: Marker | None, offered: bool
    ) -> PCSamplerConfig:
        if config.table:
            return config
        raise RequestError(
            "Method pcsampler needs the frequencies of the model's tokens and none are known: give "
            "--set pcsampler.table=FILE (python -m dlmbench.training.frequencies MODEL FILE TEXT... counts them)."
        )

    def bind(self, nets: Networks, block_length: int) -> Traits:
        target, table = nets["target"], self.config.table
        size = target.config.vocab_size
        frequency = table.frequencies(size) if isinstance(table, Table) else torch.full((size,), 1 / size)
        self._rarity = -(frequency + 1e-9).log().float().to(target.device)  # [V]
        return Traits()

    def reveal(self, view: View, best: Candidates) -> Tensor:
        return top_n(self._worth(view, best), view.eligible, self.due(view))

    def _worth(self, view: View, best: Candidates) -> Tensor:
        """Logarithm [R,W] of exp(-lambda j) min(-p ln f, alpha), which does not vanish far from the start."""
        worth = (best.confidence * self._rarity[best.tokens]).clamp_max(self.config.alpha)
        offset = view.positions - view.start.unsqueeze(1)
        return worth.clamp_min(torch.finfo(worth.dtype).tiny).log() - self.config.decay * offset
