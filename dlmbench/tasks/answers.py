"""Answers that are numbers: where a text states its result, and whether two spellings are one number.

A result may stand behind ``####`` (GSM8K's own mark), in ``\\boxed{}`` or behind "the answer is", written plainly, with
thousands marked, as money, in bold or in LaTeX. `stated` looks for these marks in the order that the prompt suggests,
then takes the last number of the text; `same` compares values, so that 18, 18.00 and $18 agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice

THOUGHT_ENDS = "</think>"
LONGEST, MOST = 500, 8  # characters behind a mark, and marks, that are read: text in a loop may have thousands
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SIGN = r"(?:(?<![\w.)])-)?"  # a minus behind a number or a word takes away
_NUMBER = re.compile(rf"{_SIGN}(?:\$\s?-?)?(?:{_DIGITS})(?:/\d+(?![\d/]))?", re.ASCII)
_VALUE = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?", re.ASCII)
_STEP = re.compile(r"\s*(?:[-+*/=x×÷≈]|\\times|\\cdot|\\div)\s*(?=[-$(.\d])", re.ASCII)
_MARK = re.compile(r"####(?!\s*\d[.)]\s+[^\W\d])\s*")  # "#### 1. Count the eggs" is a heading
_PHRASE = re.compile(r"\banswers?\b[^.\n]{0,60}?(?:\b(?:is|be)\b|:|=)", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boldsymbol)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_DROPPED = re.compile(r"\\[!,;: ]|\\(?:left|right|displaystyle)\b|\*\*|__|`|~(?=\d)")


def after_thought(text: str) -> str:
    """`text` behind its last closing think tag; all of it where there is none."""
    return text.rpartition(THOUGHT_ENDS)[2]


def stated(text: str, marks: Sequence[str] = ("boxed", "phrase", "hash")) -> str:
    """The result that `text` states, as digits; "" where it has no number.

    `marks` are looked for in this order: ``boxed`` the last ``\\boxed{}``, ``phrase`` the last "answer is", ``hash``
    the first ``####``, each only with a number in it. Without any of them the last number counts.
    """
    text = after_thought(text)
    for mark in marks:
        if found := _behind(mark, text):
            return found
    return last(text)


def boxed(text: str) -> str:
    """The number in the last ``\\boxed{}`` that has one, as digits, or ""."""
    return _behind("boxed", after_thought(text))


def last(text: str) -> str:
    """The last number of `text`, as digits, or ""."""
    numbers = _NUMBER.findall(_plain(after_thought(text)))
    return _digits(numbers[-1]) if numbers else ""


def same(one: str, other: str) -> bool:
    """Are both numbers, and the same number?"""
    values = value(one), value(other)
    return None not in values and values[0] == values[1]


def value(text: str) -> Fraction | None:
    """The number that `text` is, thousands, money and a full stop allowed; None for any other text."""
    digits = _digits(text).rstrip(".")
    try:
        return Fraction(digits) if _VALUE.fullmatch(digits) else None
    except (ValueError, ZeroDivisionError):  # ValueError: thousands of digits
        return None


def _behind(mark: str, text: str) -> str:
    """The number behind the first or last of these marks that has one, as digits, or ""."""
    parts = islice(_PARTS[mark](text), MOST)
    return next(filter(None, (_first(_plain(part)) for part in parts)), "")


def _digits(number: str) -> str:
    return re.sub(r"[,$\s]", "", number)


def _plain(text: str) -> str:
    """`text` without the LaTeX and Markdown that may stand inside and around a number."""
    text = _DROPPED.sub("", text.replace("\\$", "$").replace("{,}", ",").replace("\u2212", "-"))
    text = _WRAPPER.sub(r"\1", text)
    return _FRACTION.sub(r" \1\2/\3", text)


def _first(text: str) -> str:
    """The first number of `text`, as digits; of an equation that begins there, its lone side: "9 * 2 = 18" is 18."""
    match = _NUMBER.search(text)
    if not match:
        return ""
    sides = [[match[0]]]
    while step := _STEP.match(text, match.end()):
        match = _NUMBER.match(text, step.end())
        if not match:
            break
        if "=" in step[0] or "≈" in step[0]:
            sides.append([])
        sides[-1].append(match[0])
    return next((_digits(side[0]) for side in reversed(sides) if len(side) == 1), "")


def _boxes(text: str) -> Iterator[str]:
    """What stands in each ``\\boxed{}``, the last first. A box that is cut off reaches to the end of its line."""
    for match in reversed(list(_BOX.finditer(text))):
        rest = text[match.end() : match.end() + LONGEST]
        yield rest[: _closing(rest)] if rest.startswith("{") else rest.split("\n")[0]


def _closing(text: str) -> int:
    """Where the brace that `text` begins with is closed, else where its first line ends."""
    depth = 0
    for at, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if not depth:
            return at
    return len(text.split("\n")[0])


def _phrases(text: str) -> Iterator[str]:
    """What follows each "answer is", "Answer:" and the like in its sentence, the last first."""
    for match in reversed(list(_PHRASE.finditer(text))):
        rest = text[match.end() : match.end() + LONGEST].lstrip(" \n*_:")
        yield re.split(r"\n|[.!?]\s", rest)[0]


def _hashes(text: str) -> Iterator[str]:
    """What follows each ``####`` in its line; "" where there is more than punctuation before a number."""
    for match in _MARK.finditer(text):
        rest = text[match.end() : match.end() + LONGEST].split("\n")[0]
        yield rest if re.match(r"\W*(?:\\(?:boxed|fbox)\W*)?\d", _plain(rest), re.ASCII) else ""


_PARTS = {"boxed": _boxes, "phrase": _phrases, "hash": _hashes}
