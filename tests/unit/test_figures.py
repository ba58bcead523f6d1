"""The figures, from made-up run folders. Run: pytest tests/unit/test_figures.py"""

import dataclasses

import pytest
from matplotlib.text import Annotation
from synthetic import make_family, make_run
from typer.testing import CliRunner

from dlmbench.analysis import published
from dlmbench.analysis.load import Results
from dlmbench.cli.app import app
from dlmbench.cli.console import stdout
from dlmbench.errors import RequestError
from dlmbench.report.answer import answer
from dlmbench.report.figures import curves, matrix
from dlmbench.report.figures.pareto import draw, own_series, plot
from dlmbench.report.terminal import print_answer


def boxes(ax):
    """What is written inside the axes, and what is drawn around them: boxes in pixels."""
    renderer = ax.figure.canvas.get_renderer()
    ax.figure.draw_without_rendering()
    inside = [text.get_window_extent(renderer) for text in ax.texts if isinstance(text, Annotation)]
    around = [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label, ax._left_title]
    shown = [text.get_window_extent(renderer) for text in around if text.get_text()]
    spines = [ax.spines[side].get_window_extent(renderer) for side in ("left", "bottom")]
    return inside, shown + spines


@pytest.mark.parametrize("methods, settings", [(1, 1), (1, 5), (4, 3), (5, 5), (12, 3)])
@pytest.mark.parametrize("x, column", [("cost", False), ("tps", True)])
def test_labels_name_every_method_and_overlap_neither_each_other_nor_the_axes(tmp_path, methods, settings, x, column):
    make_family(tmp_path, methods, settings)
    rows = Results.load(tmp_path).rows
    (ax,) = draw(rows, x, "accuracy", column=column).axes
    labels, frame = boxes(ax)
    assert len(labels) >= methods
    assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in [*labels[:i], *frame])
    words = [text.get_text() for text in ax.texts]
    assert all(any(word.startswith(row.method) for word in words) for row in rows)
    if methods > 3 and not column:
        assert any("other weights" in word for word in words)


def test_a_method_is_named_where_there_is_no_room_for_its_setting(tmp_path):
    make_family(tmp_path, 4, 4)
    long = "prophet " + " ".join(f"early={gap}.0 mid={gap}.5 late={gap}.25" for gap in range(9))
    make_run(tmp_path, method="prophet", threshold=None, label=long, items=250)
    figure = draw(Results.load(tmp_path).rows, "cost", "accuracy")
    assert "prophet" in [text.get_text() for text in figure.axes[0].texts]


def test_a_front_is_of_one_set_of_items_and_of_one_seed(tmp_path):
    for threshold, nfe, accuracy in ((0.5, 10, 0.6), (0.7, 16, 0.8), (0.9, 24, 0.9)):
        make_run(tmp_path, threshold=threshold, nfe=nfe, accuracy=accuracy, items=200)
    few = make_run(tmp_path, threshold=0.6, nfe=2, accuracy=1.0, items=8)
    drawn = make_run(tmp_path, threshold=0.7, nfe=3, accuracy=1.0, items=200, seed=1)
    rows = Results.load(tmp_path).rows
    assert [row.run.name for row, own in zip(rows, own_series(rows)) if not own] in (
        [few.name, drawn.name], [drawn.name, few.name]
    )  # fmt: skip
    words = " ".join(text.get_text() for text in draw(rows, "cost", "accuracy").axes[0].texts)
    assert "(8 items)" in words and "(seed 1)" in words


