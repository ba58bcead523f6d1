"""Two runs on the same items: flips, and where decodings part. Run: pytest tests/unit/test_diff.py"""

import json

import pytest
from synthetic import make_run
from typer.testing import CliRunner

from dlmbench.analysis.diff import compare, parting
from dlmbench.analysis.load import Results
from dlmbench.cli.app import app
from dlmbench.errors import RequestError
from dlmbench.runs import RunFolder, Trace
from dlmbench.stats import mcnemar


def step(revealed, leads=None, remasked=()):
    return {
        "positions": list(revealed),
        "tokens": list(revealed.values()),
        "remasked": list(remasked),
        "scores": {"positions": list(leads or {}), "lead": list((leads or {}).values())},
    }


def trace(*steps, key="item-0000"):
    return Trace(key, 10, [1], True, {"1": "one", "2": "two", "3": "three"}, list(steps))


def test_decodings_part_in_the_first_step_that_does_something_else():
    left = trace(step({10: 1}), step({12: 3, 11: 1}, {11: 0.5, 12: 4.0}), step({13: 1}))
    right = trace(step({10: 1}), step({11: 2, 12: 3}, {11: 0.1, 12: 3.0}))
    found = parting(left, right)
    assert (found.step, found.steps) == (2, (3, 2))
    assert found.first == [(2, "three", 4.0), (1, "one", 0.5)] and found.lead == 0.1, "at 2 both did the same"
    assert found.clash == (1, ("one", 2, 0.5), ("two", 2, 0.1))


def test_order_and_end_are_partings_without_a_clash():
    both, one_by_one = trace(step({10: 1, 11: 2})), trace(step({10: 1}), step({11: 2}))
    assert parting(both, both) is None
    found = parting(both, one_by_one)
    assert found.step == 1 and found.clash is None and found.lead is None
    shorter = parting(one_by_one, trace(step({10: 1})))
    assert shorter.step == 2 and shorter.second == []


def test_a_token_that_is_taken_back_does_not_clash():
    left = trace(step({10: 1}), step({}, remasked=[10]), step({10: 2}))
    found = parting(left, trace(step({10: 2})))
    assert found.step == 1 and found.clash is None
    assert parting(left, trace(step({10: 1}), step({10: 2}))).first == [(0, "(taken back)", None)]


def rows(runs):
    """Their rows, in this order."""
    return [Results([run]).rows[0] for run in runs]


@pytest.fixture
def two(tmp_path):
    first = make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=0.9, items=60)
    second = make_run(tmp_path, threshold=0.6, accuracy=0.6, items=50)
    for run, token in ((first, 1), (second, 2)):
        with run.writing() as writer:
            writer.traces([trace(step({10: token}, {10: 0.25}), key=f"item-{n:04d}") for n in range(50)])
    return first, second


def test_flips_are_counted_on_shared_items(two):
    found = compare(*rows(two))
    wins = [sum(item.scores[i] > item.scores[1 - i] for item in found.items) for i in (0, 1)]
    assert len(found.items) == 50 and found.alone == (10, 0)
    assert found.difference.p_value == mcnemar(*wins) and sum(wins) == sum(item.flipped for item in found.items)
    assert f"{wins[0]} only static k=1 solves" in found.sentence()
    assert all(item.parting.clash == (0, ("one", 1, 0.25), ("two", 1, 0.25)) for item in found.items)


def test_the_verb(two, tmp_path):
    first, second = (str(run.path) for run in two)
    shown = CliRunner().invoke(app, ["diff", first, second]).stdout
    assert "they part in step 1" in shown and "'one' in step 1 (lead 0.25) / 'two'" in shown
    assert "10 items are in the first run only" in shown
    record = json.loads(CliRunner().invoke(app, ["diff", first, second, "--items", "2", "--json"]).stdout)
    assert len(record["shown"]) == 2 and record["shown"][0]["lead"] == 0.25 and record["items"] == 50
    other = make_run(tmp_path, threshold=0.7, finished=False)
    for place, words in ((tmp_path, "no run folder"), (other.path, "unfinished")):
        error = CliRunner().invoke(app, ["diff", first, str(place)]).exception
        assert isinstance(error, RequestError) and words in str(error)


def test_runs_on_other_prompts_are_refused(two):
    path = two[1].path / "samples.jsonl"
    path.write_text(path.read_text().replace('"prompt_hash": "', '"prompt_hash": "x'))
    with pytest.raises(RequestError, match="share no prompt"):
        compare(*rows(RunFolder(run.path) for run in two))
