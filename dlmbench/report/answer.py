"""What a whole sweep says, on one screen: a row a decoder, at most three sentences, a line for every undecided panel.

The end of `sweep` and `report` in a terminal and the head of report.html are this one table. A decoder stands there at
one setting: the one chosen on dev items, where the sweep did so; else the cheapest that loses at most `max_drop` on the
first task, and where none does the one that loses least. Its other tasks show the same setting. Rows are compared
inside their section alone (the same model and circumstances), with the section's one token a step.

Left out: settings, which table.md and the sections of report.html have, and averages over anything but stress tasks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dlmbench.analysis import needs, text
from dlmbench.analysis.load import Results
from dlmbench.analysis.row import REFERENCE, Group, Row
from dlmbench.runs.aggregate import price
from dlmbench.stats import MARGIN, points

MOST = 20  # rows
STRESS = "stress-"  # tasks that each isolate one way to fail
_TASKS = 2  # tasks with a column of their own
_NAMED = 3  # decoders that a sentence names
_SAVES = 0.95  # of the reference's cost: what costs more saves nothing worth a name


@dataclass(frozen=True)
class Heading:
    """Above a column of the answer.

    Args:
        title: a word or two.
        note: what the values are in, or on how many items they stand.
        help: what they mean.
        rank: a narrow screen drops the highest first; 0 stays.
    """

    title: str
    note: str
    help: str
    rank: int = 0


@dataclass(frozen=True)
class Line:
    """One row: its cells below the headings; `row` is the run on the section's first task."""

    row: Row
    cells: list[str]
    leads: bool
    """Does it begin a section, as what the lines below it are compared with?"""


@dataclass(frozen=True)
class Headline:
    """The screen: headings and lines of the table, sentences, and what has no table."""

    headings: list[Heading]
    lines: list[Line]
    sentences: list[str]
    panels: list[str]
    """A line for each task and section in which no setting can be told from another, and for what is left out."""

    @property
    def record(self) -> dict[str, list[dict[str, str]] | list[str]]:
        """The same for ``--json``: a mapping a line of the table, then the texts."""
        titles = [head.title for head in self.headings]
        rows = [dict(zip(titles, line.cells)) for line in self.lines]
        return {"rows": rows, "sentences": self.sentences, "panels": self.panels}


def answer(results: Results, max_drop: float = MARGIN) -> Headline:
    """The answer of these results; `max_drop` is the loss of accuracy that is allowed, a share."""
    sections = [section for section in _sections(results) if section.decided or section.alone]
    shown = {group for section in _sections(results, whole=True) for group in section.groups.values()}
    several = [group for group in results.groups if len(group.rows) > 1]
    silent = [group for group in several if group in shown and not decided(group)]
    if not any(section.decided for section in sections):  # then the undecided tasks are all there is
        sections, silent = _sections(results, whole=True), []
    tasks = _tasks(sections)
    ranked = [(section, _ranked(section, tasks, max_drop)) for section in sections]
    ranked = [(section, decoders) for section, decoders in ranked if decoders]
    stress = any(section.stress(tasks) for section, _ in ranked)
    headings = _headings(ranked, tasks, stress)
    ranks = ((rank, n) for n, (_, decoders) in enumerate(ranked) for rank in range(len(decoders)))
    kept = set(sorted(ranks)[:MOST])  # of every section the best
    lines = [
        Line(one.row, _cells(section, one, tasks, stress, len(ranked) > 1), one.standing == LEAD)
        for n, (section, decoders) in enumerate(ranked)
        for rank, one in enumerate(decoders)
        if (rank, n) in kept
    ]
    names = {group: one.name for one in _sections(results, whole=True) for group in one.groups.values()}
    places = {group: names.get(group, group.rows[0].model) for group in results.groups}
    panels = [undecided(group, places[group] if len(set(places.values())) > 1 else "") for group in silent]
    panels += _asides([group for group in several if group not in shown])
    if others := _others(sections, tasks):
        panels.append(f"{text.listed(others)} {'tells' if len(others) == 1 else 'tell'} settings apart too: table.md.")
    if hidden := sum(len(decoders) for _, decoders in ranked) - len(lines):
        panels.append(f"{hidden} more decoders are in table.md.")
    return Headline(headings, lines, _sentences(ranked, max_drop), panels)


