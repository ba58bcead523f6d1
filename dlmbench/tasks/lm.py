"""The engine as an lm-eval model, and `evaluate`, which streams scored items while the engine works.

Either way every prompt goes through `EngineLM.run`, which hands all requests to the engine at once (the engine fills
its slots from the queue) and keeps each `Generation`, so that counts and times per item survive lm-eval's interface,
which wants text only.

    lm_eval.simple_evaluate(model=EngineLM(engine), tasks=[task.lm_task])      # lm-eval drives
    evaluate(task, engine, task.items(), on_item=print)                         # dlmbench drives, item by item

lm-eval's ``temperature``, ``do_sample`` and the like are not read: how tokens are chosen is what dlmbench compares, and
the engine's settings decide it. Left out: log-likelihoods, which a block-diffusion decoder does not have.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from dlmbench.engine import Request
from dlmbench.engine.prompts import prompt_ids, render_chat
from dlmbench.errors import RequestError
from dlmbench.oracle.answers import answers_of
from dlmbench.tasks.base import Item
from dlmbench.tasks.task import MAX_TOKENS, Task, most_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from dlmbench.engine import Engine, Generation

Scores = dict[str, float | bool | str]


class EngineLM(LM):
    """An engine behind lm-eval's model interface; ``generations`` keeps what the engine returned, by request key."""

    def __init__(self, engine: Engine, *, max_tokens: int = MAX_TOKENS, chat_template: bool = False, seed: int = 0):
        """Wrap `engine`.

        Args:
            engine: anything with ``tokenizer`` and ``generate(requests, on_finish)``.
            max_tokens: budget of requests that name none (``max_gen_toks``).
            chat_template: prompts come with chat markup, special tokens included, so none are added.
            seed: every request draws from a generator of its own, seeded by this and its key.
        """
        super().__init__()
        self.engine = engine
        self.max_tokens = max_tokens
        self.templated = chat_template
        self.seed = seed
        self.generations: dict[str, Generation] = {}

    def request(
        self, key: str, prompt: str, stop: Iterable[str], max_tokens: int, answers: Tensor | None = None
    ) -> Request:
        """The engine's request for one prompt; with the ids of all right `answers` [A,L] for an oracle."""
        ids = prompt_ids(self.engine.tokenizer, prompt, self.templated)
        return Request(key, ids, max_tokens, tuple(stop), item_seed(self.seed, key), answers=answers)

    def request_of(self, task: Task, item: Item) -> Request:
        """The engine's request for an item; an oracle's brings all right answers, and RequestError says which tasks
        do not list them."""
        answers = None
        if getattr(self.engine, "needs_answers", False):
            assert self.engine.tokenizer is not None
            answers = answers_of(task, item, self.engine.tokenizer)
        return self.request(item.key, item.prompt, item.stop, item.max_tokens, answers)

    def run(
        self, requests: Sequence[Request], on_finish: Callable[[Generation], None] | None = None
    ) -> list[Generation]:
        """Decode all requests; `on_finish` hears of each as it finishes. Results in the order of the requests."""

        def keep(generation: Generation) -> None:
            self.generations[generation.key] = generation
            if on_finish:
                on_finish(generation)

        return self.engine.generate(requests, keep)

    # lm-eval's interface

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One text a request, cut before its first stop string."""
        wanted = []
        repeats: dict[tuple[str | None, int | None], int] = {}
        for instance in requests:
            prompt, settings = instance.args[:2]
            place = instance.task_name, instance.doc_id
            repeats[place] = repeats.get(place, -1) + 1
            until = settings.get("until") or ()
            stop = (until,) if isinstance(until, str) else until
            key = "/".join(map(str, (*place, repeats[place])))
            wanted.append(self.request(key, prompt, stop, most_tokens(settings, self.max_tokens)))
        return [generation.text for generation in self.run(wanted)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """`chat_history` in the tokenizer's markup; from here on prompts count as templated."""
        self.templated = True
        return render_chat(self.engine.tokenizer, chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return str(getattr(self.engine.tokenizer, "name_or_path", "")).replace("/", "__")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise _no_likelihood(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise _no_likelihood(requests)


def evaluate(
    task: Task,
    engine: Engine,
    items: Iterable[Item],
    on_item: Callable[[Item, Generation, Scores], None] | None = None,
    done: Collection[str] = (),
    *,
    seed: int = 0,
    workers: int = 2,
) -> list[tuple[Item, Generation, Scores]]:
    """Generate and score `items`, except those whose key is in `done`.

    `on_item` is called once an item, as soon as its score is known and before this returns, in any order and never two
    at a time; a killed run has lost only the items in flight. Programs are scored beside the engine, `workers` at a
    time, and then `on_item` runs on another thread; other answers are judged at once, on this thread.

    Returns (item, generation, scores) in the order of `items`. Whatever `on_item` or scoring raises stops the run.
    """
    wanted = [item for item in items if item.key not in done]
    by_key = {item.key: item for item in wanted}
    lm = EngineLM(engine, chat_template=task.chat_template, seed=seed)
    scored = _Scored(task, by_key, on_item, workers if task.is_code else 0)
    with scored:
        lm.run([lm.request_of(task, item) for item in wanted], scored.add)
    return [(item, lm.generations[item.key], scored.scores[item.key]) for item in wanted]


class _Scored:
    """Scores generations as they come, in threads if there are workers, and delivers each result once."""

    def __init__(self, task: Task, items: Mapping[str, Item], on_item: Callable[..., None] | None, workers: int):
        self.scores: dict[str, Scores] = {}
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


def _no_likelihood(requests: Sequence[Instance]) -> RequestError:
    name = requests[0].task_name if requests else "this task"
    return RequestError(
        f"Task {name} asks for log-likelihoods, which dlmbench's decoders do not give; take a generate_until task."
    )
