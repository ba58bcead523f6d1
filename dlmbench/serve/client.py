"""A strict client of servers: an answer is whole and consistent, or the run ends with the server's own sentence.

Nothing that went wrong becomes an answer, since an empty one would be scored as a wrong one. A server that is busy
(429, 503), cannot be reached, is too slow or breaks off is asked again some times; any other error ends at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import PurePath

import httpx2 as httpx

from dlmbench.errors import RequestError, RunError
from dlmbench.request.run_spec import APIS
from dlmbench.runs.record import Json, ServerFacts
from dlmbench.serve.apis import INTERFACES, Ask, BadReply, Body, Record, Reply, cut, whole

BUSY = (429, 502, 503)  # worth asking again
TRIES = 4
LONGEST_WAIT = 60.0  # seconds until a busy server is asked again, whatever it says
SAID = 300  # characters of a server's sentence


class Refused(RunError):
    """A server's answer that is an error and will be one again; `said` is its sentence."""

    def __init__(self, message: str, status: int, said: str):
        super().__init__(message)
        self.status, self.said = status, said


@dataclass(frozen=True)
class Timed:
    """A reply, and when it came: seconds on the clock of `time.perf_counter`. `first` is when its first text did, where
    it was streamed."""

    reply: Reply
    began: float
    ended: float
    first: float | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Client:
    """Asks one server by one interface. `model` is its name there where the server has several.

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
        self.api, self.name, self.tries, self._sleep = INTERFACES[api], api, tries, sleep
        self.withheld: tuple[str, ...] = ()  # sampling fields that the server refuses, and that are not sent
        self._known: ServerFacts | None = None
        self._http = httpx.Client(
            base_url=url.rstrip("/"), timeout=timeout, limits=httpx.Limits(max_connections=None), trust_env=False
        )
        self._model = model
        self._served: str | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # --- answers ------------------------------------------------------------------------------------------------------

    def ask(self, ask: Ask) -> Reply:
        """One answer, its text cut at the first stop string, which not every engine does. Raises RunError, with what
        the server said."""
        return self._reply(ask, lambda: self._record("POST", self.api.path, self._body(ask)))

    def _reply(self, ask: Ask, record: Callable[[], Record]) -> Reply:
        try:
            reply = self.api.parse(record())
            _check(reply, ask)
        except BadReply as error:
            raise self.useless(str(error)) from error
        text = cut(reply.text, ask.stop)
        return replace(reply, text=text, ended=reply.ended if text == reply.text else "stop")

    def useless(self, why: str) -> RunError:
        """The error of an answer that is not what it should be."""
        return RunError(f"The {self.name} server answered what cannot be used: {why}.")

    def _body(self, ask: Ask) -> Body:
        seed = None if "seed" in self.withheld else ask.seed
        temperature = None if "temperature" in self.withheld else ask.temperature
        return self.api.body(replace(ask, seed=seed, temperature=temperature), self.model)

    def try_out(self, ask: Ask) -> None:
        """Ask once, and find out which sampling fields the server refuses (vLLM any seed for DiffusionGemma, and any
        temperature but 1): these are `withheld` from then on. Raises RunError for any other refusal, and for any of
        dlmbench's own server, which says how to start it as it is asked."""
        while True:
            try:
                self.ask(ask)
                return
            except Refused as error:
                sent = [name for name in ask.sampling if name not in self.withheld]
                wrong = [name for name in sent if error.status in (400, 422) and name in error.said]
                if not wrong or self.name == "dlmbench":
                    raise
                self.withheld += (wrong[0],)

    def timed(self, ask: Ask, stream: bool = False) -> Timed:
        """One answer and its times, streamed where that is wanted and known to work. A stream that breaks off is not
        asked for again."""
        began = time.perf_counter()
        if not (stream and self.api.streams):
            return Timed(self.ask(ask), began, time.perf_counter())
        arrived: list[float] = []
        reply = self._reply(ask, lambda: whole(list(self._events(self._body(ask), arrived))))
        return Timed(reply, began, time.perf_counter(), arrived[0] if arrived else None)

    def _events(self, body: Body, arrived: list[float]) -> Iterator[Record]:
        """The events of a stream; `arrived` gets the time of each that has a text."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            with self._http.stream("POST", self.api.path, json=asked) as response:
                if not response.is_success:
                    response.read()
                    raise RunError(f"The {self.name} server did not stream ({_said(response)}).")
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data == "[DONE]":
                        continue
                    event = self._object(data, self.api.path)
                    if any(isinstance(one, Mapping) and one.get("text") for one in _choices(event)):
                        arrived.append(time.perf_counter())
                    yield event
        except httpx.TransportError as error:
            raise RunError(f"The {self.name} server broke off ({type(error).__name__}: {error}).") from error

    def ask_all(
        self, asks: Sequence[Ask], concurrency: int, on_answer: Callable[[int, Timed], None] | None = None, *,
        stream: bool = False, after: Sequence[float] | None = None,
    ) -> list[Timed]:  # fmt: skip
        """All answers in order, so many at a time. `on_answer` hears of each, with its number, on the thread that got
        it. `after`: seconds from now on when each is sent, whatever else is under way (then `concurrency` must let it).
        The first error ends it; answers that had come by then were told."""
        start = time.perf_counter()

        def one(number: int, ask: Ask) -> Timed:
            if after:
                time.sleep(max(0.0, start + after[number] - time.perf_counter()))
            answer = self.timed(ask, stream)
            if on_answer:
                on_answer(number, answer)
            return answer

        with ThreadPoolExecutor(concurrency) as pool:
            futures: list[Future[Timed]] = [pool.submit(one, number, ask) for number, ask in enumerate(asks)]
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
        if self._served is None and "/v1/models" in self.api.about:
            names = [one.get("id") for one in self._list_of_models()]
            named = self._model if self._model in names or not names else None  # some do not list what they were given
            chosen = named or (names[0] if len(names) == 1 else None)
            if not isinstance(chosen, str):
                raise RequestError(
                    f"The server has the models {', '.join(map(str, names)) or 'none'}; give one of them as --model."
                )
            self._served = chosen
        return self._served

    def about(self) -> ServerFacts:
        """What the server tells of itself: names that are known to be harmless, without places, hosts or keys."""
        found: Body = {}
        for path in self.api.about:
            record = self._record("GET", path) if path != "/v1/models" else {}
            found |= {name: _plain(record[name]) for name in self.api.told if record.get(name) is not None}
        names = [one for one in (found.pop("model", None), found.pop("model_path", None)) if one]
        if "/v1/models" in self.api.about and self.model:
            names.append(_name(self.model))
        version = found.pop("version", None)
        facts = ServerFacts(self.name, str(names[0]) if names else None, str(version) if version else None, found)
        self._known = self._known or facts
        return facts

    def check_same(self) -> None:
        """Raises RunError when the server is not what it was when it was asked about first."""
        if self._known is None:
            return
        before, now = self._known, self.about()
        if changed := before.changes(now):
            raise RunError(
                f"The {self.name} server is another one since the run began ({', '.join(changed)} changed): start it "
                "as it was and run again, or choose another --out."
            )

    def flush(self) -> bool:
        """Empty the server's prefix cache; can that be done?"""
        if self.api.flush is None:
            return False
        return self._http.post(self.api.flush).is_success

    def _list_of_models(self) -> list[Record]:
        data = self._record("GET", "/v1/models").get("data")
        return [one for one in data if isinstance(one, Mapping)] if isinstance(data, list) else []

    # --- one request --------------------------------------------------------------------------------------------------

    def _record(self, method: str, path: str, body: Body | None = None) -> Record:
        """The JSON object that the server answers with. One that was away meanwhile must have come back the same."""
        last, away = "it was never asked", False
        for attempt in range(self.tries):
            try:
                response = self._http.request(method, path, json=body)
            except httpx.TimeoutException:
                last, pause = "no answer in time", 0.0
            except httpx.TransportError as error:
                last, pause, away = f"{type(error).__name__}: {error}", _pause(attempt), True
            else:
                if response.is_success:
                    if away and body is not None:
                        self.check_same()
                    return self._object(response.content, path)
                said = _sentence(response)
                last, pause = _said(response), _pause(attempt, response)
                if response.status_code not in BUSY:
                    raise Refused(f"The {self.name} server did not answer {path} ({last}).", response.status_code, said)
            if attempt + 1 < self.tries:
                self._sleep(pause)
        raise RunError(f"The {self.name} server did not answer {path} ({last}).")

    def _object(self, text: str | bytes, path: str) -> Record:
        try:
            record = json.loads(text)
        except ValueError as error:
            raise RunError(f"The {self.name} server answered {path} with what is no JSON ({error}).") from error
        if not isinstance(record, dict):
            raise RunError(f"The {self.name} server answered {path} with a {type(record).__name__}, not an object.")
        return record


