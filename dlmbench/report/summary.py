"""A results table in plain words: which setting keeps the accuracy for less, which costs least, and how sure that is.

Three sentences for every set of comparable rows, printed by `sweep` and opening the report. Everything is read off the
table: accuracies with their intervals, and differences to one-token-a-step decoding (`static`), paired on the same
items. A claim that the items cannot carry is not made: the sentence then says that they are too few.

Left out: choosing on other items than those reported (`sweep --tune-on dev` does that), and corrections for many
comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dlmbench.report.table import PAIRED_ON, percent
from dlmbench.stats import LEVEL, TOO_FEW, verdict

BETTER, WORSE, CLOSE, EQUAL = "better", "worse", "too close to tell", "equal on every item"  # words of stats.verdict
ALONE = "not compared"
ALLOWED = 0.01  # "the same accuracy": at most this far below the reference
_LEVEL = f"{100 * LEVEL:g} %"
_TOLD_APART = {  # what tells two groups of a task apart, in words
    "split": "{}",
    "model": "{}",
    "items": "{} items",
    "batch_size": "batch {}",
    "block_length": "block {}",
    "cache": "cache {}",
    "store": "store {}",
    "dtype": "{}",
    "device": "{}",
    "seed": "seed {}",
    "temperature": "temperature {}",
    "top_k": "top-k {}",
    "top_p": "top-p {}",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Rows that may be compared item by item, and the one they are compared with (None without a static row)."""

    title: str
    rows: list[Row]
    reference: Row | None

    @property
    def others(self) -> list[Row]:
        return [row for row in self.rows if row is not self.reference]

    def price(self, row: Row) -> float | None:
        """Cost of a row as a share of the reference's; in forwards where something was not priced."""
        column = "nfe" if any(_missing(one["cost"]) for one in self.rows) else "cost"
        return row[column] / self.reference[column] if self.reference and self.reference[column] else None

    def spent(self, row: Row) -> float:
        """What an item costs, for ordering."""
        return row["nfe"] if any(_missing(one["cost"]) for one in self.rows) else row["cost"]


@dataclass(frozen=True)
class Need:
    """What somebody may want, and the row that serves it; None when no row does."""

    need: str
    row: Row | None
    remark: str


def groups(frame: pd.DataFrame) -> list[Group]:
    """The comparable rows of a table, a group each, in its order; a row that has no equal in this is left out."""
    found = []
    for _, part in frame.groupby(list(PAIRED_ON), sort=False, dropna=False):
        rows = part.to_dict("records")
        if len(rows) > 1:
            found.append(Group("", rows, _reference(rows)))
    return [Group(title, group.rows, group.reference) for group, title in zip(found, _titles(found))]


def _reference(rows: Sequence[Row]) -> Row | None:
    """The static row with the most forwards, if the others have been paired with it (their samples may be missing)."""
    static = max((row for row in rows if row["method"] == "static"), key=lambda row: row["nfe"], default=None)
    unpaired = [row for row in rows if row is not static and _missing(row.get("vs_static"))]
    return None if unpaired else static


def _titles(found: Sequence[Group]) -> list[str]:
    """The task, and whatever else is needed to tell the groups apart."""
    firsts = [group.rows[0] for group in found]
    differing = [name for name in _TOLD_APART if len({str(first[name]) for first in firsts}) > 1]
    titles = [", ".join([one["task"], *(_TOLD_APART[name].format(one[name]) for name in differing)]) for one in firsts]
    hashes = [f" (weights {one['weights'][:8]}, prompts {one['prompt_hash'][:8]})" for one in firsts]
    return [title + more if titles.count(title) > 1 else title for title, more in zip(titles, hashes)]


def sentences(group: Group) -> list[str]:
    """The three sentences of a group."""
    if group.reference is None:
        return _without_reference(group)
    return [_keep(group), _cheapest(group), _certainty(group)]


