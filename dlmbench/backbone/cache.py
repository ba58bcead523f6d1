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
        self.capacity, self.kv_heads = capacity, config.num_kv_heads  # one slot more takes what nobody may read
        self.heads = torch.arange(config.num_kv_heads, device=device)
        shape = (rows, config.num_kv_heads, capacity + 1, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]

    def places(self, rows: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Where fresh keys go, in a layer's buffer seen as [R*G*S,d].

        rows [n], positions [n,T], valid [n] or [n,T] -> [n*T*G]
        """
        valid = valid if valid.dim() == 2 else valid.unsqueeze(1)
        slots = torch.where(valid, positions, self.capacity)
        heads = rows.unsqueeze(1) * self.kv_heads + self.heads  # [n,G]
        return (heads.unsqueeze(1) * (self.capacity + 1) + slots.unsqueeze(-1)).view(-1)

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k, v [n,G,d] into `places` of one layer."""
        size = k.shape[-1]
        self.keys[layer].view(-1, size).index_copy_(0, places, k.reshape(-1, size))
        self.values[layer].view(-1, size).index_copy_(0, places, v.reshape(-1, size))

    def keep_rows(self, rows: Tensor) -> None:
        """Shrink to the given rows, in their order."""
        self.keys = [k.index_select(0, rows) for k in self.keys]
        self.values = [v.index_select(0, rows) for v in self.values]
