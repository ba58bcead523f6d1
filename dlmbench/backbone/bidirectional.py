"""Full-attention networks (LLaDA, Dream) and the cache policies that approximate them.

Without a cache every forward runs over the whole row. A policy names, for every row, the positions that a forward
recomputes; keys and values of all others are those of their last recomputation (Fast-dLLM, arXiv 2505.22618, FreeCache,
arXiv 2505.21467, dKV-Cache-Decode, arXiv 2505.15781; docs/full-attention.md):

* ``none``: the whole row, exact.
* ``prefix``: the whole row at the first step of a block, then the block and everything right of it.
* ``dual``: the whole row at the first step of a block, then the block alone.
* ``freecache``: the whole row once, then the block and everything right of it; what lies left is frozen as it was last
  computed, whichever step of its block that was.
* ``prompt``: the whole row once, then the answer. With a shifted head the answer's first position has no prediction
  after the first step, so it is for decoders that commit this position there (Guided).
* ``dkv``: the whole row at the first two steps of a block and every `reload_every`-th, else the positions that were
  masks before the last forward: a token's keys and values are kept from the forward after the one that decoded it.

With a shifted head (Dream) position p is predicted at p - 1, so freecache's window starts one earlier and dkv computes
the left neighbour of every mask too. Under ``prefix``
and ``dual`` the official code commits a block's first position from the full forward, whatever its confidence, and
nothing else in that step: `forced`.

Classifier-free guidance (LLaDA, arXiv 2502.09992) is a switch of the network: a second forward of the same windows with
the prompt masked, counted as part of the same call.

Axes: R rows, W positions of the view, T window, Q extra tokens, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlmbench.backbone.attention import QueryGroup, visible
from dlmbench.backbone.cache import KVCache
from dlmbench.backbone.network import Forward, Kinds, Network, bucket, served_by

POLICIES = ("none", "prefix", "dual", "freecache", "prompt", "dkv")
WIDTH_BUCKET = 8  # whole rows are padded to multiples of this
SURVEYED = 1024  # positions whose logits are made at a time where one number of each is wanted


@dataclass(frozen=True)
class CachePolicy:
    """Which positions a forward recomputes.

    refresh_every (prefix, dual): recompute the whole row every n-th step of a block; 0: at its first step only.
    freeze (freecache): ``stale`` freezes a block as its last step left it, ``refresh`` recomputes it once more with the
    first step of the next block. window (freecache): ``shrinking``, or ``prompt_only`` to freeze the prompt alone.
    reload_every (dkv): as refresh_every, beside the first two steps of a block; 1 is exact.
    """

    name: str = "none"
    refresh_every: int = 0
    freeze: str = "stale"
    window: str = "shrinking"
    reload_every: int = 8

    @property
    def label(self) -> str:
        """Tells policies apart whose forwards cost differently."""
        return f"{self.name}-prompt" if self.window == "prompt_only" else self.name

    def recomputed(self, row, block_length: int, shift: int) -> tuple[int, int]:
        """First position and end of what the next forward of `row` (a `HostRow`) recomputes."""
        if self._whole(row):
            return 0, row.end
        if self.name == "freecache":
            return max(self._thawed(row, block_length) - shift, 0), row.end
        if self.name == "prompt":
            return row.prompt, row.end
        return row.start, min(row.stop, row.end) if self.name == "dual" else row.end

    def _whole(self, row) -> bool:
        if self.name == "none":
            return True
        if self.name in ("freecache", "prompt"):
            return row.total_steps == 0
        if self.name == "dkv":
            return row.step < 2 or (self.reload_every > 0 and row.step % self.reload_every == 0)
        return row.step == 0 or (self.refresh_every > 0 and row.step % self.refresh_every == 0)

    def _thawed(self, row, block_length: int) -> int:
        """First position that freecache does not keep frozen."""
        if self.window == "prompt_only":
            return row.prompt
        if self.freeze == "refresh" and row.step == 0:
            return max(row.start - block_length, row.prompt)
        return row.start

    def forced(self, view, shift: int) -> tuple[Tensor, Tensor] | None:
        """(rows [R], positions [R,W]) of reveals that replace the decoder's; None when there are none."""
        if not shift or self.name not in ("prefix", "dual"):
            return None
        rows = (view.step == 0) & view.live
        return rows, (view.positions == view.start.unsqueeze(1)) & rows.unsqueeze(1)