# --- sections and their decoders ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Section:
    """Groups that differ in nothing but their task."""

    name: str
    groups: dict[str, Group]  # task -> group

    @property
    def decided(self) -> bool:
        return any(decided(group) for group in self.groups.values())

    @property
    def alone(self) -> bool:
        """Has its model nothing to be compared with?"""
        return all(len(group.rows) == 1 for group in self.groups.values())

    def first(self, tasks: Sequence[str]) -> Group | None:
        """The group whose differences are shown."""
        return next((self.groups[task] for task in tasks if task in self.groups), None)

    def stress(self, tasks: Sequence[str]) -> list[Group]:
        """Stress tasks in which settings differ, without those that have a column of their own."""
        return [
            group
            for task, group in self.groups.items()
            if task.startswith(STRESS) and task not in tasks and decided(group)
        ]


def _sections(results: Results, whole: bool = False) -> list[_Section]:
    """Sections with several rows, the largest first, then models that stand alone; undecided groups only if `whole`."""
    found: dict[tuple[Hashable, ...], dict[str, Group]] = {}
    compared = {group.rows[0].weights for group in results.groups if len(group.rows) > 1}
    for group in results.groups:
        first = group.rows[0]
        if len(group.rows) == 1 and first.weights in compared:
            continue  # a cache policy or batch size with nothing beside it
        alike = {name: value for name, value in first.circumstances.items() if name != "seed"}
        section = found.setdefault((first.weights, *alike.values()), {})
        rivals = [group, *([section[first.task]] if first.task in section else [])]
        section[first.task] = max(rivals, key=_weight)
    facts = [next(iter(groups.values())).rows[0] for groups in found.values()]
    values: dict[tuple[str, str], set[Hashable]] = {}  # what differs between models is said by their names
    for row in facts:
        for name, value in row.circumstances.items():
            values.setdefault((row.model, name), set()).add(value)
    names = [
        ", ".join(
            [row.model]
            + [
                text.told(name, value)
                for name, value in row.circumstances.items()
                if len(values[row.model, name]) > 1 and not _said(value, row)
            ]
        )
        for row in facts
    ]
    sections = [_Section(name, groups) for name, groups in zip(names, found.values())]
    return sorted(sections, key=lambda one: -max(len(group.rows) for group in one.groups.values()))


def _weight(group: Group) -> tuple[int, int, int]:
    """Of groups that are asked the same, on other items or with another seed, the first by this one answers; never the
    better one."""
    first = group.rows[0]
    return first.metrics.items, len(group.rows), -first.manifest.spec.seed


def _asides(groups: Sequence[Group]) -> list[str]:
    """A line for each other set of items, one for all other seeds."""
    firsts = [group.rows[0] for group in groups]
    seeds = sorted({first.manifest.spec.seed for first in firsts} - {0})
    lines = [
        f"{len(one.group.rows)} settings on {one.metrics.items} {one.split} items of {one.task} are in table.md alone."
        for one in firsts
        if not one.manifest.spec.seed
    ]
    if seeds:
        who = f"Seed{'s' * (len(seeds) > 1)} {text.listed(list(map(str, seeds)))} {'are' if len(seeds) > 1 else 'is'}"
        lines.append(f"{who} in table.md, with means over seeds.")
    return lines


_USUAL = (None, 0, "none", "{}")  # circumstances that need no word


def _said(value: Hashable, row: Row) -> bool:
    """Is it usual, or in the label, which names options of cache and sampling?"""
    return isinstance(value, bool) or value in _USUAL or str(value) in row.label.split()


def decided(group: Group) -> bool:
    """Can any setting be told from one token a step? Without that, or samples, any two by their intervals?"""
    if group.judged_by is None:
        return max(row.metrics.accuracy_low for row in group.rows) > min(
            row.metrics.accuracy_high for row in group.rows
        )
    return any(needs.verdict(row) in ("better", "worse") for row in group.rows)


def _tasks(sections: Iterable[_Section]) -> list[str]:
    """The tasks with a column, stress tasks only where there are no others: those that most decoders ran on, and of
    these those in which settings differ most."""
    spread: dict[str, float] = {}
    decoders: dict[str, int] = {}
    groups = [pair for section in sections for pair in section.groups.items()]
    shown = [pair for pair in groups if decided(pair[1])] or groups
    for task, group in shown:
        values = [row.accuracy for row in group.rows]
        spread[task] = max(spread.get(task, 0.0), max(values) - min(values) + 1e-9 * len(values))
        decoders[task] = max(decoders.get(task, 0), len(group.methods()))
    usual = [task for task in spread if not task.startswith(STRESS)] or list(spread)
    return sorted(usual, key=lambda task: (-decoders[task], -spread[task]))[:_TASKS]


