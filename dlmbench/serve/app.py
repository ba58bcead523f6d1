"""The endpoints: /generate, /v1/completions, /v1/chat/completions, /v1/models, /info, /health.

Errors are ``{"error": {"message", "type"}}``: 400 what was asked wrongly, 404 another model, 413 too large a body, 429
(with Retry-After) a full queue, 500 what failed, 503 a server that stops, 504 an answer that took too long; in a stream
that has begun they are its last event. Left out: log-probabilities, several answers of one prompt.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from fastapi import FastAPI, HTTPException
from fastapi import Request as Http
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Generation, Request
from dlmbench.engine.prompts import prompt_ids, render_chat
from dlmbench.errors import DlmbenchError, RequestError
from dlmbench.forwards import ForwardKey
from dlmbench.runs.record import Json
from dlmbench.serve import schemas
from dlmbench.serve.stream import Sent, Stream
from dlmbench.serve.worker import EngineWorker, Full, Stopping


@dataclass(frozen=True)
class Served:
    """What an application serves, beside its engine: the model's name, what /info tells, prices of forwards, the seed
    of requests that bring none."""

    model: str
    info: Mapping[str, Json] = field(default_factory=dict)
    prices: Mapping[ForwardKey, float] = field(default_factory=dict)
    seed: int = 0


def application(worker: EngineWorker, served: Served) -> FastAPI:
    """The application over a worker that has been started."""
    app = FastAPI(title="dlmbench", openapi_url=None)  # no page that fetches scripts from elsewhere
    app.add_middleware(Bounded, most=worker.limits.body_bytes)
    _say_errors(app)
    asked = _Asked(worker, served)

    @app.post("/generate", response_model=None)
    async def generate(http: Http, body: schemas.Generate) -> JSONResponse:
        if (body.prompt is None) == (body.prompt_ids is None):
            raise RequestError("Give exactly one of prompt and prompt_ids.")
        request = asked.request(body, body.prompt if body.prompt is not None else body.prompt_ids or [])
        [result] = await asked.decode(http, [request])
        return JSONResponse(schemas.generated(result, len(request.prompt_ids), served.prices))  # as it is: plain values

    @app.post("/v1/completions", response_model=None)
    async def completions(http: Http, body: schemas.Completion) -> Response:
        asked.same_model(body)
        requests = [asked.request(body, prompt) for prompt in body.prompts]
        if body.stream:
            return asked.stream(http, body, requests, chat=False)
        return JSONResponse(asked.answer(requests, await asked.decode(http, requests), chat=False))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(http: Http, body: schemas.Chat) -> Response:
        asked.same_model(body)
        request = asked.conversation(body)
        if body.stream:
            return asked.stream(http, body, [request], chat=True)
        return JSONResponse(asked.answer([request], await asked.decode(http, [request]), chat=True))

    @app.get("/v1/models", response_model=None)
    async def models() -> dict[str, Json]:
        return {"object": "list", "data": [{"id": served.model, "object": "model", "owned_by": "dlmbench"}]}

    @app.get("/info", response_model=None)
    async def info() -> dict[str, Json]:
        return {**served.info, "limits": asdict(worker.limits)}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


class _Asked:
    """From what was asked to the engine's requests, and back."""

    def __init__(self, worker: EngineWorker, served: Served):
        self.worker, self.served = worker, served
        self.tokenizer = worker.engine.tokenizer

    def request(self, body: schemas.ServedRequest, prompt: str | Sequence[int], templated: bool = False) -> Request:
        """The engine's request. Raises RequestError for sampling that is not the served one."""
        _check_sampling(body, self.worker.engine.sampling)
        ids = prompt_ids(self.tokenizer, prompt, templated) if isinstance(prompt, str) else tuple(prompt)
        seed = self.served.seed if body.seed is None else body.seed
        return Request("prompt", ids, body.max_tokens or self.worker.limits.max_tokens, body.stops, seed)

    def conversation(self, body: schemas.Chat) -> Request:
        if not getattr(self.tokenizer, "chat_template", None):
            raise RequestError(f"{self.served.model} has no chat template; use /v1/completions.")
        if body.max_completion_tokens is not None:
            if body.max_tokens not in (None, body.max_completion_tokens):
                raise RequestError("max_tokens and max_completion_tokens differ; give one of them.")
            body = body.model_copy(update={"max_tokens": body.max_completion_tokens})
        return self.request(body, render_chat(self.tokenizer, [turn.plain for turn in body.messages]), templated=True)

    def same_model(self, body: schemas.OpenAI) -> None:
        if body.model not in (None, self.served.model):
            raise HTTPException(404, f"The model {body.model!r} is not here; this server has {self.served.model!r}.")

    def answer(self, requests: Sequence[Request], results: Sequence[Generation], chat: bool) -> dict[str, Json]:
        prompts, answers = (len(one.prompt_ids) for one in requests), (one.tokens for one in results)
        return {
            **self._head("chat.completion" if chat else "text_completion"),
            "choices": [schemas.choice(result, index, chat) for index, result in enumerate(results)],
            "usage": schemas.usage(sum(prompts), sum(answers)),
        }

    def _head(self, kind: str) -> dict[str, Json]:
        created = int(time.time())
        return {"id": f"cmpl-{uuid.uuid4().hex}", "object": kind, "created": created, "model": self.served.model}

    def stream(self, http: Http, body: schemas.OpenAI, requests: Sequence[Request], chat: bool) -> StreamingResponse:
        """One answer as events; refusals come before the first of them. Raises RequestError for several prompts."""
        if len(requests) > 1:
            raise RequestError(f"stream takes one prompt at a time, and {len(requests)} came.")
        request, engine = replace(requests[0], stream=True), self.worker.engine
        head = self._head("chat.completion.chunk" if chat else "text_completion")
        count = bool(body.stream_options and body.stream_options.include_usage)
        stream = Stream(Sent(engine.text, request), engine.target.config.eos_ids, head, chat, count)
        tickets = self.worker.submit([request], stream.on_block)

        async def events() -> AsyncIterator[str]:
            left = asyncio.ensure_future(_left(http))
            try:
                async for event in stream.events(tickets[0], left, self.worker.limits.seconds):
                    yield event
            finally:
                left.cancel()
                self.worker.cancel(tickets)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def decode(self, http: Http, requests: Sequence[Request]) -> list[Generation]:
        """The generations, in order; a client that leaves, and one that waits too long, gives its rows up."""
        tickets = self.worker.submit(requests)
        results = asyncio.gather(*(asyncio.wrap_future(ticket.future) for ticket in tickets))
        results.add_done_callback(lambda given_up: given_up.cancelled() or given_up.exception())  # else it is logged
        left = asyncio.ensure_future(_left(http))
        try:
            either: set[asyncio.Future] = {results, left}
            await asyncio.wait(either, timeout=self.worker.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if results.done():
                return results.result()
            if left.done():
                raise HTTPException(499, "The client has left.")
            raise HTTPException(504, f"No answer within {self.worker.limits.seconds:g} s.")
        finally:
            left.cancel()
            if not results.done() or results.cancelled() or results.exception():
                results.cancel()
                self.worker.cancel(tickets)


async def _left(http: Http) -> None:
    """Returns when the client has gone; the body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _check_sampling(body: schemas.ServedRequest, served: Sampling) -> None:
    for name in ("temperature", "top_p", "top_k"):
        wanted, here = getattr(body, name), getattr(served, name)
        if wanted not in (None, here):
            raise RequestError(
                f"{name} is {wanted}, and this server decodes with {here}; leave it out, or start the server with "
                f"--{name.replace('_', '-')} {wanted}."
            )


# --- errors -----------------------------------------------------------------------------------------------------------


def _say_errors(app: FastAPI) -> None:
    """One shape for all of them, with a sentence in it."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Http, error: RequestValidationError) -> JSONResponse:
        return _error(400, _sentence(error), "invalid_request_error")

    @app.exception_handler(AnyHTTPException)
    async def known(_: Http, error: AnyHTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail), "invalid_request_error")

    @app.exception_handler(DlmbenchError)
    async def ours(_: Http, error: DlmbenchError) -> JSONResponse:
        if isinstance(error, Full):
            return _error(429, str(error), "overloaded", {"Retry-After": str(error.seconds)})
        if isinstance(error, Stopping):
            return _error(503, str(error), "stopping")
        wrong = isinstance(error, RequestError)
        return _error(400 if wrong else 500, str(error), "invalid_request_error" if wrong else "server_error")

    @app.exception_handler(Exception)
    async def unforeseen(_: Http, error: Exception) -> JSONResponse:
        return _error(500, f"{type(error).__name__}: {error}", "server_error")


def _sentence(error: RequestValidationError) -> str:
    """The first thing that is wrong with a body, with its place in it."""
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return "The body is no JSON."
    if len(first["loc"]) == 1 and first["type"] != "missing":
        return "The body is no JSON object; send one, with the header content-type: application/json."
    # of the kinds that a field takes, the one that is wrong within says more than those that it is not
    alike = [first, *(one for one in others if one["loc"][:2] == first["loc"][:2])]
    first = next((one for one in alike if not one["type"].endswith("_type")), first)
    place = ".".join(str(part) for part in first["loc"][1:2]) or "The body"
    return f"{place}: {first['msg']}."


def _error(status: int, message: str, kind: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind}}, status, dict(headers or {}))


class Bounded:
    """Refuses bodies of more than `most` bytes, told or sent."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self.most:
            answer = _error(413, f"The body has {int(told)} bytes, and at most {self.most} are read here.", "too_large")
            return await answer(scope, receive, send)
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise AnyHTTPException(413, f"The body has more than {self.most} bytes.")
            return message

        await self.app(scope, counted, send)
