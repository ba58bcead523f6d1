"""`fastdllm2`: Fast-dLLM v2's decoder for heads that predict the next position (arXiv 2509.26328; `generate` and the
evaluation's `batch_sample` of the release).

A block begins with a known token and is filled sub-block by sub-block, left to right: a forward reveals every position
of the current sub-block whose confidence passes the threshold (equal does not), and always the best one. A full block
costs one more forward, which keeps its keys and values and says the next block's first token; the last block has none.
With `block_cache` only the first forward of a block, and those in which the sub-block's first position is still a mask,
run over the block; the others run over the sub-block alone, beside keys that grow stale, which changes answers.

Left out: sampled anchors (they are the argmax in the release too), padding behind a stop token.

Axes: R rows, B block length, S positions of a sub-block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.anchored import AnchoredNetwork
from dlmbench.decoders.base import Decision, Evidence, Networks, RoundDecoder, Traits, View, option, top_n
from dlmbench.errors import RequestError


@dataclass(frozen=True)
class FastDLLM2Config:
    tau: float = option(
        0.95,
        "confidence that a position must pass (release: 0.95 by default, 0.9 in its demo, 1 in its published scores)",
        threshold=True,
        unit="confidence",
    )
    sub_block: int = option(8, "positions of a block that may be revealed at a time (release: 8); divides the block")
    block_cache: bool = option(False, "recompute the sub-block alone where its first position is known")
    stop: str = option(
        "early",
        "early: a row ends as soon as nothing before a stop token is masked, anchors included (generate); block: "
        "behind the block in which a stop token was revealed, and no anchor is looked at (batch_sample)",
        choices=("early", "block"),
    )

    def __post_init__(self):
        if self.sub_block < 1:
            raise ValueError("sub_block must be at least 1")


class FastDLLM2(RoundDecoder):
    name = "fastdllm2"
    group = "caches"
    evidence = Evidence("official trace", ("fastdllm2",))
    Config = FastDLLM2Config
    anchored = True
    caches = ("none",)
    guidable = False

    def bind(self, nets: Networks, block_length: int) -> Traits:
        target = nets["target"]
        if not isinstance(target, AnchoredNetwork):
            raise RequestError(
                "Method fastdllm2 begins every block with the token that the block before predicts, and this model's "
                "head predicts its own position: use --method threshold."
            )
        self.width = min(self.config.sub_block, block_length)
        if block_length % self.width:
            raise RequestError(f"fastdllm2.sub_block is {self.width}, which does not divide blocks of {block_length}.")
        self.ends = torch.tensor(target.config.eos_ids or (-1,), device=target.device)
        return Traits(ends_rows=True, lag=0 if self.config.block_cache else None)

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        return {"stopped": torch.zeros(rows, dtype=torch.bool, device=device)}

    def round(self, view: View, nets: Networks) -> Decision:
        net: AnchoredNetwork = nets["target"]
        opening = torch.zeros_like(view.masked)  # the block's first position, where the anchor is not on the canvas yet
        opening[:, 0] = view.masked[:, 0]
        ids = torch.where(opening, net.anchor.unsqueeze(1), view.tokens)
        masked = view.masked & ~opening
        over = self._is_end(ids) & opening if self.config.stop == "early" else torch.zeros_like(opening)
        working = view.live & ~over.any(1)  # the others end with their anchor
        full = ~masked.any(1)
        first = self._sub_block(masked)
        places = first.unsqueeze(1) + torch.arange(self.width, device=first.device)
        logits = self._forward(view, net, ids, masked, places, working, full)

        best = view.candidates(logits, positions=view.start.unsqueeze(1) + places, traced=False)
        waiting = masked.gather(1, places) & working.unsqueeze(1)
        passed = (best.confidence > self.threshold) & waiting
        chosen = passed | top_n(best.log_odds, waiting, 1)
        revealed = torch.zeros_like(masked).scatter(1, places, chosen)
        tokens = torch.where(revealed, ids.scatter(1, places, best.tokens), ids)
        left = masked & ~revealed
        return Decision(
            tokens, revealed | opening,
            finish=self._finish(view, tokens, revealed, left) | over.any(1),
            keep_block_open=~full & (view.stop < view.ends),  # for the forward that stores it
            fallback=working & ~full & ~passed.any(1), planned_empty=full, host_hint=self._hint(left, full),
        )  # fmt: skip

    def _forward(
        self, view: View, net: AnchoredNetwork, ids: Tensor, masked: Tensor, places: Tensor, working: Tensor,
        full: Tensor,
    ) -> Tensor:  # fmt: skip
        """Logits [R,S,V] at the current sub-blocks; rows whose block is full store it."""
        if not self.config.block_cache:
            return net.whole_block(view, ids, places, working & ~full, working & full)
        alone = ~full & (view.step > 0) & ~masked.gather(1, places[:, :1]).squeeze(1)
        whole, parts = self._launches(view)
        if not whole:
            return net.sub_block(view, ids.gather(1, places), places[:, 0], working & alone)
        logits = net.whole_block(view, ids, places, working & ~full & ~alone, working & full)
        if not parts:
            return logits
        part = net.sub_block(view, ids.gather(1, places), places[:, 0], working & alone)
        return torch.where(alone.view(-1, 1, 1), part, logits)

    @staticmethod
    def _launches(view: View) -> tuple[bool, bool]:
        """Does any row need its whole block, does any need its sub-block alone? Both where the host does not know."""
        if view.host_rows is None:
            return True, True
        alone = [row.step > 0 and row.hint == 1 for row in view.host_rows if row]
        return not all(alone), any(alone)

    def _sub_block(self, masked: Tensor) -> Tensor:
        """First place [R] of the sub-block that holds the first mask."""
        return masked.int().argmax(1) // self.width * self.width

    def _hint(self, left: Tensor, full: Tensor) -> Tensor | None:
        """1 for rows [R] whose next forward is one of their sub-block alone."""
        if not self.config.block_cache:
            return None
        known = ~left.gather(1, self._sub_block(left).unsqueeze(1)).squeeze(1)
        return (known & left.any(1) & ~full).long()

    def _finish(self, view: View, tokens: Tensor, revealed: Tensor, left: Tensor) -> Tensor:
        """Rows [R] that their stop token ends."""
        ends = self._is_end(tokens)
        if self.config.stop == "block":
            stopped = view.state["stopped"] | (ends & revealed).any(1)
            view.state["stopped"] = stopped
            return stopped & ~left.any(1)
        own = view.positions >= view.prompt_length.unsqueeze(1)
        return (ends & own & ~left & (left.cumsum(1) == 0)).any(1)

    def _is_end(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, self.ends)
