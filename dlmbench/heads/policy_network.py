"""The unmasking policy at work: one call over the rows that it is shown, pads masked.

Counted under the role "head", kind ``denoise``.

Axes: R rows, W positions shown of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.backbone.attention import CachedAttention, QueryGroup
from dlmbench.backbone.network import Network, bucket
from dlmbench.heads.policy import PolicyNetwork


class PolicyHead(Network):
    """One policy; it works beside any target."""

    def __init__(self, policy: PolicyNetwork, block_length: int):
        super().__init__("head", policy, block_length)  # type: ignore[arg-type]  # has what is asked of one

    @property
    def stores(self) -> bool:
        return False

    def prefill_lengths(self, prompt_lengths: list[int]) -> list[int]:
        return [0] * len(prompt_lengths)

    def logits(self, view, confidence: Tensor, masked: Tensor, length: Tensor, time: Tensor) -> Tensor:
        """Logits [R,W] of unmasking now.

        confidence and masked [R,W]; the first `length` [R] positions of a row belong to it; time [R] in 0..1.
        """
        rows, width = confidence.shape
        positions = torch.arange(width, device=self.device).expand(rows, width)
        length = length.clamp_min(1)  # a finished row may be shown nothing
        valid = (positions < length.unsqueeze(1)) & view.live.unsqueeze(1)
        slot_mapping = self.kv.slot_mapping(None, positions, valid)
        seen = min(bucket(width), self.kv.capacity)
        group = QueryGroup(positions, self.kv.prefix_bias(length, seen))
        states = self.model(
            confidence.to(self.dtype).flatten(), masked.flatten(), time.to(self.dtype).repeat_interleave(width),
            positions.reshape(-1), CachedAttention(self.kv, slot_mapping, [group]),
        )  # fmt: skip
        self._count("denoise", "row", view.live, length, length, length)
        return self.model.project(states).view(rows, width)

    def trial(self, tokens: int):
        inputs = torch.zeros(tokens, device=self.device, dtype=self.dtype)
        return lambda positions, attend: self.model(inputs, inputs > 0, inputs, positions, attend)
