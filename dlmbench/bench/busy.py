"""A forward beside other processes: what the chosen number of threads is worth on a machine that is not quiet."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from dlmbench.backbone.network import Network
from dlmbench.bench.networks import random_model
from dlmbench.engine.calibrate import forward_of
from dlmbench.threads import THREADS, Watch

SECONDS = (
    3.0  # of forwards that are timed under one load; of the first second, in which threads are chosen, none counts
)
KEYS = 128
_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(100000): pass"


def run_busy(shape: str, dtype: str, block_length: int, batch_sizes: Sequence[int], loads: Sequence[int]) -> dict:
    """Milliseconds of a forward of a block for each batch size, quiet and beside each number of spinning processes, at
    the watched number of threads and at all of them. Axis of loads: 0 is the quiet machine."""
    net = Network("target", random_model(shape, "cpu", getattr(torch, dtype)), block_length)
    rows = []
    for load in (0, *loads):
        with spinning(load):
            for batch in batch_sizes:
                rows.append({"batch": batch, "load": load, **_watched(net, batch), **_with_all(net, batch)})
    quiet = {row["batch"]: row["ms"] for row in rows if row["load"] == 0}
    for row in rows:
        row["times_quiet"] = row["ms"] / quiet[row["batch"]]
    record = {"shape": shape, "dtype": dtype, "device": "cpu", "threads": THREADS.most, "torch": torch.__version__}
    return {**record, "block_length": block_length, "keys": KEYS, "busy": rows}


@contextmanager
def spinning(processes: int) -> Iterator[None]:
    """So many processes that want a core each and do nothing with it; they end with this one."""
    started = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(processes)]
    try:
        if started:
            time.sleep(1.0)  # until they spin
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@torch.inference_mode()
def _watched(net: Network, batch: int) -> dict[str, float]:
    """Forwards as an engine runs them, their threads watched."""
    samples, watch = [], Watch()
    with forward_of(net, batch, net.block_length, KEYS, net.block_length) as forward:
        watch.begin(net.sample(batch, net.block_length, KEYS), batch)
        began = at = time.perf_counter()
        while at - began < SECONDS:
            forward()
            now = time.perf_counter()
            samples.append((at - began, now - at))
            watch.step(now - at)
            at = time.perf_counter()
    counted = [1e3 * seconds for start, seconds in samples if start > SECONDS / 3] or [1e3 * samples[-1][1]]
    ordered = sorted(counted)
    return {"ms": statistics.median(ordered), "ms_p95": ordered[95 * len(ordered) // 100], "chosen": THREADS.number}


@torch.inference_mode()
def _with_all(net: Network, batch: int) -> dict[str, float]:
    """The same with all threads, whatever happens."""
    THREADS.use_all()
    samples: list[float] = []
    with forward_of(net, batch, net.block_length, KEYS, net.block_length) as forward:
        forward()
        began = time.perf_counter()
        while not samples or time.perf_counter() - began < SECONDS / 2:
            at = time.perf_counter()
            forward()
            samples.append(1e3 * (time.perf_counter() - at))
    return {"all_threads_ms": statistics.median(samples)}
