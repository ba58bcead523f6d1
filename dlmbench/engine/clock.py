"""How much of a run's time networks take: a clock around their layers and heads, on a CPU.

What it leaves out is what a forward's price leaves out too (`dlmbench.engine.calibrate`): looking up embeddings,
masks, selection, the canvas, refills, counting. Elsewhere than on a CPU the host only queues a forward, and a clock
that waited for the device would change what it measures, so there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import ParamSpec, TypeVar, cast

from torch import Tensor

from dlmbench.backbone.model import Transformer
from dlmbench.backbone.network import Network

P = ParamSpec("P")
R = TypeVar("R")


class ForwardClock:
    """Seconds spent inside these networks so far."""

    def __init__(self, nets: Iterable[Network]):
        self.nets, self.seconds = tuple(nets), 0.0

    def timed(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns; its time is added."""
        began = perf_counter()
        result = function(*args, **kwargs)
        self.seconds += perf_counter() - began
        return result

    @contextmanager
    def running(self) -> Iterator[None]:
        """The networks are timed meanwhile."""
        models = [(net, net.model) for net in self.nets]
        for net, model in models:
            net.model = cast(Transformer, _Timed(model, self))
        try:
            yield
        finally:
            for net, model in models:
                net.model = model


class _Timed:
    """Stands in for a network's model."""

    def __init__(self, model: Transformer, clock: ForwardClock):
        self._model, self._clock = model, clock

    def __call__(self, *args: object) -> Tensor:
        return self._clock.timed(self._model, *args)

    def project(self, hidden: Tensor) -> Tensor:
        return self._clock.timed(self._model.project, hidden)

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)
