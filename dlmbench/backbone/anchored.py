"""A block-causal network whose head predicts the next position (Fast-dLLM v2, arXiv 2509.26328).

Queries are not shifted, rows of logits are, inside the block: position i is predicted at i - 1. So a block must begin
with a known token, its *anchor*: the prompt's, or what the last position of the block before predicts. The forward of a
full block keeps its keys and values and gives the next block's anchor, so it is a step of its own: it cannot ride along
with the forward that needs this token. Keys and values of the active block stay in its slots from forward to forward;
a forward of some of its positions sees the others as they were last computed (the release's block cache).

Axes: R rows, B block length, S positions of a sub-block, Q positions that are predicted, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.backbone.attention import QueryGroup
from dlmbench.backbone.counter import Counter
from dlmbench.backbone.model import Transformer
from dlmbench.backbone.network import Network


class AnchoredNetwork(Network):
    """`anchor` [R] is the first token of each row's next block, where its prompt or last block ended with a block."""

    carried = ("pending", "anchor")

    def __init__(self, role: str, model: Transformer, block_length: int, store: str = "separate"):
        super().__init__(role, model, block_length, "separate")  # whatever is asked for

    def allocate(self, rows: int, capacity: int, canvas: Tensor, counter: Counter) -> None:
        super().allocate(rows, capacity, canvas, counter)
        self.anchor = torch.zeros(rows, dtype=torch.long, device=self.device)

    @property
    def stores(self) -> bool:
        """The decoder stores a block itself, for its anchor."""
        return False

    def keep_rows(self, rows: Tensor, canvas: Tensor) -> None:
        super().keep_rows(rows, canvas)
        self.anchor = self.anchor.index_select(0, rows)

    def _prefill_chunk(self, rows: Tensor, ends: Tensor, first: int, last: int) -> Tensor:
        states = super()._prefill_chunk(rows, ends, first, last)
        at = (ends - 1 - first).clamp(0, last - first - 1)
        token = self._best(self.model.project(states[torch.arange(len(rows), device=self.device), at]))
        inside = (ends > first) & (ends <= last)
        self.anchor[rows] = torch.where(inside, token, self.anchor[rows])
        return states

    def whole_block(self, view, ids: Tensor, places: Tensor, denoised: Tensor, stored: Tensor) -> Tensor:
        """One forward of the active block, which keeps its keys and values, of the rows that it serves.

        ids [R,B]; `denoised` and `stored` [R] bool name the rows; of the latter the anchor is kept. Returns logits
        [R,Q,V] that predict the block's positions `places` [R,Q].
        """
        rows, block = ids.shape
        served = denoised | stored
        group = QueryGroup(view.positions, self.kv.prefix_bias(view.stop, view.max_keys))
        slots = self.kv.slot_mapping(None, view.positions, served)
        states = self._forward(self.model.embed(ids.reshape(-1)), slots, [group]).view(rows, block, -1)
        last = torch.full_like(places[:, :1], block - 1)
        wanted = torch.cat([(places - 1).clamp_min(0), last], 1).unsqueeze(-1)
        logits = self.model.project(states.gather(1, wanted.expand(-1, -1, states.shape[-1])))
        self._count("denoise", str(block), denoised, view.stop, block, places.shape[1])
        self._count("store", str(block), stored, view.stop, block, 1)
        self.anchor = torch.where(stored, self._best(logits[:, -1]), self.anchor)
        return logits[:, :-1]

    def sub_block(self, view, ids: Tensor, first: Tensor, denoised: Tensor) -> Tensor:
        """One forward of S positions of the active block, from place `first` [R] on; the rest of the block is seen as
        it was last computed. ids [R,S] -> logits [R,S,V] that predict these positions, of the first one of no use."""
        rows, width = ids.shape
        positions = (view.start + first).unsqueeze(1) + torch.arange(width, device=self.device)
        group = QueryGroup(positions, self.kv.prefix_bias(view.stop, view.max_keys))
        slots = self.kv.slot_mapping(None, positions, denoised)
        states = self._forward(self.model.embed(ids.reshape(-1)), slots, [group]).view(rows, width, -1)
        self._count("denoise", str(width), denoised, view.stop, width, width)
        return self.model.project(torch.cat([states[:, :1], states[:, :-1]], 1))

    def _best(self, logits: Tensor) -> Tensor:
        """Argmax of logits [...,V], the mask left out."""
        logits = logits.clone()
        logits.narrow(-1, self.config.mask, 1).fill_(float("-inf"))  # an assignment would bring the number from the host
        return logits.argmax(-1)