def paragraphs(frame: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """(title, sentences) of every group: what a sweep prints and a report begins with."""
    return [(group.title, sentences(group)) for group in groups(frame)]


# --- the sentences ----------------------------------------------------------------------------------------------------


def _keep(group: Group) -> str:
    reference, best = group.reference, within(group, ALLOWED)
    points = f"{100 * ALLOWED:g} point"
    if best is None:
        return (
            f"No cheaper setting stays within {points} of {reference['label']} "
            f"({_accuracy(reference)}): here the accuracy has its price."
        )
    return (
        f"To keep the accuracy, take {best['label']}: {_accuracy(best)} against {_accuracy(reference)} for "
        f"{reference['label']}, at {_share(group, best)} of its {_cost_word(group)}; {_paired(best)}{_promise(best)}."
    )


def _cheapest(group: Group) -> str:
    cheapest, kept = _least(group, group.rows), within(group, ALLOWED)
    count = len(group.rows)
    if cheapest is group.reference:
        return f"No setting costs less than {cheapest['label']} itself."
    if cheapest is kept:
        return f"Nothing is cheaper: {cheapest['label']} costs least of all {count} settings."
    return (
        f"The cheapest of all {count} settings is {cheapest['label']}, at {_share(group, cheapest)}: "
        f"{_accuracy(cheapest)}, {_paired(cheapest)}."
    )


def _certainty(group: Group) -> str:
    label, items, others = group.reference["label"], int(group.reference["items"]), group.others
    verdicts = [row_verdict(row) for row in others]
    counts = {word: verdicts.count(word) for word in (BETTER, WORSE, CLOSE, EQUAL) if word in verdicts}
    who = f"the {len(others)} other settings" if len(others) > 1 else "the other setting"
    if counts.keys() == {EQUAL}:
        noise = -min(row["vs_static_floor"] for row in others)
        return (
            f"{who.capitalize()} and {label} are right on exactly the same of the {items} items, which rules out "
            f"losses of more than {100 * noise:.1f} points ({_LEVEL} intervals)."
        )
    if not counts.keys() - {CLOSE, EQUAL}:
        start = f"{items} items are too few to tell {'any of ' * (len(others) > 1)}{who} from {label}"
    else:
        start = f"Of {who}, compared with {label} on {items} items, {_listed(counts)}"
    unsure = [row for row in others if row_verdict(row) == CLOSE]
    if not unsure:
        return f"{start} ({_LEVEL} paired intervals, each by itself)."
    noise = sorted((row["vs_static_high"] - row["vs_static_low"]) / 2 for row in unsure)[len(unsure) // 2]
    return (
        f"{start} ({_LEVEL} paired intervals, each by itself): a difference below about {100 * noise:.1f} points "
        "drowns in the choice of items."
    )


def _without_reference(group: Group) -> list[str]:
    best, cheapest = most_accurate(group.rows), _least(group, group.rows)
    return [
        f"Most accurate is {best['label']} with {_accuracy(best)}, at {group.spent(best):.1f} plain forwards an item.",
        f"Cheapest is {cheapest['label']} with {_accuracy(cheapest)}, at {group.spent(cheapest):.1f}.",
        "Nothing says what either costs in accuracy: there is no static row on these weights, or the samples of some "
        "rows are missing.",
    ]


def _paired(row: Row) -> str:
    """``+0.8 points on the same items [-1.6, +3.2], too close to tell``."""
    if row_verdict(row) == EQUAL:
        return EQUAL
    low, high = 100 * row["vs_static_low"], 100 * row["vs_static_high"]
    return f"{100 * row['vs_static']:+.1f} points on the same items [{low:+.1f}, {high:+.1f}], {row_verdict(row)}"


def _promise(row: Row) -> str:
    """What the lower end of the interval adds to a claim of equal accuracy."""
    if _sure(row, ALLOWED):
        return ""
    return f" ({row['items']:.0f} items are too few to rule out a loss of more than {100 * ALLOWED:g} point)"


def row_verdict(row: Row) -> str:
    """`stats.verdict` of the difference to the reference, or that there is none."""
    if _missing(row.get("vs_static")):
        return ALONE
    return verdict(row["vs_static_low"], row["vs_static_high"])


def _accuracy(row: Row) -> str:
    return f"{percent(row['accuracy'])} % [{100 * row['accuracy_low']:.1f}, {100 * row['accuracy_high']:.1f}]"


def _share(group: Group, row: Row) -> str:
    return f"{group.price(row):.2f}"


def _cost_word(group: Group) -> str:
    return "forwards" if any(_missing(row["cost"]) for row in group.rows) else "cost"


def _listed(counts: Mapping[str, int]) -> str:
    """``2 are better, 1 is worse and 3 are too close to tell``."""
    parts = [f"{number} {'is' if number == 1 else 'are'} {word}" for word, number in counts.items()]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


# --- which row for which need ---------------------------------------------------------------------------------------


def within(group: Group, points: float) -> Row | None:
    """The cheapest row at most `points` (a share) below the reference and cheaper than it."""
    floor = group.reference["accuracy"] - points - 1e-9
    good = [row for row in group.others if row["accuracy"] >= floor]
    good = [row for row in good if group.spent(row) < group.spent(group.reference)]
    return _least(group, good) if good else None


def most_accurate(rows: Iterable[Row]) -> Row:
    """The row of highest accuracy; of equals the one with fewer forwards."""
    return max(rows, key=lambda row: (row["accuracy"], -row["nfe"]))


def needs(group: Group) -> list[Need]:
    """The usual wishes, each with the row that serves it best on these items."""
    label = group.reference["label"] if group.reference else ""
    best, least = most_accurate(group.rows), _least(group, group.rows)
    found = []
    if group.reference:
        for points in (ALLOWED, 5 * ALLOWED):
            row = within(group, points)
            unit = "point" if points == ALLOWED else "points"
            found.append(Need(f"at most {100 * points:g} {unit} below {label}, least cost", row, _loss(row, points)))
        fast = _fastest(group)
        if fast:
            wish = f"at most {100 * ALLOWED:g} point below {label}, most tokens/s"
            found.append(Need(wish, fast, _loss(fast, ALLOWED)))
    for wish, row in (("highest accuracy", best), ("least cost, whatever the accuracy", least)):
        found.append(Need(wish, row, "" if row is group.reference else row_verdict(row)))
    return found


def _loss(row: Row | None, points: float) -> str:
    if row is None:
        return "no setting does"
    if _missing(row.get("vs_static")):
        return ""
    return "sure" if _sure(row, points) else TOO_FEW


def _sure(row: Row, points: float) -> bool:
    """Do the items rule out a larger loss? Asked of the score interval, which has a width where nothing differs."""
    return row["vs_static_floor"] >= -points


def _fastest(group: Group) -> Row | None:
    floor = group.reference["accuracy"] - ALLOWED - 1e-9
    timed = [row for row in group.rows if row["accuracy"] >= floor and not _missing(row["tps_decode"])]
    return max(timed, key=lambda row: row["tps_decode"]) if timed else None


def _least(group: Group, rows: Sequence[Row]) -> Row:
    """The row that costs least; of equals the most accurate."""
    return min(rows, key=lambda row: (group.spent(row), -row["accuracy"]))


def _missing(value: Any) -> bool:
    return value is None or value != value
