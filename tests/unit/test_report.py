"""Tables and screens, from made-up run folders. Run: pytest tests/unit/test_report.py"""

import csv
import dataclasses
import io
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import make_run

from dlmbench import stats
from dlmbench.analysis.load import Results
from dlmbench.analysis.projection import ACCELERATORS, H100, SIZES, Size
from dlmbench.cli.sweep import _write
from dlmbench.errors import RequestError
from dlmbench.models.shapes import SHAPES
from dlmbench.report import columns
from dlmbench.report.figures import pareto
from dlmbench.report.html import document, page
from dlmbench.report.latex import latex
from dlmbench.report.markdown import write_table
from dlmbench.report.terminal import print_run
from dlmbench.request import RunSpec, SweepSpec
from dlmbench.runs import find_runs
from dlmbench.runs.sweep import Swept


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=0.9, nfe=40)
    make_run(tmp_path, method="static", threshold=None, label="static k=2", accuracy=0.7, nfe=20)
    make_run(tmp_path, threshold=0.6, accuracy=0.75, nfe=18)
    make_run(tmp_path, threshold=0.9, accuracy=0.88, nfe=30)
    make_run(tmp_path, method="mrp", threshold=0.6, accuracy=0.86, nfe=20, draft=12)
    make_run(tmp_path, method="ar", threshold=None, accuracy=0.9, nfe=31, weights="b" * 16, model="nano2-ar")
    return tmp_path


def by_label(folder):
    return {row.label: row for row in Results.load(folder).rows}


def test_every_run_is_a_row_in_the_order_of_the_table(runs):
    rows = Results.load(runs).rows
    assert [row.label for row in rows] == [
        "mrp 0.6",
        "static k=1",
        "static k=2",
        "threshold 0.6",
        "threshold 0.9",
        "ar",
    ]
    assert [columns.record(row)["draft"] for row in rows] == [12, 0, 0, 0, 0, 0]


def test_baselines_are_paired_on_the_same_weights(runs):
    rows = by_label(runs)
    ours = rows["mrp 0.6"].against
    assert ours["static"].baseline is ours["static"].baseline.group.reference, "the one with the most forwards"
    assert ours["static"].baseline.label == "static k=1"
    assert ours["threshold"].baseline.label == "threshold 0.6", "the one at the same threshold"
    gap = rows["static k=2"].against["static"].difference
    assert gap == pytest.approx(rows["static k=2"].accuracy - rows["static k=1"].accuracy)
    assert rows["static k=1"].against["threshold"].baseline.label == "threshold 0.9", "the nearest in cost"
    assert rows["static k=2"].against["threshold"].baseline.label == "threshold 0.6"
    assert "static" not in rows["static k=1"].against and "threshold" not in rows["threshold 0.6"].against
    assert rows["ar"].against == {}, "other weights are never paired"


def test_changed_is_the_share_of_items_with_other_tokens_than_static(tmp_path):
    static = make_run(tmp_path, method="static", threshold=None, label="static k=1", nfe=40)
    other = make_run(tmp_path, method="simsd", threshold=None, draft=5)
    file = other.path / "samples.jsonl"
    lines = file.read_text().splitlines()
    lines[:30] = [line.replace("[5, 5, ", "[5, 7, ") for line in lines[:30]]
    file.write_text("\n".join(lines) + "\n")
    rows = by_label(tmp_path)
    assert rows["simsd"].changed == 30 / len(static.samples) and rows["static k=1"].changed is None


def test_a_threshold_of_another_unit_is_compared_at_the_same_cost(runs):
    make_run(runs, method="entropy", threshold=0.6, accuracy=0.9, nfe=29)
    found = by_label(runs)["entropy 0.6"].against["threshold"].baseline
    assert found.label == "threshold 0.9", "18 forwards are far, 30 are near"


@pytest.mark.parametrize("price", [0.1, 10.0])
def test_no_clock_decides_whom_a_row_is_compared_with(price, runs, monkeypatch):
    make_run(runs, method="entropy", threshold=0.6, accuracy=0.9, nfe=29)
    monkeypatch.setattr("dlmbench.analysis.row.item_costs", lambda samples, *_, **__: [price] * len(samples))
    rows = by_label(runs)
    assert rows["entropy 0.6"].against["threshold"].baseline.label == "threshold 0.9"
    assert rows["static k=1"].against["threshold"].baseline.label == "threshold 0.9"
    assert rows["entropy 0.6"].against["curve"].label == "threshold 0.6 x 0.07 + threshold 0.9 x 0.93"


