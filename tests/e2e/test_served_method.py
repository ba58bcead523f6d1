"""The loop closed: a decoder that is asked over HTTP answers like the one in this process, item by item.

pytest tests/e2e/test_serve.py              threshold, 16 at a time, 20 items
pytest tests/e2e/test_serve.py -m ""        static too, one at a time too, and 200 items
"""

import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx2")

from dlmbench.engine import build  # noqa: E402
from dlmbench.request import RunSpec  # noqa: E402
from dlmbench.serve.apis import Ask  # noqa: E402
from dlmbench.serve.client import Client  # noqa: E402
from dlmbench.tasks import load_task  # noqa: E402
from dlmbench.tasks.evaluate import request_of  # noqa: E402

METHODS = {"threshold": ["--threshold", "0.9"], "static": []}


CASES = [
    ("threshold", 16),
    *(pytest.param(case, marks=pytest.mark.slow) for case in [("threshold", 1), ("static", 16), ("static", 1)]),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def served(request):
    """(method, rows, url) of a server of its own process, stopped by SIGTERM in the end."""
    method, rows = request.param
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--method", method, *METHODS[method], "--batch-size", str(rows), "--device", "cpu", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dlmbench", "serve", *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        try:
            httpx.get(f"{url}/health", trust_env=False)
            break
        except httpx.TransportError:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
    yield method, rows, url
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("items", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_ids_scores_and_forwards_are_those_of_this_process(served, items):
    method, concurrency, url = served
    threshold = 0.9 if method == "threshold" else None
    run = RunSpec(
        method=method, task="nano-gsm", threshold=threshold, batch_size=16, device="cpu", dtype="float32"
    ).resolve()
    task = load_task("nano-gsm")
    engine = build(run)
    chosen = list(task.items("test", items))
    requests = [request_of(task, engine, item) for item in chosen]
    here = engine.generate(requests)
    with Client(url, "dlmbench") as client:
        there = client.ask_all([_ask(item, request) for item, request in zip(chosen, requests)], concurrency)
        assert client.about()["label"] == run.label
    assert [reply.ids for reply in there] == [tuple(one.ids) for one in here]
    assert [reply.text for reply in there] == [one.text for one in here]
    assert [reply.nfe for reply in there] == [_nfe(one) for one in here]
    assert [reply.tokens for reply in there] == [one.tokens for one in here]
    assert [task.score(item, reply.text) for item, reply in zip(chosen, there)] == [
        task.score(item, one.text) for item, one in zip(chosen, here)
    ]
    assert all(reply.cost for reply in there)


def _ask(item, request):
    return Ask(item.prompt, request.prompt_ids, request.max_tokens, request.stop, request.seed, 0.0)


def _nfe(generation):
    return sum(n["calls"] for kind, n in generation.counts["target"].items() if kind != "prefill")
