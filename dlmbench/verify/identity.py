"""Two runs that should be the same: which items differ, where, and by how little.

The identity rule: kernels may differ in the last bit with the shape of a product, so ids of two float32 runs that
should be identical may differ where a decision was a tie. An item that differs is listed with the gap of its first
differing decision; every gap must be below `GAP`, and at most one item in `ITEMS` may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from dlmbench.engine import Engine, Generation, Request
from dlmbench.engine.request import TracedStep
from dlmbench.verify.cases import traced

GAP = 1e-4
ITEMS = 500


@dataclass(frozen=True)
class FirstDifference:
    """First differing decision of one item: step number and how close the call was."""

    key: str
    step: int
    gap: float


def differences(
    first: Engine,
    second: Engine,
    requests: Sequence[Request],
    tau: float | None = None,
    ours: list[Generation] | None = None,
) -> tuple[list[FirstDifference], list[Generation], list[Generation]]:
    """Run both engines on the same requests; items whose ids differ are run again with traces to measure the gap.

    `tau` is the threshold of a threshold decoder: the distance to it is a gap too; `ours` what the first engine gave
    when it was run before.
    """
    ours, theirs = ours or first.generate(requests), second.generate(requests)
    different = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a.ids != b.ids]
    found = []
    for index in different:
        found.append(_locate(first, second, requests, index, tau))
    return found, ours, theirs


def holds(found: Sequence[FirstDifference], items: int) -> bool:
    """Does the identity rule hold for this many items?"""
    return len(found) <= max(1, -(-items // ITEMS)) and all(d.gap < GAP for d in found)


def _locate(
    first: Engine, second: Engine, requests: Sequence[Request], index: int, tau: float | None
) -> FirstDifference:
    # the neighbours in a batch decide the shapes of its products, so everything is traced in the same company
    a = first.generate(requests, trace=True)[index]
    b = second.generate(requests, trace=True)[index]
    for number, (left, right) in enumerate(_pairs(traced(a), traced(b))):
        if (left["positions"], left["tokens"]) != (right["positions"], right["tokens"]):
            return FirstDifference(requests[index].key, number, _gap(left, right, tau))
    return FirstDifference(requests[index].key, min(len(traced(a)), len(traced(b))), float("inf"))


def _pairs(a: list[TracedStep], b: list[TracedStep]) -> Iterator[tuple[TracedStep, TracedStep]]:
    """Steps side by side. A run that drafts commits several decisions at once and has steps without any; its commits,
    which stand in the order in which they were decided, are dealt out to the steps of `a`."""
    if all(step["positions"] for step in b):
        yield from zip(a, b)
        return
    commits = iter([one for step in b for one in zip(step["positions"], step["tokens"])])
    for step in a:
        dealt = sorted(islice(commits, len(step["positions"])))
        if dealt:
            yield step, {**step, "positions": [p for p, _ in dealt], "tokens": [t for _, t in dealt]}


def _gap(left: TracedStep, right: TracedStep, tau: float | None) -> float:
    """How far the decision was from going the other way: the largest distance that had to be bridged.

    A token differs: lead of the best logit. Positions differ: log-odds between those exchanged, or, with a threshold,
    the distance of their confidences to it.
    """
    row = {position: i for i, position in enumerate(left["scores"]["positions"])}

    def score(name: str, position: int) -> float:
        return left["scores"][name][row[position]]

    a, b = dict(zip(left["positions"], left["tokens"])), dict(zip(right["positions"], right["tokens"]))
    tokens = [score("lead", p) for p in set(a) & set(b) if a[p] != b[p]]
    more, less = set(a) - set(b), set(b) - set(a)
    if not more | less:
        return max(tokens)
    ways = []
    if more and less:
        ways.append(max(abs(score("log_odds", p) - score("log_odds", q)) for p in more for q in less))
    if tau is not None:
        ways.append(max(abs(score("confidence", p) - tau) for p in more | less))
    return max([*tokens, min(ways, default=float("inf"))])
