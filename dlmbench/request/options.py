"""From text to typed values: ranges and lists of a sweep, and decoder options bound to a config dataclass.

Nothing heavy is imported. A decoder declares its options as a frozen dataclass whose fields carry
``metadata={"help": str, "knob": bool, "unit": str, "choices": tuple}``; `bind` turns what a user wrote
(``--set threshold.inclusive=true``, YAML scalars) into an instance of it. Left out: nested options.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from dlmbench.errors import RequestError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(?::({_NUMBER}))?")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_LONGEST_RANGE = 1000


def parse_values(value: Any) -> list[Any]:
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


def _parse_part(part: str) -> list[Any]:
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
    return int(number) if number == number.to_integral_value() and number.as_tuple().exponent >= 0 else float(number)


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


def knob(config: type) -> str | None:
    """Name of the field that ``--threshold`` sets, None for a method without one."""
    return next((f.name for f in dataclasses.fields(config) if f.metadata.get("knob")), None)


def dial(config: Any) -> str | None:
    """The knob of these options, None also where they make no use of it (a property `uses_knob` says so)."""
    return knob(type(config)) if getattr(config, "uses_knob", True) else None


def knob_unit(config: type) -> str:
    """What the knob's numbers are: "confidence" for a probability that a position must pass, "" for anything else.

    Only values of one named unit mean the same to two methods.
    """
    return next((f.metadata.get("unit", "") for f in dataclasses.fields(config) if f.metadata.get("knob")), "")


def bind(config: type, values: Mapping[str, Any], owner: str) -> Any:
    """An instance of the dataclass `config` from written values.

    Raises RequestError for an unknown option (with near matches), a value of the wrong type, and whatever the
    dataclass itself refuses; `owner` is the method's name in these messages.
    """
    known = {f.name: f for f in dataclasses.fields(config) if f.init}
    hints = typing.get_type_hints(config)
    bound = {}
    for name, value in values.items():
        if name not in known:
            raise RequestError(_unknown_option(name, list(known), owner))
        choices = known[name].metadata.get("choices")
        hint = typing.Literal[tuple(choices)] if choices else hints[name]
        bound[name] = convert(value, hint, f"{owner}.{name}")
    try:
        return config(**bound)
    except (TypeError, ValueError) as error:
        raise RequestError(f"Options of {owner} do not fit together: {error}.") from error


def _unknown_option(name: str, known: list[str], owner: str) -> str:
    if not known:
        return f"Method {owner} has no options, so {owner}.{name} cannot be set."
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"Method {owner} has no option {name!r}: {hint}It has {', '.join(known)}."


def convert(value: Any, hint: Any, name: str) -> Any:
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


def _first_that_fits(value: Any, hints: list[Any], name: str) -> Any:
    for hint in hints[:-1]:
        try:
            return convert(value, hint, name)
        except RequestError:
            continue
    return convert(value, hints[-1], name)


def _choice(value: Any, choices: dict[str, Any], name: str) -> Any:
    text = str(value)
    if text not in choices:
        raise RequestError(f"{name} is {text!r}; it takes one of {', '.join(choices)}.")
    return choices[text]


def _scalar(value: Any, hint: Any, name: str) -> Any:
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
            number = float(text)
            if not math.isfinite(number):
                raise RequestError(f"{name} is {text}, which is no finite number; give one.")
            return number
    except (ValueError, ArithmeticError):
        raise RequestError(f"{name} is {text!r}; it takes {'a whole number' if hint is int else 'a number'}.") from None
    return value if hint is not str else text


def flat(config: Any) -> dict[str, Any]:
    """All parameters after defaults, as plain JSON values, in the order of the dataclass."""
    return {f.name: _json_value(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _json_value(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def label(method: str, config: Any) -> str:
    """How a row is called: method, its knob's value, then whatever differs from the defaults: ``threshold 0.6``.

    A method without a knob shows its first option by name (``static k=1``), so that no row hides its setting; a knob
    that is of no use beside the other options is left out.
    """
    used = dial(config)
    fields = [field for field in dataclasses.fields(config) if used or not field.metadata.get("knob")]
    first = used or (fields[0].name if fields else None)
    words = [method]
    for field in fields:
        value = _json_value(getattr(config, field.name))
        text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
        if field.name == used:
            words.append(text)
        elif field.name == first or getattr(config, field.name) != _default(field):
            words.append(f"{field.name}={text}")
    return " ".join(words)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
