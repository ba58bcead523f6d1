"""Makes runs whose answers a server gives, and leaves the same run folders behind as a run in process.

For each: the server is asked what it is, which together with the request is the run's key; the missing items are asked,
so many at a time, and scored as they come; then some of them are asked again, in passes that are timed. Whatever is
wrong with an answer ends the run with the server's sentence: nothing that failed is scored, and the same command goes
on where it stopped. Tokens are useful ones, up to the first EOS or stop string, counted by the tokenizer of
``--model``; the engine's own count stands beside them.

Left out: prices, recorded steps, and everything else that needs to look into a server.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from dlmbench.engine.build import END_TOKENS, tokenizer_alone
from dlmbench.engine.prompts import prompt_ids
from dlmbench.engine.text import Text, Tokenizer
from dlmbench.errors import RequestError, RunError
from dlmbench.files import tell
from dlmbench.request import ResolvedRun
from dlmbench.request.served import ServedRun
from dlmbench.runs.aggregate import aggregate
from dlmbench.runs.environment import commit, versions
from dlmbench.runs.folder import RunFolder, Writer, prompt_hash
from dlmbench.runs.local import MECHANISM_ONLY, SPEED_LEAST, SPEED_REPEATS, check_whole
from dlmbench.runs.record import UNTOLD, Environment, Manifest, Rate, RequestTimes, Sample, Speed
from dlmbench.runs.runner import (
    Catalog,
    Loaders,
    NoProgress,
    Progress,
    Run,
    run_each,
    with_history,
)
from dlmbench.serve.apis import Ask, BadReply, Reply
from dlmbench.serve.client import Client, Timed
from dlmbench.stats import spread
from dlmbench.tasks.base import Item
from dlmbench.tasks.evaluate import item_seed
from dlmbench.tasks.task import Task

ROUNDS = 4  # a timed pass takes so many items for each request under way ...
WARM = 2  # ... after a warm-up of so many
SLACK = 8  # a text may have one token in so many more than were counted: engines do not spell it as we do


def connect(run: ServedRun) -> Client:
    """A client of the run's server."""
    return Client(run.spec.server or "", run.spec.api or "", run.spec.model)


