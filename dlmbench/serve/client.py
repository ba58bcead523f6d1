"""A strict client of servers: an answer is whole and consistent, or the run ends with the server's own sentence.

Nothing that went wrong becomes an answer, since an empty one would be scored as a wrong one. A server that is busy
(429, 503), cannot be reached, is too slow or breaks off is asked again some times; any other error ends at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import PurePath
from typing import Any

import httpx2 as httpx

from dlmbench.errors import RequestError, RunError
from dlmbench.serve.apis import APIS, Ask, BadReply, Record, Reply, cut

BUSY = (429, 502, 503)  # worth asking again
TRIES = 4
LONGEST_WAIT = 60.0  # seconds until a busy server is asked again, whatever it says
SAID = 300  # characters of a server's sentence


class Client:
    """Asks one server by one interface. `model` is its name there; None: the only one that the server has.

    Args:
        url: of the server, without a path.
        timeout: seconds for one answer.
        tries: how often an answer is asked for in all.
    """

    def __init__(
        self, url: str, api: str, model: str | None = None, *, timeout: float = 600.0, tries: int = TRIES,
        sleep: Callable[[float], None] = time.sleep,
    ):  # fmt: skip
        if api not in APIS:
            raise RequestError(f"--api is {api!r}; it is one of {', '.join(APIS)}.")
        if not url.startswith(("http://", "https://")):
            raise RequestError(f"--server is {url!r}; it begins with http:// or https://.")
        self.api, self.name, self.tries, self._sleep = APIS[api], api, tries, sleep
        self._http = httpx.Client(
            base_url=url.rstrip("/"), timeout=timeout, limits=httpx.Limits(max_connections=None), trust_env=False
        )
        self._model = model

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # --- answers ------------------------------------------------------------------------------------------------------

    def ask(self, ask: Ask) -> Reply:
        """One answer. Raises RunError, with what the server said."""
        record = self._record("POST", self.api.path, self.api.body(ask, self.model))
        try:
            reply = self.api.parse(record)
            _check(reply, ask)
        except BadReply as error:
            raise RunError(f"The {self.name} server answered what cannot be used: {error}.") from error
        if self.api.stops:
            return reply
        return Reply(**{**vars(reply), "text": cut(reply.text, ask.stop)})

    def ask_all(
        self, asks: Sequence[Ask], concurrency: int, on_reply: Callable[[int, Reply, float], None] | None = None
    ) -> list[Reply]:
        """All answers in order, so many at a time. `on_reply` hears of each, with its number and seconds, on the thread
        that got it. The first error ends it; answers that had come by then were told."""

        def one(number: int, ask: Ask) -> Reply:
            began = time.perf_counter()
            reply = self.ask(ask)
            if on_reply:
                on_reply(number, reply, time.perf_counter() - began)
            return reply

        with ThreadPoolExecutor(concurrency) as pool:
            futures: list[Future[Reply]] = [pool.submit(one, number, ask) for number, ask in enumerate(asks)]
            wait(futures, return_when=FIRST_EXCEPTION)
            pool.shutdown(wait=True, cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                future.result()  # raises the first error
        return [future.result() for future in futures]

    # --- the server ---------------------------------------------------------------------------------------------------

    @property
    def model(self) -> str | None:
        """Its name there; interfaces without names have none."""
        if self._model is None and self.api.path.startswith("/v1/"):
            names = [one.get("id") for one in self._list_of_models()]
            if len(names) != 1 or not isinstance(names[0], str):
                raise RequestError(f"The server has {len(names)} models; say which one is meant.")
            self._model = names[0]
        return self._model

    def about(self) -> dict[str, Any]:
        """What the server tells of itself: names that are known to be harmless, without places, hosts or keys."""
        found: dict[str, Any] = {"engine": self.name}
        for path in self.api.about:
            if path == "/v1/models":
                found["model"] = [_name(str(one.get("id"))) for one in self._list_of_models()]
            else:
                record = self._record("GET", path)
                found.update({name: _plain(record[name]) for name in self.api.told if record.get(name) is not None})
        return found

    def _list_of_models(self) -> list[Record]:
        data = self._record("GET", "/v1/models").get("data")
        return [one for one in data if isinstance(one, Mapping)] if isinstance(data, list) else []

    # --- one request --------------------------------------------------------------------------------------------------

    def _record(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Record:
        """The JSON object that the server answers with."""
        last = "it was never asked"
        for attempt in range(self.tries):
            try:
                response = self._http.request(method, path, json=body)
            except httpx.TimeoutException:
                last, pause = "no answer in time", 0.0
            except httpx.TransportError as error:
                last, pause = f"{type(error).__name__}: {error}", _pause(attempt)
            else:
                if response.is_success:
                    return self._object(response, path)
                last, pause = f"HTTP {response.status_code}: {_sentence(response)}", _pause(attempt, response)
                if response.status_code not in BUSY:
                    break
            if attempt + 1 < self.tries:
                self._sleep(pause)
        raise RunError(f"The {self.name} server did not answer {path} ({last}).")

    def _object(self, response: httpx.Response, path: str) -> Record:
        try:
            record = json.loads(response.content)
        except ValueError as error:
            raise RunError(f"The {self.name} server answered {path} with what is no JSON ({error}).") from error
        if not isinstance(record, dict):
            raise RunError(f"The {self.name} server answered {path} with a {type(record).__name__}, not an object.")
        return record


def _check(reply: Reply, ask: Ask) -> None:
    """What must hold between an answer's parts. Raises BadReply."""
    if reply.ids is not None and len(reply.ids) < reply.tokens:
        raise BadReply(f"{reply.tokens} tokens are counted and {len(reply.ids)} ids came")
    if reply.tokens > ask.max_tokens:
        raise BadReply(f"{reply.tokens} tokens came and {ask.max_tokens} were asked for")
    if reply.text and not reply.tokens:
        raise BadReply("a text came and no token is counted")
    if not reply.tokens:
        raise BadReply("the answer has no token, not even one that ends it")
    if reply.prompt_tokens is not None and reply.prompt_tokens < 1:
        raise BadReply("no token of the prompt is counted")


def _pause(attempt: int, response: httpx.Response | None = None) -> float:
    """Seconds until the next try: what the server says, else 1, 2, 4 ..."""
    said = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(said) if said.isdigit() else float(1 << attempt), LONGEST_WAIT)


def _sentence(response: httpx.Response) -> str:
    """What a server says about an error: its message where there is one, else its text."""
    text = response.text
    try:
        text = next(_messages(json.loads(text)), text)
    except ValueError:
        pass
    return " ".join(text.split())[:SAID] or "no reason given"


def _messages(record: object) -> Iterator[str]:
    """Messages of an error record; FastAPI's `detail`, OpenAI's `error.message`, or a plain `message`."""
    if not isinstance(record, Mapping):
        return
    for name in ("error", "message", "detail"):
        value = record.get(name)
        if isinstance(value, str):
            yield value
        yield from _messages(value)


def _plain(value: object) -> Any:
    """A told value without places."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return _name(value) if isinstance(value, str) else value


def _name(text: str) -> str:
    """A path becomes its last part."""
    return PurePath(text).name if text.startswith(("/", "~", "./", "../")) else text
