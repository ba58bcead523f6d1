"""Where the time of a run goes: a stop watch around a network's forwards."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """The seconds that one network spends in its layers and head, but for its `writes` of keys and values, which are
    kept apart; stands in for its model."""

    def __init__(self, net):
        self._model = net.model
        self.reset()
        net.model, allocate = self, net.allocate

        def clocked(*args) -> None:
            allocate(*args)
            write = net.cache.write
            if not (isinstance(write, _Paused) and write.clock is self):  # caches may outlive an allocation
                net.cache.write = _Paused(self, write)

        net.allocate = clocked

    def reset(self) -> None:
        self.seconds = self.writes = 0.0

    def __call__(self, *args):
        return self._timed(self._model, *args)

    def project(self, hidden):
        return self._timed(self._model.project, hidden)

    def _timed(self, function, *args):
        began = time.perf_counter()
        result = function(*args)
        self.seconds += time.perf_counter() - began
        return result

    def __getattr__(self, name):
        return getattr(self._model, name)


class _Paused:
    """Keys and values are written inside the layers; their time is taken out of the layers'."""

    def __init__(self, clock: Clock, write: Callable[..., None]):
        self.clock, self._write = clock, write

    def __call__(self, *args) -> None:
        began = time.perf_counter()
        self._write(*args)
        took = time.perf_counter() - began
        self.clock.seconds -= took
        self.clock.writes += took
