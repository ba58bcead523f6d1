"""What the runtime delivers on this device: forwards, decoders at fixed length, and the plain loop beside them.

Fixed-length timing with end tokens off belongs here and nowhere else; accuracies never come with these speeds. All
figures are medians of repeats with their spread, synchronised, and state threads, dtype and batch size.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from dlmbench.backbone import attention
from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.memory import check_room
from dlmbench.backbone.model import Transformer
from dlmbench.backbone.network import Network, bucket
from dlmbench.bench.clock import Clock
from dlmbench.bench.networks import random_model
from dlmbench.bench.plain import PlainLoop, block_forward, qwen_of
from dlmbench.bench.rates import bandwidth, device_rates
from dlmbench.decoders.static import StaticConfig
from dlmbench.engine import Engine, Request
from dlmbench.engine.calibrate import LEAST_SECONDS, Timer, forward_of, forward_seconds, ready
from dlmbench.engine.graphs import first_line, on_device
from dlmbench.models.shapes import SHAPES
from dlmbench.registry import DECODERS
from dlmbench.threads import THREADS

PLAIN, COMPILED = "transformers", "transformers, compiled"
FORWARDS = {PLAIN: "transformers_ms", COMPILED: "compiled_ms"}  # names of their milliseconds in a row
ROUND_SECONDS = 0.25  # at least of a repeat of a forward ...
MOST_ROUNDS = 200  # ... which are more rounds then, at most so many
PLAIN_SECONDS = 10.0  # of one round of a plain loop: its tokens a second are known by then


@dataclass(frozen=True)
class Settings:
    """One bench: a shape, where it runs, and what is decoded."""

    shape: str = "nano"
    device: str = "cpu"
    dtype: str = "float32"
    block_length: int = 8
    batch_sizes: tuple[int, ...] = (1, 4, 16)
    prompt_tokens: int = 40
    new_tokens: int = 64  # 0: forwards alone
    contexts: tuple[int, ...] = ()  # keys that timed forwards see; default: prompt and answer
    repeats: int = 5
    plain: bool = True
    compiled: bool = False  # on CPU: transformers' forward compiled by torch, too
    cudnn: bool = False  # let cuDNN compute attention on CUDA, to compare
    lengths: tuple[int, ...] = (256, 512, 1024)  # full attention: rows to compare cached forwards with


def forward_rows(
    model, settings: Settings, rates: dict[str, float], qwen: Callable | None = None,
    failed: dict[str, str] | None = None,
) -> list[dict]:  # fmt: skip
    """Milliseconds of one block forward (head included) for each batch size and context, its share of the roofline and
    of the bandwidth of reading, and what the growth law (`fit_growth`) makes of it.

    `qwen` gives transformers' network on the same weights, whose forward of the same block is timed in turn with ours;
    why it could not be compiled is left in `failed`.
    """
    rows, config, block = [], model.config, settings.block_length
    net = Network("target", model, block)
    width = model.norm.element_size()
    key_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * width
    contexts, most = settings.contexts or (settings.prompt_tokens + settings.new_tokens,), max(settings.batch_sizes)
    keys = f"{settings.shape} with {most} rows of {max(contexts)} keys"
    check_room(keys, config.parameters * width + key_bytes * most * max(contexts), net.device, model.norm.dtype)
    for context in contexts:
        for batch in settings.batch_sizes:
            if net.device.type == "cpu":
                THREADS.choose(net.sample(batch, block, context))
            others = _others(settings, batch, bucket(max(context, block)), qwen, failed) if qwen else {}
            with torch.inference_mode(), forward_of(net, batch, block, context, block) as once:
                timed = {"ms": ready(once, net.device)} | {FORWARDS[name]: other for name, other in others.items()}
                timers = {name: Timer(each, net.device, LEAST_SECONDS) for name, each in timed.items()}
                rounds = list(_forward_rounds(timers, settings.repeats))
            read = config.parameters_read(batch * block) * width + key_bytes * context * batch
            products = config.flops(batch * block, batch * block * context) / rates["matmul_gflop_per_s"] / 1e6
            row: dict = {"batch": batch, "context": context}
            for name in timers:
                row |= _spread(name, [one[name] for one in rounds])
            row["roofline_share"] = max(read / bandwidth(rates) / 1e6, products) / row["ms"]
            row["bandwidth_share"] = read / rates["read_gb_per_s"] / 1e6 / row["ms"]
            rows.append(row)
    return rows


def _forward_rounds(timers: dict[str, Timer], repeats: int) -> Iterator[dict[str, float]]:
    """Milliseconds of each forward, in turns, after one that another's may have left cold: so many rounds, and more of
    short forwards, all of which one disturbance would hit."""
    until, done = time.perf_counter() + (repeats - 1) * ROUND_SECONDS, 0
    while done < repeats or (time.perf_counter() < until and done < MOST_ROUNDS):
        found = {}
        for name, timer in timers.items():
            timer.once()
            found[name] = 1e3 * timer.seconds()
        yield found
        done += 1


def _others(
    settings: Settings, batch: int, keys: int, qwen: Callable, failed: dict[str, str] | None
) -> dict[str, Callable[[], None]]:
    """Forwards of transformers to time beside ours; the compiled one where it works."""
    others = {PLAIN: block_forward(qwen(), batch, settings.block_length, keys)}
    if settings.compiled:
        once = block_forward(qwen(), batch, settings.block_length, keys, compiled=True)
        try:
            once()
        except Exception as error:  # of a compiler, whatever it raises
            if failed is not None:
                failed[COMPILED] = first_line(error)
        else:
            others[COMPILED] = once
    return others


def fit_growth(rows: list[dict]) -> dict:
    """ms = constant + a * batch + b * batch * context, the weights' work and the keys' beside what any step costs.

    Coefficients are not negative and minimise relative errors. Also the largest relative error; rows get `fitted_ms`.
    """
    terms = np.array([[1.0, row["batch"], row["batch"] * row["context"]] for row in rows])
    measured = np.array([row["ms"] for row in rows])
    least, best = math.inf, np.zeros(3)
    for kept in itertools.product((True, False), repeat=3):  # least squares on every face of the positive orthant
        if any(kept):
            scaled = (terms / measured[:, None])[:, kept]
            solution = np.zeros(3)
            solution[list(kept)] = np.linalg.lstsq(scaled, np.ones(len(rows)), rcond=None)[0]
            error = float(np.square(terms @ solution / measured - 1).sum())
            if solution.min() >= 0 and error < least:
                least, best = error, solution
    fitted = terms @ best
    for row, ms in zip(rows, fitted):
        row["fitted_ms"] = float(ms)
    constant, by_row, by_key = map(float, best)
    worst = float(np.abs(fitted / measured - 1).max())
    return {"constant_ms": constant, "ms_a_row": by_row, "ms_a_row_and_key": by_key, "largest_error": worst}


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
    """`static` (k = 1) through the engine at one batch size.

    On CPU with the share of time spent outside forwards (everything but layers and head: selection, the canvas,
    refills, the writing of keys and values, which is also shown apart); elsewhere the host runs ahead of the device,
    and the wall time of the steps stands over what replaying them takes the device instead.
    """

    def __init__(self, model, settings: Settings, batch: int, store: str = "fused", steps: int = 1):
        variant = (f", {steps} a step" if steps > 1 else "") + (", separate stores" if store == "separate" else "")
        self.row = {"loop": f"static{variant}", "batch": batch}
        net, clocked = (Network("target", model, settings.block_length, store) for _ in range(2))
        self.clock = Clock(clocked) if clocked.device.type == "cpu" else None
        self.engine, self.clocked = (
            Engine({"target": one}, DECODERS.get("static")(StaticConfig(k=steps)), batch_size=batch)
            for one in (net, clocked)
        )
        self.requests = _requests(model, settings, max(2, batch))

    def once(self) -> dict[str, float]:
        generations = self.engine.generate(self.requests)
        wall = self.engine.timing.total
        sample = {
            "tokens_per_s": sum(g.tokens for g in generations) / wall,
            "ms_per_step": 1e3 * self.engine.timing.decode / self.engine.launched,
            "first_block_ms": 1e3 * statistics.median(g.first_block for g in generations),
            **_percentiles([1e3 * g.seconds for g in generations]),
        }
        if self.clock:
            return sample | self._outside(self.clock)
        device = self.engine.replay_seconds()
        if device is None or self.engine.graphs is None:
            return sample
        recorded = {"recording_seconds": self.engine.graphs.seconds, "device_ms_per_step": 1e3 * device}
        return sample | recorded | {"wall_over_device": sample["ms_per_step"] / 1e3 / device}

    def _outside(self, clock: Clock) -> dict[str, float]:
        """Shares of another run's wall time, which does not slow the timed one by looking at the clock."""
        clock.reset()
        self.clocked.generate(self.requests)
        wall = self.clocked.timing.total
        return {"outside_share": 1 - clock.seconds / wall, "writes_share": clock.writes / wall}