def _check(reply: Reply, ask: Ask) -> None:
    """What must hold between an answer's parts. Raises BadReply."""
    tokens, prompt = reply.report.tokens, reply.report.prompt_tokens
    if reply.ids is not None and len(reply.ids) < tokens:
        raise BadReply(f"{tokens} tokens are counted and {len(reply.ids)} ids came")
    if tokens > ask.max_tokens:
        raise BadReply(f"{tokens} tokens came and {ask.max_tokens} were asked for")
    if reply.text and not tokens:
        raise BadReply("a text came and no token is counted")
    if not tokens:
        raise BadReply("the answer has no token, not even one that ends it")
    if prompt is not None and prompt != len(ask.prompt_ids):
        raise BadReply(
            f"it has read a prompt of {prompt} tokens and our tokenizer makes {len(ask.prompt_ids)} of it: another "
            "tokenizer (--model), or a BOS too many or too few (--bos, --chat-template)"
        )


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


def _said(response: httpx.Response) -> str:
    return f"HTTP {response.status_code}: {_sentence(response)}"


def _choices(event: Record) -> list[Json]:
    found = event.get("choices")
    return found if isinstance(found, list) else []


def _messages(record: object) -> Iterator[str]:
    """Messages of an error record; FastAPI's `detail`, OpenAI's `error.message`, or a plain `message`."""
    if not isinstance(record, Mapping):
        return
    for name in ("error", "message", "detail"):
        value = record.get(name)
        if isinstance(value, str):
            yield value
        yield from _messages(value)


def _plain(value: Json) -> Json:
    """A told value without places."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return _name(value) if isinstance(value, str) else value


def _name(text: str) -> str:
    """A path becomes its last part."""
    return PurePath(text).name if text.startswith(("/", "~", "./", "../")) else text
