"""Is a run folder what it says it is? Whatever follows from something else in it is computed again and compared.

A folder can be consistent and made up: only `rerun`, which decodes items again, tells, because decoding is
deterministic. What needs the task's data, the tokenizer or the weights is checked where they are at hand, and said to
be unchecked where they are not.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeAlias

from dlmbench.errors import DlmbenchError, RunError
from dlmbench.request.key import digest
from dlmbench.request.run_spec import OPTIONS
from dlmbench.runs.aggregate import aggregate
from dlmbench.runs.folder import BUNDLE, RunFolder, parsed, prompt_hash
from dlmbench.runs.record import Json, Manifest, Metrics, Sample, plain
from dlmbench.runs.runner import Catalog, Loaders, Run
from dlmbench.runs.scored import Tasks

STOPS = ("eos", "stop", "length")
_CLOSE = 1e-6  # relative: sums in another order, and what a table rounds
_ESTIMATES = ("projected_cost", "projected_on")  # of a table: for machines that nobody measured
_TIMED = ("speed", "cost")  # of the metrics: the first comes from a clock, the second has its own sentence


@dataclass
class Examined:
    """What was found in one run folder."""

    run: str
    items: int = 0
    problems: list[str] = field(default_factory=list)
    """A sentence each; without one the folder is consistent."""
    unchecked: list[str] = field(default_factory=list)
    """What could not be looked at here, and why."""
    rerun: tuple[int, int] | None = None
    """Items that were decoded again, and how many of them came out the same."""
    again: Run | None = None
    """The run as this machine would make it, where it can."""


class Validator:
    """Looks at run folders; `data_dir` and `model` say where their task's data and their checkpoint are here."""

    def __init__(self, data_dir: str | None = None, model: str | None = None, loaders: Loaders | None = None):
        self.data_dir, self.model = data_dir, model
        self._tasks, self._catalog = Tasks(data_dir, model), Catalog(loaders)

    def look(self, run: RunFolder, deep: bool = True) -> Examined:
        """The verdict on one folder. deep: also whatever needs data, tokenizer or weights, as far as they are here."""
        found = Examined(run.name)
        try:
            manifest, samples = run.manifest, run.samples
        except RunError as error:
            found.problems.append(str(error))
            return found
        found.items = len(samples)
        found.problems += _request(manifest)
        if not samples:
            found.unchecked.append("its samples did not come along: a table only, not verifiable")
            return found
        found.problems += [problem for sample in samples for problem in _sample(sample, manifest)]
        found.problems += _whole(run, manifest, samples)
        found.problems += _traces(run, samples)
        if deep:
            self._scores(found, manifest, samples)
            self._texts(found, manifest, samples)
            self._asked(found, run)
        return found

    def rerun(self, run: RunFolder, items: int, seed: int) -> Examined:
        """The same, and `items` of them, drawn with `seed`, are decoded again: tokens and forwards must be the stored
        ones."""
        found = self.look(run)
        again = found.again
        if found.problems or again is None:
            return found
        stored = {sample.key: sample for sample in run.samples}
        chosen = random.Random(seed).sample(list(again.items), min(items, len(again.items)))
        engine = self._catalog.loaders.build(again.resolved)
        generations = engine.generate(again.requests(engine, chosen))
        text = [one.key for one in generations if list(one.ids) != stored[one.key].ids]
        work = [one.key for one in generations if dict(one.forward_counts) != stored[one.key].forwards]
        for keys, what in ((text, "gave other tokens"), (work, "took other forwards")):
            if keys:
                found.problems.append(f"{len(keys)} of {len(chosen)} items decoded again {what}, as {keys[0]}.")
        found.rerun = len(chosen), len(chosen) - len({*text, *work})
        return found

    def _scores(self, found: Examined, manifest: Manifest, samples: Sequence[Sample]) -> None:
        """Are they the task's first items, with the scores that their texts deserve?"""
        spec = manifest.spec
        try:
            task = self._tasks.of(manifest)
        except DlmbenchError as error:
            found.unchecked.append(f"scores and prompts: {error}")
            return
        items = {item.key: item for item in task.items(spec.split, spec.limit)}
        for sample in samples:
            if sample.key not in items:
                found.problems.append(f"Item {sample.key} is not among the {len(items)} that the run asked.")
            elif sample.prompt_hash != prompt_hash(items[sample.key].prompt):
                found.problems.append(f"Item {sample.key} was asked with another prompt than the task's.")
        known = [sample for sample in samples if sample.key in items]
        scores = task.score_many([(items[sample.key], sample.text) for sample in known])
        for sample, score in zip(known, scores):
            if score["accuracy"] != sample.scores["accuracy"]:
                found.problems.append(
                    f"Item {sample.key} has a score of {sample.accuracy:g}; its text deserves {score['accuracy']:g}."
                )

    def _texts(self, found: Examined, manifest: Manifest, samples: Sequence[Sample]) -> None:
        """Is each text what its tokens say? It may end earlier, at a stop string."""
        from dlmbench.engine import tokenizer_of
        from dlmbench.engine.text import Text

        try:
            text = Text(tokenizer_of(self.model or manifest.spec.model))
        except DlmbenchError as error:
            found.unchecked.append(f"texts: {error}")
            return
        for sample in samples:
            if not text.of(sample.ids).strip().startswith(sample.text.strip()):
                found.problems.append(f"The text of item {sample.key} is not that of its tokens.")

    def _asked(self, found: Examined, run: RunFolder) -> None:
        """Is it the run that this machine would make of the request? Other weights, items or parameters are a problem;
        with another version of the decoder or the data nothing can be compared."""
        manifest = run.manifest
        if manifest.server:
            found.unchecked.append("weights: a server's answers cannot be made again here")
            return
        model = self.model or manifest.spec.model
        spec = replace(manifest.spec, out=str(run.path.parent), data_dir=self.data_dir, model=model, against=())
        try:
            again = self._catalog.run(spec.resolve())
        except DlmbenchError as error:
            found.unchecked.append(f"weights: {error}")
            return
        ours, theirs = _flat(again.identity), _flat(manifest.identity)
        other = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if newer := [name for name in other if name.split(".")[0] in ("version", "content", "limits")]:
            found.unchecked.append(f"weights: made by another version, in which {', '.join(newer)} differ")
            return
        found.problems += [
            f"Asked again here, {name} is {_short(ours.get(name))}; the run has {_short(theirs.get(name))}."
            for name in other
        ]
        found.again = None if other else again


