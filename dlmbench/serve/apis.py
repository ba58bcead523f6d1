"""What each engine's interface takes and what it tells, as its source defines it. No network in here.

``dlmbench`` is our own server, ``sglang`` and ``diffulex`` their POST /generate, ``vllm``, ``lmdeploy`` and ``openai``
POST /v1/completions. Forwards are taken from what an engine reports and never worked out from lengths: SGLang's main
line and all OpenAI-compatible interfaces report none; forks of SGLang do, under several names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dlmbench.forwards import ForwardKey
from dlmbench.runs.record import EngineReport, Json, Work

Record: TypeAlias = Mapping[str, Json]  # a JSON object that was not checked yet
Body: TypeAlias = dict[str, Json]

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
    def sampling(self) -> Body:
        given: Body = {"seed": self.seed, "temperature": self.temperature}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Counted:
    """What our own server tells besides: an answer's forwards as a run in process keeps them."""

    counts: dict[str, dict[str, Work]]
    forwards: dict[ForwardKey, int]
    fallbacks: int
    proposed: int
    accepted: list[int]


@dataclass(frozen=True)
class Reply:
    """What an engine answered. `ids` are None where it tells the text alone."""

    text: str
    ended: str
    """``length`` where its budget ended it, else ``stop`` or ``eos``."""
    report: EngineReport
    ids: tuple[int, ...] | None = None
    counted: Counted | None = None

    @property
    def cut_off(self) -> bool:
        return self.ended == "length"


@dataclass(frozen=True)
class Api:
    """An interface: where to post, what, and how to read the answer. `about` are the paths that tell of the server,
    `told` the names that are kept of it; a POST to `flush` empties its prefix cache. `streams`: are answers known to
    come as OpenAI's events, with a last one that counts tokens?"""

    path: str
    body: Callable[[Ask, str | None], Body]
    parse: Callable[[Record], Reply]
    about: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    flush: str | None = None
    streams: bool = False


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


