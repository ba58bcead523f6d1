"""Continuous batching: who decodes in which slot, when a prompt is encoded, when a row has ended.

A fixed number of slots is kept busy: rows of a batch are at different blocks and prompt lengths, and a finished row's
slot is refilled from the queue at once. The host reads one packed flag a row and step; on a device with its own queue
it reads the flags of step t after launching step t + 1, so a finished row may ride through one extra forward, which
the active-row mask keeps out of the counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from math import isfinite

import torch

from dlmbench.backbone.counter import ForwardSum
from dlmbench.backbone.network import prefill_rows
from dlmbench.decoders.base import HostRow
from dlmbench.engine.canvas import BLOCK_DONE, HINT, IDLE, ROW_DONE, SKIPPED
from dlmbench.engine.clock import ForwardClock
from dlmbench.engine.request import Generation, OnBlock, Request, Source, Timing, now
from dlmbench.engine.step import Bounds, Launched, Step
from dlmbench.engine.text import Text
from dlmbench.errors import RunError
from dlmbench.forwards import ForwardKey
from dlmbench.threads import Watch

Queue = deque[tuple[int, Request]]  # requests and where in the call they stand


@dataclass
class Slot:
    """The host's memory of a busy slot."""

    request: Request
    index: int
    admitted: float
    start: int
    stop: int  # of its active block
    end: int  # of its canvas
    limit: int  # that its canvas may grow to
    before: int = 0  # `start`, a step ago
    first_step: int | None = None  # number of the first step that was launched with its prompt encoded
    hint: int | None = None  # the last decision's, as far as it has been read
    step: int = 0  # steps read so far, on this block and on the row
    total_steps: int = 0
    idle_steps: int = 0  # the last ones without progress
    first_block: float | None = None  # when the host heard of the first finished block

    @property
    def row(self) -> HostRow:
        return HostRow(
            self.hint, self.prompt, self.start, self.end, self.step, self.total_steps, self.stop, self.before
        )

    @property
    def prompt(self) -> int:
        return len(self.request.prompt_ids)


