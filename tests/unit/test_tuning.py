"""Settings are chosen on dev by what they cost, not by luck. Run: pytest tests/unit/test_tuning.py"""

import json
from dataclasses import asdict

import pytest

from dlmbench.errors import RequestError
from dlmbench.request import SweepSpec
from dlmbench.runs.sweep import Choice, Tried, cheapest_within, planned_runs, run_sweep, trials_of, tries

STATIC = Tried("static k=1", 0.90, 40, 44.0)


def test_the_cheapest_setting_that_keeps_the_accuracy_is_taken():
    settings = [
        Tried("threshold 0.5", 0.87, 10, 12.0),  # three points below
        Tried("threshold 0.7", 0.88, 14, 16.0),  # two points below, which is allowed
        Tried("threshold 0.9", 0.94, 20, 22.0),  # the highest accuracy on these few items
    ]
    assert cheapest_within(settings, STATIC).label == "threshold 0.7"


def test_of_equal_costs_the_more_accurate_and_forwards_for_want_of_prices():
    assert cheapest_within([Tried("a", 0.89, 9, 12.0), Tried("b", 0.91, 9, 12.0)], STATIC).label == "b"
    assert cheapest_within([Tried("a", 0.89, 9, None), Tried("b", 0.91, 12, 10.0)], STATIC).label == "a"


def test_where_none_keeps_it_the_least_loss_is_taken_and_said():
    settings = [Tried("threshold 0.5", 0.50, 10, 12.0), Tried("threshold 0.9", 0.70, 20, 22.0)]
    chosen = cheapest_within(settings, STATIC)
    assert chosen.label == "threshold 0.9"
    sentence = Choice("nano-gsm", "nano2", "threshold", chosen.label, settings, 100, STATIC).sentence
    assert "none keeps static k=1's accuracy within 2 points" in sentence and "out of 2 settings" in sentence


def test_the_sentence_names_rule_and_reference():
    settings = [Tried("threshold 0.7", 0.88, 14, 16.0)]
    sentence = Choice("nano-gsm", "nano2", "threshold", "threshold 0.7", settings, 100, STATIC).sentence
    assert "the cheapest that loses at most 2 points against static k=1: 88.0 % against 90.0 % there" in sentence
    alone = Choice("nano-gsm", "nano2", "static", "static k=1", [STATIC], 100, STATIC).sentence
    assert alone.endswith("out of 1 setting of static on 100 dev items (90.0 % there).")


def test_a_later_sweep_into_the_folder_keeps_what_was_chosen(tmp_path):
    class Found:
        def run(self, runs):
            return []

    def record(choice):
        return {**asdict(choice), "folder": "nano-gsm-threshold-1"}

    made = Choice("nano-gsm", "nano2", "threshold", "threshold 0.7", [Tried("threshold 0.7", 0.88, 14)], 100, STATIC)
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "first", "choices": [record(made)]}))
    sweep = SweepSpec.from_flags({"method": "static", "task": "nano-gsm", "out": str(tmp_path)})
    run_sweep(sweep, [], Found())
    assert json.loads((tmp_path / "sweep.json").read_text())["name"] == "sweep"
    assert trials_of(tmp_path) == {"nano-gsm-threshold-1": 1}


RECIPE = """
tune_on: dev
dev_limit: 12
limit: 100
out: results/x
tasks: [nano-gsm]
methods:
  - {method: static, set: {k: [1, 2]}}
  - {method: threshold, threshold: [0.7, 0.8, 0.9], report: all}
  - {method: entropy, threshold: [0.1, 0.35]}
  - {method: threshold, cache: dual, model: nano2-llada, against: none}
  - {method: ar, model: nano2-ar}
"""


def recipe(tmp_path, text=RECIPE):
    (tmp_path / "tuned.yaml").write_text(text)
    return SweepSpec.from_recipe(tmp_path / "tuned.yaml")


def test_trials_take_few_items_and_what_has_one_setting_is_not_tried(tmp_path):
    sweep = recipe(tmp_path)
    runs, _ = sweep.resolve()
    planned = planned_runs(sweep, runs)
    trials = [run for run in planned if run.trial]
    assert [run.label for run in trials] == [
        "static k=1", "static k=2", "threshold 0.7", "threshold 0.8", "threshold 0.9", "entropy 0.1", "entropy 0.35",
    ]  # fmt: skip
    assert {(run.spec.split, run.spec.limit, run.spec.out) for run in trials} == {("dev", 12, "results/x/dev")}
    rest = [run.label for run in planned if not run.trial]
    assert sorted(rest) == [
        "ar", "entropy 0.1", "static k=1", "threshold 0.7", "threshold 0.8", "threshold 0.9", "threshold 0.9 dual",
    ]  # fmt: skip
    assert {run.spec.limit for run in planned if not run.trial} == {100}


def test_numbers_of_tries_are_told_and_static_is_no_competitor(tmp_path):
    assert tries(recipe(tmp_path).resolve()[0]) == [
        "nano-gsm, nano2: settings tried on dev: threshold 3, entropy 2; unequal numbers favour the methods with more "
        "tries.",
        "nano-gsm, nano2-llada: settings tried on dev: none; at the setting that was given: threshold dual.",
        "nano-gsm, nano2-ar: settings tried on dev: none; at the setting that was given: ar.",
    ]


def test_settings_of_another_cache_policy_or_shared_option_do_not_compete(tmp_path):
    text = (
        RECIPE
        + """
  - {method: prophet, model: nano2-llada, set: {k: [1, 2], sampling.constraint: true}}
  - {method: static, model: nano2-llada}
"""
    )
    runs, _ = recipe(tmp_path, text).resolve()
    trials = [run.label for run in planned_runs(recipe(tmp_path, text), runs) if run.trial]
    assert "static k=1 constraint=True" in trials, "the reference of prophet's group"
    assert "static k=1" in trials and trials.count("static k=1") == 1, "nano2's; that of nano2-llada has no competitor"


@pytest.mark.parametrize(
    "text, words",
    [
        (RECIPE.replace("report: all", "report: some"), "report of threshold is 'some'"),
        (RECIPE.replace("tune_on: dev\n", ""), "add tune_on: dev"),
        (RECIPE.replace("dev_limit: 12", "dev_limit: many"), "dev_limit is 'many'"),
    ],
)
def test_wrong_recipes_of_tuned_sweeps_are_refused(tmp_path, text, words):
    with pytest.raises(RequestError, match=words):
        recipe(tmp_path, text)
