"""nano-gsm: short word problems whose answer is a chain of one to four equations.

Every number of the chain stands in the question or is an earlier result, and every question has several valid chains:
the operands of + and * are swapped at random, products come in random order, signed terms are added in a random order
that never goes below zero. All chains end in the same answer, so one token at a time loses nothing by the ambiguity,
while tokens committed together may mix two chains. The last line is `#### N`, which the strict GSM8K filter reads.

    Tom has 12 apples. Tom buys 3 bags of 8 apples. Tom loses 7 apples. How many apples does Tom have?
    3*8=24 12-7=5 24+5=29
    #### 29

Three templates: `events` (a stock that grows and shrinks), `compare` (three people, each relative to the one before),
`rows` (groups of groups). Two tiers, `easy` and `full`, differ in the size of the numbers and the count of events.
Left out: division, fractions, units, and any number that the question does not state.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from dlmbench.errors import RequestError
from dlmbench.tasks.nano.separation import make_key

NAMES = ("Ann", "Ben", "Eva", "Ian", "Joe", "Kim", "Leo", "Max", "Mia", "Sam", "Tom", "Zoe")
OBJECTS = ("apple", "ball", "book", "card", "coin", "pen", "shell", "stone")
CONTAINERS = ("bags", "boxes", "jars", "packs")
GAIN_VERBS = ("buys", "finds", "gets", "wins")
LOSS_VERBS = ("drops", "loses", "sells", "uses")
TEMPLATES = ("events", "events", "compare", "rows")  # drawn uniformly: events has weight 2
MAX_EQUATIONS = 4

_EQUATION = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


@dataclass(frozen=True)
class Tier:
    """The number ranges of a difficulty. All ranges include both ends."""

    start_max: int  # the first quantity of a question, from 2
    term_max: int  # a quantity that is added or taken, from 1
    factor_max: int  # each factor of a product, from 2
    events: tuple[int, ...]  # how many things happen in an `events` question
    total_max: int  # no partial sum exceeds it


TIERS = {
    "easy": Tier(start_max=20, term_max=12, factor_max=5, events=(2,), total_max=60),
    "full": Tier(start_max=60, term_max=60, factor_max=9, events=(2, 2, 3), total_max=199),
}


@dataclass(frozen=True)
class Term:
    """One signed quantity of a question: a number (`factors` of length 1) or a product (length 2)."""

    sign: int
    factors: tuple[int, ...]

    @property
    def size(self) -> int:
        """The absolute value."""
        return self.factors[0] if len(self.factors) == 1 else self.factors[0] * self.factors[1]

    @property
    def value(self) -> int:
        """The signed value."""
        return self.sign * self.size

    def __str__(self) -> str:
        return ("+" if self.sign > 0 else "-") + "*".join(map(str, self.factors))


def parse_term(text: str) -> Term:
    """Read what `str(term)` wrote, for example "+3*8" or "-7"."""
    return Term(-1 if text[0] == "-" else 1, tuple(int(number) for number in text[1:].split("*")))


def generate(rng: random.Random, tier: str, as_told: float = 0.0) -> dict:
    """Draw one problem.

    Args:
        rng: source of all choices; the same state gives the same problem.
        tier: "easy" or "full".
        as_told: share of targets whose steps follow the question; the steps of the others come in a random valid order.
            Operands of + and * are swapped half of the time in all of them.

    Returns:
        question, target (equations on one line, then `#### N`), answer, tier, template, numbers (the signed terms in
        the order of the question) and key (see `separation`).

    Raises:
        RequestError: if the tier is unknown.
    """
    if tier not in TIERS:
        raise RequestError(f"nano-gsm has no tier {tier!r}. Choose one of: {', '.join(TIERS)}.")
    template = rng.choice(TEMPLATES)
    order = _AsTold(rng) if as_told and rng.random() < as_told else rng
    terms, question, target = _BUILDERS[template](rng, TIERS[tier], order)
    numbers = [str(term) for term in terms]
    answer = int(target.rpartition(" ")[2])
    return {
        "question": question,
        "target": target,
        "answer": answer,
        "tier": tier,
        "template": template,
        "numbers": numbers,
        "key": problem_key(template, numbers),
    }


def problem_key(template: str, numbers: Iterable[str]) -> str:
    """Return the key of a problem; the order of events or rows and of factors does not matter, that of compare does."""
    terms = [parse_term(number) for number in numbers]
    parts = [str(Term(term.sign, tuple(sorted(term.factors)))) for term in terms]
    if template == "events":
        parts[1:] = sorted(parts[1:])
    elif template == "rows":
        parts.sort()
    return make_key(" ".join([template, *parts]))


def check(row: dict, text: str) -> bool:
    """Tell whether a text is a valid solution of a problem: true equations, each term used once, the right answer.

    Any order of steps and of operands is accepted, not only the chain in `row["target"]`.

    Args:
        row: a problem as `generate` returns it (template, numbers and answer are read).
        text: a solution, as a model writes it.
    """
    chain, newline, last = text.partition("\n")
    pieces = chain.split(" ")
    equations = [match for piece in pieces if (match := _EQUATION.fullmatch(piece))]
    if not newline or last != f"#### {row['answer']}" or len(equations) < len(pieces):
        return False
    steps = [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in equations]
    if any(_apply(left, operator, right) != result for left, operator, right, result in steps):
        return False
    terms = [parse_term(number) for number in row["numbers"]]
    return _check_compare(terms, steps) if row["template"] == "compare" else _check_sum(terms, steps)


# --- the three templates: each returns (terms, question, target) -----------------------------------------------------


def _events(rng: random.Random, tier: Tier, order: Order) -> tuple[list[Term], str, str]:
    while True:
        count = rng.choice(tier.events)
        products = MAX_EQUATIONS - count
        terms = [Term(1, (rng.randint(2, tier.start_max),))]
        for _ in range(count):
            kind = rng.choice("+*-") if products else rng.choice("+-")
            products -= kind == "*"
            terms.append(_draw_term(rng, tier, kind))
        if _fits(terms, tier):
            break
    name, noun = rng.choice(NAMES), rng.choice(OBJECTS)
    sentences = [f"{name} has {_count(terms[0].size, noun)}."]
    for term in terms[1:]:
        verb = rng.choice(GAIN_VERBS if term.sign > 0 else LOSS_VERBS)
        sentences.append(f"{name} {verb} {_quantity(rng, term, noun)}.")
    sentences.append(f"How many {noun}s does {name} have?")
    return terms, " ".join(sentences), _sum_chain(order, terms)


def _rows(rng: random.Random, tier: Tier, order: Order) -> tuple[list[Term], str, str]:
    while True:
        terms = [_draw_term(rng, tier, "*"), _draw_term(rng, tier, "*")]
        if rng.random() < 2 / 3:
            terms.append(_draw_term(rng, tier, rng.choice("+-")))
        if _fits(terms, tier):
            break
    noun = rng.choice(OBJECTS)
    first, second = rng.sample(CONTAINERS, 2)
    (a, b), (c, d) = terms[0].factors, terms[1].factors
    question = f"There are {a} {first} of {b} {noun}s and {c} {second} of {d} {noun}s."
    for term in terms[2:]:
        verb = "adds" if term.sign > 0 else "takes"
        question += f" {rng.choice(NAMES)} {verb} {_count(term.size, noun)}."
    return terms, f"{question} How many {noun}s are there?", _sum_chain(order, terms)


def _compare(rng: random.Random, tier: Tier, order: Order) -> tuple[list[Term], str, str]:
    while True:
        terms = [Term(1, (rng.randint(2, tier.start_max),))]
        terms += [_draw_term(rng, tier, rng.choice("+-")) for _ in range(2)]
        held = _running_totals(terms)
        if min(held) > 0 and sum(held) <= tier.total_max:
            break
    people, noun = rng.sample(NAMES, 3), rng.choice(OBJECTS)
    sentences = [f"{people[0]} has {_count(terms[0].size, noun)}."]
    for who, whom, term in zip(people[1:], people, terms[1:]):
        sentences.append(f"{who} has {term.size} {'more' if term.sign > 0 else 'fewer'} than {whom}.")
    sentences.append(f"How many {noun}s do they have in total?")
    equations = [_equation(order, total, term) for total, term in zip(held, terms[1:])]
    a, b, c = order.sample(held, 3)
    equations += [_equation(order, a, Term(1, (b,))), _equation(order, a + b, Term(1, (c,)))]
    return terms, " ".join(sentences), _finish(equations, sum(held))


_BUILDERS = {"events": _events, "rows": _rows, "compare": _compare}


# --- pieces ----------------------------------------------------------------------------------------------------------


class _AsTold:
    """Takes the place of a random source where steps keep the order of the question; swaps stay random."""

    def __init__(self, rng: random.Random):
        self.random = rng.random

    def sample(self, values: list, count: int) -> list:
        return values[:count]


Order = random.Random | _AsTold


def _draw_term(rng: random.Random, tier: Tier, kind: str) -> Term:
    if kind == "*":
        return Term(1, (rng.randint(2, tier.factor_max), rng.randint(2, tier.factor_max)))
    return Term(1 if kind == "+" else -1, (rng.randint(1, tier.term_max),))


def _running_totals(terms: list[Term]) -> list[int]:
    totals, total = [], 0
    for term in terms:
        total += term.value
        totals.append(total)
    return totals


def _fits(terms: list[Term], tier: Tier) -> bool:
    """The story never goes below zero and ends above it; no order of the steps can pass the largest total."""
    totals = _running_totals(terms)
    return min(totals) >= 0 and totals[-1] > 0 and sum(t.size for t in terms if t.sign > 0) <= tier.total_max


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _quantity(rng: random.Random, term: Term, noun: str) -> str:
    if len(term.factors) == 1:
        return _count(term.size, noun)
    return f"{term.factors[0]} {rng.choice(CONTAINERS)} of {term.factors[1]} {noun}s"


def _equation(order: Order, total: int, term: Term) -> str:
    """Add a term's size to a total, or take it away; the operands of + are swapped half of the time."""
    if term.sign < 0:
        return f"{total}-{term.size}={total - term.size}"
    left, right = _shuffled(order, total, term.size)
    return f"{left}+{right}={total + term.size}"


