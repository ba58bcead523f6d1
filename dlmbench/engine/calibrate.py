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
    """Price of each "role/kind/width" in ``engine.widths`` (what its runs have met), 1.0 for a plain denoise.

    Raises RunError when the engine has not generated anything yet.
    """
    if not engine.widths:
        raise RunError("Nothing to calibrate: generate some items first, so that the forwards to price are known.")
    batch = engine.batch_size
    block = engine.target.block_length
    base_keys = _mean_keys(engine, f"target/denoise/{block}")
    base = forward_seconds(engine.target, batch, block, base_keys, True, repeats)
    result = {}
    for name in sorted(engine.widths):
        role, kind, width = name.split("/")
        rows = 1 if kind == "prefill" else batch
        share = batch / rows  # a batch's denoise serves `batch` rows, a prefill of one row only that row
        net = engine.nets[role]
        measured = forward_seconds(
            net, rows, int(width), _mean_keys(engine, name), kind not in ("prefill", "store"), repeats
        )
        result[name] = round(measured * share / base, 4)
    result[f"target/denoise/{block}"] = 1.0
    result["seconds_per_denoise"] = base
    return result


def _mean_keys(engine, name: str) -> int:
    calls, keys = engine.widths.get(name, (0, 0))
    return max(keys // calls if calls else KEY_BUCKET, 1)


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
