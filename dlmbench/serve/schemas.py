"""What may be asked over HTTP, field by field, and what is answered.

Strict: a field that is not here is refused, and so is every value that would change a text and that the served method
does not follow, such as another temperature than the one it was started with. Fields that change no text (``user``)
are accepted and have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dlmbench.engine import Generation
from dlmbench.forwards import ForwardKey
from dlmbench.runs.aggregate import price
from dlmbench.runs.record import Json


def _whole(text: str) -> str:
    """JSON can spell halves of characters, of which no tokenizer knows anything."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a unicode character is in it") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
NonEmpty = Annotated[str, Field(min_length=1), AfterValidator(_whole)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
STOPS = 16  # stop strings of a request
AT_ONCE = 128  # prompts of a request
CLOSED = ConfigDict(extra="forbid", strict=True)  # no unknown field, and no "16" or true for a number


class ServedRequest(BaseModel):
    """What every endpoint takes. Of `stop`, empty strings are refused; `seed` decides draws where a method draws."""

    model_config = CLOSED

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: NonEmpty | Annotated[list[NonEmpty], Field(max_length=STOPS)] | None = None
    seed: Seed | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Generate(ServedRequest):
    """POST /generate: one prompt, as text or as ids."""

    prompt: NonEmpty | None = None
    prompt_ids: Ids | None = None


class StreamOptions(BaseModel):
    """`include_usage`: a last event without choices that counts tokens."""

    model_config = CLOSED

    include_usage: bool = False


class OpenAI(ServedRequest):
    """What both endpoints of OpenAI's interface take; the fields behind `model` have one value that is no request."""

    model: str | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    user: str | None = None


class Completion(OpenAI):
    """POST /v1/completions: one prompt or several, as texts or as ids."""

    prompt: Text | Ids | Annotated[list[Text] | list[Ids], Field(min_length=1, max_length=AT_ONCE)]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class ContentPart(BaseModel):
    """A part of a message; text alone."""

    model_config = CLOSED

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = CLOSED

    role: Literal["system", "user", "assistant"]
    content: Text | list[ContentPart]

    @property
    def plain(self) -> dict[str, str]:
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": self.role, "content": text}


class Chat(OpenAI):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None


class Generated(TypedDict):
    """Answer of /generate. `nfe` are the forwards of the target after prefill, `counts` all forwards by role and kind,
    `forwards` the same by role, kind and shape; `cost` is in plain denoise forwards, null where one was not priced."""

    ids: list[int]
    text: str
    stop_reason: str
    nfe: int
    steps: int
    cost: float | None
    counts: dict[str, dict[str, dict[str, float]]]
    forwards: dict[str, int]
    fallbacks: int
    proposed: int
    accepted: list[int]
    seconds: float
    usage: dict[str, Json]


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Json]:
    """Tokens of a request; of the answer up to and including the first EOS or stop string."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def generated(result: Generation, prompt_tokens: int, prices: Mapping[ForwardKey, float]) -> Generated:
    """A generation as /generate answers it."""
    return {
        "ids": result.ids,
        "text": result.text,
        "stop_reason": result.stop_reason,
        "nfe": sum(calls for key, calls in result.forward_counts.items() if _is_step(key)),
        "steps": result.steps,
        "cost": cost(result, prices),
        "counts": result.counts,
        "forwards": {str(key): calls for key, calls in sorted(result.forward_counts.items())},
        "fallbacks": result.fallbacks,
        "proposed": result.proposed,
        "accepted": list(result.accepted),
        "seconds": round(result.seconds, 6),
        "usage": usage(prompt_tokens, result.tokens),
    }


def cost(result: Generation, prices: Mapping[ForwardKey, float]) -> float | None:
    """All forwards at their price; None where one has none."""
    total = 0.0
    for key, calls in result.forward_counts.items():
        one = price(dict(prices), key)
        if one is None:
            return None
        total += one * calls
    return round(total, 4)


def choice(result: Generation, index: int, chat: bool) -> dict[str, Json]:
    """A generation as OpenAI's interface answers it."""
    said: dict[str, Json] = {"text": result.text}
    if chat:
        said = {"message": {"role": "assistant", "content": result.text}}
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason(result)}


def finish_reason(result: Generation) -> str:
    """In OpenAI's words."""
    return "length" if result.stop_reason == "length" else "stop"


def _is_step(key: ForwardKey) -> bool:
    return key.role == "target" and key.kind != "prefill"
