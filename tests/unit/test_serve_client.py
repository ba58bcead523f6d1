"""The client of servers: each interface's reply, and servers that misbehave. pytest tests/unit/test_serve_client.py"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("httpx2")

from dlmbench.errors import RequestError, RunError  # noqa: E402
from dlmbench.runs.record import EngineReport, ServerFacts  # noqa: E402
from dlmbench.serve.apis import INTERFACES, Ask, BadReply  # noqa: E402
from dlmbench.serve.client import Client  # noqa: E402

ASK = Ask("2+3=", (5, 6, 7), 8, ("\n",), seed=1, temperature=0.0)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
COMPLETION = {"choices": [{"index": 0, "text": "5", "finish_reason": "stop"}], "usage": USAGE}
SGLANG = {
    "text": "5", "output_ids": [8, 1],
    "meta_info": {"finish_reason": {"type": "stop", "matched": 1}, "prompt_tokens": 3, "completion_tokens": 2,
                  "e2e_latency": 0.1},
}  # fmt: skip
DIFFULEX = {
    "id": "0",
    "text": "5\nmore",
    "token_ids": [8, 9, 1],
    "nfe": 2,
    "finish_reason": None,
    "full_text": "5\nmore",
}


@pytest.fixture
def server():
    """A server that answers whatever function is put into `answer`; `asked` keeps the bodies."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.asked.append(json.loads(body))
            self.server.answer(self)

        def do_GET(self):
            send(self, self.server.told.get(self.path, {}))

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    found.asked, found.told, found.released = [], {"/v1/models": {"data": [{"id": "m"}]}}, threading.Event()
    found.url = f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield found
    found.released.set()
    found.shutdown()
    found.server_close()


def send(handler, record, status=200, headers=(), cut_at=None):
    body = record if isinstance(record, bytes) else json.dumps(record).encode()
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:cut_at])
    if cut_at is not None:
        handler.wfile.flush()
        handler.connection.close()


def client(server, api="openai", **options):
    slept = []
    found = Client(server.url, api, timeout=5, sleep=slept.append, **options)
    found.slept = slept
    return found


@pytest.mark.parametrize("api", ["openai", "vllm", "lmdeploy"])
def test_a_completion_is_read_and_has_no_forwards(server, api):
    server.answer = lambda handler: send(handler, COMPLETION)
    reply = client(server, api).ask(ASK)
    assert (reply.text, reply.ended, reply.ids) == ("5", "stop", None)
    assert reply.report == EngineReport(tokens=2, prompt_tokens=3)
    prompt = [5, 6, 7] if api == "vllm" else "2+3="
    assert server.asked == [
        {"model": "m", "prompt": prompt, "max_tokens": 8, "stop": ["\n"], "seed": 1, "temperature": 0.0}
    ]


def test_seed_and_temperature_that_are_not_given_are_not_sent(server):
    server.answer = lambda handler: send(handler, COMPLETION)
    client(server, "vllm").ask(Ask("2+3=", (5, 6, 7), 8))
    assert server.asked == [{"model": "m", "prompt": [5, 6, 7], "max_tokens": 8}]


@pytest.mark.parametrize(
    "told, nfe",
    [
        ({}, None), ({"dllm_forward_counts": 7}, 7), ({"dllm_forward_counts_per_block": [3, 4]}, 7), ({"nfe": 7}, 7),
    ],
)  # fmt: skip
def test_sglang_reports_forwards_or_does_not(server, told, nfe):
    server.answer = lambda handler: send(handler, {**SGLANG, "meta_info": {**SGLANG["meta_info"], **told}})
    reply = client(server, "sglang").ask(ASK)
    assert (reply.ids, reply.report.nfe) == ((8, 1), nfe)
    assert server.asked[0] == {
        "input_ids": [5, 6, 7],
        "sampling_params": {"max_new_tokens": 8, "stop": ["\n"], "sampling_seed": 1, "temperature": 0.0},
    }


