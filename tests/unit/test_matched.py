"""Groups of comparable rows: who may be compared, fronts, matched points. Run: pytest tests/unit/test_matched.py"""

import numpy as np
import pytest
from synthetic import PRICES, forwards, make_run

from dlmbench import stats
from dlmbench.analysis import fronts
from dlmbench.analysis.load import Results
from dlmbench.analysis.matched import matched
from dlmbench.report.columns import record
from dlmbench.report.markdown import matched_markdown, write_table
from dlmbench.runs import find_runs
from dlmbench.runs.aggregate import aggregate, item_costs


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=0.9, nfe=40)
    make_run(tmp_path, method="static", threshold=None, label="static k=2", accuracy=0.6, nfe=21)
    for threshold, accuracy, nfe in ((0.3, 0.5, 10), (0.6, 0.75, 18), (0.9, 0.9, 30)):
        make_run(tmp_path, threshold=threshold, accuracy=accuracy, nfe=nfe)
    make_run(tmp_path, method="mrp", threshold=0.6, accuracy=0.93, nfe=15, draft=8)
    return tmp_path


def test_item_costs_add_up_to_the_row(runs):
    run = find_runs(runs)[0]
    costs = item_costs(run.samples, PRICES)
    assert sum(costs) / len(costs) == pytest.approx(aggregate(run.samples, PRICES).cost)
    assert item_costs(run.samples, forwards(draft_denoise_8=1.0)) is None


def test_other_hardware_weights_batches_and_budgets_are_other_groups(runs):
    make_run(runs, threshold=0.7, device="another CPU")
    make_run(runs, threshold=0.7, weights="b" * 16)
    make_run(runs, threshold=0.7, batch_size=1)
    make_run(runs, threshold=0.7, seed=1)
    make_run(runs, threshold=0.7, gen_length=64)
    found = Results.load(runs).groups
    assert sorted(len(group.rows) for group in found) == [1, 1, 1, 1, 1, 6]


def test_a_cache_policy_of_one_method_stands_beside_the_others_without_a_cache(runs):
    make_run(runs, method="guided", threshold=None, cache="prompt", nfe=9)
    make_run(runs, method="guided", threshold=None, label="guided dual", cache="dual", nfe=9)
    assert sorted(len(group.rows) for group in Results.load(runs).groups) == [1, 7]


def test_a_budget_is_named_where_it_is_not_the_task_s_own(tmp_path):
    make_run(tmp_path), make_run(tmp_path, gen_length=64)
    rows = Results.load(tmp_path).rows
    assert sorted((row.paired["gen_length"], row.circumstances["gen_length"] is None) for row in rows) == [
        (64, False),
        (128, True),
    ]


def test_a_group_keeps_the_items_that_all_rows_hold(runs):
    make_run(runs, method="wino", threshold=0.5, items=50)
    (group,) = Results.load(runs).groups
    assert group.accuracy.shape == group.cost.shape == (7, 50) and group.unit == "cost"


def test_front_shares_are_a_column(runs):
    rows = {row.label: row for row in Results.load(runs).rows}
    assert rows["threshold 0.3"].front_share == 1, "the cheapest stands always"
    assert rows["mrp 0.6"].front_share > 0.9 > 0.1 > rows["static k=2"].front_share
    assert "front_share" in record(rows["mrp 0.6"]) and "front_share" not in record(rows["mrp 0.6"], samples=False)


def test_a_row_is_compared_with_the_thresholds_around_it_mixed_to_its_work(runs):
    make_run(runs, method="klass", threshold=0.6, accuracy=0.9, nfe=24)
    rows = {row.label: row for row in Results.load(runs).rows}
    found, group = rows["klass 0.6"].against["curve"], rows["klass 0.6"].group
    ((first, share), (second, rest)) = group.mixture(rows["klass 0.6"])
    assert (first.label, second.label) == ("threshold 0.6", "threshold 0.9") and share + rest == pytest.approx(1)
    assert first.nfe * share + second.nfe * rest == pytest.approx(rows["klass 0.6"].nfe), "as many forwards"
    plain = first.accuracy * share + second.accuracy * rest
    assert found.difference == pytest.approx(rows["klass 0.6"].accuracy - plain)
    assert found.baseline is (first if share > rest else second) and found.label.startswith("threshold 0.6 x ")
    assert rows["klass 0.6"].against["threshold"].baseline.label == "threshold 0.6", "at the same confidence still"
    family = [row.against["curve"].p_value for row in group.rows if "curve" in row.against]
    assert len(family) == 4, "static k=1 and k=2, mrp and klass"
    assert found.p_holm >= found.p_value and stats.holm(family)[family.index(found.p_value)] == found.p_holm