class _Plain:
    """The transformers loop on the same prompts, one at a time, for at most `PLAIN_SECONDS` each."""

    def __init__(self, model, settings: Settings, qwen: Callable, loop: str, static: bool):
        self.row = {"loop": loop, "batch": 1}
        self.loop, self.tokens = PlainLoop(model, settings.block_length, static, qwen()), settings.new_tokens
        self.requests = _requests(model, settings, 2)

    def once(self) -> dict[str, float]:
        THREADS.use_all()  # as it is run by itself
        began = time.perf_counter()
        tokens = sum(len(self.loop.generate(list(r.prompt_ids), self.tokens, PLAIN_SECONDS)) for r in self.requests)
        return {"tokens_per_s": tokens / (time.perf_counter() - began)}


def decode_rows(makers: Sequence[Callable], repeats: int, together: bool) -> list[dict]:
    """Medians of `repeats` rounds of contenders, which are made here.

    `together`: all of them run once a round, so that a machine that drifts treats them alike; else one is done before
    the next is made, so that each has the memory to itself.
    """
    if together:
        return _rounds([make() for make in makers], repeats)
    return [row for make in makers for row in _rounds([make()], repeats)]


def _rounds(contenders: list, repeats: int) -> list[dict]:
    samples: list[list[dict[str, float]]] = [[] for _ in contenders]
    for number in range(repeats + 1):
        for contender, kept in zip(contenders, samples):
            measured = contender.once()
            if number:  # the first round warms up
                kept.append(measured)
    rows = []
    for contender, kept in zip(contenders, samples):
        medians = {name: statistics.median(one[name] for one in kept) for name in kept[0]}
        rows.append(contender.row | medians | _spread("tokens_per_s", [one["tokens_per_s"] for one in kept]))
    return rows