def test_diffulex_reports_forwards_and_its_text_is_cut_here(server):
    server.answer = lambda handler: send(handler, DIFFULEX)
    reply = client(server, "diffulex").ask(ASK)
    assert (reply.text, reply.report, reply.ids) == ("5", EngineReport(3, None, 2), (8, 9, 1))
    assert server.asked[0] == {"prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0.0, "stream": False}


def test_what_a_server_tells_is_kept_without_places_and_keys(server):
    server.told["/get_server_info"] = {
        "version": "0.5.9", "model_path": "/home/x/m", "api_key": "secret", "host": "h", "max_running_requests": 1,
        "dllm_algorithm": "LowConfidence", "dllm_algorithm_config": "/etc/a.yaml",
    }  # fmt: skip
    flags = {"max_running_requests": 1, "dllm_algorithm": "LowConfidence", "dllm_algorithm_config": "a.yaml"}
    assert client(server, "sglang").about() == ServerFacts("sglang", "m", "0.5.9", flags)


def test_a_refused_request_ends_at_once_with_the_servers_sentence(server):
    server.answer = lambda handler: send(handler, {"error": {"message": "seed is not supported"}}, 400)
    with pytest.raises(RunError, match="HTTP 400: seed is not supported"):
        client(server).ask(ASK)
    assert len(server.asked) == 1


@pytest.mark.parametrize("refused, left", [(("seed",), {"temperature": 0.0}), (("seed", "temperature"), {})])
def test_sampling_fields_that_are_refused_are_found_out_and_left_out(server, refused, left):
    def answer(handler):
        wrong = [name for name in refused if name in server.asked[-1]]
        send(handler, {"message": f"{wrong[0]} is not supported"} if wrong else COMPLETION, 400 if wrong else 200)

    server.answer = answer
    asking = client(server, "vllm")
    asking.try_out(ASK)
    assert asking.withheld == refused
    asking.ask(ASK)
    assert server.asked[-1] == {"model": "m", "prompt": [5, 6, 7], "max_tokens": 8, "stop": ["\n"], **left}


def test_our_own_server_is_not_asked_without_what_it_refuses(server):
    server.answer = lambda handler: send(
        handler, {"message": "temperature is 0.0, and this server decodes with 1.2"}, 400
    )
    with pytest.raises(RunError, match="decodes with 1.2"):
        client(server, "dlmbench").try_out(ASK)


def test_any_other_refusal_ends_the_try(server):
    server.answer = lambda handler: send(handler, {"message": "max_tokens is too large"}, 400)
    with pytest.raises(RunError, match="max_tokens is too large"):
        client(server).try_out(ASK)


def test_a_server_that_comes_back_as_another_ends_the_run(server):
    server.told["/version"] = {"version": "1"}

    def answer(handler):
        again = len(server.asked) > 1
        server.told["/version"] = {"version": "2"}
        send(handler, COMPLETION, cut_at=None if again else 20)

    server.answer = answer
    asking = client(server, "vllm")
    asking.about()
    with pytest.raises(RunError, match="version changed"):
        asking.ask(ASK)


def test_a_failing_server_ends_at_once(server):
    server.answer = lambda handler: send(handler, b"oops", 500)
    with pytest.raises(RunError, match="HTTP 500: oops"):
        client(server).ask(ASK)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again_when_it_says(server):
    def answer(handler):
        busy = len(server.asked) < 3
        send(handler, {"detail": "full"} if busy else COMPLETION, 429 if busy else 200, [("Retry-After", "7")])

    server.answer = answer
    asking = client(server)
    assert asking.ask(ASK).text == "5" and asking.slept == [7.0, 7.0]


def test_a_server_that_stays_busy_ends_the_run(server):
    server.answer = lambda handler: send(handler, {"detail": "full"}, 429)
    asking = client(server)
    with pytest.raises(RunError, match="HTTP 429: full"):
        asking.ask(ASK)
    assert asking.slept == [1.0, 2.0, 4.0]


def test_a_server_that_hangs_ends_the_run_after_its_tries(server):
    server.answer = lambda handler: server.released.wait(5)
    asking = Client(server.url, "sglang", timeout=0.05, tries=2, sleep=lambda _: None)
    with pytest.raises(RunError, match="no answer in time"):
        asking.ask(ASK)


def test_an_answer_that_breaks_off_is_asked_for_again(server):
    def answer(handler):
        send(handler, COMPLETION, cut_at=20 if len(server.asked) == 1 else None)

    server.answer = answer
    assert client(server).ask(ASK).text == "5" and len(server.asked) == 2


def test_half_a_json_is_no_answer(server):
    server.answer = lambda handler: send(handler, json.dumps(COMPLETION).encode()[:30])
    with pytest.raises(RunError, match="no JSON"):
        client(server).ask(ASK)


def test_nobody_there_is_said(server):
    asking = Client("http://127.0.0.1:9", "sglang", tries=2, sleep=lambda _: None)
    with pytest.raises(RunError, match="ConnectError"):
        asking.ask(ASK)


def changed(record, **parts):
    return {**record, **parts}


@pytest.mark.parametrize(
    "api, record, says",
    [
        ("openai", changed(COMPLETION, choices=[]), "no list of one answer"),
        ("openai", changed(COMPLETION, usage=None), "usage is missing"),
        ("openai", changed(COMPLETION, usage={**USAGE, "completion_tokens": 9}), "9 tokens came and 8"),
        ("openai", changed(COMPLETION, usage={**USAGE, "completion_tokens": 0}), "no token is counted"),
        ("openai", changed(COMPLETION, choices=[{"text": "", "finish_reason": None}]), "not whole"),
        ("openai", changed(COMPLETION, choices=[{"text": None, "finish_reason": "stop"}]), "no text"),
        (
            "openai",
            changed(COMPLETION, usage={**USAGE, "prompt_tokens": 4}),
            "prompt of 4 tokens and our tokenizer makes 3",
        ),
        ("sglang", changed(SGLANG, output_ids=[8]), "2 tokens are counted and 1 ids came"),
        ("sglang", changed(SGLANG, meta_info={**SGLANG["meta_info"], "finish_reason": {"type": "abort"}}), "'abort'"),
        ("sglang", changed(SGLANG, meta_info={**SGLANG["meta_info"], "nfe": "7"}), "nfe is '7'"),
        ("diffulex", changed(DIFFULEX, token_ids=[]), "no token"),
        ("diffulex", changed(DIFFULEX, nfe=None), "nfe is None"),
    ],
)
def test_an_answer_whose_parts_do_not_fit_ends_the_run(server, api, record, says):
    server.answer = lambda handler: send(handler, record)
    with pytest.raises(RunError, match=says):
        client(server, api).ask(ASK)


def test_the_first_error_ends_many_requests_and_answers_that_came_were_told(server):
    def answer(handler):
        wrong = server.asked[-1]["max_tokens"] == 9
        send(handler, {"detail": "no"} if wrong else COMPLETION, 400 if wrong else 200)

    server.answer, told = answer, []
    asks = [ASK, Ask("x", (5,), 9), *[ASK] * 50]
    with pytest.raises(RunError, match="no"):
        client(server).ask_all(asks, 1, lambda number, answer: told.append(number))
    assert told[0] == 0 and 1 not in told and len(told) < len(asks) - 1


def test_wrong_names_are_refused_before_anything_is_sent():
    with pytest.raises(RequestError, match="--api"):
        Client("http://x", "tgi")
    with pytest.raises(RequestError, match="--server"):
        Client("localhost:80", "vllm")
    with pytest.raises(BadReply):
        INTERFACES["openai"].parse({})
