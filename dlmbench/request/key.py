"""The key of a run: a hash of everything that decides what it produces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dlmbench.request.run_spec import Checked


def canonical(record: Any) -> str:
    """JSON with sorted keys and no spaces: equal records give equal strings."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(record: Any) -> str:
    """sha256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(canonical(record).encode()).hexdigest()


def identity(
    checked: Checked, weights: Mapping[str, str], prompts: str, limits: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides what a run produces; `digest` of it is the run's key.

    weights: role -> hash of weights and configurations; prompts: hash of the items' keys and prompts, in order; limits:
    generation limits and stops; content: what else reads and judges the items (the task's version, the hash of its
    data, that of the tokenizer).
    `checked.spec` must be resolved. The batch size is part of it although ids do not depend on it (within the
    identity rule), because the row's speed and cost do, and a sweep over batch sizes needs one row for each.
    """
    spec = checked.spec
    record = {
        "weights": dict(weights),
        "method": spec.method,
        "version": checked.version,
        "parameters": checked.parameters,
        "task": spec.task,
        "split": spec.split,
        "prompts": prompts,
        "limits": dict(limits),
        "content": dict(content),
        "block_length": checked.block_length,
        "cache": spec.cache,
        "store": spec.store,
        "sampling": {"temperature": spec.temperature, "top_k": spec.top_k, "top_p": spec.top_p},
        "dtype": spec.dtype,
        "device": spec.device.partition(":")[0],
        "batch_size": spec.batch_size,
        "seed": spec.seed,
    }
    chosen = {**checked.axes.chosen(), "eos": checked.eos, "fixed": checked.fixed}
    shared = {name: value for name, value in chosen.items() if value not in ("free", None)}
    return {**record, "shared": shared} if shared else record
