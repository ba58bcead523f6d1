"""Makes runs here, one after another, and leaves finished run folders behind.

For each: the task's items, the key, the folder of that key; if it is finished nothing happens, else the missing items
are generated and scored as they come, then a pass over a stated subset measures speed with natural stop, forwards get
their measured price, and the aggregates are written. Tasks and engines are built only when a run needs them, and reused
by the runs that share them.

Left out: runs side by side, which would disturb each other's clocks.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dlmbench.errors import RunError
from dlmbench.forwards import ForwardKey
from dlmbench.request import ResolvedRun, RunSpec
from dlmbench.runs.aggregate import aggregate
from dlmbench.runs.folder import RunFolder, Writer
from dlmbench.runs.prices import PriceList
from dlmbench.runs.record import Calibration, Rate, Sample, Speed, Trace
from dlmbench.runs.recording import TRACED, record, recorded
from dlmbench.runs.runner import (
    Catalog,
    FittingMachine,
    Loaders,
    NoProgress,
    Progress,
    Run,
    run_each,
    sample_of,
    with_history,
)
from dlmbench.stats import spread
from dlmbench.threads import THREADS

if TYPE_CHECKING:
    from dlmbench.engine import Engine, Generation, Request
    from dlmbench.tasks.base import Item
    from dlmbench.tasks.evaluate import Scores

SPEED_REPEATS = 3
SPEED_TRIES = 2  # of all repeats
SPEED_ROUNDS = 2  # the speed pass takes so many items for each slot of the batch ...
SPEED_LEAST = 8  # ... and at least this many
MECHANISM_ONLY = "mechanism only: the ranking of nano models by tokens/s is no advice for large ones"
T = TypeVar("T")


def run_all(specs: Iterable[RunSpec], runner: LocalRunner | None = None) -> list[Path]:
    """Resolve all specs, then make or resume each; their folders, in the same order.

    Raises RequestError before anything is loaded when one of them cannot work.
    """
    runner = runner or LocalRunner()
    return [folder.path for folder in runner.run([spec.resolve(runner.machine) for spec in specs])]


class LocalRunner:
    """The local runner. One instance keeps models and tasks loaded between its runs.

    Args:
        traces: items of each run whose steps are recorded; a finished run that has fewer gets the others.
        logits: the same for what every forward says of its masks, which only some methods' steps are made of.
    """

    def __init__(
        self, loaders: Loaders | None = None, progress: Progress | None = None, traces: int = TRACED, logits: int = 0
    ):
        self.catalog = Catalog(loaders)
        self.machine = FittingMachine(self.catalog)
        self.progress = progress or NoProgress()
        self.traces, self.logits = traces, logits
        self.prices = PriceList()
        self._priced: set[Path] = set()  # the roots whose runs' prices are known

    def run(self, runs: Iterable[ResolvedRun]) -> list[RunFolder]:
        """Make or resume every run; the finished folders, in their order. Raises RunError as `run_each`."""
        runs = list(runs)
        if self.logits:
            from dlmbench.runs.states import check_recordable

            for run in runs:
                check_recordable(run)
        return run_each(runs, self.run_one)

    def run_one(self, resolved: ResolvedRun) -> RunFolder:
        """Make or resume one run; nothing happens when it is finished."""
        run = self.catalog.run(resolved)
        if run.folder.finished and self.recorded(run):
            self.progress.kept()
            return run.folder
        with run.folder.writing() as writer:
            if not run.folder.finished:  # another process may have finished it meanwhile
                self._work(run, writer)
            elif not self.recorded(run):
                self._record(run, self.catalog.loaders.build(run.resolved), writer)
        return run.folder

    # --- one run ----------------------------------------------------------------------------------------------------

    def _work(self, run: Run, writer: Writer) -> None:
        """Everything from the first missing item to the aggregates."""
        done = len(run.folder.samples)
        before = run.folder.manifest if run.folder.begun else None
        manifest = with_history(run.manifest(run.environment()), before, done)
        writer.manifest(manifest)
        self.progress.begin(run.title, done, len(run.items))
        engine = self.catalog.loaders.build(run.resolved)
        if run.missing:
            self._generate(run, engine, writer)
        samples = run.folder.samples
        check_whole(run)
        self.progress.stage("timing")
        speed = self.speed(run, engine, samples, just_made=done == 0) if _timed(run, engine) else None
        calibration = self.calibration(run, engine, samples)
        if speed and speed.threads:  # pricing may have changed them since
            manifest = replace(manifest, environment=replace(manifest.environment, threads=speed.threads))
        writer.manifest(replace(manifest, model=run.described(engine), calibration=calibration))
        self._record(run, engine, writer)
        writer.metrics(aggregate(samples, calibration.prices, speed))
        self.progress.end()

    def _generate(self, run: Run, engine: Engine, writer: Writer) -> None:
        def store(item: Item, generation: Generation, scores: Scores) -> None:
            writer.sample(sample_of(item, generation, scores))
            self.progress.advance()

        run.task.evaluate(engine, run.missing, store, run.resolved.spec.seed, keep=False)

    def speed(self, run: Run, engine: Engine, samples: Sequence[Sample], just_made: bool = False) -> Speed:
        """Natural-stop speed over the first items: a warm-up, unless they are all items and were `just_made`; then
        repeats, and these once more where they lie too far apart for a number; nothing is scored or stored."""
        batch = run.resolved.batch_size
        subset = run.items[: max(SPEED_LEAST, SPEED_ROUNDS * batch)]
        requests = run.requests(engine, subset)
        if not (just_made and len(subset) == len(run.items)):
            engine.generate(requests[:batch])
        stored = {sample.key: sample.ids for sample in samples}
        for _ in range(SPEED_TRIES):
            passes = [_pass(engine, requests) for _ in range(SPEED_REPEATS)]
            decode, end_to_end = (Rate(*spread(rates)) for rates in zip(*(one.rates for one in passes)))
            if not (decode.unsteady or end_to_end.unsteady):
                break
        outside = [one.outside for one in passes if one.outside is not None]
        return Speed(
            items=len(subset),
            repeats=SPEED_REPEATS,
            same_ids=sum(ids == stored[key] for key, ids in passes[-1].ids.items()),
            decode=decode,
            end_to_end=end_to_end,
            threads=THREADS.number if run.resolved.device == "cpu" else None,
            steady=all(one.steady for one in passes),
            label=MECHANISM_ONLY if run.resolved.preset.source.startswith("nano/") else None,
            outside=statistics.median(outside) if outside else None,
        )

    def traced(self, run: Run) -> bool:
        """Are as many items recorded as are wanted? None are of a trial."""
        return run.resolved.trial or len(run.folder.traces) >= min(self.traces, len(run.items))

    def recorded(self, run: Run) -> bool:
        """The same, and as many items' logits?"""
        return self.traced(run) and recorded(run.folder.path) >= min(self.logits, len(run.items))

    def _record(self, run: Run, engine: Engine, writer: Writer) -> None:
        """What readers of a report ask for beyond scores: the prompts, and the steps of the first items."""
        self.progress.stage("recording")
        run.keep_prompts()
        if not self.traced(run):
            writer.traces(self.record(run, engine, run.folder.samples))
        if not self.recorded(run):
            from dlmbench.runs.states import record_states, write_states

            stored = {sample.key: sample.ids for sample in run.folder.samples}
            requests = run.requests(engine, run.items[: self.logits])
            write_states(run.folder.path, record_states(engine, requests, stored))

    def record(self, run: Run, engine: Engine, samples: Sequence[Sample]) -> list[Trace]:
        """The steps of the first items."""
        stored = {sample.key: sample.ids for sample in samples}
        return record(engine, run.requests(engine, run.items[: self.traces]), stored)

    # --- prices -----------------------------------------------------------------------------------------------------

    def calibration(self, run: Run, engine: Engine, samples: Sequence[Sample]) -> Calibration:
        """Prices of every forward in `samples`: those that a run on the same weights and machine has measured already,
        so that rows of a sweep are comparable, and new measurements for the others."""
        circumstances, root = run.circumstances(), run.folder.path.parent
        if root not in self._priced:
            self.prices.read(self.catalog.index(run.resolved.spec.out).runs())
            self._priced.add(root)
        needed = {forward for sample in samples for forward in sample.forwards}
        if new := needed - self.prices.of(circumstances).keys():
            self._meet(run, engine, samples, new)
            measured = engine.calibrate()
            self.prices.add(circumstances, measured.prices, measured.seconds_per_denoise, measured.spreads)
        return self.prices.calibration(circumstances, needed)

    def _meet(self, run: Run, engine: Engine, samples: Sequence[Sample], needed: set[ForwardKey]) -> None:
        """Make items again whose forwards this engine has not computed: their samples are from an earlier process."""
        missing, keys = needed - engine.shapes.keys(), []
        for sample in samples:
            if missing & sample.forwards.keys():
                missing -= sample.forwards.keys()
                keys.append(sample.key)
        if keys:
            engine.generate(run.requests(engine, [item for item in run.items if item.key in keys]))


