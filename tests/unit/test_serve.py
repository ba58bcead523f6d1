"""The server: endpoints, refusals, a full queue, clients that leave, a stop. pytest tests/unit/test_serve.py"""

import gc
import json
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx2")

from dlmbench.backbone.network import Network  # noqa: E402
from dlmbench.decoders.static import Static  # noqa: E402
from dlmbench.decoders.testing import EOS, MASK, tiny_model  # noqa: E402
from dlmbench.engine import Engine, Generation, Request  # noqa: E402
from dlmbench.engine.request import Arrivals  # noqa: E402
from dlmbench.engine.text import Text  # noqa: E402
from dlmbench.errors import RequestError, RunError  # noqa: E402
from dlmbench.forwards import ForwardKey  # noqa: E402
from dlmbench.serve.app import Served, application  # noqa: E402
from dlmbench.serve.server import Server  # noqa: E402
from dlmbench.serve.stream import Sent  # noqa: E402
from dlmbench.serve.worker import EngineWorker, Full, Limits, Stopping  # noqa: E402

LIMITS = Limits(max_tokens=20, max_length=40, queue=4, seconds=30.0, body_bytes=2000)
USER = {"role": "user", "content": "abc"}
PRICES = {ForwardKey("target", "denoise", "4"): 1.0, ForwardKey("target", "denoise", "8"): 1.5,
          ForwardKey("target", "prefill", "prompt"): 2.0}  # fmt: skip


class Letters:
    """A tokenizer of one letter a token, with chat markup."""

    chat_template = "here"
    eos_token_id = EOS

    def encode(self, text, add_special_tokens=True):
        return [4 + ord(letter) % 20 for letter in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(48 + i) for i in ids if i not in (EOS, MASK))

    def apply_chat_template(self, messages, **_):
        return "".join(f"{turn['role'][0]}:{turn['content']};" for turn in messages)


def tiny_engine(batch_size=2):
    net = Network("target", tiny_model("block_causal"), 4, "fused")
    return Engine({"target": net}, Static(), Letters(), batch_size=batch_size)


@pytest.fixture
def client():
    """A client of a server on loopback."""
    worker = EngineWorker(tiny_engine(), LIMITS)
    worker.start()
    with running(worker) as found:
        yield found


class running:
    """A server around a worker; a client of it."""

    def __init__(self, worker, grace=5.0):
        app = application(worker, Served("tiny", {"engine": "dlmbench"}, PRICES))
        self.worker, self.server = worker, Server(app, worker, "127.0.0.1", 0, grace)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)
        self.client.server = self.server
        return self.client

    def __exit__(self, *_):
        self.client.close()
        self.server.should_exit = True
        self.thread.join(10)
        self.worker.stop(0.0)


def test_generate_answers_with_what_the_engine_counted(client):
    expected = tiny_engine().generate([Request("x", (10, 11, 12, 13, 14), 9, seed=3)])[0]
    answer = client.post("/generate", json={"prompt_ids": [10, 11, 12, 13, 14], "max_tokens": 9, "seed": 3}).json()
    assert (answer["ids"], answer["text"]) == (expected.ids, expected.text)
    assert answer["counts"] == expected.counts
    assert answer["nfe"] == expected.counts["target"]["denoise"]["calls"] == answer["steps"]
    assert answer["cost"] == sum(PRICES[ForwardKey.parse(key)] * calls for key, calls in answer["forwards"].items())
    assert answer["usage"] == {
        "prompt_tokens": 5, "completion_tokens": expected.tokens, "total_tokens": 5 + expected.tokens,
    }  # fmt: skip


def test_completions_answer_several_prompts_in_order(client):
    prompts = ["abcd", "xy"]
    answer = client.post("/v1/completions", json={"prompt": prompts, "max_tokens": 6, "temperature": 0}).json()
    alone = tiny_engine().generate([Request("x", tuple(Letters().encode(prompt)), 6) for prompt in prompts])
    assert [choice["text"] for choice in answer["choices"]] == [one.text for one in alone]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == sum(one.tokens for one in alone)
    ids = [Letters().encode(prompt) for prompt in prompts]
    assert client.post("/v1/completions", json={"prompt": ids, "max_tokens": 6}).json()["choices"] == answer["choices"]


