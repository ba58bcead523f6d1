"""From text to typed values: what a user or a recipe wrote becomes a number, a name, a list or a range.

A converter takes (value, name) and returns the value as its type, or raises RequestError with one sentence that names
it. Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TypeAlias, TypeVar, overload

from dlmbench.errors import RequestError
from dlmbench.files import Json

T = TypeVar("T")
N = TypeVar("N", int, float)
Hint: TypeAlias = object  # an annotation: a class, or what `typing` makes of several
Converter: TypeAlias = Callable[[object, str], T]
Settings: TypeAlias = Mapping[str, Mapping[str, Json]]  # owner -> option -> value: ``--set owner.option=value``

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(?::({_NUMBER}))?")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_LONGEST_RANGE = 1000


# --- lists, ranges and assignments ----------------------------------------------------------------------------------


def parse_values(value: Json | tuple[Json, ...]) -> list[Json]:
    """The values an option of a sweep takes: ``"0.3:0.95:0.05"`` (ends included), ``"a,b"``, a list, or one value.

    Numbers of a range are made in decimal arithmetic, so that 0.3 + 12 * 0.05 is 0.9 and not 0.9000000000000001.
    """
    if isinstance(value, list | tuple):
        return [one for part in value for one in parse_values(part)]
    if not isinstance(value, str):
        return [value]
    parts = [part.strip() for part in value.split(",")]
    if "" in parts:
        raise RequestError(f"List {value!r} has an empty entry; write it like a,b,c.")
    return [one for part in parts for one in _parse_part(part)]


def _parse_part(part: str) -> list[Json]:
    match = _RANGE.fullmatch(part)
    if not match:
        return [part]
    first, last, step = (Decimal(text) if text else Decimal(1) for text in match.groups())
    if step <= 0 or last < first:
        raise RequestError(f"Range {part!r} is empty; write first:last:step with first <= last and step > 0.")
    count = int((last - first) / step) + 1
    if count > _LONGEST_RANGE:
        raise RequestError(f"Range {part!r} has {count} values, more than {_LONGEST_RANGE}; take a larger step.")
    return [_plain(first + i * step) for i in range(count)]


def _plain(number: Decimal) -> int | float:
    whole = number == number.to_integral_value() and int(number.as_tuple().exponent) >= 0
    return int(number) if whole else float(number)


def parse_assignments(items: Iterable[str]) -> dict[str, dict[str, str]]:
    """``["mrp.mode=remask"]`` as ``{"mrp": {"mode": "remask"}}``. Raises RequestError for anything of another form."""
    settings: dict[str, dict[str, str]] = {}
    for item in items:
        name, equals, value = item.partition("=")
        method, dot, option = name.strip().partition(".")
        if not (equals and dot and method and option and value.strip()):
            raise RequestError(f"--set takes method.option=value, got {item!r}; for example --set static.k=2.")
        settings.setdefault(method, {})[option] = value.strip()
    return settings


def assigned(value: Json) -> dict[str, dict[str, str]]:
    """The same of a flag's value: a list of assignments, one, or none."""
    return parse_assignments(map(str, value if isinstance(value, list) else [value] if value else []))


# --- one value ------------------------------------------------------------------------------------------------------


@overload
def convert(value: object, hint: type[T], name: str) -> T: ...


@overload
def convert(value: object, hint: Hint, name: str) -> object: ...


