"""Finished run folders without a model: for tests of tables, figures and screens."""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path

from dlmbench.runs import RunFolder, prompt_hash
from dlmbench.runs.aggregate import aggregate

PRICES = {"target/denoise/8": 1.0, "target/denoise/16": 1.3, "target/prefill/prompt": 1.8, "draft/denoise/8": 0.3}


def sample(number: int, correct: bool, forwards: int, tokens: int = 30, draft: int = 0) -> dict:
    """One line of samples.jsonl."""
    counts = {"target": {"prefill": _work(1, 32), "denoise": _work(forwards, 8)}}
    widths = {"target/prefill/prompt": 1, "target/denoise/8": forwards}
    if draft:
        counts["draft"] = {"denoise": _work(draft, 8)}
        widths["draft/denoise/8"] = draft
    return {
        "key": f"item-{number:04d}",
        "prompt_hash": prompt_hash(str(number)),
        "ids": [5, 6, 1],
        "text": "#### 3",
        "scores": {"accuracy": float(correct), "strict": float(correct), "flexible": float(correct), "unparsed": False},
        "counts": counts,
        "widths": widths,
        "tokens": tokens,
        "seconds": 0.1,
        "stop_reason": "eos",
        "guards": 0,
        "proposed": 0,
        "accepted": [],
    }


def _work(calls: int, width: int) -> dict:
    return {"calls": calls, "query_tokens": calls * width, "key_tokens": calls * 40, "flops": calls * width * 5e6}


def make_run(
    root: Path,
    *,
    task: str = "nano-gsm",
    method: str = "threshold",
    knob: float | None = 0.6,
    accuracy: float = 0.8,
    nfe: int = 20,
    items: int = 120,
    weights: str = "a" * 16,
    model: str = "nano",
    label: str | None = None,
    draft: int = 0,
    finished: bool = True,
    device: str = "a CPU",
    seed: int = 0,
    batch_size: int = 16,
) -> RunFolder:
    """A run folder below `root` whose items are right with probability `accuracy`."""
    label = label or (method if knob is None else f"{method} {knob:g}")
    chance = random.Random(f"{task} {label}" + (f" {seed}" if seed else ""))
    samples = [
        sample(i, chance.random() < accuracy, max(1, nfe + chance.randint(-3, 3)), draft=draft) for i in range(items)
    ]
    key = hashlib.sha256(f"{task} {model} {label} {items} {device} {seed} {batch_size}".encode()).hexdigest()
    folder = RunFolder.at(root, task, method, key)
    manifest = {
        "key": key,
        "label": label,
        "knob": knob,
        "knob_unit": "confidence" if knob and method in ("threshold", "mrp", "rcd", "klass", "wino") else "",
        "parameters": {"tau": knob},
        "method_version": 1,
        "spec": {
            "method": method,
            "model": model,
            "split": "test",
            "batch_size": batch_size,
            "cache": "none",
            "store": "fused",
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "dtype": "float32",
            "device": "cpu",
            "seed": seed,
        },
        "task": {"name": task, "version": 1, "content_hash": "c" * 16, "num_fewshot": 0, "chat_template": False},
        "block_length": 8,
        "gen_length": 128,
        "weights": {"target": weights},
        "prompts": "p" * 16,
        "environment": {"device": device, "threads": 2, "versions": {"dlmbench": "0.1.0"}},
        "calibration": {"prices": PRICES, "seconds_per_denoise": 0.004 if model == "nano" else 0.002},
    }
    rate = 4000 / math.sqrt(nfe)
    speed = {"items": 16, "repeats": 3, "same_ids": 16, "label": None}
    for name in ("tps_decode", "tps_end_to_end"):
        speed |= {name: rate, f"{name}_low": 0.9 * rate, f"{name}_high": 1.1 * rate}
    with folder.writing() as writer:
        writer.manifest(manifest)
        for one in samples:
            writer.sample(one)
        if finished:
            writer.metrics({**aggregate(samples, PRICES), "speed": speed})
    return folder


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
            make_run(root, task=task, method=name, knob=round(0.3 + 0.1 * s, 2), accuracy=accuracy, nfe=nfe, items=250)
    if methods > 3:
        make_run(
            root, task=task, method="ar", knob=None, accuracy=0.9, nfe=31, items=250, weights="b" * 16, model="nano-ar"
        )
