"""The key of a run: a hash of everything that decides what it produces.

Three notions of sameness, and no other: *identity* (one run, found again by its key), *comparable* (rows paired item by
item: `dlmbench.analysis.row`), and *one curve* (settings of a decoder that compete: `one_curve` before runs are made,
`dlmbench.analysis.row` after).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dlmbench.request import options
from dlmbench.request.run_spec import HELPERS, OPTIONS, REMOTE, RunSpec

if TYPE_CHECKING:
    from dlmbench.files import Json
    from dlmbench.request.resolved import ResolvedRun


def canonical(record: object) -> str:
    """JSON with sorted keys and no spaces: equal records give equal strings."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(record: object) -> str:
    """sha256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(canonical(record).encode()).hexdigest()


def identity(
    run: ResolvedRun, weights: Mapping[str, str], prompts: str, limits: Mapping[str, Json], content: Mapping[str, Json]
) -> dict[str, Json]:
    """Everything that decides what a run produces; `digest` of it is the run's key.

    weights: role -> hash of weights and configurations; prompts: hash of the items' keys and prompts, in order; limits:
    generation limits and stops; content: what else reads and judges the items (the task's version, the hash of its
    data, that of the tokenizer). The options that stand in it by themselves say so in their field (`Option.key`); a
    run with nothing chosen among the shared options has none of them in it.

    The batch size is part of it although ids do not depend on it (within the identity rule), because the row's speed
    and cost do, and a sweep over batch sizes needs one row for each.
    """
    record: dict[str, Json] = {
        "weights": dict(weights),
        "version": run.version,
        "parameters": options.deciding(run.config),
        "prompts": prompts,
        "limits": dict(limits),
        "content": dict(content),
        "block_length": run.block_length,
    }
    settled = run.settled
    for name, option in OPTIONS.items():
        if option.key:
            _put(record, option.key, getattr(settled, name))
    record["device"] = run.device.partition(":")[0]
    chosen: dict[str, Json] = {**run.shared.chosen(), "eos": run.eos, "fixed": dict(run.fixed) if run.fixed else None}
    shared: dict[str, Json] = {name: value for name, value in chosen.items() if value not in ("free", None)}
    return {**record, "shared": shared} if shared else record


def _put(record: dict[str, Json], key: str, value: Json) -> None:
    """Set ``group.name`` of a nested record."""
    group, _, rest = key.partition(".")
    if not rest:
        record[key] = value
        return
    inner = record.setdefault(group, {})
    assert isinstance(inner, dict)
    _put(inner, rest, value)


def same_request(run: ResolvedRun) -> str:
    """Equal for requests that are one run on this machine: `identity` with names in the place of hashes, for use
    before anything is loaded."""
    spec, names = run.spec, {"target": run.spec.model, **run.companions}
    asked: list[object] = [spec.data_dir, spec.num_fewshot, run.chat_template, spec.limit, spec.like, spec.plugin]
    asked += [spec.out, spec.protocol, dataclasses.asdict(spec.descriptor)]
    asked += [getattr(spec, name) for name in REMOTE]
    return canonical(identity(run, names, canonical(asked), {"gen_length": run.gen_length}, {}))


def one_curve(spec: RunSpec) -> str:
    """Equal for specs that differ only in the method's own settings: they compete with each other."""
    return canonical(
        dataclasses.asdict(dataclasses.replace(spec, threshold=None, settings=spec.shared_settings, against=()))
    )


def same_items_and_weights(spec: RunSpec) -> str:
    """Equal for specs whose rows stand beside each other: everything but the method and what belongs to it."""
    plain = dataclasses.replace(
        spec, method="any", threshold=None, settings=spec.shared_settings, cache=spec.shared_cache
    )
    return canonical({**dataclasses.asdict(plain), **dict.fromkeys(HELPERS)})
