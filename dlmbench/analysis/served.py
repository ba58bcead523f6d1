"""Rows of a server beside rows that were made here: paired on the same items of the same prompts.

Accuracy is paired whatever made the answers. Speed is only where the hardware is known to be the same and as many
requests were under way as rows were decoded together. Left out: cost, which nobody has measured on a server.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dlmbench.analysis.row import Against, Row, differences
from dlmbench.analysis.text import number, signed


@dataclass(frozen=True)
class Beside:
    """A served row's difference to a row made here, and how many times its tokens/s (None: not comparable)."""

    against: Against
    speed: float | None

    @property
    def sentence(self) -> str:
        """``+0.5 [-1.2, 2.1] points against threshold 0.9 (too close to tell)``, with the speed where it is known."""
        found, theirs = self.against, self.against.baseline
        times = f", {number(self.speed, 2)} times its tokens/s" if self.speed is not None else ""
        difference = signed(found.difference, found.low, found.high)
        return (
            f"{difference} points against {theirs.label} in process, batch {theirs.batch_size} ({found.verdict}){times}"
        )


def beside(ours: Row, others: Iterable[Row]) -> list[Beside]:
    """`ours` against every row of the same prompts that was made here, p values corrected for their number."""
    rows = [row for row in others if _alike(ours, row) and row.manifest.server is None]
    items = [sorted(ours.samples.keys() & row.samples.keys()) for row in rows]
    pairs = [(row, keys) for row, keys in zip(rows, items) if keys]
    values = [
        ([ours.samples[key].accuracy for key in keys], [row.samples[key].accuracy for key in keys])
        for row, keys in pairs
    ]
    return [Beside(one, _speed(ours, one.baseline)) for one in differences([row for row, _ in pairs], values)]


def _alike(ours: Row, row: Row) -> bool:
    return (ours.task, ours.split, ours.manifest.prompts) == (row.task, row.split, row.manifest.prompts)


def _speed(ours: Row, theirs: Row) -> float | None:
    """Tokens/s, prefill included, over theirs; those of requests that arrive in their own time say how many came."""
    if ours.device != theirs.device or ours.batch_size != theirs.batch_size or ours.manifest.spec.rate:
        return None
    rates = ours.tps_end_to_end, theirs.tps_end_to_end
    return rates[0] / rates[1] if rates[0] is not None and rates[1] else None
