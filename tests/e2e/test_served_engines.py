"""Servers that others wrote, clients that others wrote, and many clients at once: slow. pytest -m slow FILE"""

import os
import shutil
import signal
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx2")

from serving import dlmbench, free_port, process  # noqa: E402

from dlmbench.engine import Request, build  # noqa: E402
from dlmbench.engine.prompts import prompt_ids  # noqa: E402
from dlmbench.models.presets import resolve  # noqa: E402
from dlmbench.request import RunSpec  # noqa: E402
from dlmbench.runs import served  # noqa: E402
from dlmbench.runs.folder import RunFolder  # noqa: E402
from dlmbench.runs.local import run_all  # noqa: E402
from dlmbench.tasks import load_task  # noqa: E402

pytestmark = pytest.mark.slow
CLIENTS, SECONDS = 64, float(os.environ.get("DLMBENCH_LOAD_SECONDS", 30))
ITEMS = 50


@pytest.mark.skipif(not all(map(find_spec, ("openai", "accelerate"))), reason="transformers[serving] is not installed")
def test_a_server_of_transformers_makes_the_row_of_ar(tmp_path, monkeypatch):
    for name in ("ROUNDS", "WARM", "SPEED_REPEATS"):
        monkeypatch.setattr(served, name, 1)
    folder, preset, port = tmp_path / "nano2-ar", resolve("nano2-ar"), free_port()
    for place in (preset.tokenizer_location, preset.location):
        shutil.copytree(place, folder, dirs_exist_ok=True)
    own = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), *own]
    asked = {"limit": ITEMS, "concurrency": 2, "model": str(folder), "out": str(tmp_path / "out")}
    (tmp_path / "hub").mkdir()  # it lists the hub's cache, and fails where there is none
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with process(command, port) as (_, url):
        [run] = served.ServedRunner().run([RunSpec("served", "nano-gsm", server=url, api="openai", **asked).resolve()])
    here = RunSpec(
        "ar", "nano-gsm", model="nano2-ar", against=(), limit=ITEMS, dtype="float32", out=str(tmp_path / "b")
    )
    [ours] = map(RunFolder, run_all([here]))
    assert ours.metrics.accuracy_low <= run.metrics.accuracy <= ours.metrics.accuracy_high
    same = {sample.key: sample.text for sample in ours.samples}
    assert sum(same[sample.key] == sample.text for sample in run.samples) >= 0.9 * ITEMS
    assert run.metrics.nfe is run.metrics.tpf is run.metrics.cost is None and run.manifest.server.api == "openai"


@pytest.mark.skipif(find_spec("tenacity") is None, reason="lm-eval[api] is not installed")
def test_lm_evals_own_client_gets_our_accuracy(tmp_path):
    import lm_eval
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    task = load_task("nano-gsm")
    with dlmbench("--method", "threshold", "--threshold", 0.9, "--batch-size", 16) as (_, url):
        client = LocalCompletionsAPI(
            model="nano2", base_url=f"{url}/v1/completions", tokenizer_backend=None, tokenized_requests=False,
            num_concurrent=16,
        )  # fmt: skip
        found = lm_eval.simple_evaluate(client, tasks=[task.lm_task], limit=ITEMS, bootstrap_iters=0)
    here = RunSpec("threshold", "nano-gsm", threshold=0.9, against=(), limit=ITEMS, out=str(tmp_path))
    [ours] = map(RunFolder, run_all([here]))
    assert found["results"]["nano-gsm"][task.primary] == pytest.approx(ours.metrics.accuracy)


def test_many_clients_lose_nothing_and_a_stop_in_the_middle_answers_everybody():
    """No lost or doubled answer, memory flat, every refusal with its reason; who waits at a SIGTERM is answered."""
    engine = build(RunSpec("threshold", "nano-gsm", threshold=0.9, against=(), device="cpu").resolve())
    items = load_task("nano-gsm").items("test", 24)
    prompts = [prompt_ids(engine.tokenizer, item.prompt, False) for item in items]
    expected = [one.ids for one in engine.generate([Request(str(n), ids, 64) for n, ids in enumerate(prompts)])]
    answers, began, stop = [], {}, threading.Event()

    def ask(client):
        with httpx.Client(trust_env=False, timeout=60) as http:
            for turn in range(10**6):
                number, name = (client + turn) % len(prompts), (client, turn)
                if stop.is_set():
                    return
                began[name] = time.monotonic()
                try:
                    body = {"prompt_ids": prompts[number], "max_tokens": 64}
                    answer = http.post(f"{url}/generate", json=body, headers={"Connection": "close"})
                    answers.append((name, number, answer.status_code, answer.json()))
                except httpx.TransportError as error:
                    answers.append((name, number, None, str(error)))
                    if stopped:
                        return

    with dlmbench("--method", "threshold", "--threshold", 0.9, "--batch-size", 16) as (server, url):
        stopped: list[float] = []
        clients = [threading.Thread(target=ask, args=(client,)) for client in range(CLIENTS)]
        for client in clients:
            client.start()
        while len(answers) < CLIENTS:  # all buffers have been made by then
            assert any(client.is_alive() for client in clients)
            time.sleep(0.1)
        before = _resident(server.pid)
        time.sleep(SECONDS)
        after = _resident(server.pid)
        stopped.append(time.monotonic())
        server.send_signal(signal.SIGTERM)
        stop.set()
        for client in clients:
            client.join(10)
        assert not any(client.is_alive() for client in clients) and time.monotonic() - stopped[0] < 10
        server.wait(10)
    assert after < 1.05 * before + (8 << 20), (before, after)
    assert len({name for name, *_ in answers}) == len(answers) == len(began)
    for name, number, status, record in answers:
        if status == 200:
            assert record["ids"] == expected[number]
        elif status is None:
            assert began[name] > stopped[0] - 0.2, record  # refused at the door
        else:
            assert status in (429, 503) and record["error"]["message"].endswith("."), (status, record)
    assert sum(status == 200 for _, _, status, _ in answers) >= CLIENTS


def _resident(pid):
    """Bytes of memory."""
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