class Scheduler:
    """Serves one queue of requests on the buffers of `step`.

    `timing` and `shapes` (work of the rows that have finished) are added to, `clock` knows the time in forwards, and
    `fixed` are (offset, token) pairs of every answer whose request names none.
    """

    def __init__(
        self, step: Step, rows: int, text: Text, timing: Timing, clock: ForwardClock,
        shapes: dict[ForwardKey, ForwardSum], fixed: tuple[tuple[int, int], ...], stall_limit: int, watch: Watch | None,
    ):  # fmt: skip
        self.step, self.text, self.timing, self.clock, self.shapes = step, text, timing, clock, shapes
        self.fixed, self.stall_limit, self.watch = fixed, stall_limit, watch
        self.slots: list[Slot | None] = [None] * rows
        self.rows = rows  # that there are buffers for
        self.encoding: Iterator[None] | None = None  # prompts on their way into the cache
        self.launched = 0  # steps
        self.on_block: OnBlock | None = None  # hears of finished blocks of requests that stream
        self._unwanted: set[int] = set()  # numbers of requests whose rows are to be given up

    def serve(self, queue: Queue, done: Callable[[int, Generation], None], source: Source | None = None) -> None:
        """Decode what is in the queue and what the source brings meanwhile; `done` is called as each one finishes."""
        flight: deque[tuple[int, Launched]] = deque()
        while self._anything(queue, flight, source):
            self._refill(queue)
            flight.append((self.launched, self._watched_step()))
            self.launched += 1
            if len(flight) > self.step.lag:
                for index, generation in self._read(*flight.popleft()):
                    done(index, generation)
            if not queue and not flight:
                self._shrink()

    # --- arrivals -----------------------------------------------------------------------------------------------------

    def _anything(self, queue: Queue, flight: deque[tuple[int, Launched]], source: Source | None) -> bool:
        """Take in what the source has; is there anything to decode?"""
        while source is not None:
            idle = not queue and not any(self.slots)
            if idle:
                flight.clear()  # a step that was launched for rows which had ended
            arrived = source(self.slots.count(None) + self.rows - len(self.slots) - len(queue), idle)
            queue.extend(arrived.requests)
            self._give_up(queue, arrived.unwanted)
            self._grow(len(queue) - self.slots.count(None))
            if queue or any(self.slots) or (idle and not arrived.requests):
                break
        return bool(queue) or any(self.slots)

    def _give_up(self, queue: Queue, unwanted: Collection[int]) -> None:
        """Forget requests, and free the rows of those under way; a row whose prompt is being encoded follows later."""
        self._unwanted.update(unwanted)
        if not self._unwanted:
            return
        kept = [entry for entry in queue if entry[0] not in self._unwanted]
        queue.clear()
        queue.extend(kept)
        for row, slot in enumerate(self.slots):
            if slot and slot.index in self._unwanted and slot.first_step is not None:
                self.step.canvas.live[row] = False
                self._free(row)
        self._unwanted &= {slot.index for slot in self.slots if slot}

    def _free(self, row: int) -> None:
        self.slots[row] = None
        for net in self.step.nets.values():
            net.waiting.discard(row)

    # --- prompts ------------------------------------------------------------------------------------------------------

    def _refill(self, queue: Queue) -> None:
        """Give free slots the next requests and encode their prompts, in one batch.

        Long prompts go in by chunks, a chunk a step, so that rows under way need not wait for the whole of them.
        """
        if self.encoding is None and queue and None in self.slots:
            self.encoding = self._encode(queue)
        if self.encoding is None:
            return
        began, inside = now(self.step.device), self.clock.seconds
        under_way = any(slot and slot.first_step is not None for slot in self.slots)
        for _ in self.encoding:
            if under_way:
                break
        else:
            self.encoding = None
        self.timing.prefill += now(self.step.device) - began
        self.clock.seconds = inside  # what prompts take is no part of decoding

    def _encode(self, queue: Queue) -> Iterator[None]:
        """Admit what fits into the free slots; yields between chunks of the prompts.

        A forward holds at most some thousand tokens, so many long prompts go in by some rows at a time.
        """
        admitted, rows, lengths = time.perf_counter(), [], []
        for row in [row for row, slot in enumerate(self.slots) if slot is None][: len(queue)]:
            index, request = queue.popleft()
            prompt, fixed = list(request.prompt_ids), request.fixed or self.fixed
            start = self.step.canvas.admit(row, prompt, request.max_tokens, request.seed, fixed)
            for net in self.step.nets.values():
                net.admit(row, request)
            limit = len(prompt) + request.max_tokens
            stop, end = start + self.step.block_length, min(len(prompt) + (self.step.traits.initial or limit), limit)
            self.slots[row] = Slot(request, index, admitted, start, stop, end, limit)
            rows.append(row)
            lengths.append(len(prompt))
        nets, cached = self.step.nets.values(), self.step.traits.cached
        ahead = [max(net.prefill_lengths(lengths)) for net in nets] if cached else [0]
        together = prefill_rows(max(ahead))
        for at in range(0, len(rows), together):
            if at:
                yield
            yield from self._encode_rows(rows[at : at + together], lengths[at : at + together])

    def _encode_rows(self, rows: list[int], lengths: list[int]) -> Iterator[None]:
        """Encode the prompts of these rows and let them go live; yields between chunks."""
        step = self.step
        chosen = torch.tensor(rows, device=step.device)
        step.counter.reset(chosen)
        step.counter.log = None
        for net in step.nets.values():
            net.reset(chosen)
            if step.traits.cached:
                yield from net.prefill_chunks(chosen, net.prefill_lengths(lengths))
        for net in step.nets.values():
            net.prefill_states = None
        step.begin(chosen)
        for row in rows:
            slot = self.slots[row]
            assert slot is not None  # admitted above
            slot.first_step = self.launched
            if step.recorder:
                step.recorder.begin(row)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _watched_step(self) -> Launched:
        """A step; on CPU its time tells whether the number of threads is still the right one."""
        if self.watch is None:
            return self._launch()
        began = time.perf_counter()
        launched = self._launch()
        self.watch.step(time.perf_counter() - began)
        return launched

    def _launch(self) -> Launched:
        busy = [slot for slot in self.slots if slot]
        host_rows = None
        if not self.step.lag:
            host_rows = [slot.row if slot and slot.first_step is not None else None for slot in self.slots]
        return self.step.launch(self._bounds(busy), host_rows)

    def _bounds(self, busy: list[Slot]) -> Bounds:
        furthest, traits = max(slot.start for slot in busy), self.step.traits
        if not traits.initial:
            return Bounds(furthest, max(slot.end for slot in busy))
        growth = self.step.lag * traits.growth  # steps that are not read yet may have made a row longer
        ends = [min(slot.end + growth, slot.limit) for slot in busy]
        begins = [slot.start if traits.scope == "ahead" else slot.prompt for slot in busy]
        return Bounds(furthest, max(ends), max(end - begin for begin, end in zip(begins, ends)))

    def _read(self, number: int, step: Launched) -> list[tuple[int, Generation]]:
        """Act on the flags of one step: finish rows, look for stop strings, notice stalls."""
        if step.copied is not None:
            step.copied.synchronize()  # the one wait of a step, for flags whose step was launched one step ago
        finished = []
        for row, flag in enumerate(step.flags.tolist()):
            slot = self.slots[row]
            if slot is None or slot.first_step is None or number < slot.first_step:
                continue  # nobody's, or of who was here before
            flag, *ends = flag if self.step.own_ends else (flag,)
            if step.hinted:
                slot.hint, flag = flag >> HINT, flag & ((1 << HINT) - 1)
            begun, last_block = slot.start, self._advance(row, slot, flag)
            if ends:
                slot.before = begun
                slot.start, slot.stop, slot.end = ends
            if last_block is not None:
                finished.append((slot.index, self._finish(row, slot, last_block, step)))
        return finished

    def _advance(self, row: int, slot: Slot, flag: int) -> int | None:
        """Bring the host's memory of a row up to date; the start of its last block when it has ended, else None."""
        if not flag & SKIPPED:
            slot.step, slot.total_steps = slot.step + 1, slot.total_steps + 1
        if flag & (BLOCK_DONE | ROW_DONE) and slot.first_block is None:
            slot.first_block = time.perf_counter() - slot.admitted
        if flag & ROW_DONE:
            return slot.start
        if flag & BLOCK_DONE:
            last_block, slot.start, slot.step = slot.start, slot.start + self.step.block_length, 0
            slot.stop = slot.start + self.step.block_length
            if not self.step.lag:
                for net in self.step.nets.values():
                    net.waiting.add(row)
            if slot.request.stream and self.on_block:
                self.on_block(slot.index, self._decoded(row, slot))
            if slot.request.stop and self.step.canvas.attention != "full" and self._stopped(row, slot):
                self.step.canvas.live[row] = False
                return last_block
        slot.idle_steps = slot.idle_steps + 1 if flag & IDLE else 0
        if slot.idle_steps >= self.stall_limit:
            self._check_numbers(row, slot)
            raise RunError(
                f"Decoder {self.step.decoder.name!r} revealed nothing for {self.stall_limit} steps in item "
                f"{slot.request.key!r}; every step must make net progress or declare the row idle."
            )
        return None

    def _stopped(self, row: int, slot: Slot) -> bool:
        """Does the text so far contain a stop string? Looked at once a block, for tasks that have any."""
        return self.text.stops(self._decoded(row, slot), slot.request.stop, slot.request.prompt_ids)

    def _decoded(self, row: int, slot: Slot) -> list[int]:
        """What stands behind the prompt, up to the active block."""
        return self.step.canvas.tokens[row, len(slot.request.prompt_ids) : slot.start].tolist()

    # --- the end of a row ---------------------------------------------------------------------------------------------

    def _finish(self, row: int, slot: Slot, last_block: int, launched: Launched) -> Generation:
        """Free the slot and read its row."""
        self._check_numbers(row, slot)
        request, step = slot.request, self.step
        raw = self._raw_ids(row, slot, last_block)
        ids, reason = raw[: request.max_tokens], "length"
        end = next((i for i, token in enumerate(ids) if token in step.target.config.eos_ids), None)
        if end is not None:
            ids, reason = ids[: end + 1] if step.traits.cuts_at_eos else ids, "eos"
        read = ids[: ids.index(step.mask_id)] if step.mask_id in ids else ids  # a decoder may end a row with masks
        text, tokens, stopped = self.text.cut(read, request.stop, request.prompt_ids)
        if stopped and (end is None or tokens <= end):  # a stop string that is the EOS itself has not come first
            reason = "stop"
        step.finished, step.budgets = step.finished + 1, step.budgets + slot.limit
        counts = step.counter.read(row, launched.totals)
        for key, work in counts.work.items():
            self.shapes[key] = self.shapes.get(key, ForwardSum()).plus(work)
        proposed, accepted = self._drafts(row, launched)
        generation = Generation(
            key=request.key, ids=ids, raw_ids=raw, text=text, tokens=tokens, counts=counts.kinds,
            forward_counts={key: work.calls for key, work in counts.work.items()},
            seconds=now(step.device) - slot.admitted, stop_reason=reason, fallbacks=int(step.canvas.fallbacks[row]),
            proposed=proposed, accepted=accepted, first_block=slot.first_block or 0.0,
            steps=slot.total_steps,
            trace=step.recorder.finish(row) if step.recorder else None,
            states=step.recorder.states_of(row) if step.recorder else None,
        )  # fmt: skip
        self._free(row)
        return generation

    def _raw_ids(self, row: int, slot: Slot, last_block: int) -> list[int]:
        """What stands behind the prompt, up to the end of the last decoded block or of the answer."""
        canvas = self.step.canvas
        whole = canvas.attention == "full" or canvas.answer > 0
        last = slot.end if whole else last_block + self.step.block_length
        if canvas.exact:
            last = min(last, slot.end)
        ids = canvas.tokens[row, len(slot.request.prompt_ids) : last].tolist()
        return self.step.decoder.answer(self.step.state, row, ids)

    def _check_numbers(self, row: int, slot: Slot) -> None:
        """Raises RunError when what a row was decoded from were no numbers."""
        if not isfinite(self.step.canvas.health[row]):
            raise RunError(
                f"The logits of item {slot.request.key!r} in {str(self.step.target.dtype).removeprefix('torch.')} are "
                "no numbers (NaN, infinity, or minus infinity for every token): float16 overflows, so take --dtype "
                "bfloat16 or float32; with these, check the checkpoint's weights."
            )

    def _drafts(self, row: int, step: Launched) -> tuple[int, list[int]]:
        """Draft tokens proposed for a row, and how many were accepted at a time; nothing without a draft."""
        report = self.step.state if step.report is None else step.report
        if "proposed" not in report:
            return 0, []
        histogram = report["accepted"][row].tolist()
        return int(report["proposed"][row]), [length for length, times in enumerate(histogram) for _ in range(times)]

    # --- as many rows as are needed ----------------------------------------------------------------------------------

    def _shrink(self) -> None:
        """When the queue is empty, halve the batch as rows run out: the last items carry no dead rows, nor does a
        service that few ask."""
        busy = [row for row, slot in enumerate(self.slots) if slot]
        if self.step.graphs or self.encoding or not busy or len(busy) > len(self.slots) // 2:
            return  # recorded steps are bound to their buffers, prompts on their way to their rows
        order = [row if row in busy else busy.pop() for row in range(len(busy))]  # as few move as can be
        self._keep_rows(order)

    def _grow(self, more: int) -> None:
        """So many rows more, or all that there are buffers for; at least twice as many as now."""
        if more <= 0 or len(self.slots) == self.rows or self.encoding:
            return
        rows = len(self.slots)
        added = list(range(rows, min(self.rows, max(2 * rows, rows + more))))
        self._keep_rows([*range(rows), *(0 for _ in added)])  # what is in a row does not matter until it is admitted
        self.step.canvas.live[added] = False
        for row in added:
            self._free(row)
        for net in self.step.nets.values():
            net.reset(torch.tensor(added, device=self.step.device))

    def _keep_rows(self, order: list[int]) -> None:
        self.step.keep_rows(torch.tensor(order, device=self.step.device))
        self.slots = [self.slots[row] for row in order]
        if self.step.recorder:
            self.step.recorder.keep_rows(order)
