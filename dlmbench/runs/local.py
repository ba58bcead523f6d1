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
from typing import TYPE_CHECKING, TypeVar

from dlmbench.errors import RunError
from dlmbench.files import tell
from dlmbench.forwards import ForwardKey
from dlmbench.request import ResolvedRun, RunSpec
from dlmbench.runs.aggregate import aggregate
from dlmbench.runs.folder import RunFolder, Writer
from dlmbench.runs.prices import PriceList
from dlmbench.runs.record import Calibration, Rate, Sample, Speed, Trace
from dlmbench.runs.recording import TRACED, record
from dlmbench.runs.runner import (
    Catalog,
    FittingMachine,
    Loaders,
    NoProgress,
    Progress,
    Run,
    sample_of,
    with_history,
)
from dlmbench.stats import spread
from dlmbench.threads import THREADS

if TYPE_CHECKING:
    from dlmbench.engine import Engine, Generation
    from dlmbench.tasks.base import Item
    from dlmbench.tasks.evaluate import Scores

SPEED_REPEATS = 3
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
    """

    def __init__(self, loaders: Loaders | None = None, progress: Progress | None = None, traces: int = TRACED):
        self.catalog = Catalog(loaders)
        self.machine = FittingMachine(self.catalog)
        self.progress = progress or NoProgress()
        self.traces = traces
        self.prices = PriceList()
        self._priced: set[Path] = set()  # the roots whose runs' prices are known

    def run(self, runs: Iterable[ResolvedRun]) -> list[RunFolder]:
        """Make or resume every run; the finished folders, in their order.

        One that fails, because memory ends or another process writes its folder, does not stop the others: one
        RunError at the end names all that failed.
        """
        runs = list(runs)
        if len(runs) == 1:
            return [self.run_one(runs[0])]
        folders: list[RunFolder] = []
        failures: list[str] = []
        for run in runs:
            try:
                folders.append(self.run_one(run))
            except RunError as error:
                failures.append(f"{run.label} on {run.spec.task} with {run.preset.name}: {error}")
                tell(f"failed  {failures[-1]}")
        if failures:
            kept = f"the other {len(folders)} are finished and kept" if folders else "none is finished"
            raise RunError(
                f"{len(failures)} of {len(runs)} runs failed, {kept}; the same command tries again. "
                f"{' '.join(failures)}"
            )
        return folders

    def run_one(self, resolved: ResolvedRun) -> RunFolder:
        """Make or resume one run; nothing happens when it is finished."""
        run = self.catalog.run(resolved)
        if run.folder.finished and self.traced(run):
            return run.folder
        with run.folder.writing() as writer:
            if not run.folder.finished:  # another process may have finished it meanwhile
                self._work(run, writer)
            elif not self.traced(run):
                self._trace(run, self.catalog.loaders.build(run.resolved), writer)
        return run.folder

    # --- one run ----------------------------------------------------------------------------------------------------

    def _work(self, run: Run, writer: Writer) -> None:
        """Everything from the first missing item to the aggregates."""
        done = len(run.folder.samples)
        before = run.folder.manifest if run.folder.begun else None
        manifest = with_history(run.manifest(run.environment()), before, done)
        writer.manifest(manifest)
        self.progress.begin(run.label, done, len(run.items))
        engine = self.catalog.loaders.build(run.resolved)
        if run.missing:
            self._generate(run, engine, writer)
        samples = run.folder.samples
        check_whole(run)
        self.progress.stage("timing")
        speed = self.speed(run, engine, samples)
        calibration = self.calibration(run, engine, samples)
        if speed.threads:  # pricing may have changed them since
            manifest = replace(manifest, environment=replace(manifest.environment, threads=speed.threads))
        writer.manifest(replace(manifest, model=run.described(engine), calibration=calibration))
        self._trace(run, engine, writer)
        writer.metrics(aggregate(samples, calibration.prices, speed))
        self.progress.end()

    def _generate(self, run: Run, engine: Engine, writer: Writer) -> None:
        def keep(item: Item, generation: Generation, scores: Scores) -> None:
            writer.sample(sample_of(item, generation, scores))
            self.progress.advance()

        run.task.evaluate(engine, run.missing, keep, run.resolved.spec.seed)

    def speed(self, run: Run, engine: Engine, samples: Sequence[Sample]) -> Speed:
        """Natural-stop speed over the first items: a warm-up, then repeats; nothing is scored or stored."""
        batch = run.resolved.batch_size
        subset = run.items[: max(SPEED_LEAST, SPEED_ROUNDS * batch)]
        requests = run.requests(engine, subset)
        engine.generate(requests[:batch])
        stored = {sample.key: sample.ids for sample in samples}
        decode: list[float] = []
        end_to_end: list[float] = []
        outside: list[float] = []
        same, steady = 0, True
        for _ in range(SPEED_REPEATS):
            generations, kept = _steadily(lambda: engine.generate(requests), engine)
            steady = steady and kept
            tokens = sum(generation.tokens for generation in generations)
            decode.append(tokens / engine.timing.decode)
            end_to_end.append(tokens / engine.timing.total)
            if engine.timing.outside is not None:
                outside.append(engine.timing.outside)
            same = sum(list(generation.ids) == stored[generation.key] for generation in generations)
        return Speed(
            items=len(subset),
            repeats=SPEED_REPEATS,
            same_ids=same,
            decode=Rate(*spread(decode)),
            end_to_end=Rate(*spread(end_to_end)),
            threads=THREADS.number if run.resolved.device == "cpu" else None,
            steady=steady,
            label=MECHANISM_ONLY if run.resolved.preset.source.startswith("nano/") else None,
            outside=statistics.median(outside) if outside else None,
        )

    def traced(self, run: Run) -> bool:
        """Are as many items recorded as are wanted?"""
        return len(run.folder.traces) >= min(self.traces, len(run.items))

    def _trace(self, run: Run, engine: Engine, writer: Writer) -> None:
        """What readers of a report ask for beyond scores: the prompts, and the steps of the first items."""
        self.progress.stage("recording")
        run.keep_prompts()
        if not self.traced(run):
            writer.traces(self.record(run, engine, run.folder.samples))

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
            self.prices.add(circumstances, measured.prices, measured.seconds_per_denoise)
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


def _steadily(measure: Callable[[], T], engine: Engine) -> tuple[T, bool]:
    """What `measure` returns, measured again where the number of threads changed meanwhile; and was it kept?"""
    watch = getattr(engine, "watch", None)
    return watch.steady(measure) if watch else (measure(), True)
