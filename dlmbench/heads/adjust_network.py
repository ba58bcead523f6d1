"""The ADJUST sampler at work: calls over whole rows, each with the states that the call before it left.

Nothing is cached from call to call: the frozen model and the layer see all positions of a row each time, pads of
shorter rows masked. Counted under the role "head", kind ``denoise``.

Axes: R rows, T positions of the longest row, W positions of the view, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.backbone.attention import CachedAttention, QueryGroup
from dlmbench.backbone.network import Network, bucket
from dlmbench.heads.adjust import AdjustModule


class AdjustHead(Network):
    """One sampler beside the network it was trained for."""

    def __init__(self, module: AdjustModule, target: Network):
        super().__init__("head", module, target.block_length)  # type: ignore[arg-type]  # has what is asked of one

    @property
    def stores(self) -> bool:
        return False

    def prefill_lengths(self, prompt_lengths: list[int]) -> list[int]:
        return [0] * len(prompt_lengths)

    def step(self, view, tokens: Tensor, states: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """One call of the sampler on every row.

        tokens [R,W] the view's tokens as they are now, states [R,T,D] what `Bidirectional.whole` or the call before
        returned, `active` [R] bool the rows that need the call. Returns moved states [R,T,D] and logits at the view
        [R,W,V].
        """
        rows, width, _ = states.shape
        positions = torch.arange(width, device=self.device).expand(rows, width)
        valid = (positions < view.ends.unsqueeze(1)) & view.live.unsqueeze(1)
        seen = min(bucket(width), self.kv.capacity)
        group = QueryGroup(positions, self.kv.prefix_bias(view.ends, seen))
        attend = CachedAttention(self.kv, self.kv.slot_mapping(None, positions, valid), [group])
        ids = self._row(view, tokens, width)
        moved = self.model(ids.reshape(-1), states.flatten(0, 1), positions.reshape(-1), attend).view_as(states)
        at = view.positions.clamp_max(width - 1).unsqueeze(-1).expand(-1, -1, states.shape[-1])
        self._count("denoise", "row", view.live & active, view.ends, view.ends, view.valid.sum(1))
        return moved, self.model.project(moved.gather(1, at))

    def trial(self, tokens: int):
        ids = torch.zeros(tokens, dtype=torch.long, device=self.device)
        hidden = torch.zeros(tokens, self.config.hidden_size, device=self.device, dtype=self.dtype)
        return lambda positions, attend: self.model(ids, hidden, positions, attend)

    def _row(self, view, tokens: Tensor, width: int) -> Tensor:
        """The row's first T tokens with the view's put in their places. [R,T]"""
        inside = view.valid & (view.positions < width)  # a finished row that rides along may be longer than T
        place = torch.where(inside, view.positions, width)  # what lies behind a row goes to a spare column
        spare = torch.zeros_like(self.canvas[:, :1])
        return torch.cat([self.canvas[:, :width], spare], 1).scatter(1, place, tokens)[:, :-1]