def check_whole(run: Run) -> None:
    """Raises RunError unless the store holds exactly the run's items."""
    if {sample.key for sample in run.folder.samples} != {item.key for item in run.items}:
        raise RunError(f"{run.folder.name} does not hold the items it should; remove the folder and run again.")


class _Pass(NamedTuple):
    """One pass over the items of a speed: tokens a second of decoding and of everything, the share of decoding outside
    forwards, ids by item, and whether the number of threads was kept."""

    rates: tuple[float, float]
    outside: float | None
    ids: dict[str, list[int]]
    steady: bool


def _timed(run: Run, engine: Engine) -> bool:
    """Has the run a speed? Trials have none, and an ideal model's forwards take what its answers do."""
    return engine.target.priced and not run.resolved.trial


def _pass(engine: Engine, requests: Sequence[Request]) -> _Pass:
    generations, kept = _steadily(lambda: engine.generate(requests), engine)
    tokens, timing = sum(generation.tokens for generation in generations), engine.timing
    ids = {generation.key: list(generation.ids) for generation in generations}
    return _Pass((tokens / timing.decode, tokens / timing.total), timing.outside, ids, kept)


def _steadily(measure: Callable[[], T], engine: Engine) -> tuple[T, bool]:
    """What `measure` returns, measured again where the number of threads changed meanwhile; and was it kept?"""
    watch = getattr(engine, "watch", None)
    return watch.steady(measure) if watch else (measure(), True)