# --- what stands beside each other in the folder --------------------------------------------------------------------


def _request(manifest: Manifest) -> Iterator[str]:
    """The key, and what the manifest says twice."""
    if digest(manifest.identity) != manifest.key:
        yield "The key is not the hash of the identity in manifest.json: one of them was changed."
    identity = _flat(manifest.identity)
    told: dict[str, object] = {
        "version": manifest.method_version,
        "prompts": manifest.prompts,
        "block_length": manifest.block_length,
        "limits.gen_length": manifest.gen_length,
        "content.content_hash": manifest.task.content_hash,
        "content.task_version": manifest.task.version,
        **{f"weights.{role}": weights for role, weights in manifest.weights.items()},
        **_flat(manifest.parameters, "parameters."),
        **{known.key: getattr(manifest.spec, name) for name, known in OPTIONS.items() if known.key},
        "device": manifest.spec.device.partition(":")[0],
    }
    for name, value in told.items():
        if name in identity and identity[name] != value:
            yield f"manifest.json says {name} is {_short(value)}, its identity says {_short(identity[name])}."


def _flat(record: Mapping[str, Json], before: str = "") -> dict[str, Json]:
    found: dict[str, Json] = {}
    for name, value in record.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) and value else {before + name: value}
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:16] + "..."


def _sample(sample: Sample, manifest: Manifest) -> Iterator[str]:
    """One line by itself."""
    item = f"Item {sample.key}"
    if not 0 <= sample.accuracy <= 1:
        yield f"{item} has a score of {sample.accuracy:g}, outside 0 to 1."
    if sample.stop_reason not in STOPS:
        yield f"{item} ended by {sample.stop_reason!r}, which is none of {', '.join(STOPS)}."
    if sample.stop_reason != "stop" and sample.report is None and sample.tokens != len(sample.ids):
        yield f"{item} counts {sample.tokens} tokens and holds {len(sample.ids)}."
    if len(sample.ids) > manifest.gen_length:
        yield f"{item} holds {len(sample.ids)} tokens, more than the {manifest.gen_length} it was allowed."
    if sum(sample.accepted) > sample.proposed:
        yield f"{item} accepted {sum(sample.accepted)} draft tokens of {sample.proposed}."
    if not sample.counted:
        return
    calls = {(role, kind): work.calls for role, kinds in sample.counts.items() for kind, work in kinds.items()}
    summed = dict.fromkeys(calls, 0)
    for forward, number in sample.forwards.items():
        place = forward.role, forward.kind
        summed[place] = summed.get(place, 0) + number
    for (role, kind), number in summed.items():
        if number != calls.get((role, kind), 0):
            there = calls.get((role, kind), 0)
            yield f"{item} counts {there} forwards of the {role}'s kind {kind}; by width they are {number}."


