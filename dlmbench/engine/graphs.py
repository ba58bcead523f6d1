"""Steps recorded once and replayed: what keeps the host off a GPU's path.

A step of the engine launches some twenty small kernels a layer; launched one by one they leave a modern GPU idle most
of the time. A step reads and writes row-indexed tensors only, and nothing in it depends on their values, so it can be
recorded as one CUDA graph for each shape that occurs (rows, keys in sight, longest row) and replayed with one launch.

Recording needs every tensor that lives from step to step at a fixed address. Their owners name them (`carried`), and
`StepGraphs` sees to the rest: tensors that a step binds anew (``state["x"] = torch.where(...)``) are copied back into
the ones it began with, as the last part of the graph. Before a recorded step is trusted it is replayed from the same
beginning as a plain one and must leave the same behind: equal integers, floats up to `ROUNDING`. Keys and values are
written in place and not compared: a copy of them might not fit. Where recording is refused, or a replay differs, the
engine goes on without graphs and says why (`refused`).

Left out: decoders and cache policies whose launches depend on what the host has read (the engine's lag is 0 there).
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
ROUNDING = 0.05  # of a row's largest value: how far floats may differ; a state of the step before is further away


class Binding(NamedTuple):
    """Where a tensor that lives from step to step is bound: an attribute of its owner, or an entry of a dictionary."""

    owner: object
    name: str

    @property
    def tensor(self) -> Tensor:
        return self.owner[self.name] if isinstance(self.owner, dict) else getattr(self.owner, self.name)

    def bind(self, tensor: Tensor) -> None:
        if isinstance(self.owner, dict):
            self.owner[self.name] = tensor
        else:
            setattr(self.owner, self.name, tensor)


class Recording(Protocol):
    """One recorded stretch of work; those that share a `pool` of memory never run at the same time."""

    pool: object

    def record(self, body: Callable[[], T]) -> T:
        """Run `body` once, recording what it launches (on a GPU: without executing it); its result."""

    def replay(self) -> None:
        """Do the work again, on the same memory."""


class CUDARecording:
    """A CUDA graph on the current device, in a memory pool of its own or in that of another graph.

    A pool dies with its last graph, and its handle must not be used after that: join a living graph's.
    """

    def __init__(self, pool: Any = None):
        self.graph = torch.cuda.CUDAGraph()
        self.pool = torch.cuda.graph_pool_handle() if pool is None else pool

    def record(self, body: Callable[[], T]) -> T:
        here = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self.graph, pool=self.pool, stream=_side_stream(torch.cuda.current_device())):
                return body()
        except BaseException:
            with suppress(RuntimeError, AttributeError):  # an interrupted capture leaves the allocator recording
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)
            raise
        finally:
            torch.cuda.set_stream(here)  # where capturing fails, torch stays on the capture's stream

    def replay(self) -> None:
        self.graph.replay()


@dataclass
class _Step:
    """A recorded step and what it returns, which every replay overwrites."""

    recording: Recording
    result: Any


class StepGraphs:
    """The recorded steps of one engine, for as long as it keeps its buffers.

    Holds no reference to the engine, so that buffers and graphs go with it. `recording` makes an empty `Recording` in
    the memory pool of a living one (None: in a new pool).
    """

    def __init__(self, recording: Callable[[object], Recording] = CUDARecording):
        self.recording = recording
        self.steps: dict[Hashable, _Step] = {}
        self.refused: str | None = None  # why steps are not replayed
        self.seconds = 0.0  # spent on recording
        self._bound: list[tuple[Binding, Tensor]] = []  # what the recorded steps read and write

    def run(self, key: Hashable, body: Callable[[], T], carried: Callable[[], list[Binding]]) -> T:
        """What `body` returns and does: replayed if a step of this key was recorded, recorded first if not.

        `carried` names the tensors that live from step to step. Tensors in the result belong to the recording and
        change with the next run of the key.
        """
        if self.refused is not None:
            return body()
        if any(binding.tensor is not tensor for binding, tensor in self._bound):
            self.clear()  # something has grown since (a column of the counts)
        step = self.steps.get(key)
        if step is None:
            began = time.perf_counter()
            result = self._record(key, body, carried())
            self.seconds += time.perf_counter() - began
            return result
        step.recording.replay()
        return step.result

    def clear(self) -> None:
        """Forget the recorded steps, and with the last of them their pool."""
        self.steps.clear()
        self._bound = []

    def _record(self, key: Hashable, body: Callable[[], T], bindings: list[Binding]) -> T:
        """Run the step plainly, record it, and replay it from the same beginning.

        Raises torch.OutOfMemoryError where memory ends: that is no reason to do without recordings.
        """
        static = [binding.tensor for binding in bindings]
        beginning = [tensor.clone() for tensor in static]
        plain = _on_side_stream(static, body)
        if any(binding.tensor.shape != tensor.shape for binding, tensor in zip(bindings, static)):
            return plain  # something has grown: the next step is recorded
        self._settle(bindings, static)
        expected = [tensor.clone() for tensor in static]
        recording, failure, handled = self.recording(self._pool()), None, sys.exception()
        try:
            with _no_collection(first=not self.steps):
                result = recording.record(lambda: self._settled(body, bindings, static))
        except (RuntimeError, NotImplementedError) as error:
            failure = _cause(error, handled)
        if isinstance(failure, torch.OutOfMemoryError):
            raise failure
        if failure is not None:
            self._give_up(f"a step cannot be recorded here ({first_line(failure)})", bindings, static, expected)
            return plain
        _copy(beginning, static)
        recording.replay()
        if not all(_same(a, b) for a, b in zip(static, expected)):
            self._give_up("a recorded step left other results than a plain one", bindings, static, expected)
            return plain
        self.steps[key] = _Step(recording, result)
        self._bound = list(zip(bindings, static))
        return result

    def _pool(self) -> object:
        """The memory pool of the steps that are alive; None when there are none."""
        return next((step.recording.pool for step in self.steps.values()), None)

    def _settled(self, body: Callable[[], T], bindings: list[Binding], static: list[Tensor]) -> T:
        """`body`, and what it bound anew brought back."""
        result = body()
        self._settle(bindings, static)
        return result

    def _settle(self, bindings: list[Binding], static: list[Tensor]) -> None:
        """Bring what the step has bound anew back to where it began."""
        begun = {tensor.untyped_storage().data_ptr() for tensor in static}
        moved = []
        for binding, tensor in zip(bindings, static):
            now = binding.tensor
            if now is not tensor:  # one that shares memory with another's beginning must be read before it is written
                moved.append((tensor, now.clone() if now.untyped_storage().data_ptr() in begun else now))
                binding.bind(tensor)
        for tensor, now in moved:
            tensor.copy_(now)

    def _give_up(self, reason: str, bindings: list[Binding], static: list[Tensor], expected: list[Tensor]) -> None:
        self.refused = reason
        self.clear()
        for binding, tensor in zip(bindings, static):
            binding.bind(tensor)
        _copy(expected, static)


def on_device(device: torch.device) -> AbstractContextManager:
    """Makes `device` the current one where it is a GPU: streams, events and graphs belong to that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def on_side_stream(body: Callable[[], T]) -> T:
    """Run `body` on the stream that recordings are made on, so that libraries have set themselves up there."""
    here, side = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
    side.wait_stream(here)
    with torch.cuda.stream(side):
        result = body()
    here.wait_stream(side)
    return result


