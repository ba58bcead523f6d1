"""How fast is it on this device: shapes of real models with random weights, and a sweep of nano."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch

from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.backbone.loading import load_checkpoint
from dlmbench.backbone.network import Network
from dlmbench.bench.networks import random_model
from dlmbench.bench.plain import PlainLoop
from dlmbench.bench.proof.device import bandwidth, working_dtype
from dlmbench.bench.proof.prompts import nano_requests
from dlmbench.bench.proof.stage import StageTrial
from dlmbench.decoders.static import StaticConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Request
from dlmbench.engine.build import tokenizer_of
from dlmbench.engine.calibrate import forward_seconds
from dlmbench.models.presets import PRESETS
from dlmbench.registry import DECODERS
from dlmbench.training.evaluate import answers_agree
from dlmbench.verify.tape import Tape


@torch.inference_mode()
def replay_seconds(engine: Engine) -> float | None:
    """Seconds that a recorded step takes by itself."""
    return engine.replay_seconds()


def sdar_8b(trial: StageTrial, replay: Callable[[Engine], float | None] = replay_seconds, plain=PlainLoop) -> None:
    """One row, blocks of 4 and 32: a step launched kernel by kernel, recorded, and by transformers.

    The share of the bandwidth is what a step must read (weights, and keys of its context) over what the device can read
    in the time that it takes for the step by itself; the wall time of decoding stands over that time.
    """
    sizes = trial.sizes
    model, speed = _model(trial, "sdar-8b"), bandwidth(trial)
    moved = bytes_read(model, sizes.context + sizes.tokens)
    found: dict[str, dict] = {}
    for block in (4, 32):
        row = found[f"block {block}"] = {}
        _note(trial, found)
        engine = _static(trial, Network("target", model, block), 1)
        requests = _random_requests(model, 1, sizes.context, sizes.tokens)
        row |= _pace(engine, requests)
        _refused(trial, engine, f"block {block}")
        device = replay(engine)
        if device is not None:
            row |= {"device_ms": 1e3 * device, "wall_over_device": row["ms"] / 1e3 / device}
            row |= {"bandwidth_share": moved / device / 1e9 / speed}
            _clocks_agree(trial, row, f"block {block}")
        _note(trial, found)
        eager = _static(trial, Network("target", model, block), 1, graphs=False)
        row["eager_ms"] = _pace(eager, _random_requests(model, 1, sizes.context, min(sizes.tokens, 16)))["ms"]
        _note(trial, found)
        del engine, eager
        row["transformers_ms"] = _plain_ms(plain(model, block), requests[0], block)
        _note(trial, found)


def bytes_read(model, keys: int) -> int:
    """Bytes that a forward of one row has to read: the weights but for the embedding, and `keys` keys and values."""
    config = model.config
    read = [p for name, p in model.named_parameters() if config.tie_embeddings or name != "embedding.weight"]
    weights = sum(p.numel() * p.element_size() for p in read)
    return weights + 2 * config.num_layers * config.num_kv_heads * config.head_dim * model.norm.element_size() * keys


def _note(trial: StageTrial, found: dict) -> None:
    """What is known so far, and its line."""
    names = (
        ("ms", "{:.2f} ms a step"), ("eager_ms", "eager {:.1f}"), ("transformers_ms", "transformers {:.1f}"),
        ("bandwidth_share", "{:.0%} of the bandwidth"), ("wall_over_device", "wall / device {:.3f}"),
    )  # fmt: skip
    said = [f"{label}: " + ", ".join(form.format(row[key]) for key, form in names if row.get(key) is not None)
            for label, row in found.items() if row]  # fmt: skip
    trial.keep("; ".join(said), **{label.replace(" ", "_"): row for label, row in found.items()})


def _clocks_agree(trial: StageTrial, row: dict, label: str) -> None:
    """A step cannot take the device longer than it takes by the wall. A CPU that others use too is only roughly true to
    that."""
    if row["wall_over_device"] < (0.9 if trial.device.type == "cuda" else 0.1):
        trial.fault(
            f"{label}: a step takes the device {row['device_ms']:.2f} ms by itself and {row['ms']:.2f} ms by the wall; "
            "one of the two is wrong"
        )


def _plain_ms(loop, request: Request, block: int) -> float | None:
    """Milliseconds a token of the transformers loop, its prompt excluded; None where that is lost in the noise."""
    seconds, prompt, more = [], list(request.prompt_ids), max(16, block)
    for tokens in (block, block, block + more):  # the first warms up
        began = time.perf_counter()
        loop.generate(prompt, tokens)
        seconds.append(time.perf_counter() - began)
    ms = 1e3 * (seconds[2] - seconds[1]) / more
    return ms if ms > 0 else None


def llada_8b(trial: StageTrial) -> None:
    """One row of full attention, blocks of 32, dual cache: a step of the engine (one token; the whole row anew at the
    first step of a block), and by themselves a forward of the block and one of the whole row."""
    sizes = trial.sizes
    block = min(32, sizes.tokens)
    model, whole = _model(trial, "llada-8b"), sizes.context
    engine = _static(trial, Bidirectional("target", model, block, CachePolicy("dual")), 1)
    pace = _pace(engine, _random_requests(model, 1, whole - sizes.tokens, sizes.tokens))
    trial.keep(f"{pace['ms']:.2f} ms a step", **pace)
    net = Bidirectional("target", model, block)
    cached, row = (1e3 * forward_seconds(net, 1, width, whole, block, sizes.repeats) for width in (block, whole))
    share = bytes_read(model, whole) / (cached / 1e3) / 1e9 / bandwidth(trial)
    trial.keep(
        f"{pace['ms']:.2f} ms a step; forward of a block {cached:.2f} ms ({share:.0%} of the bandwidth), "
        f"of the whole row {row:.1f} ms",
        block_ms=cached, row_ms=row, bandwidth_share=share,
    )  # fmt: skip


def sdar_4b(trial: StageTrial) -> None:
    """Many rows, blocks of 4, one token a step: tokens/s without the prompts, with fused and with separate stores."""
    sizes = trial.sizes
    model = _model(trial, "sdar-4b")
    requests = _random_requests(model, sizes.rows, sizes.rows_prompt, sizes.tokens)
    for store in ("fused", "separate"):
        engine = _static(trial, Network("target", model, 4, store), sizes.rows)
        pace = _pace(engine, requests)
        _refused(trial, engine, f"{store} store")
        if engine.batch_size != sizes.rows:
            trial.fault(f"{store} store: memory holds {engine.batch_size} of {sizes.rows} rows")
        trial.keep(f"{pace['tokens_per_s']:.0f} tokens/s, {pace['ms']:.2f} ms a step", **{store: pace})
        del engine
    fused = trial.figures["fused"]
    ratio = fused["tokens_per_s"] / trial.figures["separate"]["tokens_per_s"]
    trial.keep(
        f"{sizes.rows} rows: {fused['tokens_per_s']:.0f} tokens/s, {fused['tokens_per_s_with_prompts']:.0f} with "
        f"prompts; {fused['ms']:.2f} ms a step; {ratio:.2f}x separate stores",
        fused_over_separate=ratio, rows=sizes.rows,
    )  # fmt: skip


def llada2_mini(trial: StageTrial) -> None:
    """A mixture of experts at its block length, one row and many, one token a step: a step by the wall and by itself.

    The share of the bandwidth counts the experts that so many tokens choose between them, if routing were uniform.
    """
    sizes, model = trial.sizes, _model(trial, "llada2-mini")
    block, found = model.config.block_length or 32, dict[str, dict]()
    width, speed = model.norm.element_size(), bandwidth(trial)
    for rows in (1, sizes.sparse_rows):
        label = f"{rows} row{'s' * (rows > 1)}"
        row = found[label] = {}
        engine = _static(trial, Network("target", model, block), rows)
        row |= _pace(engine, _random_requests(model, rows, sizes.rows_prompt, sizes.tokens))
        _refused(trial, engine, label)
        row["read_gb"] = model.config.parameters_read(rows * block) * width / 1e9
        seconds = replay_seconds(engine)
        if seconds is not None:
            row |= {"device_ms": 1e3 * seconds, "wall_over_device": row["ms"] / 1e3 / seconds}
            row |= {"bandwidth_share": row["read_gb"] / seconds / speed}
            _clocks_agree(trial, row, label)
        _note(trial, found)
        del engine


def nano(trial: StageTrial) -> None:
    """A sweep of nano: every threshold on the test problems, through the engine, answers compared."""
    sizes, tokenizer = trial.sizes, tokenizer_of("nano2")
    requests, targets = nano_requests(sizes.generations, 64)
    model = load_checkpoint(PRESETS["nano2"].location, str(trial.device), working_dtype(trial.device))
    rows: dict[str, dict] = {}
    began = time.perf_counter()
    for tau in sizes.thresholds:
        engine = Engine({"target": Network("target", model, 8)}, Threshold(ThresholdConfig(tau)), tokenizer,
                        batch_size=sizes.batch)  # fmt: skip
        generations = engine.generate(requests)
        _refused(trial, engine, f"threshold {tau}")
        right = sum(answers_agree(g.text, target) for g, target in zip(generations, targets)) / len(requests)
        tokens = sum(g.tokens for g in generations)
        rows[str(tau)] = {"accuracy": right, "tokens_per_s": tokens / engine.timing.total}
        seconds = (time.perf_counter() - began) * len(sizes.thresholds) / len(rows)
        best = max(row["accuracy"] for row in rows.values())
        trial.keep(
            f"{len(rows)} of {len(sizes.thresholds)} thresholds x {len(requests)} problems, {seconds:.1f} s for all; "
            f"accuracy up to {best:.0%}",
            sweep_seconds=seconds, thresholds=rows,
        )  # fmt: skip
    if best < sizes.sound:
        trial.fault(f"nano solves {best:.0%} of the problems at its best threshold; {sizes.sound:.0%} is the least")


# --- shared ---------------------------------------------------------------------------------------------------------


def _model(trial: StageTrial, stage: str):
    return random_model(trial.sizes.shapes.get(stage, stage), str(trial.device), working_dtype(trial.device))


def _static(trial: StageTrial, net: Network, rows: int, graphs: bool | None = None) -> Engine:
    """One token a step; recorded where steps can be, on a tape without a GPU."""
    on_cpu = trial.device.type == "cpu"
    given = {"graphs": Tape, "lag": 1} if on_cpu and graphs is None and not net.reads_host else {"graphs": graphs}
    return Engine({"target": net}, DECODERS.get("static")(StaticConfig(k=1)), batch_size=rows, **given)


def _random_requests(model, count: int, prompt: int, tokens: int) -> list[Request]:
    """Prompts of one length; random weights have no end token."""
    rng = random.Random(0)
    ids = [token for token in range(min(model.config.vocab_size, 10_000)) if token != model.config.mask_id]
    return [Request(str(i), tuple(rng.choices(ids, k=prompt)), tokens) for i in range(count)]


def _pace(engine: Engine, requests: list[Request]) -> dict[str, float]:
    """The second of two runs: the first sets up and records. Milliseconds a step and tokens/s, prompts excluded, and
    tokens/s with them."""
    engine.generate(requests)
    tokens = sum(generation.tokens for generation in engine.generate(requests))
    timing = engine.timing
    return {
        "ms": 1e3 * timing.decode / engine.launched, "tokens_per_s": tokens / timing.decode,
        "tokens_per_s_with_prompts": tokens / timing.total,
        "recording_seconds": engine.graphs.seconds if engine.graphs else 0.0,
    }  # fmt: skip


def _refused(trial: StageTrial, engine: Engine, label: str) -> None:
    if engine.graphs and engine.graphs.refused:
        trial.fault(f"{label}: steps are not recorded: {engine.graphs.refused}")
