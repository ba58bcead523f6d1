"""Makes the runs of a sweep on a cluster: many at a time, each cut into shards of items.

This process finds out which runs there are, hands shards to workers and writes what comes back; nobody else writes, so
the folders, their locks and resuming are those of the local runner. A shard is a fixed number of items, whatever the
number of workers. A lost worker's shard goes to another one; as a shard is written when its whole answer is here, no
item is lost or doubled. A kill of this process loses the shards in flight.

On a CPU, where work beside it would disturb the clock, a run is measured when its node has nothing else to do for us.
Prices that two workers measured at once are reconciled: the first stays, for all rows.

Left out: measuring all runs on the same node. Rows name the device that measured them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from dlmbench.errors import RequestError, RunError
from dlmbench.forwards import ForwardKey
from dlmbench.models.presets import PRESETS
from dlmbench.request import ResolvedRun, RunSpec, canonical
from dlmbench.request.resolved import Machine
from dlmbench.request.run_spec import OPTIONS
from dlmbench.runs.aggregate import aggregate
from dlmbench.runs.folder import RunFolder, Writer
from dlmbench.runs.local import LocalRunner, check_whole
from dlmbench.runs.pool import Lost, Pool, WorkerSlot
from dlmbench.runs.prices import PriceList
from dlmbench.runs.record import Calibration, Environment
from dlmbench.runs.recording import TRACED
from dlmbench.runs.runner import Loaders, NoProgress, Progress, Run, with_history
from dlmbench.runs.worker import Answer, Shard

SHARD_ROUNDS = 4  # a shard has so many items for each slot of the batch ...
SHARD_LEAST = 8  # ... and at least this many
TRIES = 4  # workers that a shard may cost before the sweep stops


@dataclass(eq=False)
class _Open:
    """A run at work: its folder is locked for us."""

    run: Run
    spec: RunSpec  # as workers are asked for it
    stack: ExitStack
    writer: Writer
    done: set[str]
    before: int = 0  # items in the store when it was opened
    arrived: int = 0
    over: bool = False
    timed: bool = True


class _Cluster(Machine):
    """What ``auto`` means there."""

    def __init__(self, pool: Pool):
        self.pool = pool

    def device(self, wanted: str) -> str:
        device, index = wanted.partition(":")[::2]
        if index:
            raise RequestError(f"device is {wanted}, and Ray deals out the GPUs itself: use --device cuda.")
        if device == "auto":
            device = "cuda" if self.pool.capacity("cuda") else "cpu"
        if not self.pool.capacity(device):
            raise RequestError(f"device is {device} and the cluster has none: use another --device.")
        return device


class RayRunner:
    """The runner on a Ray cluster. `lost` counts the workers that were lost while they had work."""

    def __init__(
        self, pool: Pool, progress: Progress | None = None, traces: int = TRACED, loaders: Loaders | None = None
    ):
        self.pool = pool
        self.local = LocalRunner(loaders, traces=traces)
        self.machine = _Cluster(pool)
        self.told = _InOrder(progress or NoProgress())
        self.lost = 0
        self.prices = PriceList()
        self.priced: set[Path] = set()

    def run(self, runs: Iterable[ResolvedRun]) -> list[RunFolder]:
        """Make or resume every run; the finished folders, in their order.

        Raises RequestError for a device that the cluster does not have; RunError when a folder is being written by
        another process, when shards keep losing their workers, and when the cluster has nothing left.
        """
        found = [self.local.catalog.run(run.on(self.machine)) for run in runs]
        waiting = deque({run.key: run for run in found if not self._finished(run)}.values())
        self.open: dict[str, _Open] = {}
        self.queue: deque[Shard] = deque()
        self.reserved: dict[str, Shard] = {}  # node -> what will be measured there once it is quiet
        self.tries: Counter[str] = Counter()
        try:
            while waiting or self.open:
                while waiting and len(self.queue) < 2 * max(map(self.pool.capacity, ("cpu", "cuda"))) + 2:
                    self._begin(waiting.popleft())
                self._hand_out()
                for shard, answer in self.pool.wait():
                    self._take(shard, answer)
        finally:
            for open_run in self.open.values():
                open_run.stack.close()
        return [run.folder for run in found]

    def _finished(self, run: Run) -> bool:
        return run.folder.finished and self.local.traced(run)

    # --- runs ------------------------------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        """Lock a run's folder and queue its missing items."""
        with ExitStack() as stack:
            writer = stack.enter_context(run.folder.writing())
            if self._finished(run):  # by another process, meanwhile
                return
            done = {sample.key for sample in run.folder.samples}
            timed = not run.folder.finished
            open_run = _Open(run, _placed(run.resolved.settled), stack.pop_all(), writer, done, len(done), timed=timed)
        self.open[run.key] = open_run
        if run.folder.path.parent not in self.priced:
            self.prices.read(self.local.catalog.index(run.resolved.spec.out).runs())
            self.priced.add(run.folder.path.parent)
        missing = [item.key for item in run.missing]
        size = max(SHARD_LEAST, SHARD_ROUNDS * run.resolved.batch_size)
        for start in range(0, len(missing), size):
            self.queue.append(Shard(open_run.spec, run.key, tuple(missing[start : start + size])))
        if not missing:
            self._queue_measuring(open_run)
        self.told.opened(open_run)

    def _queue_measuring(self, open_run: _Open) -> None:
        run = open_run.run
        check_whole(run)
        traces = 0 if self.local.traced(run) else self.local.traces
        shard = Shard(
            open_run.spec, run.key, samples=tuple(run.folder.samples), prices=self.prices, timed=open_run.timed,
            trial=run.resolved.trial, traces=traces,
        )  # fmt: skip
        self.queue.appendleft(shard)

    def _take(self, shard: Shard, answer: Answer | Lost) -> None:
        """Write what came back, or queue again what was lost."""
        if isinstance(answer, Lost):
            self._again(shard)
            return
        open_run = self.open[shard.key]
        if shard.measures:
            self._finish(open_run, answer)
            return
        self._note_environment(open_run, answer.environment)
        for sample in answer.samples:
            open_run.writer.sample(sample)
            open_run.done.add(sample.key)
            self.told.advanced(open_run)
        if len(open_run.done) == len(open_run.run.items):
            self._queue_measuring(open_run)

    def _again(self, shard: Shard) -> None:
        self.lost += 1
        self.tries[_name(shard)] += 1
        if self.tries[_name(shard)] == TRIES:
            what = f"items {shard.items[0]} to {shard.items[-1]}" if shard.items else "the speed pass"
            raise RunError(
                f"{TRIES} workers were lost one after another over {what} of {self.open[shard.key].run.title}; "
                "look for lack of memory on the nodes, or lower --batch-size. The same command goes on from here."
            )
        self.queue.appendleft(shard)

    def _note_environment(self, open_run: _Open, found: Environment) -> None:
        """Name every kind of worker that made samples in the manifest, which must be there before the first sample."""
        before = open_run.run.folder.manifest if open_run.run.folder.begun else None
        known = (before.environments or [before.environment]) if before else []
        if found not in [replace(one, samples_before=None) for one in known]:
            open_run.writer.manifest(with_history(open_run.run.manifest(found), before, len(open_run.done)))

    def _finish(self, open_run: _Open, answer: Answer) -> None:
        run, writer = open_run.run, open_run.writer
        run.keep_prompts()
        if answer.traces:
            writer.traces(answer.traces)
        if open_run.timed and answer.calibration:
            samples = run.folder.samples
            calibration = self._calibration(answer.calibration, {f for sample in samples for f in sample.forwards})
            manifest = with_history(run.manifest(answer.environment), run.folder.manifest, len(open_run.done))
            writer.manifest(replace(manifest, model=answer.model, calibration=calibration))
            writer.metrics(aggregate(samples, calibration.prices, answer.speed))
        del self.open[run.key]
        open_run.stack.close()
        self.told.finished(open_run)

    def _calibration(self, found: Calibration, needed: set[ForwardKey]) -> Calibration:
        """A worker's calibration with the prices that were measured first in its circumstances."""
        self.prices.learn(found)
        return self.prices.calibration(found.circumstances, needed)

    # --- who does what ----------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give every free worker what it may do now."""
        nodes = {slot.node for slot in self.pool.slots}
        for node in [node for node in self.reserved if node not in nodes]:  # it is gone
            self.queue.appendleft(self.reserved.pop(node))
        wanted = Counter(shard.kind for shard in (*self.queue, *self.reserved.values()))
        wanted.update(slot.shard.kind for slot in self.pool.slots if slot.shard)
        for kind, number in wanted.items():
            self.pool.staff(kind, number)
        for slot in self.pool.slots:
            shard = self._choose(slot) if slot.free else None
            if shard:
                alone = shard.measures and shard.kind == "cpu"
                self.pool.give(slot, replace(shard, threads=slot.cpus if alone else 1))

    def _choose(self, slot: WorkerSlot) -> Shard | None:
        """The next shard for a free worker, taken out of the queue; None when its node is to be left in peace."""
        beside = [other.shard for other in self.pool.slots if other.node == slot.node and other.shard]
        if slot.kind == "cpu" and any(shard.measures for shard in beside):
            return None
        node = slot.node or ""  # a free worker has told where it is
        if slot.kind == "cpu" and node in self.reserved:
            return None if beside else self.reserved.pop(node)
        shard = next((shard for shard in self.queue if shard.kind == slot.kind), None)
        if shard is None:
            return None
        self.queue.remove(shard)
        if shard.measures and shard.kind == "cpu" and beside:
            self.reserved[node] = shard
            return None
        return shard


