"""What a run keeps for the readers of a report. Run: pytest tests/e2e/test_traces.py"""

import json

import pytest
from tiny import make_data, make_model

from dlmbench.request import RunSpec
from dlmbench.runs.local import LocalRunner
from dlmbench.runs.prompts import read_prompts


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    spec = RunSpec(
        method="threshold", task="gsm8k", threshold=0.01, model=make_model(folder / "tiny"), num_fewshot=0,
        data_dir=make_data(folder / "data", 6), gen_length=24, block_length=8, batch_size=3, device="cpu",
        out=str(folder / "out"), against=(),
    )  # fmt: skip
    return spec.resolve()


def test_the_first_items_are_traced_and_their_steps_make_their_ids(cell):
    run = LocalRunner(traces=2).run_one(cell)
    samples = {sample.key: sample for sample in run.samples}
    traces = run.traces
    assert [trace.key for trace in traces] == ["test/0", "test/1"] and len(samples) == 6
    for trace in traces:
        canvas = {}
        for step in trace.steps:
            canvas.update(zip(step["positions"], step["tokens"]))
        ids = samples[trace.key].ids
        assert trace.same_ids and trace.ids == ids
        assert [canvas[trace.start + i] for i in range(len(ids))] == ids
        assert {str(token) for token in ids} <= trace.words.keys()


def test_every_prompt_and_right_answer_is_kept_once(cell):
    run = LocalRunner(traces=2).run_one(cell)
    prompts = read_prompts(run)
    assert len(prompts) == 6 and prompts["test/3"]["target"].endswith("#### 8")
    assert "What is 3 plus 5?" in prompts["test/3"]["prompt"]
    assert len(list(run.path.parent.glob("prompts-*.jsonl"))) == 1


def test_a_finished_run_gets_the_traces_it_lacks_and_nothing_else_changes(cell):
    run = LocalRunner(traces=2).run_one(cell)
    before = {name: (run.path / name).read_bytes() for name in ("manifest.json", "samples.jsonl", "metrics.json")}
    first = run.traces
    LocalRunner(traces=3).run_one(cell)
    assert len(run.traces) == 3 and run.traces[:2] == first
    assert before == {name: (run.path / name).read_bytes() for name in before}
    LocalRunner(traces=1).run_one(cell)
    assert len(run.traces) == 3


def test_trace_files_are_strict_json_with_short_numbers(cell):
    run = LocalRunner(traces=2).run_one(cell)
    text = (run.path / "traces.jsonl").read_text()
    refuse = {"parse_constant": lambda name: pytest.fail(name)}
    numbers = [
        score
        for line in text.splitlines()
        for step in json.loads(line, **refuse)["steps"]
        for score in step["scores"]["confidence"]
    ]
    assert numbers and all(len(f"{number:.9g}".lstrip("0.").split("e")[0]) <= 6 for number in numbers)
