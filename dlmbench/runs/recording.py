"""Steps of a run's first items, for readers: what each step revealed, took back, considered and cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmbench.runs.record import Trace

if TYPE_CHECKING:
    from dlmbench.engine import Engine, Request

TRACED = 4
LOGITS = "logits.npz"  # what `dlmbench.runs.states` writes and reads
LOGITS_FORMAT = 1


def record(engine: Engine, requests: Sequence[Request], stored: Mapping[str, Sequence[int]]) -> list[Trace]:
    """Decode `requests` with recording on; one trace each. `stored`: key -> ids of the run's samples."""
    generations = engine.generate(requests, trace=True)
    return [
        Trace(
            key=request.key,
            start=len(request.prompt_ids),
            ids=list(generation.ids),
            same_ids=list(generation.ids) == list(stored[request.key]),
            words=_words(engine.tokenizer, generation.trace or []),
            steps=_short(generation.trace),
        )
        for request, generation in zip(requests, generations)
    ]


def recorded(folder: Path) -> int:
    """How many items of a run have their states recorded; 0 where the file is not there or cannot be read."""
    import numpy as np

    try:
        with np.load(folder / LOGITS, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            return len(about["items"]) if about["format"] == LOGITS_FORMAT else 0
    except (OSError, ValueError, KeyError):
        return 0


def rewrites(step: Mapping[str, Any]) -> dict[int, int]:
    """Position -> token of what a recorded step rewrote; records of other methods have nothing of it."""
    found = step.get("replaced") or {"positions": (), "tokens": ()}
    return dict(zip(found["positions"], found["tokens"]))


def _words(tokenizer: Any, steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    ids = {token for step in steps for token in (*step["tokens"], *step["scores"].get("tokens", ()))}
    ids |= {token for step in steps for token in rewrites(step).values()}
    drafted = {token for step in steps for token in _integers(step["extra"])}  # some of them
    known = {token for token in ids | drafted if 0 <= token < len(tokenizer)}
    padding = dict.fromkeys(map(str, ids - known), "")  # a network may have more rows than its tokenizer has tokens
    return {str(token): tokenizer.decode([token]) for token in sorted(known)} | padding


def _integers(value: Any) -> list[int]:
    """All whole numbers in a decoder's own record: some of them are tokens it drafted."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for one in value for number in _integers(one)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _short(value: Any) -> Any:
    """The same with floats of five digits; what JSON cannot say becomes null."""
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