def _whole(run: RunFolder, manifest: Manifest, samples: Sequence[Sample]) -> Iterator[str]:
    """The number of items, and the aggregates."""
    if manifest.task.items is not None and len(samples) != manifest.task.items:
        yield f"It holds {len(samples)} of {manifest.task.items} items."
    if not run.finished:
        yield "It has no metrics.json that can be read: it is unfinished."
        return
    metrics = run.metrics
    again = aggregate(samples, manifest.prices, metrics.speed)
    for one in fields(Metrics):
        theirs, ours = getattr(metrics, one.name), getattr(again, one.name)
        if one.name not in _TIMED and theirs is not None and not _equal(plain(theirs), plain(ours)):
            yield f"metrics.json says {one.name} is {_short(theirs)}; its samples give {_short(ours)}."
    if metrics.cost is not None and not _equal(metrics.cost, again.cost):
        yield f"metrics.json says cost is {metrics.cost:g}; forwards and prices give {_short(again.cost)}."
    speed = metrics.speed
    for rate in (speed.decode, speed.end_to_end) if speed else ():
        if rate and not rate.low <= rate.median <= rate.high:
            yield f"A speed of {rate.median:g} tokens/s lies outside its own range, {rate.low:g} to {rate.high:g}."


def _equal(one: Json, other: Json) -> bool:
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=1e-12)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    return one == other


def _traces(run: RunFolder, samples: Sequence[Sample]) -> Iterator[str]:
    ids = {sample.key: sample.ids for sample in samples}
    for trace in run.traces:
        if trace.key not in ids:
            yield f"traces.jsonl records item {trace.key}, which the run does not hold."
        elif trace.same_ids != (trace.ids == ids[trace.key]):
            yield f"The recorded steps of item {trace.key} end in other tokens than its sample."


# --- what a sweep's folder says of its runs -------------------------------------------------------------------------


Rows: TypeAlias = Mapping[str, Mapping[str, object]]  # key of a run -> its row as table.csv has it
RowsOf: TypeAlias = Callable[[Sequence[RunFolder]], Rows]  # of a table of these runs and no others


def validate_tables(folder: Path, runs: Sequence[RunFolder], rows_of: RowsOf) -> list[str]:
    """Problems of manifests.jsonl and table.csv of a folder, against the `runs` in it."""
    return [*_bundle(folder / BUNDLE, {run.name: run for run in runs}), *_table(folder / "table.csv", runs, rows_of)]


def _bundle(file: Path, runs: Mapping[str, RunFolder]) -> Iterator[str]:
    for number, line in enumerate(file.read_bytes().splitlines() if file.is_file() else [], start=1):
        try:
            told = json.loads(line)
            name = told["folder"]
            manifest, metrics = parsed(Manifest, told["manifest"]), parsed(Metrics, told["metrics"])
        except (ValueError, KeyError, TypeError):
            yield f"Line {number} of {file.name} is damaged."
            continue
        run = runs.get(name)
        if (
            run
            and run.finished
            and not (plain(manifest) == plain(run.manifest) and plain(metrics) == plain(run.metrics))
        ):
            yield f"{file.name} says other things of {name} than its folder."


def _table(file: Path, runs: Sequence[RunFolder], rows_of: RowsOf) -> Iterator[str]:
    if not file.is_file():
        return
    with open(file, encoding="utf-8", newline="") as stream:
        told = {row["key"]: row for row in csv.DictReader(stream) if row.get("key")}
    known = {run.key for run in runs if run.key}
    if strangers := told.keys() - known:
        yield f"table.csv has {len(strangers)} rows whose runs are not here."
    rows = rows_of([run for run in runs if run.key in told])
    for key in told.keys() & known:
        ours = rows.get(key, {})
        for name, value in told[key].items():
            if name in ours and name not in _ESTIMATES and not _agrees(value, ours[name]):
                said = value or "nothing"
                yield f"table.csv says {name} of {ours['folder']} is {said}; its folder gives {ours[name]}."


def _agrees(cell: str, value: object) -> bool:
    if value is None or isinstance(value, str):
        return cell == (value or "")
    try:
        return math.isclose(float(cell), float(str(value)), rel_tol=_CLOSE, abs_tol=1e-9)
    except ValueError:
        return cell == str(value)