class ServedRunner:
    """The runner of servers. One instance keeps tasks loaded between its runs."""

    def __init__(
        self, loaders: Loaders | None = None, progress: Progress | None = None,
        connect: Callable[[ServedRun], Client] = connect,
    ):  # fmt: skip
        self.catalog = Catalog(loaders)
        self.progress = progress or NoProgress()
        self.connect = connect

    def run(self, runs: Iterable[ResolvedRun]) -> list[RunFolder]:
        """Make or resume every run; the finished folders, in their order. Raises RunError as `run_each`."""
        return run_each(list(runs), self.run_one)

    def run_one(self, resolved: ResolvedRun) -> RunFolder:
        """Make or resume one run; nothing is asked but what the server is when it is finished."""
        if not isinstance(resolved, ServedRun):
            raise RequestError(f"{resolved.label} runs here and others on a server: make them in two commands.")
        with self.connect(resolved) as client:
            facts = replace(client.about(), stated=resolved.spec.server_flags)
            run = self.catalog.run(replace(resolved, server=facts))
            if run.folder.finished:
                self.progress.kept()
                return run.folder
            self._check_begun(run)
            for note in saturation(run):
                tell(f"note    {note}")
            with run.folder.writing() as writer:
                if not run.folder.finished:  # another process may have finished it meanwhile
                    self._work(run, client, writer)
        return run.folder

    def _check_begun(self, run: Run) -> None:
        """Raises RunError where the same request was begun with a server that told something else, or told it
        otherwise, so that its answers would have two authors."""
        ours = run.manifest(_environment(run))
        for other in self.catalog.index(run.resolved.spec.out).runs():
            theirs = other.manifest if other.begun and not other.finished else None
            if theirs is None or theirs.key == run.key or _asked(theirs) != _asked(ours):
                continue
            assert theirs.server is not None and ours.server is not None  # they asked the same
            changed = ", ".join(theirs.server.changes(ours.server))
            raise RunError(
                f"{other.name} was begun with another server ({changed} changed): start that one again to finish it, "
                "or remove the folder, or choose another --out."
            )

    # --- one run ------------------------------------------------------------------------------------------------------

    def _work(self, run: Run, client: Client, writer: Writer) -> None:
        """Everything from the first missing item to the aggregates."""
        done = len(run.folder.samples)
        before = run.folder.manifest if run.folder.begun else None
        manifest = with_history(run.manifest(_environment(run)), before, done)
        writer.manifest(manifest)
        self.progress.begin(run.title, done, len(run.items))
        reader = Reader(run.task, run.resolved)
        client.try_out(reader.ask(run.items[0]))
        if client.withheld:
            tell(f"note    the server takes no {' and no '.join(client.withheld)}: it decodes by its own default.")
        self._answer(run, client, reader, writer)
        client.check_same()
        check_whole(run)
        self.progress.stage("timing")
        speed = self._speed(run, client, reader)
        client.check_same()
        unknown = ", the server's temperature" if "temperature" in client.withheld else ""
        writer.manifest(
            replace(manifest, label=f"{manifest.label}{unknown}", model={"withheld": list(client.withheld)})
        )
        run.keep_prompts()
        writer.metrics(aggregate(run.folder.samples, None, speed))
        self.progress.end()

    def _answer(self, run: Run, client: Client, reader: Reader, writer: Writer) -> None:
        """Ask the missing items; each is scored and written on the thread that got it, one at a time."""
        items = run.missing
        asks = [reader.ask(item) for item in items]
        writing = threading.Lock()

        def keep(number: int, answer: Timed) -> None:
            item, read = items[number], self._read(client, reader, asks[number], answer.reply)
            scores = run.task.score(item, read.text)
            with writing:
                writer.sample(sample_of(item, answer, read, scores))
                self.progress.advance()

        client.ask_all(asks, run.resolved.batch_size, keep)

    def _read(self, client: Client, reader: Reader, ask: Ask, reply: Reply) -> Read:
        try:
            return reader.read(ask, reply)
        except BadReply as error:
            raise client.useless(str(error)) from error

    # --- speed --------------------------------------------------------------------------------------------------------

    def _speed(self, run: Run, client: Client, reader: Reader) -> Speed:
        """Passes over the first items in random order, each after a warm-up on the last ones; nothing is stored."""
        concurrency, rate = run.resolved.batch_size, run.resolved.spec.rate
        subset = list(run.items[: max(SPEED_LEAST, ROUNDS * concurrency)])
        asks = [reader.ask(item) for item in subset]
        warm = [reader.ask(item) for item in run.items[-WARM * concurrency :]]
        stored = {sample.key: sample.ids for sample in run.folder.samples}
        passes: list[Pass] = []
        cache, same = UNTOLD, 0
        for repeat in range(SPEED_REPEATS):
            cache = prefix_cache(run, client)
            client.ask_all(warm, concurrency, stream=True)
            chance = random.Random(repeat)
            order = chance.sample(range(len(asks)), len(asks))
            after = list(accumulate(chance.expovariate(rate) for _ in order)) if rate else None
            began = time.perf_counter()
            answers = client.ask_all(
                [asks[number] for number in order], len(asks) if rate else concurrency, stream=True, after=after
            )
            seconds = time.perf_counter() - began
            reads = [self._read(client, reader, asks[n], one.reply) for n, one in zip(order, answers)]
            passes.append(Pass(seconds, answers, sum(read.tokens for read in reads)))
            same = sum(read.ids == stored[subset[n].key] for n, read in zip(order, reads))
        nano = run.resolved.preset.source.startswith("nano/")
        labels = [*saturation(run), *([MECHANISM_ONLY] if nano else [])]
        return Speed(
            items=len(subset),
            repeats=SPEED_REPEATS,
            same_ids=same,
            decode=None,
            end_to_end=Rate(*spread([one.tokens / one.seconds for one in passes])),
            label="; ".join(labels) or None,
            requests=request_times(passes, cache, rate, run.resolved.spec.slo),
        )


@dataclass(frozen=True)
class Pass:
    """A timed pass: its seconds, its answers and their useful tokens."""

    seconds: float
    answers: Sequence[Timed]
    tokens: int


def request_times(passes: Sequence[Pass], cache: str, rate: float | None, slo: float | None) -> RequestTimes:
    """Of all passes together."""
    answers = [answer for one in passes for answer in one.answers]
    p50, p95, p99 = map(float, np.quantile([answer.seconds for answer in answers], (0.5, 0.95, 0.99)))
    first = [answer.first - answer.began for answer in answers if answer.first is not None]
    good = sum(answer.seconds <= slo for answer in answers) / sum(one.seconds for one in passes) if slo else None
    return RequestTimes(p50, p95, p99, cache, float(np.median(first)) if first else None, rate, slo, good)


# --- an answer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """What an answer is worth: see `dlmbench.runs.record.Sample`."""

    ids: list[int]
    text: str
    tokens: int
    stop_reason: str


