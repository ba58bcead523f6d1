"""The engine: requests in, generations, counts and seconds out.

A facade: `dlmbench.engine.scheduler` says who decodes in which slot, `dlmbench.engine.step` carries out one step of all
rows. Timing is done in this room and nowhere else.
"""

from __future__ import annotations

import traceback
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch

from dlmbench.backbone.counter import ForwardSum
from dlmbench.backbone.network import Network, bucket
from dlmbench.decoders.base import Decoder
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import calibrate as pricing
from dlmbench.engine.calibrate import Measured
from dlmbench.engine.clock import ForwardClock
from dlmbench.engine.graphs import CUDARecording, Recording, StepGraphs, first_line, on_device
from dlmbench.engine.recorder import Recorder
from dlmbench.engine.request import (
    Arrivals,
    Generation,
    OnBlock,
    Request,
    Source,
    Timing,
    TracedStep,
    now,
    validate,
)
from dlmbench.engine.scheduler import Scheduler
from dlmbench.engine.states import StateRecorder
from dlmbench.engine.step import Sizes, Step
from dlmbench.engine.text import Text, Tokenizer
from dlmbench.errors import RequestError, RunError
from dlmbench.forwards import ForwardKey
from dlmbench.threads import Watch

P = ParamSpec("P")
R = TypeVar("R")


