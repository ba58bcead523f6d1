"""Recipes of papers bind, cover what was published, print their plan. Run: pytest tests/unit/test_paper_recipes.py"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from synthetic import manifest
from typer.testing import CliRunner

from dlmbench.analysis import published
from dlmbench.analysis.row import Row
from dlmbench.request import SweepSpec
from dlmbench.request.key import same_request
from dlmbench.runs.record import Metrics, TaskFacts
from dlmbench.tasks import catalogue

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "papers").glob("*.yaml"))
PAPERS = {"mrp", "prophet", "rcd", "simsd", "fastdllm", "adjust", "freecache_guided"}


def test_every_paper_has_one():
    assert {path.stem for path in RECIPES} == PAPERS


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_option_binds(path):
    sweep = SweepSpec.from_recipe(path)
    cells, _ = sweep.resolve()
    assert sweep.description and sweep.out == f"results/papers/{path.stem}"
    assert all(cell.gen_length and cell.block_length for cell in cells)
    assert len({same_request(cell) for cell in cells}) == len(cells)


def as_row(cell):
    """A resolved run as the row of the table that it would make."""
    asked = manifest(
        label=cell.label,
        parameters=cell.parameters,
        spec=cell.settled,
        task=TaskFacts(cell.spec.task, num_fewshot=cell.spec.num_fewshot, chat_template=cell.chat_template),
        block_length=cell.block_length,
        gen_length=cell.gen_length,
    )
    metrics = Metrics(
        items=cell.spec.limit or 1, accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6, nfe=1.0, tokens=1.0
    )
    return Row(None, asked, metrics, cell.spec.model, SimpleNamespace(reference=None))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_published_settings_are_in_it(path):
    cells, _ = SweepSpec.from_recipe(path).resolve()
    rows = [as_row(cell) for cell in cells]
    ours = {row.name for row in catalogue()}
    every = [one for one in published.read() if one.task in ours]
    file = path.parent.parent / "published" / f"{path.stem}.csv"
    papers = {line.split('"')[1] for line in file.read_text().splitlines()[1:]}
    wanted = [one for one in published.known_for(rows, every) if one.paper in papers]
    found = [pair.published for pair in published.pairs(rows, wanted)]
    missing = [(one.label, one.model, one.task) for one in wanted if one not in found]
    assert wanted and not missing


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_plan_needs_no_network(path, monkeypatch):
    from dlmbench.cli.app import app
    from dlmbench.tasks import data

    monkeypatch.setattr(data, "_hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, ["sweep", str(path), "--dry-run", "--json"])
    assert result.exit_code == 0, result.exception
    plan = json.loads(result.stdout)
    cells, _ = SweepSpec.from_recipe(path).resolve()
    assert len(plan["cells"]) == len(cells)
    assert {cell["method"] for cell in plan["cells"]} == {cell.label for cell in cells}