def test_cost_of_other_weights_is_drawn_in_the_same_unit(tmp_path):
    for threshold in (0.6, 0.9):
        make_run(tmp_path, threshold=threshold, nfe=int(20 * threshold))
    make_run(tmp_path, method="ar", threshold=None, accuracy=0.9, nfe=31, weights="b" * 16, model="nano2-ar")
    rows = Results.load(tmp_path).rows
    ax = draw(rows, "cost", "accuracy").axes[0]
    (ar,) = [row for row in rows if row.method == "ar"]
    drawn = [float(line.get_xdata()[0]) for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert drawn == [pytest.approx(0.5 * ar.cost)]


def test_one_panel_a_task_and_three_formats(tmp_path):
    for task in ("nano-gsm", "nano-code"):
        make_run(tmp_path, task=task)
    rows = Results.load(tmp_path).rows
    assert [ax.get_title(loc="left") for ax in draw(rows, "nfe", "accuracy").axes] == [
        "nano-code (test, 120 items), nano2",
        "nano-gsm (test, 120 items), nano2",
    ]
    written = plot(rows, tmp_path, x="nfe")
    assert [path.name for path in written] == ["pareto.png", "pareto.svg", "pareto.pdf"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_unknown_axes_and_empty_columns_are_refused(tmp_path):
    make_run(tmp_path)
    rows = Results.load(tmp_path).rows
    with pytest.raises(RequestError, match="nfe, cost, bytes, flops, 8b, tpf, tps"):
        plot(rows, tmp_path, x="speed")
    with pytest.raises(RequestError, match="No row has a value for tps"):
        untimed = [dataclasses.replace(row, metrics=dataclasses.replace(row.metrics, speed=None)) for row in rows]
        plot(untimed, tmp_path, x="tps")


def test_a_row_without_a_value_on_one_axis_is_left_out_there(tmp_path):
    for threshold in (0.6, 0.9):
        make_run(tmp_path, threshold=threshold)
    first, second = Results.load(tmp_path).rows
    untimed = dataclasses.replace(second, metrics=dataclasses.replace(second.metrics, speed=None))
    cost, speed = draw([first, untimed], "cost,tps", "accuracy").axes
    marked = [sum(line.get_marker() != "None" for line in ax.lines) for ax in (cost, speed)]
    assert marked[0] > marked[1] > 0


@pytest.mark.parametrize("flags", [["--x", "nfe"], ["--y", "strict"]])
def test_axes_belong_to_one_kind_of_figure(tmp_path, flags):
    make_run(tmp_path)
    result = CliRunner().invoke(app, ["plot", str(tmp_path), "--kind", "threshold", *flags])
    assert f"{flags[0]} is for --kind pareto" in str(result.exception)


def test_other_hardware_is_a_series_of_its_own(tmp_path):
    for device in ("a CPU", "a GPU"):
        for threshold in (0.6, 0.9):
            make_run(tmp_path, threshold=threshold, nfe=int(20 * threshold), device=device)
    rows = Results.load(tmp_path).rows
    assert len(rows) == 4, "nothing was averaged"
    ax = draw(rows, "nfe", "accuracy").axes[0]
    words = " ".join(text.get_text() for text in ax.texts)
    assert "(on a CPU)" in words or "(on a GPU)" in words
    joined = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
    assert all(len(set(line.get_ydata())) <= 2 for line in joined)
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white" and line.get_marker() != "None"]
    assert len(hollow) == 2


def test_published_points_are_drawn_beside_ours_and_stay_out_of_the_rows(tmp_path):
    make_run(tmp_path, task="gsm8k", model="sdar-8b-mrp", threshold=0.6, accuracy=0.8)
    rows = Results.load(tmp_path).rows
    pairs = published.pairs(rows, published.read())
    ax = draw(rows, "cost", "accuracy", pairs).axes[0]
    (marks,) = [line for line in ax.lines if line.get_label() == "published"]
    assert marks.get_ydata().tolist() == [pytest.approx(79.6)]
    assert marks.get_xdata().tolist() == [rows[0].cost]
    assert not [line for line in draw(rows, "cost", "accuracy").axes[0].lines if line.get_label() == "published"]


def test_threshold_curves(tmp_path, monkeypatch):
    make_family(tmp_path, 4, 4)
    rows, drawn = Results.load(tmp_path).rows, []
    monkeypatch.setattr(curves, "save", lambda make, *_: drawn.append(make()))
    curves.threshold_curves(rows, tmp_path, "threshold")
    upper = [ax for ax in drawn[0].axes if ax.get_ylabel().startswith("accuracy")]
    texts = [text.get_text() for ax in upper for text in ax.texts if text.get_text()]
    assert sorted(texts) == ["entropy", "mrp", "static", "threshold"], "confidences share a panel, others do not"
    assert len(upper) == 3
    with pytest.raises(RequestError, match="several values"):
        curves.threshold_curves([row for row in rows if row.manifest.threshold == 0.3], tmp_path, "threshold")


def test_batch_curves_and_accepted_lengths_need_something_to_draw(tmp_path):
    make_run(tmp_path, threshold=0.6)
    rows = Results.load(tmp_path).rows
    with pytest.raises(RequestError, match="several batch sizes"):
        curves.batch_curves(rows, tmp_path, "batch")
    with pytest.raises(RequestError, match="No run drafted"):
        curves.acceptance(rows, tmp_path, "acceptance")
    make_run(tmp_path, threshold=0.6, batch_size=1)
    written = curves.batch_curves(Results.load(tmp_path).rows, tmp_path, "batch", column=True)
    assert [path.name for path in written] == ["batch.png", "batch.svg", "batch.pdf"]


@pytest.mark.slow
def test_accepted_lengths_show_twelve_runs_a_task(tmp_path):
    for number in range(13):
        task = "nano-gsm" if number < 12 else "nano-code"
        make_run(tmp_path, task=task, method="simsd", threshold=None, label=f"simsd steps={number}", items=3)
    kept = {"acceptance": 0.5, "accepted_lengths": {"0": 1, "2": 1}}
    rows = Results.load(tmp_path).rows
    rows = [dataclasses.replace(row, metrics=dataclasses.replace(row.metrics, **kept)) for row in rows]
    assert len(curves.acceptance(rows, tmp_path, "acceptance")) == 3
    with pytest.raises(RequestError, match="13 runs drafted on nano-gsm"):
        curves.acceptance([*rows, rows[-1]], tmp_path, "acceptance")


def test_names_at_line_ends_are_kept_apart():
    places = curves.apart([10.0, 11.0, 12.0, 80.0], [10.0] * 4)
    assert all(b - a >= 10 for a, b in zip(places, places[1:])) and places[3] == 80.0


def test_weights_with_several_settings_get_their_own_panel(tmp_path):
    for threshold in (0.4, 0.6, 0.8):
        make_run(tmp_path, threshold=threshold)
        make_run(tmp_path, threshold=threshold, weights="b" * 16, model="sibling")
    make_run(tmp_path, method="static", threshold=None)
    make_run(tmp_path, method="ar", threshold=None, weights="c" * 16, model="parent")  # one row rides along
    axes = [ax for ax in draw(Results.load(tmp_path).rows, "cost", "accuracy").axes if ax.get_visible()]
    assert [ax.get_title(loc="left").rpartition(", ")[2] for ax in axes] == ["nano2", "sibling"]


def test_large_amounts_are_written_with_a_letter_on_a_linear_axis_too(tmp_path):
    for threshold, nfe in ((0.4, 200_000), (0.6, 400_000)):
        make_run(tmp_path, threshold=threshold, nfe=nfe, items=3)
    (ax,) = (ax for ax in draw(Results.load(tmp_path).rows, "nfe", "accuracy").axes if ax.get_visible())
    assert ax.get_xscale() == "linear" and ax.xaxis.get_major_formatter()(300_000, None) == "300 k"


def test_the_ideal_front_is_that_of_an_ideal_model_asked_the_same(tmp_path):
    task = "stress-shuffle"
    for nfe, right in ((10, 0.6), (20, 0.9)):
        make_run(tmp_path, task=task, threshold=nfe / 100, accuracy=right, nfe=nfe, temperature=1.0)
    for nfe, asked in (
        (8, dict(temperature=1.0)),
        (4, dict(temperature=1.0, settings={"oracle": {"temperature": 0.5}})),  # an overconfident one
        (2, dict(temperature=0.0)),
    ):
        make_run(tmp_path, task=task, model="oracle", weights="o" * 16, accuracy=1.0, nfe=nfe, **asked)
    rows = Results.load(tmp_path).rows
    figure = draw(rows, "nfe", "accuracy", model=None)
    (ax,) = (ax for ax in figure.axes if ax.get_visible())
    (ideal,) = (line for line in ax.lines if line.get_label() == "ideal model")
    row = max((row for row in rows if row.model == "oracle"), key=lambda row: row.nfe)
    assert "nano2" in ax.get_title(loc="left"), "an overconfident model has no panel beside a trained one"
    assert list(ideal.get_ydata()) == [100.0, 100.0] and ideal.get_xdata()[0] == pytest.approx(row.nfe)


def test_names_with_dollars_and_brackets_are_drawn_and_printed_as_they_are(tmp_path):
    for weights in ("a" * 16, "b" * 16):
        where = tmp_path / weights[0]
        make_run(where, model="a$x^$b [red]", weights=weights, label="threshold 0.6 draft=ckpt[red] v2", nfe=9)
    results = Results.load(tmp_path)
    plot(results.rows, tmp_path)
    console = stdout()
    console.width = 120
    with console.capture() as caught:
        print_answer(console, answer(results))
    text = caught.get()
    assert "ckpt[red] v2" in text and "a$x^$b [red]" in text


def test_decoders_beside_each_other_by_cost_and_by_task(tmp_path):
    for task in ("nano-gsm", "nano-code"):
        make_run(tmp_path, task=task, method="static", threshold=None, label="static k=1", nfe=40, accuracy=0.95)
        for threshold in (0.4, 0.9):
            make_run(tmp_path, task=task, threshold=threshold, accuracy=0.5 + threshold / 2, nfe=int(20 * threshold))
    make_run(tmp_path, method="mrp", threshold=None, label="mrp", nfe=60, accuracy=0.3)
    rows = Results.load(tmp_path).rows
    (gsm,) = [group for group in {row.group for row in rows} if group.rows[0].task == "nano-gsm"]
    assert [row.label for row in matrix.shown(gsm)] == ["threshold 0.9", "mrp"], "the cheapest that loses nothing"
    (written, *_) = matrix.cost_ratios(rows, tmp_path, "cost")
    assert written.stat().st_size > 5_000
    svg = next(path for path in matrix.tasks(rows, tmp_path, "tasks") if path.suffix == ".svg").read_text()
    gap = 100 * next(row for row in rows if row.label == "mrp").against["static"].difference
    assert f"{abs(gap):.1f}" in svg
    with pytest.raises(RequestError, match="stands beside static"):
        matrix.tasks([row for row in rows if row.method == "nothing"], tmp_path, "none")
