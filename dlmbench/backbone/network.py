"""A network in its role: weights, cache and the forwards that decoders may ask for.

A decoder gets one handle for each role it declared and never touches a cache or a counter. The handle knows the
family's attention rule and logit shift, keeps keys and values, and folds the store of a finished block into the
forward that begins the next one (`fused`), or spends the official extra forward on it (`separate`).

Axes: R rows, B block length, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.backbone.attention import CachedAttention, Group, block_causal, keys_before
from dlmbench.backbone.cache import KVCache
from dlmbench.backbone.counter import Column, Counter
from dlmbench.backbone.model import Transformer

PREFILL_BUCKET = 32  # prompt widths are padded to multiples of this, so their shapes are few
KEY_BUCKET = 32  # the same for the number of keys a forward looks at


class Network:
    """One model in one role ("target", "draft", "guide", ...)."""

    def __init__(self, role: str, model: Transformer, block_length: int, store: str = "fused"):
        self.role, self.model, self.config = role, model, model.config
        self.block_length, self.store_mode = block_length, store
        self.device, self.dtype = model.norm.device, model.norm.dtype

    def allocate(self, rows: int, capacity: int, canvas: Tensor, counter: Counter) -> None:
        """Static buffers for a run. canvas [R, capacity] holds everybody's tokens and is shared, not copied."""
        self.canvas, self.counter = canvas, counter
        self.cache = KVCache(self.config, rows, capacity, self.device, self.dtype)
        self.pending = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.block = torch.arange(self.block_length, device=self.device)

    # --- what the engine does -------------------------------------------------------------------------------------

    def prefill_lengths(self, prompt_lengths: list[int]) -> list[int]:
        """Leading prompt tokens that are encoded ahead: whole blocks; all but the last token for a shifted head."""
        if self.config.shift:
            return [n - 1 for n in prompt_lengths]
        return [n // self.block_length * self.block_length for n in prompt_lengths]

    def prefill(self, rows: Tensor, lengths: list[int]) -> None:
        """Encode the first `lengths[i]` tokens of the canvas of rows[i] and keep their keys and values."""
        if max(lengths) == 0:
            return
        width = -(-max(lengths) // PREFILL_BUCKET) * PREFILL_BUCKET
        width = min(width, self.cache.capacity)
        ends = torch.tensor(lengths, device=self.device)
        positions = torch.arange(width, device=self.device).expand(len(lengths), width)
        valid = positions < ends.unsqueeze(1)
        places = self.cache.places(rows, positions, valid)
        bias = block_causal(positions, 1 if self.config.attention == "causal" else self.block_length, self.dtype)
        ids = self.canvas[rows, :width]
        self._forward(self.model.embed(ids.view(-1)), places, [Group(positions, bias, rows)])
        self.counter.add(self.config, Column(self.role, "prefill", width, 0), ends > 0, ends, rows)

    def finish_block(self, rows: Tensor) -> None:
        """The blocks just left of `start` of these rows [R] bool are final; their K/V are due."""
        if not self.config.shift:
            self.pending |= rows

    def store(self, start: Tensor, seen: int) -> None:
        """The official extra forward over finished blocks (`separate`). start [R]: first position after the block."""
        positions = (start - self.block_length).unsqueeze(1) + self.block
        ids = self.canvas.gather(1, positions.clamp_min(0))
        places = self._places(positions.clamp_min(0), self.pending)
        group = Group(positions.clamp_min(0), keys_before(start, seen, self.dtype))
        self._forward(self.model.embed(ids.view(-1)), places, [group])
        self.counter.add(self.config, Column(self.role, "store", self.block_length, 0), self.pending, start)
        self.pending.zero_()

    def keep_rows(self, rows: Tensor, canvas: Tensor) -> None:
        self.canvas, self.pending = canvas, self.pending.index_select(0, rows)
        self.cache.keep_rows(rows)

    def reset(self, rows: Tensor) -> None:
        self.pending.index_fill_(0, rows, False)

    # --- what a decoder may ask for ---------------------------------------------------------------------------------

    def denoise(self, view, embeds: Tensor | None = None, kind: str = "denoise", hidden: bool = False):
        """Forward of the active block of every row.

        `embeds` [R,B,D] replaces the embeddings of the canvas. Returns logits [R,B,V] that predict the view's
        positions, or (logits, hidden states after the final norm [R,B,D]).
        """
        start, live = view.start, view.live
        queries = view.positions - self.config.shift
        ends = queries[:, -1] + 1
        x = self.model.embed(self.canvas.gather(1, queries).view(-1)) if embeds is None else embeds.flatten(0, 1)
        places = self._places(queries, live)
        groups = [Group(queries, keys_before(ends, view.seen, self.dtype))]
        waiting = self._waiting(view)
        if waiting is not None:
            extra, extra_places, extra_group = self._store_group(start, waiting, view.seen)
            x = torch.cat([x, extra])
            places = tuple(torch.cat(pair) for pair in zip(places, extra_places))
            groups.append(extra_group)
        states = self._forward(x, places, groups)[: queries.numel()]
        self._count(kind, live, ends, waiting)
        logits = self.model.project(states).view(*queries.shape, -1)
        return (logits, states.view(*queries.shape, -1)) if hidden else logits

    # --- inside -----------------------------------------------------------------------------------------------------

    def _waiting(self, view) -> Tensor | None:
        """Rows [E] whose finished block rides along; None when there are none or stores are separate."""
        if self.store_mode == "separate" or self.config.shift:
            return None
        if view.pending_rows is None:  # the host does not know yet: all rows, masked on the device
            return torch.arange(view.live.shape[0], device=self.device)
        return torch.tensor(view.pending_rows, device=self.device) if view.pending_rows else None

    def _store_group(self, start: Tensor, rows: Tensor, seen: int) -> tuple[Tensor, tuple, Group]:
        ends = start.index_select(0, rows)
        positions = ((ends - self.block_length).unsqueeze(1) + self.block).clamp_min(0)
        ids = self.canvas.index_select(0, rows).gather(1, positions)
        places = self.cache.places(rows, positions, self.pending.index_select(0, rows))
        everyone = rows.shape[0] == start.shape[0]
        group = Group(positions, keys_before(ends, seen, self.dtype), None if everyone else rows)
        return self.model.embed(ids.view(-1)), places, group

    def _places(self, positions: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(positions.shape[0], device=self.device)
        return self.cache.places(rows, positions, valid)

    def _forward(self, x: Tensor, places: tuple[Tensor, Tensor], groups: list[Group]) -> Tensor:
        positions = groups[0].positions.reshape(-1)
        if len(groups) > 1:
            positions = torch.cat([group.positions.reshape(-1) for group in groups])
        return self.model(x, positions, CachedAttention(self.cache, places, groups))

    def _count(self, kind: str, live: Tensor, ends: Tensor, waiting: Tensor | None) -> None:
        width = self.block_length
        if waiting is None:
            self.counter.add(self.config, Column(self.role, kind, width, width), live, ends)
            return
        both = live & self.pending
        self.counter.add(self.config, Column(self.role, kind, width, width), live & ~both, ends)
        self.counter.add(self.config, Column(self.role, kind, 2 * width, width), both, ends)
        self.pending.zero_()
