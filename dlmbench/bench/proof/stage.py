"""What a stage of the proof is, what it is given and what it leaves behind. Imports nothing heavy."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    import torch

PASSED, FAILED, STOPPED, RUNNING, NOT_MEASURED = "passed", "failed", "stopped", "running", "not measured"
FINISHED = PASSED, FAILED  # what is kept when a proof is started again
Figures = dict[str, Any]  # JSON; every stage has its own


class ProofCircumstances(TypedDict):
    """What a result depends on: results of others are measured again."""

    device: str
    driver: str | None
    cuda: str | None
    cudnn: int | None
    versions: dict[str, str]
    threads: int
    shapes: str
    commit: str | None
    source: str  # hash of the package's modules


class StageRecord(TypedDict):
    """What a stage leaves behind, as it is written."""

    stage: str
    status: str
    seconds: float
    words: str  # the figures in one line
    faults: list[str]
    figures: Figures
    circumstances: NotRequired[ProofCircumstances]
    older: NotRequired[bool]  # made in other circumstances than the proof's


@dataclass(frozen=True)
class Stage:
    """One part of the proof. `seconds` is its box, and it is not begun with fewer than `least` left.

    `target` names the function that runs it, on a `StageTrial`.
    """

    name: str
    seconds: float
    least: float
    target: str

    def load(self) -> Callable[[StageTrial], None]:
        module, _, function = self.target.partition(":")
        return getattr(importlib.import_module(f"dlmbench.bench.proof.{module}"), function)


STAGES = (
    Stage("sdpa", 10, 3, "device:sdpa"),
    Stage("device", 15, 4, "device:device"),
    Stage("golden", 40, 8, "correctness:golden"),
    Stage("recorded", 60, 15, "correctness:recorded"),
    Stage("sdar-8b", 70, 30, "speed:sdar_8b"),
    Stage("llada-8b", 30, 15, "speed:llada_8b"),
    Stage("sdar-4b", 40, 15, "speed:sdar_4b"),
    Stage("llada2-mini", 45, 15, "speed:llada2_mini"),
    Stage("nano", 45, 10, "speed:nano"),
    Stage("bfloat16", 20, 8, "correctness:bfloat16"),
)


@dataclass(frozen=True)
class ProofSizes:
    """How much is tried: `FULL` on a GPU, `TINY` in the rehearsal."""

    name: str = "full"
    patience: float = 1.0  # boxes of time are as many times longer
    sound: float = 0.8  # accuracy that nano has at its best threshold on any device (94 % on a CPU)
    shapes: Mapping[str, str] = field(default_factory=dict)  # stage -> shape, where it is not the stage's name
    context: int = 1024  # tokens of prompts at batch 1
    tokens: int = 64  # at most, of an answer
    rows: int = 128
    rows_prompt: int = 256
    sparse_rows: int = 32
    repeats: int = 5
    golden: int | None = None  # cases an area; None: two, then as many as time allows
    requests: int = 7  # for every decoder, on tiny networks
    thresholds: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
    generations: int = 500  # for every threshold
    batch: int = 128
    compared: int = 64  # items in float32 and in bfloat16


FULL = ProofSizes()
_TINY_SHAPES = {
    "sdar-8b": "sdar-tiny", "sdar-4b": "sdar-tiny", "llada-8b": "llada-tiny", "llada2-mini": "llada2-tiny",
}  # fmt: skip
TINY = ProofSizes(
    "tiny", 4.0, 0.3, _TINY_SHAPES, context=40, tokens=8, rows=8, rows_prompt=24, sparse_rows=4, repeats=2, golden=2,
    requests=2, thresholds=(0.6, 0.9), generations=6, batch=6, compared=2,
)  # fmt: skip
SIZES = {sizes.name: sizes for sizes in (FULL, TINY)}


@dataclass
class StageTrial:
    """A stage under way: where it runs, how long it may, and what it has found so far.

    `earlier` holds the figures of stages that have ended; `publish` is called with what is known whenever that grows,
    so that a stage which is stopped leaves it behind.
    """

    device: torch.device
    sizes: ProofSizes
    seconds: float = math.inf
    earlier: Mapping[str, Figures] = field(default_factory=dict)
    publish: Callable[[StageTrial], None] = lambda trial: None
    figures: Figures = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    words: str = ""  # the figures in one line
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the stage's box ends."""
        return self.seconds - (time.monotonic() - self.began)

    def keep(self, words: str = "", **figures: object) -> None:
        """Add figures; `words` is the stage's line from now on."""
        self.figures |= figures
        self.words = words or self.words
        self.publish(self)

    def fault(self, sentence: str) -> None:
        """Something that the stage checks does not hold."""
        self.faults.append(sentence)
        self.publish(self)

    def record(self, stage: str, status: str) -> StageRecord:
        """The stage's record, in the form in which it is written."""
        return {
            "stage": stage, "status": status, "seconds": round(time.monotonic() - self.began, 2), "words": self.words,
            "faults": list(self.faults), "figures": {key: _finite(one) for key, one in self.figures.items()},
        }  # fmt: skip


def _finite(value: object) -> object:
    """JSON knows no infinity: null stands for it."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def perform(stage: Stage, trial: StageTrial) -> tuple[StageRecord, bool]:
    """(record, raised) of a stage that was run to its end; whatever goes wrong in it is part of its record.

    `raised` tells that it broke off: what it was doing may have left its process unfit for others.
    """
    import traceback

    raised = False
    try:
        stage.load()(trial)
    except Exception as error:
        traceback.print_exc()
        raised = True
        sentence = " ".join(str(error).split())[:300]
        trial.faults.append(f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__)
    return trial.record(stage.name, FAILED if trial.faults else PASSED), raised
