"""The order of the stages, their boxes of time, and the life of the worker that runs them. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from dlmbench.bench.proof.stage import (
    FINISHED,
    NOT_MEASURED,
    SIZES,
    STAGES,
    STOPPED,
    Figures,
    ProofCircumstances,
    Stage,
    StageRecord,
)
from dlmbench.bench.proof.summary import Summary, line_of, screen_of, summary_of
from dlmbench.errors import RequestError, RunError
from dlmbench.runs.folder import write_lines, write_whole

START = 90.0  # seconds within which a worker must be ready: a fresh machine reads torch from its disk
RESERVE = 3.0  # seconds of the budget kept for this process to start, to stop a worker and to write the summary
WAIT = 0.5  # seconds beyond its box within which a stage may end by itself
EVERY = tuple(stage.name for stage in STAGES)
LOG = "worker.log"


class Broken(Exception):
    """A worker did not answer in time, or died; the message says which."""


class StageRunner(Protocol):
    """What runs stages: `WorkerProcess`, or a function in this process where tests want one."""

    circumstances: ProofCircumstances

    def run(self, stage: Stage, seconds: float, file: Path, earlier: Mapping[str, Figures]) -> bool:
        """Run `stage`, whose record is in `file` afterwards; can others be run after it? Raises Broken."""

    def kill(self) -> None: ...


class WorkerProcess:
    """The worker process, with a process group of its own: whatever it starts ends with it."""

    def __init__(self, out: Path, device: str, shapes: str, seconds: float):
        with (out / LOG).open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dlmbench.bench.proof.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        assert process.stdin and process.stdout  # both are pipes
        self.process, self._requests, self._answers, self._rest = process, process.stdin, process.stdout, b""
        self._ask({"device": device, "shapes": shapes})
        try:
            answer = self._answer(seconds)
            if "refused" in answer:
                raise RequestError(answer["refused"])
        except (Broken, RequestError):
            self.kill()
            raise
        self.circumstances: ProofCircumstances = answer

    def run(self, stage: Stage, seconds: float, file: Path, earlier: Mapping[str, Figures]) -> bool:
        self._ask({"stage": stage.name, "seconds": seconds, "file": str(file.resolve()), "earlier": earlier})
        return not self._answer(seconds + WAIT)["raised"]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for stream in (self._requests, self._answers):
            with suppress(BrokenPipeError):
                stream.close()
        self.process.wait()

    def _ask(self, request: Mapping[str, object]) -> None:
        with suppress(BrokenPipeError):  # it is dead, as its answer will tell
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()

    def _answer(self, seconds: float):
        until = time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(until - time.monotonic(), 0))
            if not ready:
                raise Broken(f"it took longer than {seconds:.0f} s and was stopped")
            read = os.read(self._answers.fileno(), 1 << 16)
            if not read:
                code = self.process.wait()
                words = f"by signal {-code}" if code < 0 else f"with exit code {code}"
                raise Broken(f"its process ended {words}; {LOG} may say why")
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


def chosen(only: str = "", skip: str = "") -> list[Stage]:
    """The stages that `only` names (all where it names none) and `skip` does not. Raises RequestError."""
    wanted, unwanted = ([name for name in text.split(",") if name] for text in (only, skip))
    for name in (*wanted, *unwanted):
        if name not in EVERY:
            raise RequestError(f"The proof has no stage {name!r}; it has {', '.join(EVERY)}.")
    return [stage for stage in STAGES if (not wanted or stage.name in wanted) and stage.name not in unwanted]


def prove(
    out: Path,
    device: str,
    shapes: str,
    budget: float,
    stages: Sequence[Stage] = STAGES,
    *,
    fresh: bool = False,
    launch: Callable[[Path, str, str, float], StageRunner] = WorkerProcess,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Run the stages that are not finished yet, within `budget` seconds -> the summary, which is also written.

    A finished stage is kept unless `fresh`, or made by other sources, versions or devices. `say` is called with a line
    as each stage ends.

    Raises RunError when no worker can be started.
    """
    began, patience = clock(), SIZES[shapes].patience
    out.mkdir(parents=True, exist_ok=True)

    def left() -> float:
        return budget - RESERVE - (clock() - began)

    first = _started(launch, out, device, shapes, left())
    runner: StageRunner | None = first
    here, records = first.circumstances, _records(out)
    try:
        for stage in stages:
            known, file, seconds = records.get(stage.name), out / f"{stage.name}.json", left()
            kept = known if known and known["status"] in FINISHED else None
            if not fresh and kept and kept.get("circumstances") == here:
                say(line_of(kept) + " (kept)")
                continue
            if seconds < stage.least:
                record = _left_out(stage, f"needs {stage.least:.0f} s, {max(seconds, 0):.0f} s were left")
                if kept:  # older figures are better than none
                    say(line_of(record))
                    continue
            else:
                file.unlink(missing_ok=True)
                fit = False
                try:
                    runner = runner or _started(launch, out, device, shapes, seconds)
                    fit = runner.run(stage, min(patience * stage.seconds, left()), file, _figures(records, here))
                    record = _read(file) or _broken_off(stage, file, "its record cannot be read")
                except (Broken, RunError) as error:
                    record = _broken_off(stage, file, str(error))
                if runner and not fit:
                    runner.kill()
                    runner = None
            records[stage.name] = {**record, "circumstances": here}
            write_lines(file, [records[stage.name]])
            say(line_of(record))
            _summarise(out, here, records)
    finally:
        if runner:
            runner.kill()
    return _summarise(out, here, records)


def _figures(records: Mapping[str, StageRecord], here: ProofCircumstances) -> dict[str, Figures]:
    """What finished stages measured here, for stages that build on it."""
    return {
        name: record["figures"]
        for name, record in records.items()
        if record.get("circumstances") == here and record["status"] in FINISHED
    }


def _started(launch: Callable, out: Path, device: str, shapes: str, seconds: float) -> StageRunner:
    try:
        return launch(out, device, shapes, min(seconds, START))
    except Broken as error:
        raise RunError(f"The proof's worker cannot start: {error}.") from error


def _records(out: Path) -> dict[str, StageRecord]:
    """What earlier proofs left; a stage that was under way when its proof was killed is not among it."""
    found = {name: _read(out / f"{name}.json") for name in EVERY if (out / f"{name}.json").is_file()}
    return {name: record for name, record in found.items() if record and "circumstances" in record}


def _read(file: Path) -> StageRecord | None:
    try:
        return json.loads(file.read_text()) or None
    except (OSError, ValueError):  # a disk that was full, a file that somebody changed: as if there were none
        return None


def _left_out(stage: Stage, reason: str) -> StageRecord:
    return {**_nothing(stage.name), "faults": [reason]}


def _nothing(name: str) -> StageRecord:
    return {"stage": name, "status": NOT_MEASURED, "seconds": 0.0, "words": "", "faults": [], "figures": {}}


def _broken_off(stage: Stage, file: Path, reason: str) -> StageRecord:
    """A stage that did not come to its end, with what it had found out."""
    known = _read(file) or _nothing(stage.name)
    return {**known, "status": STOPPED, "faults": [*known["faults"], reason]}


def _summarise(out: Path, here: ProofCircumstances, records: Mapping[str, StageRecord]) -> Summary:
    """Write summary.json and summary.md, and return the first."""
    summary = summary_of(here, [records.get(name) or _nothing(name) for name in EVERY])
    write_lines(out / "summary.json", [summary])
    write_whole(out / "summary.md", screen_of(summary))
    return summary
