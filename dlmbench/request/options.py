"""A method's own options: a frozen dataclass of its decoder, bound from what a user wrote.

A decoder declares its options as a dataclass whose fields carry metadata (`dlmbench.decoders.base.option`): help,
choices, the unit of their numbers, and which one ``--threshold`` sets. `bind` turns ``--set threshold.inclusive=true``
and the scalars of a recipe into an instance of it. Imports nothing heavy. Left out: nested options.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from dlmbench.errors import RequestError
from dlmbench.request.values import Hint, convert

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from dlmbench.files import Json

T = TypeVar("T", bound="DataclassInstance")


def threshold_field(config: type[DataclassInstance]) -> str | None:
    """Name of the field that ``--threshold`` sets, None for a method without one."""
    return next((f.name for f in dataclasses.fields(config) if f.metadata.get("threshold")), None)


def used_threshold(config: DataclassInstance) -> str | None:
    """The same of these options, None also where they make no use of it (a property `uses_threshold` says so)."""
    return threshold_field(type(config)) if getattr(config, "uses_threshold", True) else None


def threshold_unit(config: type[DataclassInstance]) -> str:
    """What the threshold's numbers are: "confidence" for a probability that a position must pass, "" for anything else.

    Only values of one named unit mean the same to two methods.
    """
    return next((f.metadata.get("unit", "") for f in dataclasses.fields(config) if f.metadata.get("threshold")), "")


def bind(config: type[T], values: Mapping[str, object], owner: str) -> T:
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
        hint: Hint = typing.Literal[tuple(choices)] if choices else hints[name]
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


def flat(config: DataclassInstance) -> dict[str, Json]:
    """All parameters after defaults, as plain JSON values, in the order of the dataclass."""
    return {f.name: _json_value(getattr(config, f.name)) for f in dataclasses.fields(config)}


def deciding(config: DataclassInstance) -> dict[str, Json]:
    """The parameters that tell settings apart: all but options that were added later and stand at their default."""
    late = {
        f.name for f in dataclasses.fields(config) if f.metadata.get("added") and getattr(config, f.name) == _default(f)
    }
    return {name: value for name, value in flat(config).items() if name not in late}


def _json_value(value: Json | enum.Enum | tuple[Json, ...]) -> Json:
    if isinstance(value, enum.Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def label(method: str, config: DataclassInstance) -> str:
    """How a row is called: method, its threshold's value, then whatever differs from the defaults: ``threshold 0.6``.

    A method without a threshold shows its first option by name (``static k=1``), so that no row hides its setting; a
    threshold that is of no use beside the other options is left out.
    """
    used = used_threshold(config)
    fields = [field for field in dataclasses.fields(config) if used or not field.metadata.get("threshold")]
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


def _default(field: dataclasses.Field) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