class _InOrder:
    """Tells progress as the local executor does, one open_run after another, although they finish in any order."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.runs: deque[_Open] = deque()

    def opened(self, open_run: _Open) -> None:
        self.runs.append(open_run)
        if len(self.runs) == 1:
            self._show()

    def advanced(self, open_run: _Open) -> None:
        open_run.arrived += 1
        if open_run is self.runs[0]:
            self.progress.advance()

    def finished(self, open_run: _Open) -> None:
        open_run.over = True
        while self.runs and self.runs[0].over:
            self.runs.popleft()
            self.progress.end()
            self._show()

    def _show(self) -> None:
        if self.runs:
            first = self.runs[0]
            self.progress.begin(first.run.title, first.before, len(first.run.items))
            for _ in range(first.arrived):
                self.progress.advance()


def _name(shard: Shard) -> str:
    """A shard's name among those of its sweep, whoever does it."""
    return canonical([shard.key, shard.items])


def _placed(spec: RunSpec) -> RunSpec:
    """The spec with every place that exists here made absolute: workers may stand in another folder."""
    options = {name: getattr(spec, name) for name in OPTIONS}
    for name in (*(name for name, option in OPTIONS.items() if option.place), "data_dir"):
        value = options[name]
        if value and value not in PRESETS and Path(value).expanduser().exists():
            options[name] = str(Path(value).expanduser().absolute())
    return RunSpec.written(options)