def events(client, path, **body):
    """What a stream says, event by event."""
    with client.stream("POST", path, json={"stream": True, **body}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("stop", [[], ["DE"], ["never"]])
def test_a_stream_adds_up_to_the_whole_answer_block_by_block(client, stop):
    body = {"prompt": "abcde", "max_tokens": 19, "stop": stop}
    whole = client.post("/v1/completions", json=body).json()
    found = events(client, "/v1/completions", **body, stream_options={"include_usage": True})
    texts = [event["choices"][0]["text"] for event in found[:-1]]
    assert "".join(texts) == whole["choices"][0]["text"] and found[-1]["usage"] == whole["usage"]
    assert found[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert len({event["id"] for event in found}) == 1
    if stop == []:
        assert len([text for text in texts if text]) > 2  # blocks of four


def test_a_conversation_is_streamed_in_deltas(client):
    turns = [{"role": "user", "content": "abc"}]
    whole = client.post("/v1/chat/completions", json={"messages": turns, "max_tokens": 12}).json()
    first, *found = events(client, "/v1/chat/completions", messages=turns, max_tokens=12)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in found)
    assert said == whole["choices"][0]["message"]["content"] and first["object"] == "chat.completion.chunk"


def test_text_is_held_back_while_it_may_become_a_stop_string_or_lacks_bytes():
    class Words:
        eos_token_id = EOS

        def decode(self, ids, skip_special_tokens=True):
            return "".join({5: "a", 6: "b", 7: "c", 8: "\ufffd"}[one] for one in ids)

    sent = Sent(Text(Words()), Request("x", (5,), 9, ("bcb",)))
    assert [sent.more(ids, (EOS,)) for ids in ([5], [5, 6], [5, 6, 7], [5, 6, 7, 5], [5, 6, 7, 5, 8])] == [
        "a", "", "", "bca", "",
    ]  # fmt: skip
    assert sent.more([5, 6, 7, 5, EOS, 6], (EOS,)) == "" and sent.sent == "abca"
    with pytest.raises(RunError, match="without stream"):
        sent.rest(Generation("x", [], [], "other", 1, {}, {}, 0.1, "eos"))


def test_a_conversation_is_rendered_in_the_models_markup(client):
    turns = [{"role": "user", "content": [{"type": "text", "text": "abc"}]}]
    answer = client.post("/v1/chat/completions", json={"messages": turns, "max_completion_tokens": 6}).json()
    alone = tiny_engine().generate([Request("x", tuple(Letters().encode("u:abc;")), 6)])[0]
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": alone.text}
    assert answer["object"] == "chat.completion"


def test_a_server_says_what_it_is(client):
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/info").json()["limits"]["queue"] == 4
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path, body, status, says",
    [
        ("/v1/completions", {"prompt": "abc", "temperature": 1.0}, 400, "start the server with --temperature 1.0"),
        ("/v1/completions", {"prompt": "abc", "max_tokens": 21}, 400, "at most 20"),
        ("/v1/completions", {"prompt": "a" * 35}, 400, "40 are kept"),
        ("/v1/completions", {"prompt": "abc", "n": 2}, 400, "n:"),
        ("/v1/completions", {"prompt": ["abc", "x"], "stream": True}, 400, "stream takes one prompt"),
        ("/v1/completions", {"prompt": "abc", "stream": True, "max_tokens": 21}, 400, "at most 20"),
        ("/v1/completions", {"prompt": "abc", "logit_bias": {}}, 400, "logit_bias:"),
        ("/v1/completions", {"prompt": "abc", "model": "other"}, 404, "this server has 'tiny'"),
        ("/v1/completions", {"prompt": ["abc"] * 5}, 400, "at most 4 wait"),
        ("/v1/completions", {"prompt": [MASK]}, 400, "mask token"),
        ("/v1/completions", {"prompt": [100_000]}, 400, "vocabulary"),
        ("/v1/completions", {"prompt": "a" * 2000}, 413, "2000 are read"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages:"),
        ("/generate", {}, 400, "exactly one"),
        ("/generate", {"prompt": "a", "seed": -1}, 400, "seed:"),
        ("/generate", {"prompt": "a", "max_tokens": "16"}, 400, "valid integer"),
        ("/generate", {"prompt": "a", "max_tokens": True}, 400, "valid integer"),
        ("/generate", {"prompt": "a", "temperature": False}, 400, "valid number"),
        ("/generate", {"prompt": "a", "stop": ""}, 400, "at least 1 character"),
        ("/generate", {"prompt": "a", "stop": [""]}, 400, "at least 1 character"),
        ("/generate", {"prompt": "a", "stop": ["b"] * 17}, 400, "at most 16 items"),
        ("/v1/completions", {"prompt": [True, 5]}, 400, "prompt:"),
        ("/v1/completions", {"prompt": []}, 400, "at least 1 item"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(client, path, body, status, says):
    answer = client.post(path, json=body)
    assert answer.status_code == status and says in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize("path, said", [
    ("/generate", b'"prompt": "a\\ud800b"'), ("/v1/completions", b'"prompt": "a\\ud800b"'),
    ("/v1/completions", b'"prompt": ["a\\ud800b"]'), ("/generate", b'"prompt": "a", "stop": "\\ud800"'),
    ("/v1/chat/completions", b'"messages": [{"role": "user", "content": "a\\ud800b"}]'),
])  # fmt: skip
def test_half_a_character_is_refused(client, path, said):
    answer = client.post(path, content=b"{%b}" % said, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "unicode" in answer.json()["error"]["message"], answer.text


def test_a_body_that_is_no_json_is_refused(client):
    answer = client.post("/generate", content=b'{"prompt": "a', headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "The body is no JSON.")


def test_a_body_that_does_not_say_that_it_is_json_is_told_how(client):
    answer = client.post("/generate", content=b'{"prompt": "a"}')
    assert answer.status_code == 400 and "content-type: application/json" in answer.json()["error"]["message"]


def test_a_body_that_does_not_tell_its_size_is_bounded_too(client):
    answer = client.post(
        "/generate", content=(b" " * 500 for _ in range(6)), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


# --- the worker, over an engine that answers when it is told ----------------------------------------------------------


class Gate:
    """An engine that holds its rows until `opened`."""

    batch_size, sampling, tokenizer = 2, SimpleNamespace(temperature=0.0, top_k=0, top_p=1.0), Letters()
    text, target = Text(Letters()), SimpleNamespace(config=SimpleNamespace(eos_ids=(EOS,)))

    def __init__(self):
        self.opened, self.given_up, self.fails, self.seen = threading.Event(), [], None, []

    def check(self, request, max_length, max_tokens):
        if request.max_tokens > max_tokens:
            raise RequestError("too many")

    def serve(self, source, on_finish, *, max_length, max_tokens, on_block):
        rows: dict[int, Request] = {}
        while True:
            arrived = source(self.batch_size - len(rows), not rows)
            assert isinstance(arrived, Arrivals)
            rows.update(arrived.requests)
            self.seen += [number for number, _ in arrived.requests]
            for number in arrived.unwanted:
                self.given_up.append(number)
                rows.pop(number, None)
            if not rows and not arrived.requests and not arrived.unwanted:
                return
            if self.fails:
                error, self.fails = self.fails, None
                raise error
            if self.opened.wait(0.005):
                for number, request in rows.items():
                    on_finish(number, Generation(request.key, [5], [5], "5", 1, {}, {}, 0.01, "eos"))
                rows.clear()

    def release(self):
        self.released = True


def request(tokens=4):
    return Request("x", (5,), tokens)


@pytest.fixture
def gate():
    engine = Gate()
    worker = EngineWorker(engine, LIMITS)
    worker.start()
    yield worker
    engine.opened.set()
    worker.stop(2.0)


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come to pass")


def test_a_full_queue_refuses_and_takes_none_of_several(gate):
    tickets = gate.submit([request(), request()])
    until(lambda: len(gate.engine.seen) == 2)
    tickets += gate.submit([request()] * 3)
    with pytest.raises(Full, match="queue of 4"):
        gate.submit([request(), request()])
    tickets += gate.submit([request()])
    gate.engine.opened.set()
    assert [ticket.future.result(5).text for ticket in tickets] == ["5"] * 6


def test_who_leaves_frees_the_queue_and_the_row(gate):
    rows = gate.submit([request(), request()])
    until(lambda: len(gate.engine.seen) == 2)
    waiting = gate.submit([request()] * 4)
    gate.cancel([rows[0], waiting[0]])
    until(lambda: gate.engine.given_up == [0])
    gate.engine.opened.set()
    assert waiting[1].future.result(5).text == "5"
    assert rows[0].future.cancelled() and waiting[0].future.cancelled() and 2 not in gate.engine.seen


def test_what_the_engine_raises_ends_its_rows_and_the_next_ones_are_served(gate):
    gate.engine.fails = RunError("no numbers")
    with pytest.raises(RunError, match="no numbers"):
        gate.submit([request()])[0].future.result(5)
    gate.engine.opened.set()
    assert gate.submit([request()])[0].future.result(5).text == "5"


def test_a_stop_refuses_what_waits_and_finishes_what_is_under_way(gate):
    rows = gate.submit([request(), request()])
    until(lambda: len(gate.engine.seen) == 2)
    waiting = gate.submit([request()])[0]
    threading.Timer(0.05, gate.engine.opened.set).start()
    gate.stop(5.0)
    assert [row.future.result(0).text for row in rows] == ["5", "5"]
    with pytest.raises(Stopping):
        waiting.future.result(0)
    with pytest.raises(Stopping):
        gate.submit([request()])


def test_a_stop_refuses_rows_that_take_too_long(gate):
    rows = gate.submit([request(), request()])
    until(lambda: len(gate.engine.seen) == 2)
    gate.stop(0.01)
    with pytest.raises(Stopping):
        rows[0].future.result(0)


def test_over_http_a_full_queue_says_when_to_come_back_and_a_stop_answers_everybody(gate):
    with running(gate) as http:
        answers = []

        def ask():
            answers.append(http.post("/generate", json={"prompt": "a"}))

        askers = [threading.Thread(target=ask) for _ in range(6)]
        for asker in askers:
            asker.start()
        until(lambda: len(gate.engine.seen) == 2 and len(gate._waiting) == 4)
        busy = http.post("/generate", json={"prompt": "a"})
        assert busy.status_code == 429 and int(busy.headers["Retry-After"]) >= 1
        threading.Timer(0.1, gate.engine.opened.set).start()
        http.server.handle_exit(15, None)
        for asker in askers:
            asker.join(10)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503, 503]


def test_a_client_that_leaves_gives_its_row_up(gate, caplog):
    with running(gate) as http:
        with pytest.raises(httpx.TimeoutException):
            http.post("/generate", json={"prompt": "a"}, timeout=0.1)
        until(lambda: gate.engine.given_up == [0])
    gc.collect()  # what nobody asked for is told when it goes
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_a_reader_that_leaves_a_stream_gives_its_row_up(gate, caplog):
    with running(gate) as http:
        with http.stream("POST", "/v1/chat/completions", json={"messages": [USER], "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)  # the connection is closed with what reads it
            until(lambda: len(gate.engine.seen) == 1)
        until(lambda: gate.engine.given_up == [0])
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_a_stream_that_has_begun_ends_with_its_error(gate):
    with running(gate) as http:
        threading.Timer(0.1, gate.stop, args=(0.01,)).start()
        with http.stream("POST", "/v1/chat/completions", json={"messages": [USER], "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert "The server is stopping" in lines[-1] and "[DONE]" not in lines[-1]


def test_an_answer_that_takes_too_long_is_given_up():
    engine = Gate()
    worker = EngineWorker(engine, Limits(20, 40, 4, seconds=0.05))
    worker.start()
    with running(worker) as http:
        answer = http.post("/generate", json={"prompt": "a"})
        assert answer.status_code == 504 and "0.05 s" in answer.json()["error"]["message"]
        until(lambda: engine.given_up == [0])
