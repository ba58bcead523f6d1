"""Answers as server-sent events, a block at a time, as OpenAI's interface streams them.

A block's text is sent when no later one can change it: without what may still become a stop string, and without letters
that lack bytes. What the events add up to is the text of the whole answer; an answer of a method that may change
finished blocks comes as one event.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from dlmbench.engine import Generation, Request
from dlmbench.engine.text import Text
from dlmbench.errors import DlmbenchError, RunError
from dlmbench.runs.record import Json
from dlmbench.serve.schemas import finish_reason, usage
from dlmbench.serve.worker import Ticket

DONE = "data: [DONE]\n\n"
_CUT_LETTER = "\ufffd"  # what a decoder makes of bytes that are no whole letter


@dataclass
class Sent:
    """What a client has of an answer."""

    text: Text
    request: Request
    sent: str = ""

    def more(self, ids: list[int], ends: tuple[int, ...]) -> str:
        """What is new and final in the text of these tokens."""
        end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        text, _, stopped = self.text.cut(ids[:end], self.request.stop, self.request.prompt_ids)
        if not stopped:
            text = text.rstrip(_CUT_LETTER)
            text = text[: len(text) - _begun(text, self.request.stop)]
        return self._beyond(text) or ""

    def rest(self, result: Generation) -> str:
        """What is missing to the whole answer. Raises RunError where another one was begun."""
        found = self._beyond(result.text)
        if found is None:
            raise RunError("The answer was changed after its beginning had been sent; ask for it without stream.")
        return found

    def _beyond(self, text: str) -> str | None:
        if not text.startswith(self.sent):
            return None
        new, self.sent = text[len(self.sent) :], text
        return new


def _begun(text: str, stop: tuple[str, ...]) -> int:
    """Letters at the end of a text that may be the beginning of a stop string."""
    longest = max(map(len, stop), default=1) - 1
    return next((n for n in range(longest, 0, -1) if any(one.startswith(text[-n:]) for one in stop if text[-n:])), 0)


@dataclass
class Stream:
    """One answer on its way: what the engine's thread tells, and the events that are made of it."""

    sent: Sent
    ends: tuple[int, ...]
    head: Mapping[str, Json]  # id, object, created, model
    chat: bool
    count: bool  # tokens in a last event
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    blocks: asyncio.Queue[list[int]] = field(default_factory=asyncio.Queue)

    def on_block(self, ids: list[int]) -> None:
        """For the engine's thread."""
        self.loop.call_soon_threadsafe(self.blocks.put_nowait, ids)

    async def events(self, ticket: Ticket, left: asyncio.Future[None], seconds: float) -> AsyncIterator[str]:
        """The events, ended early by a client that has left; what goes wrong meanwhile is one of them."""
        if self.chat:
            yield self._event({"role": "assistant", "content": ""})
        result = asyncio.wrap_future(ticket.future)
        result.add_done_callback(lambda given_up: given_up.cancelled() or given_up.exception())  # else it is logged
        until, block = time.monotonic() + seconds, None
        try:
            while not result.done():
                block = asyncio.ensure_future(self.blocks.get())
                waited: set[asyncio.Future] = {block, result, left}
                await asyncio.wait(waited, timeout=until - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
                if block.done():
                    if new := self.sent.more(block.result(), self.ends):
                        yield self._event(self._said(new))
                    continue
                if left.done():
                    return
                if not result.done():
                    raise RunError(f"No answer within {seconds:g} s.")
            for event in self._last(result.result()):
                yield event
        except DlmbenchError as error:
            yield _line({"error": {"message": str(error), "type": "server_error"}})
        finally:
            if block:
                block.cancel()
            if not result.done():
                result.cancel()

    def _last(self, result: Generation) -> list[str]:
        rest = self.sent.rest(result)
        events = [self._event(self._said(rest))] if rest else []
        events.append(self._event({} if self.chat else {"text": ""}, finish_reason(result)))
        if self.count:
            counted = usage(len(self.sent.request.prompt_ids), result.tokens)
            events.append(_line({**self.head, "choices": [], "usage": counted}))
        return [*events, DONE]

    def _said(self, text: str) -> dict[str, Json]:
        return {"content": text} if self.chat else {"text": text}

    def _event(self, said: dict[str, Json], reason: str | None = None) -> str:
        place: dict[str, Json] = {"delta": said} if self.chat else {**said, "logprobs": None}
        choices: list[Json] = [{"index": 0, **place, "finish_reason": reason}]
        return _line({**self.head, "choices": choices})


def _line(record: Mapping[str, Json]) -> str:
    return f"data: {json.dumps(record, ensure_ascii=False)}\n\n"
