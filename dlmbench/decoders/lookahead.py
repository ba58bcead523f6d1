"""Where a draft stands and how its forwards are laid out: on the grid with caches, or off the grid without.

`Grid` is the path of all released SimSD configurations: the window is the active block, known tokens included.
`Rows` is the official uncached path (``cached=false``), kept for comparison with the official traces: every block
begins right after the last committed token, every forward brings the whole row, and K blocks are drafted one after
another before one verification.

Axes: R rows, W positions of the window, T positions of a row, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Network
from dlmbench.decoders import speculation as rules
from dlmbench.decoders.base import View


@dataclass
class Window:
    """`known` tokens or the mask id [R,W], absolute `positions` [R,W], `open` [R,W] bool where drafts go."""

    known: Tensor
    positions: Tensor
    open: Tensor


class Grid:
    """The active block; known tokens may stand anywhere in it."""

    def __init__(self, mask_id: int):
        self.mask_id = mask_id

    def init_state(self, rows: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        return {}

    def window(self, view: View) -> Window:
        return Window(view.tokens, view.positions, view.masked)

    def draft(self, view: View, net: Network, window: Window, active: Tensor) -> Tensor:
        """The draft's logits [R,W,V] at the window."""
        tokens = torch.where(window.open, view.state["draft"], window.known)
        return net.denoise(view, embeds=net.embed(tokens), active=active).logits

    def verify(
        self, view: View, net: Network, window: Window, tokens: Tensor, revealed: Tensor, active: Tensor
    ) -> Tensor:
        """The target's logits [R,W,V] at the M copies. tokens and revealed [R,W]."""
        width = tokens.shape[1]
        ids = torch.cat([tokens, torch.full_like(tokens, self.mask_id)], 1)
        positions = window.positions.repeat(1, 2)
        return net.packed(
            view, ids, positions, rules.pack_mask(revealed), project=slice(width, None), active=active
        ).logits

    def into_view(
        self, view: View, window: Window, tokens: Tensor, reveal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Commits of the window as (tokens, reveal) of the view, and rows [R] that are complete."""
        return tokens, reveal, None


class Rows:
    """The `blocks` blocks of `block_length` right after the last committed token; the view is the whole answer."""

    def __init__(self, mask_id: int, block_length: int, blocks: int, share_positions: bool):
        self.mask_id, self.block_length, self.width = mask_id, block_length, block_length * blocks
        self.share_positions = share_positions

    def init_state(self, rows: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        """`group` numbers the accepted block that a position belongs to, -1 for the prompt."""
        group = torch.full((rows, capacity + self.width), -1, dtype=torch.long, device=device)
        return {"group": group, "groups": torch.zeros(rows, dtype=torch.long, device=device)}

    def window(self, view: View) -> Window:
        first = view.prompt_length + (view.valid & ~view.masked).sum(1)
        positions = first.unsqueeze(1) + torch.arange(self.width, device=first.device)
        return Window(torch.full_like(positions, self.mask_id), positions, torch.ones_like(positions, dtype=torch.bool))

    def draft(self, view: View, net: Network, window: Window, active: Tensor) -> Tensor:
        ids, places = self._row(view, net, window, view.state["draft"])
        grid = places // self.block_length
        end = window.positions[:, 0] + (view.state["drafted"] + 1) * self.block_length  # of the block being drafted
        allowed = (grid.unsqueeze(0) <= grid.unsqueeze(1)) & (places < end.view(-1, 1, 1))
        logits = net.packed(
            view, ids, places.expand_as(ids), allowed, kind="denoise", active=active, used=end,
            first=torch.zeros_like(end),
        ).logits  # fmt: skip
        places = window.positions.clamp_max(logits.shape[1] - 1)  # a row that is done may be longer than all others
        at = places.unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        return logits.gather(1, at)

    def verify(
        self, view: View, net: Network, window: Window, tokens: Tensor, revealed: Tensor, active: Tensor
    ) -> Tensor:
        ids, places = self._row(view, net, window, tokens)
        first, length = window.positions[:, 0], ids.shape[1]
        own = window.positions if self.share_positions else window.positions + self.width
        ids = torch.cat([ids, torch.full_like(tokens, self.mask_id)], 1)
        positions = torch.cat([places.expand(tokens.shape[0], -1), own], 1)
        allowed = rules.row_mask(revealed, view.state["group"][:, :length], first, self.block_length)
        return net.packed(
            view, ids, positions, allowed, project=slice(length, None), active=active, used=first + 2 * self.width,
            first=torch.zeros_like(first),
        ).logits  # fmt: skip

    def _row(self, view: View, net: Network, window: Window, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """ids [R,T] of the rows with `tokens` in their windows, and positions [T]."""
        length = view.max_row + self.block_length + self.width  # rows end with a whole block
        ids = net.canvas[:, :length].scatter(1, window.positions.clamp_max(length - 1), tokens)
        return ids, torch.arange(length, device=ids.device)

    def into_view(
        self, view: View, window: Window, tokens: Tensor, reveal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        state = view.state
        block = torch.arange(self.width, device=tokens.device) // self.block_length
        group = torch.where(reveal, state["groups"].unsqueeze(1) + block, state["group"].gather(1, window.positions))
        state["group"] = state["group"].scatter(1, window.positions, group)
        state["groups"] = state["groups"] + reveal.any(1) * (block[-1] + 1)
        answer = view.tokens.shape[1]
        column = (window.positions - view.prompt_length.unsqueeze(1)).clamp(0, answer)  # the last one is nobody's
        wide = torch.cat([view.tokens, view.tokens[:, :1]], 1).scatter(1, column, tokens)
        shown = torch.zeros_like(wide, dtype=torch.bool).scatter(1, column, reveal)
        wide, shown = wide[:, :answer], shown[:, :answer]
        return wide, shown, ~(view.masked & ~shown).any(1)
