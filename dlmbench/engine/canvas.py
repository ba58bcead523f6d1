"""The state of a batch: one row of tokens for every slot, and where each row is.

All of it are row-indexed tensors allocated once. `apply` carries out a decision, moves rows to their next block and
returns one packed flag a row, which is all that the host ever reads of a step.

Block-causal rows: blocks are cut at absolute multiples of B, the canvas ends with a whole block, decoding stops after
the block that holds an EOS. Other grids (`Descriptor`) end the answer with its budget (``cut``), count blocks from the
prompt's end as well (``prompt``), or decode as many blocks as the budget alone fills (``split``). Full-attention rows:
blocks are counted from the prompt's end, the answer has exactly its budget of positions, and no token stops anything
unless `fill_after_eos`: then whatever lies right of the first EOS becomes EOS after every step (FreeCache's early
stop). Rows with ends of their own are in `dlmbench.engine.lengths`.

Axes: R rows (slots), L capacity, B block length, W positions of the view.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, HostRow, Traits, View
from dlmbench.decoders.predict import Sampling

BLOCK_DONE, ROW_DONE, IDLE, SKIPPED = 1, 2, 4, 8  # bits of a row's flag
USUAL = Traits()
HINT = 4  # a decision's hint to the host stands in the bits from here on
_PER_ROW = (
    "tokens", "given", "prompt_length", "start", "ends", "step", "total_steps", "block_masks", "seed", "fallbacks",
    "live", "health",
)  # fmt: skip


class Canvas:
    """Tokens and progress of R rows.

    `given` [R,L] marks what stood in a row before its first step: the prompt, and tokens fixed in advance (`fixed`:
    there may be such). `answer` is the width of a view that covers the whole answer, 0 when the view is the active
    block, `reach` that of a view in which decisions end blocks. `health` [R] is finite for as long as the logits that a
    row was decoded from were numbers.
    """

    carried: tuple[str, ...] = _PER_ROW  # what lives from step to step

    def __init__(
        self, rows: int, capacity: int, block_length: int, mask_id: int, eos_ids: tuple[int, ...], attention: str,
        answer: int, device: torch.device, fill_after_eos: bool = False, grid: str = "origin", fixed: bool = False,
        traits: Traits = USUAL, reach: int = 0,
    ):  # fmt: skip
        self.block_length, self.mask_id, self.attention, self.answer = block_length, mask_id, attention, answer
        self.grid, self.fill_after_eos = grid, fill_after_eos
        self.filled: Tensor | None = None
        self.shifted: Tensor | None = None
        self.from_prompt = attention == "full" or grid == "prompt"  # blocks are counted from the prompt's end
        self.exact = self.from_prompt or grid == "cut"  # the answer ends with its budget
        self.fixed = fixed or self.exact  # may blocks begin with fewer masks than positions?
        self.tokens = torch.full((rows, capacity), mask_id, dtype=torch.long, device=device)
        self.given = torch.zeros(rows, capacity, dtype=torch.bool, device=device)

        def zeros() -> Tensor:
            return torch.zeros(rows, dtype=torch.long, device=device)

        self.prompt_length, self.start, self.ends, self.block_masks = zeros(), zeros(), zeros(), zeros()
        self.step, self.total_steps, self.seed, self.fallbacks = zeros(), zeros(), zeros(), zeros()
        self.live = torch.zeros(rows, dtype=torch.bool, device=device)
        self.moved = torch.zeros_like(self.live)  # rows that the last step has brought to their next block
        self.health = torch.zeros(rows, device=device)
        self.eos = torch.tensor(eos_ids or (-1,), device=device)
        self.block = torch.arange(block_length, device=device)
        self.window = torch.arange(answer or block_length, device=device)
        self.wide = answer > 0  # may a view hold more than the active block?
        self._set_up(traits, reach)

    def _set_up(self, traits: Traits, reach: int) -> None:
        """What rows with ends of their own need beside (`dlmbench.engine.lengths`)."""

    @property
    def _overhangs(self) -> bool:
        """May a view reach past the end of a short row?"""
        return self.exact or self.answer > 0

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def admit(
        self, row: int, prompt: list[int], max_tokens: int, seed: int, fixed: Sequence[tuple[int, int]] = ()
    ) -> int:
        """Put a prompt into a slot that is not live yet; returns the start of its first active block.

        On the absolute grid the prompt's tail stands, unmasked, in the first active block. `fixed` are (offset, token)
        pairs of the answer that are given in advance; those beyond the budget are left out. Raises ValueError for a
        canvas without.
        """
        if fixed and not self.fixed:
            raise ValueError("this canvas was made for answers without tokens that are given in advance")
        length, block = len(prompt), self.block_length
        start, end = length, length + max_tokens
        if not self.from_prompt:
            start = length // block * block
        if not self.exact:
            end = -(-end // block) * block
        if self.grid == "split":
            end = start + -(-max_tokens // block) * block
        canvas = prompt + [self.mask_id] * (self.tokens.shape[1] - length)
        for offset, token in fixed:
            if offset < max_tokens:
                canvas[length + offset] = token
        self.tokens[row] = torch.tensor(canvas, device=self.tokens.device)
        self.given[row] = self.tokens[row] != self.mask_id
        first_end = min(start + block, end)
        masks = first_end - length - len({o for o, _ in fixed if length + o < first_end})
        values = {"prompt_length": length, "start": start, "ends": end, "seed": seed, "block_masks": masks}
        for name, value in {**values, "step": 0, "total_steps": 0, "fallbacks": 0}.items():
            getattr(self, name)[row] = value
        return start

    def begin(self, rows: Tensor) -> None:
        """Rows [n] whose prompts are encoded go live."""
        self.live.index_fill_(0, rows, True)
        self.health.index_fill_(0, rows, 0.0)

    def view(
        self, state: dict[str, Tensor], sampling: Sampling, max_keys: int, max_row: int,
        host_rows: list[HostRow | None] | None, tracing: bool, span: int = 0,
    ) -> View:  # fmt: skip
        origin = self.prompt_length if self.answer else self.start
        positions = origin.unsqueeze(1) + self.window
        overhangs = self._overhangs
        reachable = positions.clamp_max(self.tokens.shape[1] - 1) if overhangs else positions
        return View(
            tokens=self.tokens.gather(1, reachable), positions=positions, start=self.start, ends=self.ends,
            prompt_length=self.prompt_length, live=self.live, step=self.step, total_steps=self.total_steps,
            block_masks=self.block_masks, seed=self.seed, state=state, mask_id=self.mask_id,
            block_length=self.block_length, attention=self.attention, sampling=sampling, given=self.given,
            max_keys=max_keys, max_row=max_row, host_rows=host_rows, tracing=tracing, overhangs=overhangs,
        )  # fmt: skip

    def apply(self, view: View, decision: Decision) -> Tensor:
        """Carry out a decision. Only masked positions are revealed, only tokens of the row's own are taken back or
        rewritten.

        Returns flags [R]: BLOCK_DONE, ROW_DONE, IDLE for a live row that made no net progress, SKIPPED for one that
        took no part, and the decision's hint to the host.
        """
        self._judge(view)
        live = self.live.unsqueeze(1)
        reveal = decision.reveal & view.masked & live
        tokens = torch.where(reveal, decision.tokens, view.tokens)
        masked = _but_not(view.masked, reveal)
        progress = reveal.any(1)
        if decision.remask is not None:
            remask = decision.remask & ~view.masked & view.own & live
            tokens, masked = torch.where(remask, self.mask_id, tokens), masked | remask
            progress = masked.sum(1) < view.masked.sum(1)
        if decision.replace is not None:
            replaced = replacements(view, decision)
            tokens = torch.where(replaced, decision.tokens, tokens)
            progress = progress | replaced.any(1)
        self._write(view, tokens)
        self._resize(decision)
        idle = _but_not(self.live, progress)
        if decision.planned_empty is not None:
            idle = _but_not(idle, decision.planned_empty)
        block_done, row_done = self._done(view, decision, tokens, masked)
        if self.fill_after_eos:
            row_done = row_done | (self._fill(view) & self.live)
        if decision.fallback is not None:
            self.fallbacks += decision.fallback & self.live
        self.moved = _but_not(block_done, row_done)
        stepped = self.live if decision.skipped is None else _but_not(self.live, decision.skipped)
        self.step = torch.where(block_done, 0, self.step + stepped)
        self.total_steps = self.total_steps + stepped
        self._move()
        if self.fixed:
            self.block_masks = torch.where(self.moved, self._masks_in_block(), self.block_masks)
        else:
            self.block_masks = torch.where(self.moved, self.block_length, self.block_masks)
        self.live = _but_not(self.live, row_done)
        flags = _byte(block_done).add(_byte(row_done), alpha=ROW_DONE).add_(_byte(idle), alpha=IDLE)
        if decision.skipped is not None:
            flags.add_(_byte(self.live & decision.skipped), alpha=SKIPPED)
        return flags if decision.host_hint is None else flags.short() | (decision.host_hint.short() << HINT)

    def _judge(self, view: View) -> None:
        """Keep the sum of the proposals' scores; one that is no number stays so."""
        judged = view.asked.judged
        if judged is None:
            return
        scores = judged.health.sum(-1)
        if scores.shape != self.health.shape:  # several copies of a row
            scores = scores.view(self.rows, -1).sum(1)
        self.health.add_(scores)

    def _write(self, view: View, tokens: Tensor) -> None:
        if not self._overhangs:
            self.tokens.scatter_(1, view.positions, tokens)
            return
        spare = self.tokens.shape[1] - 1  # views may reach past a short row; the last slot belongs to nobody
        place = torch.where(view.valid, view.positions, spare)
        self.tokens.scatter_(1, place, torch.where(view.valid, tokens, self.mask_id))

    def _resize(self, decision: Decision) -> None:
        """Rows keep their length here."""

    def _stop(self, view: View, decision: Decision) -> Tensor:
        """End [R] of the block that the step has worked on."""
        return view.stop

    def _move(self) -> None:
        """Bring the rows in `moved` to their next block."""
        self.start = torch.add(self.start, self.moved, alpha=self.block_length)

    def _done(self, view: View, decision: Decision, tokens: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Rows whose block is complete, and rows that are finished, both [R]."""
        inside, stop = masked, self._stop(view, decision)
        if self.wide:
            inside = masked & (view.positions < stop.unsqueeze(1))
        block_done = _but_not(self.live, inside.any(1))
        if decision.keep_block_open is not None:
            block_done = _but_not(block_done, decision.keep_block_open)
        goes_on = self.ends > stop
        if self.attention != "full":
            prompt = self.prompt_length.unsqueeze(1) > view.positions
            goes_on = _but_not(goes_on, _but_not(self._is_eos(tokens), prompt).any(1))
        row_done = _but_not(block_done, goes_on)
        if decision.finish is not None:
            row_done = row_done | (decision.finish & self.live)
        return block_done, row_done

    def _fill(self, view: View) -> Tensor:
        """Everything right of the first EOS of an answer becomes that EOS; returns the rows [R] without a mask left."""
        positions = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        answer = (positions >= self.prompt_length.unsqueeze(1)) & (positions < self.ends.unsqueeze(1))
        eos = self._is_eos(self.tokens) & answer
        first = torch.where(eos, positions, self.tokens.shape[1]).amin(1, keepdim=True)
        token = self.tokens.gather(1, first.clamp_max(self.tokens.shape[1] - 1))
        filled = answer & (positions > first) & (self.tokens != token) & self.live.unsqueeze(1)
        self.filled = torch.where(filled, token, -1)
        self.tokens.copy_(torch.where(filled, token, self.tokens))
        return ~((self.tokens == self.mask_id) & answer).any(1) & (first < self.tokens.shape[1]).squeeze(1)

    def _is_eos(self, tokens: Tensor) -> Tensor:
        return tokens == self.eos if len(self.eos) == 1 else torch.isin(tokens, self.eos)

    def _masks_in_block(self) -> Tensor:
        positions = self.start.unsqueeze(1) + self.block
        inside = positions < self.ends.unsqueeze(1)
        tokens = self.tokens.gather(1, positions.clamp_max(self.tokens.shape[1] - 1))
        return ((tokens == self.mask_id) & inside).sum(1)

    def keep_rows(self, rows: Tensor) -> None:
        for name in self.carried:
            setattr(self, name, getattr(self, name).index_select(0, rows))


def replacements(view: View, decision: Decision) -> Tensor:
    """Revealed positions [R,W] whose token a decision changes; into a mask only `remask` turns one."""
    if decision.replace is None:
        return torch.zeros_like(view.masked)
    changed = decision.replace & ~view.masked & view.own & view.live.unsqueeze(1)
    changed = changed & (decision.tokens != view.tokens) & (decision.tokens != view.mask_id)
    return changed if decision.remask is None else changed & ~decision.remask


def _but_not(yes: Tensor, no: Tensor) -> Tensor:
    """``yes & ~no`` of booleans, in one call."""
    return yes > no


def _byte(flag: Tensor) -> Tensor:
    """A boolean as a number, without a copy."""
    return flag.view(torch.uint8)