def _numbers(record: Record, name: str) -> list[int]:
    value = record.get(name)
    numbers = [one for one in value if isinstance(one, int)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(numbers) != len(value):
        raise BadReply(f"{name} is no list of whole numbers")
    return numbers


def _ended(reason: object) -> str:
    """How an answer ended. Raises BadReply when it did not."""
    if not isinstance(reason, str) or reason not in ("stop", "length", "eos"):
        raise BadReply(f"the answer ended by {reason!r}, so it is not whole")
    return reason


# --- the interfaces ---------------------------------------------------------------------------------------------------


def _dlmbench_body(ask: Ask, model: str | None) -> Body:
    return {"prompt_ids": list(ask.prompt_ids), "max_tokens": ask.max_tokens, "stop": list(ask.stop), **ask.sampling}


def _dlmbench(record: Record) -> Reply:
    usage, cost = _part(record, "usage"), record.get("cost")
    report = EngineReport(
        _number(usage, "completion_tokens"), _number(usage, "prompt_tokens"), _number(record, "nfe"),
        cost if isinstance(cost, float) else None,
    )  # fmt: skip
    return Reply(
        _text(record), _ended(record.get("stop_reason")), report, tuple(_numbers(record, "ids")), _counted(record)
    )


def _counted(record: Record) -> Counted:
    counts, forwards = _part(record, "counts"), _part(record, "forwards")
    roles = {role: _part(counts, role) for role in counts}
    return Counted(
        {role: {kind: _work(_part(kinds, kind)) for kind in kinds} for role, kinds in roles.items()},
        {_forward(name): _number(forwards, name) for name in forwards},
        _number(record, "fallbacks"), _number(record, "proposed"), _numbers(record, "accepted"),
    )  # fmt: skip


def _forward(name: str) -> ForwardKey:
    try:
        return ForwardKey.parse(name)
    except ValueError as error:
        raise BadReply(str(error)) from error


def _work(counted: Record) -> Work:
    flops = counted.get("flops")
    if not isinstance(flops, int | float):
        raise BadReply(f"flops are {flops!r} and no number")
    calls, queries, keys = (_whole(counted, name) for name in ("calls", "query_tokens", "key_tokens"))
    return Work(calls, queries, keys, float(flops))


def _whole(record: Record, name: str) -> int:
    """A count that may come as 3.0."""
    value = record.get(name)
    return _number({name: int(value)} if isinstance(value, float) and value.is_integer() else record, name)


def _openai_body(ask: Ask, model: str | None) -> Body:
    stop: Body = {"stop": list(ask.stop)} if ask.stop else {}
    return {"model": model, "prompt": ask.prompt, "max_tokens": ask.max_tokens, **stop, **ask.sampling}


def _vllm_body(ask: Ask, model: str | None) -> Body:
    """Ids, so that no special token is added a second time."""
    return {**_openai_body(ask, model), "prompt": list(ask.prompt_ids)}


def _openai(record: Record) -> Reply:
    choices = record.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    if not isinstance(choice, Mapping):
        raise BadReply("choices is no list of one answer")
    ended, usage = _ended(choice.get("finish_reason")), _part(record, "usage")
    report = EngineReport(_number(usage, "completion_tokens"), _number(usage, "prompt_tokens"))
    return Reply(_text(choice), ended, report)


def _sglang_body(ask: Ask, model: str | None) -> Body:
    names = {"seed": "sampling_seed"}
    sampling = {names.get(name, name): value for name, value in ask.sampling.items()}
    stop: Body = {"stop": list(ask.stop)} if ask.stop else {}
    return {
        "input_ids": list(ask.prompt_ids),
        "sampling_params": {"max_new_tokens": ask.max_tokens, **stop, **sampling},
    }


def _sglang(record: Record) -> Reply:
    told = _part(record, "meta_info")
    ended = _ended(_part(told, "finish_reason").get("type"))
    ids = tuple(_numbers(record, "output_ids")) if record.get("output_ids") is not None else None
    report = EngineReport(_number(told, "completion_tokens"), _number(told, "prompt_tokens"), _forwards(told))
    return Reply(_text(record), ended, report, ids)


def _forwards(told: Record) -> int | None:
    """Forwards of an answer, told as a number or block by block; None where nobody counts them."""
    for name in FORWARD_COUNTS:
        value = told.get(name)
        if isinstance(value, list) and value:
            return sum(_numbers(told, name))
        if value is not None:
            return _number(told, name)
    return None


def _diffulex_body(ask: Ask, model: str | None) -> Body:
    temperature = 0.0 if ask.temperature is None else ask.temperature  # its own default is 1
    return {"prompt": list(ask.prompt_ids), "max_tokens": ask.max_tokens, "temperature": temperature, "stream": False}


def _diffulex(record: Record) -> Reply:
    ids, reason = tuple(_numbers(record, "token_ids")), record.get("finish_reason")
    report = EngineReport(len(ids), None, _number(record, "nfe"))
    return Reply(_text(record), "stop" if reason is None else _ended(reason), report, ids)


_SGLANG_FLAGS = (
    "version", "model_path", "dllm_algorithm", "dllm_algorithm_config", "max_running_requests", "dtype", "tp_size",
    "attention_backend", "disable_radix_cache", "disable_cuda_graph", "quantization", "mem_fraction_static",
)  # fmt: skip
_OWN_FLAGS = (
    "version", "model", "label", "options", "sampling", "cache", "store", "block_length", "decoder", "dtype", "device",
    "batch_size", "graphs", "limits", "weights", "processor",
)  # fmt: skip

INTERFACES: dict[str, Api] = {  # by the names of `dlmbench.request.run_spec.APIS`
    "dlmbench": Api("/generate", _dlmbench_body, _dlmbench, ("/info",), _OWN_FLAGS),
    "sglang": Api("/generate", _sglang_body, _sglang, ("/get_server_info",), _SGLANG_FLAGS, "/flush_cache"),
    "diffulex": Api("/generate", _diffulex_body, _diffulex, ("/v1/models",)),
    "vllm": Api("/v1/completions", _vllm_body, _openai, ("/version", "/v1/models"), ("version",), streams=True),
    "lmdeploy": Api("/v1/completions", _openai_body, _openai, ("/v1/models",), streams=True),
    "openai": Api("/v1/completions", _openai_body, _openai, ("/v1/models",)),
}


def whole(events: Sequence[Record]) -> Record:
    """A streamed completion as if it had come at once. Raises BadReply for a stream that says no text at all."""
    choices = [one[0] for event in events if isinstance(one := event.get("choices"), list) and one]
    parts = [one for one in choices if isinstance(one, Mapping)]
    if not parts:
        raise BadReply("the stream has no choices")
    text = "".join(_text(one) for one in parts)
    usage = next((event["usage"] for event in reversed(events) if event.get("usage")), None)
    return {"choices": [{"text": text, "finish_reason": parts[-1].get("finish_reason")}], "usage": usage}


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before its first stop string."""
    at = min((at for at in (text.find(one) for one in stop if one) if at >= 0), default=len(text))
    return text[:at]
