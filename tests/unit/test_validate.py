"""`validate` on a real run of a shipped model, and on the same folder after somebody has been at it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from synthetic import make_run
from typer.testing import CliRunner

from dlmbench.analysis.load import Results
from dlmbench.cli.app import app
from dlmbench.errors import RequestError
from dlmbench.report.markdown import write_table
from dlmbench.request import RunSpec
from dlmbench.request.key import digest
from dlmbench.runs import RunFolder
from dlmbench.runs.aggregate import aggregate
from dlmbench.runs.folder import write_bundle
from dlmbench.runs.local import run_all
from dlmbench.runs.reruns import reruns


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep's folder with one run and its tables."""
    root = tmp_path_factory.mktemp("sweep")
    spec = RunSpec("threshold", "nano-gsm", limit=6, threshold=0.8, batch_size=3, out=str(root), against=())
    run_all([spec])
    _tables(root)
    return root


def _tables(root: Path) -> None:
    results = Results.load(root)
    write_table(results, root)
    write_bundle(results.runs, root)


@pytest.fixture
def sweep(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "sweep"))


def validate(*arguments) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["validate", *map(str, arguments)])
    return found.exit_code, found.stdout


def folder(sweep: Path) -> RunFolder:
    return RunFolder(next(sweep.glob("*/manifest.json")).parent)


def samples(sweep: Path, change) -> None:
    """Rewrite samples.jsonl: `change` gets the list of its lines as mappings and returns the new list."""
    file = folder(sweep).path / "samples.jsonl"
    lines = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit(sweep: Path, name: str, change) -> None:
    file = folder(sweep).path / name
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def consistent(sweep: Path) -> None:
    """Make the aggregates and the tables follow from the samples again, as a careful forger does."""
    run = folder(sweep)
    with run.writing() as writer:
        writer.metrics(aggregate(run.samples, run.manifest.prices, run.metrics.speed))
    _tables(sweep)


def first(**changes):
    def change(lines):
        lines[0] |= changes
        return lines

    return change


def test_a_real_run_is_consistent_and_comes_out_again(sweep):
    code, text = validate(sweep, "--rerun", 4, "--by", "A. Reader")
    assert code == 0, text
    assert "4 of 4 reproduced" in text and "refused" not in text
    (kept,) = reruns(folder(sweep))
    assert (kept.items, kept.same, kept.by) == (4, 4, "A. Reader")


def other_score(sweep):
    samples(sweep, lambda lines: [line | {"scores": line["scores"] | {"accuracy": 0.0}} for line in lines])


def other_score_carefully(sweep):
    other_score(sweep)
    consistent(sweep)


def dropped_item(sweep):
    samples(sweep, lambda lines: lines[1:])
    consistent(sweep)


def doubled_item(sweep):
    samples(sweep, lambda lines: [*lines, lines[0]])


def swapped_for_another_item(sweep):
    samples(sweep, first(key="0123456789ab"))


def other_prompt(sweep):
    samples(sweep, first(prompt_hash="0" * 16))


def other_text(sweep):
    samples(sweep, lambda lines: [line | {"text": "no " + line["text"]} for line in lines])


def other_tokens(sweep):
    samples(sweep, lambda lines: [line | {"tokens": line["tokens"] - 1} for line in lines])


def fewer_forwards(sweep):
    def fewer(line):
        kinds = line["counts"]["target"]
        work = {name: kinds["denoise"][name] for name in kinds["denoise"]} | {"calls": 1}
        return line | {"counts": {"target": kinds | {"denoise": work}}}

    samples(sweep, lambda lines: list(map(fewer, lines)))
    consistent(sweep)


def better_accuracy(sweep):
    edit(sweep, "metrics.json", lambda record: record.update(accuracy=0.999))


def narrower_interval(sweep):
    edit(sweep, "metrics.json", lambda record: record.update(accuracy_low=record["accuracy"]))


