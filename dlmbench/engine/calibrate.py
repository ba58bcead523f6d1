"""What a forward costs: its time over that of one plain denoise forward of the target at the same batch size.

The default x axis of every figure (`cost`) is the sum of these prices over all forwards of an item, so that no helper
and no packed candidate is free and a wider forward is dearer than a narrow one. Prices belong to one device, batch size
and key length, and are kept in the manifest of the run that they price.
"""

from __future__ import annotations

import statistics
import time

import torch

from dlmbench.backbone.attention import CachedAttention, Group, keys_before
from dlmbench.backbone.network import KEY_BUCKET, Network
from dlmbench.errors import RunError


def prices(engine, repeats: int) -> dict[str, float]:
    """Price of each "role/kind/shape" in ``engine.shapes`` (what its runs have met), 1.0 for a plain denoise.

    Raises RunError when the engine has not generated anything yet.
    """
    if not engine.shapes:
        raise RunError("Nothing to calibrate: generate some items first, so that the forwards to price are known.")
    batch = engine.batch_size
    plain = _plain(engine)
    base = _seconds(engine, plain, batch, repeats)
    result = {"seconds_per_denoise": base}
    for name in sorted(engine.shapes):
        rows = 1 if "/prefill/" in name else batch
        share = batch / rows  # a batch's denoise serves `batch` rows, a prefill of one row only that row
        result[name] = 1.0 if name == plain else round(_seconds(engine, name, rows, repeats) * share / base, 4)
    return result


def _plain(engine) -> str:
    """The forward that costs 1: a denoise (or, without a cache, a refresh) of the target that does nothing else."""
    block = f"target/denoise/{engine.target.block_length}"
    candidates = [block, *(name for name in engine.shapes if name.startswith(("target/refresh", "target/denoise")))]
    return next((name for name in candidates if name in engine.shapes), min(engine.shapes))


def _seconds(engine, name: str, rows: int, repeats: int) -> float:
    calls, queries, pairs = engine.shapes[name]
    role, kind, _ = name.split("/")
    width, keys = max(round(queries / calls), 1), max(round(pairs / queries), 1)
    return forward_seconds(engine.nets[role], rows, width, keys, kind not in ("prefill", "store"), repeats)


@torch.inference_mode()
def forward_seconds(net: Network, rows: int, width: int, keys: int, head: bool, repeats: int) -> float:
    """Median seconds of one forward: `rows` rows of `width` queries over `keys` keys, with or without the head.

    Runs on scratch buffers beside the network's own.
    """
    from dlmbench.backbone.cache import KVCache

    seen = -(-max(keys, width) // KEY_BUCKET) * KEY_BUCKET
    cache = KVCache(net.config, rows, seen, net.device, net.dtype)
    positions = torch.arange(seen - width, seen, device=net.device).expand(rows, width)
    index = torch.arange(rows, device=net.device)
    everything = torch.ones(rows, dtype=torch.bool, device=net.device)
    places = cache.places(index, positions, everything)
    bias = keys_before(torch.full((rows,), seen, device=net.device), seen, net.dtype)
    x = net.model.embed(torch.zeros(rows * width, dtype=torch.long, device=net.device))

    def once() -> None:
        states = net.model(x, positions.reshape(-1), CachedAttention(cache, places, [Group(positions, bias)]))
        if head:
            net.model.project(states[: rows * min(width, net.block_length)])

    return median_seconds(once, net.device, repeats)


def median_seconds(once, device: torch.device, repeats: int) -> float:
    """Median wall seconds of calling `once`, synchronised, after one warm-up call; short calls are timed in runs."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
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
