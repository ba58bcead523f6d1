"""Full-attention networks (LLaDA, Dream) and the cache policies that approximate them.

Without a cache every forward runs over the whole row. A policy names, for every row, the window of positions that a
forward recomputes; keys and values of all other positions are those of their last recomputation (cards of the
threshold family, sections 4 to 6, and of FreeCache):

* ``none``: the whole row, exact.
* ``prefix``: the whole row at the first step of a block, then the block and everything right of it.
* ``dual``: the whole row at the first step of a block, then the block alone.
* ``freecache``: the whole row once, then the block and everything right of it; what lies left is frozen.

With a shifted head (Dream) position p is predicted at p - 1. Under ``prefix`` and ``dual`` the official code commits a
block's first position from the full forward, whatever its confidence, and nothing else in that step: `forced`.

Axes: R rows, W positions of the view, T window, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.attention import Group, keys_before
from dlmbench.backbone.network import Network, bucket

POLICIES = ("none", "prefix", "dual", "freecache")


@dataclass(frozen=True)
class CachePolicy:
    """Which positions a forward recomputes.

    refresh_every: recompute the whole row every n-th step of a block (prefix, dual); 0: at its first step only.
    freeze (freecache): ``stale`` freezes a block as its last step left it, ``refresh`` recomputes it once more with the
    first step of the next block. window (freecache): ``shrinking``, or ``prompt_only`` to freeze the prompt alone.
    """

    name: str = "none"
    refresh_every: int = 0
    freeze: str = "stale"
    window: str = "shrinking"

    def first(self, view, shift: int) -> Tensor:
        """First recomputed position of every row [R]."""
        everything = torch.zeros_like(view.start)
        if self.name == "none":
            return everything
        if self.name == "freecache":
            begin = view.start
            if self.window == "prompt_only":
                begin = view.prompt_length
            elif self.freeze == "refresh":
                earlier = (view.start - view.block_length).maximum(view.prompt_length)
                begin = torch.where(view.step == 0, earlier, view.start)
            return torch.where(view.total_steps == 0, everything, (begin - shift).clamp_min(0))
        return torch.where(self.whole(view), everything, view.start)

    def whole(self, view) -> Tensor:
        """Rows [R] whose forward covers everything."""
        if self.name == "none":
            return torch.ones_like(view.live)
        if self.name == "freecache":
            return view.total_steps == 0
        due = view.step == 0
        return due | (view.step % self.refresh_every == 0) if self.refresh_every else due

    def last(self, view) -> Tensor:
        """End of the recomputed positions of every row [R]."""
        if self.name == "dual":
            return torch.where(self.whole(view), view.ends, (view.start + view.block_length).minimum(view.ends))
        return view.ends

    def forced(self, view, shift: int) -> tuple[Tensor, Tensor] | None:
        """(rows [R], positions [R,W]) of reveals that replace the decoder's; None when there are none."""
        if not shift or self.name not in ("prefix", "dual"):
            return None
        rows = (view.step == 0) & view.live
        return rows, (view.positions == view.start.unsqueeze(1)) & rows.unsqueeze(1)


