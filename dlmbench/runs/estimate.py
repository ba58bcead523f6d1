"""What a list of runs will take here, from trying each of them on a few items.

A trial decodes the items of the speed pass, as the run will, and is measured: seconds and forwards an item, bytes of
its samples. Trials share a budget of seconds. Where a trial of whole answers would not fit, answers are cut and what
was seen is carried to the full length, an upper limit; runs for which no time is left are taken like the nearest
setting of their method that was tried.

    seconds of a run = loading + items x seconds an item + speed pass + recorded items + new prices

Left out: several workers (it is the time on this machine, one run after another), and the tables at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmbench.forwards import ForwardKey
from dlmbench.request import ResolvedRun, canonical
from dlmbench.runs.local import SPEED_LEAST, SPEED_REPEATS, SPEED_ROUNDS, LocalRunner
from dlmbench.runs.preflight import Need, Needs, memory_bytes
from dlmbench.runs.prices import PriceList
from dlmbench.runs.record import plain
from dlmbench.runs.runner import Run, sample_of

if TYPE_CHECKING:
    from dlmbench.tasks.base import Item

BUDGET = 30.0  # seconds of trials for a whole plan
_PEEK = 8  # tokens of the first look, which tells how long a forward takes
_FAIR = 4  # no trial takes more than this share of the time that is left
_PRICE_CALLS = 44  # forwards that the price of one shape takes, in turns with plain ones ...
_PRICE_LEAST, _PRICE_MOST = 0.1, 2.0  # ... and the seconds that it takes at least, and at most ...
_PRICE_FEWEST = 14  # ... but for so many forwards


@dataclass(frozen=True)
class Trial:
    """What a few items of a run showed."""

    items: int
    seconds: float  # an item, scored
    forwards: float  # an item: target, helpers and prefills
    bytes: float  # of an item's sample
    shapes: frozenset[ForwardKey]
    forward: float  # seconds of a round of the batch
    bound: bool  # answers were cut: seconds and forwards are an upper limit


@dataclass
class Planned:
    """One run of a plan; `items` is None when its data are not here."""

    resolved: ResolvedRun
    items: int | None
    done: int = 0
    finished: bool = False
    folder: str | None = None
    missing: list[Need] = field(default_factory=list)
    run: Run | None = None
    trial: Trial | None = None
    borrowed: bool = False  # the trial is another setting's
    seconds: float = 0.0

    @property
    def open(self) -> Run:
        """The run of one that lacks nothing."""
        if self.run is None:
            raise ValueError(f"{self.resolved.label} lacks {', '.join(need.what for need in self.missing)}")
        return self.run

    @property
    def todo(self) -> int:
        return (self.items or 0) - self.done


@dataclass(frozen=True)
class CostEstimate:
    """Of all runs of a plan that can be tried."""

    seconds: float
    forwards: float
    memory_bytes: int
    results_bytes: float
    tried: int
    runs: int  # unfinished, and not missing anything
    bound: bool
    spent: float  # seconds of trying


def plan(runs: Sequence[ResolvedRun], local: LocalRunner, needs: Needs) -> list[Planned]:
    """Every run with its items, what is in the store, and what is missing. Runs nothing, fetches no weights."""
    planned = []
    for resolved in runs:
        missing = needs.missing(resolved)
        if missing:
            planned.append(Planned(resolved, needs.items(resolved), missing=missing))
            continue
        run = local.catalog.run(resolved)
        done = len(run.folder.samples)
        planned.append(Planned(resolved, len(run.items), done, run.folder.finished, run.folder.name, run=run))
    return planned


def estimate(planned: Sequence[Planned], local: LocalRunner, budget: float = BUDGET) -> CostEstimate:
    """Try what is left to do; fills `trial` and `seconds` of the runs."""
    open_runs = [one for one in planned if one.run and not one.finished]
    began = time.monotonic()
    loads: dict[str, float] = {}
    for one in _one_of_each_method_first(open_runs):
        left = budget - (time.monotonic() - began - sum(loads.values()))
        if left > 0 and one.items:
            one.trial = _try(one.open, local, left / _FAIR, loads)
    for number, one in enumerate(open_runs):
        if one.trial is None:
            one.trial, one.borrowed = _nearest(open_runs, number), True
    _add_up(open_runs, local, loads)
    tried = [(one, one.trial) for one in open_runs if one.trial]
    return CostEstimate(
        seconds=sum(one.seconds for one, _ in tried),
        forwards=sum(one.todo * trial.forwards for one, trial in tried),
        memory_bytes=max((memory_bytes(one.resolved, one.open.task) or 0 for one, _ in tried), default=0),
        results_bytes=sum(one.todo * trial.bytes for one, trial in tried),
        tried=sum(not one.borrowed for one, _ in tried),
        runs=len(open_runs),
        bound=any(trial.bound for _, trial in tried),
        spent=time.monotonic() - began,
    )


def _one_of_each_method_first(runs: Sequence[Planned]) -> Iterator[Planned]:
    """All runs, so ordered that methods, models and tasks come up early: if time runs out, each has been seen."""
    rounds: list[list[Planned]] = []
    seen: dict[str, int] = {}
    for one in runs:
        number = seen[_method(one)] = seen.get(_method(one), -1) + 1
        rounds += [[]] * (number + 1 - len(rounds))
        rounds[number] = [*rounds[number], one]
    return (one for group in rounds for one in group)


def _method(one: Planned) -> str:
    spec = one.resolved.spec
    return canonical([spec.task, spec.model, spec.method, spec.batch_size])


def _nearest(runs: Sequence[Planned], number: int) -> Trial | None:
    """The trial of the nearest setting: of the same method, else of the same task, else of any."""
    one = runs[number]
    by_distance = sorted(range(len(runs)), key=lambda other: abs(other - number))
    tried = [runs[other] for other in by_distance if runs[other].trial and not runs[other].borrowed]
    same_task = [other for other in tried if other.resolved.spec.task == one.resolved.spec.task]
    same = [other for other in same_task if _method(other) == _method(one)]
    return next((other.trial for other in (*same, *same_task, *tried)), None)


def _try(run: Run, local: LocalRunner, allowed: float, loads: dict[str, float]) -> Trial:
    """Decode a few items within about `allowed` seconds; loading is measured apart, in `loads`."""
    began = time.monotonic()
    engine = local.catalog.loaders.build(run.resolved)
    loads.setdefault(canonical(run.identity["weights"]), time.monotonic() - began)
    items, tokens = _affordable(run, engine, allowed)
    engine.shapes.clear()
    began = time.monotonic()
    shorter = [replace(item, max_tokens=tokens) for item in items]
    found = run.task.evaluate(engine, shorter, seed=run.resolved.spec.seed)
    seconds = time.monotonic() - began
    more, slower = _growth(run, engine, tokens, [generation for _, generation, _ in found])
    calls = sum(sum(generation.forward_counts.values()) for _, generation, _ in found)
    return Trial(
        items=len(items),
        seconds=more * slower * seconds / len(items),
        forwards=more * calls / len(items),
        bytes=more * sum(len(json.dumps(plain(sample_of(*one)))) for one in found) / len(items),
        shapes=frozenset(engine.shapes),
        forward=engine.timing.decode / max(engine.launched, 1),
        bound=more > 1,
    )


def _affordable(run: Run, engine: Any, allowed: float) -> tuple[Sequence[Item], int]:
    """The items to try and the tokens of their answers, after a look at what the first few tokens cost."""
    batch, whole = run.resolved.batch_size, run.task.max_tokens
    least = max(_PEEK, run.resolved.fixed["window"] + 1) if run.resolved.fixed else _PEEK  # the marker must fit in
    least = whole if engine.needs_answers else least  # and so must the answers of an ideal model
    items = run.items[: max(SPEED_LEAST, SPEED_ROUNDS * batch)]
    peek = run.requests(engine, [replace(item, max_tokens=min(least, whole)) for item in items[:batch]])
    engine.generate(peek)
    forward = engine.timing.decode / max(engine.launched, 1)
    if forward * whole * len(items) / batch > allowed:
        items = items[:batch]
    return items, min(whole, max(int(allowed / max(forward, 1e-9)), least))


def _growth(run: Run, engine: Any, tokens: int, found: Sequence[Any]) -> tuple[float, float]:
    """(How many times more forwards whole answers take at most, how many times longer each takes.)"""
    whole = run.task.max_tokens
    if tokens == whole:
        return 1.0, 1.0
    if engine.target.config.attention != "full":
        return sum(whole / tokens if one.stop_reason == "length" else 1.0 for one in found) / len(found), 1.0
    # a forward covers the whole row, and the row is filled whatever stands in it
    prompt = len(run.requests(engine, run.items[:1])[0].prompt_ids)
    return whole / tokens, (prompt + whole) / (prompt + tokens)


def _add_up(runs: Sequence[Planned], local: LocalRunner, loads: dict[str, float]) -> None:
    """Seconds of each run; what a run leaves for the next ones (loaded weights, prices) is paid once."""
    loads, prices = dict(loads), PriceList()
    roots: set[Path] = set()
    for one in runs:
        trial, run = one.trial, one.open
        if trial is None:
            continue
        batch, items = run.resolved.batch_size, len(run.items)
        timed = SPEED_REPEATS * min(max(SPEED_LEAST, SPEED_ROUNDS * batch), items) + min(batch, items)
        timed = 0 if one.resolved.trial else timed
        recorded = 0 if local.traced(run) else min(batch, items)  # few items, in about the time of a full batch
        if run.folder.path.parent not in roots:
            prices.read(local.catalog.index(run.resolved.spec.out).runs())
            roots.add(run.folder.path.parent)
        new = trial.shapes - prices.of(run.circumstances()).keys()
        prices.add(run.circumstances(), dict.fromkeys(new, 1.0), None)
        one.seconds = (
            loads.pop(canonical(run.identity["weights"]), 0.0)
            + (one.todo + timed + recorded) * trial.seconds
            + len(new) * _price_seconds(trial.forward)
        )


def _price_seconds(forward: float) -> float:
    """What the price of one shape takes, where a forward takes so long."""
    return max(min(_PRICE_CALLS * forward, _PRICE_MOST), _PRICE_FEWEST * forward, _PRICE_LEAST)
