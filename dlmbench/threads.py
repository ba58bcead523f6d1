"""How many threads torch computes with on a CPU: chosen by what is seen, since counting cores does not tell.

Threads that share an operation wait for each other at its end. On a quiet machine two of them are somewhat faster than
one. Where another process wants one of the cores, each wait may last a time slice of the scheduler, and a forward of
some hundred small operations takes a hundred times as long (docs/performance.md). So one thread and more are tried on a
layer of the network at hand, which takes milliseconds, the fastest number is taken, and `Watch` has it tried again when
steps become several times slower than they were, and from time to time.

The number is the process's, as torch's is. It is left alone where the user has set OMP_NUM_THREADS or MKL_NUM_THREADS,
and on devices other than the CPU. Results do not depend on it beyond rounding. torch is imported when it is
first asked.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

GIVEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LONG = 0.1  # seconds
TRIES = 5  # calls whose median counts
BETTER = 0.95  # more threads are taken where they need at most this share of the time
SLOW = 3.0  # a step that takes so many times its usual time is slow
GRACE = 0.03  # seconds lost to slow steps before threads are tried again
SHARE = 0.01  # of the time goes into trials at most, where nothing else asks for one
WAITS = (1.0, 32.0)  # seconds between two trials without an occasion: the first, then doubling up to the second


class Threads:
    """The number of this process, and why it is that one. `changes` counts how often it was set to another."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.changes, self.why = clock, 0, "torch's own choice"
        self._most: int | None = None

    @property
    def number(self) -> int:
        import torch

        return torch.get_num_threads()

    @number.setter
    def number(self, number: int) -> None:
        import torch

        torch.set_num_threads(number)

    @property
    def given(self) -> str | None:
        """The variable by which the user has set it, None where nobody has."""
        return next((name for name in GIVEN if os.environ.get(name)), None)

    @property
    def most(self) -> int:
        """How many may be tried: what torch began with, or what `at_most` allows."""
        if self._most is None:
            self._most = self.number
        return self._most

    def at_most(self, number: int) -> None:
        """Use `number` threads now, and never more."""
        self._most = number
        self._set(number)
        self.why = f"at most {number} allowed"

    def use_all(self) -> None:
        """As many as torch would take by itself."""
        self._set(self.most)

    def choose(self, work: Callable[[], object]) -> None:
        """Time `work`, some milliseconds of what will be computed, under one thread and more; keep the fastest."""
        if self.given or self.most == 1:
            self.why = f"set by {self.given}" if self.given else "at most one"
            return
        before = self.number
        times = {1: self._seconds(work, 1, float("inf"))}
        for number in _powers(self.most):
            limit = 2 * TRIES * min(times.values())  # whoever is slower than that need not be timed to the end
            times[number] = self._seconds(work, number, limit)
        best = min((n for n in times if times[n] <= BETTER * times[1]), key=times.__getitem__, default=1)
        self.number = best
        self.changes += best != before
        tried = ", ".join(f"{1e3 * seconds:.2f} with {number}" for number, seconds in times.items())
        self.why = f"milliseconds of a layer: {tried}"

    def _seconds(self, work: Callable[[], object], number: int, limit: float) -> float:
        """Median seconds of `work` with so many threads; what exceeds `limit` seconds altogether is cut short."""
        self.number = number
        began = self.clock()
        work()  # threads start, code and weights come near
        samples, at = list[float](), self.clock()
        enough = began + LONG  # two calls that take long tell as much as many that do not
        while len(samples) < TRIES and (not samples or at - began < limit) and (len(samples) < 2 or at < enough):
            work()
            now = self.clock()
            samples.append(now - at)
            at = now
        return statistics.median(samples)

    def _set(self, number: int) -> None:
        self.changes += number != self.number
        self.number = number


THREADS = Threads()


class Watch:
    """Has threads chosen for the steps of an engine, and chosen anew when they become slow.

    `spent` are the seconds that choosing has taken since `begin`.
    """

    def __init__(self, threads: Threads = THREADS):
        self.threads, self.spent = threads, 0.0
        self._work: Callable[[], object] | None = None
        self._size: object = None
        self._due = self._wait = 0.0

    def begin(self, work: Callable[[], object], size: object) -> None:
        """Steps of one `size` (rows, tokens) are about to begin; `work` is a part of one."""
        self._work, self.spent = work, 0.0
        self._usual: float | None = None  # seconds of a step
        self._lost = 0.0
        if size != self._size or self.threads.clock() >= self._due:
            self._size, self._wait = size, 0.0
            self.look()

    def step(self, seconds: float) -> None:
        """A step took so long."""
        if self._usual is None:
            self._usual = seconds
        elif seconds > SLOW * self._usual:
            self._lost += seconds - SLOW * self._usual
        else:
            self._lost = 0.0
            self._usual += 0.1 * (seconds - self._usual)
        if self._lost > max(GRACE, 4 * self._usual) or self.threads.clock() >= self._due:
            self.look()

    def steady(self, measure: Callable[[], T], tries: int = 2) -> tuple[T, bool]:
        """What `measure` returns, taken again where the number of threads had to be changed meanwhile; was it kept?"""
        for _ in range(tries):
            self.look()
            changes = self.threads.changes
            result = measure()
            self.look()
            if self.threads.changes == changes:
                return result, True
        return result, False

    def look(self) -> None:
        """Choose now, where there is something to choose for."""
        if self._work is None:
            return
        began, changes = self.threads.clock(), self.threads.changes
        self.threads.choose(self._work)
        first, longest = WAITS
        self._wait = first if self.threads.changes > changes else min(max(2 * self._wait, first), longest)
        now = self.threads.clock()
        self.spent += now - began
        self._wait = max(self._wait, (now - began) / SHARE)
        self._due, self._usual, self._lost = now + self._wait, None, 0.0


def settle() -> None:
    """Choose for whatever comes next, by products of the size that small models have."""
    import torch

    x, weight = torch.ones(128, 128), torch.ones(128, 768)

    def work() -> None:
        for _ in range(2):
            torch.softmax(x @ weight, -1)

    THREADS.choose(work)


def _powers(most: int) -> list[int]:
    """2, 4, 8 ... and the most itself."""
    return sorted({*(1 << n for n in range(1, most.bit_length())), most} - {1})
