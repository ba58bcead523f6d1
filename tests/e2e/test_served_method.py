"""The loop closed: a decoder that is asked over HTTP makes the row of the one in this process, item by item.

pytest tests/e2e/test_served_method.py              threshold, 16 at a time, 40 items
pytest tests/e2e/test_served_method.py -m ""        static and mrp too, one at a time too, all on 200 items
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
from dlmbench.runs import served as served_runs  # noqa: E402
from dlmbench.tasks import load_task  # noqa: E402
from dlmbench.tasks.lm import evaluate  # noqa: E402

METHODS = {"threshold": ["--threshold", "0.9"], "static": [], "mrp": []}
QUICK = ("threshold", 16, 40)
CASES = [
    QUICK,
    *(pytest.param((method, rows, 200), marks=pytest.mark.slow) for method in METHODS for rows in (16, 1)),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def served(request):
    """(method, rows, items, url) of a server of its own process, stopped by SIGTERM in the end."""
    method, rows, items = request.param
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
    yield method, rows, items, url
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) in (0, -signal.SIGTERM)


def test_ids_scores_and_forwards_are_those_of_this_process(served, tmp_path, monkeypatch):
    method, concurrency, items, url = served
    monkeypatch.setattr(served_runs, "ROUNDS", 1)  # of the timed passes, which are not looked at here
    monkeypatch.setattr(served_runs, "WARM", 1)
    monkeypatch.setattr(served_runs, "SPEED_REPEATS", 1)
    threshold = 0.9 if method == "threshold" else None
    here = RunSpec(method, "nano-gsm", threshold=threshold, batch_size=16, device="cpu", dtype="float32").resolve()
    there = RunSpec(
        "served", "nano-gsm", limit=items, server=url, api="dlmbench", concurrency=concurrency, out=str(tmp_path)
    ).resolve()
    [folder] = served_runs.ServedRunner().run([there])
    task = load_task("nano-gsm")
    found = evaluate(task, build(here), task.items("test", items))
    ours = {sample.key: sample for sample in folder.samples}
    assert len(ours) == items and folder.metrics.items == items and folder.manifest.label.startswith(here.label)
    for item, generation, scores in found:
        sample = ours[item.key]
        assert (sample.ids, sample.text, sample.tokens) == (generation.ids, generation.text, generation.tokens)
        assert (sample.scores, sample.stop_reason) == (scores, generation.stop_reason)
        assert sample.nfe == sample.report.nfe == _nfe(generation) and sample.forwards == generation.forward_counts
        assert sample.report.cost > 0
    assert folder.metrics.nfe == pytest.approx(sum(_nfe(one) for _, one, _ in found) / items)


def _nfe(generation):
    return sum(n["calls"] for kind, n in generation.counts["target"].items() if kind != "prefill")
