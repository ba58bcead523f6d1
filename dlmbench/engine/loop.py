"""The decoding loop: fill slots, ask the decoder, carry out, refill.

`Engine.generate` keeps a fixed number of slots busy (continuous batching): rows of a batch are at different blocks and
prompt lengths, and a finished row's slot is refilled from the queue at once. The host reads one packed flag a row and
step; on a device with its own queue it reads the flags of step t after launching step t + 1, so a finished row may ride
through one extra forward, which the active-row mask keeps out of the counts.

Timing is done here and nowhere else.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from dlmbench.backbone.counter import Counter, Work
from dlmbench.backbone.network import Network, bucket, prefill_rows
from dlmbench.decoders.base import Decision, Decoder, HostRow, View
from dlmbench.decoders.predict import Sampling
from dlmbench.engine.calibrate import Measured, prices
from dlmbench.engine.canvas import BLOCK_DONE, HINT, IDLE, ROW_DONE, SKIPPED, Canvas
from dlmbench.engine.graphs import Cell, CUDARecording, Recording, StepGraphs, first_line, on_device
from dlmbench.engine.recorder import Recorder
from dlmbench.engine.request import Generation, Request, Timing, validate
from dlmbench.engine.text import Text
from dlmbench.errors import RequestError, RunError
from dlmbench.forwards import ForwardKey
from dlmbench.threads import Watch

GRAPH_BUCKET = 128  # keys in sight are padded to multiples of this where steps are recorded, so that they are few
WATCHED = 512  # tokens of the layer that is timed to choose the number of threads, at most
REPORTED = ("proposed", "accepted")  # state of a decoder that the engine reads when a row ends


@dataclass
class _Slot:
    """The host's memory of a busy slot."""

    request: Request
    index: int
    admitted: float
    start: int
    end: int  # of its canvas
    first_step: int | None = None  # number of the first step that was launched with its prompt encoded
    hint: int | None = None  # the last decision's, as far as it has been read
    step: int = 0  # steps read so far, on this block and on the row
    total_steps: int = 0
    first_block: float | None = None  # when the host heard of the first finished block

    @property
    def row(self) -> HostRow:
        prompt = len(self.request.prompt_ids)
        return HostRow(self.hint, prompt, self.start, self.end, self.step, self.total_steps)


@dataclass
class _Launched:
    """A step under way. `totals` are the counts as they stood after it, for rows that a stop string ends once a
    further step has been launched, `report` the decoder's account of its drafts then; None when flags are read at
    once. `hinted`: the flags carry hints."""

    number: int
    flags: Tensor
    totals: Tensor | None
    report: dict[str, Tensor] | None = None
    hinted: bool = False
    copied: torch.cuda.Event | None = None  # when the flags have reached the host


def _at_work(method: Callable) -> Callable:
    """A method that computes: on the engine's device, without gradients."""

    @wraps(method)
    def there(self, *args, **kwargs):
        with on_device(self.device), torch.inference_mode():
            return method(self, *args, **kwargs)

    return there


