"""nano-gsm-orders: the chain of a word problem is right in every valid order, and all of them can be listed.

The same problems as nano-gsm; here an answer is right when its whole chain is, whichever of the valid chains it is. The
list is what the generator of the targets can write: products in any order, signed terms in any order that never goes
below zero, operands of + and * either way round (`dlmbench.tasks.nano.gsm`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, permutations, product

from dlmbench.tasks.base import Doc
from dlmbench.tasks.nano.gsm import Term, parse_term

Equation = tuple[int, str, int, int]  # left, operator, right, result


def chains(row: Doc) -> list[str]:
    """All chains of a problem (a row of `dlmbench.tasks.nano.gsm.generate`), each with its last line, sorted."""
    terms = [parse_term(number) for number in row["numbers"]]
    orders = _compare(terms) if row["template"] == "compare" else _sums(terms)
    ways = {way for order in orders for way in product(*map(_either_way, order))}
    return sorted(f"{' '.join(way)}\n#### {row['answer']}" for way in ways)


def _either_way(equation: Equation) -> set[str]:
    left, operator, right, result = equation
    pairs = {(left, right)} if operator == "-" else {(left, right), (right, left)}
    return {f"{a}{operator}{b}={result}" for a, b in pairs}


def _sums(terms: list[Term]) -> Iterator[list[Equation]]:
    products = [(t.factors[0], "*", t.factors[1], t.size) for t in terms if len(t.factors) == 2]
    for first in permutations(products):
        for steps in permutations(terms):
            totals = list(accumulate(step.value for step in steps))
            if min(totals) >= 0:
                yield [*first, *_added(totals, steps[1:])]


def _added(totals: list[int], steps: tuple[Term, ...] | list[Term]) -> list[Equation]:
    return [
        (before, "+" if step.sign > 0 else "-", step.size, after)
        for before, step, after in zip(totals, steps, totals[1:])
    ]


def _compare(terms: list[Term]) -> Iterator[list[Equation]]:
    held = list(accumulate(term.value for term in terms))
    for a, b, c in permutations(held):
        yield [*_added(held, terms[1:]), (a, "+", b, a + b), (a + b, "+", c, a + b + c)]