def _on_side_stream(static: list[Tensor], body: Callable[[], T]) -> T:
    return on_side_stream(body) if any(tensor.is_cuda for tensor in static) else body()


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """A stream of that device; torch's own for captures belongs to whichever device came first."""
    return torch.cuda.Stream(device)


@contextmanager
def _no_collection(first: bool) -> Iterator[None]:
    """No garbage is collected inside: a graph that is destroyed while another is recorded spoils both. What is garbage
    already goes before the `first` recording, with the memory that it holds."""
    enabled = gc.isenabled()
    if first:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets):
        target.copy_(source)


def _same(a: Tensor, b: Tensor) -> bool:
    """Integers must be equal; floats [rows, ...] may be rounded otherwise in a graph, row by row up to `ROUNDING`."""
    return all(map(_close, a, b)) if a.is_floating_point() else torch.equal(a, b)


def _close(a: Tensor, b: Tensor) -> bool:
    largest = float(b.abs().nan_to_num_(0.0, 0.0, 0.0).amax()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=ROUNDING * largest, equal_nan=True)


def _cause(error: BaseException, handled: BaseException | None) -> BaseException:
    """What went wrong first: when a step fails while it is recorded, ending the recording fails as well.

    `handled` is what the caller was dealing with before, which is none of it.
    """
    while error.__context__ is not None and error.__context__ is not handled:
        error = error.__context__
    return error


def first_line(error: BaseException) -> str:
    """What went wrong, without what libraries write below it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
