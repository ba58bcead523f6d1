"""Where the time of a run goes: a stop watch around a network's forwards."""

from __future__ import annotations

import time


class Clock:
    """The seconds that one network spends in its layers and head, but for its `writes` of keys and values, which are
    kept apart; stands in for its model."""

    def __init__(self, net):
        self._model = net.model
        self.reset()
        net.model, allocate = self, net.allocate

        def clocked(*args) -> None:
            allocate(*args)
            if getattr(net.cache.write, "clock", None) is not self:  # caches may outlive an allocation
                net.cache.write = self._paused(net.cache.write)

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

    def _paused(self, write):
        """Keys and values are written inside the layers; their time is taken out of the layers'."""

        def timed(*args) -> None:
            began = time.perf_counter()
            write(*args)
            took = time.perf_counter() - began
            self.seconds -= took
            self.writes += took

        timed.clock = self
        return timed

    def __getattr__(self, name):
        return getattr(self._model, name)
