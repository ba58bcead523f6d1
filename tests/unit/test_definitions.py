"""Every number of a table on six items, by hand. Run: pytest tests/unit/test_definitions.py

Of each item: the prompt has 16 tokens; a block has 8 positions; a query sees 24 keys (16 of the prompt, 8 of its
block); the answer has 8 tokens. A forward of the target reads 1000 bytes of weights and 10 a key, of the draft 400 and
5, of the head 300 and none. Prices: a denoise of the target 1, a store 0.5, its prefill 2; a pass of the draft 0.25, of
the head 0.1. FLOPs: 100 a denoise or store of the target, 40 a pass of the draft, 150 of the head.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import forwards, manifest

from dlmbench import stats
from dlmbench.analysis.load import Results
from dlmbench.analysis.projection import H100, projected_cost
from dlmbench.report import columns
from dlmbench.report.definitions import definitions
from dlmbench.request import RunSpec
from dlmbench.runs import RunFolder, Sample
from dlmbench.runs.aggregate import aggregate, cost_interval
from dlmbench.runs.record import Calibration, Circumstances, Rate, Speed, Work

PRICES = forwards(
    target_denoise_8=1.0, target_store_8=0.5, target_prefill_prompt=2.0, draft_denoise_8=0.25, head_pass_8=0.1
)
SPREADS = {**forwards(target_store_8=(0.4, 0.7)), **forwards(draft_denoise_8=(0.2, 0.35))}
FLOPS = {"target": 100.0, "draft": 40.0, "head": 150.0}
READS = {
    "target": {"weights": 1000, "key": 10},
    "draft": {"weights": 400, "key": 5},
    "head": {"weights": 300, "key": 0},
}


def work(role: str, calls: int) -> Work:
    """So many forwards over the 8 positions of a block, of which each sees 24 keys."""
    return Work(calls, 8 * calls, 8 * 24 * calls, FLOPS[role] * calls)


def make(root, method, right, passes, speed):
    """A run whose items took these passes: (role, kind) -> forwards an item."""
    counts = {"target": {"prefill": Work(1, 16, 16 * 16, 200.0)}}
    for (role, kind), calls in passes.items():
        counts.setdefault(role, {})[kind] = work(role, calls)
    names = {f"{role}_{kind}_8": calls for (role, kind), calls in passes.items()}
    samples = [
        Sample(f"item-{n}", f"{n}", [5, 6, 1], "", {"accuracy": float(one)}, counts,
               forwards(target_prefill_prompt=1, **names), 8, 0.1, "eos", 0, 0, [])
        for n, one in enumerate(right)
    ]  # fmt: skip
    roles = sorted({role for role, _ in passes})
    circumstances = Circumstances(dict.fromkeys(roles, "w"), 4, "float32", 8, "nano-gsm", "a CPU", 2, "2.11")
    found = manifest(
        method.ljust(64, "0"),
        label=method,
        threshold=None,
        threshold_unit="",
        spec=RunSpec(method, "nano-gsm", model="nano2", device="cpu", dtype="float32", batch_size=4),
        model={"reads": {role: READS[role] for role in roles}},
        calibration=Calibration(circumstances, 0.004, PRICES, spreads=SPREADS),
    )
    folder = RunFolder(root / method)
    with folder.writing() as writer:
        writer.manifest(found)
        writer.samples(samples)
        writer.metrics(aggregate(samples, PRICES, speed))
    return folder


STEADY = Speed(6, 3, 6, Rate(100, 90, 110), Rate(80, 75, 85), outside=0.125)
UNSTEADY = Speed(6, 3, 6, Rate(100, 80, 120), Rate(80, 75, 85))  # 120 / 80 is more than 1.3


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """static: 8 denoise, 1 store an item. simsd: 4 denoise, 6 passes of the draft. mrp: 4 denoise, 4 of the head.
    threshold: 10 denoise, 1 store."""
    root = tmp_path_factory.mktemp("six")
    runs = [
        make(root, "static", [1, 1, 1, 1, 0, 0], {("target", "denoise"): 8, ("target", "store"): 1}, STEADY),
        make(root, "simsd", [1, 1, 1, 0, 1, 0], {("target", "denoise"): 4, ("draft", "denoise"): 6}, UNSTEADY),
        make(root, "mrp", [1, 1, 1, 1, 1, 1], {("target", "denoise"): 4, ("head", "pass"): 4}, STEADY),
        make(root, "threshold", [1, 1, 1, 1, 0, 0], {("target", "denoise"): 10, ("target", "store"): 1}, STEADY),
    ]
    return {row.method: row for row in Results(runs).rows}


def table(rows, where=columns.MARKDOWN):
    """{method: {title: text}} as a table shows it."""
    listed = list(rows.values())
    shown = columns.table_columns(where, listed)
    brief = where == columns.TERMINAL
    return {row.method: {column.title: column.text(row, brief) for column in shown} for row in listed}


def test_accuracy_with_its_interval(rows):
    """4 of 6: p = 2/3, z = 1.96, centre (p + z^2/12) / (1 + z^2/6) = 0.6016, half width 0.3016."""
    assert [one["accuracy"] for one in table(rows).values()] == [
        "100.0 [61.0, 100.0]",  # mrp; 1 / (1 + z^2/6) = 0.610
        "66.7 [30.0, 90.3]",  # simsd
        "66.7 [30.0, 90.3]",  # static
        "66.7 [30.0, 90.3]",  # threshold
    ]


def test_differences_are_paired_and_a_table_is_one_family(rows):
    """simsd loses item 3 and wins item 4: 1 against 1, p = 1. mrp wins items 4 and 5: p = 2 (1/2)^2 = 0.5, of three
    comparisons 3 x 0.5, at most 1. threshold never differs: p = 1, and its interval has a width all the same."""
    simsd, mrp, threshold = (rows[name].against["static"] for name in ("simsd", "mrp", "threshold"))
    assert (simsd.difference, simsd.p_value) == (0, 1) and (simsd.low, simsd.high) == stats.tango(stats.Pairs(1, 1, 6))
    assert mrp.difference == pytest.approx(2 / 6) and (mrp.p_value, mrp.p_holm) == (0.5, 1.0)
    assert threshold.high == pytest.approx(1.959964**2 / (6 + 1.959964**2)) == -threshold.low, "z^2 / (n + z^2)"
    shown = table(rows)
    assert shown["threshold"]["vs static"] == "0.0 [-39.0, +39.0]", "no sign on nothing, no interval without width"
    assert shown["mrp"]["vs static"].startswith("+33.3 [") and shown["static"]["vs static"] == "-"
    assert [shown[name]["verdict"] for name in rows] == [*2 * ["too close to tell"], "reference", "too close to tell"]


def test_forwards(rows):
    """NFE is denoise + store; TPF 8 tokens over it. Reveals: 8 tokens / 8 denoise is static's 1.00."""
    shown = table(rows)
    assert [shown[name]["NFE"] for name in rows] == ["4.0 + 0.0", "4.0 + 0.0", "8.0 + 1.0", "10.0 + 1.0"]
    assert [shown[name]["TPF"] for name in rows] == ["2.00", "2.00", "0.89", "0.73"], "8/4, 8/4, 8/9, 8/11"
    assert [shown[name]["reveals a forward"] for name in rows] == ["2.00", "2.00", "1.00", "0.80"]
    assert [shown[name]["helpers"] for name in rows] == ["head 4.0", "draft 6.0", "-", "-"]