def cheaper(sweep):
    edit(sweep, "metrics.json", lambda record: record.update(cost=record["cost"] / 2))


def other_prices(sweep):
    def halve(record):
        prices = record["calibration"]["prices"]
        prices.update({name: value / 2 for name, value in prices.items()})

    edit(sweep, "manifest.json", halve)


def faster(sweep):
    edit(sweep, "metrics.json", lambda record: record["speed"]["decode"].update(median=1e6))


def other_weights(sweep):
    edit(sweep, "manifest.json", lambda record: record["weights"].update(target="0" * 16))


def other_weights_carefully(sweep):
    def change(record):
        for place in (record, record["identity"]):
            place["weights"]["target"] = "0" * 16
        record["key"] = digest(record["identity"])

    edit(sweep, "manifest.json", change)
    _tables(sweep)


def other_threshold(sweep):
    edit(sweep, "manifest.json", lambda record: record["parameters"].update(tau=0.95))


def other_table(sweep):
    file = sweep / "table.csv"
    names, values = (line.split(",") for line in file.read_text().splitlines()[:2])
    values[names.index("nfe")] = "2.5"
    file.write_text(",".join(names) + "\n" + ",".join(values) + "\n")


def other_bundle(sweep):
    file = sweep / "manifests.jsonl"
    file.write_text(re.sub(r'"accuracy": [\d.]+', '"accuracy": 0.5', file.read_text(), count=1))


def other_steps(sweep):
    file = folder(sweep).path / "traces.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line | {"ids": line["ids"][:-1]}) + "\n" for line in lines))


def unfinished(sweep):
    (folder(sweep).path / "metrics.json").unlink()


TAMPERED = {
    other_score: "metrics.json says accuracy",
    other_score_carefully: "has a score of 0; its text deserves 1",
    dropped_item: "It holds 5 of 6 items",
    doubled_item: "holds an item twice",
    swapped_for_another_item: "is not among the 6 that the run asked",
    other_prompt: "was asked with another prompt",
    other_text: "is not that of its tokens",
    other_tokens: "tokens and holds",
    fewer_forwards: "by width they are",
    better_accuracy: "metrics.json says accuracy is 0.999",
    narrower_interval: "metrics.json says accuracy_low",
    cheaper: "metrics.json says cost",
    other_prices: "forwards and prices give",
    faster: "lies outside its own range",
    other_weights: "weights.target",
    other_weights_carefully: "Asked again here, weights.target",
    other_threshold: "parameters.tau",
    other_table: "table.csv says nfe",
    other_bundle: "manifests.jsonl says other things",
    other_steps: "end in other tokens",
    unfinished: "it is unfinished",
}


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda one: one.__name__)
def test_a_tampered_folder_is_refused_in_a_sentence(sweep, tamper):
    tamper(sweep)
    code, text = validate(sweep)
    assert code == 1
    assert TAMPERED[tamper] in text


def test_what_only_decoding_again_can_tell(sweep):
    """Tokens, text, score and forwards of another item: everything follows, and nothing is true."""

    def lie(lines):
        lines[0] |= {name: lines[1][name] for name in ("ids", "tokens", "text", "counts", "forwards")}
        lines[0]["scores"] = lines[0]["scores"] | {"accuracy": 0.0, "strict": 0.0, "flexible": 0.0}
        return lines

    samples(sweep, lie)
    (folder(sweep).path / "traces.jsonl").unlink()
    consistent(sweep)
    assert validate(sweep)[0] == 0
    code, text = validate(sweep, "--rerun", 6)
    assert code == 1 and "of 6 items decoded again" in text


def test_a_table_alone_is_no_evidence(sweep):
    shutil.rmtree(folder(sweep).path)
    code, text = validate(sweep)
    assert code == 0
    assert "not verifiable" in text