def _others(sections: Iterable[_Section], tasks: Sequence[str]) -> list[str]:
    """Tasks with neither a column nor a share in those of the stress tasks, though settings differ there."""
    groups = [pair for section in sections for pair in section.groups.items()]
    shown = {task for task, group in groups if task in tasks or task.startswith(STRESS) or not decided(group)}
    return [task for task in dict.fromkeys(task for task, _ in groups) if task not in shown]


LEAD, SURE, MAYBE, DEAR, LOSES, ALONE = "reference", "keeps", "may keep", "dear", "loses", "alone"
_ORDER = (LEAD, SURE, MAYBE, DEAR, LOSES, ALONE)


@dataclass(frozen=True)
class _Decoder:
    """A decoder at the setting that speaks for it."""

    row: Row
    standing: str  # one of `_ORDER`
    share: float  # of what the reference costs
    others: Mapping[str, Row]  # task -> the same setting there


def _ranked(section: _Section, tasks: Sequence[str], max_drop: float) -> list[_Decoder]:
    """The reference, then the decoders, best first: those that keep its accuracy by cost, the others by loss."""
    group = section.first(tasks)
    if group is None:
        return []
    found = []
    for rows in group.methods().values():
        row = _speaks(group, rows, max_drop)
        others = {task: same for task, other in section.groups.items() if (same := _elsewhere(other, row))}
        found.append(_Decoder(row, _standing(group, row, max_drop), group.share(row) or 0.0, others))

    def place(one: _Decoder) -> tuple[int, float]:
        gap = one.row.against.get(REFERENCE)
        return _ORDER.index(one.standing), -gap.difference if one.standing == LOSES and gap else one.share

    return sorted(found, key=place)


def _speaks(group: Group, rows: Sequence[Row], max_drop: float) -> Row:
    """The setting that stands for its decoder; of static the one of one token a step."""
    reference = group.judged_by
    if reference is None:
        return needs.most_accurate(rows)
    if reference in rows:
        return reference
    kept = [row for row in rows if row.accuracy >= reference.accuracy - max_drop - 1e-9]
    return needs.cheapest(group, kept) if kept else needs.most_accurate(rows)


def _elsewhere(group: Group, row: Row) -> Row | None:
    """The row of this setting on another task; where settings were chosen a task, the one of its decoder."""
    rows = group.methods().get(row.method, [])
    same = [one for one in rows if one.label == row.label] or (rows if len(rows) == 1 else [])
    return same[0] if same else None


def _standing(group: Group, row: Row, max_drop: float) -> str:
    reference = group.judged_by
    if reference is None or row is reference:
        return LEAD if row is reference else ALONE
    gap, share = row.against[REFERENCE], group.share(row) or 0.0
    if gap.verdict == "worse" or gap.difference < -max_drop - 1e-9:
        return LOSES
    if gap.verdict == "better" or (gap.verdict == "equal" and share < _SAVES):
        return SURE
    return MAYBE if share < _SAVES else DEAR


# --- the table ------------------------------------------------------------------------------------------------------


def _headings(ranked: Sequence[tuple[_Section, list[_Decoder]]], tasks: Sequence[str], stress: bool) -> list[Heading]:
    found = [
        Heading("decoder", "cost, then loss", "at the setting that speaks for it: those that may keep the "
                "reference's accuracy by their cost, then the others by what they lose"),
        Heading("cost", "of ref.", "of decoding an item, measured prices, as a share of the reference's"),
        Heading("vs 1 token a step", "points, 95 %", f"paired difference on the items of {tasks[0]}, 95 % interval"),
        Heading("verdict", "", "by McNemar's exact test, corrected by Holm; equal: within "
                f"{100 * MARGIN:g} points; unsettled: too close to tell on so few items; alone: no row of one token "
                "a step to compare with, so no cost and no difference either"),
    ]  # fmt: skip
    found += [
        Heading(
            task, _items(ranked, task), "accuracy in percent; its interval is in table.md", 3 if task != tasks[0] else 1
        )
        for task in tasks
    ]
    if stress:
        found += [
            Heading("worst stress task", "points", "the stress task on which the same setting loses most", 2),
            Heading("stress", "mean", "mean difference over the stress tasks in which settings differ, in points", 4),
        ]
    return [
        *found,
        Heading("tok/s", "ratio", "tokens a second of decoding alone, as a multiple of one token a step's", 5),
        Heading("helpers", "of cost", "share of the cost that is other networks'", 6),
    ]


