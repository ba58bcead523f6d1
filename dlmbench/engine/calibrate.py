"""What a forward costs: its time over that of one plain denoise forward of the target at the same batch size.

The default x axis of every figure (`cost`) is the sum of these prices over all forwards of an item, so that no helper
and no packed candidate is free and a wider forward is dearer than a narrow one. Prices belong to one device, batch size
and key length, and are kept in the manifest of the run that they price.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch

from dlmbench.backbone.attention import CachedAttention, QueryGroup
from dlmbench.backbone.cache import KVCache
from dlmbench.backbone.network import Network, bucket
from dlmbench.engine.graphs import CUDARecording, on_device, on_side_stream
from dlmbench.engine.request import now
from dlmbench.errors import RunError
from dlmbench.forwards import ForwardKey
from dlmbench.stats import median_interval

if TYPE_CHECKING:
    from dlmbench.engine import Engine

REPEATS = 12  # of a price
OF_PREFILL = 6  # of them: a prompt is long and encoded once an item
FEWEST = 5  # of them, where they would take longer than ...
MOST_SECONDS = 2.0
LEAST_SECONDS = 0.002  # shorter forwards are timed in runs


class Measured(NamedTuple):
    """What forwards were measured to cost: each in plain denoise forwards, and one of these in seconds. `spreads`: the
    95 % interval of each price that was measured against another forward."""

    seconds_per_denoise: float
    prices: dict[ForwardKey, float]
    spreads: Mapping[ForwardKey, tuple[float, float]] = MappingProxyType({})


class TimedForward(NamedTuple):
    """A forward to be timed (`forward_of`)."""

    role: str
    rows: int
    width: int
    keys: int
    projected: int


def prices(engine: Engine, repeats: int) -> Measured:
    """Price of each forward in ``engine.shapes`` (what its runs have met); 1.0 for a plain denoise.

    Each is timed in turns with the plain one, so that a machine that drifts or is busy treats both alike; a price is
    the median of the ratios. Raises RunError when the engine has not generated anything yet.
    """
    if not engine.shapes:
        raise RunError("Nothing to calibrate: generate some items first, so that the forwards to price are known.")
    if not engine.target.priced:
        return Measured(0.0, dict.fromkeys(sorted(engine.shapes), 1.0))
    key, plain = _plain(engine)
    seconds: list[float] = []
    found = {key: 1.0} if key else {}
    spreads = {}
    for other in sorted(engine.shapes.keys() - found.keys()):
        rounds = min(repeats, OF_PREFILL) if other.kind == "prefill" else repeats
        pairs = _in_turns(engine, (plain, _timed(engine, other)), rounds)
        seconds += [first for first, _ in pairs]
        ratios = [second / first for first, second in pairs]
        low, high = median_interval(ratios)
        found[other], spreads[other] = round(statistics.median(ratios), 4), (round(low, 4), round(high, 4))
    seconds = seconds or [one for (one,) in _in_turns(engine, (plain,), repeats)]
    return Measured(statistics.median(seconds), dict(sorted(found.items())), spreads)


def _plain(engine: Engine) -> tuple[ForwardKey | None, TimedForward]:
    """The forward that costs 1: a denoise (or, without a cache, a refresh) of the target that does nothing else; one of
    the same size where the method never asks for one (speculative methods verify instead)."""
    block = engine.target.block_length
    if engine.target.config.attention == "full":
        return _whole_row(engine)
    ours = [key for key in sorted(engine.shapes) if key.role == "target" and key.kind != "prefill"]
    plainest = ForwardKey("target", "denoise", str(block))
    candidates = [plainest, *(key for key in ours if key.kind in ("refresh", "denoise"))]
    plain = next((key for key in candidates if key in engine.shapes), None)
    if plain is not None:
        return plain, _timed(engine, plain)
    one = engine.shapes[ours[0]]
    return None, TimedForward("target", engine.batch_size, block, round(one.pairs / one.query_tokens), block)


def _whole_row(engine: Engine) -> tuple[ForwardKey | None, TimedForward]:
    """The unit of full attention: a forward of the whole row without a cache, the block through the head."""
    block = engine.target.block_length
    plain = ForwardKey("target", "refresh", f"row:{block}")
    if plain in engine.shapes:
        return plain, _timed(engine, plain)
    rows = [work for key, work in engine.shapes.items() if key[:2] == plain[:2] and key.shape.startswith("row")]
    whole = rows[0].pairs / rows[0].query_tokens
    if engine.traits.initial:  # rows that grow are compared with those that have all of their budget from the start
        whole = engine.step.budgets / engine.step.finished
    keys = round(whole)
    return None, TimedForward("target", engine.batch_size, keys, keys, block)


def _timed(engine: Engine, key: ForwardKey) -> TimedForward:
    """A forward as it was computed: a numbered shape says its queries, other shapes take their mean."""
    calls, queries, pairs, projected = engine.shapes[key]
    halves = 2 if key.shape.endswith("x2") else 1  # guidance: twice the rows, each of half the tokens
    width = int(key.shape) if key.shape.isdigit() else max(round(queries / halves / calls), 1)
    keys = max(round(pairs / max(queries, 1)), 1)
    return TimedForward(key.role, halves * engine.batch_size, width, keys, round(width * projected / max(queries, 1)))


def _in_turns(engine: Engine, timed: Sequence[TimedForward], repeats: int) -> list[tuple[float, ...]]:
    """Seconds of each of these forwards in every round, synchronised; fewer rounds than `repeats` where they take long.

    On a GPU they are replayed graphs, as steps are.
    """
    nets = [engine.nets[one.role] for one in timed]
    for net, one in zip(nets, timed):
        if net.cache is not None and not net.cache.holds(one.rows, bucket(max(one.keys, one.width))):
            engine.release()  # scratch buffers beside its own might not fit
    with torch.inference_mode(), ExitStack() as stack:
        calls = [stack.enter_context(forward_of(net, *one[1:])) for net, one in zip(nets, timed)]
        timers = [Timer(ready(once, net.device), net.device, LEAST_SECONDS) for once, net in zip(calls, nets)]
        rounds: list[tuple[float, ...]] = []
        began = time.perf_counter()
        while len(rounds) < repeats and (len(rounds) < FEWEST or time.perf_counter() - began < MOST_SECONDS):
            rounds.append(tuple(timer.seconds() for timer in timers))
    return rounds


@torch.inference_mode()
def forward_seconds(net: Network, rows: int, width: int, keys: int, projected: int, repeats: int) -> float:
    """Median seconds of one forward (`forward_of`), as a replayed graph on a GPU."""
    with forward_of(net, rows, width, keys, projected) as once:
        return median_seconds(ready(once, net.device), net.device, repeats)


@contextmanager
def forward_of(net: Network, rows: int, width: int, keys: int, projected: int) -> Iterator[Callable[[], None]]:
    """One forward to be timed: `rows` rows of `width` queries over `keys` keys, `projected` of them through the head.

    Runs on the network's own keys and values where they are large enough, and spends them; else on scratch buffers.
    """
    seen = bucket(max(keys, width))
    net.model.reserve(seen)
    with on_device(net.device), _cache(net, rows, seen) as cache:
        positions = torch.arange(seen - width, seen, device=net.device).expand(rows, width)
        slot_mapping = cache.slot_mapping(None, positions)
        bias = cache.prefix_bias(torch.full((rows,), seen, device=net.device), seen)
        forward = net.trial(rows * width)

        def once() -> None:
            with cache.narrowed(rows):  # another forward may be timed in turns with this one
                attend = CachedAttention(cache, slot_mapping, [QueryGroup(positions, bias)])
                states = forward(positions.reshape(-1), attend)
            if projected:
                net.model.project(states[: rows * projected])

        yield once


@contextmanager
def _cache(net: Network, rows: int, slots: int) -> Iterator[KVCache]:
    """Keys and values for that many rows and slots."""
    if net.cache is None or not net.cache.holds(rows, slots):
        yield KVCache(net.config, rows, slots, net.device, net.dtype)
        return
    with net.cache.narrowed(rows) as cache:
        yield cache


def ready(once: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A forward as a replayed CUDA graph, as steps are run; as it is on a CPU and where that cannot be recorded."""
    if device.type != "cuda":
        return once
    on_side_stream(once)
    recording = CUDARecording()
    try:
        recording.record(once)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return once
    return recording.replay


class Timer:
    """Wall seconds of calling `once`, synchronised, after a warm-up; calls that are shorter than `least` seconds are
    timed in runs of so many."""

    def __init__(self, once: Callable[[], object], device: torch.device, least: float):
        self.once, self.device, self.calls = once, device, 1
        self.seconds()
        self.calls = max(1, int(least / max(self.seconds(), 1e-6)))

    def seconds(self) -> float:
        """Of one call, measured now."""
        began = now(self.device)
        for _ in range(self.calls):
            self.once()
        return (now(self.device) - began) / self.calls


def median_seconds(once: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall seconds of calling `once`, synchronised, after one warm-up call; short calls are timed in runs."""
    timer = Timer(once, device, 0.005)
    return statistics.median(timer.seconds() for _ in range(repeats))
