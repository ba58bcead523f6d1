"""nano-code/long: programs of several statements, put together from a grammar, each right in many forms.

    Let k be the value of n plus 12, and t the larger of m and 4. If k is above 30, add 7 to t. Return the value of t
    minus k.
    def solve(n, m):
        t = max(4, m)
        k = n + 12
        if 30 < k:
            t = t + 7
        return t - k

Two kinds: `values` (values named after what they are computed from, perhaps one that is changed under a condition) and
`loop` (running totals over a list). The description names its operations before their operands, so what belongs
together has to be found, and where Python needs brackets it has none. A program may be written with its independent
lines in any order, the operands of + * max min and of a distance either way round, a comparison from either side, and
``t += 7`` as ``t = t + 7``: every form passes the tests, while tokens committed together may mix two forms.

How hard it is, is `SIZE`. What a program computes names it (see `separation`): names, order of lines and operands do
not matter. Left out: strings, nested loops, recursion.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from dlmbench.tasks.nano import code
from dlmbench.tasks.nano.families import COMPARE, PARAMETERS
from dlmbench.tasks.nano.separation import make_key

Expr = str | tuple[str, "Expr", "Expr"]  # a name or number, or an operation and its operands
Canonical = str | tuple["Canonical", ...]  # what is computed, whatever it is called and however it is written

NAMES = ("c", "d", "g", "h", "k", "r", "t", "w", "y", "count", "total")
CONSTANTS = tuple(str(number) for number in range(2, 41))
SPOKEN = {  # operation -> how it is said
    "+": "the value of {} plus {}",
    "-": "the value of {} minus {}",
    "*": "the value of {} times {}",
    "%": "the remainder of {} mod {}",
    "max": "the larger of {} and {}",
    "min": "the smaller of {} and {}",
    "abs": "the distance of {} and {}",
}
COMMUTATIVE = ("+", "*", "max", "min", "abs")
BINDING = {"+": 1, "-": 1, "*": 2, "%": 2}  # of names, numbers and calls: 3
MIRRORED = {">": "<", "<": ">", ">=": "<=", "<=": ">="}


@dataclass(frozen=True)
class Length:
    """How long programs are."""

    values: tuple[int, ...] = (2, 3)  # named values, or running totals
    operations: tuple[int, ...] = (1, 1, 2)  # in the expression of one of them
    conditions: float = 0.6  # share of `values` programs with a change under a condition, and of conditional totals
    last: float = 0.5  # share of results with one operation more than the values need


SIZE = Length()


@dataclass(frozen=True)
class Condition:
    """``left`` compared with a number."""

    left: str
    spoken: str  # above, below, at least, at most
    operator: str
    bound: str


@dataclass(frozen=True)
class Change:
    """A value is added to, perhaps under a condition."""

    name: str
    added: Expr
    condition: Condition | None


@dataclass(frozen=True)
class LongProgram:
    """What a program does. `values` are starts of totals where there is a loop over the one parameter."""

    kind: str  # of its parameters, a key of PARAMETERS
    parameters: tuple[str, ...]
    values: tuple[tuple[str, Expr], ...]
    changes: tuple[Change, ...]
    result: Expr

    @property
    def loops(self) -> bool:
        return self.kind == "list"


def generate(rng: random.Random, as_told: float = 0.0, size: Length = SIZE) -> dict:
    """Draw one item without tests.

    Args:
        rng: source of all choices; the same state gives the same item.
        as_told: share of targets whose lines follow the description; those of the others come in a random order.
            Operands, comparisons and ``+=`` take any form in all of them.
        size: how long the program is.

    Returns:
        prompt ("description newline signature"), target (starts with a newline), entry_point, family (the kind of
        program) and key.
    """
    program = draw(rng, size)
    entry_point = rng.choice(code.ENTRY_POINTS)
    ordered = rng.random() < as_told
    return {
        "prompt": f"{describe(program)}\ndef {entry_point}({', '.join(program.parameters)}):",
        "target": code.INDENT + code.INDENT.join(write(program, rng, ordered)),
        "entry_point": entry_point,
        "family": program.kind,
        "key": make_key(f"program {canonical(program)}"),
    }


def draw(rng: random.Random, size: Length = SIZE) -> LongProgram:
    """A program in which every parameter and every value is used."""
    kind = rng.choice(("int", "two ints", "list"))
    parameters = rng.choice([names for names in PARAMETERS[kind] if "value" not in names])  # a word of the descriptions
    names = rng.sample([name for name in NAMES if name not in parameters], rng.choice(size.values))
    values: tuple[tuple[str, Expr], ...]
    if kind == "list":
        names = names[:2]
        values = tuple((name, rng.choice(("0", "1", *CONSTANTS[:10]))) for name in names)
        changes = tuple(_running_total(rng, name, size) for name in names)
    else:
        values = tuple((name, _expression(rng, parameters, rng.choice(size.operations))) for name in names)
        while not all(any(_uses(value, parameter) for _, value in values) for parameter in parameters):
            values = tuple((name, _expression(rng, parameters, rng.choice(size.operations))) for name in names)
        changes = (_conditional(rng, names),) if rng.random() < size.conditions else ()
    return LongProgram(kind, parameters, values, changes, _result(rng, names, size))


def _expression(rng: random.Random, leaves: tuple[str, ...], operations: int) -> Expr:
    """An expression of some operations, with one of `leaves` at least."""
    if not operations:
        return rng.choice(leaves)
    operation = rng.choice(list(SPOKEN))
    inner = _expression(rng, leaves, operations - 1)
    if operation == "%":
        return operation, inner, rng.choice(CONSTANTS[:11])
    other = rng.choice([leaf for leaf in leaves if leaf != inner] or leaves) if rng.random() < 0.3 else ""
    if not other or other == inner:
        other = rng.choice(CONSTANTS)
    return (operation, inner, other) if rng.random() < 0.7 else (operation, other, inner)


def _condition(rng: random.Random, left: str) -> Condition:
    return Condition(left, *rng.choice(COMPARE), rng.choice(CONSTANTS))


def _running_total(rng: random.Random, name: str, size: Length) -> Change:
    condition = _condition(rng, "x") if rng.random() < size.conditions else None
    return Change(name, _expression(rng, ("x",), rng.choice((0, *size.operations))), condition)


def _conditional(rng: random.Random, names: list[str]) -> Change:
    watched, changed = rng.sample(names, 2)
    return Change(changed, rng.choice(CONSTANTS), _condition(rng, watched))


def _result(rng: random.Random, names: list[str], size: Length) -> Expr:
    first, *others = rng.sample(names, len(names))
    result: Expr = first
    operations = [operation for operation in SPOKEN if operation != "%"]
    for other in others:
        result = (rng.choice(operations), result, other)
    return (rng.choice("+-*"), result, rng.choice(CONSTANTS)) if rng.random() < size.last else result


def _uses(expression: Expr, name: str) -> bool:
    return expression == name or (isinstance(expression, tuple) and any(_uses(part, name) for part in expression[1:]))


# --- what is said ----------------------------------------------------------------------------------------------------


def describe(program: LongProgram) -> str:
    """The description, one or several sentences."""
    asked = f"Return {say(program.result)}."
    if program.loops:
        starts = " and ".join(f"{name} at {value}" for name, value in program.values)
        steps = "; ".join(_say_change(change) for change in program.changes)
        return f"Start {starts}. For each x of {program.parameters[0]}, {steps}. {asked}"
    named = [f"{name} {'be ' if not number else ''}{say(value)}" for number, (name, value) in enumerate(program.values)]
    changed = "".join(f" {_say_change(change).replace('if', 'If', 1)}." for change in program.changes)
    return f"Let {', '.join(named[:-1])} and {named[-1]}.{changed} {asked}"


def say(expression: Expr) -> str:
    """An expression, operation first."""
    if isinstance(expression, str):
        return expression
    operation, left, right = expression
    return SPOKEN[operation].format(say(left), say(right))


def _say_change(change: Change) -> str:
    said, condition = f"add {say(change.added)} to {change.name}", change.condition
    return f"if {condition.left} is {condition.spoken} {condition.bound}, {said}" if condition else said


# --- what is written -------------------------------------------------------------------------------------------------


def write(program: LongProgram, rng: random.Random, ordered: bool) -> list[str]:
    """The lines of one right form, without the function's own indentation."""

    def in_order(blocks: list[list[str]]) -> list[str]:
        chosen = blocks if ordered else rng.sample(blocks, len(blocks))
        return [line for block in chosen for line in block]

    lines = in_order([[f"{name} = {spell(value, rng)}"] for name, value in program.values])
    changes = in_order([_write_change(change, rng) for change in program.changes])
    if program.loops:
        changes = [f"for x in {program.parameters[0]}:", *(f"    {line}" for line in changes)]
    return [*lines, *changes, f"return {spell(program.result, rng)}"]


