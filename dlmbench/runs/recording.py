"""Steps of a run's first items, for readers: what each step revealed, took back, considered and cost.

The items are decoded once more, in a pass of their own: recording looks at the device after every step, so a traced
pass is neither timed nor scored. A record says whether it gave the ids of the stored sample.

    {"key", "start", "ids", "same_ids", "words": {id: text}, "steps": [...]}

`start` is the position of the first token behind the prompt, `steps` are those of `dlmbench.engine.recorder` with
numbers cut to five digits, `words` the text of every id in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

TRACED = 4


def trace_records(engine: Any, requests: Sequence[Any], stored: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Decode `requests` with recording on; one record each. `stored`: key -> ids of the run's samples."""
    generations = engine.generate(requests, trace=True)
    return [
        {
            "key": request.key,
            "start": len(request.prompt_ids),
            "ids": list(generation.ids),
            "same_ids": list(generation.ids) == stored[request.key],
            "words": _words(engine.tokenizer, generation.trace),
            "steps": _short(generation.trace),
        }
        for request, generation in zip(requests, generations)
    ]


def _words(tokenizer: Any, steps: Sequence[dict[str, Any]]) -> dict[str, str]:
    ids = {token for step in steps for token in (*step["tokens"], *step["scores"].get("tokens", ()))}
    ids |= {token for step in steps for token in _integers(step["extra"])}
    return {str(token): tokenizer.decode([token]) for token in sorted(ids) if 0 <= token < len(tokenizer)}


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