def test_cost_is_of_decoding_and_prefill_stands_beside_it(rows):
    """static 8 x 1 + 0.5; simsd 4 x 1 + 6 x 0.25; mrp 4 x 1 + 4 x 0.1; threshold 10 x 1 + 0.5; a prefill each."""
    assert [table(rows, columns.TERMINAL)[name]["cost"] for name in rows] == ["4.4", "5.5", "8.5", "10.5"]
    shown = table(rows)
    assert {one["prefill"] for one in shown.values()} == {"2.0"}
    assert rows["simsd"].group.share(rows["simsd"]) == pytest.approx(5.5 / 8.5), "no prompt in a ratio"
    (cost,) = [one for one in columns.table_columns(columns.MARKDOWN, list(rows.values())) if one.name == "cost"]
    assert cost.heading(list(rows.values())) == "cost (a CPU, batch 4)"


def test_the_interval_of_a_cost_is_of_items_and_of_prices(rows):
    """All items take the same forwards, so prices alone spread: a store 0.4 to 0.7, a pass of the draft 0.2 to 0.35;
    the others have none. Six costs 1 .. 6: mean 3.5, deviation sqrt(3.5), half width 1.96 sqrt(3.5 / 6) = 1.497; with
    prices 20 % lower and 10 % higher: 3.5 - sqrt(1.497^2 + 0.7^2), 3.5 + sqrt(1.497^2 + 0.35^2)."""
    shown = [table(rows)[name]["cost"] for name in rows]
    assert shown == ["4.4 [4.4, 4.4]", "5.5 [5.2, 6.1]", "8.5 [8.4, 8.7]", "10.5 [10.4, 10.7]"]
    (one,) = forwards(target_denoise_8=1)
    samples = [replace(rows["static"].run.samples[0], forwards={one: n}) for n in range(1, 7)]
    low, high = cost_interval(samples, {one: 1.0}, {one: (0.8, 1.1)})
    assert (3.5 - low, high - 3.5) == pytest.approx((1.6525, 1.5373), abs=1e-3)


