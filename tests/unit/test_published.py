"""Published figures: well-formed, sourced, paired with their runs. Run: pytest tests/unit/test_published.py"""

import dataclasses
import json

import pytest
from synthetic import make_run
from typer.testing import CliRunner

from dlmbench.analysis import published
from dlmbench.analysis.load import Results
from dlmbench.errors import RequestError

ALL = published.read()


def test_every_row_has_its_source_and_numbers_in_range():
    assert len(ALL) > 400
    for one in ALL:
        assert one.source and one.paper and one.model and one.task and one.method
        assert one.accuracy is None or 0.01 < one.accuracy <= 1, one
        assert (one.speed is None) == (one.unit == ""), one
        assert one.nfe is None or one.stores, f"forwards without a word on stores: {one}"
        assert one.accuracy is not None or one.speed is not None, one


def test_settings_name_options_that_exist():
    """A misspelt option would silently never pair with a run."""
    from dlmbench.registry import DECODERS

    for one in ALL:
        known = {field.name for field in dataclasses.fields(DECODERS.get(one.method).Config)}
        assert set(one.setting) <= known | {*published.CIRCUMSTANCES, "limit"}, one


def test_no_row_stands_twice():
    keys = [(o.paper, o.model, o.task, o.method, *sorted(o.setting.items()), o.hardware, o.source) for o in ALL]
    assert len(set(keys)) == len(keys)


def ours(tmp_path, **given):
    folder = make_run(tmp_path, task="gsm8k", **{"model": "sdar-8b-mrp", **given})
    return Results([folder]).rows[0]


def test_a_run_pairs_with_the_published_setting(tmp_path):
    found = published.pairs([ours(tmp_path, threshold=0.6, accuracy=0.8)], ALL)
    (pair,) = found
    assert pair.published.label == "threshold tau=0.6" and pair.published.accuracy == pytest.approx(0.796)
    assert pair.gap == pytest.approx(pair.ours.accuracy - 0.796) and pair.inside
    assert pair.differs[0] == "block_length 8 (published 16)"
    assert published.pairs([ours(tmp_path, threshold=0.65)], ALL) == [], "another threshold is another setting"
    assert published.pairs([ours(tmp_path, threshold=0.6, model="nano2")], ALL) == []


def test_every_field_of_the_protocol_that_differs_is_named(tmp_path):
    (pair,) = published.pairs([ours(tmp_path, threshold=0.6)], ALL)
    named = [text.partition(" (published")[0] for text in pair.differs]
    assert named[1:] == [
        "prompt lm-eval gsm8k", "markup raw", "extraction dlmbench's own", "stop strings lm-eval's", "gen_length 128",
    ]  # fmt: skip
    spec = dataclasses.replace(pair.ours.manifest.spec, protocol="sdar")
    same = dataclasses.replace(pair.ours.manifest, spec=spec, gen_length=4096)
    row = dataclasses.replace(pair.ours, manifest=same)
    assert published.differences(pair.published, row) == ["block_length 8 (published 16)"]


def test_no_difference_is_given_between_two_data_sets(tmp_path):
    """The authors report the 257 sanitized problems; ours of all 500 stand beside them without a difference."""
    whole, checked = (
        Results([make_run(tmp_path / name.replace("/", "-"), task=name, model="sdar-8b-mrp", threshold=0.6)]).rows[0]
        for name in ("mbpp", "mbpp/sanitized")
    )
    (other,), (same,) = (published.pairs([row], ALL) for row in (whole, checked))
    assert other.published == same.published and other.published.accuracy
    assert other.gap is None and other.inside is None and "data set mbpp (published mbpp/sanitized)" in other.differs
    assert same.gap is not None and not [text for text in same.differs if text.startswith("data set")]


def test_hub_names_and_presets_are_the_same_model(tmp_path):
    for model in ("heavyball/sdar-8b-mrp-3lyr@main", "sdar-8b-mrp-3lyr", "sdar-8b-mrp"):
        assert published.pairs([ours(tmp_path, threshold=0.6, model=model)], ALL), model


