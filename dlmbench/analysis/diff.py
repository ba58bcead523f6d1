"""Two runs on the same items: which items flipped, and where two decodings of an item part.

Answers, texts and steps are compared item by item. Where both runs recorded an item's steps, the first one in which
they reveal something else is shown with the lead of the best logit over the second best at the positions concerned: a
small lead says that the two parted over a close call, a large one that they saw different things.

Left out: items that only one of the runs holds (counted, not compared).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dlmbench import stats
from dlmbench.analysis.row import Row
from dlmbench.analysis.text import percent, signed
from dlmbench.errors import RequestError
from dlmbench.runs.record import Sample, Trace
from dlmbench.runs.recording import rewrites

Shown: TypeAlias = list[tuple[int, str, float | None]]  # (position behind the prompt, token's text, lead)
Commit: TypeAlias = tuple[str, int, float | None]  # (token's text, step, lead)
Step: TypeAlias = Mapping[str, Any]  # as `Trace.steps`

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
    first: Shown
    second: Shown
    clash: tuple[int, Commit, Commit] | None

    @property
    def lead(self) -> float | None:
        """The smallest lead among the positions where the two did not do the same."""
        same = {(position, word) for position, word, _ in self.first} & {(p, w) for p, w, _ in self.second}
        leads = [one[2] for one in (*self.first, *self.second) if one[:2] not in same and one[2] is not None]
        return min(leads, default=None)


@dataclass(frozen=True)
class ItemDiff:
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
class RunDiff:
    """Two runs, the items that both hold, and the paired difference (first minus second)."""

    rows: tuple[Row, Row]
    items: list[ItemDiff]
    alone: tuple[int, int]  # items that only the first, only the second holds
    difference: stats.Difference
    interval: tuple[float, float]  # score interval, which has a width where no item flipped

    def sentence(self) -> str:
        """The whole comparison in words."""
        labels = [row.label for row in self.rows]
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


def compare(first: Row, second: Row) -> RunDiff:
    """Both runs, item by item. Raises RequestError where they did not answer the same prompts."""
    rows = (first, second)
    traces = [{trace.key: trace for trace in row.run.traces} for row in rows]
    shared = [
        key
        for key, sample in first.samples.items()
        if key in second.samples and second.samples[key].prompt_hash == sample.prompt_hash
    ]
    if not shared:
        tasks = " and ".join(f"{row.task} ({row.split}, {row.metrics.items} items)" for row in rows)
        raise RequestError(f"The two runs share no prompt: they are on {tasks}; give two runs on the same items.")
    items = [
        _item(key, first.samples[key], second.samples[key], *(one.get(key) for one in traces)) for key in sorted(shared)
    ]
    ours, theirs = ([item.scores[i] for item in items] for i in (0, 1))
    return RunDiff(
        rows,
        items,
        (len(first.samples) - len(shared), len(second.samples) - len(shared)),
        stats.paired_difference(ours, theirs),
        stats.paired_score_interval(ours, theirs),
    )


def _item(key: str, a: Sample, b: Sample, left: Trace | None, right: Trace | None) -> ItemDiff:
    return ItemDiff(
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
        a, b = (one.steps[n] if n < len(one.steps) else None for one in (left, right))
        if _acts(a) != _acts(b):
            steps = len(left.steps), len(right.steps)
            return Parting(n + 1, steps, _shown(a, left), _shown(b, right), _clash(left, right))
    return None


def _clash(left: Trace, right: Trace) -> tuple[int, Commit, Commit] | None:
    a, b = _commits(left), _commits(right)
    others = [position for position in a.keys() & b.keys() if a[position][0] != b[position][0]]
    if not others:
        return None
    place = min(others, key=lambda position: (min(a[position][1], b[position][1]), position))
    return place, a[place], b[place]


def _commits(trace: Trace) -> dict[int, Commit]:
    """position behind the prompt -> (token's text, step, lead) of the token that stayed."""
    found: dict[int, Commit] = {}
    for n, step in enumerate(trace.steps, 1):
        found |= {position: (word, n, lead) for position, word, lead in _shown(step, trace) if word != TAKEN_BACK}
    return found


def _acts(step: Step | None) -> tuple[dict[int, int], list[int], dict[int, int]] | None:
    """What a step did to the canvas, in any order."""
    if step is None:
        return None
    return dict(zip(step["positions"], step["tokens"])), sorted(step["remasked"]), rewrites(step)


def _shown(step: Step | None, trace: Trace) -> Shown:
    if step is None:
        return []
    scores = step.get("scores") or {}
    leads = dict(zip(scores.get("positions", ()), scores.get("lead", ())))
    words = trace.words
    found: Shown = [
        (position - trace.start, words.get(str(token), f"<{token}>"), leads.get(position))
        for position, token in (*zip(step["positions"], step["tokens"]), *rewrites(step).items())
    ]
    return found + [(position - trace.start, TAKEN_BACK, None) for position in step["remasked"]]


def chosen(found: RunDiff, flipped: bool, limit: int) -> Sequence[ItemDiff]:
    """Items worth showing, those with recorded steps first: flipped ones, or all that differ."""
    picked = [item for item in found.items if (item.flipped if flipped else not item.same_ids)]
    return sorted(picked, key=lambda item: (not item.flipped, not item.traced, item.key))[:limit]
