"""The state of a batch: one row of tokens for every slot, and where each row is.

All of it are row-indexed tensors allocated once. `apply` carries out a decision, moves rows to their next block and
returns one packed flag a row, which is all that the host ever reads of a step.

Axes: R rows (slots), L capacity, B block length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, View
from dlmbench.decoders.predict import Sampling

BLOCK_DONE, ROW_DONE, IDLE = 1, 2, 4  # bits of a row's flag


class Canvas:
    """Tokens and progress of R rows. `ends` counts whole blocks: a row may overshoot its token budget within one."""

    def __init__(self, rows: int, capacity: int, block_length: int, mask_id: int, eos_ids: tuple[int, ...], device):
        self.block_length, self.mask_id = block_length, mask_id
        self.tokens = torch.zeros(rows, capacity, dtype=torch.long, device=device)
        zeros = torch.zeros(rows, dtype=torch.long, device=device)
        self.prompt_length, self.start, self.ends, self.step, self.total_steps, self.seed, self.guards = (
            zeros.clone() for _ in range(7)
        )
        self.live = torch.zeros(rows, dtype=torch.bool, device=device)
        self.eos = torch.tensor(eos_ids or (-1,), device=device)
        self.block = torch.arange(block_length, device=device)

    _per_row = ("tokens", "prompt_length", "start", "ends", "step", "total_steps", "seed", "guards", "live")

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def admit(self, row: int, prompt: list[int], max_tokens: int, seed: int) -> int:
        """Put a prompt into a slot; returns the start of its first active block.

        Blocks are cut at absolute multiples of B, so the prompt's tail stands, unmasked, in the first active block.
        """
        length, block = len(prompt), self.block_length
        end = -(-(length + max_tokens) // block) * block
        self.tokens[row] = self.mask_id
        self.tokens[row, :length] = torch.tensor(prompt, device=self.tokens.device)
        start = length // block * block
        for name, value in (("prompt_length", length), ("start", start), ("ends", end), ("seed", seed)):
            getattr(self, name)[row] = value
        for name in ("step", "total_steps", "guards"):
            getattr(self, name)[row] = 0
        self.live[row] = True
        return start

    def view(
        self, state: dict[str, Tensor], sampling: Sampling, seen: int, pending: list[int] | None, tracing: bool
    ) -> View:
        positions = self.start.unsqueeze(1) + self.block
        return View(
            tokens=self.tokens.gather(1, positions), positions=positions, start=self.start,
            prompt_length=self.prompt_length, live=self.live, step=self.step, total_steps=self.total_steps,
            seed=self.seed, state=state, mask_id=self.mask_id, sampling=sampling, seen=seen, pending_rows=pending,
            tracing=tracing,
        )  # fmt: skip

    def apply(self, view: View, decision: Decision) -> Tensor:
        """Carry out a decision. Only masked positions are revealed, only revealed ones of the answer are remasked.

        Returns flags [R] (uint8): BLOCK_DONE, ROW_DONE, IDLE for a live row that made no net progress.
        """
        live = self.live.unsqueeze(1)
        reveal = decision.reveal & view.masked & live
        tokens = torch.where(reveal, decision.tokens, view.tokens)
        if decision.remask is not None:
            own = view.positions >= self.prompt_length.unsqueeze(1)
            tokens = torch.where(decision.remask & ~view.masked & own & live, self.mask_id, tokens)
        self.tokens.scatter_(1, view.positions, tokens)
        masked = tokens == self.mask_id
        block_done = self.live & ~masked.any(1)
        idle = self.live & (masked.sum(1) >= view.masked.sum(1))
        if decision.idle is not None:
            idle = idle & ~decision.idle
        answer = view.positions >= self.prompt_length.unsqueeze(1)
        ended = (torch.isin(tokens, self.eos) & answer).any(1) | (self.start + self.block_length >= self.ends)
        row_done = block_done & ended
        if decision.finish is not None:
            row_done = row_done | (decision.finish & self.live)
        if decision.guard is not None:
            self.guards += decision.guard & self.live
        moved = block_done & ~row_done
        self.step = torch.where(block_done, 0, self.step + self.live)
        self.total_steps = self.total_steps + self.live
        self.start = self.start + moved * self.block_length
        self.live = self.live & ~row_done
        self.moved = moved
        return block_done.byte() | (row_done.byte() << 1) | (idle.byte() << 2)

    def keep_rows(self, rows: Tensor) -> None:
        for name in self._per_row:
            setattr(self, name, getattr(self, name).index_select(0, rows))
