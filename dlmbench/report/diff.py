"""Two runs on the same items: which items flipped, and where two decodings of an item part.

Answers, texts and steps are compared item by item. Where both runs recorded an item's steps, the first one in which
they reveal something else is shown with the lead of the best logit over the second best at the positions concerned: a
small lead says that the two parted over a close call, a large one that they saw different things.

Left out: items that only one of the runs holds (counted, not compared).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlmbench import stats
from dlmbench.errors import RequestError
from dlmbench.report.table import percent, row, signed
from dlmbench.runs import RunFolder, Sample, Trace
from dlmbench.runs.recording import rewrites

TAKEN_BACK = "(taken back)"


@dataclass(frozen=True)
class Parting:
    """The first step in which two recorded decodings of an item differ; `first` and `second` are what each revealed.

    Each is a list of (position behind the prompt, token's text, lead or None); steps count from 1. Runs that reveal
    other numbers of tokens part at once; `clash` is the earliest position that got another token: (position, what the
    first put there, what the second did), each as (token's text, step, lead). None when they only differ in order.
    """

    step: int
    steps: tuple[int, int]
    first: list[tuple[int, str, float | None]]
    second: list[tuple[int, str, float | None]]
    clash: tuple[int, tuple[str, int, float | None], tuple[str, int, float | None]] | None

    @property
    def lead(self) -> float | None:
        """The smallest lead among the positions where the two did not do the same."""
        same = {(position, word) for position, word, _ in self.first} & {(p, w) for p, w, _ in self.second}
        leads = [one[2] for one in (*self.first, *self.second) if one[:2] not in same and one[2] is not None]
        return min(leads, default=None)


@dataclass(frozen=True)
class Item:
    """One item in both runs."""

    key: str
    scores: tuple[float, float]
    texts: tuple[str, str]
    same_ids: bool
    traced: bool  # both runs recorded its steps
    parting: Parting | None  # None where it was not recorded, or the recorded steps are the same

    @property
    def flipped(self) -> bool:
        return self.scores[0] != self.scores[1]


@dataclass(frozen=True)
class Comparison:
    """Two runs, the items that both hold, and the paired difference (first minus second)."""

    rows: tuple[dict[str, Any], dict[str, Any]]
    items: list[Item]
    alone: tuple[int, int]  # items that only the first, only the second holds
    difference: stats.Difference
    interval: tuple[float, float]  # score interval, which has a width where no item flipped

    def sentence(self) -> str:
        """The whole comparison in words."""
        labels = [record["label"] for record in self.rows]
        if labels[0] == labels[1]:
            labels = ["the first", "the second"]
        wins = [sum(item.scores[i] > item.scores[1 - i] for item in self.items) for i in (0, 1)]
        same = sum(item.same_ids for item in self.items)
        shares = [percent(sum(item.scores[i] for item in self.items) / len(self.items)) for i in (0, 1)]
        test = (
            f", McNemar p = {self.difference.p_value:.2g}" if self.difference.p_value == self.difference.p_value else ""
        )
        return (
            f"{labels[0]} {shares[0]} %, {labels[1]} {shares[1]} % on {len(self.items)} items: {sum(wins)} flipped, "
            f"{wins[0]} only {labels[0]} solves, {wins[1]} only {labels[1]}; "
            f"{signed(self.difference.mean, *self.interval)} points{test}. The same ids on {same}."
        )


def compare(first: RunFolder, second: RunFolder) -> Comparison:
    """Both runs, item by item. Raises RequestError where they did not answer the same prompts."""
    rows = (row(first), row(second))
    samples = [{sample.key: sample for sample in run.samples} for run in (first, second)]
    traces = [{trace.key: trace for trace in run.traces} for run in (first, second)]
    shared = [
        key
        for key, sample in samples[0].items()
        if key in samples[1] and samples[1][key].prompt_hash == sample.prompt_hash
    ]
    if not shared:
        tasks = " and ".join(f"{record['task']} ({record['split']}, {record['items']} items)" for record in rows)
        raise RequestError(f"The two runs share no prompt: they are on {tasks}; give two runs on the same items.")
    items = [_item(key, *(one[key] for one in samples), *(one.get(key) for one in traces)) for key in sorted(shared)]
    scores = [[item.scores[i] for item in items] for i in (0, 1)]
    return Comparison(
        rows,
        items,
        tuple(len(one) - len(shared) for one in samples),
        stats.paired_difference(*scores),
        stats.paired_score_interval(*scores),
    )


def _item(key: str, a: Sample, b: Sample, left: Trace | None, right: Trace | None) -> Item:
    return Item(
        key,
        (a.accuracy, b.accuracy),
        (a.text, b.text),
        a.ids == b.ids,
        bool(left and right),
        parting(left, right) if left and right else None,
    )


def parting(left: Trace, right: Trace) -> Parting | None:
    """Where two recorded decodings part, None where all steps reveal and take back the same."""
    length = max(len(left.steps), len(right.steps))
    for n in range(length):
        pair = [one.steps[n] if n < len(one.steps) else None for one in (left, right)]
        if _acts(pair[0]) != _acts(pair[1]):
            shown = [_shown(step, one) for step, one in zip(pair, (left, right))]
            return Parting(n + 1, (len(left.steps), len(right.steps)), *shown, _clash(left, right))
    return None


def _clash(left: Trace, right: Trace) -> Any:
    a, b = _commits(left), _commits(right)
    others = [position for position in a.keys() & b.keys() if a[position][0] != b[position][0]]
    if not others:
        return None
    place = min(others, key=lambda position: (min(a[position][1], b[position][1]), position))
    return place, a[place], b[place]


def _commits(trace: Trace) -> dict[int, tuple[str, int, float | None]]:
    """position behind the prompt -> (token's text, step, lead) of the token that stayed."""
    found = {}
    for n, step in enumerate(trace.steps, 1):
        found |= {position: (word, n, lead) for position, word, lead in _shown(step, trace) if word != TAKEN_BACK}
    return found


def _acts(step: Mapping[str, Any] | None) -> Any:
    """What a step did to the canvas, in any order."""
    return step and (dict(zip(step["positions"], step["tokens"])), sorted(step["remasked"]), rewrites(step))


def _shown(step: Mapping[str, Any] | None, trace: Trace) -> list[tuple[int, str, float | None]]:
    if step is None:
        return []
    scores = step.get("scores") or {}
    leads = dict(zip(scores.get("positions", ()), scores.get("lead", ())))
    words = trace.words
    found = [
        (position - trace.start, words.get(str(token), f"<{token}>"), leads.get(position))
        for position, token in (*zip(step["positions"], step["tokens"]), *rewrites(step).items())
    ]
    return found + [(position - trace.start, TAKEN_BACK, None) for position in step["remasked"]]


def chosen(found: Comparison, flipped: bool, limit: int) -> Sequence[Item]:
    """Items worth showing, those with recorded steps first: flipped ones, or all that differ."""
    picked = [item for item in found.items if (item.flipped if flipped else not item.same_ids)]
    return sorted(picked, key=lambda item: (not item.flipped, not item.traced, item.key))[:limit]
