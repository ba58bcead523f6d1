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
from dlmbench.runs.local import LocalRunner
from dlmbench.runs.prices import PriceList
from dlmbench.runs.record import Calibration, Environment, Json, Sample, Speed, Trace
from dlmbench.runs.runner import Loaders, Run, sample_of
from dlmbench.threads import THREADS


@dataclass(frozen=True)
class Shard:
    """Work that is done in one go, and done again elsewhere when its worker is lost."""

    spec: RunSpec  # settled, its places absolute
    key: str  # of the run, as the driver found it
    items: tuple[str, ...] = ()  # keys of the items to make; none: measure
    samples: tuple[Sample, ...] = field(default=(), repr=False)  # all of the run, for measuring
    prices: PriceList = field(default_factory=PriceList, repr=False)  # known so far
    timed: bool = True  # False: the run is finished and only lacks recorded steps
    trial: bool = False  # True: no speed either
    traces: int = 0  # items to record
    threads: int = 1  # of torch on the CPU

    @property
    def measures(self) -> bool:
        return not self.items

    @property
    def kind(self) -> str:
        """What the worker must have: "cpu" or "cuda"."""
        return self.spec.device


@dataclass(frozen=True)
class Answer:
    """What comes back for a shard: samples, or everything that was measured."""

    environment: Environment
    samples: tuple[Sample, ...] = ()
    model: dict[str, Json] = field(default_factory=dict)
    speed: Speed | None = None
    calibration: Calibration | None = None
    traces: tuple[Trace, ...] = ()


class Worker:
    """Does shards, one after another."""

    def __init__(self, loaders: Loaders | None = None):
        self.local = LocalRunner(loaders)
        self._engine: tuple[str, Any] = ("", None)  # the last run's

    def work(self, shard: Shard) -> Answer:
        """The answer to one shard.

        Raises RunError when the run is not the driver's, and whatever generating and scoring raise.
        """
        THREADS.at_most(shard.threads)
        spec = replace(shard.spec, out=os.devnull)  # nothing is looked up or written here
        run = self.local.catalog.run(spec.resolve())
        if run.key != shard.key:
            raise RunError(
                f"A worker found another run than the driver for {run.title}: weights, data or "
                "dlmbench differ between the machines. Give all of them the same files."
            )
        if self._engine[0] != run.key:
            self._engine = ("", None)  # its networks go before others are loaded
            self._engine = (run.key, self.local.catalog.loaders.build(run.resolved))
        answer = self._measured(shard, run) if shard.measures else self._sampled(shard, run)
        return replace(answer, environment=run.environment())

    def _sampled(self, shard: Shard, run: Run) -> Answer:
        items = [item for item in run.items if item.key in set(shard.items)]
        found = run.task.evaluate(self._engine[1], items, seed=run.resolved.spec.seed)
        return Answer(run.environment(), samples=tuple(sample_of(*one) for one in found))

    def _measured(self, shard: Shard, run: Run) -> Answer:
        engine, answer = self._engine[1], Answer(run.environment())
        if shard.timed:
            self.local.prices = shard.prices
            answer = replace(
                answer,
                speed=None if shard.trial else self.local.speed(run, engine, shard.samples),
                calibration=self.local.calibration(run, engine, shard.samples),
                model=run.described(engine),
            )
        self.local.traces = shard.traces
        return replace(answer, traces=tuple(self.local.record(run, engine, shard.samples)) if shard.traces else ())
