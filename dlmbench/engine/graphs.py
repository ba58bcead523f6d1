"""Steps recorded once and replayed: what keeps the host off a GPU's path.

A step of the engine launches some twenty small kernels a layer; launched one by one they leave a modern GPU idle most
of the time. A step reads and writes row-indexed tensors only, and nothing in it depends on their values, so it can be
recorded as one CUDA graph for each shape that occurs (rows, keys in sight, longest row) and replayed with one launch.

Recording needs every tensor that lives from step to step at a fixed address. `StepGraphs` sees to that from outside:
tensors that a step binds anew (``state["x"] = torch.where(...)``) are copied back into the ones it began with, as the
last part of the graph. Before a recorded step is trusted it is replayed from the same beginning as a plain one and must
leave the same integers behind. Where recording is refused, or a replay differs, the engine goes on without graphs and
says why (`refused`).

Left out: decoders and cache policies whose launches depend on what the host has read (the engine's lag is 0 there).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Cell = tuple[dict[str, Any], str]  # where a tensor that lives from step to step is bound


class Recording(Protocol):
    """One recorded stretch of work."""

    def record(self, body: Callable[[], Any]) -> Any:
        """Run `body` once, recording what it launches (on a GPU: without executing it); its result."""

    def replay(self) -> None:
        """Do the work again, on the same memory."""


class CUDARecording:
    """A CUDA graph; all of a process share one memory pool, since they never run at the same time."""

    _pool = None

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        if CUDARecording._pool is None:
            CUDARecording._pool = torch.cuda.graph_pool_handle()

    def record(self, body: Callable[[], Any]) -> Any:
        with torch.cuda.graph(self.graph, pool=self._pool):
            return body()

    def replay(self) -> None:
        self.graph.replay()


@dataclass
class _Step:
    """A recorded step and what it returns, which every replay overwrites."""

    recording: Recording
    result: Any


class StepGraphs:
    """The recorded steps of one engine, for as long as it keeps its buffers.

    Args:
        owners: the dictionaries in which tensors that live from step to step are bound.
        recording: makes an empty `Recording`.
    """

    def __init__(self, owners: Callable[[], list[dict[str, Any]]], recording: Callable[[], Recording] = CUDARecording):
        self.owners, self.recording = owners, recording
        self.steps: dict[Hashable, _Step] = {}
        self.refused: str | None = None  # why steps are not replayed
        self.seconds = 0.0  # spent on recording

    def run(self, key: Hashable, body: Callable[[], Any]) -> Any:
        """What `body` returns and does: replayed if a step of this key was recorded, recorded first if not.

        Tensors in the result belong to the recording and change with the next run of the key.
        """
        if self.refused is not None:
            return body()
        step = self.steps.get(key)
        if step is None:
            began = time.perf_counter()
            result = self._record(key, body)
            self.seconds += time.perf_counter() - began
            return result
        step.recording.replay()
        return step.result

    def _record(self, key: Hashable, body: Callable[[], Any]) -> Any:
        """Run the step plainly, record it, and replay it from the same beginning."""
        cells = [(owner, name) for owner, name, _ in self._tensors()]
        static = [owner[name] for owner, name in cells]
        beginning = [tensor.clone() for tensor in static]
        plain = _on_side_stream(static, body)
        if any(owner[name].shape != tensor.shape for (owner, name), tensor in zip(cells, static)):
            return plain  # something has grown (a column of the counts): the next step is recorded
        self._settle(cells, static)
        expected = [tensor.clone() for tensor in static]
        recording = self.recording()
        try:
            result = recording.record(lambda: (body(), self._settle(cells, static))[0])
            _copy(beginning, static)
        except (RuntimeError, NotImplementedError) as error:
            self._give_up(f"a step cannot be recorded here ({first_line(error)})", cells, static, expected)
            return plain
        recording.replay()
        if not all(_same(a, b) for a, b in zip(static, expected)):
            self._give_up("a recorded step left other results than a plain one", cells, static, expected)
            return plain
        self.steps[key] = _Step(recording, result)
        return result

    def _tensors(self) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        for owner in self.owners():
            for name, value in owner.items():
                if isinstance(value, Tensor):
                    yield owner, name, value

    def _settle(self, cells: list[Cell], static: list[Tensor]) -> None:
        """Bring what the step has bound anew back to where it began."""
        begun = {tensor.untyped_storage().data_ptr() for tensor in static}
        moved = []
        for (owner, name), tensor in zip(cells, static):
            now = owner[name]
            if now is not tensor:  # one that shares memory with another's beginning must be read before it is written
                moved.append((tensor, now.clone() if now.untyped_storage().data_ptr() in begun else now))
                owner[name] = tensor
        for tensor, now in moved:
            tensor.copy_(now)

    def _give_up(self, reason: str, cells: list[Cell], static: list[Tensor], expected: list[Tensor]) -> None:
        self.refused = reason
        self.steps.clear()
        for (owner, name), tensor in zip(cells, static):
            owner[name] = tensor
        _copy(expected, static)


def _on_side_stream(static: list[Tensor], body: Callable[[], Any]) -> Any:
    """Run `body`; on a GPU off the main stream, as recordings are made, so that libraries have set themselves up."""
    if not any(tensor.is_cuda for tensor in static):
        return body()
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        result = body()
    here.wait_stream(side)
    return result


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets):
        target.copy_(source)


def _same(a: Tensor, b: Tensor) -> bool:
    """Integers must be equal; products may round differently in a graph."""
    return a.is_floating_point() or torch.equal(a, b)


def first_line(error: Exception) -> str:
    """What went wrong, without what libraries write below it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