def test_confidences_are_compared_with_rows_that_have_one(runs):
    make_run(runs, method="threshold", threshold=None, label="threshold rule=factor")
    make_run(runs, method="mrp", threshold=None, label="mrp mode=direct", nfe=29)
    rows = by_label(runs)
    assert rows["mrp 0.6"].against["threshold"].baseline.label == "threshold 0.6"
    assert rows["mrp mode=direct"].against["threshold"].baseline.label == "threshold 0.9", "the nearest in cost"


def test_unfinished_runs_are_no_rows(tmp_path):
    make_run(tmp_path, threshold=0.5, finished=False)
    with pytest.raises(RequestError, match="dlmbench run"):
        Results.load(tmp_path)
    make_run(tmp_path, threshold=0.6)
    assert len(Results.load(tmp_path).rows) == 1


def test_table_files(runs):
    results = Results.load(runs)
    table, text = write_table(results, runs, "Title", ["One note."])
    with open(table, newline="") as stream:
        back = list(csv.DictReader(stream))
    assert [line["label"] for line in back] == [row.label for row in results.rows]
    for line, row in zip(back, results.rows):
        record = columns.record(row)
        assert line == {name: "" if value is None else str(value) for name, value in record.items()}
    text = text.read_text()
    assert text.startswith("# Title\n\nOne note.\n\n## nano-gsm (test, 120 items)\n")
    first = results.rows[0]
    assert f"{100 * first.accuracy:.1f} [{100 * first.metrics.accuracy_low:.1f}, " in text
    assert "A forward of nano2-ar takes 0.50 of the others'" in text
    for words in ("batch 16", "float32 on a CPU (2 threads)", "seed 0", "weights aaaaaaaa, bbbbbbbb", "draft 12.0"):
        assert words in text


# --- the columns ----------------------------------------------------------------------------------------------------


def test_a_column_has_one_name_one_title_and_a_meaning():
    names = [column.name for column in columns.COLUMNS]
    assert len(set(names)) == len(names)
    for column in columns.COLUMNS:
        assert bool(column.where) == bool(column.title), column.name
        assert not column.where or column.help or column.name in ("label", "model"), f"{column.name} is explained"
        assert "*" not in column.help and "<" not in column.help, "a legend is plain text in every table"


def test_a_column_added_to_the_list_stands_in_all_tables(runs, monkeypatch):
    def half(row):
        return row.nfe / 2

    own = columns.Column("half", half, "half of NFE", "NFE by two", lambda row: f"{half(row):.3f}", where=columns.ALL)
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, own))
    results = Results.load(runs)
    value = f"{results.rows[0].nfe / 2:.3f}"
    table, text = write_table(results, runs / "new")
    assert table.read_text().splitlines()[0].endswith(",half")
    for shown in (text.read_text(), page(results, "T"), latex(results), screen(runs, 140)):
        assert "half of NFE" in shown and value in shown
    assert "*half of NFE*: NFE by two." in text.read_text() and "<dt>half of NFE</dt>" in page(results, "T")


def screen(runs, width, label="mrp 0.6"):
    """The screen of one of three runs, with the facts that an engine tells about its model."""
    chosen = [row.run for row in Results.load(runs).rows if row.label in ("static k=1", "threshold 0.6", "mrp 0.6")]
    (ours,) = [run for run in chosen if run.manifest.label == label]
    model = {"file_dtype": "bfloat16", "parameters": {"target": 2.7e6, "draft": 1.1e6}}
    with ours.writing() as writer:
        writer.manifest(dataclasses.replace(ours.manifest, model=model))
    stream = io.StringIO()
    print_run(Console(file=stream, width=width), Results(chosen), ours)
    return stream.getvalue()


