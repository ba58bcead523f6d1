"""Runs whose answers a server gives: rows, refusals, resuming. pytest tests/unit/test_served_runs.py"""

import json

import pytest

httpx = pytest.importorskip("httpx2")

from stub_server import StubServer  # noqa: E402

from dlmbench.analysis.load import Results  # noqa: E402
from dlmbench.analysis.served import beside  # noqa: E402
from dlmbench.cli.served import all_served, method_of  # noqa: E402
from dlmbench.engine.build import tokenizer_alone  # noqa: E402
from dlmbench.errors import RequestError, RunError  # noqa: E402
from dlmbench.models.presets import resolve  # noqa: E402
from dlmbench.report.columns import record, table_columns  # noqa: E402
from dlmbench.report.html import write_report  # noqa: E402
from dlmbench.report.markdown import write_table  # noqa: E402
from dlmbench.request import RunSpec, SweepSpec  # noqa: E402
from dlmbench.request.run_spec import APIS  # noqa: E402
from dlmbench.runs.folder import RunFolder  # noqa: E402
from dlmbench.runs.record import Manifest, Sample, plain, typed  # noqa: E402
from dlmbench.runs.served import Client, Pass, ServedRunner, request_times  # noqa: E402
from dlmbench.serve.apis import INTERFACES  # noqa: E402
from dlmbench.serve.client import Timed  # noqa: E402
from dlmbench.tasks import load_task  # noqa: E402

ITEMS = 10


@pytest.fixture(scope="module")
def task():
    return load_task("nano-gsm")


@pytest.fixture
def stub(task):
    items = task.items("test", ITEMS)
    found = StubServer(tokenizer_alone(resolve("nano2")), {item.prompt: task.target(item) for item in items})
    yield found
    found.close()


def asked(stub, out, api="sglang", **more):
    return RunSpec("served", "nano-gsm", limit=ITEMS, server=stub.url, api=api, out=str(out), **more).resolve()


def impatient(run):
    return Client(run.spec.server, run.spec.api, run.spec.model, timeout=5, tries=2, sleep=lambda _: None)


def made(stub, out, api="sglang", **more):
    return ServedRunner(connect=impatient).run([asked(stub, out, api, **more)])[0]


def test_every_interface_has_a_reader():
    assert set(INTERFACES) == set(APIS)


@pytest.mark.parametrize("api, nfe", [("sglang", None), ("vllm", None), ("lmdeploy", None), ("openai", None),
                                      ("diffulex", True)])  # fmt: skip
def test_the_replies_of_every_engine_make_a_row(stub, tmp_path, api, nfe):
    run = made(stub, tmp_path, api, concurrency=4)
    assert [sample.accuracy for sample in run.samples] == [1.0] * ITEMS
    tokens = {item: len(stub.tokenizer.encode(text)) + 1 for item, text in stub.answers.items()}
    assert sorted(sample.tokens for sample in run.samples) == sorted(tokens.values())
    row = Results([run]).rows[0]
    assert (row.batch_size, row.metrics.accuracy) == (4, 1.0)
    assert (row.metrics.nfe is not None, row.metrics.tpf is not None) == (bool(nfe), bool(nfe))
    assert row.metrics.cost is row.cost is row.metrics.flops is row.metrics.fallbacks is None
    speed = row.metrics.speed
    assert speed.decode is None and speed.end_to_end.median > 0 and speed.same_ids == ITEMS
    assert 0 < speed.requests.p50 <= speed.requests.p95 <= speed.requests.p99
    assert speed.requests.prefix_cache == ("flushed" if api == "sglang" else "not told by the server")
    assert (speed.requests.first_token is not None) == (api in ("vllm", "lmdeploy"))
    shown = {column.name: column.text(row) for column in table_columns("markdown", [row])}
    assert shown.get("nfe", "-") == ("-" if nfe is None else shown["nfe"])
    assert record(row)["nfe"] == row.metrics.nfe


def test_a_row_is_read_back_as_it_was_written_and_samples_of_this_process_have_no_report(stub, tmp_path):
    run = made(stub, tmp_path)
    assert RunFolder(run.path).manifest == run.manifest == typed(Manifest, json.loads(json.dumps(plain(run.manifest))))
    assert run.manifest.server.version == "0.5.9" and run.manifest.block_length is None
    line = json.loads((run.path / "samples.jsonl").read_text().splitlines()[0])
    assert Sample.read(line) == run.samples[0] and line["report"]["prompt_tokens"] > 0
    here = Sample("a", "b", [1], "x", {"accuracy": 1.0}, {}, {}, 1, 0.1, "eos", 0, 0, [])
    assert "report" not in plain(here) and here.counted and here.nfe == 0


def test_reports_and_tables_take_served_rows(stub, tmp_path):
    runs = [made(stub, tmp_path, concurrency=one) for one in (1, 2)]
    runs += [made(stub, tmp_path, server_flags=f"threshold={tau}") for tau in (0.8, 0.9)]
    assert len({run.key for run in runs}) == 4
    results = Results(runs)
    assert {row.label for row in results.rows} >= {"LowConfidence threshold=0.8 (sglang 0.5.9)"}
    assert "LowConfidence" in write_report(results, tmp_path / "report.html", "served", "", []).read_text()
    assert all(path.exists() for path in write_table(results, tmp_path, "served", []))
    assert all(row.front_share is None for row in results.rows)


