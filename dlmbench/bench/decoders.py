"""What every decoder adds to its forwards: milliseconds a step outside them, on the shipped models and real prompts.

Inside is what the layers and heads of networks take; selection, the canvas, refills and the writing of keys and values
are outside; the last of these, which loops around other runtimes count as a part of their forwards, is also shown apart
(`writes`). A decoder's second network (a draft, an MRP module, a sampler) counts as a forward in `outside` and as
overhead in `outside_backbone`. On CPU only: elsewhere the host runs ahead of the device.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from dlmbench.bench.clock import Clock
from dlmbench.engine import Engine, Request, build, tokenizer_of
from dlmbench.files import Json
from dlmbench.models.presets import PRESETS
from dlmbench.request import RunSpec
from dlmbench.request.values import Settings
from dlmbench.tasks import task_files
from dlmbench.training.evaluate import dev_items

TASK = "nano-gsm"
CASES: tuple[tuple[str, str, Mapping[str, Json]], ...] = (
    ("nano2", "static", {}),
    ("nano2", "sequential", {}),
    ("nano2", "threshold", {}),
    ("nano2", "entropy", {}),
    ("nano2", "hierarchy", {}),
    ("nano2", "frechet", {}),
    ("nano2", "credit", {}),
    ("nano2", "edit", {}),
    ("nano2-rcd", "rcd", {}),
    ("nano2", "mrp", {"mode": "remask"}),
    ("nano2", "mrp", {"mode": "direct"}),
    ("nano2", "mrp", {"mode": "speculative"}),
    ("nano2", "simsd", {"verify": "packed"}),
    ("nano2", "simsd", {"verify": "replicated"}),
    ("nano2-llada", "static", {}),
    ("nano2-llada", "threshold", {}),
    ("nano2-llada", "entropy", {}),
    ("nano2-llada", "entropy", {"rule": "gate"}),
    ("nano2-llada", "hierarchy", {}),
    ("nano2-llada", "frechet", {}),
    ("nano2-llada", "credit", {}),
    ("nano2-llada", "klass", {}),
    ("nano2-llada", "pcsampler", {"k": 2}),
    ("nano2-llada", "multiblock", {}),
    ("nano2-llada", "adablock", {}),
    ("nano2-llada", "daedal", {}),
    ("nano2-llada", "d2f", {}),
    ("nano2-llada", "lopa", {}),
    ("nano2-llada", "wino", {}),
    ("nano2-llada", "rcr", {}),
    ("nano2-llada", "saber", {}),
    ("nano2-llada", "remdm_loop", {"k": 4, "loops": 8}),
    ("nano2-llada", "prophet", {}),
    ("nano2-llada", "sched", {}),
    ("nano2-llada", "guided", {}),
    ("nano2-llada", "adjust", {"K": 2}),
    ("nano2-llada", "adjust", {"K": 4}),
    ("nano2-llada", "learned_policy", {}),
    ("nano2-ar", "ar", {}),
)


@dataclass
class _Case:
    """One decoder at its setting, ready to run over the same prompts as the others."""

    row: dict
    engine: Engine
    clocks: dict[str, Clock]
    requests: list[Request]

    def once(self) -> dict[str, float]:
        for clock in self.clocks.values():
            clock.reset()
        tokens = sum(generation.tokens for generation in self.engine.generate(self.requests))
        wall, steps = self.engine.timing.total, self.engine.launched
        outside = wall - sum(clock.seconds for clock in self.clocks.values())
        writes = sum(clock.writes for clock in self.clocks.values())
        beside = wall - self.clocks["target"].seconds
        return {
            "tokens_per_s": tokens / wall, "ms_per_step": 1e3 * wall / steps,
            "outside_ms": 1e3 * outside / steps, "outside_share": outside / wall,
            "writes_ms": 1e3 * writes / steps, "writes_share": writes / wall,
            "outside_backbone_ms": 1e3 * beside / steps, "outside_backbone_share": beside / wall,
        }  # fmt: skip


def spec_of(model: str, method: str, setting: Mapping[str, Json], batch: int) -> RunSpec:
    """The run of a case."""
    shared: Settings = {"sampling": {"constraint": True}} if method == "prophet" else {}
    settings = {method: setting, **shared}
    return RunSpec(method=method, task=TASK, model=model, settings=settings, batch_size=batch, device="cpu")


def _cases(batch: int) -> Iterator[_Case]:
    items, file = dev_items(4 * batch, ["gsm-full"])["gsm-full"], task_files.find(TASK)
    assert file is not None
    for model, method, setting in CASES:
        head = PRESETS[model].companions.get(f"head/{method}")
        if head and PRESETS[head].absent:
            continue
        engine, tokenizer = build(spec_of(model, method, setting, batch).resolve()), tokenizer_of(model)
        prompts = tokenizer([item["prompt"] for item in items], add_special_tokens=False)["input_ids"]
        requests = [Request(str(i), tuple(ids), file.metadata["gen_length"]) for i, ids in enumerate(prompts)]
        label = " ".join([method, *(f"{name}={value}" for name, value in setting.items())])
        row = {"model": model, "decoder": label, "batch": batch}
        yield _Case(row, engine, {role: Clock(net) for role, net in engine.nets.items()}, requests)


def decoder_rows(batch: int, repeats: int) -> list[dict]:
    """Medians of `repeats` rounds over all decoders, after one that warms up."""
    cases = list(_cases(batch))
    samples = [[case.once() for case in cases] for _ in range(repeats + 1)][1:]
    return [
        case.row | {name: statistics.median(one[name] for one in kept) for name in kept[0]}
        for case, kept in zip(cases, zip(*samples))
    ]


def run_decoders(batch: int, repeats: int) -> dict:
    """The same as a record, with what it was measured on."""
    return {
        "task": TASK, "device": "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__,
        "dtype": "float32", "batch": batch, "repeats": repeats, "decoders": decoder_rows(batch, repeats),
    }  # fmt: skip
