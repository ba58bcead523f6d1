"""Static key/value cache: allocated once, written in place, slot = absolute position.

Because a key's slot is its position, "which keys may this query see" is a comparison of numbers and never a gather,
and a block that is denoised again simply overwrites its own slots: what masks left there is gone before any later
block looks (exact block-causal caching, card of SDAR, section 3). Rows that must not write go to one spare slot.

Axes: R rows, G key/value heads, S slots, d head size; a layer's buffer is [R,G,S,d], so that (R,G) is one batch axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.backbone.config import BackboneConfig


class KVCache:
    """Keys and values of all layers for `rows` rows of at most `capacity` positions."""

    def __init__(self, config: BackboneConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        self.capacity = capacity  # one slot more takes what nobody may read
        shape = (rows, config.num_kv_heads, capacity + 1, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]

    def places(self, rows: Tensor, positions: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Where fresh keys go. rows [n], positions [n,T], valid [n] or [n,T] -> (rows [n*T], slots [n*T])."""
        valid = valid if valid.dim() == 2 else valid.unsqueeze(1)
        slots = torch.where(valid, positions, self.capacity)
        return rows.unsqueeze(1).expand_as(slots).reshape(-1), slots.view(-1)

    def write(self, layer: int, places: tuple[Tensor, Tensor], k: Tensor, v: Tensor) -> None:
        """Put k, v [n,G,d] into `places` of one layer."""
        self.keys[layer].transpose(1, 2).index_put_(places, k)
        self.values[layer].transpose(1, 2).index_put_(places, v)

    def keep_rows(self, rows: Tensor) -> None:
        """Shrink to the given rows, in their order."""
        self.keys = [k.index_select(0, rows) for k in self.keys]
        self.values = [v.index_select(0, rows) for v in self.values]