class Bidirectional(Network):
    """A full-attention network; nothing is prefilled and nothing is stored."""

    def __init__(self, role: str, model, block_length: int, policy: CachePolicy | None = None):
        super().__init__(role, model, block_length)
        self.policy = policy or CachePolicy()

    @property
    def stores(self) -> bool:
        return False

    def prefill_lengths(self, prompt_lengths: list[int]) -> list[int]:
        return [0] * len(prompt_lengths)

    def forced(self, view):
        return self.policy.forced(view, self.config.shift)

    def denoise(self, view, embeds: Tensor | None = None, kind: str | None = None, hidden: bool = False, ids=None):
        """Forward over each row's window.

        `embeds` [R,W,D] replaces the embeddings at the view's positions; `ids` [R, capacity] replaces the canvas (the
        unconditional half of guidance). Returns logits [R,W,V] that predict the view's positions, or (logits, hidden
        states after the final norm that predict them [R,W,D]).
        """
        canvas = self.canvas if ids is None else ids
        first, last = self.policy.first(view, self.config.shift), self.policy.last(view)
        parts = self._parts(view, first, last)
        seen = min(bucket(view.longest), self.cache.capacity)
        x, places, groups = [], [], []
        for rows, width in parts:
            begin, end = (first, last) if rows is None else (first[rows], last[rows])
            index = torch.arange(begin.shape[0], device=self.device) if rows is None else rows
            positions = begin.unsqueeze(1) + torch.arange(width, device=self.device)
            valid = (positions < end.unsqueeze(1)) & view.live[index].unsqueeze(1)
            positions = positions.clamp_max(self.cache.capacity - 1)
            tokens = self.model.embed(canvas[index].gather(1, positions))
            if embeds is not None:
                tokens = _replace(tokens, view.positions[index] - begin.unsqueeze(1), embeds[index])
            x.append(tokens.flatten(0, 1))
            places.append(self.cache.places(index, positions, valid))
            ends = view.ends if rows is None else view.ends[rows]
            groups.append(Group(positions, keys_before(ends, seen, self.dtype), rows))
        states = self._forward(torch.cat(x), tuple(torch.cat(p) for p in zip(*places)), groups)
        chosen = self._at_view(view, states, first, parts)
        self._count_windows(view, kind, last - first)
        logits = self.model.project(chosen)
        return (logits, chosen) if hidden else logits

    def _parts(self, view, first: Tensor, last: Tensor) -> list[tuple[Tensor | None, int]]:
        """Rows of like width together: (rows or None for all, width). One part where the host does not know."""
        if view.host is None or self.policy.name == "none":
            return [(None, bucket(view.longest, 8))]
        widths = (last - first).tolist()  # the host holds these numbers already on this device
        whole = self.policy.whole(view).tolist()
        live = [bool(about) for about in view.host]
        parts = []
        for wanted in (True, False):
            rows = [row for row, (w, alive) in enumerate(zip(whole, live)) if alive and w is wanted]
            if rows:
                parts.append((torch.tensor(rows, device=self.device), max(widths[row] for row in rows)))
        if len(parts) == 1 and len(parts[0][0]) == len(live):
            return [(None, parts[0][1])]
        return parts

    def _at_view(self, view, states: Tensor, first: Tensor, parts) -> Tensor:
        """Hidden states that predict the view's positions [R,W,D]; rows outside every part are left at zero."""
        rows_total, width_view = view.positions.shape
        chosen = states.new_zeros(rows_total, width_view, states.shape[-1])
        at = 0
        for rows, width in parts:
            index = torch.arange(rows_total, device=self.device) if rows is None else rows
            part = states[at : at + index.shape[0] * width].view(index.shape[0], width, -1)
            at += index.shape[0] * width
            place = view.positions[index] - self.config.shift - first[index].unsqueeze(1)
            place = place.clamp(0, width - 1).unsqueeze(-1).expand(-1, -1, states.shape[-1])
            chosen.index_copy_(0, index, part.gather(1, place))
        return chosen

    def _count_windows(self, view, kind: str | None, queries: Tensor) -> None:
        """A forward without cached keys is a refresh, one with them a denoise."""
        projected = view.valid.sum(1)
        whole = self.policy.whole(view)
        self._count(kind or "refresh", "row", view.live & whole, view.ends, queries, projected)
        if self.policy.name != "none":
            self._count(kind or "denoise", "window", view.live & ~whole, view.ends, queries, projected)


def _replace(tokens: Tensor, offsets: Tensor, embeds: Tensor) -> Tensor:
    """tokens [n,T,D] with `embeds` [n,W,D] at `offsets` [n,W]; offsets outside the window are dropped."""
    inside = (offsets >= 0) & (offsets < tokens.shape[1])
    place = torch.where(inside, offsets, tokens.shape[1]).unsqueeze(-1).expand_as(embeds)
    padded = torch.cat([tokens, tokens.new_zeros(tokens.shape[0], 1, tokens.shape[2])], 1)
    return padded.scatter(1, place, embeds)[:, :-1]
