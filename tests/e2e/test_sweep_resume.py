"""A sweep that is killed goes on, and ends where an undisturbed one ends. Run: pytest tests/e2e/test_sweep_resume.py

A real engine with a tiny random network, real lm-eval prompts, real files.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from tiny import make_data, make_model

from dlmbench.cli.app import main
from dlmbench.report.columns import TIMED
from dlmbench.runs import find_runs
from dlmbench.runs.record import plain

ITEMS = 16


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps")
    make_model(folder / "tiny")
    make_data(folder / "data", ITEMS)
    return folder


@pytest.fixture(autouse=True)
def timed_once(monkeypatch):
    """How long it takes is not looked at."""
    monkeypatch.setattr("dlmbench.runs.local.SPEED_REPEATS", 1)


def command(place, out, *more, gen_length=16):
    return [
        "--task",
        "gsm8k",
        "--num-fewshot",
        "0",
        "--data-dir",
        str(place / "data"),
        "--model",
        str(place / "tiny"),
        "--gen-length",
        str(gen_length),
        "--block-length",
        "8",
        "--batch-size",
        "2",
        "--device",
        "cpu",
        "--out",
        str(place / out),
        *more,
    ]


def call(capsys, *arguments):
    """(exit code, stdout) of a command in this process."""
    capsys.readouterr()
    try:
        main(list(arguments))
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    return code, capsys.readouterr().out


SWEEP = ["--method", "threshold,static", "--threshold", "0.005,0.9", "--set", "static.k=1,4"]


def content(out: Path) -> dict:
    """What must not depend on kills: ids, text, scores and counts of every item of every run."""
    return {
        run.name: sorted(json.dumps(plain(replace(sample, seconds=0.0)), sort_keys=True) for sample in run.samples)
        for run in find_runs(out)
    }


def kill_when(process, condition, seconds=120):
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, f"the sweep ended before it could be killed: {process.stderr.read().decode()}"
        assert time.monotonic() - began < seconds, "the sweep made no progress"
        time.sleep(0.005)
    os.kill(process.pid, 9)
    process.wait()


def test_killed_sweep_resumes_to_the_same_samples_and_table(place, capsys):
    out = place / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "dlmbench.cli.app", "sweep", *SWEEP, *command(place, "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )

    def in_the_second_cell():
        lines = sorted(file.read_bytes().count(b"\n") for file in out.glob("*/samples.jsonl"))
        return len(lines) == 2 and 3 <= lines[0] < ITEMS

    kill_when(process, in_the_second_cell)
    (torn,) = [run for run in find_runs(out) if not run.finished and run.samples]
    left = len(torn.samples)
    with open(torn.path / "samples.jsonl", "a") as stream:
        stream.write('{"key": "test/')  # what a kill in the middle of a write leaves
    before = {run.name: (run.path / "samples.jsonl").read_bytes() for run in find_runs(out) if run.finished}

    assert call(capsys, "sweep", *SWEEP, *command(place, "killed"))[0] == 0
    assert 3 <= left < ITEMS and len(torn.samples) == ITEMS
    for name, samples in before.items():
        assert (out / name / "samples.jsonl").read_bytes() == samples, "finished runs are left alone"

    assert call(capsys, "sweep", *SWEEP, *command(place, "clean"))[0] == 0
    assert content(out) == content(place / "clean") and len(content(out)) == 4
    unlike = [*TIMED, "folder", "commit"]
    tables = [pd.read_csv(folder / "table.csv").drop(columns=unlike) for folder in (out, place / "clean")]
    pd.testing.assert_frame_equal(*tables)
    assert {"sweep.json", "table.md", "pareto.png"} <= {path.name for path in out.iterdir()}
    assert not list(out.glob("*/.lock")) and not list(out.glob("*/*.part"))
    assert places_named_in(out) == []


def places_named_in(folder):
    """Files that hold the name of this machine or of a place on it."""
    places = (str(folder.parent), str(Path.cwd()), str(Path.home()), os.uname().nodename)
    hidden = [word for word in places if len(word) > 4]
    texts = [file for file in folder.rglob("*") if file.suffix in (".json", ".jsonl", ".csv", ".md", ".svg")]
    assert texts
    return [file.name for file in texts if any(word in file.read_text() for word in hidden)]


def test_a_finished_run_is_a_no_op_that_prints_its_table(place, capsys, monkeypatch):
    arguments = ["run", "--method", "entropy", "--threshold", "0.5", *command(place, "again")]
    code, first = call(capsys, *arguments)
    assert code == 0 and "> " in first and "vs static k=1" in first
    assert "vs threshold 0.9" in first, "a number of nats is no confidence"
    stamps = {file: file.stat().st_mtime_ns for file in (place / "again").rglob("*") if file.is_file()}

    def refuse(*_):
        raise AssertionError("a finished run loaded its model")

    monkeypatch.setattr("dlmbench.runs.loading.build", refuse)
    assert call(capsys, *arguments) == (0, first)
    assert stamps == {file: file.stat().st_mtime_ns for file in (place / "again").rglob("*") if file.is_file()}
    # another method on the same items finds the same baselines
    assert len(find_runs(place / "again")) == 3


def test_a_run_killed_after_its_last_item_only_finishes(place, capsys):
    arguments = ["run", "--method", "static", *command(place, "late", "--against", "none", "--json")]
    first = json.loads(call(capsys, *arguments)[1])["run"]
    (run,) = find_runs(place / "late")
    samples = (run.path / "samples.jsonl").read_bytes()
    (run.path / "metrics.json").unlink()
    again = json.loads(call(capsys, *arguments)[1])["run"]
    assert (run.path / "samples.jsonl").read_bytes() == samples
    unlike = (*TIMED, "commit")
    assert {k: v for k, v in again.items() if k not in unlike} == {k: v for k, v in first.items() if k not in unlike}


def test_a_run_that_went_on_elsewhere_names_both_environments_and_prices_every_shape(place, capsys, monkeypatch):
    monkeypatch.setattr("dlmbench.runs.environment.commit", lambda: "first")
    arguments = ["run", "--method", "static", *command(place, "moved", "--against", "none", "--json")]
    call(capsys, *arguments)
    (run,) = find_runs(place / "moved")
    assert run.manifest.environments == [] and run.manifest.calibration.interpolated == []
    (run.path / "metrics.json").unlink()
    lines = (run.path / "samples.jsonl").read_text().splitlines()
    (run.path / "samples.jsonl").write_text("\n".join(lines[:10]) + "\n")
    monkeypatch.setattr("dlmbench.runs.environment.commit", lambda: "second")
    assert call(capsys, *arguments)[0] == 0
    manifest = run.manifest
    assert [(one.commit, one.samples_before) for one in manifest.environments] == [("first", 0), ("second", 10)]
    assert manifest.environment.commit == "second"


def test_scores_can_be_renewed_from_the_stored_texts(place, capsys):
    arguments = command(place, "scored", "--against", "none", "--json")
    code, out = call(capsys, "run", "--method", "static", *arguments)
    assert code == 0 and json.loads(out)["run"]["accuracy"] == 0.0
    (run,) = find_runs(place / "scored")
    first, second, *others = run.samples
    assert {first.key, second.key} == {"test/0", "test/1"}
    with run.writing() as writer:
        writer.samples([replace(first, text="the answer is\n#### 2"), second, *others])  # item test/0: 0 plus 2
    code, out = call(capsys, "score", str(place / "scored"), "--data-dir", str(place / "data"), "--json")
    assert code == 0
    (row,) = json.loads(out)["runs"]
    assert row["changed"] == 1 and row["accuracy"] == pytest.approx(1 / ITEMS)
    assert run.metrics.speed.items == 8, "what was measured stays"


def test_chat_prompts_of_a_local_checkpoint_are_scored_with_its_folder(place, capsys):
    make_model(place / "chatty")
    (place / "chatty" / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    arguments = command(place, "chats", "--against", "none", "--chat-template", "--model", str(place / "chatty"))
    assert call(capsys, "run", "--method", "static", *arguments)[0] == 0
    again = ["score", str(place / "chats"), "--data-dir", str(place / "data"), "--json"]
    with pytest.raises(SystemExit) as leaving:
        main(again)
    assert leaving.value.code == 2 and "--model" in capsys.readouterr().err
    code, out = call(capsys, *again, "--model", str(place / "chatty"))
    assert code == 0 and json.loads(out)["runs"][0]["changed"] == 0
    make_model(place / "other")
    (place / "other" / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert call(capsys, *again, "--model", str(place / "other"))[0] == 2, "other prompts than in the run"


def test_settings_are_chosen_on_dev_and_reported_on_test(place, capsys):
    rows = (place / "data" / "test.jsonl").read_text().splitlines()
    (place / "dev").mkdir()
    (place / "dev" / "test.jsonl").write_text("\n".join(rows[:4]) + "\n")
    (place / "dev" / "train.jsonl").write_text("\n".join(rows[4:12]) + "\n")
    arguments = command(place, "tuned", "--data-dir", str(place / "dev"), "--tune-on", "dev", "--json", gen_length=8)
    planned = json.loads(call(capsys, "sweep", *SWEEP, *arguments, "--dry-run")[1])
    assert planned["tune_on"] == "dev" and planned["items_to_do"] == 4 * 8 + 2 * 4
    code, out = call(capsys, "sweep", *SWEEP, *arguments)
    record = json.loads(out)
    assert code == 0 and len(record["rows"]) == 2, "one setting a method"
    assert places_named_in(place / "tuned") == []
    assert "gsm8k, tiny: settings tried on dev: threshold 2." in (place / "tuned" / "table.md").read_text()
    assert {row["split"] for row in record["rows"]} == {"test"} and {row["items"] for row in record["rows"]} == {4}
    assert [row["label"] for row in record["rows"]][0] == "static k=1", "one token a step: the reference"
    assert any("static k=1 was chosen out of 2 settings of static on 8 dev items" in text for text in record["choices"])
    assert [row["tried"] for row in record["rows"]] == [None, 2]
    assert all("tps_decode" in row and row["tps_decode"] for row in record["rows"])
    for trial in find_runs(place / "tuned" / "dev"):
        assert trial.metrics.speed is None and trial.metrics.cost and not trial.traces, "accuracy and cost alone"
    assert any("the cheapest that loses at most 2 points" in text for text in record["choices"])
    assert len(find_runs(place / "tuned" / "dev")) == 4
    assert "was chosen out of" in (place / "tuned" / "table.md").read_text()


def test_the_numbers_of_tries_are_told_before_anything_runs(place, capsys):
    arguments = command(place, "uneven", "--tune-on", "dev", "--dry-run", "--data-dir", str(place / "dev"))
    with pytest.raises(SystemExit):
        main(["sweep", "--method", "threshold,static,entropy", "--threshold", "0.3,0.6,0.9", *arguments])
    told = capsys.readouterr().err
    assert "settings tried on dev: threshold 3, entropy 3." in told


def test_a_sweep_may_run_on_dev_items(place, capsys):
    arguments = command(place, "split", "--data-dir", str(place / "dev"), "--split", "dev", "--dry-run", "--json")
    assert {cell["items"] for cell in json.loads(call(capsys, "sweep", *SWEEP, *arguments)[1])["cells"]} == {8}


def test_dry_run_plans_and_leaves_nothing(place, capsys):
    code, out = call(capsys, "sweep", *SWEEP, *command(place, "planned", "--dry-run", "--json"))
    record = json.loads(out)
    assert code == 0 and record["items_to_do"] == 4 * ITEMS and not (place / "planned").exists()
    assert record["least_difference"].keys() == {"gsm8k (test)"}, "what so many items can show"
    planned = [cell["method"] for cell in record["cells"]]
    assert planned == ["threshold 0.005", "threshold 0.9", "static k=1", "static k=4"]


def test_missing_data_name_both_remedies_before_anything_is_loaded(place, capsys, monkeypatch):
    monkeypatch.setattr("dlmbench.tasks.data.PROBE_SECONDS", 0.2)
    monkeypatch.setattr("dlmbench.runs.loading.build", lambda *_: 1 / 0)
    with pytest.raises(SystemExit) as leaving:
        main(
            ["run", "--method", "static", "--task", "gsm8k", "--model", str(place / "tiny"), "--out", str(place / "no")]
        )
    text = capsys.readouterr().err
    assert leaving.value.code == 2 and "--data-dir" in text and "network" in text and not (place / "no").exists()


MINE = """
from dataclasses import dataclass