def spell(expression: Expr, rng: random.Random) -> str:
    """An expression in Python; operands whose order does not matter are swapped half of the time."""
    return _spell(expression, rng)[0]


def _spell(expression: Expr, rng: random.Random) -> tuple[str, int]:
    """The text and how tightly it binds."""
    if isinstance(expression, str):
        return expression, 3
    operation, *operands = expression
    if operation in COMMUTATIVE and rng.random() < 0.5:
        operands.reverse()
    (left, left_binding), (right, right_binding) = (_spell(operand, rng) for operand in operands)
    if operation == "abs":
        right = f"({right})" if right_binding == 1 else right
        return f"abs({left} - {right})", 3
    if operation not in BINDING:
        return f"{operation}({left}, {right})", 3
    binding = BINDING[operation]
    left = f"({left})" if left_binding < binding else left
    right = f"({right})" if right_binding <= binding else right
    return f"{left} {operation} {right}", binding


def _write_change(change: Change, rng: random.Random) -> list[str]:
    name, condition = change.name, change.condition
    if rng.random() < 0.5:
        line = f"{name} += {spell(change.added, rng)}"
    else:
        line = f"{name} = {spell(('+', name, change.added), rng)}"
    if condition is None:
        return [line]
    left, operator, right = condition.left, condition.operator, condition.bound
    if rng.random() < 0.5:
        left, operator, right = right, MIRRORED[operator], left
    return [f"if {left} {operator} {right}:", f"    {line}"]


# --- what is computed ------------------------------------------------------------------------------------------------


def canonical(program: LongProgram) -> Canonical:
    """The result with every value put in its place, parameters numbered, operands in order where it does not matter."""
    known: dict[str, Canonical] = {name: f"p{number}" for number, name in enumerate(program.parameters)}
    values = {name: _put(value, known) for name, value in program.values}
    final = dict(values)
    for change in program.changes:
        condition = change.condition
        scope = known if program.loops else values  # `x` stands for itself
        when: Canonical = (_put(condition.left, scope), condition.operator, condition.bound) if condition else "always"
        final[change.name] = ("changed", values[change.name], when, _put(change.added, scope))
    return (program.kind, _put(program.result, final))


def _put(expression: Expr, known: dict[str, Canonical]) -> Canonical:
    if isinstance(expression, str):
        return known.get(expression, expression)
    operation, *operands = expression
    parts = [_put(operand, known) for operand in operands]
    return (operation, *(sorted(parts, key=repr) if operation in COMMUTATIVE else parts))
