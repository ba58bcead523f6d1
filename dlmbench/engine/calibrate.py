"""What a forward costs: its time over that of one plain denoise forward of the target at the same batch size.

The default x axis of every figure (`cost`) is the sum of these prices over all forwards of an item, so that no helper
and no packed candidate is free and a wider forward is dearer than a narrow one. Prices belong to one device, batch size
and key length, and are kept in the manifest of the run that they price.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch

from dlmbench.backbone.attention import CachedAttention, QueryGroup
from dlmbench.backbone.cache import KVCache
from dlmbench.backbone.network import Network, bucket
from dlmbench.engine.graphs import CUDARecording, on_device, on_side_stream
from dlmbench.errors import RunError
from dlmbench.forwards import ForwardKey

if TYPE_CHECKING:
    from dlmbench.engine import Engine


class Measured(NamedTuple):
    """What forwards were measured to cost: each in plain denoise forwards, and one of these in seconds."""

    seconds_per_denoise: float
    prices: dict[ForwardKey, float]


def prices(engine: Engine, repeats: int) -> Measured:
    """Price of each forward in ``engine.shapes`` (what its runs have met); 1.0 for a plain denoise.

    Raises RunError when the engine has not generated anything yet.
    """
    if not engine.shapes:
        raise RunError("Nothing to calibrate: generate some items first, so that the forwards to price are known.")
    if not engine.target.priced:
        return Measured(0.0, dict.fromkeys(sorted(engine.shapes), 1.0))
    batch = engine.batch_size
    plain, base = _plain(engine, repeats)
    found = {
        key: 1.0 if key == plain else round(_seconds(engine, key, batch, repeats) / base, 4)
        for key in sorted(engine.shapes)
    }
    return Measured(base, found)


def _plain(engine: Engine, repeats: int) -> tuple[ForwardKey | None, float]:
    """The forward that costs 1, and its seconds: a denoise (or, without a cache, a refresh) of the target that does
    nothing else; one of the same size where the method never asks for one (speculative methods verify instead)."""
    block = engine.target.block_length
    if engine.target.config.attention == "full":
        return _whole_row(engine, repeats)
    ours = [key for key in sorted(engine.shapes) if key.role == "target" and key.kind != "prefill"]
    plainest = ForwardKey("target", "denoise", str(block))
    candidates = [plainest, *(key for key in ours if key.kind in ("refresh", "denoise"))]
    plain = next((key for key in candidates if key in engine.shapes), None)
    if plain is not None:
        return plain, _seconds(engine, plain, engine.batch_size, repeats)
    one = engine.shapes[ours[0]]
    keys = round(one.pairs / one.query_tokens)
    return None, _timed(engine, "target", engine.batch_size, block, keys, block, repeats)


def _whole_row(engine: Engine, repeats: int) -> tuple[ForwardKey | None, float]:
    """The unit of full attention: a forward of the whole row without a cache, the block through the head."""
    block = engine.target.block_length
    plain = ForwardKey("target", "refresh", f"row:{block}")
    if plain in engine.shapes:
        return plain, _seconds(engine, plain, engine.batch_size, repeats)
    rows = [work for key, work in engine.shapes.items() if key[:2] == plain[:2] and key.shape.startswith("row")]
    keys = round(rows[0].pairs / rows[0].query_tokens)
    return None, _timed(engine, "target", engine.batch_size, keys, keys, block, repeats)


def _seconds(engine: Engine, key: ForwardKey, rows: int, repeats: int) -> float:
    """Seconds of a forward as it was computed: a numbered shape says its queries, other shapes take their mean."""
    calls, queries, pairs, projected = engine.shapes[key]
    halves = 2 if key.shape.endswith("x2") else 1  # guidance: twice the rows, each of half the tokens
    width = int(key.shape) if key.shape.isdigit() else max(round(queries / halves / calls), 1)
    keys = max(round(pairs / max(queries, 1)), 1)
    through_head = round(width * projected / max(queries, 1))
    return _timed(engine, key.role, halves * rows, width, keys, through_head, repeats)


def _timed(engine: Engine, role: str, rows: int, width: int, keys: int, projected: int, repeats: int) -> float:
    net = engine.nets[role]
    if net.cache is not None and not net.cache.holds(rows, bucket(max(keys, width))):
        engine.release()  # scratch buffers beside its own might not fit
    return forward_seconds(net, rows, width, keys, projected, repeats)


@torch.inference_mode()
def forward_seconds(net: Network, rows: int, width: int, keys: int, projected: int, repeats: int) -> float:
    """Median seconds of one forward (`forward_of`), as a replayed graph on a GPU."""
    with forward_of(net, rows, width, keys, projected) as once:
        return median_seconds(_recorded(once) if net.device.type == "cuda" else once, net.device, repeats)


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
            states = forward(positions.reshape(-1), CachedAttention(cache, slot_mapping, [QueryGroup(positions, bias)]))
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


def _recorded(once: Callable[[], object]) -> Callable[[], object]:
    """The same as a replayed CUDA graph, as steps are run; as it is where that cannot be recorded."""
    on_side_stream(once)
    recording = CUDARecording()
    try:
        recording.record(once)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return once
    return recording.replay


def median_seconds(once: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall seconds of calling `once`, synchronised, after one warm-up call; short calls are timed in runs."""

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    once()
    synchronise()
    began = time.perf_counter()
    once()
    synchronise()
    inner = max(1, int(0.005 / max(time.perf_counter() - began, 1e-6)))
    samples = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(inner):
            once()
        synchronise()
        samples.append((time.perf_counter() - began) / inner)
    return statistics.median(samples)