def test_fused_and_separate_counts_become_one_number(tmp_path):
    line = dataclasses.replace(
        ALL[0], model="nano2", method="threshold", setting={"tau": "0.6"}, nfe=12.0, accuracy=0.8
    )
    record = ours(tmp_path, threshold=0.6, model="nano2", nfe=20)
    fused = published.Pair(dataclasses.replace(line, stores="excluded"), record, (), None)
    metrics = dataclasses.replace(record.metrics, nfe=record.nfe + 4, store_forwards=4.0)
    separate = dataclasses.replace(record, metrics=metrics)
    assert fused.forwards == (12.0, pytest.approx(record.nfe))
    assert published.Pair(fused.published, separate, (), None).forwards == pytest.approx(fused.forwards)
    mixed = published.Pair(dataclasses.replace(line, stores="included"), record, (), None)
    assert mixed.forwards[0] is None, "a count that includes stores is not shown beside one without"


def test_speeds_are_compared_in_the_published_unit(tmp_path):
    large = {"task": "gsm8k", "model": "sdar-8b-mrp"}
    one = make_run(tmp_path, method="static", threshold=None, label="static k=1", nfe=40, **large)
    other = make_run(tmp_path, threshold=0.6, nfe=10, **large)
    static, fast = Results([one, other]).rows
    line = dataclasses.replace(ALL[0], model="sdar-8b-mrp", task="gsm8k", method="threshold", setting={}, speed=2.0)

    def speed(unit, rows=(static, fast)):
        return published.pairs(list(rows), [dataclasses.replace(line, unit=unit)])[0].speed

    assert speed("x static") == pytest.approx(fast.tps / static.tps)
    assert speed("x fewer steps") == pytest.approx(static.nfe / fast.nfe)
    assert speed("tokens/forward") == pytest.approx(fast.metrics.tpf) and speed("tok/s") == fast.tps
    assert speed("x static", rows=Results([other]).rows) is None and speed("s/item") is None


@pytest.mark.parametrize(
    "line, words",
    [
        ("P,m,t,static,k=1,80,10,sometimes,,,,source", "unknown word"),
        ("P,m,t,static,k=1,80,,,,,,", "no source"),
        ("P,m,t,static,k,80,,,,,,source", "name=value"),
        ("P,m,t,static,k=1,eighty,,,,,,source", "number"),
    ],
)
def test_bad_files_are_refused(tmp_path, line, words):
    (tmp_path / "a.csv").write_text(",".join(published.COLUMNS) + "\n" + line + "\n")
    with pytest.raises(RequestError, match=words):
        published.read(tmp_path)
    (tmp_path / "a.csv").write_text("paper,model\nP,m\n")
    with pytest.raises(RequestError, match="columns"):
        published.read(tmp_path)
    with pytest.raises(RequestError, match="no published figures"):
        published.read(tmp_path / "empty")


def test_compare_prints_pairs_and_what_was_not_run(tmp_path):
    from dlmbench.cli.app import app

    make_run(tmp_path, task="gsm8k", model="sdar-8b-mrp", threshold=0.6, accuracy=0.8)
    result = CliRunner().invoke(app, ["compare", str(tmp_path), "--json"])
    record = json.loads(result.stdout)
    assert (
        record["pairs"][0]["published"]["accuracy"] == 0.796 and record["pairs"][0]["ours"]["label"] == "threshold 0.6"
    )
    assert record["not_run"] > 5 and "authors" in record["note"]
    shown = CliRunner().invoke(app, ["compare", str(tmp_path)], env={"COLUMNS": "200"}).stdout
    assert "79.6" in shown and "block_length 8 (published 16)" in shown and "not run here" in shown


def test_compare_leaves_out_trials_on_dev_items(tmp_path):
    from dlmbench.cli.app import app

    make_run(tmp_path, task="gsm8k", model="sdar-8b-mrp", threshold=0.6, split="dev")
    result = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert isinstance(result.exception, RequestError) and "test items" in str(result.exception)


def test_compare_says_when_nothing_was_published(tmp_path):
    from dlmbench.cli.app import app

    make_run(tmp_path)
    result = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert isinstance(result.exception, RequestError) and "nano2 on nano-gsm" in str(result.exception)
