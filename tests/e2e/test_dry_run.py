"""What a sweep will take, and what is missing for it, before it runs. Run: pytest tests/e2e/test_dry_run.py"""

import json
from types import SimpleNamespace

import pytest
from tiny import make_data, make_model

from dlmbench.cli.app import main
from dlmbench.models.presets import Preset
from dlmbench.runs import find_runs
from dlmbench.runs.estimate import Planned, Trial, _nearest, _one_of_each_method_first
from dlmbench.runs.preflight import Need, checkpoint_here, worst

ITEMS = 16


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    make_model(folder / "tiny")
    make_data(folder / "data", ITEMS)
    return folder


@pytest.fixture
def call(place, capsys, monkeypatch):
    """A command on the tiny model and its data: (exit code, stdout)."""
    monkeypatch.setattr("dlmbench.tasks.data.PROBE_SECONDS", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(verb, *arguments, model=None):
        common = ["--task", "gsm8k", "--num-fewshot", "0", "--data-dir", str(place / "data"), "--device", "cpu"]
        common += ["--model", model or str(place / "tiny"), "--gen-length", "16", "--batch-size", "2"]
        common += ["--out", str(place / "out")]
        code = 0
        try:
            main([verb, *common, *([] if model else ["--block-length", "8"]), *arguments])
        except SystemExit as leaving:
            code = leaving.code or 0
        return code, capsys.readouterr().out

    return run


SWEEP = ("--method", "static,threshold", "--set", "static.k=1,4", "--threshold", "0.9")


def test_the_estimate_foretells_the_sweep(place, call):
    code, out = call("sweep", *SWEEP, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and not (place / "out").exists(), "a dry run leaves nothing"
    guess = plan["estimate"]
    assert (guess["runs"], guess["tried"], guess["upper_limit"], plan["missing"]) == (3, 3, False, [])
    code, out = call("run", "--method", "static", "--against", "none", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["estimate"]["runs"] == 1 and not (place / "out").exists()

    assert call("sweep", *SWEEP, "--json")[0] == 0
    samples = [sample for run in find_runs(place / "out") for sample in run.samples]
    forwards = sum(sum(sample.forwards.values()) for sample in samples)
    size = sum((run.path / "samples.jsonl").stat().st_size for run in find_runs(place / "out"))
    assert guess["forwards"] == pytest.approx(forwards, rel=0.1)
    assert guess["results_gb"] * 1e9 == pytest.approx(size, rel=0.1)
    assert 0 < guess["memory_gb"] < 0.1 and guess["minutes"] > 0

    record = json.loads(call("sweep", *SWEEP, "--dry-run", "--json")[1])
    assert record["estimate"] is None and record["items_to_do"] == 0, "there is nothing left to do"
    assert "Everything is finished" in call("sweep", *SWEEP, "--dry-run")[1]


def test_weights_that_are_not_here_are_named_instead_of_an_estimate(place, call):
    code, out = call("sweep", *SWEEP, "--dry-run", "--json", model="sdar-8b")
    plan = json.loads(out)
    assert code == 0 and plan["estimate"] is None and plan["items_to_do"] == 3 * ITEMS
    need = plan["missing"][0]  # memory may be another
    assert need["what"] == "weights of sdar-8b" and "JetLM/SDAR-8B-Chat, about 16" in need["detail"]
    text = call("sweep", *SWEEP, "--dry-run", model="sdar-8b")[1]
    assert "there is no estimate" in text and "missing weights of sdar-8b" in text


def test_a_task_that_nobody_knows_is_no_missing_data(place, call, capsys):
    asked = ["--task", "nano_gsm", "--method", "static", "--device", "cpu", "--out", str(place / "out"), "--dry-run"]
    with pytest.raises(SystemExit) as leaving:
        main(["run", *asked])
    assert leaving.value.code == 2 and "did you mean nano-gsm" in capsys.readouterr().err


def test_doctor_names_what_a_recipe_lacks(place, call, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"tasks: [{{task: gsm8k, data_dir: {tmp_path / 'nowhere'}}}]\n"
        f"methods: [static, {{method: mrp, model: {place / 'tiny'}}}]\nmodel: sdar-8b\ndevice: cpu\n"
    )
    with pytest.raises(SystemExit) as leaving:
        main(["doctor", str(recipe), "--offline", "--json"])
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert leaving.value.code == 1
    missing = {name for name, check in checks.items() if check["state"] == "missing"}
    assert {"weights of sdar-8b", "data of gsm8k"} <= missing
    assert any("needs a trained head" in check["detail"] for check in checks.values())
    assert checks["device"]["detail"] == "cpu" and checks["disk"]["state"] == "ok"


def test_a_half_fetched_checkpoint_is_not_here(tmp_path):
    preset = Preset("half", str(tmp_path), None, "")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    assert checkpoint_here(preset) is None
    (tmp_path / "model-2.safetensors").touch()
    assert checkpoint_here(preset) == tmp_path


def test_of_several_verdicts_the_worst_is_told():
    needs = [Need("a", "ok", "1"), Need("b", "missing", "2"), Need("a", "limited", "3"), Need("b", "ok", "4")]
    assert worst(needs) == [Need("a", "limited", "3"), Need("b", "missing", "2")]


def planned(method, task="t"):
    return Planned(SimpleNamespace(spec=SimpleNamespace(task=task, model="m", method=method, batch_size=1)), 1)


def trial(seconds):
    return Trial(1, seconds, 1.0, 1.0, frozenset(), 0.1, False)


def test_every_method_is_tried_before_a_second_setting_and_neighbours_lend_to_the_others():
    cells = [planned("a"), planned("a"), planned("a"), planned("b"), planned("b"), planned("c", "u")]
    order = list(_one_of_each_method_first(cells))
    assert [one.resolved.spec.method for one in order] == ["a", "b", "c", "a", "b", "a"]
    cells[0].trial, cells[2].trial, cells[3].trial = trial(1), trial(3), trial(4)
    assert _nearest(cells, 1).seconds in (1, 3)
    assert _nearest(cells, 4).seconds == 4
    assert _nearest(cells, 5).seconds == 4, "of another task rather than none"
    assert _nearest([planned("a")], 0) is None
