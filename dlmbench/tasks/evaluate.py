"""A task's items through an engine: requests, and `evaluate`, which streams scored items while the engine works."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from dlmbench.engine import Request
from dlmbench.engine.prompts import prompt_ids
from dlmbench.oracle.answers import answers_of
from dlmbench.tasks.base import Item

if TYPE_CHECKING:
    from dlmbench.engine import Engine, Generation
    from dlmbench.tasks.task import Task

Scores = dict[str, float | bool | str]
Listener: TypeAlias = "Callable[[Item, Generation, Scores], None]"


def evaluate(
    task: Task,
    engine: Engine,
    items: Iterable[Item],
    on_item: Listener | None = None,
    done: Collection[str] = (),
    *,
    seed: int = 0,
    workers: int = 2,
    keep: bool = True,
) -> list[tuple[Item, Generation, Scores]]:
    """Generate and score `items`, except those whose key is in `done`.

    `on_item` is called once an item, as soon as its score is known and before this returns, in any order and never two
    at a time; a killed run has lost only the items in flight. Programs are scored beside the engine, `workers` at a
    time, and then `on_item` runs on another thread; other answers are judged at once, on this thread.

    Returns (item, generation, scores) in the order of `items`; nothing with `keep` off, so that a long run takes no
    more memory than a short one: `on_item` alone gets them then. Whatever `on_item` or scoring raises stops the run.
    """
    wanted = [item for item in items if item.key not in done]
    by_key = {item.key: item for item in wanted}
    with _Scored(task, by_key, on_item, workers if task.is_code else 0, keep) as scored:
        requests = [request_of(task, engine, item, seed) for item in wanted]
        generations = engine.generate(requests, scored.add, keep=keep)
    return [(item, generation, scored.scores[item.key]) for item, generation in zip(wanted, generations)]


def request_of(task: Task, engine: Engine, item: Item, seed: int = 0) -> Request:
    """The engine's request for an item: it draws from a generator of its own, seeded by `seed` and its key.

    An oracle's brings all right answers [A,L]; RequestError for a task that does not list them.
    """
    ids = prompt_ids(engine.tokenizer, item.prompt, task.chat_template)
    answers = None
    if getattr(engine, "needs_answers", False):
        assert engine.tokenizer is not None
        answers = answers_of(task, item, engine.tokenizer)
    return Request(item.key, ids, item.max_tokens, tuple(item.stop), item_seed(seed, item.key), answers=answers)


class _Scored:
    """Scores generations as they come, in threads if there are workers, and delivers each result once."""

    def __init__(self, task: Task, items: Mapping[str, Item], on_item: Listener | None, workers: int, keep: bool):
        self.scores: dict[str, Scores] = {}
        self._keep = keep
        self._task, self._items, self._on_item = task, items, on_item
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._futures: list[Future] = []
        self._deliver = threading.Lock()

    def add(self, generation: Generation) -> None:
        """Take one finished generation; raises what an earlier one ran into."""
        if self._pool is None:
            return self._score(generation)
        for future in self._futures:
            if future.done():
                future.result()
        self._futures = [future for future in self._futures if not future.done()]
        self._futures.append(self._pool.submit(self._score, generation))

    def _score(self, generation: Generation) -> None:
        item = self._items[generation.key]
        scores = self._task.score(item, generation.text)
        with self._deliver:
            if self._keep:
                self.scores[item.key] = scores
            if self._on_item:
                self._on_item(item, generation, scores)

    def __enter__(self) -> _Scored:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._futures:
                future.result()


def item_seed(seed: int, key: str) -> int:
    """Seed of one item's draws: the same whatever else is in its batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:6], "big")
