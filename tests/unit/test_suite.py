"""A frozen suite runs on what it was frozen with, or not at all. Run: pytest tests/unit/test_suite.py"""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dlmbench.errors import RequestError
from dlmbench.request import SweepSpec
from dlmbench.runs import sweep
from dlmbench.stats import MARGIN
from dlmbench.tasks import load_task

RECIPE = """
name: small-2026.12
model: oracle
tasks: [{{task: stress-sudoku, limit: 2}}]
methods: [{{method: threshold, threshold: {thresholds}}}]
suite: {{budget: 3, margin: {margin}, hashes: {{stress-sudoku: '{hash}'}}}}
"""


def read(folder, thresholds="[0.5, 0.9]", margin=MARGIN, hash="0" * 16) -> SweepSpec:
    path = folder / "suite.yaml"
    path.write_text(RECIPE.format(thresholds=thresholds, margin=margin, hash=hash))
    return SweepSpec.from_recipe(path, {"out": str(folder / "out"), "device": "cpu"})


def test_a_suite_refuses_other_items_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "load_task", lambda name: SimpleNamespace(content_hash="1" * 16))
    spec = read(tmp_path)
    runs, _ = spec.resolve()
    with pytest.raises(RequestError, match=r"items of stress-sudoku \(1{16}\) are not those of suite small-2026.12"):
        sweep.run_sweep(spec, runs, runner=None)
    right = read(tmp_path, hash="1" * 16)
    with pytest.raises(AttributeError):  # it goes on to the runner
        sweep.run_sweep(right, runs, runner=None)


def test_a_suite_refuses_more_settings_than_its_budget_and_another_margin(tmp_path):
    with pytest.raises(RequestError, match="allows 3 settings a method and threshold has 4 on stress-sudoku"):
        read(tmp_path, thresholds="[0.5, 0.6, 0.7, 0.9]").resolve()
    with pytest.raises(RequestError, match=f"margin of 0.5, this version of dlmbench judges by {MARGIN:g}"):
        read(tmp_path, margin=0.5)


def test_a_suite_gives_all_its_fields_and_names_its_tasks(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text("model: oracle\ntasks: [stress-copy]\nmethods: [static]\nsuite: {budget: 3}\n")
    with pytest.raises(RequestError, match="has to give budget, hashes, margin"):
        SweepSpec.from_recipe(path)
    path.write_text(RECIPE.format(thresholds=0.5, margin=MARGIN, hash="0").replace("{stress-sudoku:", "{stress-copy:"))
    with pytest.raises(RequestError, match="has no task stress-sudoku; it has stress-copy"):
        SweepSpec.from_recipe(path).resolve()


@pytest.mark.parametrize("name", ["dlmbench-2026.12", "dlmbench-2026.12-full"])
def test_the_suites_to_be_cited_were_frozen_with_the_tasks_as_they_are(name):
    spec = SweepSpec.from_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    spec.resolve()  # within its budget
    assert {task: load_task(task).content_hash for task in spec.suite.hashes} == dict(spec.suite.hashes)