def test_screen_of_a_run(runs):
    text = screen(runs, 100)
    lines = text.splitlines()
    rows = [line for line in lines if line.strip().startswith(("static", "threshold", "> "))]
    assert [line.split()[0] for line in rows] == ["static", "threshold", ">"], "ours stands last, marked"
    assert "bfloat16 file, float32 compute, weights aaaaaaaa" in text
    assert "draft: 1.10 M parameters, 0.30 of a forward" in text
    rows = by_label(runs)
    assert (
        "vs threshold 0.6" in text and f"at {rows['mrp 0.6'].cost / rows['threshold 0.6'].cost:.2f}x its cost" in text
    )
    assert "saved   " in text and f"--threshold 0.5:0.9:0.1 --out {runs}" in text


def test_screen_shows_verdicts_and_the_label_of_a_speed_only_where_there_are_some(runs):
    ours = by_label(runs)["threshold 0.6"].run
    with ours.writing() as writer:
        speed = dataclasses.replace(ours.metrics.speed, label="mechanism only")
        writer.metrics(dataclasses.replace(ours.metrics, verdicts={"failed": 3}, speed=speed))
    for label, shown in (("threshold 0.6", True), ("mrp 0.6", False)):
        text = screen(runs, 100, label)
        assert ("failed 3" in text) == shown and ("mechanism only" in text) == shown and "nan" not in text.split()


@pytest.mark.parametrize("width", [40, 56, 80, 120])
def test_screen_fits_the_terminal(runs, width):
    text = screen(runs, width)
    table = [line for line in text.splitlines() if "[" in line and "points" not in line]
    assert all(len(line) <= width for line in table)
    assert "accuracy" in text and "[" in text


def test_at_the_end_of_a_sweep_every_file_is_read_once(tmp_path, monkeypatch):
    """Tables, figure, report and screens share what was read; every difference is computed once."""
    for number in range(100):
        make_run(tmp_path, threshold=None if number == 0 else number / 100, method="static" if number == 0 else "mrp",
                 items=6)  # fmt: skip
    opened, compared = Counter(), Counter()
    real, tango = Path.read_bytes, stats.tango
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.update([path]) or real(path))
    text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **more: opened.update([path]) or text(path, **more))
    monkeypatch.setattr(stats, "tango", lambda pairs: compared.update(["static"]) or tango(pairs))
    monkeypatch.setattr(pareto, "plot", lambda rows, folder, x: [Path(folder) / "pareto.png"])
    monkeypatch.setattr(document.figure, "panels", lambda sections: [])
    spec = SweepSpec("many", (RunSpec("static", "nano-gsm"),), out=str(tmp_path))
    _write(spec, Swept(find_runs(tmp_path), []), [], json=False)
    names = Counter(path.name for path in opened if path.is_relative_to(tmp_path))
    assert names["samples.jsonl"] == names["manifest.json"] == names["metrics.json"] == 100
    assert {path.name: number for path, number in opened.items() if number > 1} == {}
    assert compared == {"static": 99}, "each row against static, once"


def test_the_large_models_of_a_projection_have_their_shapes():
    large, small = SHAPES["sdar-8b"], SHAPES["sdar-1.7b"]
    module = dataclasses.replace(large, num_layers=3)
    for role, config, more in (("target", large, 0), ("draft", small, 0), ("head", module, 2 * large.hidden_size**2)):
        read = config.num_layers * config.layer_parameters + config.vocab_size * config.hidden_size + more
        key = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        pair = 4 * config.num_layers * config.num_heads * config.head_dim
        size = SIZES[role]
        assert size == Size(pytest.approx(read, rel=5e-4), key, pair)


def test_a_projected_forward_takes_as_long_as_its_bytes_or_its_operations():
    """At batch 1 an H100 waits for weights whatever the width; at batch 256 twice the width is twice the time."""
    target = SIZES["target"]
    assert target.seconds(H100, 1, 8, 0) == target.seconds(H100, 1, 16, 0) == 2 * target.weights / H100.bandwidth
    assert target.seconds(H100, 256, 16, 0) == 2 * target.seconds(H100, 256, 8, 0) > target.seconds(H100, 1, 8, 0)
    assert ACCELERATORS["H100"] is H100


def test_checkpoints_of_one_name_are_told_apart_by_their_weights(tmp_path):
    for weights in ("a" * 16, "b" * 16):
        make_run(tmp_path / weights[0], model="final", weights=weights)
    make_run(tmp_path, model="nano2", weights="c" * 16)
    assert {row.model for row in Results.load(tmp_path).rows} == {"final (aaaaaaaa)", "final (bbbbbbbb)", "nano2"}