def _items(ranked: Sequence[tuple[_Section, list[_Decoder]]], task: str) -> str:
    """``% of 250``, ``% of 80 to 250``: items."""
    counts = sorted({section.groups[task].rows[0].metrics.items for section, _ in ranked if task in section.groups})
    return f"% of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}" if counts else ""


_BRIEF = {"too close to tell": "unsettled", needs.ALONE: "alone"}


def _cells(section: _Section, one: _Decoder, tasks: Sequence[str], stress: bool, several: bool) -> list[str]:
    row, group = one.row, one.row.group
    gap = row.against.get(REFERENCE)
    standing = needs.standing(row)
    leads = one.standing in (LEAD, ALONE) and several
    cells = [
        f"{section.name}: {row.label}" if leads else row.label,
        text.number(group.share(row) if group.judged_by else None, 2),
        text.signed(gap.difference, gap.low, gap.high) if gap else text.DASH,
        _BRIEF.get(standing, standing),
        *(_accuracy(row if task == row.task else one.others.get(task)) for task in tasks),
    ]
    if stress:
        cells += _stressed(section, one, tasks)
    reference = group.judged_by
    ratio = row.tps / reference.tps if row.tps and reference and reference.tps else None
    return [*cells, text.number(ratio, 1), _helper_share(row)]


def _accuracy(row: Row | None) -> str:
    return text.percent(row.accuracy) if row else text.DASH


def _stressed(section: _Section, one: _Decoder, tasks: Sequence[str]) -> list[str]:
    """The worst stress task with its difference, and the mean difference over all."""
    gaps = {
        group.rows[0].task: row.against[REFERENCE].difference
        for group in section.stress(tasks)
        if (row := one.others.get(group.rows[0].task)) and REFERENCE in row.against
    }
    if not gaps:
        return [text.DASH, text.DASH]
    worst = min(gaps, key=lambda task: gaps[task])
    mean = sum(gaps.values()) / len(gaps)
    return [f"{worst.removeprefix(STRESS)} {points(gaps[worst], signed=True)}", points(mean, signed=True)]


def _helper_share(row: Row) -> str:
    """``41 %`` of the decoding's cost; a dash without helpers."""
    prices, spent = row.manifest.prices, {True: 0.0, False: 0.0}
    for sample in row.samples.values() if row.metrics.helpers and prices else ():
        for forward, times in sample.forwards.items():
            if forward.kind != "prefill":
                spent[forward.role == "target"] += times * (price(prices, forward) or 0.0)
    whole = sum(spent.values())
    return f"{100 * spent[False] / whole:.0f} %" if whole else text.DASH


# --- the sentences --------------------------------------------------------------------------------------------------


def _sentences(ranked: Sequence[tuple[_Section, list[_Decoder]]], max_drop: float) -> list[str]:
    """The best trade, what does not pay, what the items do not tell; at most three."""
    compared = [(section, decoders) for section, decoders in ranked if decoders[0].standing == LEAD]
    if not compared:
        return [_ALONE]
    found = [_best(compared, max_drop), _waste(compared), _open(compared)]
    return [one for one in found if one]


_ALONE = "Nothing says what accuracy a decoder costs: no row of one token a step is beside it, or samples are missing."


def _best(compared: Sequence[tuple[_Section, list[_Decoder]]], max_drop: float) -> str:
    trades: dict[str, str] = {}
    for section, decoders in compared:
        reference, best = decoders[0].row, next((one for one in decoders if one.standing in (SURE, MAYBE)), None)
        if reference.model in trades:
            continue
        if best is None:
            trades[reference.model] = f"nothing on {section.name} keeps the accuracy of {reference.label} for less"
            continue
        gap = best.row.against[REFERENCE]
        trades[reference.model] = (
            f"{best.row.label} on {section.name} for {best.share:.2f} of the cost of {reference.label}, "
            f"{text.signed(gap.difference, gap.low, gap.high)} points on {reference.task}, "
            f"{_how_sure(gap.verdict, best.row.metrics.items)}"
        )
    told = list(trades.values())[:_NAMED]
    return f"Best trade, if {100 * max_drop:g} points may be lost: {'; '.join(told)}."


