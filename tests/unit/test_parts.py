"""A loss in three parts. Run: pytest tests/unit/test_parts.py"""

import pytest
from synthetic import make_run, scored

from dlmbench.analysis.load import Results
from dlmbench.analysis.parts import needed, parts
from dlmbench.errors import RequestError
from dlmbench.report.figures.parts import losses

ITEMS = 100


def runs(root, seed=0):
    """Right at one token a step and with a threshold: 100 and 90 % on the ideal model, 80 and 65 % on nano2."""
    for model, right in (("oracle", (100, 90)), ("nano2", (80, 65))):
        for method, threshold, nfe, count in (("static", None, 32, right[0]), ("threshold", 0.6, 8, right[1])):
            run = make_run(
                root, method=method, threshold=threshold, model=model, weights=model[0] * 16, nfe=nfe, items=ITEMS,
                task="stress-shuffle", seed=seed,
            )  # fmt: skip
            scored(run, set(range(count)))


def test_the_parts_add_up_to_the_loss_and_their_interval_is_that_of_pairs(tmp_path):
    runs(tmp_path)
    rows = Results.load(tmp_path).rows
    (one,) = (part for part in parts(rows) if part.row.method == "threshold")
    assert (one.rule, one.model, one.interaction) == pytest.approx((0.10, 0.20, 0.05))
    assert one.loss == pytest.approx(one.rule + one.model + one.interaction)
    # Items 0-64 and 80-89 have nothing to explain, 65-79 lost one more than the parts, 90-99 one less
    values = [0] * 65 + [1] * 15 + [0] * 10 + [-1] * 10
    low, high = one.interval
    assert low < sum(values) / ITEMS < high and (low, high) == pytest.approx((-0.05, 0.15), abs=0.02)
    assert {part.row.model for part in parts(rows)} == {"nano2"}, "an ideal model has no parts of its own"


def test_seeds_are_averaged_item_by_item(tmp_path):
    for seed in (0, 1):
        runs(tmp_path, seed)
    (one,) = (part for part in parts(Results.load(tmp_path).rows) if part.row.method == "threshold")
    assert (one.seeds, one.items) == (2, ITEMS) and one.interaction == pytest.approx(0.05)


def test_forwards_for_99_percent_are_those_of_the_ideal_model(tmp_path):
    runs(tmp_path)
    rows = Results.load(tmp_path).rows
    assert needed(rows) == {("static", "stress-shuffle"): 1.0}, "threshold has 90 % there"


def test_the_map_says_all_three_parts_and_refuses_what_has_no_ideal_model(tmp_path):
    runs(tmp_path)
    rows = Results.load(tmp_path).rows
    svg = next(path for path in losses(rows, tmp_path, "losses") if path.suffix == ".svg").read_text()
    for words in ("points lost on nano2", "35.0", "10 + 20 (+ 5)", "20.0", "0 + 20 (+ 0)", "shuffle"):
        assert words in svg, words
    with pytest.raises(RequestError, match="--model oracle"):
        losses([row for row in rows if row.model == "nano2"], tmp_path, "none")


@pytest.mark.parametrize("lucky", [0, 1])
def test_a_setting_is_chosen_over_all_seeds_and_stands_alone_in_its_cell(tmp_path, lucky):
    """0.6 loses nothing with one seed and 40 points with the other; 0.9 loses one on average."""
    right = {("static", None): (80, 80), ("threshold", 0.6): (80, 40), ("threshold", 0.9): (78, 80)}
    for seed in (0, 1):
        for model in ("oracle", "nano2"):
            for number, ((method, threshold), counts) in enumerate(right.items()):
                run = make_run(
                    tmp_path, method=method, threshold=threshold, model=model, weights=model[0] * 16,
                    nfe=(32, 8, 16)[number], items=ITEMS, task="stress-shuffle", seed=seed,
                )  # fmt: skip
                scored(run, set(range(ITEMS if model == "oracle" else counts[seed ^ lucky])))
    svg = losses(Results.load(tmp_path).rows, tmp_path, "losses")
    text = next(path for path in svg if path.suffix == ".svg").read_text()
    assert "<!-- 21.0 -->" in text and "<!-- 40.0 -->" not in text
