"""Static key/value cache: allocated once, written in place, slot = absolute position.

Because a key's slot is its position, "which keys may this query see" is a comparison of numbers and never a gather,
and a block that is denoised again simply overwrites its own slots: what masks left there is gone before any later
block looks (exact block-causal caching, SDAR). Rows that must not write go to one spare slot.

Axes: R rows, G key/value heads, S slots, d head size; a layer's buffer is [2,R,G,S,d], so that (R,G) is one batch axis
and a forward's keys and values go in by one write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dlmbench.backbone.config import BackboneConfig

WIDE = torch.complex128  # the widest element: on CPU, indexed writes take their time by the element
MANY = 32  # tokens from which a write by wide elements is faster


class KVCache:
    """Keys and values of all layers for `rows` rows of at most `capacity` positions."""

    def __init__(self, config: BackboneConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        self.capacity, self.kv_heads = capacity, config.num_kv_heads  # one slot more takes what nobody may read
        self.rows, shape = rows, (2, rows, config.num_kv_heads, capacity + 1, config.head_dim)
        self._strip = torch.zeros(2 * capacity, device=device, dtype=dtype)
        self._strip[capacity:] = float("-inf")
        self._layers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self._slots = [layer.view(-1, config.head_dim) for layer in self._layers]
        wide = device.type == "cpu" and config.head_dim * dtype.itemsize % WIDE.itemsize == 0
        self._wide = [slots.view(WIDE) for slots in self._slots] if wide else None
        heads = torch.arange(2 * rows * self.kv_heads, device=device) * (capacity + 1)
        heads = heads.view(2, rows, self.kv_heads)  # the first slot of every head
        self._first, self._heads = heads[0, :, :1], heads[:, 0].reshape(-1)
        self._used = 0
        self._narrow(rows)

    def fits(self, rows: int, capacity: int) -> bool:
        """Was it made for a run of this size?"""
        return (rows, capacity) == (self.rows, self.capacity)

    def use_all(self) -> None:
        """Serve all rows again, after `keep_rows`."""
        self._narrow(self.rows)

    def holds(self, rows: int, slots: int) -> bool:
        """Is it large enough for that many?"""
        return rows <= self.rows and slots <= self.capacity

    @contextmanager
    def narrowed(self, rows: int) -> Iterator[KVCache]:
        """Only the first `rows` rows, for a while."""
        used = self._used
        self._narrow(rows)
        try:
            yield self
        finally:
            self._narrow(used)

    def _narrow(self, rows: int) -> None:
        """Use the first `rows` rows."""
        if rows == self._used:
            return
        self._used, self._rows = rows, self._first[:rows]
        self._views: dict[tuple[int, bool], list[tuple[Tensor, Tensor]]] = {}

    def prefix_bias(self, end: Tensor, seen: int) -> Tensor:
        """Every query of a row sees the slots below `end` [n] -> bias [n,1,1,seen] of scores, 0 or -inf."""
        # one strip of `capacity` zeros and as many -inf holds them all: a row begins where `end` zeros are left
        return self._strip.unfold(0, seen, 1).index_select(0, self.capacity - end).view(-1, 1, 1, seen)

    def slot_mapping(self, rows: Tensor | None, positions: Tensor, valid: Tensor | None = None) -> Tensor:
        """Where fresh keys and values go, in a layer's buffer seen as [2*R*G*S,d].

        rows [n] (None for all in order), positions [n,T], valid [n] or [n,T] (None: all of them) -> [n*T,2*G]
        """
        slots = positions
        if valid is not None:
            slots = torch.where(valid if valid.dim() == 2 else valid.unsqueeze(1), positions, self.capacity)
        slots = slots + (self._rows if rows is None else self._rows.index_select(0, rows))
        return slots.view(-1, 1) + self._heads

    def write(self, layer: int, slot_mapping: Tensor, kv: Tensor) -> None:
        """Put kv [N,2*G,d], keys and then values, into `slot_mapping` [N,2*G] of one layer."""
        if self._wide and kv.shape[0] >= MANY:
            self._wide[layer].index_put_((slot_mapping,), kv.view(WIDE))
        else:
            self._slots[layer].index_put_((slot_mapping,), kv)

    def leading(self, seen: int, flat: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the first `seen` slots in every layer: views [R,G,seen,d], made once.

        `flat`: as products batched over (row, head) take them, keys [R*G,d,seen] and values [R*G,seen,d].
        """
        views = self._views.get((seen, flat))
        if views is None:
            views = [(layer[0, : self._used, :, :seen], layer[1, : self._used, :, :seen]) for layer in self._layers]
            if flat:
                views = [(keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)) for keys, values in views]
            self._views[seen, flat] = views
        return views

    def keep_rows(self, rows: Tensor) -> None:
        """Shrink to the given rows, in their order: they move to the front, those that are there already stay."""
        moved = [(to, row) for to, row in enumerate(rows.tolist()) if to != row]
        if moved:
            to, at = torch.tensor(moved, device=rows.device).unbind(1)
            for layer in self._layers:
                layer[:, to] = layer.index_select(1, at)
        self._narrow(len(rows))
