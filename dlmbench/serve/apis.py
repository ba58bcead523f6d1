"""What each engine's interface takes and what it tells, as its source defines it. No network in here.

``dlmbench`` is our own server, ``sglang`` and ``diffulex`` their POST /generate, ``vllm``, ``lmdeploy`` and ``openai``
POST /v1/completions. Forwards are taken from what an engine reports and never worked out from lengths: SGLang's main
line and all OpenAI-compatible interfaces report none; forks of SGLang do, under several names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]  # a JSON object that was not checked yet

FORWARD_COUNTS = ("dllm_forward_counts", "dllm_forward_counts_per_block", "nfe")  # of SGLang's forks, in meta_info


class BadReply(ValueError):
    """A reply that is not what its interface promises; the message says in what."""


@dataclass(frozen=True)
class Ask:
    """One prompt. `seed` and `temperature` are sent where they are given; leave out what an engine refuses (vLLM takes
    no seed for DiffusionGemma, and no temperature but 1)."""

    prompt: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int | None = None
    temperature: float | None = None

    @property
    def sampling(self) -> dict[str, int | float]:
        given = {"seed": self.seed, "temperature": self.temperature}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Reply:
    """What an engine answered. None is what it did not tell. `tokens` are its own count, `cost` only ours."""

    text: str
    tokens: int
    cut_off: bool
    prompt_tokens: int | None = None
    ids: tuple[int, ...] | None = None
    nfe: int | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Api:
    """An interface: where to post, what, and how to read the answer. `stops`: are stop strings its business? Where not,
    the client cuts the text. `about` are the paths that tell of the server, `told` the names that are kept of it."""

    path: str
    body: Callable[[Ask, str | None], dict[str, Any]]
    parse: Callable[[Record], Reply]
    about: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    stops: bool = True


# --- reading ----------------------------------------------------------------------------------------------------------


def _number(record: Record, name: str) -> int:
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadReply(f"{name} is {value!r} and no number of tokens or forwards")
    return value


def _text(record: Record, name: str = "text") -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise BadReply(f"{name} is {value!r} and no text")
    return value


def _part(record: Record, name: str) -> Record:
    value = record.get(name)
    if not isinstance(value, Mapping):
        raise BadReply(f"{name} is missing")
    return value


def _ids(record: Record, name: str) -> tuple[int, ...]:
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(one, int) for one in value):
        raise BadReply(f"{name} is no list of token ids")
    return tuple(value)


def _ended(reason: object) -> bool:
    """Was an answer cut off by its budget? Raises BadReply when it did not end at all."""
    if reason not in ("stop", "length", "eos"):
        raise BadReply(f"the answer ended by {reason!r}, so it is not whole")
    return reason == "length"


# --- the interfaces ---------------------------------------------------------------------------------------------------


def _dlmbench_body(ask: Ask, model: str | None) -> dict[str, Any]:
    return {"prompt_ids": list(ask.prompt_ids), "max_tokens": ask.max_tokens, "stop": list(ask.stop), **ask.sampling}


def _dlmbench(record: Record) -> Reply:
    usage, cost = _part(record, "usage"), record.get("cost")
    cut_off = _ended(record.get("stop_reason"))
    return Reply(
        _text(record), _number(usage, "completion_tokens"), cut_off, _number(usage, "prompt_tokens"),
        _ids(record, "ids"), _number(record, "nfe"), cost if isinstance(cost, float) else None,
    )  # fmt: skip


def _openai_body(ask: Ask, model: str | None) -> dict[str, Any]:
    stop = {"stop": list(ask.stop)} if ask.stop else {}
    return {"model": model, "prompt": ask.prompt, "max_tokens": ask.max_tokens, **stop, **ask.sampling}


def _vllm_body(ask: Ask, model: str | None) -> dict[str, Any]:
    """Ids, so that no special token is added a second time."""
    return {**_openai_body(ask, model), "prompt": list(ask.prompt_ids)}


def _openai(record: Record) -> Reply:
    choices = record.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise BadReply("choices is no list of one answer")
    usage, choice = _part(record, "usage"), choices[0]
    cut_off = _ended(choice.get("finish_reason"))
    return Reply(_text(choice), _number(usage, "completion_tokens"), cut_off, _number(usage, "prompt_tokens"))


def _sglang_body(ask: Ask, model: str | None) -> dict[str, Any]:
    names = {"seed": "sampling_seed"}
    sampling = {names.get(name, name): value for name, value in ask.sampling.items()}
    stop = {"stop": list(ask.stop)} if ask.stop else {}
    return {
        "input_ids": list(ask.prompt_ids),
        "sampling_params": {"max_new_tokens": ask.max_tokens, **stop, **sampling},
    }


def _sglang(record: Record) -> Reply:
    told = _part(record, "meta_info")
    cut_off = _ended(_part(told, "finish_reason").get("type"))
    ids = _ids(record, "output_ids") if record.get("output_ids") is not None else None
    return Reply(
        _text(record), _number(told, "completion_tokens"), cut_off, _number(told, "prompt_tokens"), ids, _forwards(told)
    )


def _forwards(told: Record) -> int | None:
    """Forwards of an answer, told as a number or block by block; None where nobody counts them."""
    for name in FORWARD_COUNTS:
        value = told.get(name)
        if isinstance(value, list) and value and all(isinstance(one, int) for one in value):
            return sum(value)
        if value is not None:
            return _number(told, name)
    return None


def _diffulex_body(ask: Ask, model: str | None) -> dict[str, Any]:
    temperature = 0.0 if ask.temperature is None else ask.temperature  # its own default is 1
    return {"prompt": list(ask.prompt_ids), "max_tokens": ask.max_tokens, "temperature": temperature, "stream": False}


def _diffulex(record: Record) -> Reply:
    ids, reason = _ids(record, "token_ids"), record.get("finish_reason")
    return Reply(_text(record), len(ids), reason is not None and _ended(reason), None, ids, _number(record, "nfe"))


_SGLANG_FLAGS = (
    "version", "model_path", "dllm_algorithm", "dllm_algorithm_config", "max_running_requests", "dtype", "tp_size",
    "attention_backend", "disable_radix_cache", "disable_cuda_graph", "quantization", "mem_fraction_static",
)  # fmt: skip
_OWN_FLAGS = (
    "version", "model", "label", "options", "sampling", "cache", "store", "block_length", "decoder", "dtype", "device",
    "batch_size", "graphs", "limits",
)  # fmt: skip

APIS: dict[str, Api] = {
    "dlmbench": Api("/generate", _dlmbench_body, _dlmbench, ("/info",), _OWN_FLAGS),
    "sglang": Api("/generate", _sglang_body, _sglang, ("/get_server_info",), _SGLANG_FLAGS),
    "diffulex": Api("/generate", _diffulex_body, _diffulex, ("/v1/models",), stops=False),
    "vllm": Api("/v1/completions", _vllm_body, _openai, ("/version", "/v1/models"), ("version",)),
    "lmdeploy": Api("/v1/completions", _openai_body, _openai, ("/v1/models",)),
    "openai": Api("/v1/completions", _openai_body, _openai, ("/v1/models",)),
}


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before its first stop string."""
    at = min((at for at in (text.find(one) for one in stop if one) if at >= 0), default=len(text))
    return text[:at]
