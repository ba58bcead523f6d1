"""What the runtime delivers on this device: forwards, decoders at fixed length, and the plain loop beside them.

Fixed-length timing with end tokens off belongs here and nowhere else; accuracies never come with these speeds. All
figures are medians of repeats with their spread, synchronised, and state threads, dtype and batch size.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass

import torch

from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.network import Network
from dlmbench.bench.clock import Clock
from dlmbench.bench.plain import PlainLoop
from dlmbench.bench.shapes import SHAPES, random_model
from dlmbench.engine.calibrate import forward_seconds, median_seconds
from dlmbench.engine.loop import Engine, Request
from dlmbench.registry import DECODERS


@dataclass(frozen=True)
class Settings:
    """One bench: a shape, where it runs, and what is decoded."""

    shape: str = "nano"
    device: str = "cpu"
    dtype: str = "float32"
    block_length: int = 8
    batch_sizes: tuple[int, ...] = (1, 4, 16)
    prompt_tokens: int = 40
    new_tokens: int = 64
    repeats: int = 5
    plain: bool = True
    lengths: tuple[int, ...] = (256, 512, 1024)  # full attention: rows to compare cached forwards with


def device_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Copy bandwidth in GB/s (read and write both counted) and matrix rate in GFLOP/s, as measured now."""
    size = (64 if device.type == "cpu" else 1024) << 20
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), device, 5)
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = median_seconds(lambda: torch.mm(a, b), device, 5)
    return {"copy_gb_per_s": 2 * size / copy / 1e9, "matmul_gflop_per_s": 2 * n**3 / product / 1e9}


def forward_rows(model, settings: Settings, rates: dict[str, float]) -> list[dict]:
    """Milliseconds of one block forward (head included) for each batch size, and its share of the roofline."""
    rows = []
    config = model.config
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    keys = settings.prompt_tokens + settings.new_tokens
    for batch in settings.batch_sizes:
        net = Network("target", model, settings.block_length)
        seconds = forward_seconds(net, batch, settings.block_length, keys, settings.block_length, settings.repeats)
        kv_bytes = (
            2 * config.num_layers * config.num_kv_heads * config.head_dim * keys * batch * model.norm.element_size()
        )
        queries = batch * settings.block_length
        floor = max(
            (weight_bytes + kv_bytes) / rates["copy_gb_per_s"] / 1e9,
            config.flops(queries, queries * keys) / rates["matmul_gflop_per_s"] / 1e9,
        )
        rows.append({"batch": batch, "ms": seconds * 1e3, "roofline_share": floor / seconds})
    return rows