@dataclass(frozen=True)
class Part:
    """Rows that a forward computes positions of, all in the same way.

    `rows` [n], None for all in order; `positions` [n,T] ascending, the first `queries` [n] of them the row's, the rest
    padding; `whole`: is it all of the row, so that no key is an old one? `due` [n,L] bool marks the positions where
    they are scattered; None: they are a window.
    """

    rows: Tensor | None
    positions: Tensor
    queries: Tensor
    whole: bool
    due: Tensor | None = None

    def of(self, values: Tensor) -> Tensor:
        """Those of `values` [R,...] that belong to its rows."""
        return values if self.rows is None else values[self.rows]

    def place(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Where the positions `at` [n,W] stand among those that are computed, and [n,W] bool whether they do."""
        if self.due is None:
            place = at - self.positions[:, :1]
            return place, (place >= 0) & (place < self.queries.unsqueeze(1))
        last = self.due.shape[1] - 1
        known = at.clamp(0, last)
        return (self.due.cumsum(1) - 1).gather(1, known), self.due.gather(1, known) & (at == known)


class Bidirectional(Network):
    """A full-attention network; nothing is prefilled and nothing is stored.

    `guidance` is the scale of classifier-free guidance, 0 without.
    """

    def __init__(self, role: str, model, block_length: int, policy: CachePolicy | None = None, guidance: float = 0.0):
        super().__init__(role, model, block_length)
        self.policy, self.guidance = policy or CachePolicy(), guidance

    def allocate(self, rows: int, capacity: int, canvas: Tensor, counter) -> None:
        super().allocate(rows, capacity, canvas, counter)
        self.given = torch.zeros(canvas.shape, dtype=torch.bool, device=self.device)
        self.known = torch.zeros_like(self.given)  # what held a token before the last forward (dkv)
        self.unguided_cache = None
        if self.guidance:
            self.unguided_cache = KVCache(self.config, rows, capacity, self.device, self.dtype)

    def release(self) -> None:
        super().release()
        self.unguided_cache = None

    def reset(self, rows: Tensor) -> None:
        super().reset(rows)
        self.given[rows] = self.canvas[rows] != self.config.mask_id  # prompt and tokens fixed in advance

    def keep_rows(self, rows: Tensor, canvas: Tensor) -> None:
        super().keep_rows(rows, canvas)
        self.given, self.known = self.given.index_select(0, rows), self.known.index_select(0, rows)
        if self.unguided_cache:
            self.unguided_cache.keep_rows(rows)

    @property
    def stores(self) -> bool:
        return False

    @property
    def reads_host(self) -> bool:
        """What is recomputed follows where each row is, which the host must know before it launches a step."""
        return self.policy.name != "none"

    def prefill_lengths(self, prompt_lengths: list[int]) -> list[int]:
        return [0] * len(prompt_lengths)

    def forced(self, view):
        return self.policy.forced(view, self.config.shift)

    # --- what a decoder may ask for ---------------------------------------------------------------------------------

    def denoise(self, view, embeds: Tensor | None = None, kind: Kinds = "", active: Tensor | None = None) -> Forward:
        """Forward over each row's window.

        `embeds` [R,W,D] replaces the embeddings at the view's positions; `active` [R] bool marks the live rows that
        need this forward (default: all). Without a `kind` it is counted as a refresh where the whole row is recomputed,
        else as a denoise. Positions outside a row's window get no prediction; ``predicted`` says which have one.
        """
        parts = self._parts(view)
        states, predicted = self._at_view(view, self._states(view, self.canvas, parts, embeds), parts)
        logits = self.model.project(states)
        if self.guidance:
            unconditional = torch.where(self.given, self.config.mask, self.canvas)
            self.cache, self.unguided_cache = self.unguided_cache, self.cache
            unguided = self.model.project(self._at_view(view, self._states(view, unconditional, parts), parts)[0])
            self.cache, self.unguided_cache = self.unguided_cache, self.cache
            logits = unguided + (self.guidance + 1) * (logits - unguided)
        if self.policy.name == "dkv":
            for part in parts:
                self.known[part.rows] = part.of(self.canvas) != self.config.mask
        for name, served in served_by(kind, active):
            self._count_windows(view, name, parts, view.live if served is None else view.live & served)
        return Forward(logits, states, predicted)

    def whole(self, view) -> tuple[Tensor, Tensor]:
        """One forward over whole rows -> logits at the view [R,W,V], and for every position of the row the state that
        predicts it [R,T,D]; with a shifted head the first position has its own. No cache policy applies.
        """
        everyone = self._everyone(view)
        states = self._states(view, self.canvas, [everyone])
        logits = self.model.project(self._at_view(view, states, [everyone])[0])
        self._count_windows(view, "", [everyone], view.live)
        rows = states.view(view.ends.shape[0], -1, states.shape[-1])
        shift = self.config.shift
        return logits, torch.cat([rows[:, :shift], rows[:, : rows.shape[1] - shift]], 1)

    def surveyed(self, view, token: int, kind: Kinds = "") -> tuple[Forward, Tensor]:
        """A forward over whole rows, and how probable `token` is at every position behind the prompt, 0 where it is not
        the best one: [R,T], T being ``view.span``. No cache policy applies.

        Logits of so many positions are made some at a time and not kept.
        """
        everyone = self._everyone(view)
        states = self._states(view, self.canvas, [everyone])
        shown, predicted = self._at_view(view, states, [everyone])
        rows = states.view(view.ends.shape[0], -1, states.shape[-1])
        at = view.prompt_length.unsqueeze(1) + torch.arange(view.span, device=self.device)
        place = (at - self.config.shift).clamp(0, rows.shape[1] - 1).unsqueeze(-1)
        answer = rows.gather(1, place.expand(-1, -1, rows.shape[2])).flatten(0, 1)
        shares = torch.cat([self._share(part, token) for part in answer.split(SURVEYED)]).view_as(at)
        projected = view.ends - view.prompt_length + view.valid.sum(1)
        for name, served in served_by(kind, None):
            active = view.live if served is None else view.live & served
            self._count(name or "refresh", "row:all", active, view.ends, view.ends, projected)
        return Forward(self.model.project(shown), shown, predicted), shares * (at < view.ends.unsqueeze(1))

    def _share(self, states: Tensor, token: int) -> Tensor:
        """Probability of `token` where it is the best one, else 0. states [n,D] -> [n]"""
        logits = self.model.project(states).float()
        return logits.softmax(-1)[:, token] * (logits.argmax(-1) == token)

    def forcing(self, view, stored: Tensor) -> Forward:
        """A forward under the attention of diffusion forcing: the prompt sees itself, a block of the answer what lies
        up to its own end. Logits are those at the view; no cache policy applies.

        Keys and values before `stored` [R] are final and kept, 0: there are none yet.
        """
        parts = self._unstored(view)
        states, predicted = self._at_view(view, self._states(view, self.canvas, parts, by_block=True), parts)
        queries, begins = view.ends - self._before(stored), view.total_steps == 0
        self._count("refresh", "row:ahead", view.live & begins, view.ends, queries, view.valid.sum(1))
        self._count("denoise", "blocks:ahead", view.live & ~begins, view.ends, queries, view.valid.sum(1))
        return Forward(self.model.project(states), states, predicted)

    def branching(self, view, stored: Tensor, places: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        """`forcing` for several branches of every row at once, in one call -> logits at the view [R,C,W,V].

        Branch c is the row up to `ends` [R,C] with one more of its `tokens` [R,C] at `places` [R,C], -1: without one.
        The last is the base, which is always there; others without a place are not counted. All share what is stored.
        """
        if view.host_rows is None:
            states = self._branch_by_branch(view, places, tokens, ends)
        else:
            states = self._branches_together(view, places, tokens, ends)
        there = torch.cat([places[:, :-1] >= 0, view.live.unsqueeze(1)], 1)
        queries = ((ends - self._before(stored).unsqueeze(1)) * there).sum(1)
        at = view.positions.unsqueeze(1)
        projected = ((at < ends.unsqueeze(2)) & there.unsqueeze(2)).flatten(1).sum(1)
        begins = view.total_steps == 0
        self._count("refresh", "row:ahead", view.live & begins, view.ends, queries, projected)
        self._count("denoise", "blocks:branches", view.live & ~begins, view.ends, queries, projected)
        return self.model.project(states)

    def _branch_by_branch(self, view, places: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        """States of all branches [R,C,W,D], one after another, everything computed again."""
        found = []
        for place, token, end in zip(places.unbind(1), tokens.unbind(1), ends.unbind(1)):
            alone = replace(view, ends=end)
            here = torch.arange(self.canvas.shape[1], device=self.device) == place.unsqueeze(1)
            canvas, parts = torch.where(here, token.unsqueeze(1), self.canvas), [self._everyone(alone)]
            found.append(self._at_view(alone, self._states(alone, canvas, parts, by_block=True), parts)[0])
        return torch.stack(found, 1)

    def _branches_together(self, view, places: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        """The same in one call: a row's branches lie side by side behind what is stored, the base first, in its own
        slots. A row that begins has the base alone."""
        parts = [(part, slice(-1 if part.whole else None, None)) for part in self._unstored(view)]
        embedded, slots, groups = zip(
            *(self._side_by_side(view, part, *(one[:, kept] for one in (places, tokens, ends))) for part, kept in parts)
        )
        states = self._forward(torch.cat(embedded), torch.cat(slots), list(groups))
        width = states.shape[1]
        chosen = states.new_zeros(*ends.shape, view.positions.shape[1], width)
        for (part, kept), of_part in zip(parts, states.split([group.tokens for group in groups])):
            at = part.place(part.of(view.positions) - self.config.shift)[0].clamp(0, part.positions.shape[1] - 1)
            of_part = of_part.unflatten(0, (len(at), -1, part.positions.shape[1]))
            at = at.view(len(at), 1, -1, 1).expand(-1, of_part.shape[1], -1, width)
            chosen[part.rows, kept] = of_part.gather(2, at)
        return chosen

    def _side_by_side(
        self, view, part: Part, places: Tensor, tokens: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor, QueryGroup]:
        """Embeddings, slots and queries of C copies of a part, [R,C] each, the base last -> [n*C*T,...]."""
        places, tokens, ends = (part.of(one).unsqueeze(2) for one in (places, tokens, ends))  # [n,C,1]
        copies, width = ends.shape[1], part.positions.shape[1]
        positions = part.positions.unsqueeze(1).expand(-1, copies, -1)
        first = positions[:, :1, :1]
        ids = torch.where(positions == places, tokens, part.of(self.canvas).gather(1, part.positions).unsqueeze(1))
        shift = (torch.arange(1, copies + 1, device=self.device) % copies * width).view(1, -1, 1)  # the base: none
        own = torch.arange(width, device=self.device) < ends - first
        valid = (own & part.of(view.live).view(-1, 1, 1)).flatten(1)
        slots = self.kv.slot_mapping(part.rows, (positions + shift).flatten(1), valid)
        seen = min(bucket(view.max_row + copies * width), self.kv.capacity)
        slot = torch.arange(seen, device=self.device)
        at, sight = slot - shift.unsqueeze(3), self._sight(view, part, positions, ends).unsqueeze(3)
        stored, among = slot < first.unsqueeze(3), (at >= first.unsqueeze(3)) & (at < sight)
        bias = visible(stored | among, self.dtype).flatten(1, 2).unsqueeze(1)
        return self.model.embed(ids.flatten()), slots, QueryGroup(positions.flatten(1), bias, part.rows)

    def _before(self, stored: Tensor) -> Tensor:
        """First position that is computed: a shifted head predicts the first one behind `stored` [R] there."""
        return (stored - self.config.shift).clamp_min(0)

    def _unstored(self, view) -> list[Part]:
        """Whole rows at their first step, then what was not final a step ago. Where the host does not know what that
        is, everything is computed again, which changes nothing."""
        if view.host_rows is None:
            return [self._everyone(view)]
        parts = []
        for whole in (True, False):
            known = {i: row for i, row in enumerate(view.host_rows) if row and (row.total_steps == 0) is whole}
            if not known:
                continue
            first = [0 if whole else max(row.before - self.config.shift, 0) for row in known.values()]
            width = max(max(row.end - at for row, at in zip(known.values(), first)), 1)
            rows, begin = torch.tensor([list(known), first], device=self.device)
            parts.append(self._window(rows, begin, view.ends[rows], width, whole))
        return parts

    def _by_block(self, view, part: Part, seen: int) -> Tensor:
        """The prompt sees itself, a block all up to its end -> bias [n,1,T,seen]."""
        sight = self._sight(view, part, part.positions, part.of(view.ends).unsqueeze(1))
        slots = torch.arange(seen, device=self.device)
        return visible(slots < sight.unsqueeze(2), self.dtype).unsqueeze(1)

    def _sight(self, view, part: Part, positions: Tensor, ends: Tensor) -> Tensor:
        """Where that ends: positions [n,...,T] of a part, ends of the rows [n,...,1]."""
        prompt = part.of(view.prompt_length).view(-1, *[1] * (positions.dim() - 1))
        block = (positions - prompt) // self.block_length + 1
        return torch.minimum(torch.where(block > 0, prompt + block * self.block_length, prompt), ends)

    def beside(self, view, ids: Tensor, positions: Tensor, unseen: Tensor) -> tuple[Tensor, Tensor]:
        """One forward over whole rows and, beside each, extra tokens that the row does not see.

        ids and positions [R,Q]; an extra token sees the other extra ones and the row, except the position `unseen`
        [R,Q]. Returns logits at the view [R,W,V] and at the extra tokens [R,Q,V]. No cache policy applies.
        """
        rows, extra = ids.shape
        width = bucket(view.max_row, WIDTH_BUCKET)
        row = torch.arange(width, device=self.device).expand(rows, width)
        slots = torch.cat([row, width + torch.arange(extra, device=self.device).expand(rows, extra)], 1)
        valid = torch.cat([row < view.ends.unsqueeze(1), torch.ones_like(ids, dtype=torch.bool)], 1)
        rotated = torch.cat([row, positions], 1)
        seen = width + extra
        key = torch.arange(seen, device=self.device)
        in_row, is_extra = key < view.ends.unsqueeze(1), torch.zeros(rows, seen, dtype=torch.bool, device=self.device)
        is_extra[:, width:] = positions < view.ends.unsqueeze(1)  # a block that overhangs its row ends with the row
        of_row = in_row.unsqueeze(1).expand(rows, width, seen)
        of_extra = (in_row.unsqueeze(1) & (key != unseen.unsqueeze(-1))) | is_extra.unsqueeze(1)
        bias = visible(torch.cat([of_row, of_extra], 1), self.dtype).unsqueeze(1)
        x = self.model.embed(torch.cat([self.canvas[:, :width], ids], 1)).flatten(0, 1)
        slot_mapping = self.kv.slot_mapping(None, slots, valid & view.live.unsqueeze(1))
        states = self._forward(x, slot_mapping, [QueryGroup(rotated, bias)]).view(rows, seen, -1)
        at = (view.positions - self.config.shift).clamp(0, width - 1)
        shown = states.gather(1, at.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        queries = view.ends + extra
        self._count("refresh", f"row+:{extra}", view.live, queries, queries, view.valid.sum(1) + extra)
        return self.model.project(shown), self.model.project(states[:, width:])

    # --- inside -----------------------------------------------------------------------------------------------------

    def _everyone(self, view) -> Part:
        """All rows, each as a whole."""
        return self._window(None, torch.zeros_like(view.ends), view.ends, bucket(view.max_row, WIDTH_BUCKET), True)

    def _window(self, rows: Tensor | None, first: Tensor, end: Tensor, width: int, whole: bool) -> Part:
        """Positions first .. end-1, both [n], padded to `width`."""
        positions = first.unsqueeze(1) + torch.arange(width, device=self.device)
        return Part(rows, positions.clamp_max(self.kv.capacity - 1), end - first, whole)

    def _scattered(self, view, rows: Tensor) -> Part:
        """What was a mask before the last forward, and with a shifted head the left neighbours of today's masks.

        The longest row decides the width, so the host waits here, once a forward; it has just waited for the flags of
        the step before, and nothing is under way.
        """
        positions = torch.arange(min(view.max_row, self.kv.capacity), device=self.device)
        inside = positions < view.ends[rows].unsqueeze(1)
        due = inside & ~self.known[rows, : len(positions)]
        if self.config.shift:
            masks = inside & (self.canvas[rows, : len(positions)] == self.config.mask)
            due = due | torch.nn.functional.pad(masks[:, 1:], (0, 1))
        queries = due.sum(1)
        width = max(int(queries.max()), 1)
        order = (~due).byte().argsort(dim=1, stable=True)
        return Part(rows, order[:, :width], queries, False, due)

    def _parts(self, view) -> list[Part]:
        """Rows with positions of one sort together."""
        if self.policy.name == "none":
            return [self._everyone(view)]
        known = {row: about for row, about in enumerate(view.host_rows) if about}
        parts: list[Part] = []
        for whole in (True, False):
            rows = [row for row, about in known.items() if self.policy._whole(about) is whole]
            if not rows:
                continue
            chosen = torch.tensor(rows, device=self.device)
            if self.policy.name == "dkv" and not whole:
                parts.append(self._scattered(view, chosen))
                continue
            windows = [self.policy.recomputed(known[row], self.block_length, self.config.shift) for row in rows]
            first, end = torch.tensor(windows, device=self.device).unbind(1)
            parts.append(self._window(chosen, first, end, max(end - first for first, end in windows), whole))
        return parts

    def _states(
        self, view, canvas: Tensor, parts: list[Part], embeds: Tensor | None = None, by_block: bool = False
    ) -> Tensor:
        """Final hidden states of all parts, one after another [n*T,D]; `by_block`: not all of a row sees all of it."""
        seen = min(bucket(view.max_row), self.kv.capacity)
        x, slot_mapping, groups = [], [], []
        for part in parts:
            tokens = self.model.embed(part.of(canvas).gather(1, part.positions))
            if embeds is not None:
                tokens = _replace(tokens, *part.place(part.of(view.positions)), part.of(embeds))
            own = torch.arange(part.positions.shape[1], device=self.device) < part.queries.unsqueeze(1)
            x.append(tokens.flatten(0, 1))
            slots = self.kv.slot_mapping(part.rows, part.positions, own & part.of(view.live).unsqueeze(1))
            slot_mapping.append(slots)
            bias = self._by_block(view, part, seen) if by_block else self.kv.prefix_bias(part.of(view.ends), seen)
            groups.append(QueryGroup(part.positions, bias, part.rows))
        return self._forward(torch.cat(x), torch.cat(slot_mapping), groups)

    def _at_view(self, view, states: Tensor, parts: list[Part]) -> tuple[Tensor, Tensor]:
        """Hidden states that predict the view's positions [R,W,D], zero where nothing was recomputed, and [R,W] bool
        where something was."""
        chosen = states.new_zeros(*view.positions.shape, states.shape[-1])
        predicted = torch.zeros_like(view.valid)
        everyone = torch.arange(view.ends.shape[0], device=self.device)
        for part, of_part in zip(parts, states.split([part.positions.numel() for part in parts])):
            index = everyone if part.rows is None else part.rows
            place, inside = part.place(part.of(view.positions) - self.config.shift)
            place = place.clamp(0, part.positions.shape[1] - 1).unsqueeze(-1).expand(-1, -1, states.shape[-1])
            shown = of_part.view(*part.positions.shape, -1).gather(1, place)
            chosen.index_copy_(0, index, shown * inside.unsqueeze(-1))
            predicted.index_copy_(0, index, inside)
        return chosen, predicted

    def _count_windows(self, view, kind: str, parts, active: Tensor) -> None:
        """A forward without cached keys is a refresh, one with them a denoise; guidance doubles a call's tokens.

        Its shape names the positions that go through the head, which the price depends on.
        """
        double, twice = (2, "x2") if self.guidance else (1, "")
        projected = view.valid.sum(1) * double
        for part in parts:
            kind_here, shape = ("refresh", "row") if part.whole else ("denoise", self.policy.label)
            shape = f"{shape}:{view.positions.shape[1]}{twice}"
            queries, keys = part.queries * double, part.of(view.ends)
            self._count(kind or kind_here, shape, part.of(active), keys, queries, part.of(projected), part.rows)


def _replace(tokens: Tensor, place: Tensor, inside: Tensor, embeds: Tensor) -> Tensor:
    """tokens [n,T,D] with `embeds` [n,W,D] at `place` [n,W], where `inside` [n,W] bool says so and the window reaches:
    a row that has ended may ride on in a step whose windows are those of shorter ones."""
    place = torch.where(inside & (place < tokens.shape[1]), place, tokens.shape[1]).unsqueeze(-1).expand_as(embeds)
    padded = torch.cat([tokens, tokens.new_zeros(tokens.shape[0], 1, tokens.shape[2])], 1)
    return padded.scatter(1, place, embeds)[:, :-1]