def run(settings: Settings) -> dict:
    """Everything of one bench as a record; `ratios` are the comparisons that one looks for first."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    attention.CUDNN = settings.cudnn
    with on_device(device):
        return _run(settings, device, dtype)


def _run(settings: Settings, device: torch.device, dtype: torch.dtype) -> dict:
    model = random_model(settings.shape, settings.device, dtype)
    rates = device_rates(device, dtype)
    record = {
        "shape": settings.shape,
        "parameters": model.config.parameters,
        **_experts(model.config, SHAPES[settings.shape]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": THREADS.most,
        "dtype": settings.dtype,
        "torch": torch.__version__,
        "block_length": settings.block_length,
        "repeats": settings.repeats,
        **rates,
    }
    full = model.config.attention == "full"
    record |= _full_attention(model, settings) if full else _block_causal(model, settings, rates)
    if device.type == "cuda":
        record["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return record


def _experts(config: BackboneConfig, whole: BackboneConfig) -> dict[str, int]:
    """Of a sparse network: parameters that a token meets, and experts of a layer here and in the shape itself."""
    if config.experts is None or whole.experts is None:
        return {}
    counts = {"experts": config.experts.count, "experts_of_shape": whole.experts.count}
    return {"active_parameters": config.active_parameters, **counts}


def _full_attention(model, settings: Settings) -> dict:
    rows = cached_rows(model, settings)
    ratios = {
        f"whole row over {name}, length {row['length']}": row["none_ms"] / row[f"{name}_ms"]
        for row in rows
        for name in ("prefix", "dual")
    }
    return {"cached": rows, "ratios": ratios}


def _block_causal(model, settings: Settings, rates: dict[str, float]) -> dict:
    most, on_cpu = max(settings.batch_sizes), settings.device == "cpu"
    qwen = cache(lambda: qwen_of(model))  # made when the first of the plain loops is
    known = settings.plain and not model.config.experts  # transformers' Qwen3 is a dense network
    failed: dict[str, str] = {}
    forwards = forward_rows(model, settings, rates, qwen if known and on_cpu else None, failed)
    several = len(settings.contexts) > 1 and len(settings.batch_sizes) > 1
    record: dict = {
        "prompt_tokens": settings.prompt_tokens,
        "new_tokens": settings.new_tokens,
        "forwards": forwards,
        **({"growth": fit_growth(forwards)} if several else {}),
    }
    if not settings.new_tokens:
        ratios = {
            f"a forward, batch {row['batch']}, {row['context']} keys, over {name}": row[ms] / row["ms"]
            for row in forwards
            for name, ms in FORWARDS.items()
            if ms in row
        }
        return record | {"decoding": [], "ratios": ratios, **({"failed": failed} if failed else {})}
    ours = [partial(_Ours, model, settings, batch) for batch in settings.batch_sizes]
    variants = [partial(_Ours, model, settings, most, **other) for other in ({"store": "separate"}, {"steps": 2})]
    plain = _plain_makers(model, settings, qwen) if known else []
    rows = decode_rows([*ours, *variants, *(plain if on_cpu else ())], settings.repeats, together=on_cpu)
    for make in () if on_cpu else plain:  # last, and what fails there leaves the rest as it is
        try:
            rows += decode_rows([make], settings.repeats, together=False)
        except Exception as error:  # of another project's code, whatever it raises
            failed[make.keywords["loop"]] = first_line(error)
    decoded, rest = rows[: len(ours)], rows[len(ours) :]
    first, last = decoded[0]["tokens_per_s"], decoded[settings.batch_sizes.index(most)]["tokens_per_s"]
    ratios = {
        f"batch {row['batch']} over batch {decoded[0]['batch']}": row["tokens_per_s"] / first for row in decoded[1:]
    }
    ratios[f"fused over separate stores, batch {most}"] = last / rest[0]["tokens_per_s"]
    for other in rest[len(variants) :]:
        ratios |= {
            f"batch {row['batch']} over {other['loop']}": row["tokens_per_s"] / other["tokens_per_s"] for row in decoded
        }
    return record | {"decoding": rows, "ratios": ratios, **({"failed": failed} if failed else {})}


def _plain_makers(model: Transformer, settings: Settings, qwen: Callable) -> list[partial[_Plain]]:
    """The plain loops that are asked for, on one set of weights."""
    kinds = {PLAIN: False} if settings.device == "cpu" else {PLAIN: False, COMPILED: True}
    return [partial(_Plain, model, settings, qwen, loop=loop, static=static) for loop, static in kinds.items()]


def _requests(model, settings: Settings, count: int) -> list[Request]:
    """Random prompts of one length, so that every loop does the same work."""
    rng = random.Random(0)
    ids = [i for i in range(model.config.vocab_size) if i != model.config.mask_id]
    return [
        Request(str(i), tuple(rng.choices(ids, k=settings.prompt_tokens)), settings.new_tokens) for i in range(count)
    ]


def _percentiles(latencies: list[float]) -> dict[str, float]:
    """Of a request's milliseconds from admission to its last token."""
    ordered = sorted(latencies)
    return {f"latency_p{p}_ms": ordered[min(len(ordered) * p // 100, len(ordered) - 1)] for p in (50, 95)}


def _spread(name: str, samples: list[float]) -> dict[str, float]:
    return {name: statistics.median(samples), f"{name}_min": min(samples), f"{name}_max": max(samples)}
