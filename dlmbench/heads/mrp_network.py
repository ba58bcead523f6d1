"""The MRP module at work: its passes over active blocks, and its own keys and values of earlier blocks.

The module's cache is written like the backbone's: at prefill (prompt tokens with the backbone's states of the prompt)
and once a block is final (its tokens with the backbone's states of the forward that stored it). With fused stores the
backbone stores a block in the forward that begins the next one, and the module does the same in its first pass of that
round. Without a prefix cache a pass sees its own block only, and nothing is prefilled or stored.

Counted under the role "head": ``prefill``, ``denoise`` (a pass inside a block), ``store``.

Axes: R rows, B block length, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.backbone.attention import CachedAttention, QueryGroup, prompt_bias, visible
from dlmbench.backbone.network import Network
from dlmbench.heads.mrp import MRPModule


class MRPHead(Network):
    """One module beside the network it was trained for; `target` must come first among the engine's networks."""

    def __init__(self, module: MRPModule, target: Network):
        super().__init__("head", module, target.block_length, target.store_mode)  # type: ignore[arg-type]  # has what is asked of one
        self.target, target.keeps_states = target, True
        self.keeps_prefix = True  # the decoder's choice, made before anything runs

    # --- what the engine does -------------------------------------------------------------------------------------

    @property
    def stores(self) -> bool:
        return self.keeps_prefix

    def prefill_lengths(self, prompt_lengths: list[int]) -> list[int]:
        return super().prefill_lengths(prompt_lengths) if self.keeps_prefix else [0] * len(prompt_lengths)

    def _prefill_chunk(self, rows: Tensor, ends: Tensor, first: int, last: int) -> Tensor:
        """The same stretch of the prompts, with the states that the target has just left of it."""
        assert self.target.prefill_states is not None  # the target comes first
        states = self.target.prefill_states[:, first:last]
        positions = torch.arange(first, last, device=self.device).expand(len(rows), last - first)
        slot_mapping = self.kv.slot_mapping(rows, positions, positions < ends.unsqueeze(1))
        bias = prompt_bias(first, last, self.block_length, self.dtype, self.device)
        group = QueryGroup(positions, bias.expand(len(rows), -1, -1, -1), rows)
        return self._pass(self.canvas[rows, first:last], states, slot_mapping, [group]).view(states.shape)

    def store(self, start: Tensor, seen: int) -> None:
        """The extra pass over finished blocks that follows the target's extra forward (`separate`)."""
        assert self.target.stored is not None  # by its own extra forward
        _, states = self.target.stored
        ids, slot_mapping, group = self._finished(start, torch.arange(start.shape[0], device=self.device), seen)
        self._pass(ids, states, slot_mapping, [group])
        self._count("store", str(self.block_length), self.pending, start, self.block_length, 0)
        self.pending.zero_()

    # --- what a decoder may ask for ---------------------------------------------------------------------------------

    def residual(self, view, ids: Tensor, hidden: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """One pass over the active blocks.

        ids [R,B] tokens after the reveal, hidden [R,B,D] the target's states (or the accumulator) from before it;
        `active` [R] bool marks the live rows that need the pass. The first pass of a round also stores the blocks that
        the target has just stored. Returns residual logits [R,B,V] and the states they come from [R,B,D].
        """
        rows, width = ids.shape
        slot_mapping = self.kv.slot_mapping(None, view.positions)
        groups = [QueryGroup(view.positions, self._bias(view))]
        riding = self._take_stored()
        if riding is not None:
            stored_rows, stored_states = riding
            stored_ids, stored_mapping, group = self._finished(view.start, stored_rows, view.max_keys)
            ids = torch.cat([ids.reshape(-1), stored_ids.reshape(-1)])
            hidden = torch.cat([hidden.flatten(0, 1), stored_states.flatten(0, 1)])
            slot_mapping = torch.cat([slot_mapping, stored_mapping])
            groups.append(group)
        states = self._pass(ids, hidden, slot_mapping, groups)[: rows * width].view(rows, width, -1)
        self._count_pass(view, active, riding is not None)
        return self.model.project(states), states

    def settle(self, view) -> None:
        """Store what the target has stored in this round, if no pass has done so on its way."""
        riding = self._take_stored()
        if riding is None:
            return
        rows, states = riding
        ids, slot_mapping, group = self._finished(view.start, rows, view.max_keys)
        self._pass(ids, states, slot_mapping, [group])
        self._count("store", str(self.block_length), self.pending & view.live, view.start, self.block_length, 0)
        self.pending.zero_()

    def trial(self, tokens: int):
        ids = torch.zeros(tokens, dtype=torch.long, device=self.device)
        hidden = torch.zeros(tokens, self.config.hidden_size, device=self.device, dtype=self.dtype)
        return lambda positions, attend: self.model(ids, hidden, positions, attend)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _bias(self, view) -> Tensor:
        """A block sees itself and, with a prefix cache, every slot before it."""
        if self.keeps_prefix:
            return self.kv.prefix_bias(view.stop, view.max_keys)
        slots = torch.arange(view.max_keys, device=self.device)
        own = (slots >= view.start.unsqueeze(1)) & (slots < view.stop.unsqueeze(1))
        return visible(own, self.dtype).view(-1, 1, 1, view.max_keys)

    def _take_stored(self) -> tuple[Tensor, Tensor] | None:
        """Rows [E] and states [E,B,D] that the target's last forward stored and that the module still has to."""
        stored, self.target.stored = self.target.stored, None
        if stored is None or not self.keeps_prefix or self.store_mode != "fused":
            return None
        rows, states = stored
        assert rows is not None  # of a fused store they are named
        return rows, states

    def _finished(self, start: Tensor, rows: Tensor, seen: int) -> tuple[Tensor, Tensor, QueryGroup]:
        """Tokens [E,B] of the blocks just left of `start`, where their keys go, and what they see."""
        ends = start.index_select(0, rows)
        positions = ((ends - self.block_length).unsqueeze(1) + self.block).clamp_min(0)
        ids = self.canvas.index_select(0, rows).gather(1, positions)
        slot_mapping = self.kv.slot_mapping(rows, positions, self.pending.index_select(0, rows))
        return ids, slot_mapping, QueryGroup(positions, self.kv.prefix_bias(ends, seen), rows)

    def _pass(self, ids: Tensor, hidden: Tensor, slot_mapping: Tensor, groups: list[QueryGroup]) -> Tensor:
        positions = torch.cat([group.positions.reshape(-1) for group in groups])
        hidden = hidden.reshape(-1, hidden.shape[-1])
        return self.model(ids.reshape(-1), hidden, positions, CachedAttention(self.kv, slot_mapping, groups))

    def _count_pass(self, view, active: Tensor, riding: bool) -> None:
        """A pass that also stored a block is one pass with that many more tokens; one that only did so is a store."""
        block, keys = self.block_length, view.stop
        needed = active & view.live
        if not riding:
            self._count("denoise", str(block), needed, keys, block, block)
            return
        stored = self.pending & view.live
        self._count("denoise", str(block), needed & ~stored, keys, block, block)
        self._count("denoise", str(2 * block), needed & stored, keys, 2 * block, block)
        self._count("store", str(block), stored & ~needed, view.start, block, 0)
        self.pending.zero_()
