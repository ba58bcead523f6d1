"""The options of a run: what they may be, and how a written value becomes one. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from dlmbench.errors import RequestError
from dlmbench.request import options

CACHES = ("none", "prefix", "dual", "freecache", "prompt")
STORES = ("fused", "separate")
DTYPES = ("auto", "float32", "bfloat16", "float16")
SPLITS = ("test", "dev")
HELPERS = ("draft", "guide", "reference", "head")
BASELINES = ("static", "threshold")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name} is {value!r}; it takes a name.")
    return value.strip()


def _optional(inner: Any) -> Any:
    return lambda value, name: None if value is None else inner(value, name)


def _number(kind: type, low: float | None = None, high: float | None = None) -> Any:
    def convert(value: Any, name: str) -> Any:
        number = options.convert(value, kind, name)
        if (low is not None and number < low) or (high is not None and number > high) or number != number:
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise RequestError(f"{name} is {number}; it must be {bounds}.")
        return number

    return convert


def _one_of(choices: Sequence[str]) -> Any:
    def convert(value: Any, name: str) -> str:
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]}? It" if near else "it"
            raise RequestError(f"{name} is {value!r}: {hint} takes one of {', '.join(choices)}.")
        return value

    return convert


def _batch_size(value: Any, name: str) -> int | str:
    return value if value == "auto" else _number(int, 1)(value, name)


def _device(value: Any, name: str) -> str:
    kind, _, index = str(value).partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise RequestError(f"{name} is {value!r}; it takes auto, cpu, cuda or cuda:N.")
    return str(value)


def _flag(value: Any, name: str) -> bool | None:
    return options.convert(value, bool, name)


def _names(value: Any, name: str) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value or ())
    names = tuple(part.strip() for part in parts if part.strip())
    return () if names == ("none",) else names


def _settings(value: Any, name: str) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping) or not all(isinstance(inner, Mapping) for inner in value.values()):
        raise RequestError(f"{name} is {value!r}; it maps methods to their options.")
    return {method: dict(inner) for method, inner in value.items()}


CONVERTERS: dict[str, Any] = {
    "method": _text,
    "task": _text,
    "model": _text,
    "like": _optional(_text),
    "threshold": _optional(_number(float)),
    "settings": _settings,
    "against": _names,
    "limit": _optional(_number(int, 1)),
    "split": _one_of(SPLITS),
    **{role: _optional(_text) for role in HELPERS},
    "block_length": _optional(_number(int, 1)),
    "gen_length": _optional(_number(int, 1)),
    "cache": _one_of(CACHES),
    "store": _one_of(STORES),
    "num_fewshot": _optional(_number(int, 0)),
    "chat_template": _optional(_flag),
    "temperature": _number(float, 0),
    "top_k": _number(int, 0),
    "top_p": _number(float, 0, 1),
    "batch_size": _batch_size,
    "device": _device,
    "dtype": _one_of(DTYPES),
    "seed": _number(int, 0),
    "data_dir": _optional(_text),
    "out": _text,
    "plugin": _optional(_text),
}
FIELDS = tuple(CONVERTERS)


def present(device: str) -> str:
    """The device that is meant (imports torch for any but the CPU). Raises RequestError when it is not here."""
    device = _device(device, "device")
    if device.startswith("cpu"):
        return device
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if found else "cpu"
    if not found:
        raise RequestError(f"device is {device} and torch finds no CUDA device here: use --device cpu.")
    if int(device.partition(":")[2] or 0) >= found:
        raise RequestError(f"device is {device}; here are {', '.join(f'cuda:{i}' for i in range(found))}.")
    return device


def dtype_on(device: str, dtype: str) -> str:
    """What is computed in on this device. Raises RequestError for a dtype that is none."""
    dtype = CONVERTERS["dtype"](dtype, "dtype")
    return dtype if dtype != "auto" else ("float32" if device == "cpu" else "bfloat16")