def convert(value: object, hint: Hint, name: str) -> object:
    """`value` as the annotated type `hint`: int, float, bool, str, Literal, Enum, an optional or a tuple of these."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and (value is None or str(value).lower() in ("none", "null")):
            return None
        return _first_that_fits(value, [one for one in arguments if one is not type(None)], name)
    if origin is typing.Literal:
        return _choice(value, {str(one): one for one in arguments}, name)
    if origin is tuple:
        parts = list(value) if isinstance(value, list | tuple) else [p for p in str(value).split("+") if p]
        return tuple(convert(part, arguments[0], name) for part in parts)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choice(value.value if isinstance(value, enum.Enum) else value, {str(m.value): m for m in hint}, name)
    return _scalar(value, hint, name)


def _first_that_fits(value: object, hints: list[Hint], name: str) -> object:
    for hint in hints[:-1]:
        try:
            return convert(value, hint, name)
        except RequestError:
            continue
    return convert(value, hints[-1], name)


def _choice(value: object, choices: Mapping[str, T], name: str) -> T:
    text = str(value)
    if text not in choices:
        raise RequestError(f"{name} is {text!r}; it takes one of {', '.join(choices)}.")
    return choices[text]


def _scalar(value: object, hint: Hint, name: str) -> object:
    text = str(value).strip()
    if hint is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise RequestError(f"{name} is {text!r}; it takes true or false.")
    try:
        if hint is int:
            number = Decimal(text)
            if number != number.to_integral_value():
                raise ValueError
            return int(number)
        if hint is float:
            real = float(text)
            if not math.isfinite(real):
                raise RequestError(f"{name} is {text}, which is no finite number; give one.")
            return real
    except (ValueError, ArithmeticError):
        raise RequestError(f"{name} is {text!r}; it takes {'a whole number' if hint is int else 'a number'}.") from None
    return value if hint is not str else text


# --- converters -----------------------------------------------------------------------------------------------------


def text(value: object, name: str) -> str:
    """A name."""
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name} is {value!r}; it takes a name.")
    return value.strip()


def flag(value: object, name: str) -> bool:
    """True or false, in words too."""
    return convert(value, bool, name)


def optional(inner: Converter[T]) -> Converter[T | None]:
    """None, or what `inner` takes."""
    return lambda value, name: None if value is None else inner(value, name)


def number(kind: type[N], low: float | None = None, high: float | None = None) -> Converter[N]:
    """An int or a float within bounds, ends included."""

    def converted(value: object, name: str) -> N:
        found = convert(value, kind, name)
        if (low is not None and found < low) or (high is not None and found > high) or found != found:
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise RequestError(f"{name} is {found}; it must be {bounds}.")
        return found

    return converted


def one_of(choices: Sequence[str]) -> Converter[str]:
    """One of these words."""

    def converted(value: object, name: str) -> str:
        if not isinstance(value, str) or value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]}? It" if near else "it"
            raise RequestError(f"{name} is {value!r}: {hint} takes one of {', '.join(choices)}.")
        return value

    return converted


def batch_size(value: object, name: str) -> int | str:
    """``auto`` or a number of rows."""
    return "auto" if value == "auto" else number(int, 1)(value, name)


def device(value: object, name: str) -> str:
    """auto, cpu, cuda or cuda:N."""
    kind, _, index = str(value).partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise RequestError(f"{name} is {value!r}; it takes auto, cpu, cuda or cuda:N.")
    return str(value)


def names(value: object, name: str) -> tuple[str, ...]:
    """Names separated by commas, or a list of them; ``none`` is no name."""
    if not isinstance(value, str | Iterable | None):
        raise RequestError(f"{name} is {value!r}; it takes names separated by commas.")
    parts = value.split(",") if isinstance(value, str) else map(str, value or ())
    found = tuple(part.strip() for part in parts if part.strip())
    return () if found == ("none",) else found


def ids(value: object, name: str) -> tuple[int, ...]:
    """Numbers of tokens separated by commas, or a list of them."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    return tuple(number(int, 0)(part, name) for part in parts)


def seconds(value: object, name: str) -> float:
    """Seconds above 0, as 2, 2s or 500ms."""
    written = str(value).strip()
    unit = next((unit for unit in ("ms", "s") if written.endswith(unit)), "")
    found = number(float, 1e-6)(written.removesuffix(unit), name)
    return found / 1000 if unit == "ms" else found


def placeless(value: object, name: str) -> str:
    """A text in which every path has become its last component."""
    return re.sub(r"(?:(?<=^)|(?<=[\s=:,]))(?:~|\.{1,2})?/\S*/(?=\S)", "", text(value, name))


def settings(value: object, name: str) -> Settings:
    """What ``--set`` says: owner -> option -> value."""
    if not isinstance(value, Mapping) or not all(isinstance(inner, Mapping) for inner in value.values()):
        raise RequestError(f"{name} is {value!r}; it maps methods to their options.")
    return {method: dict(inner) for method, inner in value.items()}