def _shuffled(order: Order, left: int, right: int) -> tuple[int, int]:
    return (left, right) if order.random() < 0.5 else (right, left)


def _sum_chain(order: Order, terms: list[Term]) -> str:
    """Write the products, then the signed terms, each in an order of its own; the total never goes below zero."""
    equations = []
    for term in order.sample(terms, len(terms)):
        if len(term.factors) == 2:
            left, right = _shuffled(order, *term.factors)
            equations.append(f"{left}*{right}={term.size}")
    steps = order.sample(terms, len(terms))
    while min(_running_totals(steps)) < 0:
        steps = order.sample(terms, len(terms))
    total = steps[0].size
    for term in steps[1:]:
        equations.append(_equation(order, total, term))
        total += term.value
    return _finish(equations, total)


def _finish(equations: list[str], answer: int) -> str:
    return " ".join(equations) + f"\n#### {answer}"


# --- checking --------------------------------------------------------------------------------------------------------


def _apply(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _check_sum(terms: list[Term], steps: list[tuple[int, str, int, int]]) -> bool:
    """Products in any order before they are used, then one running total that takes every term once.

    An equation can be read as more than one step (two equal terms, a sum that looks like a term), so all readings
    are followed.
    """
    products = [tuple(sorted(term.factors)) for term in terms if len(term.factors) == 2]
    ready = [term.value for term in terms if len(term.factors) == 1]
    return _follow(products, ready, None, steps)


def _follow(products: list[tuple[int, ...]], ready: list[int], total: int | None, steps: list) -> bool:
    if not steps:
        return not products and not ready and total is not None
    (left, operator, right, result), rest = steps[0], steps[1:]
    if operator == "*":
        factors = tuple(sorted((left, right)))
        return factors in products and _follow(_without(products, factors), [*ready, result], total, rest)
    readings = [(left, -right)] if operator == "-" else [(left, right), (right, left)]
    for before, added in readings:
        if total is None and before in ready and added in _without(ready, before):
            if _follow(products, _without(_without(ready, before), added), result, rest):
                return True
        if total == before and added in ready and _follow(products, _without(ready, added), result, rest):
            return True
    return False


def _check_compare(terms: list[Term], steps: list[tuple[int, str, int, int]]) -> bool:
    """Each person's number once, in order; the sum of the three in any order, as soon as its parts are known."""
    held = _running_totals(terms)
    people = [(before, term, after) for before, term, after in zip(held, terms[1:], held[1:])]
    return _follow_compare(people, held[:1], None, steps)


def _follow_compare(people: list, ready: list[int], total: int | None, steps: list) -> bool:
    if not steps:
        return not people and not ready and total is not None
    (left, operator, right, result), rest = steps[0], steps[1:]
    if people:
        before, term, after = people[0]
        told = {(before, term.size), (term.size, before)} if term.sign > 0 else {(before, term.size)}
        if operator == ("+" if term.sign > 0 else "-") and (left, right) in told:
            if _follow_compare(people[1:], [*ready, after], total, rest):
                return True
    if operator != "+":
        return False
    for first, second in ((left, right), (right, left)):
        if total is None and first in ready and second in _without(ready, first):
            if _follow_compare(people, _without(_without(ready, first), second), result, rest):
                return True
        if total == first and second in ready and _follow_compare(people, _without(ready, second), result, rest):
            return True
    return False


def _without(values: list, value) -> list:
    copy = list(values)
    copy.remove(value)
    return copy
