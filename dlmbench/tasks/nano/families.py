"""The families of nano-code: for each, its phrasings, its one canonical program, and the values its slots can take.

A family is a row of the table below. Descriptions and body are `str.format` templates; `{a}` and `{b}` are the
parameter names, every other field is a slot. A slot value may be a pair (English, Python), used as `{op[0]}` and
`{op[1]}`. Every program has constants or a composition of two or more operations, so that reading the description
half-way is never enough. To add a family, add a row; the key space and the tests follow from it.
"""

from dataclasses import dataclass
from string import ascii_lowercase

SMALL = tuple(range(2, 10))
MEDIUM = tuple(range(2, 21))
WIDTH = tuple(range(2, 13))
LETTERS = tuple(ascii_lowercase)
COMPARE = (("above", ">"), ("below", "<"), ("at least", ">="), ("at most", "<="))
PARITY = (("even", 0), ("odd", 1))
CASE = (("upper case", "upper"), ("lower case", "lower"))
EXTREME = (("largest", "max"), ("smallest", "min"))
LARGER = (("larger", "max"), ("smaller", "min"))
ENDS = (("starts", "startswith", "first"), ("ends", "endswith", "last"))
EVERY = (("second", 2), ("third", 3), ("fourth", 4))

PARAMETERS = {
    "int": (("n",), ("num",), ("value",)),
    "two ints": (("a", "b"), ("n", "m"), ("p", "q")),
    "list": (("xs",), ("nums",), ("items",)),
    "string": (("s",), ("text",), ("word",)),
    "sentence": (("s",), ("text",), ("line",)),
}


@dataclass(frozen=True)
class ProgramFamily:
    """One kind of program."""

    name: str
    kind: str  # what the parameters are: a key of PARAMETERS
    slots: dict[str, tuple]  # slot name -> the values it takes
    body: str  # the lines of the function, without indentation of the function itself
    descriptions: tuple[str, ...]


