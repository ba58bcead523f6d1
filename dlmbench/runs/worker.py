"""What a worker of a cluster does: the samples of some items, or all that needs an engine once the samples are there.

Nothing is written here; answers go back to the driver, which alone writes. A worker finds out by itself which run it is
asked for and refuses one whose key differs from the driver's: then weights, data or code are not the same on both
machines. Models and tasks stay loaded between pieces. Imports no Ray, so that it can be tested and used without.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from dlmbench.errors import RunError
from dlmbench.request import RunSpec
from dlmbench.runs.local import Job, Local, Source, here, model_record, sample_record
from dlmbench.runs.prices import Prices
from dlmbench.threads import THREADS


@dataclass(frozen=True)
class Piece:
    """Work that is done in one go, and done again elsewhere when its worker is lost."""

    spec: RunSpec  # resolved, its places absolute
    key: str  # of the run, as the driver found it
    items: tuple[str, ...] = ()  # keys of the items to make; none: measure
    samples: tuple[dict[str, Any], ...] = field(default=(), repr=False)  # all of the run, for measuring
    prices: Prices = field(default_factory=Prices, repr=False)  # known so far
    timed: bool = True  # False: the run is finished and only lacks recorded steps
    traces: int = 0  # items to record
    threads: int = 1  # of torch on the CPU

    @property
    def measures(self) -> bool:
        return not self.items

    @property
    def kind(self) -> str:
        """What the worker must have: "cpu" or "cuda"."""
        return self.spec.device


class Worker:
    """Does pieces, one after another."""

    def __init__(self, source: Source | None = None):
        self.local = Local(source)
        self._engine: tuple[str, Any] = ("", None)  # the last cell's

    def work(self, piece: Piece) -> dict[str, Any]:
        """The answer to one piece: {"environment", "samples"}, or for measuring {"environment", "model", "speed",
        "calibration", "traces"}.

        Raises RunError when the run is not the driver's, and whatever generating and scoring raise.
        """
        THREADS.at_most(piece.threads)
        spec = replace(piece.spec, out=os.devnull)  # nothing is looked up or written here
        job = self.local.job(replace(spec.check(), spec=spec.resolved()))
        if job.key != piece.key:
            raise RunError(
                f"A worker found another run than the driver for {job.cell.label} on {spec.task}: weights, data or "
                "dlmbench differ between the machines. Give all of them the same files."
            )
        if self._engine[0] != job.key:
            self._engine = ("", None)  # its networks go before others are loaded
            self._engine = (job.key, self.local.source.build(job.cell))
        answer = self._measured(piece, job) if piece.measures else self._samples(piece, job)
        return {"environment": here(job.cell), **answer}

    def _samples(self, piece: Piece, job: Job) -> dict[str, Any]:
        from dlmbench.tasks.lm import evaluate

        items = [item for item in job.items if item.key in set(piece.items)]
        found = evaluate(job.task, self._engine[1], items, seed=job.cell.spec.seed)
        return {"samples": [sample_record(*one) for one in found]}

    def _measured(self, piece: Piece, job: Job) -> dict[str, Any]:
        engine, answer = self._engine[1], {}
        if piece.timed:
            self.local.prices = piece.prices
            answer["speed"] = self.local.speed(job, engine, piece.samples)
            answer["calibration"] = self.local.calibration(job, engine, piece.samples)
            answer["model"] = model_record(job, engine)
        self.local.traces = piece.traces
        answer["traces"] = self.local.record(job, engine, piece.samples) if piece.traces else []
        return answer