def test_a_table_of_some_of_the_runs_is_consistent(sweep):
    """A later sweep into the same folder writes a table of its own rows, without what they would say beside others."""
    alone = folder(sweep)
    run_all([RunSpec("static", "nano-gsm", limit=6, batch_size=3, out=str(sweep), against=())])
    write_table(Results([alone]), sweep)
    assert validate(sweep)[0] == 0


def test_a_leaderboard_of_two_machines_keeps_them_apart_and_names_what_it_refuses(tmp_path, sweep):
    for device in ("a CPU", "a GPU"):
        for method, threshold in (("static", None), ("threshold", 0.8)):
            make_run(tmp_path / device, method=method, threshold=threshold, device=device)
    better_accuracy(sweep)
    page = tmp_path / "board.html"
    found = CliRunner().invoke(
        app,
        ["report", "--leaderboard", "--out", str(page), *(str(tmp_path / one) for one in ("a CPU", "a GPU", "sweep"))],
    )
    assert found.exit_code == 0, found.stdout
    text = page.read_text()
    assert text.count("<table>") == 2
    assert "sweep/" in text and "metrics.json says accuracy is 0.999" in text
    assert "dlmbench run --method threshold --task nano-gsm" in text
    assert str(tmp_path) not in text


def test_a_leaderboard_puts_no_large_loss_first_and_refuses_a_folder_that_is_not_there(tmp_path):
    for method, threshold, accuracy, nfe in (("static", None, 1.0, 40), ("threshold", 0.5, 0.7, 8)):
        make_run(tmp_path / "a", method=method, threshold=threshold, accuracy=accuracy, nfe=nfe, items=10)
    page = tmp_path / "board.html"
    assert CliRunner().invoke(app, ["report", "--leaderboard", "--out", str(page), str(tmp_path / "a")]).exit_code == 0
    text = page.read_text()
    assert "10 test items" in text
    assert re.findall('<th scope="row">(static|threshold)', text) == ["static", "threshold"]
    found = CliRunner().invoke(app, ["report", "--leaderboard", "--out", str(page), str(tmp_path / "b")])
    assert isinstance(found.exception, RequestError) and "does not exist" in str(found.exception)


def test_the_command_of_a_row_finds_the_run_again(sweep):
    """Nothing is decoded: it is the same run, so it is finished."""
    from dlmbench.request.command import command

    words = command(folder(sweep).manifest.spec).split()[1:]
    before = folder(sweep).path.joinpath("samples.jsonl").stat().st_mtime_ns
    found = CliRunner().invoke(app, [*words, "--against", "none", "--out", str(sweep)])
    assert found.exit_code == 0, found.output
    assert len(list(sweep.glob("*/manifest.json"))) == 1
    assert folder(sweep).path.joinpath("samples.jsonl").stat().st_mtime_ns == before


def test_a_card_is_yaml_for_the_hub(sweep):
    import yaml

    found = CliRunner().invoke(app, ["card", str(sweep)])
    assert found.exit_code == 0
    (model,) = yaml.safe_load(found.stdout)["model-index"]
    (result,) = model["results"]
    assert model["name"] == "nano2"
    assert result["dataset"]["name"] == "nano-gsm"
    assert {one["type"] for one in result["metrics"]} == {"accuracy", "nfe", "cost", "tokens_per_second"}


def test_runs_lists_what_is_there(sweep):
    found = CliRunner().invoke(app, ["runs", str(sweep), "--json"])
    (one,) = json.loads(found.stdout)["runs"]
    assert (one["model"], one["label"], one["items"], one["asked"]) == ("nano2", "threshold 0.8", 6, 6)
    assert CliRunner().invoke(app, ["runs", str(sweep), "--stale", "--json"]).stdout.strip() == '{"runs": []}'
    other_weights(sweep)
    (one,) = json.loads(CliRunner().invoke(app, ["runs", str(sweep), "--stale", "--json"]).stdout)["runs"]
    assert one["stale"] == "other weights"
