"""`d2f`: several blocks in flight over an exact cache (Discrete Diffusion Forcing, arXiv 2508.09192;
docs/methods/d2f.md).

Blocks are counted from the prompt's end. The prompt sees itself, a block what lies up to its own end; what is not open
does not exist, and what is final keeps its keys and values.

    open    one more block, as soon as the last one is filled to the share `gate` and no EOS stands in the answer
    reveal  in every open block what exceeds `tau`; a block whose predecessor is filled to the share `full` gives its
            best one if nothing does
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
)
from dlmbench.decoders.predict import Candidates


@dataclass(frozen=True)
class D2FConfig:
    tau: float = option(0.9, "confidence that a position must exceed (0.9)", threshold=True, unit="confidence")
    gate: float = option(
        0.1, "share of the last open block that is filled when the next one opens (0.1; LLaDA on GSM8K 0.7, MBPP 0.9)"
    )
    full: float = option(
        0.95, "share of a block that is filled when the next one gives a token in every forward (0.95)"
    )

    def __post_init__(self):
        if not (0 <= self.gate <= 1 and 0 <= self.full <= 1):
            raise ValueError("gate and full must be between 0 and 1")


class D2F(RoundDecoder):
    name = "d2f"
    group = "length"
    evidence = Evidence("official trace", ("multiblock",))
    Config = D2FConfig
    attention = ("full",)
    caches = ("none",)
    needs_training = True
    guidable = False

    @classmethod
    def on_task(cls, config: D2FConfig, attention: str | None, fixed: Marker | None, offered: bool) -> D2FConfig:
        refuse_fixed(cls.name, fixed)
        return config

    def bind(self, nets: Networks, block_length: int) -> Traits:
        self._eos = nets["target"].config.eos_ids
        return Traits(scope="ahead", initial=block_length, growth=block_length, lag=0)

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        ended = torch.zeros(rows, dtype=torch.bool, device=device)
        return {"ended": ended, "stored": torch.zeros(rows, dtype=torch.long, device=device)}

    def round(self, view: View, nets: Networks) -> Decision:
        best = view.candidates(nets["target"].forcing(view, view.state["stored"]).logits)
        view.state["stored"] = view.start.clone()  # by this forward
        reveal, passed = self.commits(view, best)
        view.state["ended"] = view.state["ended"] | (reveal & self.is_eos(best.tokens)).any(1)
        opens = self.opens(view, reveal, view.state["ended"])
        return Decision(
            best.tokens, reveal, fallback=~passed.any(1), ends=view.ends + opens * view.block_length,
            extra={"open_blocks": Blocks(view).opened} if view.tracing else None,
        )  # fmt: skip

    def commits(self, view: View, best: Candidates) -> tuple[Tensor, Tensor]:
        """What is revealed, and what of it has passed `tau`, both [R,W]."""
        passed = view.masked & (best.confidence > self.config.tau)
        return passed | Blocks(view).forced(best, passed, self.config.full), passed

    def opens(self, view: View, revealed: Tensor, ended: Tensor) -> Tensor:
        """Rows [R] in which the next block opens once `revealed` [R,W] is; not in those that have `ended` [R]."""
        return ~ended & (Blocks(view).share_of_last(revealed) >= self.config.gate)

    def is_eos(self, tokens: Tensor) -> Tensor:
        found = torch.zeros_like(tokens, dtype=torch.bool)
        for token in self._eos:
            found = found | (tokens == token)
        return found


class Blocks:
    """The open blocks in a view that begins with the first one that has masks. N of them fit into it."""

    def __init__(self, view: View):
        self.view = view
        self.masked = self._split(view.masked)
        self.size = self._split(view.valid).sum(2)  # [R,N], 0 where no block is open

    def _split(self, marked: Tensor) -> Tensor:
        """[R,W] -> [R,N,B]"""
        padded = torch.nn.functional.pad(marked, (0, -marked.shape[1] % self.view.block_length))
        return padded.unflatten(1, (-1, self.view.block_length))

    @property
    def opened(self) -> Tensor:
        """How many blocks of the row are open or done [R]."""
        block = self.view.block_length
        return (self.view.ends - self.view.prompt_length + block - 1) // block

    def filled(self, revealed: Tensor | None = None) -> Tensor:
        """Share of each block [R,N] that holds tokens, with those that are revealed now [R,W]."""
        left = self.masked if revealed is None else self.masked & ~self._split(revealed)
        return 1 - left.sum(2).double() / self.size.clamp_min(1)

    def share_of_last(self, revealed: Tensor) -> Tensor:
        """The same of the row's last open block [R]."""
        last = (self.size > 0).sum(1, keepdim=True).clamp_min(1) - 1
        return self.filled(revealed).gather(1, last).squeeze(1)

    def forced(self, best: Candidates, passed: Tensor, gate: float) -> Tensor:
        """The best mask [R,W] of each block behind one that is filled to `gate`, where nothing has `passed`."""
        before = torch.nn.functional.pad(self.filled()[:, :-1], (1, 0), value=1.0)
        due = (before >= gate) & ~self._split(passed).any(2)
        odds = self._split(torch.where(self.view.masked, best.log_odds, float("-inf")))
        first = odds.argmax(2, keepdim=True)  # the first of equals
        chosen = torch.zeros_like(self.masked).scatter(2, first, due.unsqueeze(2)) & self.masked
        return chosen.flatten(1)[:, : passed.shape[1]]
