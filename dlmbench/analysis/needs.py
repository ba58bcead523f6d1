"""Which row serves which need: the cheapest within a loss, the fastest, the most accurate.

Rows are named on the very items that they are reported on. Left out: choosing on other items (`sweep --tune-on dev`),
and corrections of the choice among many (`recommend` has one).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dlmbench.analysis.row import REFERENCE, Group, Row
from dlmbench.stats import MARGIN, TOO_FEW

ALONE = "not compared"


@dataclass(frozen=True)
class ServedNeed:
    """What somebody may want, and the row that serves it; None when no row does."""

    need: str
    row: Row | None
    remark: str


def needs(group: Group) -> list[ServedNeed]:
    """The usual wishes, each with the row that serves it best on these items."""
    reference, found = group.judged_by, []
    if reference:
        for points in (MARGIN, 2.5 * MARGIN):
            row = within(group, reference, points)
            wish = f"at most {100 * points:g} points below {reference.label}, least cost"
            found.append(ServedNeed(wish, row, _loss(row, points)))
        if fast := _fastest(group, reference):
            wish = f"at most {100 * MARGIN:g} points below {reference.label}, most tokens/s"
            found.append(ServedNeed(wish, fast, _loss(fast, MARGIN)))
    best = most_accurate(group.rows)
    least = cheapest(group, group.rows) if group.counted else None
    for wish, row in (("highest accuracy", best), ("least cost, whatever the accuracy", least)):
        found.append(ServedNeed(wish, row, "" if row is None or row is reference else verdict(row)))
    return found


def within(group: Group, reference: Row, points: float) -> Row | None:
    """The cheapest row at most `points` (a share) below the reference and cheaper than it."""
    floor, most = reference.accuracy - points - 1e-9, group.spent(reference)
    good = [row for row in group.rows if row is not reference and row.accuracy >= floor and group.spent(row) < most]
    return cheapest(group, good) if good else None


def most_accurate(rows: Iterable[Row]) -> Row:
    """The row of highest accuracy; of equals the one with fewer forwards."""
    return max(rows, key=lambda row: (row.accuracy, -row.nfe))


def cheapest(group: Group, rows: Sequence[Row]) -> Row:
    """The row that costs least; of equals the most accurate."""
    return min(rows, key=lambda row: (group.spent(row), -row.accuracy))


def _fastest(group: Group, reference: Row) -> Row | None:
    floor = reference.accuracy - MARGIN - 1e-9
    good = [row for row in group.rows if row.accuracy >= floor and row.tps]
    return max(good, key=lambda row: row.tps or 0.0, default=None)


def verdict(row: Row) -> str:
    """What the difference to the reference says, or that there is none."""
    return row.against[REFERENCE].verdict if REFERENCE in row.against else ALONE


def standing(row: Row) -> str:
    """The same for a table, where the reference itself is called so."""
    return "reference" if row is row.group.judged_by and len(row.group.rows) > 1 else verdict(row)


def sure(row: Row, points: float) -> bool:
    """Do the items rule out a larger loss?"""
    return row.against[REFERENCE].low >= -points


def _loss(row: Row | None, points: float) -> str:
    if row is None:
        return "no setting does"
    if REFERENCE not in row.against:
        return ""
    return "sure" if sure(row, points) else TOO_FEW