def cached_rows(model, settings: Settings) -> list[dict]:
    """Full attention: milliseconds of a forward of the whole row, and of what the cache policies recompute instead,
    for one row of each length. prefix and freecache are shown half-way, where half of the row is left."""
    net, rows = Bidirectional("target", model, settings.block_length), []
    for length in settings.lengths:
        block = min(settings.block_length, length)
        ms = {
            policy: 1e3 * forward_seconds(net, 1, width, length, block, settings.repeats)
            for policy, width in (("none", length), ("prefix", max(length // 2, block)), ("dual", block))
        }
        rows.append({"length": length, **{f"{name}_ms": value for name, value in ms.items()}})
    return rows


class _Ours:
    """`static` (k = 1) through the engine at one batch size, with the share of time spent outside forwards.

    Outside is everything but layers and head: selection, the canvas, refills, and the writing of keys and values.
    """

    def __init__(self, model, settings: Settings, batch: int):
        self.row = {"loop": "dlmbench static", "batch": batch}
        net = Network("target", model, settings.block_length)
        self.clock = Clock(net)
        self.on_cpu = net.device.type == "cpu"  # elsewhere the host runs ahead of the device: no outside share
        self.engine = Engine({"target": net}, DECODERS.get("static")(), batch_size=batch)
        self.requests = _requests(model, settings, max(2, batch))

    def once(self) -> dict[str, float]:
        self.clock.seconds = 0.0
        began = time.perf_counter()
        tokens = sum(g.tokens for g in self.engine.generate(self.requests))
        wall = time.perf_counter() - began
        outside = {"outside_share": 1 - self.clock.seconds / wall} if self.on_cpu else {}
        return {"tokens_per_s": tokens / wall, **outside}


class _Plain:
    """The transformers loop on the same prompts, one at a time."""

    def __init__(self, model, settings: Settings):
        self.row = {"loop": "transformers, DynamicCache", "batch": 1}
        self.loop, self.tokens = PlainLoop(model, settings.block_length), settings.new_tokens
        self.requests = _requests(model, settings, 2)

    def once(self) -> dict[str, float]:
        began = time.perf_counter()
        tokens = sum(len(self.loop.generate(list(r.prompt_ids), self.tokens)) for r in self.requests)
        return {"tokens_per_s": tokens / (time.perf_counter() - began)}


def decode_rows(contenders: list, repeats: int) -> list[dict]:
    """Medians of `repeats` rounds. All contenders run once a round, so that a machine that drifts treats them alike."""
    samples: list[list[dict[str, float]]] = [[] for _ in contenders]
    for number in range(repeats + 1):
        for contender, kept in zip(contenders, samples):
            measured = contender.once()
            if number:  # the first round warms up
                kept.append(measured)
    rows = []
    for contender, kept in zip(contenders, samples):
        row = {**contender.row, **_spread("tokens_per_s", [one["tokens_per_s"] for one in kept])}
        if "outside_share" in kept[0]:
            row["outside_share"] = statistics.median(one["outside_share"] for one in kept)
        rows.append(row)
    return rows


def run(settings: Settings) -> dict:
    """Everything of one bench as a record; `ratios` are the comparisons that one looks for first."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    model = random_model(settings.shape, settings.device, dtype)
    rates = device_rates(device, dtype)
    record = {
        "shape": settings.shape,
        "parameters": SHAPES[settings.shape].parameters,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": settings.dtype,
        "torch": torch.__version__,
        "block_length": settings.block_length,
        "repeats": settings.repeats,
        **rates,
    }
    if model.config.attention == "full":
        return record | _full_attention(model, settings)
    return record | _block_causal(model, settings, rates)


def _full_attention(model, settings: Settings) -> dict:
    rows = cached_rows(model, settings)
    ratios = {
        f"whole row over {name}, length {row['length']}": row["none_ms"] / row[f"{name}_ms"]
        for row in rows
        for name in ("prefix", "dual")
    }
    return {"cached": rows, "ratios": ratios}


def _block_causal(model, settings: Settings, rates: dict[str, float]) -> dict:
    contenders = [_Ours(model, settings, batch) for batch in settings.batch_sizes]
    rows = decode_rows([*contenders, *([_Plain(model, settings)] if settings.plain else [])], settings.repeats)
    decoded = rows[: len(contenders)]
    first = decoded[0]["tokens_per_s"]
    ratios = {
        f"batch {row['batch']} over batch {decoded[0]['batch']}": row["tokens_per_s"] / first for row in decoded[1:]
    }
    for plain in rows[len(contenders) :]:
        ratios |= {
            f"batch {row['batch']} over transformers": row["tokens_per_s"] / plain["tokens_per_s"] for row in decoded
        }
    return {
        "prompt_tokens": settings.prompt_tokens,
        "new_tokens": settings.new_tokens,
        "forwards": forward_rows(model, settings, rates),
        "decoding": rows,
        "ratios": ratios,
    }


def _requests(model, settings: Settings, count: int) -> list[Request]:
    """Random prompts of one length, so that every loop does the same work."""
    rng = random.Random(0)
    ids = [i for i in range(model.config.vocab_size) if i != model.config.mask_id]
    return [
        Request(str(i), tuple(rng.choices(ids, k=settings.prompt_tokens)), settings.new_tokens) for i in range(count)
    ]


def _spread(name: str, samples: list[float]) -> dict[str, float]:
    return {name: statistics.median(samples), f"{name}_min": min(samples), f"{name}_max": max(samples)}
