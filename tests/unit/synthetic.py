"""Finished run folders without a model: for tests of tables, figures and screens."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

from dlmbench.forwards import ForwardKey
from dlmbench.request import RunSpec
from dlmbench.request.key import digest
from dlmbench.runs import Manifest, RunFolder, Sample, prompt_hash
from dlmbench.runs.aggregate import aggregate
from dlmbench.runs.record import Calibration, Circumstances, Environment, Rate, Speed, TaskFacts, Work
from dlmbench.stats import wilson

CONFIDENT = ("threshold", "mrp", "rcd", "klass", "wino")  # methods whose threshold is a confidence


def forwards(**numbers: float) -> dict[ForwardKey, float]:
    """``forwards(target_denoise_8=1.0)``: numbers by forward."""
    return {ForwardKey(*name.split("_")): number for name, number in numbers.items()}


PRICES = forwards(target_denoise_8=1.0, target_denoise_16=1.3, target_prefill_prompt=1.8, draft_denoise_8=0.3)


def sample(number: int, correct: bool, nfe: int, tokens: int = 30, draft: int = 0) -> Sample:
    """One line of samples.jsonl."""
    counts = {"target": {"prefill": _work(1, 32), "denoise": _work(nfe, 8)}}
    passes = forwards(target_prefill_prompt=1, target_denoise_8=nfe)
    if draft:
        counts["draft"] = {"denoise": _work(draft, 8)}
        passes |= forwards(draft_denoise_8=draft)
    right = float(correct)
    return Sample(
        key=f"item-{number:04d}",
        prompt_hash=prompt_hash(str(number)),
        ids=[5] * (tokens - 1) + [1],
        text="#### 3",
        scores={"accuracy": right, "strict": right, "flexible": right, "unparsed": False},
        counts=counts,
        forwards=passes,
        tokens=tokens,
        seconds=0.1,
        stop_reason="eos",
        fallbacks=0,
        proposed=0,
        accepted=[],
    )


def _work(calls: int, width: int) -> Work:
    return Work(calls, calls * width, calls * 40, calls * width * 5e6)


def manifest(key: str = "ab" * 32, **changes) -> Manifest:
    """The manifest of a threshold run; `changes` are fields."""
    usual = dict(
        key=key,
        label="threshold 0.6",
        threshold=0.6,
        threshold_unit="confidence",
        parameters={"tau": 0.6},
        method_version="1",
        spec=RunSpec(
            "threshold", "nano-gsm", model="nano2", device="cpu", dtype="float32", store="fused", batch_size=16
        ),
        task=TaskFacts("nano-gsm", 1, "c" * 16, 0, False),
        block_length=8,
        gen_length=128,
        weights={"target": "a" * 16},
        prompts="p" * 16,
        identity={},
        environment=Environment("a CPU", 2, {"dlmbench": "0.1.0"}),
    )
    return Manifest(**{**usual, **changes})


def make_run(
    root: Path,
    *,
    task: str = "nano-gsm",
    method: str = "threshold",
    threshold: float | None = 0.6,
    accuracy: float = 0.8,
    nfe: int = 20,
    items: int = 120,
    weights: str = "a" * 16,
    model: str = "nano2",
    label: str | None = None,
    draft: int = 0,
    finished: bool = True,
    device: str = "a CPU",
    seed: int = 0,
    batch_size: int = 16,
    **asked,
) -> RunFolder:
    """A run folder below `root` whose items are right with probability `accuracy`; `asked` are fields of its spec."""
    label = label or (method if threshold is None else f"{method} {threshold:g}")
    chance = random.Random(f"{task} {label}" + (f" {seed}" if seed else ""))
    samples = [
        sample(i, chance.random() < accuracy, max(1, nfe + chance.randint(-3, 3)), draft=draft) for i in range(items)
    ]
    identity = {"synthetic": f"{task} {model} {label} {items} {device} {seed} {batch_size}", **asked}
    key = digest(identity)
    folder = RunFolder.at(root, task, method, key)
    circumstances = Circumstances({"target": weights}, batch_size, "float32", 8, task, device, 2, "2.11")
    found = manifest(
        key,
        label=label,
        threshold=threshold,
        threshold_unit="confidence" if threshold and method in CONFIDENT else "",
        parameters={"tau": threshold},
        identity=identity,
        gen_length=asked.get("gen_length", 128),
        spec=RunSpec(
            method,
            task,
            model=model,
            device="cpu",
            dtype="float32",
            store="fused",
            batch_size=batch_size,
            seed=seed,
            **asked,
        ),
        task=TaskFacts(task, 1, "c" * 16, 0, False),
        weights={"target": weights},
        environment=Environment(device, 2, {"dlmbench": "0.1.0"}),
        calibration=Calibration(circumstances, 0.004 if model == "nano2" else 0.002, PRICES),
    )
    rate = 4000 / math.sqrt(nfe)
    speed = Speed(16, 3, 16, *(2 * [Rate(rate, 0.9 * rate, 1.1 * rate)]))
    with folder.writing() as writer:
        writer.manifest(found)
        for one in samples:
            writer.sample(one)
        if finished:
            writer.metrics(aggregate(samples, PRICES, speed))
    return folder


def scored(run: RunFolder, right: set[int]) -> None:
    """Make exactly these items (by number) right."""
    with run.writing() as writer:
        samples = [
            replace(one, scores={**one.scores, "accuracy": float(number in right)})
            for number, one in enumerate(run.samples)
        ]
        writer.samples(samples)
        low, high = wilson(len(right), len(samples))
        share = len(right) / len(samples)
        writer.metrics(replace(run.metrics, accuracy=share, accuracy_low=low, accuracy_high=high))


def make_family(root: Path, methods: int, settings: int = 6, task: str = "nano-gsm") -> None:
    """`methods` methods with `settings` settings each, on saturating curves, and an autoregressive row beside them."""
    names = [
        "threshold",
        "static",
        "entropy",
        "mrp",
        "simsd",
        "guided",
        "prophet",
        "rcd",
        "adjust",
        "klass",
        "wino",
        "margin",
    ][:methods]
    for n, name in enumerate(names):
        for s in range(settings):
            nfe = 6 + 5 * s + n
            top = 0.92 - 0.015 * n
            accuracy = top * (1 - math.exp(-nfe / (6 + 1.2 * n)))
            value = round(0.3 + 0.1 * s, 2)
            make_run(root, task=task, method=name, threshold=value, accuracy=accuracy, nfe=nfe, items=250)
    if methods > 3:
        parent = dict(weights="b" * 16, model="nano2-ar")
        make_run(root, task=task, method="ar", threshold=None, accuracy=0.9, nfe=31, items=250, **parent)
