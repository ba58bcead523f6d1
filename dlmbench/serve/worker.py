"""The engine on a thread of its own, fed from a bounded queue.

Whoever asks gets a `Ticket` at once and waits for its future. A ticket that was cancelled leaves the queue, or its row
is given up. What the engine raises ends the requests that it was busy with, in its own words, and it goes on with the
next ones.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from dlmbench.engine import Engine, Generation, Request
from dlmbench.engine.request import Arrivals
from dlmbench.errors import DlmbenchError, RequestError, RunError

REFILL = 0.2  # of a step: how long the engine waits at most for who was just answered to ask again ...
MOMENT = 0.01  # ... and in seconds


class Full(DlmbenchError):
    """The queue is full; `seconds` is when it is worth while to ask again."""

    def __init__(self, queue: int, seconds: int):
        super().__init__(f"The queue of {queue} requests is full; ask again in {seconds} s.")
        self.seconds = seconds


class Stopping(DlmbenchError):
    """The server is stopping."""

    def __init__(self) -> None:
        super().__init__("The server is stopping; this request was not answered.")


@dataclass(frozen=True)
class Limits:
    """What a server takes."""

    max_tokens: int = 256
    """Tokens of an answer, and what a request gets that names no number."""
    max_length: int = 2048
    """Positions of prompt and answer together."""
    queue: int = 64
    """Requests that wait while all rows are busy."""
    seconds: float = 600.0
    """From arrival to answer."""
    body_bytes: int = 4 << 20
    """Size of a request's body."""


@dataclass
class Ticket:
    """A request on its way."""

    number: int
    request: Request
    on_block: Callable[[list[int]], None] | None = None  # called on the engine's thread
    future: Future[Generation] = field(default_factory=Future)


class EngineWorker:
    """Owns the engine's thread. Thread-safe."""

    def __init__(self, engine: Engine, limits: Limits):
        self.engine, self.limits = engine, limits
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._busy: dict[int, Ticket] = {}
        self._unwanted: set[int] = set()  # of those that are busy
        self._numbers = itertools.count()
        self._stopping = False
        self._mean_seconds = 1.0  # of the last answers, for who has to come back
        self._answered = 0  # since the engine last asked for requests, which was ...
        self._asked = 0.0  # ... then
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # --- who asks ---------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], on_block: Callable[[list[int]], None] | None = None) -> list[Ticket]:
        """A ticket for each, or for none of them. `on_block` hears of the finished blocks of requests that stream, with
        all tokens up to the end of the last one, on the engine's thread.

        Raises RequestError for what is not decoded here, Full, and Stopping.
        """
        if len(requests) > self.limits.queue:
            raise RequestError(f"{len(requests)} prompts come at once, and at most {self.limits.queue} wait here.")
        for request in requests:
            self.engine.check(request, self.limits.max_length, self.limits.max_tokens)
        with self._changed:
            if self._stopping:
                raise Stopping
            room = self.limits.queue + max(0, self.engine.batch_size - len(self._busy))
            if len(self._waiting) + len(requests) > room:
                raise Full(self.limits.queue, max(1, round(self._mean_seconds)))
            tickets = [Ticket(next(self._numbers), request, on_block) for request in requests]
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more."""
        with self._changed:
            numbers = {ticket.number for ticket in tickets}
            self._waiting = deque(ticket for ticket in self._waiting if ticket.number not in numbers)
            self._unwanted |= numbers & self._busy.keys()
        for ticket in tickets:
            ticket.future.cancel()

    def stop(self, seconds: float) -> None:
        """Take nothing more and refuse what waits; rows under way have so many seconds to finish. Returns when all
        are answered; may be called again."""
        with self._changed:
            self._stopping = True
            refused, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        _fail(refused, Stopping())
        until = time.monotonic() + seconds
        with self._changed:
            while self._busy and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            late = list(self._busy.values())
            self._unwanted |= self._busy.keys()
            self._busy.clear()
        _fail(late, Stopping())
        if self._thread.is_alive():
            self._thread.join(1.0)  # a step may take longer; the thread does not hold the process

    # --- the engine's thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            try:
                self.engine.serve(
                    self._source, self._finish, max_length=self.limits.max_length, max_tokens=self.limits.max_tokens,
                    on_block=self._tell,
                )  # fmt: skip
                return  # the source has ended it
            except Exception as error:
                wrong = error if isinstance(error, DlmbenchError) else RunError(f"{type(error).__name__}: {error}")
            with self._changed:
                lost, self._busy, self._unwanted = list(self._busy.values()), {}, set()
                self._changed.notify_all()
            _fail(lost, wrong)
            self.engine.release()

    def _source(self, free: int, idle: bool) -> Arrivals:
        with self._changed:
            self._wait_for_next()
            while idle and not self._waiting and not self._stopping:
                self._changed.wait()
            come = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            unwanted, self._unwanted = self._unwanted, set()
            for number in unwanted:
                self._busy.pop(number, None)
            self._busy.update((ticket.number, ticket) for ticket in come)
            if unwanted:
                self._changed.notify_all()
        return Arrivals([(ticket.number, ticket.request) for ticket in come], unwanted)

    def _wait_for_next(self) -> None:
        """Whoever was just answered may ask again: a moment keeps a slot from a step without a row."""
        now = time.monotonic()
        until = now + min(REFILL * (now - self._asked), MOMENT)
        while len(self._waiting) < self._answered and not self._stopping:
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                break
        self._answered, self._asked = 0, time.monotonic()

    def _tell(self, number: int, ids: list[int]) -> None:
        with self._changed:
            ticket = self._busy.get(number)
        if ticket and ticket.on_block:
            ticket.on_block(ids)

    def _finish(self, number: int, generation: Generation) -> None:
        with self._changed:
            ticket = self._busy.pop(number, None)
            self._answered += 1
            self._mean_seconds += 0.2 * (generation.seconds - self._mean_seconds)
            self._changed.notify_all()
        if ticket and ticket.future.set_running_or_notify_cancel():
            ticket.future.set_result(generation)


def _fail(tickets: Sequence[Ticket], error: Exception) -> None:
    for ticket in tickets:
        if ticket.future.set_running_or_notify_cancel():
            ticket.future.set_exception(error)