class Engine:
    """Runs one decoder over networks in their roles.

    Args:
        nets: role -> `Network`; "target" is required.
        decoder: the decoder, configured.
        tokenizer: used for text and stop strings only; None gives empty texts.
        batch_size: slots.
        lag: steps between launching a step and reading its flags; default 0 on CPU, 1 elsewhere unless the decoder's
            launches depend on them.
        graphs: record steps and replay them; default: on CUDA where no launch depends on the host. A callable makes the
            recordings (tests), each in the memory pool that it is given.
        fill_after_eos: full attention only: after every step, whatever lies right of the first EOS becomes EOS.
        fixed: (offset, token) pairs given in advance in every answer whose request names none.
        stall_limit: steps in a row without progress after which a decoder is stopped with RunError.
    """

    def __init__(
        self,
        nets: dict[str, Network],
        decoder: Decoder,
        tokenizer: Any = None,
        *,
        batch_size: int = 1,
        sampling: Sampling | None = None,
        lag: int | None = None,
        graphs: Callable[[Any], Recording] | bool | None = None,
        stall_limit: int = 64,
        fill_after_eos: bool = False,
        fixed: tuple[tuple[int, int], ...] = (),
        description: dict | None = None,
    ):
        self.nets, self.decoder, self.tokenizer, self.text = nets, decoder, tokenizer, Text(tokenizer)
        self.target = nets["target"]
        self.batch_size = batch_size
        self.sampling = sampling or Sampling()
        self.device = self.target.device
        self.traits = decoder.bind(nets, self.target.block_length)  # first: they may depend on the networks
        self.lag = lag
        if lag is None:
            now = self.device.type == "cpu" or self.traits.lag == 0 or any(net.reads_host for net in nets.values())
            self.lag = 0 if now else 1
        wanted = self.device.type == "cuda" if graphs is None else bool(graphs)
        recording = graphs if callable(graphs) else CUDARecording
        self.graphs = StepGraphs(recording) if wanted and self.lag else None
        self._buffers: tuple | None = None  # what they were made for
        self.fill_after_eos, self.fixed = fill_after_eos, fixed
        self.stall_limit = stall_limit
        self.watch = Watch() if self.device.type == "cpu" else None  # of the number of threads
        self.timing = Timing()
        self.shapes: dict[ForwardKey, Work] = {}  # of all rows that have finished
        self._description = description or {}

    # --- public -------------------------------------------------------------------------------------------------

    @_at_work
    def generate(
        self,
        requests: Sequence[Request],
        on_finish: Callable[[Generation], None] | None = None,
        *,
        trace: bool = False,
        on_step: Callable[[dict], None] | None = None,
    ) -> list[Generation]:
        """Decode all requests and return their generations in the order given.

        `on_finish` is called as each one finishes. With `trace` every generation carries its steps; `on_step` is
        called with each recorded step (batch 1 is what one watches).

        Raises:
            RequestError: a prompt contains the mask token or is empty, or a budget is below one token.
            RunError: the decoder made no progress for `stall_limit` steps, memory ends with a single row, or logits
                are no numbers.
        """
        requests = list(requests)
        if not requests:
            return []
        validate(requests, self._mask_id, self.target.config.vocab_size)
        began = self._now()
        self.timing = Timing()
        results: list[Generation | None] = [None] * len(requests)
        while left := [(i, request) for i, request in enumerate(requests) if results[i] is None]:
            try:
                self._prepare([request for _, request in left], trace or on_step is not None, on_step)
                self._serve(deque(left), results, on_finish)
            except torch.OutOfMemoryError as error:
                self._halve(error)
        self.timing.total = self._now() - began - (self.watch.spent if self.watch else 0.0)
        return results  # every slot has been filled

    def _serve(self, queue: deque, results: list, on_finish: Callable[[Generation], None] | None) -> None:
        """Decode what is in the queue, (index, request) pairs, into `results`."""
        flight: deque[_Launched] = deque()
        while queue or any(self.slots):
            self._refill(queue)
            flight.append(self._watched_step())
            if len(flight) > self.lag:
                for index, generation in self._read(flight.popleft()):
                    results[index] = generation
                    if on_finish:
                        on_finish(generation)
            if not queue:
                self._shrink(flight)

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        """Go on with half as many rows; those under way begin again.

        Results do not depend on it in float32; in half precision near ties may fall otherwise.
        """
        if self.batch_size == 1:
            raise RunError(
                f"Memory on {self.device} ends with a single row ({first_line(error)}): "
                "shorten prompts (--num-fewshot) or answers (--gen-length), or take a smaller model."
            ) from error
        self.batch_size //= 2
        traceback.clear_frames(error.__traceback__)  # they hold what the step had computed so far
        self.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(f"Out of memory: going on with --batch-size {self.batch_size}.", RuntimeWarning, stacklevel=3)

    def release(self) -> None:
        """Give up all buffers, and recorded steps with them; the next call of `generate` makes new ones."""
        self._buffers = self.encoding = None
        self.state = {}
        for net in self.nets.values():
            net.release()
        if self.graphs:
            self.graphs.clear()

    def describe(self) -> dict:
        """What was loaded and how: enough to tell two runs apart."""
        graphs = {"graphs": self.graphs.refused or "recorded"} if self.graphs else {}
        halved = {"batch_size": self.batch_size} if "batch_size" in self._description else {}
        return {**self._description, **halved, **graphs}

    @_at_work
    def replay_seconds(self, repeats: int = 20) -> float | None:
        """Median seconds that the device takes for the last recorded step by itself; None where none was recorded.

        Spends the buffers: what was decoded last is no longer there.
        """
        if not (self.graphs and self.graphs.steps):
            return None
        from dlmbench.engine.calibrate import median_seconds

        recording = list(self.graphs.steps.values())[-1].recording
        return median_seconds(recording.replay, self.device, repeats)

    @_at_work
    def calibrate(self, repeats: int = 5) -> Measured:
        """Price of every forward met so far: its time over that of one plain denoise of the target.

        Measured at this engine's batch size, prefill included, and at the mean numbers of queries and keys seen, median
        of `repeats`. Spends the buffers: what was decoded last is no longer there.
        """
        if self.watch is None:
            return prices(self, repeats)
        return self.watch.steady(lambda: prices(self, repeats))[0]

    # --- one call of generate -----------------------------------------------------------------------------------

    @property
    def needs_answers(self) -> bool:
        """Must requests bring all right answers? Those of an oracle must."""
        return self.target.needs_answers

    @property
    def _mask_id(self) -> int:
        mask = self.target.config.mask_id
        return self.target.config.vocab_size if mask is None else mask  # an id that no head can produce

    def _prepare(self, requests: list[Request], tracing: bool, on_step) -> None:
        block = self.target.block_length
        rows = min(self.batch_size, len(requests))
        longest = max(len(r.prompt_ids) + r.max_tokens for r in requests)
        capacity = bucket(self._padded(longest) + block + 1 + self.traits.extra_slots)
        limit = self.target.config.max_positions
        if longest > limit:
            raise RequestError(
                f"The longest prompt and its token budget need {longest} positions, the model has {limit}; "
                "shorten the prompt (--num-fewshot) or the budget (--gen-length)."
            )
        answer = 0
        if self.traits.scope == "answer":
            answer = max(self._end(len(r.prompt_ids) + r.max_tokens) - len(r.prompt_ids) for r in requests)
        self._allocate(rows, capacity, answer)
        self.slots: list[_Slot | None] = [None] * rows
        self.idle_steps = [0] * rows
        self.encoding: Iterator[None] | None = None  # prompts on their way into the cache
        self.launched = 0
        if self.watch:
            tokens = min(rows * (block if self.target.config.attention != "full" else longest), WATCHED)
            self.watch.begin(self.target.sample(tokens), (rows, tokens))
        self.recorder = Recorder(rows, on_step) if tracing else None

    def _allocate(self, rows: int, capacity: int, answer: int) -> None:
        """Buffers for a run; those of the last one are kept where they fit, and with them recorded steps."""
        known = self._buffers
        ours = known and all(net.canvas is self.canvas.tokens for net in self.nets.values())
        if ours and known[0] == rows and known[1] >= capacity and known[2] == answer:
            self.canvas.live.zero_()
            return
        if self.graphs:
            self.graphs.clear()
        self.state = {}  # before what replaces it is made
        config, block = self.target.config, self.target.block_length
        self.canvas = Canvas(
            rows, capacity, block, self._mask_id, () if self.traits.ends_rows else config.eos_ids, config.attention,
            answer, self.device, self.fill_after_eos, config.grid,
        )  # fmt: skip
        self.counter = Counter(rows, self.device)
        for net in self.nets.values():
            net.allocate(rows, capacity, self.canvas.tokens, self.counter)
        width = answer or block
        self.state = self.decoder.init_state(rows, capacity, width, self.device)
        fresh = self.decoder.init_state(1, capacity, width, self.device)
        self.fresh_state = {name: tensor.clone() for name, tensor in fresh.items()}
        self._buffers = rows, capacity, answer

    def _end(self, length: int) -> int:
        """End of a row's canvas: on the absolute grid it is filled up to a whole block."""
        block = self.target.block_length
        return length if self.target.config.attention == "full" else -(-length // block) * block

    def _padded(self, longest: int) -> int:
        """The length that whole rows are padded to; a model's limit is one of tokens, not of padding."""
        return bucket(longest, GRAPH_BUCKET) if self.graphs else longest

    def _refill(self, queue: deque) -> None:
        """Give free slots the next requests and encode their prompts, in one batch.

        Long prompts go in by chunks, a chunk a step, so that rows under way need not wait for the whole of them.
        """
        if self.encoding is None and queue and None in self.slots:
            self.encoding = self._encode(queue)
        if self.encoding is None:
            return
        began = self._now()
        under_way = any(slot and slot.first_step is not None for slot in self.slots)
        for _ in self.encoding:
            if under_way:
                break
        else:
            self.encoding = None
        self.timing.prefill += self._now() - began

    def _encode(self, queue: deque) -> Iterator[None]:
        """Admit what fits into the free slots; yields between chunks of the prompts.

        A forward holds at most some thousand tokens, so many long prompts go in by some rows at a time.
        """
        admitted, rows = time.perf_counter(), []
        for row in [row for row, slot in enumerate(self.slots) if slot is None][: len(queue)]:
            index, request = queue.popleft()
            fixed = request.fixed or self.fixed
            start = self.canvas.admit(row, list(request.prompt_ids), request.max_tokens, request.seed, fixed)
            end = len(request.prompt_ids) + request.max_tokens
            for net in self.nets.values():
                net.admit(row, request)
            self.slots[row] = _Slot(request, index, admitted, start, end)
            rows.append(row)
        lengths = [len(self.slots[row].request.prompt_ids) for row in rows]
        ahead = [max(net.prefill_lengths(lengths)) for net in self.nets.values()] if self.traits.cached else [0]
        together = prefill_rows(max(ahead))
        for at in range(0, len(rows), together):
            if at:
                yield
            yield from self._encode_rows(rows[at : at + together], lengths[at : at + together])

    def _encode_rows(self, rows: list[int], lengths: list[int]) -> Iterator[None]:
        """Encode the prompts of these rows and let them go live; yields between chunks."""
        chosen = torch.tensor(rows, device=self.device)
        self.counter.reset(chosen)
        self.counter.log = None
        for net in self.nets.values():
            net.reset(chosen)
            if self.traits.cached:
                yield from net.prefill_chunks(chosen, net.prefill_lengths(lengths))
        for net in self.nets.values():
            net.prefill_states = None
        for name, tensor in self.state.items():
            tensor[chosen] = self.fresh_state[name]
        self.canvas.begin(chosen)
        for row in rows:
            self.slots[row].first_step, self.idle_steps[row] = self.launched, 0
            if self.recorder:
                self.recorder.begin(row)

    def _watched_step(self) -> _Launched:
        """A step; on CPU its time tells whether the number of threads is still the right one."""
        if self.watch is None:
            return self._step()
        began = time.perf_counter()
        launched = self._step()
        self.watch.step(time.perf_counter() - began)
        return launched

    def _step(self) -> _Launched:
        """Launch one round for all rows; its flags stay on the device until they are read."""
        block = self.target.block_length
        ahead = self.lag * block  # rows may be one block further than the host knows
        capacity = self.canvas.tokens.shape[1]
        busy = [slot for slot in self.slots if slot]
        seen = min(bucket(max(slot.start for slot in busy) + block + ahead), capacity)
        longest = min(max(slot.end for slot in busy), capacity)
        if self.graphs and self.recorder is None:
            seen, longest = min(bucket(seen, GRAPH_BUCKET), capacity), self._padded(longest)
            key = seen, longest, self.canvas.fixed
            flags, hinted = self.graphs.run(key, lambda: self._round(seen, longest, None), self._carried)
        else:
            started = [slot if slot and slot.first_step is not None else None for slot in self.slots]
            host = None if self.lag else [slot.row if slot else None for slot in started]
            flags, hinted = self._round(seen, longest, host)
        flags, copied = self._to_host(flags)
        totals = self.counter.totals.clone() if self.lag else None
        report = {name: self.state[name].clone() for name in REPORTED if name in self.state} if self.lag else None
        self.launched += 1
        return _Launched(self.launched - 1, flags, totals, report, hinted, copied)

    def _round(self, seen: int, longest: int, host: list[HostRow | None] | None) -> tuple[Tensor, bool]:
        """One round of the decoder for all rows and its consequences -> flags, and whether they carry hints.

        Without `host` nothing in here depends on a tensor's value, so it can be recorded.
        """
        tracing = self.recorder is not None
        view = self.canvas.view(self.state, self.sampling, seen, longest, host, tracing)
        self.counter.log = [] if tracing else None
        decision = self._forced(view, self.decoder.round(view, self.nets))
        flags = self.canvas.apply(view, decision)
        self._blocks_finished(view, flags)
        if tracing:
            self.recorder.step(view, decision, self.counter.log, self.canvas.filled)
        return flags, decision.host_hint is not None

    def _carried(self) -> list[Cell]:
        """Where tensors are bound that live from step to step; keys and values do too, and are written in place."""
        owners = self.canvas, self.counter, *self.nets.values()
        cells = [(vars(owner), name) for owner in owners for name in owner.carried]
        return cells + [(self.state, name) for name in self.state]

    def _to_host(self, flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Start copying a step's flags to the host, without waiting; (flags, event of their arrival)."""
        if not flags.is_cuda:
            return flags.clone() if self.graphs else flags, None  # a replay writes over them
        pinned = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        pinned.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return pinned, event

    def _forced(self, view: View, decision: Decision) -> Decision:
        """A cache policy may replace what the decoder reveals in some rows (Dream with prefix or dual)."""
        forced = self.target.forced(view)
        if forced is None:
            return decision
        rows, reveal = forced
        if decision.finish is not None:
            rows = rows & ~decision.finish
        return replace(decision, reveal=torch.where(rows.unsqueeze(1), reveal, decision.reveal))

    def _blocks_finished(self, view: View, flags: Tensor) -> None:
        """Tell the networks which blocks are final; with separate stores spend the forward now, last block included."""
        if not self.traits.cached:
            return
        for net in self.nets.values():
            if net.store_mode == "fused":
                net.finish_block(self.canvas.moved)
            elif net.stores:
                done = (flags & BLOCK_DONE).bool()
                if self.lag or bool(done.any()):
                    net.pending = done
                    net.store(view.start + self.target.block_length, view.max_keys)

    def _read(self, step: _Launched) -> list[tuple[int, Generation]]:
        """Act on the flags of one step: finish rows, look for stop strings, notice stalls."""
        if step.copied is not None:
            step.copied.synchronize()  # the one wait of a step, for flags whose step was launched one step ago
        finished = []
        for row, flag in enumerate(step.flags.tolist()):
            slot = self.slots[row]
            if slot is None or slot.first_step is None or step.number < slot.first_step:
                self.idle_steps[row] = 0
                continue
            if step.hinted:
                slot.hint, flag = flag >> HINT, flag & ((1 << HINT) - 1)
            if flag & SKIPPED:
                flag ^= SKIPPED
            else:
                slot.step, slot.total_steps = slot.step + 1, slot.total_steps + 1
            if not flag:
                self.idle_steps[row] = 0
                continue
            if flag & (BLOCK_DONE | ROW_DONE) and slot.first_block is None:
                slot.first_block = time.perf_counter() - slot.admitted
            if flag & ROW_DONE:
                finished.append((slot.index, self._finish(row, slot, slot.start, step)))
                continue
            if flag & BLOCK_DONE:
                slot.start, slot.step = slot.start + self.target.block_length, 0
                if not self.lag:
                    for net in self.nets.values():
                        net.waiting.add(row)
                if slot.request.stop and self.canvas.attention != "full" and self._stopped(row, slot):
                    self.canvas.live[row] = False
                    finished.append((slot.index, self._finish(row, slot, slot.start - self.target.block_length, step)))
                    continue
            self.idle_steps[row] = self.idle_steps[row] + 1 if flag & IDLE else 0
            if self.idle_steps[row] >= self.stall_limit:
                self._check_numbers(row, slot)
                raise RunError(
                    f"Decoder {self.decoder.name!r} revealed nothing for {self.stall_limit} steps in item "
                    f"{slot.request.key!r}; every step must make net progress or declare the row idle."
                )
        return finished

    def _stopped(self, row: int, slot: _Slot) -> bool:
        """Does the text so far contain a stop string? Looked at once a block, for tasks that have any."""
        ids = self.canvas.tokens[row, len(slot.request.prompt_ids) : slot.start].tolist()
        return self.text.stops(ids, slot.request.stop, slot.request.prompt_ids)

    def _finish(self, row: int, slot: _Slot, last_block: int, step: _Launched) -> Generation:
        """Free the slot and read its row."""
        self._check_numbers(row, slot)
        request = slot.request
        prompt = len(request.prompt_ids)
        whole = self.canvas.attention == "full" or self.canvas.answer > 0
        last = slot.end if whole else last_block + self.target.block_length
        if self.canvas.exact:
            last = min(last, slot.end)
        raw = self.decoder.answer(self.state, row, self.canvas.tokens[row, prompt:last].tolist())
        ids, reason = raw[: request.max_tokens], "length"
        end = next((i for i, token in enumerate(ids) if token in self.target.config.eos_ids), None)
        if end is not None:
            ids, reason = ids[: end + 1] if self.traits.cuts_at_eos else ids, "eos"
        read = ids[: ids.index(self._mask_id)] if self._mask_id in ids else ids  # a decoder may end a row with masks
        text, tokens, stopped = self.text.cut(read, request.stop, request.prompt_ids)
        if stopped and (end is None or tokens <= end):  # a stop string that is the EOS itself has not come first
            reason = "stop"
        counts = self.counter.read(row, step.totals)
        for key, work in counts.work.items():
            self.shapes[key] = self.shapes.get(key, Work()).plus(work)
        proposed, accepted = self._drafts(row, step)
        generation = Generation(
            key=request.key, ids=ids, raw_ids=raw, text=text, tokens=tokens, counts=counts.kinds,
            forward_counts={key: work.calls for key, work in counts.work.items()},
            seconds=self._now() - slot.admitted, stop_reason=reason, guards=int(self.canvas.fallbacks[row]),
            proposed=proposed, accepted=accepted, first_block=slot.first_block or 0.0,
            trace=self.recorder.finish(row) if self.recorder else None,
        )  # fmt: skip
        self.slots[row] = None
        for net in self.nets.values():
            net.waiting.discard(row)
        return generation

    def _check_numbers(self, row: int, slot: _Slot) -> None:
        """Raises RunError when what a row was decoded from were no numbers."""
        if not isfinite(self.canvas.health[row]):
            raise RunError(
                f"The logits of item {slot.request.key!r} in {str(self.target.dtype).removeprefix('torch.')} are no "
                "numbers (NaN, infinity, or minus infinity for every token): float16 overflows, so take --dtype "
                "bfloat16 or float32; with these, check the checkpoint's weights."
            )

    def _drafts(self, row: int, step: _Launched) -> tuple[int, list[int]]:
        """Draft tokens proposed for a row, and how many were accepted at a time; nothing without a draft."""
        report = self.state if step.report is None else step.report
        if "proposed" not in report:
            return 0, []
        histogram = report["accepted"][row].tolist()
        return int(report["proposed"][row]), [length for length, times in enumerate(histogram) for _ in range(times)]

    def _shrink(self, flight: deque) -> None:
        """When the queue is empty, halve the batch as rows run out, so that the last items do not carry dead rows."""
        busy = [row for row, slot in enumerate(self.slots) if slot]
        if self.graphs or self.encoding or flight or not busy or len(busy) > len(self.slots) // 2:
            return  # recorded steps are bound to their buffers, prompts on their way to their rows
        order = [row if row in busy else busy.pop() for row in range(len(busy))]  # as few move as can be
        kept = torch.tensor(order, device=self.device)
        self._buffers = None
        self.canvas.keep_rows(kept)
        self.counter.keep_rows(kept)
        for net in self.nets.values():
            net.keep_rows(kept, self.canvas.tokens)
        self.state = {name: tensor.index_select(0, kept) for name, tensor in self.state.items()}
        self.slots = [self.slots[row] for row in order]
        self.idle_steps = [self.idle_steps[row] for row in order]
        if self.recorder:
            self.recorder.keep_rows(order)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
