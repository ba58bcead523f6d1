"""What a list of cells will take here, from trying each of them on a few items.

A trial decodes the items of the speed pass, as the run will, and is measured: seconds and forwards an item, bytes of
its samples. Trials share a budget of seconds. Where a trial of whole answers would not fit, answers are cut and what
was seen is carried to the full length, an upper limit; cells for which no time is left are taken like the nearest
setting of their method that was tried.

    seconds of a cell = loading + items x seconds an item + speed pass + recorded items + new prices

Left out: several workers (it is the time on this machine, one cell after another), and the tables at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dlmbench.request import Checked, canonical
from dlmbench.runs.local import (
    SPEED_LEAST,
    SPEED_REPEATS,
    SPEED_ROUNDS,
    Job,
    Local,
    requests_of,
    sample_record,
)
from dlmbench.runs.preflight import Need, Needs, memory_bytes
from dlmbench.runs.prices import Prices

BUDGET = 30.0  # seconds of trials for a whole plan
_PEEK = 8  # tokens of the first look, which tells how long a forward takes
_FAIR = 4  # no trial takes more than this share of the time that is left
_PRICE_CALLS = 8  # forwards that the price of one shape takes
_PRICE_LEAST = 0.04  # seconds that it takes at least


@dataclass(frozen=True)
class Trial:
    """What a few items of a cell showed."""

    items: int
    seconds: float  # an item, scored
    forwards: float  # an item: target, helpers and prefills
    bytes: float  # of an item's sample
    shapes: frozenset[str]
    forward: float  # seconds of a round of the batch
    bound: bool  # answers were cut: seconds and forwards are an upper limit


@dataclass
class Planned:
    """One cell of a plan; `items` is None when its data are not here."""

    cell: Checked
    items: int | None
    done: int = 0
    finished: bool = False
    folder: str | None = None
    missing: list[Need] = field(default_factory=list)
    job: Job | None = None
    trial: Trial | None = None
    borrowed: bool = False  # the trial is another setting's
    seconds: float = 0.0

    @property
    def todo(self) -> int:
        return (self.items or 0) - self.done


@dataclass(frozen=True)
class Estimate:
    """Of all cells of a plan that can be tried."""

    seconds: float
    forwards: float
    memory_bytes: int
    results_bytes: float
    tried: int
    runs: int  # unfinished, and not missing anything
    bound: bool
    spent: float  # seconds of trying


def plan(cells: Sequence[Checked], local: Local, needs: Needs) -> list[Planned]:
    """Every cell with its items, what is in the store, and what is missing. Runs nothing, fetches no weights."""
    planned = []
    for cell in cells:
        missing = needs.missing(cell)
        if missing:
            planned.append(Planned(cell, needs.items(cell), missing=missing))
            continue
        cell = replace(cell, spec=cell.spec.resolved())
        job = local.job(cell)
        done = len(job.folder.samples())
        planned.append(Planned(cell, len(job.items), done, job.folder.finished, job.folder.name, job=job))
    return planned


def estimate(planned: Sequence[Planned], local: Local, budget: float = BUDGET) -> Estimate:
    """Try what is left to do; fills `trial` and `seconds` of the cells."""
    open_cells = [one for one in planned if one.job and not one.finished]
    began = time.monotonic()
    loads: dict[str, float] = {}
    for one in _one_of_each_method_first(open_cells):
        left = budget - (time.monotonic() - began - sum(loads.values()))
        if left > 0 and one.items:
            one.trial = _try(one.job, local, left / _FAIR, loads)
    for number, one in enumerate(open_cells):
        if one.trial is None:
            one.trial, one.borrowed = _nearest(open_cells, number), True
    _add_up(open_cells, local, loads)
    tried = [one for one in open_cells if one.trial]
    return Estimate(
        seconds=sum(one.seconds for one in tried),
        forwards=sum(one.todo * one.trial.forwards for one in tried),
        memory_bytes=max((memory_bytes(one.cell, one.job.task) or 0 for one in tried), default=0),
        results_bytes=sum(one.todo * one.trial.bytes for one in tried),
        tried=sum(not one.borrowed for one in tried),
        runs=len(open_cells),
        bound=any(one.trial.bound for one in tried),
        spent=time.monotonic() - began,
    )


def _one_of_each_method_first(cells: Sequence[Planned]) -> Iterator[Planned]:
    """All cells, so ordered that methods, models and tasks come up early: if time runs out, each has been seen."""
    rounds: list[list[Planned]] = []
    seen: dict[str, int] = {}
    for one in cells:
        number = seen[_method(one)] = seen.get(_method(one), -1) + 1
        rounds += [[]] * (number + 1 - len(rounds))
        rounds[number] = [*rounds[number], one]
    return (one for group in rounds for one in group)


def _method(one: Planned) -> str:
    spec = one.cell.spec
    return canonical([spec.task, spec.model, spec.method, spec.batch_size])


def _nearest(cells: Sequence[Planned], number: int) -> Trial | None:
    """The trial of the nearest setting: of the same method, else of the same task, else of any."""
    one = cells[number]
    by_distance = sorted(range(len(cells)), key=lambda other: abs(other - number))
    tried = [cells[other] for other in by_distance if cells[other].trial and not cells[other].borrowed]
    same_task = [other for other in tried if other.cell.spec.task == one.cell.spec.task]
    same = [other for other in same_task if _method(other) == _method(one)]
    return next((other.trial for other in (*same, *same_task, *tried)), None)


def _try(job: Job, local: Local, allowed: float, loads: dict[str, float]) -> Trial:
    """Decode a few items within about `allowed` seconds; loading is measured apart, in `loads`."""
    from dlmbench.tasks.lm import evaluate

    began = time.monotonic()
    engine = local.source.build(job.cell)
    loads.setdefault(canonical(job.identity["weights"]), time.monotonic() - began)
    items, tokens = _affordable(job, engine, allowed)
    engine.shapes.clear()
    began = time.monotonic()
    found = evaluate(job.task, engine, [replace(item, max_tokens=tokens) for item in items], seed=job.cell.spec.seed)
    seconds = time.monotonic() - began
    more, slower = _growth(job, engine, tokens, [generation for _, generation, _ in found])
    calls = sum(sum(generation.forward_counts.values()) for _, generation, _ in found)
    return Trial(
        items=len(items),
        seconds=more * slower * seconds / len(items),
        forwards=more * calls / len(items),
        bytes=more * sum(len(json.dumps(sample_record(*one))) for one in found) / len(items),
        shapes=frozenset(map(str, engine.shapes)),
        forward=engine.timing.decode / max(engine.launched, 1),
        bound=more > 1,
    )


def _affordable(job: Job, engine: Any, allowed: float) -> tuple[list[Any], int]:
    """The items to try and the tokens of their answers, after a look at what the first few tokens cost."""
    batch, whole = job.cell.spec.batch_size, job.task.max_tokens
    least = max(_PEEK, job.cell.fixed["window"] + 1) if job.cell.fixed else _PEEK  # the marker must fit in
    items = job.items[: max(SPEED_LEAST, SPEED_ROUNDS * batch)]
    peek = requests_of(job, engine, [replace(item, max_tokens=min(least, whole)) for item in items[:batch]])
    engine.generate(peek)
    forward = engine.timing.decode / max(engine.launched, 1)
    if forward * whole * len(items) / batch > allowed:
        items = items[:batch]
    return items, min(whole, max(int(allowed / max(forward, 1e-9)), least))


def _growth(job: Job, engine: Any, tokens: int, found: Sequence[Any]) -> tuple[float, float]:
    """(How many times more forwards whole answers take at most, how many times longer each takes.)"""
    whole = job.task.max_tokens
    if tokens == whole:
        return 1.0, 1.0
    if engine.target.config.attention != "full":
        return sum(whole / tokens if one.stop_reason == "length" else 1.0 for one in found) / len(found), 1.0
    # a forward covers the whole row, and the row is filled whatever stands in it
    prompt = len(requests_of(job, engine, job.items[:1])[0].prompt_ids)
    return whole / tokens, (prompt + whole) / (prompt + tokens)


def _add_up(cells: Sequence[Planned], local: Local, loads: dict[str, float]) -> None:
    """Seconds of each cell; what a cell leaves for the next ones (loaded weights, prices) is paid once."""
    loads, prices, roots = dict(loads), Prices(), set()
    for one in cells:
        trial, job = one.trial, one.job
        if trial is None:
            continue
        batch = job.cell.spec.batch_size
        timed = SPEED_REPEATS * min(max(SPEED_LEAST, SPEED_ROUNDS * batch), one.items) + min(batch, one.items)
        recorded = 0 if local.traced(job) else min(batch, one.items)  # few items, in about the time of a full batch
        if job.folder.path.parent not in roots:
            prices.read(job.folder.path.parent)
            roots.add(job.folder.path.parent)
        new = trial.shapes - prices.of(job.circumstances()).keys()
        prices.add(job.circumstances(), dict.fromkeys(new, 1.0))
        one.seconds = (
            loads.pop(canonical(job.identity["weights"]), 0.0)
            + (one.todo + timed + recorded) * trial.seconds
            + len(new) * max(_PRICE_CALLS * trial.forward, _PRICE_LEAST)
        )
