"""`multiblock`: decode several blocks at once; the next one opens when the last has begun (d3LLM's multi-block decoding
without a cache, after D2F, arXiv 2508.09192; docs/methods/multiblock.md).

    open    before every forward one more block, if the last open one is filled to the share `gate`; the first is open
    reveal  masks of open blocks with entropy <= tau, and the one of lowest entropy wherever it is; the first block with
            masks gets its own best one if it got nothing

``best=first`` is d3LLM's rule for Dream: entropy < tau, and nothing but the first block is forced.

The release has a second gate, by which a block counts as fully active; only the first such block with masks is forced.
That is always the first block with masks (all before it are full), so the gate decides nothing and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decision, Evidence, Networks, StepDecoder, Traits, View, option, top_n


@dataclass(frozen=True)
class MultiblockConfig:
    tau: float = option(0.5, "entropy in nats up to which a mask is revealed (LLaDA 0.5, Dream 0.4)", threshold=True)
    gate: float = option(
        0.1, "share of the last open block that is filled when the next one opens (0.1; 1: one by one)"
    )
    best: str = option(
        "everywhere",
        "everywhere: the lowest entropy of the open blocks always comes, tau itself passes (LLaDA); first: only the "
        "first block with masks is forced, tau itself fails (Dream)",
        choices=("everywhere", "first"),
    )

    def __post_init__(self):
        if not 0 <= self.gate <= 1:
            raise ValueError("gate must be between 0 and 1")


class Multiblock(StepDecoder):
    name = "multiblock"
    group = "selectors"
    evidence = Evidence("official trace", ("multiblock",))
    Config = MultiblockConfig
    attention = ("full",)
    caches = ("none", "freecache", "dkv")
    equalities = (
        "tau=-1,gate=1 == static:k=1,order=entropy",
        "tau=-1,gate=1,best=first == static:k=1,order=entropy",
        "tau=4.35,gate=1 == entropy:rule=gate,budget=4.35",
        "tau=1e9,gate=1 == static:k=64",
    )

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return Traits(scope="answer")

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {"open": torch.ones(rows, dtype=torch.long, device=device)}

    def decide(self, view: View, forward: Forward) -> Decision:
        block = torch.arange(view.tokens.shape[1], device=view.tokens.device) // view.block_length
        first, opened = self._blocks(view)
        best = view.candidates(forward.logits)
        surety = -best.entropy
        candidates = view.masked & (block < opened.unsqueeze(1))
        if self.config.best == "everywhere":
            passed = candidates & (best.entropy <= self.config.tau)
            reveal = passed | top_n(surety, candidates, 1)
        else:
            reveal = passed = candidates & (best.entropy < self.config.tau)
        of_first = candidates & (block == first.unsqueeze(1))
        stuck = ~(reveal & of_first).any(1, keepdim=True)
        reveal = reveal | (stuck & top_n(surety, of_first, 1))
        return Decision(
            best.tokens, reveal, finish=~(view.masked & ~reveal).any(1), fallback=~passed.any(1),
            extra={"open_blocks": opened} if view.tracing else None,
        )  # fmt: skip

    def _blocks(self, view: View) -> tuple[Tensor, Tensor]:
        """Number of the first block with masks, and how many blocks are open now, both [R]."""
        masks, size = _by_block(view.masked, view.block_length), _by_block(view.valid, view.block_length)
        opened, number = view.state["open"], torch.arange(masks.shape[1], device=masks.device)
        last = (opened - 1).unsqueeze(1)
        filled = 1 - (masks.gather(1, last) / size.gather(1, last)).squeeze(1)
        more = (masks * (number >= opened.unsqueeze(1))).any(1)  # beyond an end that has been filled up nothing opens
        first = (masks > 0).int().argmax(1)
        opened = torch.maximum(opened + (more & (filled >= self.config.gate)), first + 1)
        view.state["open"] = opened
        return first, opened


def _by_block(marked: Tensor, block_length: int) -> Tensor:
    """How many positions of each block are marked. marked [R,W] bool -> [R,W/B]."""
    padded = torch.nn.functional.pad(marked.long(), (0, -marked.shape[1] % block_length))
    return padded.unflatten(1, (-1, block_length)).sum(-1)
