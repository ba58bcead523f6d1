"""`Task`: an lm-eval task seen as items with prompts, and as a judge of answers.

Prompts, few-shot draws, filters and metrics are lm-eval's; here is what it does not have: a dev split that never meets
the test items, scoring of one answer at a time, the share of answers that could not be read, hashes for the record.

*Splits.* ``test`` is what lm-eval evaluates. ``dev`` is the validation split where there is one beside it, else the
training split, without the items that any test prompt shows as an example; dev prompts draw their examples from the
items that are left. So no dev item is ever shown, and none is in both splits.

*Few-shot draws.* lm-eval draws examples item after item from one seeded generator, so the prompt of item i follows from
the items before it. Prompts are therefore always made from the first item on.

*Scores.* ``accuracy`` is the task's primary metric (``Task.primary``), ``unparsed`` says that no answer was found. With
filters called like lm-eval's two for GSM8K ``strict`` and ``flexible`` are there too; answers that are programs have a
``verdict``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING

from dlmbench.engine.prompts import render_chat
from dlmbench.errors import RequestError, RunError
from dlmbench.tasks.base import Doc, Item
from dlmbench.tasks.code import score_program
from dlmbench.tasks.evaluate import Listener, Scores, evaluate, request_of
from dlmbench.tasks.harness import ConfigurableTask, Instance
from dlmbench.tasks.task_files import Metadata

if TYPE_CHECKING:
    from lm_eval.api.samplers import ContextSampler
    from transformers import PreTrainedTokenizerBase

    from dlmbench.engine import Engine, Generation, Request

FEWSHOT_SEED = 1234  # lm-eval's default, so that prompts equal its own
MAX_TOKENS = 256  # lm-eval's default for tasks that name none
SPLITS = ("test", "dev")
_BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SHORT = {"strict-match": "strict", "flexible-extract": "flexible"}
_NO_FILTER = "none"  # lm-eval's name for the chain of a task that names no filters
_NO_ANSWER = ("[invalid]", "")  # what lm-eval's filters return when nothing matches


class Task:
    """A task: ``items`` to ask, ``score`` to judge an answer."""

    def __init__(
        self,
        name: str,
        lm_task: ConfigurableTask,
        *,
        gen_length: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        fewshot_seed: int = FEWSHOT_SEED,
    ):
        """Wrap `lm_task`; with a `tokenizer`, prompts go through its chat template."""
        config = lm_task.config
        self.name = name
        self.lm_task = lm_task
        self.metadata: Metadata = config.metadata or {}
        self.version = str(self.metadata.get("version", lm_task.VERSION))
        self.num_fewshot: int = config.num_fewshot or 0
        own = most_tokens(config.generation_kwargs, MAX_TOKENS)
        self.max_tokens: int = gen_length or self.metadata.get("gen_length") or own
        until = config.generation_kwargs.get("until") or ()
        self.stop: tuple[str, ...] = (until,) if isinstance(until, str) else tuple(until)
        self.chat_template = tokenizer is not None
        self.primary: str = self.metadata.get("primary") or _first_metric(lm_task)
        self.is_code = "problem" in self.metadata
        self._tokenizer = tokenizer
        self._fewshot_seed = fewshot_seed
        self._items: dict[str, list[Item]] = {split: [] for split in SPLITS}
        lm_task.set_fewshot_seed(fewshot_seed)

    # ------------------------------------------------------------------------------------------------------- items

    def items(self, split: str = "test", limit: int | None = None) -> list[Item]:
        """The first `limit` items of a split (all without a limit), in the order of the data.

        Raises RequestError for a split that the task does not have.
        """
        if split not in SPLITS:
            raise RequestError(f"Split {split!r} of task {self.name} does not exist; there are {' and '.join(SPLITS)}.")
        rows = self._rows(split)
        count = len(rows) if limit is None else min(limit, len(rows))
        if len(self._items[split]) < count:
            self._items[split] = self._render(split, rows[:count])
        return self._items[split][:count]

    def size(self, split: str = "test") -> int:
        """Number of items of a split."""
        return len(self._rows(split))

    def _rows(self, split: str) -> list[tuple[int, Doc]]:
        """(index, record) of every item of a split."""
        return self._test if split == "test" else self._dev

    @cached_property
    def _test(self) -> list[tuple[int, Doc]]:
        return list(enumerate(self.lm_task.task_docs))

    @cached_property
    def _dev(self) -> list[tuple[int, Doc]]:
        name, docs = self._dev_source()
        shown = self._shown() if name == self._example_split() else set()
        rows = [(index, doc) for index, doc in enumerate(docs) if index not in shown]
        if not rows:
            raise RequestError(f"Task {self.name} has no dev items: all of its {name} split are shown as examples.")
        return rows

    def _dev_source(self) -> tuple[str, Sequence[Doc]]:
        task, config = self.lm_task, self.lm_task.config
        if task.has_test_docs() and task.has_validation_docs():
            found = config.validation_split, task.validation_docs()
        elif task.has_training_docs():
            found = config.training_split, task.training_docs()
        else:
            raise RequestError(f"Task {self.name} has no dev items; choose settings on another task.")
        if not len(found[1]):
            raise RequestError(f"Task {self.name} has no dev items; choose settings on another of its variants.")
        return found

    def _example_split(self) -> str | None:
        """The split that lm-eval draws examples from; None where the task brings a fixed list."""
        config, cfg = self.lm_task.config, self.lm_task.fewshot_cfg
        return cfg.split or (None if cfg.samples else config.training_split or config.validation_split)

    def _shown(self) -> set[int]:
        """Indices of the examples in all test prompts: lm-eval's draws, repeated on numbers."""
        if not self.num_fewshot:
            return set()
        pool = list(range(len(self.lm_task.fewshot_docs())))
        sampler = type(self.lm_task.sampler)(pool, rnd=self._fewshot_seed)
        return {index for _ in self._test for index in sampler.sample(self.num_fewshot)}

    def _render(self, split: str, rows: Sequence[tuple[int, Doc]]) -> list[Item]:
        task, usual = self.lm_task, self.lm_task.sampler
        try:
            if split == "dev" and self.num_fewshot:
                task.sampler = self._dev_sampler()
            task.set_fewshot_seed(self._fewshot_seed)
            items = [self._item(split, index, doc) for index, doc in rows]
        finally:
            task.sampler = usual
        if len({item.key for item in items}) < len(items):
            field = self.metadata.get("key")
            raise RequestError(f"Task {self.name} has two items with the same {field}; give each its own.")
        return items

    def _dev_sampler(self) -> ContextSampler:
        """Draws from what is left of the examples when the dev items are taken out."""
        task = self.lm_task
        pool = list(task.fewshot_docs())
        if self._example_split() == self._dev_source()[0]:
            asked = {index for index, _ in self._dev}
            pool = [doc for index, doc in enumerate(pool) if index not in asked]
            if len(pool) < self.num_fewshot:
                raise RequestError(
                    f"Task {self.name} has too few items for {self.num_fewshot} examples beside its dev items; "
                    "use --num-fewshot 0."
                )
        return type(task.sampler)(pool, rnd=self._fewshot_seed)

    def _item(self, split: str, index: int, doc: Doc) -> Item:
        try:
            prompt = self.lm_task.fewshot_context(
                doc,
                num_fewshot=self.num_fewshot,
                apply_chat_template=self.chat_template,
                fewshot_as_multiturn=self.chat_template and not self.metadata.get("one_turn"),
                chat_template=self._chat if self.chat_template else None,
                gen_prefix=self.lm_task.doc_to_prefix(doc),
            )
        except RequestError:
            raise
        except Exception as error:  # the task's template or function meets a record that it was not written for
            raise RequestError(
                f"Item {index + 1} of the {split} items of task {self.name} does not fit the task's prompt "
                f"({' '.join(str(error).split())[:120]}); its record needs what the other items have."
            ) from error
        field = self.metadata.get("key")
        key = str(doc[field]) if field else f"{split}/{index}"
        return Item(key, prompt, self.stop, self.max_tokens, doc)

    def _chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        options = self.metadata.get("template") or {}
        return render_chat(self._tokenizer, messages, add_generation_prompt, **options)

    # ----------------------------------------------------------------------------------------------------- scoring

    def requests(self, engine: Engine, items: Iterable[Item], seed: int = 0) -> list[Request]:
        """The engine's requests for some items; see `dlmbench.tasks.evaluate.request_of`."""
        return [request_of(self, engine, item, seed) for item in items]

    def evaluate(
        self, engine: Engine, items: Iterable[Item], on_item: Listener | None = None, seed: int = 0, keep: bool = True
    ) -> list[tuple[Item, Generation, Scores]]:
        """Generate and score some items; see `dlmbench.tasks.evaluate.evaluate`."""
        return evaluate(self, engine, items, on_item, seed=seed, keep=keep)

    def score(self, item: Item, text: str) -> Scores:
        """Judge one answer: accuracy, unparsed, and what the task adds (see the head of this file)."""
        responses = self._filtered(item, text)
        if self.is_code:
            problem, program = self.metadata["problem"], self.metadata["program"]
            answer = str(responses[self.primary.partition(",")[2]])
            return score_program(problem(item.doc), program(item.doc, answer), answer)
        values = {
            f"{metric},{name}": value
            for name, response in responses.items()
            for metric, value in self.lm_task.process_results(item.doc, [response]).items()
        }
        unparsed = self.metadata.get("unparsed")
        main = responses[self.primary.partition(",")[2]]
        return {
            "accuracy": self._accuracy(values),
            "unparsed": bool(unparsed(item.doc, text)) if unparsed else _is_empty(main),
            **{self._label(name): float(value) for name, value in values.items() if self._stands_beside(name, value)},
        }

    def target(self, item: Item) -> str:
        """What the data give as the right answer, as text: a worked solution, a number, or the tests of a program."""
        return str(self.lm_task.doc_to_target(item.doc))

    def answers(self, item: Item) -> list[str]:
        """Texts of all right answers. Raises RequestError for a task that does not list them."""
        if "answers" not in self.metadata:
            raise RequestError(
                f"Task {self.name} does not list its right answers, which --model oracle is made of: take a stress "
                "task (stress-shuffle), nano-gsm-orders, or another --model."
            )
        return self.metadata["answers"](item.doc)

    def score_many(self, answers: Iterable[tuple[Item, str]], workers: int = 2) -> list[Scores]:
        """Judge many answers, programs in `workers` sandboxes at a time; results in the order of the answers."""
        if not self.is_code:
            return [self.score(item, text) for item, text in answers]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda answer: self.score(*answer), answers))

    def _filtered(self, item: Item, text: str) -> dict[str, object]:
        """What each of lm-eval's filter chains makes of one answer."""
        instance = Instance("generate_until", item.doc, (item.prompt, {}), 0, resps=[text])
        for chain in self.lm_task._filters:
            chain.apply([instance])
        return instance.filtered_resps

    def _stands_beside(self, name: str, value: object) -> bool:
        """Is this a number to show beside `accuracy`? The primary one only if it has a short name of its own."""
        return isinstance(value, Real) and (name != self.primary or self._label(name) != name)

    def _label(self, name: str) -> str:
        metric, _, chain = name.partition(",")
        if chain in _SHORT and metric == self.primary.partition(",")[0]:
            return _SHORT[chain]
        return metric if chain == _NO_FILTER else name

    def _accuracy(self, values: Mapping[str, object]) -> float:
        value = values.get(self.primary)
        if not isinstance(value, Real):
            raise RunError(
                f"Task {self.name} gives no number for {self.primary} of a single item ({type(value).__name__}): "
                "its metric exists only over all items, which dlmbench does not report."
            )
        return float(value)

    # ------------------------------------------------------------------------------------------------------ hashes

    @cached_property
    def content_hash(self) -> str:
        """Hash of all records of all splits that the task uses."""
        config = self.lm_task.config
        used = {config.test_split, config.validation_split, config.training_split, self.lm_task.fewshot_cfg.split}
        digest = hashlib.sha256()
        for split in sorted(name for name in used if name):
            digest.update(split.encode())
            for row in self.lm_task.dataset[split]:
                digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]

    def prompt_hash(self, split: str = "test", limit: int | None = None) -> str:
        """Hash of the prompts, stop strings and keys of the first `limit` items (all without a limit) of a split."""
        digest = hashlib.sha256()
        for item in self.items(split, limit):
            digest.update(json.dumps([item.key, item.prompt, item.stop]).encode())
        return digest.hexdigest()[:16]


def most_tokens(settings: Metadata, default: int) -> int:
    """The budget in `generation_kwargs` under any name that lm-eval reads, in its order; `default` without one."""
    return next((int(settings[name]) for name in _BUDGETS if settings.get(name) is not None), default)


def _first_metric(task: ConfigurableTask) -> str:
    """ "metric,filter" of a task that names none: lm-eval's first of each."""
    return f"{next(iter(task.aggregation()))},{task._filters[0].name}"


def _is_empty(response: object) -> bool:
    if isinstance(response, list | tuple):  # a chain that keeps all matches
        return all(map(_is_empty, response))
    return isinstance(response, str) and response.strip() in _NO_ANSWER
