"""Static key/value cache: allocated once, written in place, slot = absolute position.

Because a key's slot is its position, "which keys may this query see" is a comparison of numbers and never a gather,
and a block that is denoised again simply overwrites its own slots: what masks left there is gone before any later
block looks (exact block-causal caching, card of SDAR, section 3). Rows that must not write go to one spare slot.

Axes: R rows, S slots, G key/value heads, d head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.backbone.config import BackboneConfig


class KVCache:
    """Keys and values of all layers for `rows` rows of at most `capacity` positions."""

    def __init__(self, config: BackboneConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        self.capacity = capacity
        self.slots = capacity + 1  # the last one takes what nobody may read
        shape = (rows, self.slots, config.num_kv_heads, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]

    def flat_slots(self, rows: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Index into the flattened slots. rows [n], positions [n,T], valid [n] or [n,T] -> [n*T]."""
        valid = valid if valid.dim() == 2 else valid.unsqueeze(1)
        return (rows.unsqueeze(1) * self.slots + torch.where(valid, positions, self.capacity)).view(-1)

    def write(self, layer: int, flat: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k, v [n,G,d] into the slots `flat` [n] of one layer."""
        self.keys[layer].flatten(0, 1).index_copy_(0, flat, k)
        self.values[layer].flatten(0, 1).index_copy_(0, flat, v)

    def keep_rows(self, rows: Tensor) -> None:
        """Shrink to the given rows, in their order."""
        self.keys = [k.index_select(0, rows) for k in self.keys]
        self.values = [v.index_select(0, rows) for v in self.values]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))