def test_a_threshold_of_the_same_work_is_compared_exactly(runs):
    make_run(runs, method="klass", threshold=0.6, accuracy=0.9, nfe=24)
    make_run(runs, method="wino", threshold=0.6, accuracy=0.9, nfe=40)
    rows = {row.label: row for row in Results.load(runs).rows}
    mixed, alone = rows["klass 0.6"].against["curve"], rows["wino 0.6"].against["curve"]
    assert " x " in mixed.label and np.isnan(mixed.p_equal)
    assert alone.label == "threshold 0.9" and not np.isnan(alone.p_equal), "whatever else the family holds"
    values = dict(zip(alone.baseline.group.rows, alone.baseline.group.accuracy))
    pairs = stats.Pairs.of(values[rows["wino 0.6"]], values[alone.baseline])
    assert (alone.low, alone.high) == stats.tango(pairs) and alone.p_value == stats.mcnemar(pairs.only_a, pairs.only_b)


@pytest.mark.parametrize("factor", [1 - 1e-15, 1, 1 + 1e-15])
def test_the_same_work_added_up_in_another_order_is_the_same(factor):
    work, accuracy = np.array([0.1 + 0.2, 1.0, 2.0]), np.array([0.5, 0.7, 0.9])
    for place, budget in enumerate(work):
        assert fronts.mixture(work, accuracy, float(budget) * factor) == [(place, 1.0)]


def test_the_work_of_a_threshold_that_solves_less_for_more_does_not_count(runs):
    make_run(runs, threshold=0.7, accuracy=0.4, nfe=22)
    make_run(runs, method="klass", threshold=0.6, accuracy=0.9, nfe=22)
    make_run(runs, method="wino", threshold=0.6, accuracy=0.9, nfe=8)
    make_run(runs, method="credit", threshold=0.6, accuracy=0.9, nfe=70)
    rows = {row.label: row for row in Results.load(runs).rows}
    assert [row.label for row, _ in rows["klass 0.6"].group.mixture(rows["klass 0.6"])] == [
        "threshold 0.6",
        "threshold 0.9",
    ]
    assert rows["credit 0.6"].against["curve"].label == "threshold 0.9", "nobody has to spend all"
    assert "curve" not in rows["wino 0.6"].against, "it does less than every threshold"
    assert "curve" not in rows["threshold 0.3"].against


def test_matched_points(runs):
    (group,) = Results.load(runs).groups
    by_method = {one.method: one for one in matched(group)}
    ours, plain = by_method["mrp"], by_method["threshold"]
    assert ours.accuracy.value == pytest.approx(group.rows[0].accuracy), "one setting, within the budget"
    assert ours.against.low > 0, "better than threshold at the same cost"
    assert ours.against.value == pytest.approx(ours.accuracy.value - plain.accuracy.value)
    assert ours.cost.value == pytest.approx(group.cost[0].mean() / group.curve(group.reference).cost.mean(), abs=1e-6)
    assert plain.against is None and 0 < ours.hypervolume < 1
    # static k=2 costs more than half of k=1 (prefill is paid twice): below its cheapest setting there is nothing
    assert by_method["static"].accuracy.value != by_method["static"].accuracy.value


def test_all_right_on_a_few_items_is_not_certain(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=1.0, nfe=40, items=12)
    make_run(tmp_path, threshold=0.6, accuracy=1.0, nfe=10, items=12)
    by_method = {one.method: one for one in matched(Results.load(tmp_path).groups[0])}
    found = by_method["threshold"].accuracy
    assert found.value == found.high == pytest.approx(1) and found.low == pytest.approx(0.7575, abs=1e-3)


def test_without_a_reference_there_is_nothing_to_match(tmp_path):
    make_run(tmp_path, threshold=0.3)
    (group,) = Results.load(tmp_path).groups
    assert matched(group) == () and matched_markdown([group]) == ""


def test_the_section_ends_the_table(runs):
    _, path = write_table(Results.load(runs), runs)
    text = path.read_text()
    assert text.index("at equal cost") > text.index("in percent, with its 95 % Wilson interval")
    assert "AUP" not in text, "it knows no helper, and its definition is not checked"
    assert "Reference: static k=1" in text and " better" in text
