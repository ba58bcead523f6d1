"""A network in its role: weights, cache and the forwards that decoders may ask for.

A decoder gets one handle for each role it declared and never touches a cache or a counter. The handle knows the
family's attention rule and logit shift, keeps keys and values, and folds the store of a finished block into the
forward that begins the next one (`fused`), or spends the official extra forward on it (`separate`).

This file serves block-causal and causal networks; `dlmbench.backbone.bidirectional` the full-attention ones.

Axes: R rows, B block length, W positions of the view, Q packed queries, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dlmbench.backbone.attention import CachedAttention, QueryGroup, choose_kernels, prompt_bias, visible
from dlmbench.backbone.cache import KVCache
from dlmbench.backbone.counter import Counter
from dlmbench.backbone.model import Attend, Transformer
from dlmbench.forwards import ForwardKey

if TYPE_CHECKING:
    from dlmbench.engine.request import Request

PREFILL_CHUNK = 512  # prompt tokens of a row that are encoded at once
PREFILL_TOKENS = 8192  # the same of all rows: what they need on the way (gate and up products) fits beside the weights
PREFILL_BUCKET = 16  # prompt widths are padded to multiples of this, so their shapes are few
KEY_BUCKET = 16  # the same for the number of keys a forward looks at
SAMPLED, SAMPLED_KEYS = 512, 1 << 16  # queries and keys of a forward's stretch that is timed, at most


def bucket(n: int, size: int = KEY_BUCKET) -> int:
    """n rounded up to a multiple of `size`."""
    return -(-n // size) * size


def prefill_rows(tokens: int) -> int:
    """How many rows with prompts of up to `tokens` are encoded together."""
    return max(PREFILL_TOKENS // max(min(tokens, PREFILL_CHUNK), 1), 1)


Kinds = str | Mapping[str, Tensor]  # the kind of a forward; or kinds and the rows [R] bool that each serves


class Forward(NamedTuple):
    """What a forward says.

    logits [R,W,V] predict the view's positions (those of a pack: its projected tokens), hidden [R,W,D] are the states
    after the final norm that they come from (of a pack: of all its tokens); predicted [R,W] bool marks positions that
    this forward has a prediction for, None for all: a cache policy may leave the rest of the answer out.
    """

    logits: Tensor
    hidden: Tensor
    predicted: Tensor | None = None


class Network:
    """One model in one role ("target", "draft", "guide", ...).

    `carried` names its tensors that live from step to step. `stored` and `_riding` do not: a step that reads them has
    written them. Keys and values do, in place.
    """

    carried: tuple[str, ...] = ("pending",)
    needs_answers = False  # must requests bring all right answers? (an oracle is made of them)
    priced = True  # is a forward's time its cost? (one of an oracle counts as one)
    keeps_states = False  # are prompts' hidden states left for a network that comes after it?

    def __init__(self, role: str, model: Transformer, block_length: int, store: str = "fused"):
        self.role, self.model, self.config = role, model, model.config
        self.block_length, self.store_mode = block_length, store
        self.device, self.dtype = model.norm.device, model.norm.dtype
        self.cache: KVCache | None = None
        self.prefill_states: Tensor | None = None
        self.stored: tuple[Tensor | None, Tensor] | None = None  # rows (None: all) and states of the last blocks stored
        choose_kernels(self.device)

    def allocate(self, rows: int, capacity: int, canvas: Tensor, counter: Counter) -> None:
        """Static buffers for a run. canvas [R, capacity] holds everybody's tokens and is shared, not copied."""
        self.canvas, self.counter = canvas, counter
        self.model.reserve(2 * capacity)  # a view of the widest answer may begin behind the longest prompt
        if self.cache is None or not self.cache.fits(rows, capacity):
            self.cache = None  # before its successor is made
            self.cache = KVCache(self.config, rows, capacity, self.device, self.dtype)
        self.cache.use_all()
        self.pending = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.waiting: set[int] = set()  # what the host knows of `pending`, where flags are read at once
        self.block = torch.arange(self.block_length, device=self.device)

    @property
    def kv(self) -> KVCache:
        """The cache, which is there from `allocate` to `release`."""
        assert self.cache is not None
        return self.cache

    def release(self) -> None:
        """Give up keys and values."""
        self.cache = None

    # --- what the engine does -------------------------------------------------------------------------------------

    def admit(self, row: int, request: Request) -> None:
        """`request` is decoded in `row` from now on. Its tokens are all that a network with weights has to know."""

    @property
    def stores(self) -> bool:
        """Do finished blocks need a forward to keep their keys and values? A causal network keeps them as it reads."""
        return not self._causal

    @property
    def _causal(self) -> bool:
        """Does it read token by token? Then the last known token is the query that predicts the next one."""
        return self.config.attention == "causal"

    @property
    def reads_host(self) -> bool:
        """Must the host know where every row is before a step is launched?"""
        return False

    def prefill_lengths(self, prompt_lengths: list[int]) -> list[int]:
        """Leading prompt tokens that are encoded ahead: whole blocks, which is all of them where blocks end with the
        prompt; all but the last token of a causal network."""
        if self._causal:
            return [n - 1 for n in prompt_lengths]
        if self.config.grid in ("prompt", "split"):
            return prompt_lengths
        return [n // self.block_length * self.block_length for n in prompt_lengths]

    def prefill(self, rows: Tensor, lengths: list[int]) -> None:
        """Encode the first `lengths[i]` tokens of the canvas of rows[i] and keep their keys and values."""
        for _ in self.prefill_chunks(rows, lengths):
            pass

    def prefill_chunks(self, rows: Tensor, lengths: list[int]) -> Iterator[None]:
        """`prefill` in chunks of whole blocks, which gives the same keys and values; yields between them.

        With `keeps_states` the final hidden states are left in `prefill_states` [n,T,D].
        """
        if max(lengths) == 0:
            return
        ends = torch.tensor(lengths, device=self.device)
        ahead = self.block_length if self.config.grid == "prompt" else 0  # the first block may lack that many tokens
        width = min(bucket(max(lengths) + ahead, PREFILL_BUCKET), self.kv.capacity)
        chunk = max(PREFILL_CHUNK // self.block_length, 1) * self.block_length
        states = []
        for at in range(0, width, chunk):
            if at:
                yield
            chunk_states = self._prefill_chunk(rows, ends, at, min(at + chunk, width))
            if self.keeps_states:
                states.append(chunk_states)
        self.prefill_states = torch.cat(states, 1) if states else None
        unit = 1 if self._causal else self.block_length
        self._count("prefill", "prompt", ends > 0, (ends + unit) // 2, ends, 0, rows)  # a query sees half on average

    def _prefill_chunk(self, rows: Tensor, ends: Tensor, first: int, last: int) -> Tensor:
        """Positions first .. last-1 of the prompts, which see all before them -> hidden states [n,last-first,D].

        Where blocks do not begin with the row they are so many positions less, of which those below 0 are nobody's.
        """
        if self.config.grid in ("prompt", "split"):
            return self._prefill_chunk_on_grid(rows, ends, first, last)
        positions = torch.arange(first, last, device=self.device).expand(len(rows), last - first)
        slot_mapping = self.kv.slot_mapping(rows, positions, positions < ends.unsqueeze(1))
        unit = 1 if self._causal else self.block_length
        bias = prompt_bias(first, last, unit, self.dtype, self.device)
        group = QueryGroup(positions, bias.expand(len(rows), -1, -1, -1), rows)
        # padding may hold an id that no embedding has (a causal network without a mask token); nobody sees it
        ids = self.canvas[rows, first:last].reshape(-1).clamp_max(self.config.vocab_size - 1)
        return self._forward(self.model.embed(ids), slot_mapping, [group]).view(*positions.shape, -1)

    def _prefill_chunk_on_grid(self, rows: Tensor, ends: Tensor, first: int, last: int) -> Tensor:
        """The same where every row has its own grid, whose first block lacks `offset` [n] tokens."""
        block = self.block_length
        offset = -ends % block if self.config.grid == "prompt" else torch.zeros_like(ends)
        on_grid = torch.arange(first, last, device=self.device)
        positions = on_grid - offset.unsqueeze(1)
        valid = (positions >= 0) & (positions < ends.unsqueeze(1))
        positions = positions.clamp_min(0)
        slots = torch.arange(last, device=self.device)
        blocks = (slots + offset.unsqueeze(1)) // block  # [n,last]
        seen = blocks.unsqueeze(1) <= (on_grid // block).view(1, -1, 1)
        seen = seen & (slots < ends.unsqueeze(1)).unsqueeze(1)
        group = QueryGroup(positions, visible(seen, self.dtype).unsqueeze(1), rows)
        ids = self.canvas[rows].gather(1, positions).reshape(-1)
        slot_mapping = self.kv.slot_mapping(rows, positions, valid)
        return self._forward(self.model.embed(ids), slot_mapping, [group]).view(*positions.shape, -1)

    def forced(self, view):
        """Reveals that a cache policy forces, (rows [R], positions [R,W]); an exact cache forces none."""
        return None

    def finish_block(self, rows: Tensor) -> None:
        """The blocks just left of `start` of these rows [R] bool are final; their K/V are due."""
        if self.stores:
            self.pending |= rows

    def store(self, start: Tensor, seen: int) -> None:
        """The official extra forward over finished blocks (`separate`). start [R]: first position after the block."""
        positions = ((start - self.block_length).unsqueeze(1) + self.block).clamp_min(0)
        ids = self.canvas.gather(1, positions)
        group = QueryGroup(positions, self.kv.prefix_bias(start, seen))
        slot_mapping = self.kv.slot_mapping(None, positions, self.pending)
        states = self._forward(self.model.embed(ids.view(-1)), slot_mapping, [group])
        self.stored = (None, states.view(*positions.shape, -1))
        self._count("store", str(self.block_length), self.pending, start, self.block_length, 0)
        self.pending.zero_()

    def keep_rows(self, rows: Tensor, canvas: Tensor) -> None:
        self.canvas, self.pending = canvas, self.pending.index_select(0, rows)
        if self.waiting:
            self.waiting = {new for new, old in enumerate(rows.tolist()) if old in self.waiting}
        self.kv.keep_rows(rows)

    def reset(self, rows: Tensor) -> None:
        self.pending.index_fill_(0, rows, False)
        self.waiting.difference_update(rows.tolist() if self.waiting else ())

    # --- what a decoder may ask for ---------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens that are not on the canvas (a draft), to be handed to `denoise`. ids [...] -> [...,D]"""
        return self.model.embed(ids)

    @property
    def embedding(self) -> Tensor:
        """The table that `embed` reads [V,D], for inputs that are mixtures of tokens."""
        return self.model.embedding.weight

    def denoise(
        self, view, embeds: Tensor | None = None, kind: Kinds = "denoise", active: Tensor | None = None
    ) -> Forward:
        """Forward of the active block of every row.

        `embeds` [R,W,D] replaces the embeddings of the canvas at the view's positions; `active` [R] bool marks the live
        rows that need this forward (default: all), the others ride along uncounted. It is counted as `kind`, or row by
        row as what each needs it for.
        """
        queries, ids = view.positions, view.tokens
        if self._causal:
            queries = queries - 1
            ids = self.canvas.gather(1, queries)
        ends = queries[:, -1] + 1
        if self.config.grid in ("cut", "prompt"):  # the answer's last block may be a short one
            ends = torch.minimum(ends, view.ends)
        x = self.model.embed(ids) if embeds is None else embeds
        group = QueryGroup(queries, self.kv.prefix_bias(ends, view.max_keys))
        slot_mapping = self.kv.slot_mapping(None, queries, self._writes(view))
        states = self._with_stores(view, x.flatten(0, 1), slot_mapping, group).view(*queries.shape, -1)
        for name, served in served_by(kind, active):
            self._count_with_stores(view, name, ends, self.block_length, self.block_length, served)
        return Forward(self.model.project(states), states)

    def packed(
        self,
        view,
        ids: Tensor,
        positions: Tensor,
        allowed: Tensor,
        kind: Kinds = "verify",
        project: slice = slice(None),
        active: Tensor | None = None,
        used: Tensor | None = None,
        first: Tensor | None = None,
    ) -> Forward:
        """One forward over a pack of tokens that all see the cached prefix and, among themselves, what `allowed` says.

        ids and positions [R,Q] (positions may repeat: several copies of a block), allowed [R,Q,Q] bool (query, key);
        `project` picks the queries that go through the head; `active` as in `denoise`; `used` [R] counts the tokens of
        a padded pack that belong to it (default: all); `first` [R] is the slot of the pack's first token (default: the
        active block's start): cached keys before it are seen, and 0 makes the pack the whole row. `kind` may name
        several, for a pack that answers different questions in different rows. Keys of the pack stay in its slots until
        something else is written there, which matters where slot and position agree (a causal network reading on).
        Returns logits [R,|project|,V] and hidden states [R,Q,D].
        """
        rows, width = ids.shape
        start = view.start if first is None else first
        slots = start.unsqueeze(1) + torch.arange(width, device=self.device)
        seen = view.max_keys + width if first is not None else view.max_keys - self.block_length + width
        seen = min(bucket(seen), self.kv.capacity)
        valid = view.live.unsqueeze(1) & (slots < self.kv.capacity)  # a pack may overhang a short row
        bias = self._pack_bias(start, allowed, seen)
        slot_mapping = self.kv.slot_mapping(None, slots, valid)
        group = QueryGroup(positions, bias)
        states = self._with_stores(view, self.model.embed(ids.reshape(-1)), slot_mapping, group).view(rows, width, -1)
        chosen = states[:, project]
        for name, served in served_by(kind, active):
            self._count_pack(view, name, start, width, chosen.shape[1], served, used)
        return Forward(self.model.project(chosen), states)

    def beside(self, view, ids: Tensor, positions: Tensor, unseen: Tensor) -> tuple[Tensor, Tensor]:
        """One forward of the active block and, beside it, extra tokens that the block does not see.

        ids and positions [R,Q]; an extra token sees the prefix, the other extra ones and the block, except the position
        `unseen` [R,Q]. Returns logits at the view [R,W,V] and at the extra tokens [R,Q,V].
        """
        (rows, width), extra = view.tokens.shape, ids.shape[1]
        seen = unseen.unsqueeze(-1) != view.positions.unsqueeze(1)  # [R,Q,W]
        others = seen.new_ones(rows, extra, extra)
        block = torch.cat([seen.new_ones(rows, width, width), seen.new_zeros(rows, width, extra)], 2)
        allowed = torch.cat([block, torch.cat([seen, others], 2)], 1)
        tokens, places = torch.cat([view.tokens, ids], 1), torch.cat([view.positions, positions], 1)
        forward = self.packed(view, tokens, places, allowed, kind="denoise")
        return forward.logits[:, :width], forward.logits[:, width:]

    def trial(self, tokens: int) -> Callable[[Tensor, Attend], Tensor]:
        """The bare network on `tokens` tokens, for pricing: positions [N], attend -> states [N,D]."""
        x = self.model.embed(torch.zeros(tokens, dtype=torch.long, device=self.device))
        return lambda positions, attend: self.model(x, positions, attend)

    def sample(self, rows: int, width: int, keys: int) -> Callable[[], Tensor]:
        """A stretch of a forward of `rows` rows of `width` queries over `keys` keys, long enough to be timed: the last
        layer. Where that is much, fewer rows."""
        seen = max(keys, width := min(width, SAMPLED))
        made = cache(partial(self._stretch, max(1, min(rows, SAMPLED // width, SAMPLED_KEYS // seen)), width, seen))

        @torch.inference_mode()  # as steps are, wherever this is called
        def stretch() -> Tensor:
            return made()()

        return stretch

    # --- inside -----------------------------------------------------------------------------------------------------

    def _stretch(self, rows: int, width: int, keys: int) -> Callable[[], Tensor]:
        """The last layer on keys and values of its own."""
        x = self.model.embed(torch.zeros(rows * width, dtype=torch.long, device=self.device))
        positions = torch.arange(keys - width, keys, device=self.device).expand(rows, width)
        cos, sin = self.model._rotation(positions.flatten() % self.config.max_positions, x.dtype)
        kv = KVCache(replace(self.config, num_layers=1), rows, keys, self.device, self.dtype)
        group = QueryGroup(positions, kv.prefix_bias(torch.full((rows,), keys, device=self.device), keys))
        attend = CachedAttention(kv, kv.slot_mapping(None, positions), [group])
        layer = self.model.layers[-1]
        return lambda: layer(0, x, cos, sin, attend)

    def _writes(self, view) -> Tensor | None:
        """Queries of a denoising forward that keep their keys and values, [R] or [R,B]; None: all of them.

        What rows that are not live write is written again before anybody sees it, but for a causal network's first
        slot. On the grid ``split`` the prompt's tail keeps what it was encoded with until its block is stored.
        """
        if self._causal:
            return view.live
        if self.config.grid == "split":
            return view.positions >= view.prompt_length.unsqueeze(1)
        return None

    def _pack_bias(self, start: Tensor, allowed: Tensor, seen: int) -> Tensor:
        """The pack's keys sit in the slots from `start` on, whatever their positions -> bias [R,1,Q,seen]."""
        width = allowed.shape[1]
        offset = torch.arange(seen, device=self.device) - start.unsqueeze(1)  # [R,seen], negative: cached prefix
        among = allowed.gather(2, offset.clamp(0, width - 1).unsqueeze(1).expand(-1, width, -1))
        prefix, inside = (offset < 0).unsqueeze(1), (offset < width).unsqueeze(1)
        return visible(prefix | (among & inside), self.dtype).unsqueeze(1)

    def _with_stores(self, view, x: Tensor, slot_mapping: Tensor, group: QueryGroup) -> Tensor:
        """Forward of one group, finished blocks riding along -> the group's hidden states [n,D].

        The stored blocks' own states are left in `stored`: (rows [E] or None for all, states [E,B,D]).
        """
        self._riding = self._waiting(view)
        self.waiting.clear()
        if self._riding is None:
            self.stored = None
            return self._forward(x, slot_mapping, [group])
        extra, extra_mapping, extra_group = self._store_group(view.start, self._riding, view.max_keys)
        if extra_group.rows is None:  # all rows: each attends once, with both blocks
            rows, block = group.positions.shape[0], self.block_length
            states = self._forward(
                _rowwise(extra, x, rows), _rowwise(extra_mapping, slot_mapping, rows), [extra_group.followed_by(group)]
            ).view(rows, -1, x.shape[-1])
            stored, states = states[:, :block], states[:, block:].flatten(0, 1)
        else:
            states = self._forward(
                torch.cat([x, extra]), torch.cat([slot_mapping, extra_mapping]), [group, extra_group]
            )
            states, stored = states[: x.shape[0]], states[x.shape[0] :].view(-1, self.block_length, x.shape[-1])
        self.stored = (self._riding, stored)
        return states

    def _waiting(self, view) -> Tensor | None:
        """Rows [E] whose finished block rides along; None when there are none or stores are separate."""
        if self.store_mode == "separate" or not self.stores:
            return None
        if view.host_rows is None:  # the host does not know yet: all rows, masked on the device
            return torch.arange(view.live.shape[0], device=self.device)
        if not self.waiting:
            return None
        return torch.tensor(sorted(self.waiting), device=self.device)

    def _store_group(self, start: Tensor, rows: Tensor, seen: int) -> tuple[Tensor, Tensor, QueryGroup]:
        ends = start.index_select(0, rows)
        positions = ((ends - self.block_length).unsqueeze(1) + self.block).clamp_min(0)
        ids = self.canvas.index_select(0, rows).gather(1, positions)
        slot_mapping = self.kv.slot_mapping(rows, positions, self.pending.index_select(0, rows))
        everyone = rows.shape[0] == start.shape[0]
        group = QueryGroup(positions, self.kv.prefix_bias(ends, seen), None if everyone else rows)
        return self.model.embed(ids.view(-1)), slot_mapping, group

    def _forward(self, x: Tensor, slot_mapping: Tensor, groups: list[QueryGroup]) -> Tensor:
        positions = groups[0].positions.reshape(-1)
        if len(groups) > 1:
            positions = torch.cat([group.positions.reshape(-1) for group in groups])
        return self.model(x, positions, CachedAttention(self.kv, slot_mapping, groups))

    def _count(self, kind: str, shape: str, active: Tensor, keys: Tensor, queries, projected, rows=None) -> None:
        self.counter.add(self.config, ForwardKey(self.role, kind, shape), active, keys, queries, projected, rows)

    def _count_with_stores(
        self, view, kind: str, keys: Tensor, queries: int, projected: int, active: Tensor | None = None
    ) -> None:
        """A forward that also stored a block is one call with that many more query tokens."""
        if self._riding is None and active is None:
            self._count(kind, str(queries), view.live, keys, queries, projected)
            return
        alone, both = self._paying(view, active)
        wider = queries + self.block_length
        self._count(kind, str(queries), alone, keys, queries, projected)
        self._count(kind, str(wider), both, keys, wider, projected)
        self.pending = self.pending > both

    def _count_pack(self, view, kind: str, start: Tensor, width: int, projected: int, active, used) -> None:
        if used is None:
            self._count_with_stores(view, kind, start + width, width, projected, active)
            return
        alone, both = self._paying(view, active)
        wider = used + self.block_length  # the shape is what was computed, the counts are what the row needed
        self._count(kind, str(width), alone, start + used, used, used)
        self._count(kind, str(width + self.block_length), both, start + used, wider, used)
        self.pending = self.pending > both

    def _paying(self, view, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows that this forward is counted for: those without a store, and those whose store rode along.

        A row that is not active may have been stored all the same; it stays pending and pays with its next forward.
        """
        needed = view.live if active is None else view.live & active
        both = needed & self.pending
        return needed > both, both


def served_by(kind: Kinds, active: Tensor | None) -> list[tuple[str, Tensor | None]]:
    """Kinds of a forward and the rows that it serves in each, None for all."""
    return [(kind, active)] if isinstance(kind, str) else list(kind.items())


def _rowwise(first: Tensor, second: Tensor, rows: int) -> Tensor:
    """[R*T,...] and [R*U,...] -> [R*(T+U),...], each row's parts side by side."""
    return torch.cat([first.unflatten(0, (rows, -1)), second.unflatten(0, (rows, -1))], 1).flatten(0, 1)
