"""Recorded steps in the form that the report's trace viewer reads: small, and the same for every method.

A step is [block, revealed, taken back, considered, rejected, forwards, rewritten]:

    revealed    [position, word, confidence] each, the confidence in thousandths or null
    taken back  positions that became masks again
    considered  [position, word, confidence] of masked positions that the step looked at and left
    rejected    [position, word] of tokens that were drafted and not kept
    forwards    the step's passes in words
    rewritten   [position, word] of tokens that took the place of others

Positions count from the first one behind the prompt; words are indices into one list a report.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from dlmbench.runs.folder import RunFolder
from dlmbench.runs.record import Trace
from dlmbench.runs.recording import rewrites

BUDGET = 900_000  # characters of steps in one report
_CONSIDERED = 16  # masked positions shown beside what a step revealed, leftmost first


class Record(TypedDict):
    """The steps of one item under one setting."""

    section: int
    setting: int
    key: str
    same: bool  # are its tokens those of the sample?
    end: int  # tokens of the answer
    steps: list[list[Any]]


class Words:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    @property
    def list(self) -> list[str]:
        return list(self.numbers)


def trace_records(sections: Sequence[Sequence[RunFolder]], words: Words) -> list[Record]:
    """Traces of all runs of all sections, first items first, as many as fit into `BUDGET`; an item is shown for every
    run or none."""
    recorded = [[(i, j, run.traces) for j, run in enumerate(runs)] for i, runs in enumerate(sections)]
    share = BUDGET // max(len(sections), 1)
    found: list[Record] = []
    for runs in recorded:
        spent = 0
        for number in range(max((len(traces) for *_, traces in runs), default=0)):
            records = [_record(i, j, traces[number], words) for i, j, traces in runs if number < len(traces)]
            spent += len(json.dumps(records, separators=(",", ":")))
            if spent > share and number:
                break
            found += records
    return found


def _record(section: int, setting: int, trace: Trace, words: Words) -> Record:
    text = {int(token): words(word) for token, word in trace.words.items()}
    return {
        "section": section,
        "setting": setting,
        "key": trace.key,
        "same": trace.same_ids,
        "end": len(trace.ids),
        "steps": [_step(step, trace.start, text) for step in trace.steps],
    }


def _step(step: Mapping[str, Any], start: int, text: Mapping[int, int]) -> list[Any]:
    scores = step["scores"]
    columns = (scores.get(name, ()) for name in ("positions", "tokens", "confidence"))
    seen = {position: (token, confidence) for position, token, confidence in zip(*columns)}
    revealed = dict(zip(step["positions"], step["tokens"]))
    considered = [position for position in seen if position not in revealed][:_CONSIDERED]
    return [
        step["block"],
        [[position - start, text[token], _thousandths(seen, position, token)] for position, token in revealed.items()],
        [position - start for position in step["remasked"]],
        [[p - start, text[seen[p][0]], _thousandths(seen, p, seen[p][0])] for p in considered],
        [[position - start, text[token]] for position, token in rejected(step) if token in text],
        _passes(step["forwards"]),
        [[position - start, text[token]] for position, token in rewrites(step).items()],
    ]


def _thousandths(seen: Mapping[int, tuple[int, float]], position: int, token: int) -> int | None:
    found = seen.get(position)
    return None if found is None or found[0] != token or found[1] is None else round(1000 * found[1])


def rejected(step: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(position, token) of every draft that a step looked at and did not keep, read from the decoder's own record."""
    extra, scores = step["extra"], step["scores"]
    proposed = dict(zip(scores.get("positions", ()), scores.get("tokens", ())))
    found: list[tuple[int, int]] = []
    if "vetoed" in extra:  # mrp: revealed by the backbone, kept back by the module
        found += [(position, proposed[position]) for position in extra["vetoed"] if position in proposed]
    if "drafts" in extra:  # mrp: the module's drafts behind the first one that the backbone would not have chosen
        found += [(position, token) for position, token in extra["drafts"][extra["accepted"] :] if position >= 0]
    if extra.get("verified"):  # simsd: a window with what was drafted at each place, and whether it was accepted
        places = zip(extra["draft"], extra["step_map"], extra["accepted"])
        drafted = [(extra["window"] + at, token, kept) for at, (token, when, kept) in enumerate(places) if when >= 0]
        found += [(position, token) for position, token, kept in drafted if not kept]
    if "agreed" in extra and step["positions"]:  # guided: proposals behind the first one that the guide disagrees with
        found += [(position, token) for position, token in proposed.items() if position not in step["positions"]]
    kept = set(zip(step["positions"], step["tokens"]))
    return [one for one in found if one not in kept]


def _passes(forwards: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(f"{one['role']} {one['kind']}" for one in forwards)
    return ", ".join(name if number == 1 else f"{number} x {name}" for name, number in counts.items()) or "no forward"
