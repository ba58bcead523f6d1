"""Runs the cells of a sweep on a cluster: many at a time, each cut into shards of items.

This process finds out which runs there are, hands pieces to workers and writes what comes back; nobody else writes, so
the folders, their locks and resuming are those of the local executor. A shard is a fixed number of items, whatever the
number of workers. A lost worker's piece goes to another one; as a piece is written when its whole answer is here, no
item is lost or doubled. A kill of this process loses the shards in flight.

On a CPU, where work beside it would disturb the clock, a cell is measured when its node has nothing else to do for us.
Prices that two workers measured at once are reconciled: the first stays, for all rows.

Left out: measuring all cells on the same node. Rows name the device that measured them.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlmbench.errors import RequestError, RunError
from dlmbench.runs.local import (
    Job,
    Local,
    Progress,
    Silent,
    Source,
    with_history,
)
from dlmbench.runs.pool import Lost, Pool, Seat
from dlmbench.runs.prices import Prices
from dlmbench.runs.recording import TRACED
from dlmbench.runs.worker import Piece
from dlmbench.models.presets import PRESETS
from dlmbench.request import Checked, RunSpec, canonical
from dlmbench.request.values import HELPERS
from dlmbench.runs import RunFolder
from dlmbench.runs.folder import Writer
from dlmbench.runs.aggregate import aggregate

SHARD_ROUNDS = 4  # a shard has so many items for each slot of the batch ...
SHARD_LEAST = 8  # ... and at least this many
TRIES = 4  # workers that a piece may cost before the sweep stops


@dataclass(eq=False)
class _Open:
    """A cell at work: its folder is locked for us."""

    job: Job
    spec: RunSpec  # as workers are asked for it
    stack: ExitStack
    writer: Writer
    done: set[str]
    before: int = 0  # items in the store when it was opened
    arrived: int = 0
    over: bool = False
    timed: bool = True


class Cluster:
    """The Ray executor, in the place of `Local`. `lost` counts the workers that were lost while they had work."""

    def __init__(
        self, pool: Pool, progress: Progress | None = None, traces: int = TRACED, source: Source | None = None
    ):
        self.pool = pool
        self.local = Local(source, traces=traces)
        self.told = _InOrder(progress or Silent())
        self.lost = 0
        self.prices = Prices()

    def run(self, cells: Iterable[Checked]) -> list[RunFolder]:
        """Run or resume every cell; the finished folders, in the order of the cells.

        Raises RequestError for a device that the cluster does not have; RunError when a folder is being written by
        another process, when pieces keep losing their workers, and when the cluster has nothing left.
        """
        jobs = [self.local.job(self._placed(cell)) for cell in cells]
        waiting = deque({job.key: job for job in jobs if not self._finished(job)}.values())
        self.open: dict[str, _Open] = {}
        self.queue: deque[Piece] = deque()
        self.reserved: dict[str, Piece] = {}  # node -> what will be measured there once it is quiet
        self.tries: Counter[str] = Counter()
        try:
            while waiting or self.open:
                while waiting and len(self.queue) < 2 * max(map(self.pool.capacity, ("cpu", "cuda"))) + 2:
                    self._begin(waiting.popleft())
                self._hand_out()
                for piece, answer in self.pool.wait():
                    self._take(piece, answer)
        finally:
            for cell in self.open.values():
                cell.stack.close()
        return [job.folder for job in jobs]

    def _finished(self, job: Job) -> bool:
        return job.folder.finished and self.local.traced(job)

    def _placed(self, cell: Checked) -> Checked:
        """The cell with ``auto`` replaced by what the cluster offers."""
        device, index = cell.spec.device.partition(":")[::2]
        if index:
            raise RequestError(f"device is {cell.spec.device}, and Ray deals out the GPUs itself: use --device cuda.")
        if device == "auto":
            device = "cuda" if self.pool.capacity("cuda") else "cpu"
        if not self.pool.capacity(device):
            raise RequestError(f"device is {device} and the cluster has none: use another --device.")
        return replace(cell, spec=cell.spec.resolved(device))

    # --- cells ------------------------------------------------------------------------------------------------------

    def _begin(self, job: Job) -> None:
        """Lock a cell's folder and queue its missing items."""
        with ExitStack() as stack:
            writer = stack.enter_context(job.folder.writing())
            if self._finished(job):  # by another process, meanwhile
                return
            done = {sample["key"] for sample in job.folder.samples()}
            timed = not job.folder.finished
            cell = _Open(job, _portable(job.cell.spec), stack.pop_all(), writer, done, len(done), timed=timed)
        self.open[job.key] = cell
        self.prices.read(job.folder.path.parent)
        missing = [item.key for item in job.items if item.key not in done]
        size = max(SHARD_LEAST, SHARD_ROUNDS * job.cell.spec.batch_size)
        for start in range(0, len(missing), size):
            self.queue.append(Piece(cell.spec, job.key, tuple(missing[start : start + size])))
        if not missing:
            self._queue_measuring(cell)
        self.told.opened(cell)

    def _queue_measuring(self, cell: _Open) -> None:
        samples = cell.job.folder.samples()
        if {sample["key"] for sample in samples} != {item.key for item in cell.job.items}:
            raise RunError(
                f"{cell.job.folder.name} does not hold the items it should; remove the folder and run again."
            )
        traces = 0 if self.local.traced(cell.job) else self.local.traces
        piece = Piece(
            cell.spec, cell.job.key, samples=tuple(samples), prices=self.prices, timed=cell.timed, traces=traces
        )
        self.queue.appendleft(piece)

    def _take(self, piece: Piece, answer: Any) -> None:
        """Write what came back, or queue again what was lost."""
        if isinstance(answer, Lost):
            self._again(piece)
            return
        cell = self.open[piece.key]
        if piece.measures:
            self._finish(cell, answer)
            return
        self._note_environment(cell, answer["environment"])
        for sample in answer["samples"]:
            cell.writer.sample(sample)
            cell.done.add(sample["key"])
            self.told.advanced(cell)
        if len(cell.done) == len(cell.job.items):
            self._queue_measuring(cell)

    def _again(self, piece: Piece) -> None:
        self.lost += 1
        self.tries[_name(piece)] += 1
        if self.tries[_name(piece)] == TRIES:
            what = f"items {piece.items[0]} to {piece.items[-1]}" if piece.items else "the speed pass"
            raise RunError(
                f"{TRIES} workers were lost one after another over {what} of {self.open[piece.key].job.cell.label}; "
                "look for lack of memory on the nodes, or lower --batch-size. The same command goes on from here."
            )
        self.queue.appendleft(piece)

    def _note_environment(self, cell: _Open, found: Mapping[str, Any]) -> None:
        """Name every kind of worker that made samples in the manifest, which must be there before the first sample."""
        before = cell.job.folder.manifest()
        known = before.get("environments") or [before.get("environment")]
        plain = [{name: value for name, value in (one or {}).items() if name != "samples_before"} for one in known]
        if json.loads(json.dumps(found)) not in plain:
            cell.writer.manifest(with_history(cell.job.manifest(found), before, len(cell.done)))

    def _finish(self, cell: _Open, answer: Mapping[str, Any]) -> None:
        job, writer = cell.job, cell.writer
        job.keep_prompts()
        if answer["traces"]:
            writer.traces(answer["traces"])
        if cell.timed:
            samples = job.folder.samples()
            calibration = self._calibration(answer["calibration"], samples)
            manifest = with_history(job.manifest(answer["environment"]), job.folder.manifest(), len(cell.done))
            writer.manifest({**manifest, "model": answer["model"], "calibration": calibration})
            writer.metrics({**aggregate(samples, calibration["prices"]), "speed": answer["speed"]})
        del self.open[job.key]
        cell.stack.close()
        self.told.finished(cell)

    def _calibration(self, found: Mapping[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A worker's calibration with the prices that were measured first in its circumstances."""
        self.prices.learn(found)
        return self.prices.record(found["circumstances"], {width for sample in samples for width in sample["widths"]})

    # --- who does what ----------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give every free worker what it may do now."""
        nodes = {seat.node for seat in self.pool.seats}
        for node in [node for node in self.reserved if node not in nodes]:  # it is gone
            self.queue.appendleft(self.reserved.pop(node))
        wanted = Counter(piece.kind for piece in (*self.queue, *self.reserved.values()))
        wanted.update(seat.piece.kind for seat in self.pool.seats if seat.piece)
        for kind, number in wanted.items():
            self.pool.staff(kind, number)
        for seat in self.pool.seats:
            piece = self._choose(seat) if seat.free else None
            if piece:
                alone = piece.measures and piece.kind == "cpu"
                self.pool.give(seat, replace(piece, threads=seat.cpus if alone else 1))

    def _choose(self, seat: Seat) -> Piece | None:
        """The next piece for a free worker, taken out of the queue; None when its node is to be left in peace."""
        beside = [other.piece for other in self.pool.seats if other.node == seat.node and other.piece]
        if seat.kind == "cpu" and any(piece.measures for piece in beside):
            return None
        if seat.kind == "cpu" and seat.node in self.reserved:
            return None if beside else self.reserved.pop(seat.node)
        piece = next((piece for piece in self.queue if piece.kind == seat.kind), None)
        if piece is None:
            return None
        self.queue.remove(piece)
        if piece.measures and piece.kind == "cpu" and beside:
            self.reserved[seat.node] = piece
            return None
        return piece


class _InOrder:
    """Tells progress as the local executor does, one cell after another, although they finish in any order."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.cells: deque[_Open] = deque()

    def opened(self, cell: _Open) -> None:
        self.cells.append(cell)
        if len(self.cells) == 1:
            self._show()

    def advanced(self, cell: _Open) -> None:
        cell.arrived += 1
        if cell is self.cells[0]:
            self.progress.advance()

    def finished(self, cell: _Open) -> None:
        cell.over = True
        while self.cells and self.cells[0].over:
            self.cells.popleft()
            self.progress.end()
            self._show()

    def _show(self) -> None:
        if self.cells:
            first = self.cells[0]
            self.progress.begin(first.job.cell.label, first.before, len(first.job.items))
            for _ in range(first.arrived):
                self.progress.advance()


def _name(piece: Piece) -> str:
    """A piece's name among those of its sweep, whoever does it."""
    return canonical([piece.key, piece.items])


def _portable(spec: RunSpec) -> RunSpec:
    """The spec with every place that exists here made absolute: workers may stand in another folder."""
    places = {}
    for name in ("model", *HELPERS, "data_dir", "plugin"):
        value = getattr(spec, name)
        if value and value not in PRESETS and Path(value).expanduser().exists():
            places[name] = str(Path(value).expanduser().absolute())
    return replace(spec, **places)
