"""Canvases whose rows have ends of their own: blocks of chosen lengths, answers that grow. Full attention only.

What happens to a row then depends on what the model says, so a step's flags bring the host where each row is by now.

Axes: R rows (slots), L capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, HostRow, Traits, View
from dlmbench.decoders.predict import Sampling
from dlmbench.engine.canvas import Canvas


class OwnEnds(Canvas):
    """What both have in common. `stop` [R] is the end of each row's active block.

    `apply` returns [R,4]: the flags, and the row's start, stop and end after the step.
    """

    carried = (*Canvas.carried, "stop")

    def _set_up(self, traits: Traits, reach: int) -> None:
        self.stop, self.wide = torch.zeros_like(self.start), True

    def admit(
        self, row: int, prompt: list[int], max_tokens: int, seed: int, fixed: Sequence[tuple[int, int]] = ()
    ) -> int:
        start = super().admit(row, prompt, max_tokens, seed, fixed)
        self.stop[row] = (self.start[row] + self.block_length).clamp_max(self.ends[row])
        return start

    def view(
        self, state: dict[str, Tensor], sampling: Sampling, max_keys: int, max_row: int,
        host_rows: list[HostRow | None] | None, tracing: bool, span: int = 0,
    ) -> View:  # fmt: skip
        return replace(super().view(state, sampling, max_keys, max_row, host_rows, tracing), own_stop=self.stop)

    def apply(self, view: View, decision: Decision) -> Tensor:
        flags = super().apply(view, decision)
        return torch.stack([flags.long(), self.start, self.stop, self.ends], 1)


class OwnBlocks(OwnEnds):
    """A row's first decision in a block says where the block ends, at most a share of the answer from its start.

    `block_masks` counts those of a block of the usual length.
    """

    def _set_up(self, traits: Traits, reach: int) -> None:
        super()._set_up(traits, reach)
        self.share, self.window = traits.reach, torch.arange(reach, device=self.start.device)

    def view(
        self, state: dict[str, Tensor], sampling: Sampling, max_keys: int, max_row: int,
        host_rows: list[HostRow | None] | None, tracing: bool, span: int = 0,
    ) -> View:  # fmt: skip
        view = super().view(state, sampling, max_keys, max_row, host_rows, tracing)
        reach = ((self.ends - self.prompt_length).double() * self.share).long().clamp_min(self.block_length)
        self.edge = torch.minimum(self.start + reach, self.ends)
        return replace(view, edge=self.edge)

    def _stop(self, view: View, decision: Decision) -> Tensor:
        if decision.stop is not None:
            chosen = torch.minimum(torch.maximum(decision.stop, self.start + 1), self.edge)
            self.stop = torch.where(view.fresh & self.live, chosen, self.stop)
        return self.stop

    def _move(self) -> None:
        self.start = torch.where(self.moved, self.stop, self.start)
        self.stop = torch.where(self.moved, torch.minimum(self.start + self.block_length, self.ends), self.stop)


class Growing(OwnEnds):
    """Answers begin with `initial` positions and grow up to their budget, `limit` [R].

    Blocks lie on a grid from the prompt's end; the active one is that of the first mask, so blocks that a step has
    filled are left together. A row ends without a mask. With `ahead` a view reaches from the active block to the row's
    end.
    """

    carried = (*OwnEnds.carried, "limit")

    def _set_up(self, traits: Traits, reach: int) -> None:
        super()._set_up(traits, reach)
        self.initial, self.ahead = traits.initial, traits.scope == "ahead"
        self.limit, self.next = torch.zeros_like(self.start), self.start

    def admit(
        self, row: int, prompt: list[int], max_tokens: int, seed: int, fixed: Sequence[tuple[int, int]] = ()
    ) -> int:
        """As any canvas does. Raises ValueError for positions fixed in advance, which tokens that move would leave."""
        if fixed:
            raise ValueError("no token can be given in advance in an answer that grows")
        start = super().admit(row, prompt, min(self.initial, max_tokens), seed)
        self.limit[row] = start + max_tokens
        return start

    def view(
        self, state: dict[str, Tensor], sampling: Sampling, max_keys: int, max_row: int,
        host_rows: list[HostRow | None] | None, tracing: bool, span: int = 0,
    ) -> View:  # fmt: skip
        if self.ahead:
            self.window = torch.arange(span, device=self.start.device)
        view = super().view(state, sampling, max_keys, max_row, host_rows, tracing)
        return replace(view, limit=self.limit, span=span)

    def _resize(self, decision: Decision) -> None:
        at = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        mine, tokens = self.live.unsqueeze(1) & (at < self.limit.unsqueeze(1)), self.tokens
        if decision.insert is not None:
            place, count = (one.unsqueeze(1) for one in decision.insert)
            shifted = tokens.gather(1, torch.where(at < place, at, (at - count).clamp_min(0)))
            shifted = shifted.masked_fill((at >= place) & (at < place + count), self.mask_id)
            tokens = torch.where(mine, shifted, tokens)
            self.ends = torch.where(self.live, torch.minimum(self.ends + decision.insert[1], self.limit), self.ends)
        if decision.ends is not None:
            self.ends = torch.where(self.live, torch.minimum(decision.ends, self.limit), self.ends)
        if decision.tail is not None:
            tail = (at >= (self.ends - decision.tail).unsqueeze(1)) & (at < self.ends.unsqueeze(1))
            tokens = torch.where(mine & tail, self.eos[0], tokens)
        self.shifted = torch.where(tokens == self.tokens, -1, tokens)
        self.tokens.copy_(tokens)

    def _done(self, view: View, decision: Decision, tokens: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        left = (self.tokens == self.mask_id) & (at >= self.prompt_length.unsqueeze(1)) & (at < self.ends.unsqueeze(1))
        first = left.byte().argmax(1) - self.prompt_length
        self.next = self.prompt_length + first // self.block_length * self.block_length
        row_done = self.live & ~left.any(1)
        block_done = row_done | (self.live & (self.next != self.start))
        if decision.finish is not None:
            row_done = row_done | (decision.finish & self.live)
        return block_done, row_done

    def _move(self) -> None:
        self.start = torch.where(self.moved, self.next, self.start)
        self.stop = torch.minimum(self.start + self.block_length, self.ends)


def canvas_kind(traits: Traits) -> type[Canvas]:
    """The canvas that a decoder of these traits needs."""
    if traits.reach:
        return OwnBlocks
    return Growing if traits.initial else Canvas