def test_no_file_names_the_server(stub, tmp_path):
    made(stub, tmp_path, server_flags="config=/etc/secret/a.yaml")
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert stub.url not in written and "127.0.0.1" not in written
    assert "/etc" not in written and "a.yaml" in written and "/models" not in written


def test_a_finished_run_asks_nothing_again_and_another_server_makes_another_run(stub, tmp_path):
    first = made(stub, tmp_path)
    questions = len(stub.asked)
    assert made(stub, tmp_path).key == first.key and len(stub.asked) == questions
    stub.told["/get_server_info"]["version"] = "0.6"
    assert made(stub, tmp_path).key != first.key


def broken(record, **parts):
    return {**record, **parts}


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda record: (400, {"error": {"message": "no such field"}}), "no such field"),
        (lambda record: (429, {"detail": "busy"}), "busy"),
        (lambda record: (500, b"oops"), "oops"),
        (lambda record: b'{"text": "1', "no JSON"),
        (lambda record: broken(record, output_ids=[5, 1]), "tokens are counted"),
        (lambda record: broken(record, text="something else"), "not that of its ids"),
        (lambda record: broken(record, text=""), "not that of its ids"),
        (lambda record: [], "not an object"),
    ],
)
def test_what_is_wrong_ends_the_run_with_nothing_scored_and_it_goes_on_where_it_stopped(stub, tmp_path, wrong, says):
    stub.wrong = lambda record, number: wrong(record) if number > 5 else record
    with pytest.raises(RunError, match=says):
        made(stub, tmp_path)
    kept = ServedRunner().catalog.index(str(tmp_path)).runs()[0]
    assert not kept.finished and len(kept.samples) == 4  # one question was a trial
    assert all(sample.accuracy == 1 for sample in kept.samples)
    stub.wrong, before = None, len(stub.asked)
    run = made(stub, tmp_path)
    assert run.path == kept.path and [sample.accuracy for sample in run.samples] == [1.0] * ITEMS
    keys = [sample.key for sample in run.samples]
    assert len(set(keys)) == ITEMS and len(stub.asked) - before == 1 + 6 + 3 * (ITEMS - 2 + 2)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda record: broken(record, choices=[]), "no list of one answer"),
        (lambda record: broken(record, usage=broken(record["usage"], completion_tokens=2)), "2 tokens are counted"),
        (lambda record: broken(record, usage=broken(record["usage"], prompt_tokens=2)), "prompt of 2 tokens"),
    ],
)
def test_texts_and_counts_that_do_not_fit_end_the_run(stub, tmp_path, wrong, says):
    stub.wrong = lambda record, number: wrong(record)
    with pytest.raises(RunError, match=says):
        made(stub, tmp_path, "vllm")


def test_a_stream_that_breaks_off_leaves_the_run_unfinished(stub, tmp_path):
    stub.broken_off = True
    with pytest.raises(RunError, match="ended by None, so it is not whole"):
        made(stub, tmp_path, "vllm")
    stub.broken_off, before = False, len(stub.asked)
    assert made(stub, tmp_path, "vllm").finished and len(stub.asked) - before == 1 + 3 * (8 + 2)


def test_requests_that_arrive_at_random_are_timed_against_a_limit(stub, tmp_path):
    run = made(stub, tmp_path, rate=200.0, slo="2s")
    times = run.metrics.speed.requests
    assert (times.rate, times.slo) == (200, 2) and times.goodput > 1
    assert made(stub, tmp_path, rate=200.0, slo="1s").key != run.key != made(stub, tmp_path).key


def test_quantiles_and_goodput_are_those_of_all_passes_together():
    def answers(*seconds):
        return [Timed(None, 10.0, 10.0 + one, 10.0 + one / 2) for one in seconds]

    passes = [Pass(2.0, answers(1, 2, 3), 30), Pass(2.0, answers(4, 5), 20)]
    found = request_times(passes, "off", None, 3.0)
    assert (found.p50, found.first_token, found.goodput) == (3.0, 1.5, 3 / 4) and found.p99 == pytest.approx(4.96)


def test_an_unfinished_run_is_not_finished_by_another_server(stub, tmp_path):
    stub.wrong = lambda record, number: (500, b"oops") if number > 5 else record
    with pytest.raises(RunError, match="oops"):
        made(stub, tmp_path)
    stub.wrong = None
    stub.told["/get_server_info"]["dllm_algorithm"] = "JointThreshold"
    with pytest.raises(RunError, match="dllm_algorithm changed"):
        made(stub, tmp_path)


def test_a_server_that_changes_meanwhile_leaves_the_run_unfinished(stub, tmp_path):
    def wrong(record, number):
        if number == 5:
            stub.told["/get_server_info"]["version"] = "0.6"
        return record

    stub.wrong = wrong
    with pytest.raises(RunError, match="version changed"):
        made(stub, tmp_path)
    assert not ServedRunner().catalog.index(str(tmp_path)).runs()[0].finished


