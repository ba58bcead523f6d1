"""What goes into the engine and what comes out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NotRequired, TypeAlias, TypedDict

import torch
from torch import Tensor

from dlmbench.errors import RequestError
from dlmbench.forwards import ForwardKey


@dataclass(frozen=True)
class Request:
    """One item to generate: prompt ids, token budget, stop strings, the seed of its own draws, and tokens of the answer
    that are given in advance as (offset behind the prompt, token) pairs. For an oracle `answers` [A,L] are the ids of
    all valid answers, -1 behind the end of each. `stream`: who serves it hears of each finished block."""

    key: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int = 0
    fixed: tuple[tuple[int, int], ...] = ()
    answers: Tensor | None = field(default=None, compare=False, repr=False)
    stream: bool = False


class Arrivals(NamedTuple):
    """What has happened outside while the engine serves: requests that came, each under a number of its own, and the
    numbers of those that nobody waits for any more."""

    requests: Sequence[tuple[int, Request]]
    unwanted: Collection[int] = ()


Source: TypeAlias = Callable[[int, bool], Arrivals]
"""Asked before every step: source(free slots, is the engine idle?). To an idle engine it returns when a request has
come, and without one to end its service."""


OnBlock: TypeAlias = Callable[[int, list[int]], None]
"""Called with a request's number and the tokens of its answer up to the end of a block that was just finished."""


class TracedForward(TypedDict):
    """A forward that a row took part in."""

    role: str
    kind: str
    query_tokens: int


class Replaced(TypedDict):
    """Tokens that a step has rewritten."""

    positions: list[int]
    tokens: list[int]


class TracedStep(TypedDict):
    """What a step did to one row; see `dlmbench.engine.recorder`."""

    block: int
    positions: list[int]
    tokens: list[int]
    remasked: list[int]
    forwards: list[TracedForward]
    extra: dict[str, Any]  # what the decoder adds: numbers, or lists of them
    scores: dict[str, list]
    replaced: NotRequired[Replaced]
    row: NotRequired[int]  # the slot, for who watches


class Marginals(NamedTuple):
    """What is kept of the logits of M masks (`dlmbench.engine.states`): `ids` and `logits` [M,K] of the largest but for
    the mask token, whose logit is `mask` [M]; logarithms of the sum of exponentials of all (`log_sum` [M]) and of those
    that are none of these (`rest` [M]); the distribution's `entropy` [M] in nats."""

    ids: Tensor
    logits: Tensor
    mask: Tensor
    log_sum: Tensor
    rest: Tensor
    entropy: Tensor


class RowPlace(NamedTuple):
    """Where a row stands before a step: the numbers of the `View`, and the first position of its tokens."""

    prompt_length: int
    end: int
    seed: int
    start: int
    step: int
    total_steps: int
    block_masks: int
    first: int


class State(NamedTuple):
    """A row before a step. `tokens` [W] stand from position ``place.first`` on, the mask id where nothing is known;
    `positions` [M] of the masks that the forward predicts, `chosen` [M] bool those that the decoder revealed."""

    place: RowPlace
    tokens: Tensor
    positions: Tensor
    chosen: Tensor
    marginals: Marginals


@dataclass
class Generation:
    """What came out for one request.

    `ids` end with the first EOS (included) or at the budget; a stop string cuts `text` and `tokens` (generated tokens
    up to and including it), not `ids`. Where a decoder ended the row with masks left, `ids` hold them, and `text` and
    `tokens` end before the first one. `raw_ids` are all tokens up to the end of the last decoded block. `counts`
    {role: {kind: {calls, query_tokens, key_tokens, flops}}}; `forward_counts` the calls again, by forward;
    `steps` of the decoder; `seconds` from admission to finish; `proposed` draft tokens and `accepted` how many
    of them were kept, one number a verification; `first_block` seconds from admission until the host knew of a finished
    block; `trace` and `states` where they were asked for.
    """

    key: str
    ids: list[int]
    raw_ids: list[int]
    text: str
    tokens: int
    counts: dict[str, dict[str, dict[str, float]]]
    forward_counts: dict[ForwardKey, int]
    seconds: float
    stop_reason: str  # "eos" | "stop" | "length"
    fallbacks: int = 0
    proposed: int = 0
    accepted: list[int] = field(default_factory=list)
    first_block: float = 0.0
    steps: int = 0
    trace: list[TracedStep] | None = None
    states: list[State] | None = None


def now(device: torch.device) -> float:
    """Seconds on a clock that only runs forward, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class Timing:
    """Synchronised seconds of one `generate` call."""

    total: float = 0.0
    prefill: float = 0.0
    forwards: float | None = None
    """Of decoding, inside networks' layers and heads; None where nothing tells (`dlmbench.engine.clock`)."""

    @property
    def decode(self) -> float:
        return self.total - self.prefill

    @property
    def outside(self) -> float | None:
        """Share of decoding that passes outside forwards."""
        return None if self.forwards is None or not self.decode else 1 - self.forwards / self.decode


def validate(requests: Sequence[Request], mask_id: int, vocabulary: int) -> None:
    """Raises RequestError for prompts and budgets that cannot be decoded."""
    for request in requests:
        if not request.prompt_ids:
            raise RequestError(
                f"Item {request.key!r} has an empty prompt; a decoder needs at least one token to start from."
            )
        if request.max_tokens < 1:
            raise RequestError(
                f"Item {request.key!r} may generate {request.max_tokens} tokens; --gen-length must be at least 1."
            )
        if mask_id in request.prompt_ids:
            raise RequestError(f"The prompt of item {request.key!r} contains the mask token {mask_id}; remove it.")
        if max(request.prompt_ids) >= vocabulary or min(request.prompt_ids) < 0:
            raise RequestError(
                f"The prompt of item {request.key!r} has ids outside the model's vocabulary of {vocabulary}."
            )