from dlmbench.decoders.base import Decision, StepDecoder, option, top_n
from dlmbench.registry import DECODERS


@dataclass(frozen=True)
class Options:
    share: float = option(0.5, "share of the block revealed a step", threshold=True)


class Share(StepDecoder):
    name = "share"
    Config = Options

    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        number = max(1, int(self.config.share * view.block_length))
        return Decision(best.tokens, top_n(best.log_odds, view.masked, number))


DECODERS.register("share", Share)
"""


def test_a_decoder_from_a_file_is_in_the_table_beside_its_baselines(place, capsys):
    (place / "mine.py").write_text(MINE)
    code, out = call(
        capsys,
        "sweep",
        "--method",
        "share",
        "--threshold",
        "0.25,0.5",
        "--limit",
        "4",
        "--json",
        *command(place, "plugin", "--plugin", str(place / "mine.py"), gen_length=8),
    )
    rows = {row["label"]: row for row in json.loads(out)["rows"]}
    assert code == 0
    assert set(rows) == {"share 0.25", "share 0.5", "static k=1", "threshold 0.9"}
    assert rows["share 0.5"]["nfe"] < rows["share 0.25"]["nfe"] < rows["static k=1"]["nfe"]
    assert rows["share 0.5"]["vs_threshold_row"] == "threshold 0.9"
    assert "share 0.5" in (place / "plugin" / "table.md").read_text()