def test_a_server_that_takes_no_seed_and_no_temperature_is_asked_without(stub, tmp_path, capsys):
    def wrong(record, number):
        named = [name for name in ("seed", "temperature") if name in stub.asked[number - 1]]
        return (400, {"error": {"message": f"{named[0]} is not supported"}}) if named else record

    stub.wrong = wrong
    run = made(stub, tmp_path, "vllm", temperature=1.0)
    assert run.manifest.model == {"withheld": ["seed", "temperature"]} and run.metrics.accuracy == 1
    assert run.manifest.label.endswith(", the server's temperature")
    assert "takes no seed and no temperature" in capsys.readouterr().err


def test_more_requests_than_the_server_takes_are_said(stub, tmp_path, capsys):
    run = made(stub, tmp_path, concurrency=8)
    said = "the server decodes 4 requests at a time, so of 8 at once the others wait"
    assert said in capsys.readouterr().err.replace("\n", " ") and said in run.metrics.speed.label


def test_a_served_row_is_paired_with_rows_of_the_same_prompts(stub, tmp_path, task):
    stub.wrong = lambda record, number: record if number % 2 else {**record, **wrong_answer(stub, record)}
    ours = Results([made(stub, tmp_path)]).rows[0]
    theirs = made(stub, tmp_path / "b", "openai")
    other = Results([theirs]).rows[0]
    object.__setattr__(other.manifest, "server", None)  # as if it had been made here
    [found] = beside(ours, [other])
    assert found.against.difference == ours.accuracy - other.accuracy and found.speed == pytest.approx(
        ours.tps_end_to_end / other.tps_end_to_end
    )
    assert "points against" in found.sentence
    object.__setattr__(ours.manifest.spec, "rate", 2.0)
    [found] = beside(ours, [other])
    assert found.speed is None, "requests that arrive in their own time say how many came, not how fast they go"
    object.__setattr__(other.manifest, "prompts", "others")
    assert beside(ours, [other]) == []


def wrong_answer(stub, record):
    ids = [*stub.tokenizer.encode("#### 0"), 1]
    return {"text": "#### 0", "output_ids": ids, "meta_info": {**record["meta_info"], "completion_tokens": len(ids)}}


# --- what is refused before anybody is asked --------------------------------------------------------------------------

SERVED = {"method": "served", "task": "nano-gsm", "server": "http://x", "api": "sglang"}


@pytest.mark.parametrize(
    "options, says",
    [
        ({"method": "threshold"}, "a server decodes as it was started to"),
        ({"api": None}, "--server needs --api"),
        ({"server": None}, "none is named"),
        ({"threshold": 0.9}, "--threshold is decided by the server"),
        ({"block_length": 4}, "--block-length is decided by the server"),
        ({"batch_size": 4}, "--batch-size is decided by the server"),
        ({"device": "cuda"}, "--device is decided by the server"),
        ({"top_p": 0.9}, "--top-p is decided by the server"),
        ({"settings": {"cache": {"window": "prompt_only"}}}, "--set is decided by the server"),
        ({"against": "static"}, "it names folders"),
        ({"against": "nowhere"}, "'nowhere'"),
    ],
)
def test_options_that_a_server_decides_are_refused(options, says):
    with pytest.raises(RequestError, match=says):
        RunSpec(**{**SERVED, **options}).resolve()


def test_a_sweep_over_concurrencies_has_a_run_for_each_and_no_baselines():
    flags = {"method": "served", "task": "nano-gsm", "server": "http://x", "api": "vllm", "concurrency": "1,8,32"}
    runs, _ = SweepSpec.from_flags(flags).resolve()
    assert [run.batch_size for run in runs] == [1, 8, 32] and {run.spec.method for run in runs} == {"served"}


def test_options_of_servers_belong_to_servers():
    for options in ({"concurrency": 4}, {"api": "vllm"}, {"server_flags": "x"}, {"rate": 2}, {"slo": "2s"}):
        with pytest.raises(RequestError, match="--[a-z-]+ asks a server, and none is named"):
            RunSpec("static", "nano-gsm", **options).resolve()
    with pytest.raises(RequestError, match="api is 'tgi'"):
        RunSpec(**{**SERVED, "api": "tgi"})
    with pytest.raises(RequestError, match="--server is 'localhost:80'"):
        ServedRunner().run([RunSpec(**{**SERVED, "server": "localhost:80"}).resolve()])


def test_a_server_is_a_method_and_runs_of_both_kinds_are_two_commands():
    assert method_of({"server": "http://x"}) == "served" and method_of({"method": "static"}) == "static"
    with pytest.raises(RequestError, match="--method is missing"):
        method_of({"task": "nano-gsm"})
    specs = [RunSpec(**SERVED), RunSpec("static", "nano-gsm")]
    with pytest.raises(RequestError, match="two commands"):
        all_served(specs)
    with pytest.raises(RequestError, match="--dry-run is for what is decoded here"):
        all_served(specs[:1], dry_run=True)
    assert all_served(specs[:1]) and not all_served(specs[1:])
