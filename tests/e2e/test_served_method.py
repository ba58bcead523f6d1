"""The loop closed: a decoder that is asked over HTTP makes the row of the one in this process, item by item.

pytest tests/e2e/test_served_method.py              threshold, 3 at a time, 5 items
pytest tests/e2e/test_served_method.py -m ""        static and mrp too, one at a time too, all on 200 items
"""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")

from serving import dlmbench  # noqa: E402

from dlmbench.engine import build  # noqa: E402
from dlmbench.request import RunSpec  # noqa: E402
from dlmbench.runs import served  # noqa: E402
from dlmbench.tasks import load_task  # noqa: E402
from dlmbench.tasks.evaluate import evaluate  # noqa: E402

METHODS = {"threshold": ["--threshold", "0.9"], "static": [], "mrp": []}
CASES = [
    ("threshold", 3, 5),
    *(pytest.param(method, rows, 200, marks=pytest.mark.slow) for method in METHODS for rows in (16, 1)),
]


@pytest.mark.parametrize("method, concurrency, items", CASES)
def test_ids_scores_and_forwards_are_those_of_this_process(method, concurrency, items, tmp_path, monkeypatch):
    for name in ("ROUNDS", "WARM", "SPEED_REPEATS"):  # of the timed passes, which are not looked at here
        monkeypatch.setattr(served, name, 1)
    threshold = 0.9 if method == "threshold" else None
    here = RunSpec(method, "nano-gsm", threshold=threshold, batch_size=16, device="cpu", dtype="float32").resolve()
    asked = {"limit": items, "api": "dlmbench", "concurrency": concurrency, "out": str(tmp_path)}
    with dlmbench("--method", method, *METHODS[method], "--batch-size", concurrency) as (process, url):
        [folder] = served.ServedRunner().run([RunSpec("served", "nano-gsm", server=url, **asked).resolve()])
    assert process.returncode in (0, -15)
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