def _how_sure(verdict: str, items: int) -> str:
    sure = {"equal": f"surely within {100 * MARGIN:g} points", "better": "surely better"}
    return sure.get(verdict, f"not proven on {items} items")


def _waste(compared: Sequence[tuple[_Section, list[_Decoder]]]) -> str:
    """Decoders that cost more than one token a step at no gain, and those that lose accuracy at every setting."""
    dear, lost = _of(compared, DEAR), [pair for pair in _of(compared, LOSES) if needs.verdict(pair[1].row) == "worse"]
    dear.sort(key=lambda pair: -pair[1].share)
    lost.sort(key=lambda pair: pair[1].row.against[REFERENCE].difference)
    parts = [
        _few([f"{_name(compared, *pair)} ({pair[1].share:.2f} of the cost, no gain seen)" for pair in dear]),
        _few([f"{_name(compared, *pair)} ({_loss(pair[1])})" for pair in lost]),
    ]
    told = "; ".join(part for part in parts if part)
    return f"What does not pay: {told}." if told else ""


def _open(compared: Sequence[tuple[_Section, list[_Decoder]]]) -> str:
    """What the items are too few to tell, and what they would show."""
    unsure = [
        (section, one)
        for section, decoders in compared
        for one in decoders[1:]
        if needs.verdict(one.row) not in ("better", "worse", "equal")
    ]
    shown = [
        f"{group.rows[0].metrics.items} items of {group.rows[0].task} miss a true difference below "
        f"{100 * least:.1f} points in more than one of five cases"
        for group in dict.fromkeys(decoders[0].row.group for _, decoders in compared)
        if (least := group.least_difference)
    ][:1]
    if not unsure:
        return "; ".join(["How sure: every line is settled", *shown]) + "."
    names = [_name(compared, *pair) for pair in unsure]
    rest = [
        _name(compared, section, one)
        for section, decoders in compared
        for one in decoders[1:]
        if (section, one) not in unsure
    ]
    whether = _few(names)
    if len(names) > _NAMED and len(rest) < _NAMED:
        whether = f"every line but {text.listed(rest)}" if rest else "every line"
    return f"Unsettled on so few items: {'; '.join([whether, *shown])}."


def _of(compared: Sequence[tuple[_Section, list[_Decoder]]], standing: str) -> list[tuple[_Section, _Decoder]]:
    return [(section, one) for section, decoders in compared for one in decoders if one.standing == standing]


def _name(compared: Sequence[tuple[_Section, list[_Decoder]]], section: _Section, one: _Decoder) -> str:
    return one.row.label if len(compared) == 1 else f"{one.row.label} on {section.name}"


def _loss(one: _Decoder) -> str:
    gap = one.row.against[REFERENCE]
    return f"{text.signed(gap.difference, gap.low, gap.high)} points"


def _few(names: Sequence[str]) -> str:
    """The first names, and how many there are beside."""
    more = len(names) - _NAMED
    if not names:
        return ""
    return text.listed([*names[:_NAMED], f"{more} more"] if more > 0 else list(names))


def undecided(group: Group, model: str = "") -> str:
    """``nano-code: all 23 settings equal, within 2 points``; `model` with what its rows share, where there are more."""
    first, others = group.rows[0], [row for row in group.rows if row is not group.judged_by]
    place = f"{first.task}, {model}" if model else first.task
    low, high = (100 * end(row.accuracy for row in group.rows) for end in (min, max))
    span = f"{low:.1f} % right" if low == high else f"{low:.1f} to {high:.1f} % right"
    named = text.listed([row.label for row in group.rows]) if len(group.rows) <= _NAMED else ""
    if group.judged_by and all(needs.verdict(row) == "equal" for row in others):
        said = f"all {len(group.rows)} settings equal, within {100 * MARGIN:g} points ({span})"
    else:
        apart = named or f"the {len(group.rows)} settings"
        said = f"{first.metrics.items} items cannot tell {apart} apart ({span})"
    return f"{place}: {said}."
