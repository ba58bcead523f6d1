"""Published figures beside ours, as the columns of a table and the notes below it."""

from __future__ import annotations

from collections.abc import Sequence

from dlmbench.analysis.published import Pair, Published
from dlmbench.analysis.row import Row
from dlmbench.analysis.text import interval, number, percent

NOTE = (
    "Published figures are the authors' own, on their hardware, prompts and scorers; ours are beside them and on our "
    "hardware. inside: the published accuracy lies in our 95 % interval. NFE is without forwards that only store keys "
    "and values, unless it says so. A difference is no verdict on either."
)


def columns(found: Sequence[Pair]) -> tuple[dict[str, list[str]], list[str]]:
    """The pairs as columns of texts, empty ones left out, and the notes that the last column points to."""
    sources = list(dict.fromkeys(_source(p.published) for p in found))
    others = list(dict.fromkeys("; ".join(p.differs) for p in found if p.differs))
    texts = {
        "task": [p.published.task for p in found],
        "model": [p.published.model for p in found],
        "setting": [p.published.label for p in found],
        "published": [percent(p.published.accuracy) for p in found],
        "ours": [_accuracy(p.ours) for p in found],
        "difference": [_gap_text(p) for p in found],
        "NFE there": [_their_forwards(p) for p in found],
        "NFE here": [number(p.forwards[1]) for p in found],
        "speed there": [_speed_text(p.published.speed, p.published.unit) for p in found],
        "speed here": [_speed_text(p.speed, p.published.unit) for p in found],
        "note": [f"[{1 + sources.index(_source(p.published))}{_letter(others, p)}]" for p in found],
    }
    shown = {name: values for name, values in texts.items() if set(values) != {"-"}}
    lines = [f"[{n}] {source}" for n, source in enumerate(sources, 1)]
    return shown, lines + [f"[{chr(97 + n % 26)}] our run differs: {text}" for n, text in enumerate(others)]


def _their_forwards(pair: Pair) -> str:
    """Without stores; a count of another definition says so."""
    if pair.published.stores == "included":
        return f"{number(pair.published.nfe)} with stores"
    return number(pair.forwards[0])


def _accuracy(row: Row) -> str:
    return interval(row.accuracy, row.metrics.accuracy_low, row.metrics.accuracy_high)


def _letter(others: list[str], pair: Pair) -> str:
    return chr(97 + others.index("; ".join(pair.differs)) % 26) if pair.differs else ""


def _source(one: Published) -> str:
    return "; ".join(part for part in (one.paper, one.source, one.hardware) if part)


def _gap_text(pair: Pair) -> str:
    if pair.gap is None:
        return "-"
    return f"{100 * pair.gap:+.1f}, {'inside' if pair.inside else 'outside'}"


def _speed_text(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{number(value, 1 if unit == 'tok/s' else 2)} {unit}"
