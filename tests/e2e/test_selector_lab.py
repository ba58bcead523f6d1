"""Recorded logits of a run, and `dlmbench selectors` on them. Run: pytest tests/e2e/test_selector_lab.py"""

import json

import pytest
from tiny import make_data, make_model
from typer.testing import CliRunner

from dlmbench.cli.app import app
from dlmbench.registry import DECODERS
from dlmbench.request import RunSpec
from dlmbench.runs.local import LocalRunner
from dlmbench.runs.recording import recorded
from dlmbench.runs.states import read_states

RULE = """
from dlmbench.decoders.base import Decision, StepDecoder
from dlmbench.registry import DECODERS

class Everything(StepDecoder):
    name = "everything"

    def decide(self, view, forward):
        return Decision(view.candidates(forward.logits).tokens, view.eligible)

DECODERS.register("everything", Everything)
"""


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    spec = RunSpec(
        method="threshold", task="gsm8k", threshold=0.01, model=make_model(folder / "tiny"), num_fewshot=0,
        data_dir=make_data(folder / "data", 2), gen_length=8, block_length=8, batch_size=2, device="cpu",
        out=str(folder / "out"), against=(),
    )  # fmt: skip
    return spec.resolve()


@pytest.fixture(scope="module")
def run(cell):
    """A finished run whose logits were recorded afterwards, and its files before."""
    run = LocalRunner(traces=2).run_one(cell)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    assert not recorded(run.path)
    LocalRunner(traces=2, logits=2).run_one(cell)
    return run, before


def test_a_finished_run_gets_its_logits_and_nothing_else_changes(run, cell):
    run, before = run
    assert before == {name: (run.path / name).read_bytes() for name in before}
    found = read_states(run.path)
    samples = {sample.key: sample.ids for sample in run.samples}
    assert len(found.items) == recorded(run.path) == 2
    assert all(item.same_ids and samples[item.key] == item.ids[: len(samples[item.key])] for item in found.items)
    first = (run.path / "logits.npz").read_bytes()
    LocalRunner(traces=2, logits=1).run_one(cell)
    assert (run.path / "logits.npz").read_bytes() == first


def test_the_verb_shows_who_reveals_what(run, tmp_path, monkeypatch):
    monkeypatch.setattr(DECODERS, "_targets", dict(DECODERS._targets))
    folder = str(run[0].path.parent)
    rule = tmp_path / "everything.py"
    rule.write_text(RULE)
    asked = [
        "selectors",
        folder,
        "--method",
        "everything,hierarchy:threshold=0.3:low=0.01,saber",
        "--plugin",
        str(rule),
    ]
    result = CliRunner().invoke(app, [*asked, "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["runs"]
    rows = {row["selector"]: row for row in found["selectors"]}
    assert list(rows) == ["threshold 0.01", "everything", "hierarchy 0.3 low=0.01"]
    assert rows["threshold 0.01"]["recorded"] and rows["threshold 0.01"]["agreement"] == 1
    assert rows["everything"]["tokens_per_step"] >= rows["hierarchy 0.3 low=0.01"]["tokens_per_step"]
    assert "for full attention alone" == found["left_out"]["saber n=2"]
    shown = CliRunner().invoke(app, asked).stdout
    assert "same states, not same trajectory" in shown and shown.splitlines()[2].startswith("threshold 0.01")
    everyone = CliRunner().invoke(app, ["selectors", folder, "--json"])
    assert {"static k=1", "credit 0.9", "frechet 0.25"} <= {
        row["selector"] for row in json.loads(everyone.stdout)["runs"][0]["selectors"]
    }


def test_a_folder_without_recorded_logits_says_how_to_get_them(tmp_path):
    result = CliRunner().invoke(app, ["selectors", str(tmp_path)])
    assert result.exit_code != 0 and "--record-logits 4" in str(result.exception)