def test_what_passes_outside_forwards_stands_beside_the_cost(rows):
    """An eighth of the seconds of decoding; nothing where no clock told."""
    assert [table(rows)[name]["outside"] for name in rows] == ["12.5", "-", "12.5", "12.5"]


def test_bytes_and_flops_decide_together(rows):
    """Bytes: static 9 x 1000 + 9 x 24 x 10 = 11160. simsd 4 x 1240 + 6 x (400 + 24 x 5) = 8080. mrp 4 x 1240 + 4 x 300
    = 6160. threshold 11 x 1240 = 13640. FLOPs: 900; 400 + 240 = 640; 400 + 600 = 1000; 1100."""
    assert [row.bytes_read for row in rows.values()] == [6160, 8080, 11160, 13640]
    assert [row.flops for row in rows.values()] == [1000, 640, 900, 1100]
    shown = table(rows)
    assert [shown[name]["bytes"] for name in rows] == ["0.55", "0.72", "1.00", "1.22"]
    assert [shown[name]["FLOPs"] for name in rows] == ["1.11", "0.71", "1.00", "1.22"]
    assert [shown[name]["pays?"] for name in rows] == ["depends on the batch", "pays", "-", "does not pay"]


def test_the_8b_cost_is_the_roofline_of_an_h100_at_the_batch_of_the_row(rows):
    """Batch 4, bytes decide. A unit reads 2 x 7.568e9. A forward of static sees 24 keys in each of 4 rows: 2 x 4 x 24 x
    73728 more, 1.000935 units, nine of them. A pass of the draft: 2 x (1.720e9 + 4 x 24 x 57344). Other heads: none."""
    found = {name: columns.record(row) for name, row in rows.items()}
    one = 1 + 4 * 24 * 73728 / 7.568e9
    draft = (1.720e9 + 4 * 24 * 57344) / 7.568e9
    head = (1.235e9 + 4 * 24 * 6144) / 7.568e9
    assert found["static"]["projected_cost"] == pytest.approx(9 * one)
    assert found["simsd"]["projected_cost"] == pytest.approx(4 * one + 6 * draft)
    assert found["mrp"]["projected_cost"] == pytest.approx(4 * one + 4 * head)
    assert {one["projected_on"] for one in found.values()} == {"H100, batch 4"}
    other = rows["mrp"].run.samples
    assert projected_cost(other, "adjust", 8, H100, 4) is None, "its head has no large pair"
    assert projected_cost([], "static", 8, H100, 4) is None


def test_speeds_have_their_range_or_are_not_shown(rows):
    shown = table(rows)
    assert shown["static"]["tok/s"] == "100 (90 - 110)" and shown["static"]["tok/s all"] == "80 (75 - 85)"
    assert (
        shown["simsd"]["tok/s"] == "- (80 - 120, unsteady)" and table(rows, columns.TERMINAL)["simsd"]["tok/s"] == "-"
    )
    (speed,) = [one for one in columns.table_columns(columns.MARKDOWN, list(rows.values())) if one.name == "tps_decode"]
    assert speed.heading(list(rows.values())) == "tok/s (3 repeats, first 6 items)"
    assert shown["static"]["first items (same ids)"] == "6 (6)"


def test_what_is_not_known_is_not_guessed(rows):
    """Without a note of what a forward reads there are no bytes, and no verdict that would need them."""
    row = rows["simsd"]
    bare = replace(row, manifest=replace(row.manifest, model={}))
    assert bare.bytes_read is None and row.group.pays(bare) is None


def test_verdicts_of_two_machines_are_held_against_each_other(rows, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    import same_verdicts

    ours = {row.key: row for row in rows.values()}
    other = replace(rows["simsd"], manifest=replace(rows["simsd"].manifest, model={}))  # nothing is known of its bytes
    assert same_verdicts.verdicts(rows["simsd"]) == {
        "pays?": "pays", "vs static": "too close to tell", "vs threshold": "too close to tell",
    }  # fmt: skip
    assert same_verdicts.differing(ours, ours) == []
    found = same_verdicts.differing(ours, {**ours, other.key: other})
    assert "nano-gsm, nano2, simsd: pays? is 'pays' in one and None in the other" in found
    assert [same_verdicts.cheaper(rows[name]) for name in ("simsd", "static", "threshold")] == [True, None, False]


def test_the_page_of_definitions_is_the_legend():
    page = Path(__file__).parents[2] / "docs" / "definitions.md"
    assert page.read_text() == definitions(), "write it anew with python -m dlmbench.report.definitions"
