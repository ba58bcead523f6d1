"""Full-attention networks (LLaDA, Dream) and the cache policies that approximate them.

Without a cache every forward runs over the whole row. A policy names, for every row, the window of positions that a
forward recomputes; keys and values of all other positions are those of their last recomputation (Fast-dLLM,
arXiv 2505.22618, and FreeCache, arXiv 2505.21467; docs/full-attention.md):

* ``none``: the whole row, exact.
* ``prefix``: the whole row at the first step of a block, then the block and everything right of it.
* ``dual``: the whole row at the first step of a block, then the block alone.
* ``freecache``: the whole row once, then the block and everything right of it; what lies left is frozen as it was last
  computed, whichever step of its block that was.
* ``prompt``: the whole row once, then the answer. With a shifted head the answer's first position has no prediction
  after the first step, so it is for decoders that commit this position there (Guided).

With a shifted head (Dream) position p is predicted at p - 1, so freecache's window starts one earlier. Under ``prefix``
and ``dual`` the official code commits a block's first position from the full forward, whatever its confidence, and
nothing else in that step: `forced`.

Classifier-free guidance (LLaDA, arXiv 2502.09992) is a switch of the network: a second forward of the same windows with
the prompt masked, counted as part of the same call.

Axes: R rows, W positions of the view, T window, Q extra tokens, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.attention import QueryGroup, visible
from dlmbench.backbone.cache import KVCache
from dlmbench.backbone.network import Forward, Kinds, Network, bucket, served_by

POLICIES = ("none", "prefix", "dual", "freecache", "prompt")
WIDTH_BUCKET = 8  # whole rows are padded to multiples of this


@dataclass(frozen=True)
class CachePolicy:
    """Which positions a forward recomputes.

    refresh_every (prefix, dual): recompute the whole row every n-th step of a block; 0: at its first step only.
    freeze (freecache): ``stale`` freezes a block as its last step left it, ``refresh`` recomputes it once more with the
    first step of the next block. window (freecache): ``shrinking``, or ``prompt_only`` to freeze the prompt alone.
    """

    name: str = "none"
    refresh_every: int = 0
    freeze: str = "stale"
    window: str = "shrinking"

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
        return row.start, min(row.start + block_length, row.end) if self.name == "dual" else row.end

    def _whole(self, row) -> bool:
        if self.name == "none":
            return True
        if self.name in ("freecache", "prompt"):
            return row.total_steps == 0
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
        self.given = self.given.index_select(0, rows)
        if self.unguided_cache:
            self.unguided_cache.keep_rows(rows)

    @property
    def stores(self) -> bool:
        return False

    @property
    def reads_host(self) -> bool:
        """Widths of windows follow where each row is, which the host must know before it launches a step."""
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
        for name, served in served_by(kind, active):
            self._count_windows(view, name, parts, view.live if served is None else view.live & served)
        return Forward(logits, states, predicted)

    def whole(self, view) -> tuple[Tensor, Tensor]:
        """One forward over whole rows -> logits at the view [R,W,V], and for every position of the row the state that
        predicts it [R,T,D]; with a shifted head the first position has its own. No cache policy applies.
        """
        everyone = (None, torch.zeros_like(view.ends), view.ends, bucket(view.max_row, WIDTH_BUCKET), True)
        states = self._states(view, self.canvas, [everyone])
        logits = self.model.project(self._at_view(view, states, [everyone])[0])
        self._count_windows(view, "", [everyone], view.live)
        rows = states.view(view.ends.shape[0], -1, states.shape[-1])
        shift = self.config.shift
        return logits, torch.cat([rows[:, :shift], rows[:, : rows.shape[1] - shift]], 1)

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

    def _parts(self, view) -> list[tuple[Tensor | None, Tensor, Tensor, int, bool]]:
        """Rows with windows of one sort together: (rows or None for all, first [n], end [n], width, whole rows?)."""
        if self.policy.name == "none":
            return [(None, torch.zeros_like(view.ends), view.ends, bucket(view.max_row, WIDTH_BUCKET), True)]
        windows = {
            row: self.policy.recomputed(about, self.block_length, self.config.shift)
            for row, about in enumerate(view.host_rows)
            if about
        }
        parts: list[tuple[Tensor | None, Tensor, Tensor, int, bool]] = []
        for whole in (True, False):
            rows = [row for row, (first, _) in windows.items() if self.policy._whole(view.host_rows[row]) is whole]
            if rows:
                first, end = torch.tensor([windows[row] for row in rows], device=self.device).unbind(1)
                width = max(windows[row][1] - windows[row][0] for row in rows)
                parts.append((torch.tensor(rows, device=self.device), first, end, width, whole))
        return parts

    def _states(self, view, canvas: Tensor, parts, embeds: Tensor | None = None) -> Tensor:
        """Final hidden states of all parts, one after another [n*T,D]."""
        seen = min(bucket(view.max_row), self.kv.capacity)
        x, slot_mapping, groups = [], [], []
        everyone = torch.arange(view.ends.shape[0], device=self.device)
        for rows, first, end, width, _ in parts:
            index = everyone if rows is None else rows
            positions = first.unsqueeze(1) + torch.arange(width, device=self.device)
            valid = (positions < end.unsqueeze(1)) & view.live[index].unsqueeze(1)
            positions = positions.clamp_max(self.kv.capacity - 1)
            tokens = self.model.embed(canvas[index].gather(1, positions))
            if embeds is not None:
                tokens = _replace(tokens, view.positions[index] - first.unsqueeze(1), embeds[index])
            x.append(tokens.flatten(0, 1))
            slot_mapping.append(self.kv.slot_mapping(index, positions, valid))
            groups.append(QueryGroup(positions, self.kv.prefix_bias(view.ends[index], seen), rows))
        return self._forward(torch.cat(x), torch.cat(slot_mapping), groups)

    def _at_view(self, view, states: Tensor, parts) -> tuple[Tensor, Tensor]:
        """Hidden states that predict the view's positions [R,W,D], zero where nothing was recomputed, and [R,W] bool
        where something was."""
        chosen = states.new_zeros(*view.positions.shape, states.shape[-1])
        predicted = torch.zeros_like(view.valid)
        at = 0
        for rows, first, end, width, _ in parts:
            index = torch.arange(view.ends.shape[0], device=self.device) if rows is None else rows
            part = states[at : at + index.shape[0] * width].view(index.shape[0], width, -1)
            at += index.shape[0] * width
            place = view.positions[index] - self.config.shift - first.unsqueeze(1)
            inside = (place >= 0) & (view.positions[index] - self.config.shift < end.unsqueeze(1))
            place = place.clamp(0, width - 1).unsqueeze(-1).expand(-1, -1, states.shape[-1])
            chosen.index_copy_(0, index, part.gather(1, place) * inside.unsqueeze(-1))
            predicted.index_copy_(0, index, inside)
        return chosen, predicted

    def _count_windows(self, view, kind: str, parts, active: Tensor) -> None:
        """A forward without cached keys is a refresh, one with them a denoise; guidance doubles a call's tokens.

        Its shape names the positions that go through the head, which the price depends on.
        """
        double, twice = (2, "x2") if self.guidance else (1, "")
        projected = view.valid.sum(1) * double
        for rows, first, end, _, whole in parts:
            index = slice(None) if rows is None else rows
            kind_here, shape = ("refresh", "row") if whole else ("denoise", self.policy.label)
            shape = f"{shape}:{view.positions.shape[1]}{twice}"
            queries = (end - first) * double
            self._count(kind or kind_here, shape, active[index], view.ends[index], queries, projected[index], rows)


def _replace(tokens: Tensor, offsets: Tensor, embeds: Tensor) -> Tensor:
    """tokens [n,T,D] with `embeds` [n,W,D] at `offsets` [n,W]; offsets outside the window are dropped."""
    inside = (offsets >= 0) & (offsets < tokens.shape[1])
    place = torch.where(inside, offsets, tokens.shape[1]).unsqueeze(-1).expand_as(embeds)
    padded = torch.cat([tokens, tokens.new_zeros(tokens.shape[0], 1, tokens.shape[2])], 1)
    return padded.scatter(1, place, embeds)[:, :-1]
