"""Advice: which setting, or that the items are too few. Run: pytest tests/unit/test_recommend.py"""

import json

import pytest
from synthetic import make_run
from typer.testing import CliRunner

from dlmbench.analysis.load import Results
from dlmbench.analysis.recommend import recommend
from dlmbench.cli.app import app
from dlmbench.errors import RequestError
from dlmbench.runs import find_runs
from dlmbench.stats import TOO_FEW


def runs(root, items=400, batch_size=16):
    shared = {"items": items, "batch_size": batch_size}
    make_run(root, method="static", threshold=None, label="static k=1", accuracy=0.8, nfe=40, **shared)
    make_run(root, threshold=0.9, accuracy=0.93, nfe=30, **shared)
    make_run(root, method="mrp", threshold=0.6, accuracy=0.92, nfe=15, **shared)
    make_run(root, threshold=0.3, accuracy=0.4, nfe=8, **shared)


def advice(root, drop=0.03, by="cost"):
    (group,) = Results.load(root).groups
    return recommend(group, drop, by)


def test_the_cheapest_that_keeps_the_limit(tmp_path):
    runs(tmp_path)
    found = advice(tmp_path)
    assert found.choice.row.label == "mrp 0.6" and found.unsure is None and found.tried == 3
    assert found.choice.low > -0.03 and 0.3 < found.choice.cost.value < 0.5
    (sentence,) = found.sentences()
    assert sentence.startswith("nano-gsm (400 items), nano2, batch 16, a CPU: take mrp 0.6;") and "tokens/s" in sentence


def test_few_items_are_no_answer(tmp_path):
    runs(tmp_path, items=20)
    found = advice(tmp_path, drop=0.01)
    assert found.choice is None and found.unsure.keeps == TOO_FEW and found.needed > 20
    assert TOO_FEW in found.sentences()[0] and "items would tell" in found.sentences()[1]


def test_agreement_on_few_items_is_no_proof(tmp_path):
    """Where no item tells two settings apart, a bootstrap interval has no width and would say yes."""
    for method, nfe in (("static", 40), ("wino", 10)):
        make_run(tmp_path, method=method, threshold=None, accuracy=1.0, nfe=nfe, items=12)
    found = advice(tmp_path, drop=0.01)
    assert found.choice is None and found.unsure.difference == 0


def test_nothing_keeps_a_limit_that_all_break(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=0.9, nfe=40, items=300)
    make_run(tmp_path, threshold=0.3, accuracy=0.4, nfe=8, items=300)
    found = advice(tmp_path, drop=0.01)
    assert found.choice is None and found.unsure is None and "stay with static k=1" in found.sentences()[0]


def test_a_loss_on_few_items_is_not_said_to_be_one_of_every_setting(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=1.0, nfe=40, items=8)
    make_run(tmp_path, threshold=0.3, accuracy=0.9, nfe=8, items=8)
    found = advice(tmp_path, drop=0.01)
    assert found.choice is None and found.unsure is None
    assert "8 items are too few to be sure" in found.sentences()[0] and "stay" not in found.sentences()[0]


def test_where_nothing_is_cheaper_nothing_is_said_to_lose(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=0.9, nfe=20, items=100)
    make_run(tmp_path, threshold=0.9, accuracy=0.9, nfe=60, items=100)
    assert "no cheaper setting than static k=1 was run" in advice(tmp_path, drop=0.01).sentences()[0]


def test_more_candidates_need_wider_intervals(tmp_path):
    runs(tmp_path)
    alone = tmp_path / "alone"
    make_run(alone, method="static", threshold=None, label="static k=1", accuracy=0.8, nfe=40, items=400)
    make_run(alone, method="mrp", threshold=0.6, accuracy=0.92, nfe=15, items=400)
    assert advice(alone).choice.low > advice_of(tmp_path, "mrp 0.6").low


def advice_of(root, label):
    (group,) = Results(run for run in find_runs(root) if run.path.parent == root).groups
    found = recommend(group, 0.03)
    assert found.choice.row.label == label
    return found.choice


def test_rows_without_a_reference_get_no_advice(tmp_path):
    make_run(tmp_path, threshold=0.3)
    make_run(tmp_path, threshold=0.6)
    assert advice(tmp_path) is None


def test_the_verb_keeps_batches_and_hardware_apart(tmp_path):
    runs(tmp_path)
    runs(tmp_path, batch_size=1)
    shown = CliRunner().invoke(app, ["recommend", str(tmp_path), "--max-drop", "3"]).stdout
    assert "batch 1," in shown and "batch 16," in shown
    record = json.loads(CliRunner().invoke(app, ["recommend", str(tmp_path), "--batch", "1", "--json"]).stdout)
    assert len(record["advice"]) == 1 and record["advice"][0]["reference"]["batch_size"] == 1
    for arguments, words in (
        (["--batch", "7"], "batch size 7"),
        (["--by", "luck"], "--by"),
        (["--max-drop", "-1"], "--max-drop"),
    ):
        error = CliRunner().invoke(app, ["recommend", str(tmp_path), *arguments]).exception
        assert isinstance(error, RequestError) and words in str(error)
    with pytest.raises(RequestError, match="does not exist"):
        raise CliRunner().invoke(app, ["recommend", str(tmp_path / "nowhere")]).exception