def _at_work(method: Callable[Concatenate[Engine, P], R]) -> Callable[Concatenate[Engine, P], R]:
    """A method that computes: on the engine's device, without gradients."""

    @wraps(method)
    def there(self: Engine, *args: P.args, **kwargs: P.kwargs) -> R:
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
        description: what was loaded, for `describe`.

    `step` has the buffers, `shapes` the work of all rows that have finished, `timing` that of the last call.
    """

    def __init__(
        self,
        nets: dict[str, Network],
        decoder: Decoder,
        tokenizer: Tokenizer | None = None,
        *,
        batch_size: int = 1,
        sampling: Sampling | None = None,
        lag: int | None = None,
        graphs: Callable[[object], Recording] | bool | None = None,
        stall_limit: int = 64,
        fill_after_eos: bool = False,
        fixed: tuple[tuple[int, int], ...] = (),
        description: Mapping[str, object] | None = None,
    ):
        self.nets, self.decoder, self.tokenizer, self.text = nets, decoder, tokenizer, Text(tokenizer)
        self.target = nets["target"]
        self.batch_size, self.fixed, self.stall_limit = batch_size, fixed, stall_limit
        self.sampling = sampling or Sampling()
        self.device = self.target.device
        self.traits = decoder.bind(nets, self.target.block_length)  # first: they may depend on the networks
        if lag is None:
            at_once = self.device.type == "cpu" or self.traits.lag == 0 or any(net.reads_host for net in nets.values())
            lag = 0 if at_once else 1
        self.lag = lag
        wanted = self.device.type == "cuda" if graphs is None else bool(graphs)
        recording = graphs if callable(graphs) else CUDARecording
        self.graphs = StepGraphs(recording) if wanted and lag else None
        self.step = Step(nets, decoder, self.traits, self.sampling, lag, self.graphs, fill_after_eos)
        self.scheduler: Scheduler | None = None  # of the last call
        self.watch = Watch() if self.device.type == "cpu" else None  # of the number of threads
        self.clock = ForwardClock(nets.values() if self.device.type == "cpu" and self.target.priced else ())
        self.timing = Timing()
        self.shapes: dict[ForwardKey, ForwardSum] = {}
        self._description = dict(description or {})

    @property
    def launched(self) -> int:
        """Steps of the last call of `generate`."""
        return self.scheduler.launched if self.scheduler else 0

    @property
    def needs_answers(self) -> bool:
        """Must requests bring all right answers? Those of an oracle must."""
        return self.target.needs_answers

    # --- decoding -----------------------------------------------------------------------------------------------------

    @_at_work
    def generate(
        self,
        requests: Sequence[Request],
        on_finish: Callable[[Generation], None] | None = None,
        *,
        trace: bool = False,
        on_step: Callable[[TracedStep], None] | None = None,
        states: bool = False,
        keep: bool = True,
    ) -> list[Generation]:
        """Decode all requests and return their generations in the order given.

        `on_finish` is called as each one finishes; with `keep` off it alone gets them, and none is returned. With
        `trace` every generation carries its steps; `on_step` is called with each recorded step (batch 1 is what one
        watches). With `states` they carry what every forward said of their masks as well (`dlmbench.engine.states`).

        Raises:
            RequestError: a prompt contains the mask token or is empty, or a budget is below one token.
            RunError: the decoder made no progress for `stall_limit` steps, memory ends with a single row, or logits
                are no numbers.
        """
        requests = list(requests)
        if not requests:
            return []
        validate(requests, self.step.mask_id, self.target.config.vocab_size)
        began = now(self.device)
        self.timing, self.clock.seconds = Timing(), 0.0
        finished: set[int] = set()
        results: dict[int, Generation] = {}

        def done(index: int, generation: Generation) -> None:
            finished.add(index)
            if keep:
                results[index] = generation
            if on_finish:
                on_finish(generation)

        while left := [(i, request) for i, request in enumerate(requests) if i not in finished]:
            try:
                waiting = [request for _, request in left]
                longest = max(len(request.prompt_ids) + request.max_tokens for request in waiting)
                scheduler = self._prepare(self._sizes(waiting, longest), longest)
                if states:
                    self.step.recorder = StateRecorder(self.step.canvas.rows, on_step, self.target)
                elif trace or on_step is not None:
                    self.step.recorder = Recorder(self.step.canvas.rows, on_step)
                with self.clock.running():
                    scheduler.serve(deque(left), done)
            except torch.OutOfMemoryError as error:
                self._halve(error)
        self.timing.total = now(self.device) - began - (self.watch.spent if self.watch else 0.0)
        self.timing.forwards = self.clock.seconds if self.clock.nets else None
        return [results[i] for i in sorted(results)]

    @_at_work
    def serve(
        self, source: Source, on_finish: Callable[[int, Generation], None], *, max_length: int, max_tokens: int,
        on_block: OnBlock | None = None,
    ) -> None:  # fmt: skip
        """Decode requests as they come, until the source ends the service; all that `check` lets through.

        `on_finish` is called with a request's number as it finishes, on this thread; `on_block` with what is decoded of
        a request that wants to hear of it, whenever a block is, unless a later step may change it. As many rows are
        computed as requests are under way, within a factor of two; where steps are recorded, all of them. Out of
        memory, it goes on with half the slots, like `generate`, and rows that begin again are told again.

        Raises:
            RunError: as `generate` does; requests under way are lost.
        """
        under_way: dict[int, Request] = {}

        def arrivals(free: int, idle: bool) -> Arrivals:
            arrived = source(free, idle)
            under_way.update(arrived.requests)
            for number in arrived.unwanted:
                under_way.pop(number, None)
            return arrived

        def done(number: int, generation: Generation) -> None:
            if under_way.pop(number, None):
                on_finish(number, generation)

        self.timing = Timing()
        while True:
            try:
                scheduler = self._prepare(self._sizes_of_service(max_length, max_tokens), max_length, max_tokens)
                scheduler.on_block = on_block if self._blocks_are_final else None
                return scheduler.serve(deque(under_way.items()), done, arrivals)
            except torch.OutOfMemoryError as error:
                self._halve(error)

    @property
    def _blocks_are_final(self) -> bool:
        """Does a finished block stand in the answer as it is?"""
        return self.traits.scope == "block" and type(self.decoder).answer is Decoder.answer

    def check(self, request: Request, max_length: int, max_tokens: int) -> None:
        """Raises RequestError for a request that a service of this size does not take."""
        validate([request], self.step.mask_id, self.target.config.vocab_size)
        if request.max_tokens > max_tokens:
            raise RequestError(f"{request.max_tokens} tokens are asked for, and at most {max_tokens} are decoded here.")
        if (length := len(request.prompt_ids) + request.max_tokens) > max_length:
            raise RequestError(
                f"The prompt of {len(request.prompt_ids)} tokens and the {request.max_tokens} asked for need {length} "
                f"positions, and {max_length} are kept here; shorten the prompt or the answer."
            )

    def _prepare(self, sizes: Sizes, longest: int, keys: int = 0) -> Scheduler:
        """Buffers and slots. `keys`: how many a row is expected to see, if not as many as the `longest` has. Raises
        RequestError when that is too long for the model."""
        limit = self.target.config.max_positions
        if longest > limit:
            raise RequestError(
                f"The longest prompt and its token budget need {longest} positions, the model has {limit}; "
                "shorten the prompt (--num-fewshot) or the budget (--gen-length)."
            )
        self.scheduler = None
        self.step.allocate(sizes)
        self.step.recorder = None
        if self.watch:
            block = self.target.block_length
            width = longest if self.target.config.attention == "full" else block
            seen = keys or longest
            size = sizes.rows, width.bit_length(), seen.bit_length()  # not chosen anew for every length
            self.watch.begin(self.target.sample(sizes.rows, width, seen), size)
        self.scheduler = Scheduler(
            self.step, sizes.rows, self.text, self.timing, self.clock, self.shapes, self.fixed, self.stall_limit,
            self.watch,
        )  # fmt: skip
        return self.scheduler

    def _sizes(self, requests: list[Request], longest: int) -> Sizes:
        answer = 0
        if self.traits.scope == "answer":
            answer = max(self._end(len(r.prompt_ids) + r.max_tokens) - len(r.prompt_ids) for r in requests)
        fixed = bool(self.fixed) or any(r.fixed for r in requests)
        reach = self._reach(max(r.max_tokens for r in requests))
        capacity = self._capacity(longest, max(r.max_tokens for r in requests))
        return Sizes(min(self.batch_size, len(requests)), capacity, answer, fixed, reach)

    def _sizes_of_service(self, max_length: int, max_tokens: int) -> Sizes:
        """For any requests up to these lengths."""
        answer = 0
        if self.traits.scope == "answer":
            answer = max_tokens + (0 if self.target.config.attention == "full" else self.target.block_length - 1)
        reach = self._reach(max_tokens)
        return Sizes(self.batch_size, self._capacity(max_length, max_tokens), answer, bool(self.fixed), reach)

    def _reach(self, max_tokens: int) -> int:
        """Width of a view in which decisions end blocks; 0 where none does."""
        return max(int(max_tokens * self.traits.reach), self.target.block_length) if self.traits.reach else 0

    def _capacity(self, longest: int, max_tokens: int) -> int:
        block, traits = self.target.block_length, self.traits
        extra = traits.extra_slots + traits.extra_answers * bucket(max_tokens + block)
        return bucket(self.step.padded(longest) + block + 1 + extra)

    def _end(self, length: int) -> int:
        """End of a row's canvas: on the absolute grid it is filled up to a whole block."""
        block = self.target.block_length
        return length if self.target.config.attention == "full" else -(-length // block) * block

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

    # --- what else can be asked ---------------------------------------------------------------------------------------

    def release(self) -> None:
        """Give up all buffers, and recorded steps with them; the next call of `generate` makes new ones."""
        if self.scheduler:
            self.scheduler.encoding = None  # prompts on their way hold what they have computed so far
        self.step.release()

    def describe(self) -> dict[str, object]:
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
        recording = list(self.graphs.steps.values())[-1].recording
        return pricing.median_seconds(recording.replay, self.device, repeats)

    @_at_work
    def calibrate(self, repeats: int = pricing.REPEATS) -> Measured:
        """Price of every forward met so far: its time over that of one plain denoise of the target.

        Measured at this engine's batch size, prefill included, and at the mean numbers of queries and keys seen, median
        of `repeats`. Spends the buffers: what was decoded last is no longer there.
        """
        if self.watch is None:
            return pricing.prices(self, repeats)
        return self.watch.steady(lambda: pricing.prices(self, repeats))[0]