FAMILIES = (
    # --- one number
    ProgramFamily(
        "add-then-multiply",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return ({a} + {k}) * {m}",
        ("Add {k} to {a}, then multiply by {m}.", "Return {a} plus {k}, all times {m}."),
    ),
    ProgramFamily(
        "multiply-then-add",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return {a} * {m} + {k}",
        ("Multiply {a} by {m}, then add {k}.", "Return {m} times {a}, plus {k}."),
    ),
    ProgramFamily(
        "subtract-then-multiply",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return ({a} - {k}) * {m}",
        ("Subtract {k} from {a}, then multiply by {m}.", "Return {a} minus {k}, all times {m}."),
    ),
    ProgramFamily(
        "square-times-minus",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return {a} ** 2 * {m} - {k}",
        ("Square {a}, multiply by {m}, then subtract {k}.", "Return the square of {a} times {m}, minus {k}."),
    ),
    ProgramFamily(
        "add-then-square",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return ({a} + {k}) ** 2 + {m}",
        ("Add {k} to {a}, square the result, then add {m}.", "Square the sum of {a} and {k}, then add {m}."),
    ),
    ProgramFamily(
        "remainder-plus",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return {a} % {m} + {k}",
        ("Return the remainder of {a} divided by {m}, plus {k}.", "Divide {a} by {m} and add {k} to the remainder."),
    ),
    ProgramFamily(
        "divide-then-multiply",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return {a} // {m} * {k}",
        (
            "Divide {a} by {m}, rounding down, then multiply by {k}.",
            "Return {a} divided by {m} rounded down, times {k}.",
        ),
    ),
    ProgramFamily(
        "distance-times",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return abs({a} - {k}) * {m}",
        ("Return the distance from {a} to {k}, times {m}.", "Multiply the distance between {a} and {k} by {m}."),
    ),
    ProgramFamily(
        "limit-then-add",
        "int",
        {"op": LARGER, "k": MEDIUM, "m": MEDIUM},
        "return {op[1]}({a}, {k}) + {m}",
        ("Return the {op[0]} of {a} and {k}, plus {m}.", "Take the {op[0]} of {a} and {k}, then add {m}."),
    ),
    ProgramFamily(
        "multiple-and-bound",
        "int",
        {"m": SMALL, "op": COMPARE, "k": MEDIUM},
        "return {a} % {m} == 0 and {a} {op[1]} {k}",
        ("Check that {a} is a multiple of {m} and {op[0]} {k}.", "Is {a} divisible by {m} and {op[0]} {k}?"),
    ),
    ProgramFamily(
        "branch-on-bound",
        "int",
        {"op": COMPARE, "k": MEDIUM, "m": SMALL, "j": SMALL},
        "if {a} {op[1]} {k}:\n    return {a} * {m}\nreturn {a} + {j}",
        (
            "If {a} is {op[0]} {k}, multiply it by {m}; otherwise add {j}.",
            "Return {m} times {a} if {a} is {op[0]} {k}, else {a} plus {j}.",
        ),
    ),
    ProgramFamily(
        "branch-on-parity",
        "int",
        {"op": PARITY, "k": MEDIUM, "m": MEDIUM},
        "if {a} % 2 == {op[1]}:\n    return {a} + {k}\nreturn {a} - {m}",
        (
            "If {a} is {op[0]}, add {k}; otherwise subtract {m}.",
            "Return {a} plus {k} if {a} is {op[0]}, else {a} minus {m}.",
        ),
    ),
    ProgramFamily(
        "sum-up-to",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return sum(range({a} + 1)) * {m} + {k}",
        (
            "Add the numbers from 0 to {a}, multiply by {m}, then add {k}.",
            "Return the sum of 0 to {a} times {m}, plus {k}.",
        ),
    ),
    ProgramFamily(
        "digit-sum",
        "int",
        {"k": MEDIUM, "m": MEDIUM},
        "return sum(int(c) for c in str({a})) * {m} + {k}",
        ("Add the digits of {a}, multiply by {m}, then add {k}.", "Return the digit sum of {a} times {m}, plus {k}."),
    ),
    ProgramFamily(
        "repeat-step",
        "int",
        {"r": (2, 3, 4), "m": (2, 3, 4, 5), "k": MEDIUM},
        "for i in range({r}):\n    {a} = {a} * {m} + {k}\nreturn {a}",
        (
            "Repeat {r} times: multiply {a} by {m} and add {k}.",
            "Multiply {a} by {m} and add {k}, and do this {r} times.",
        ),
    ),
    # --- two numbers
    ProgramFamily(
        "weighted-sum",
        "two ints",
        {"k": MEDIUM, "m": MEDIUM},
        "return {a} * {k} + {b} * {m}",
        ("Return {k} times {a} plus {m} times {b}.", "Add {a} times {k} and {b} times {m}."),
    ),
    ProgramFamily(
        "product-offset",
        "two ints",
        {"k": MEDIUM, "m": MEDIUM},
        "return ({a} + {k}) * ({b} - {m})",
        (
            "Add {k} to {a}, subtract {m} from {b}, then multiply the two.",
            "Return the product of {a} plus {k} and {b} minus {m}.",
        ),
    ),
    ProgramFamily(
        "pick-then-scale",
        "two ints",
        {"op": LARGER, "k": MEDIUM, "m": MEDIUM},
        "return {op[1]}({a}, {b}) * {m} + {k}",
        (
            "Multiply the {op[0]} of {a} and {b} by {m}, then add {k}.",
            "Return the {op[0]} of {a} and {b} times {m}, plus {k}.",
        ),
    ),
    ProgramFamily(
        "difference-in-bounds",
        "two ints",
        {"op": COMPARE, "k": MEDIUM, "m": SMALL},
        "return abs({a} - {b}) * {m} {op[1]} {k}",
        (
            "Check that {m} times the distance of {a} and {b} is {op[0]} {k}.",
            "Is the distance of {a} and {b}, times {m}, {op[0]} {k}?",
        ),
    ),
    # --- lists of numbers
    ProgramFamily(
        "filter-then-multiply",
        "list",
        {"op": COMPARE, "k": MEDIUM, "m": SMALL},
        "return [x * {m} for x in {a} if x {op[1]} {k}]",
        (
            "Keep the numbers of {a} that are {op[0]} {k}, each times {m}.",
            "Multiply by {m} every number in {a} {op[0]} {k}, drop the rest.",
        ),
    ),
    ProgramFamily(
        "filter-then-add",
        "list",
        {"op": PARITY, "k": MEDIUM, "m": SMALL},
        "return [x * {m} + {k} for x in {a} if x % 2 == {op[1]}]",
        (
            "Keep the {op[0]} numbers of {a}, each times {m} plus {k}.",
            "Multiply the {op[0]} numbers of {a} by {m} and add {k}, drop the rest.",
        ),
    ),
    ProgramFamily(
        "map-linear",
        "list",
        {"k": MEDIUM, "m": MEDIUM},
        "return [x * {m} + {k} for x in {a}]",
        ("Multiply each number of {a} by {m} and add {k}.", "Return {m} times x plus {k} for every x in {a}."),
    ),
    ProgramFamily(
        "sum-of-parity",
        "list",
        {"op": PARITY, "k": MEDIUM, "m": MEDIUM},
        "return sum(x for x in {a} if x % 2 == {op[1]}) * {m} + {k}",
        (
            "Add the {op[0]} numbers of {a}, multiply by {m}, then add {k}.",
            "Return the sum of the {op[0]} numbers in {a} times {m}, plus {k}.",
        ),
    ),
    ProgramFamily(
        "sum-of-multiples",
        "list",
        {"k": MEDIUM, "m": MEDIUM},
        "return sum(x for x in {a} if x % {m} == 0) + {k}",
        ("Add the multiples of {m} in {a}, then add {k}.", "Return {k} plus the sum of all multiples of {m} in {a}."),
    ),
    ProgramFamily(
        "count-in-bounds",
        "list",
        {"op": COMPARE, "k": MEDIUM, "m": SMALL},
        "return sum(x {op[1]} {k} for x in {a}) * {m}",
        (
            "Count the numbers of {a} that are {op[0]} {k}, times {m}.",
            "Return {m} times how many numbers in {a} are {op[0]} {k}.",
        ),
    ),
    ProgramFamily(
        "spread",
        "list",
        {"k": MEDIUM, "m": MEDIUM},
        "return (max({a}) - min({a})) * {m} + {k}",
        (
            "Subtract the smallest of {a} from the largest, multiply by {m}, add {k}.",
            "Return the spread of {a} times {m}, plus {k}.",
        ),
    ),
    ProgramFamily(
        "extreme-linear",
        "list",
        {"op": EXTREME, "k": MEDIUM, "m": MEDIUM},
        "return {op[1]}({a}) * {m} - {k}",
        ("Multiply the {op[0]} of {a} by {m}, then subtract {k}.", "Return the {op[0]} of {a} times {m}, minus {k}."),
    ),
    ProgramFamily(
        "first-sorted",
        "list",
        {"k": SMALL, "m": MEDIUM},
        "return [x + {m} for x in sorted({a})[:{k}]]",
        (
            "Sort {a}, keep the first {k}, and add {m} to each.",
            "Return the {k} smallest of {a} in order, each plus {m}.",
        ),
    ),
    ProgramFamily(
        "sum-of-first",
        "list",
        {"k": SMALL, "m": MEDIUM},
        "return sum({a}[:{k}]) * {m}",
        (
            "Add the first {k} numbers of {a}, then multiply by {m}.",
            "Return {m} times the sum of the first {k} of {a}.",
        ),
    ),
    ProgramFamily(
        "reverse-then-subtract",
        "list",
        {"k": MEDIUM, "m": MEDIUM},
        "return [x * {m} - {k} for x in {a}[::-1]]",
        (
            "Reverse {a}, multiply each number by {m}, and subtract {k}.",
            "Return {a} backwards, each number times {m} minus {k}.",
        ),
    ),
    ProgramFamily(
        "every-nth",
        "list",
        {"r": EVERY, "k": MEDIUM, "m": SMALL},
        "return [x * {m} + {k} for x in {a}[::{r[1]}]]",
        (
            "From the first on, take every {r[0]} number of {a}, times {m} plus {k}.",
            "Keep every {r[0]} number of {a} from the first on, times {m} plus {k}.",
        ),
    ),
    ProgramFamily(
        "append-then-sort",
        "list",
        {"k": MEDIUM, "m": MEDIUM},
        "return sorted({a} + [{k}, {m}])[::-1]",
        ("Append {k} and {m} to {a}, sort, then reverse.", "Sort {a} together with {k} and {m}, from large to small."),
    ),
    ProgramFamily(
        "replace-number",
        "list",
        {"k": MEDIUM, "m": MEDIUM},
        "return [{m} if x == {k} else x for x in {a}]",
        ("Replace every {k} in {a} by {m}.", "Return {a} with {m} in place of each {k}."),
    ),
    ProgramFamily(
        "clip-then-multiply",
        "list",
        {"op": LARGER, "k": MEDIUM, "m": SMALL},
        "return [{op[1]}(x, {k}) * {m} for x in {a}]",
        (
            "For each x in {a} take the {op[0]} of x and {k}, times {m}.",
            "Return {m} times the {op[0]} of x and {k} for every x in {a}.",
        ),
    ),
    ProgramFamily(
        "all-and-length",
        "list",
        {"op": COMPARE, "k": MEDIUM, "m": SMALL},
        "return len({a}) > {m} and all(x {op[1]} {k} for x in {a})",
        (
            "Check that {a} has more than {m} numbers, all {op[0]} {k}.",
            "Is {a} longer than {m} with every number {op[0]} {k}?",
        ),
    ),
    ProgramFamily(
        "weighted-total",
        "list",
        {"k": MEDIUM, "m": MEDIUM},
        "total = {k}\nfor x in {a}:\n    total += x * {m}\nreturn total",
        (
            "Start at {k} and add {m} times each number of {a} in a loop.",
            "Loop over {a}: begin with {k}, add each number times {m}.",
        ),
    ),
    ProgramFamily(
        "count-remainders",
        "list",
        {"m": (3, 4, 5, 6, 7, 8, 9), "r": (0, 1, 2), "k": MEDIUM},
        "count = {k}\nfor x in {a}:\n    if x % {m} == {r}:\n        count += 1\nreturn count",
        (
            "Start at {k} and count the numbers of {a} with remainder {r} mod {m}.",
            "Loop over {a}: begin with {k}, add 1 if x mod {m} is {r}.",
        ),
    ),
    # --- strings
    ProgramFamily(
        "count-letter",
        "string",
        {"c": LETTERS, "m": SMALL, "k": SMALL},
        'return {a}.count("{c}") * {m} + {k}',
        (
            'Count the letter "{c}" in {a}, multiply by {m}, then add {k}.',
            'Return how often "{c}" is in {a}, times {m}, plus {k}.',
        ),
    ),
    ProgramFamily(
        "replace-then-case",
        "string",
        {"c": LETTERS, "d": LETTERS, "op": CASE},
        'return {a}.replace("{c}", "{d}").{op[1]}()',
        ('Replace "{c}" by "{d}" in {a}, then make it {op[0]}.', 'Change each "{c}" of {a} to "{d}" and use {op[0]}.'),
    ),
    ProgramFamily(
        "remove-then-cut",
        "string",
        {"c": LETTERS, "k": SMALL},
        'return {a}.replace("{c}", "")[:{k}]',
        (
            'Remove every "{c}" from {a}, then keep the first {k} letters.',
            'Return the first {k} letters of {a} without "{c}".',
        ),
    ),
    ProgramFamily(
        "remove-then-reverse",
        "string",
        {"c": LETTERS, "d": LETTERS},
        'return {a}.replace("{c}", "")[::-1] + "{d}"',
        (
            'Remove every "{c}" from {a}, reverse it, then append "{d}".',
            'Return {a} without "{c}", backwards, plus "{d}".',
        ),
    ),
    ProgramFamily(
        "append-then-repeat",
        "string",
        {"c": LETTERS, "k": SMALL},
        'return ({a} + "{c}") * {k}',
        ('Append "{c}" to {a}, then repeat it {k} times.', 'Return {a} plus "{c}", {k} times over.'),
    ),
    ProgramFamily(
        "wrap-reversed",
        "string",
        {"c": LETTERS, "d": LETTERS},
        'return "{c}" + {a}[::-1] + "{d}"',
        ('Reverse {a}, put "{c}" before it and "{d}" after it.', 'Return "{c}", then {a} backwards, then "{d}".'),
    ),
    ProgramFamily(
        "head-and-tail",
        "string",
        {"k": WIDTH, "m": WIDTH},
        "return {a}[:{k}] + {a}[-{m}:]",
        (
            "Join the first {k} and the last {m} letters of {a}.",
            "Return the first {k} letters of {a}, then the last {m}.",
        ),
    ),
    ProgramFamily(
        "drop-then-append",
        "string",
        {"k": WIDTH, "c": LETTERS},
        'return {a}[{k}:][::-1] + "{c}"',
        (
            'Drop the first {k} letters of {a}, reverse, then append "{c}".',
            'Skip {k} letters of {a}, reverse the rest, add "{c}".',
        ),
    ),
    ProgramFamily(
        "end-and-length",
        "string",
        {"e": ENDS, "c": LETTERS, "op": COMPARE, "k": SMALL},
        'return {a}.{e[1]}("{c}") and len({a}) {op[1]} {k}',
        (
            'Check that {a} {e[0]} with "{c}" and its length is {op[0]} {k}.',
            'True if {a} {e[0]} with "{c}" and has a length {op[0]} {k}.',
        ),
    ),
    ProgramFamily(
        "contains-either",
        "string",
        {"c": LETTERS, "d": LETTERS},
        'return "{c}" in {a} or {a}.endswith("{d}")',
        ('Check that {a} has a "{c}" in it or ends with "{d}".', 'True if "{c}" is in {a} or {a} ends with "{d}".'),
    ),
    ProgramFamily(
        "length-linear",
        "string",
        {"k": MEDIUM, "m": MEDIUM},
        "return len({a}) * {m} + {k}",
        ("Multiply the length of {a} by {m}, then add {k}.", "Return {m} times the length of {a}, plus {k}."),
    ),
    ProgramFamily(
        "join-with",
        "string",
        {"c": LETTERS, "d": LETTERS},
        'return "{c}".join({a}) + "{d}"',
        (
            'Put "{c}" between the letters of {a}, then append "{d}".',
            'Join the letters of {a} with "{c}" and add "{d}".',
        ),
    ),
    ProgramFamily(
        "repeat-letters",
        "string",
        {"c": LETTERS, "k": SMALL},
        'return "".join(x * {k} for x in {a} if x != "{c}")',
        (
            'Repeat each letter of {a} {k} times, but drop "{c}".',
            'Drop "{c}" from {a} and write each other letter {k} times.',
        ),
    ),
    ProgramFamily(
        "pad-then-case",
        "string",
        {"k": SMALL, "c": LETTERS, "op": CASE},
        'return {a}.{op[1]}().rjust({k}, "{c}")',
        (
            'Make {a} {op[0]}, then pad on the left with "{c}" to {k} letters.',
            'Pad the {op[0]} of {a} with "{c}" on the left to {k} letters.',
        ),
    ),
    ProgramFamily(
        "find-offset",
        "string",
        {"c": LETTERS, "k": MEDIUM},
        'return {a}.find("{c}") + {k}',
        (
            'Find the first "{c}" in {a} and add {k} to its index.',
            'Return the index of "{c}" in {a} (or -1), plus {k}.',
        ),
    ),
    # --- sentences
    ProgramFamily(
        "long-words",
        "sentence",
        {"op": COMPARE, "k": SMALL, "case": CASE},
        "return [w.{case[1]}() for w in {a}.split() if len(w) {op[1]} {k}]",
        (
            "List the words of {a} with a length {op[0]} {k}, in {case[0]}.",
            "Return in {case[0]} the words of {a} whose length is {op[0]} {k}.",
        ),
    ),
    ProgramFamily(
        "words-by-letter",
        "sentence",
        {"e": ENDS, "c": LETTERS, "m": SMALL},
        'return sum(w.{e[1]}("{c}") for w in {a}.split()) * {m}',
        (
            'Count the words of {a} with "{c}" as {e[2]} letter, times {m}.',
            'Return {m} times how many words of {a} have the {e[2]} letter "{c}".',
        ),
    ),
    ProgramFamily(
        "join-first-words",
        "sentence",
        {"k": SMALL, "c": LETTERS},
        'return "{c}".join({a}.split()[:{k}])',
        ('Join the first {k} words of {a} with "{c}".', 'Put "{c}" between the first {k} words of {a}.'),
    ),
    ProgramFamily(
        "prefix-words",
        "sentence",
        {"c": LETTERS, "k": SMALL},
        'return ["{c}" + w[:{k}] for w in {a}.split()]',
        (
            'List the words of {a}, each cut to {k} letters, with "{c}" before it.',
            'For each word of {a}, put "{c}" before its first {k} letters.',
        ),
    ),
)