class Reader:
    """Asks items and reads answers as the engine here would, with the tokenizer of ``--model``."""

    def __init__(self, task: Task, run: ResolvedRun, tokenizer: Tokenizer | None = None):
        self.task, self.spec = task, run.spec
        self.tokenizer = tokenizer or tokenizer_alone(run.preset)
        self.text = Text(self.tokenizer)
        self.ends = _ends(self.tokenizer, run)

    def ask(self, item: Item) -> Ask:
        """The question of an item. Seeds are sent where they may decide something: engines refuse them for nothing."""
        ids = prompt_ids(self.tokenizer, item.prompt, self.task.chat_template)
        draws = self.spec.temperature > 0 or self.spec.api == "dlmbench"
        seed = item_seed(self.spec.seed, item.key) if draws else None
        return Ask(item.prompt, ids, item.max_tokens, item.stop, seed, self.spec.temperature)

    def read(self, ask: Ask, reply: Reply) -> Read:
        """Raises BadReply where text, ids and the count of tokens do not fit together."""
        return self._by_ids(ask, reply, list(reply.ids)) if reply.ids is not None else self._by_text(reply)

    def _by_ids(self, ask: Ask, reply: Reply, ids: list[int]) -> Read:
        """Our own text of the ids, which the server's must be; our own server says the rest itself."""
        told = ids
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        ids = ids if end is None else ids[: end + 1]
        text, tokens, stopped = self.text.cut(ids, ask.stop, ask.prompt_ids)
        ours, theirs = _squeezed(text), _squeezed(self.text.plain(reply.text))
        if not (ours.startswith(theirs) or theirs.startswith(ours)) or bool(ours) != bool(theirs):
            raise BadReply(f"its text {theirs[:40]!r} is not that of its ids {ours[:40]!r}")
        if reply.counted:
            return Read(told, reply.text, reply.report.tokens, reply.ended)
        if stopped and (end is None or tokens <= end):
            return Read(ids, text, tokens, "stop")
        return Read(ids, text, tokens, "length" if end is None and reply.cut_off else "eos")

    def _by_text(self, reply: Reply) -> Read:
        """The text up to an EOS that was left in it; the token that ended it is one more."""
        words = [self.tokenizer.decode([end]) for end in self.ends]
        places = [place for word in words if word and (place := reply.text.find(word)) >= 0]
        text = self.text.plain(reply.text[: min(places, default=None)])
        ids = list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []
        told, ended = reply.report.tokens, bool(places) or not reply.cut_off
        if len(ids) > told + 1 + told // SLACK:
            raise BadReply(f"{told} tokens are counted and its text has {len(ids)}")
        return Read(ids, text, len(ids) + ended, "stop" if ended else "length")


def sample_of(item: Item, answer: Timed, read: Read, scores: dict[str, float | bool | str]) -> Sample:
    """What is kept of an item; counts are empty where the server tells none."""
    counted = answer.reply.counted
    return Sample(
        key=item.key,
        prompt_hash=prompt_hash(item.prompt),
        ids=read.ids,
        text=read.text,
        scores=dict(scores),
        counts=counted.counts if counted else {},
        forwards=counted.forwards if counted else {},
        tokens=read.tokens,
        seconds=round(answer.seconds, 6),
        stop_reason=read.stop_reason,
        fallbacks=counted.fallbacks if counted else 0,
        proposed=counted.proposed if counted else 0,
        accepted=counted.accepted if counted else [],
        report=answer.reply.report,
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _ends(tokenizer: Tokenizer, run: ResolvedRun) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's EOS, its special tokens that say so, and those of ``--end-ids``."""
    special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = {special.get(word) for word in END_TOKENS} | {tokenizer.eos_token_id}
    return frozenset({*(id for id in found if id is not None), *(run.spec.end_ids or ())})


# --- the server -----------------------------------------------------------------------------------------------------


def saturation(run: Run) -> list[str]:
    """Does the server take fewer requests at a time than it gets?"""
    assert isinstance(run.resolved, ServedRun)
    flags, asked = run.resolved.facts.flags, run.resolved.batch_size
    found = [flags.get("max_running_requests"), flags.get("batch_size")]
    takes = next((number for number in found if isinstance(number, int)), asked)
    if takes >= asked:
        return []
    return [f"the server decodes {takes} request{'s' * (takes > 1)} at a time, so of {asked} at once the others wait"]


def prefix_cache(run: Run, client: Client) -> str:
    """The state of the server's prefix cache before a pass, emptied where that can be done."""
    assert isinstance(run.resolved, ServedRun)
    if run.resolved.facts.api == "dlmbench" or run.resolved.facts.flags.get("disable_radix_cache") is True:
        return "off"
    return "flushed" if client.flush() else UNTOLD


def _asked(manifest: Manifest) -> object:
    """What was asked of a server, whatever it told of itself; None in a run without one."""
    if manifest.server is None:
        return None
    told = {name: value for name, value in manifest.identity.items() if name not in ("server", "weights")}
    return told, manifest.server.api, manifest.server.stated


def _environment(run: Run) -> Environment:
    """The client's versions; the device is the server's, where it tells it, or the user does."""
    assert isinstance(run.resolved, ServedRun)
    facts = run.resolved.facts
    processor = facts.flags.get("processor") or facts.said("hardware")
    return Environment(str(processor or UNTOLD), None, versions(), commit())
