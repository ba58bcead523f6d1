"""A group's table in plain words: which setting keeps the accuracy for less, which costs least, and how sure that is.

A few sentences for every group of comparable rows, in the report's sections; answer.py speaks for the whole sweep. A
claim that the items cannot carry is not made: the sentence then says that they are too few.
"""

from __future__ import annotations

from dlmbench import stats
from dlmbench.analysis.load import Results
from dlmbench.analysis.needs import cheapest, most_accurate, sure, verdict, within
from dlmbench.analysis.row import CURVE, REFERENCE, RIVAL, Group, Row
from dlmbench.analysis.text import interval, listed, signed, told
from dlmbench.stats import MARGIN, points

BETTER, WORSE, CLOSE, EQUAL = "better", "worse", "too close to tell", "equal"  # words of `Against.verdict`
_POINTS = f"{100 * MARGIN:g} points"


def titled(results: Results) -> list[tuple[str, Group]]:
    """The groups of several rows, each with the task and whatever else is needed to tell it from the others."""
    found = [group for group in results.groups if len(group.rows) > 1]
    facts = [_facts(group.rows[0]) for group in found]
    differing = [name for name in facts[0] if len({str(one[name]) for one in facts}) > 1] if facts else []
    titles = [
        ", ".join([group.rows[0].task, *(told(name, fact[name]) for name in differing)])
        for group, fact in zip(found, facts)
    ]
    hashes = [f" (weights {one.rows[0].weights[:8]}, prompts {one.rows[0].manifest.prompts[:8]})" for one in found]
    return [
        (title + more if titles.count(title) > 1 else title, group) for title, more, group in zip(titles, hashes, found)
    ]


def _facts(row: Row) -> dict[str, object]:
    """What may tell the groups of a task apart, in the order in which it is said."""
    plain = dict(row.circumstances)
    first: dict[str, object] = {"split": plain.pop("split"), "model": row.model, "items": row.metrics.items}
    return first | plain


def unusual(group: Group) -> list[str]:
    """What its rows share beside task, model, machine and batch, where that is not the usual: ``cache dual``."""
    usual = (None, False, 0, "none", "{}")
    places = ("split", "device", "batch_size")
    found = group.rows[0].circumstances.items()
    return [told(name, value) for name, value in found if name not in places and value not in usual]


def sentences(group: Group) -> list[str]:
    """The sentences of a group."""
    reference = group.judged_by
    if reference is None:
        return _without_reference(group)
    found = [_keep(group, reference), _cheapest(group, reference), _certainty(group, reference), _at_equal_work(group)]
    return [sentence for sentence in found if sentence]


def _keep(group: Group, reference: Row) -> str:
    best = within(group, reference, MARGIN)
    if best is None:
        return (
            f"No cheaper setting stays within {_POINTS} of {reference.label} ({_accuracy(reference)}): here the "
            "accuracy has its price."
        )
    return (
        f"To keep the accuracy, take {best.label}: {_accuracy(best)} against {_accuracy(reference)} for "
        f"{reference.label}, at {_share(group, best)} of its {'cost' if group.priced else 'forwards'}; "
        f"{_paired(best)}{_promise(best)}."
    )


def _cheapest(group: Group, reference: Row) -> str:
    least, kept, count = cheapest(group, group.rows), within(group, reference, MARGIN), len(group.rows)
    if least is reference:
        return f"No setting costs less than {least.label} itself."
    if least is kept:
        return f"Nothing is cheaper: {least.label} costs least of all {count} settings."
    return (
        f"The cheapest of all {count} settings is {least.label}, at {_share(group, least)}: {_accuracy(least)}, "
        f"{_paired(least)}."
    )


def _certainty(group: Group, reference: Row) -> str:
    label, items, others = reference.label, reference.metrics.items, [row for row in group.rows if row is not reference]
    verdicts = [verdict(row) for row in others]
    counts = {word: verdicts.count(word) for word in (BETTER, WORSE, CLOSE, EQUAL) if word in verdicts}
    who = f"the {len(others)} other settings" if len(others) > 1 else "the other setting"
    parts = [f"{number} {'is' if number == 1 else 'are'} {word}" for word, number in counts.items()]
    if counts.keys() == {CLOSE}:
        start = f"{items} items are too few to tell {'any of ' * (len(others) > 1)}{who} from {label}"
    else:
        start = f"Of {who}, compared with {label} on {items} items, {listed(parts)}"
    least = group.least_difference
    shown = f"a difference of {100 * least:.1f} points or more shows" if least else "no difference whatever shows"
    return f"{start} ({_TEST}); on so many items {shown} in four of five cases."


def _at_equal_work(group: Group) -> str:
    """Who beats plain threshold decoding of the same work; empty where fewer than two thresholds ran."""
    gaps = {row: row.against[CURVE] for row in group.rows if CURVE in row.against and row.method != REFERENCE}
    if not gaps or len(group.methods()[RIVAL]) < 2:
        return ""
    told = {
        word: [
            f"{row.label} ({points(gap.difference, signed=True)})" for row, gap in gaps.items() if gap.verdict == word
        ]
        for word in (BETTER, WORSE)
    }
    parts = [f"{word} {'are' if len(rows) > 1 else 'is'} {listed(rows)}" for word, rows in told.items() if rows]
    rest = len(gaps) - sum(map(len, told.values()))
    if rest:
        others = f"{'the other ' if parts else ''}{rest} setting{'s' if rest > 1 else ''} of other methods"
        parts.append(f"{others} cannot be told")
    return f"Beside plain threshold decoding that does the same work, {'; '.join(parts)}."


_TEST = (
    f"exact McNemar tests, corrected by Holm, together at {100 * stats.ALPHA:g} %; equal: within "
    f"{100 * MARGIN:g} points"
)


def _without_reference(group: Group) -> list[str]:
    best, least = most_accurate(group.rows), cheapest(group, group.rows)
    if not group.counted:
        return [f"Most accurate is {best.label} with {_accuracy(best)}; its server tells no forwards."]
    return [
        f"Most accurate is {best.label} with {_accuracy(best)}, at {group.spent(best):.1f} plain forwards an item.",
        f"Cheapest is {least.label} with {_accuracy(least)}, at {group.spent(least):.1f}.",
        "Nothing says what either costs in accuracy: there is no static row on these weights, or the samples of some "
        "rows are missing.",
    ]


def _paired(row: Row) -> str:
    """``+0.8 points on the same items [-1.6, +3.2], too close to tell``."""
    gap = row.against[REFERENCE]
    value, _, ends = signed(gap.difference, gap.low, gap.high).partition(" ")
    return f"{value} points on the same items {ends}, {verdict(row)}"


def _promise(row: Row) -> str:
    """What the lower end of the interval adds to a claim of equal accuracy."""
    if sure(row, MARGIN):
        return ""
    return f" ({row.metrics.items} items are too few to rule out a loss of more than {_POINTS})"


def _accuracy(row: Row) -> str:
    value, _, ends = interval(row.accuracy, row.metrics.accuracy_low, row.metrics.accuracy_high).partition(" ")
    return f"{value} % {ends}"


def _share(group: Group, row: Row) -> str:
    return f"{group.share(row) or 0.0:.2f}"
