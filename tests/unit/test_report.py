"""Tables, the figure and the screen, from made-up run folders. Run: pytest tests/unit/test_report.py"""

import io
import json

import pandas as pd
import pytest
from rich.console import Console
from synthetic import make_family, make_run

from dlmbench.cli.console import stdout
from dlmbench.errors import RequestError
from dlmbench.report.pareto import plot
from dlmbench.report.projection import SHARES, projected_cost
from dlmbench.report.screen import print_run, print_sweep
from dlmbench.report.table import TIMING, markdown, read_results, write_table


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=0.9, nfe=40)
    make_run(tmp_path, method="static", threshold=None, label="static k=2", accuracy=0.7, nfe=20)
    make_run(tmp_path, threshold=0.6, accuracy=0.75, nfe=18)
    make_run(tmp_path, threshold=0.9, accuracy=0.88, nfe=30)
    make_run(tmp_path, method="mrp", threshold=0.6, accuracy=0.86, nfe=20, draft=12)
    make_run(tmp_path, method="ar", threshold=None, accuracy=0.9, nfe=31, weights="b" * 16, model="nano-ar")
    return tmp_path


def test_every_run_is_a_row_with_its_circumstances(runs):
    frame = read_results(runs)
    assert frame["label"].tolist() == ["mrp 0.6", "static k=1", "static k=2", "threshold 0.6", "threshold 0.9", "ar"]
    needed = {
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "strict",
        "flexible",
        "unparsed",
        "cut_off",
        "nfe",
        "store_forwards",
        "draft",
        "guide",
        "reference",
        "head",
        "cost",
        "flops",
        "query_tokens",
        "tpf",
        "tps_decode",
        "tps_end_to_end",
        "batch_size",
        "guards",
        "items",
        "dtype",
        "device",
        "seed",
        "versions",
        "weights",
        "prompt_hash",
        "parameters",
        "speed_same_ids",
        *TIMING,
    }
    assert needed <= set(frame.columns)
    assert frame["draft"].tolist() == [12, 0, 0, 0, 0, 0]


def test_baselines_are_paired_on_the_same_weights(runs):
    frame = read_results(runs).set_index("label")
    assert frame.loc["mrp 0.6", "vs_static_row"] == "static k=1", "the one with the most forwards"
    assert frame.loc["mrp 0.6", "vs_threshold_row"] == "threshold 0.6", "the one at the same knob"
    assert frame.loc["static k=2", "vs_static"] == pytest.approx(
        frame.loc["static k=2", "accuracy"] - frame.loc["static k=1", "accuracy"]
    )
    assert frame.loc["static k=1", "vs_threshold_row"] == "threshold 0.9", "without a knob, the nearest in cost"
    assert frame.loc["static k=2", "vs_threshold_row"] == "threshold 0.6"
    assert pd.isna(frame.loc["static k=1", "vs_static"]) and pd.isna(frame.loc["threshold 0.6", "vs_threshold"])
    assert pd.isna(frame.loc["ar", "vs_static"]), "other weights are never paired"


def test_changed_is_the_share_of_items_with_other_tokens_than_static(tmp_path):
    static = make_run(tmp_path, method="static", threshold=None, label="static k=1", nfe=40)
    other = make_run(tmp_path, method="simsd", threshold=None, draft=5)
    file = other.path / "samples.jsonl"
    lines = file.read_text().splitlines()
    lines[:30] = [line.replace("[5, 6, 1]", "[5, 7, 1]") for line in lines[:30]]
    file.write_text("\n".join(lines) + "\n")
    frame = read_results(tmp_path).set_index("label")
    assert frame.loc["simsd", "changed"] == 30 / len(static.samples)
    assert pd.isna(frame.loc["static k=1", "changed"])


def test_a_knob_of_another_unit_is_compared_at_the_same_cost(runs):
    make_run(runs, method="entropy", threshold=0.6, accuracy=0.9, nfe=29)
    frame = read_results(runs).set_index("label")
    assert frame.loc["entropy 0.6", "vs_threshold_row"] == "threshold 0.9", "18 forwards are far, 30 are near"
    assert "nearest in cost" in markdown(read_results(runs), "Title")


def test_confidences_are_compared_with_rows_that_have_one(runs):
    make_run(runs, method="threshold", threshold=None, label="threshold rule=factor")
    make_run(runs, method="mrp", threshold=None, label="mrp mode=direct", nfe=29)
    frame = read_results(runs).set_index("label")
    assert frame.loc["mrp 0.6", "vs_threshold_row"] == "threshold 0.6"
    assert frame.loc["mrp mode=direct", "vs_threshold_row"] == "threshold 0.9", "the nearest in cost"


def test_unfinished_runs_are_no_rows(tmp_path):
    make_run(tmp_path, threshold=0.5, finished=False)
    with pytest.raises(RequestError, match="dlmbench run"):
        read_results(tmp_path)
    make_run(tmp_path, threshold=0.6)
    assert len(read_results(tmp_path)) == 1


def test_table_files(runs):
    frame = read_results(runs)
    csv, markdown = write_table(frame, runs, "Title", ["One note."])
    back = pd.read_csv(csv)
    assert back["label"].tolist() == frame["label"].tolist() and len(back.columns) == len(frame.columns)
    text = markdown.read_text()
    assert text.startswith("# Title\n\nOne note.\n") and text.count("\n| ") == 7
    assert "A forward of nano-ar takes 0.50 of the others'" in text
    for words in ("batch 16", "float32 on a CPU (2 threads)", "seed 0", "weights aaaaaaaa, bbbbbbbb", "draft 12.0"):
        assert words in text


def screen(runs, width):
    frame = read_results(runs)
    chosen = frame[frame["label"].isin(["static k=1", "threshold 0.6", "mrp 0.6"])]
    key = chosen.set_index("label").loc["mrp 0.6", "key"]
    stream = io.StringIO()
    facts = {
        "file_dtype": "bfloat16",
        "parameters": {"target": 2.7e6, "draft": 1.1e6},
        "prices": {"draft/denoise/8": 0.3, "draft/denoise/16": 0.5},
    }
    print_run(Console(file=stream, width=width), chosen, key, "results/here", facts)
    return stream.getvalue()


def test_screen_of_a_run(runs):
    text = screen(runs, 100)
    lines = text.splitlines()
    rows = [line for line in lines if line.strip().startswith(("static", "threshold", "> "))]
    assert [line.split()[0] for line in rows] == ["static", "threshold", ">"], "ours stands last, marked"
    assert "bfloat16 file, float32 compute, weights aaaaaaaa" in text
    assert "draft: 1.10 M parameters, 0.30 of a forward" in text
    cost = read_results(runs).set_index("label")["cost"]
    assert "vs threshold 0.6" in text and f"at {cost['mrp 0.6'] / cost['threshold 0.6']:.2f}x its cost" in text
    assert "saved   results/here" in text


def test_screen_shows_verdicts_and_the_label_of_a_speed_only_where_there_are_some(runs):
    frame = read_results(runs)
    frame["verdicts"] = [None] * len(frame)
    frame.loc[frame["label"] == "threshold 0.6", ["verdicts", "speed_label"]] = ['{"failed": 3}', "mechanism only"]
    for label, shown in (("threshold 0.6", True), ("mrp 0.6", False)):
        stream = io.StringIO()
        print_run(Console(file=stream, width=100), frame, frame.set_index("label").loc[label, "key"], "here/x", {})
        text = stream.getvalue()
        assert ("failed 3" in text) == shown and ("mechanism only" in text) == shown and "nan" not in text.split()


@pytest.mark.parametrize("width", [40, 56, 80, 120])
def test_screen_fits_the_terminal(runs, width):
    text = screen(runs, width)
    table = [line for line in text.splitlines() if "[" in line and "points" not in line]
    assert all(len(line) <= width for line in table)
    assert "accuracy" in text and "[" in text


# --- the figure -----------------------------------------------------------------------------------------------------


def boxes(figure):
    """Label boxes of each panel in pixels."""
    from matplotlib.text import Annotation

    renderer = figure.canvas.get_renderer()
    return [[a.get_window_extent(renderer) for a in ax.texts if isinstance(a, Annotation)] for ax in figure.axes]


@pytest.mark.parametrize("methods, settings", [(1, 1), (1, 6), (4, 4), (12, 3)])
@pytest.mark.parametrize("x", ["cost", "tps"])
def test_labels_name_every_method_and_do_not_overlap(tmp_path, methods, settings, x):
    from dlmbench.report.pareto import draw

    make_family(tmp_path, methods, settings)
    frame = read_results(tmp_path, samples=False)
    figure = draw(frame, x, "accuracy")
    (panel,) = boxes(figure)
    assert not any(a.overlaps(b) for i, a in enumerate(panel) for b in panel[:i])
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert all(method in words for method in frame["method"].unique())
    if methods > 3:
        assert "other weights" in words
    window = figure.bbox
    assert all(window.x0 <= box.x0 and box.x1 <= window.x1 for box in panel)


def test_a_method_is_named_where_there_is_no_room_for_its_setting(tmp_path):
    from dlmbench.report.pareto import draw

    make_family(tmp_path, 4, 4)
    long = "prophet " + " ".join(f"early={gap}.0 mid={gap}.5 late={gap}.25" for gap in range(9))
    make_run(tmp_path, method="prophet", threshold=None, label=long)
    figure = draw(read_results(tmp_path, samples=False), "cost", "accuracy")
    assert "prophet" in [text.get_text() for text in figure.axes[0].texts]


def test_cost_of_other_weights_is_drawn_in_the_same_unit(runs):
    from dlmbench.report.pareto import draw

    frame = read_results(runs, samples=False)
    ax = draw(frame, "cost", "accuracy").axes[0]
    ar = frame.set_index("label").loc["ar"]
    drawn = [float(line.get_xdata()[0]) for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert drawn == [pytest.approx(0.5 * ar["cost"])]


def test_one_panel_a_task_and_three_formats(tmp_path):
    from dlmbench.report.pareto import draw, plot

    for task in ("nano-gsm", "nano-code"):
        make_run(tmp_path, task=task)
    frame = read_results(tmp_path, samples=False)
    assert [ax.get_title(loc="left") for ax in draw(frame, "nfe", "accuracy").axes] == [
        "nano-code (test, 120 items), nano",
        "nano-gsm (test, 120 items), nano",
    ]
    written = plot(frame, tmp_path, x="nfe")
    assert [path.name for path in written] == ["pareto.png", "pareto.svg", "pareto.pdf"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_unknown_axes_and_empty_columns_are_refused(tmp_path):
    from dlmbench.report.pareto import plot

    make_run(tmp_path)
    frame = read_results(tmp_path, samples=False)
    with pytest.raises(RequestError, match="cost, nfe, tps, flops, tpf"):
        plot(frame, tmp_path, x="speed")
    with pytest.raises(RequestError, match="No row has a value for tps"):
        plot(frame.assign(tps_decode=None), tmp_path, x="tps")


def test_other_hardware_is_a_series_of_its_own(tmp_path):
    from dlmbench.report.pareto import draw

    for device in ("a CPU", "a GPU"):
        for threshold in (0.6, 0.9):
            make_run(tmp_path, threshold=threshold, nfe=int(20 * threshold), device=device)
    frame = read_results(tmp_path, samples=False)
    assert len(frame) == 4, "nothing was averaged"
    ax = draw(frame, "nfe", "accuracy").axes[0]
    words = " ".join(text.get_text() for text in ax.texts)
    assert "(on a CPU)" in words or "(on a GPU)" in words
    joined = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
    assert all(len(set(line.get_ydata())) <= 2 for line in joined)
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white" and line.get_marker() != "None"]
    assert len(hollow) == 2


def test_published_points_are_drawn_beside_ours_and_stay_out_of_the_rows(tmp_path):
    from dlmbench.report import published
    from dlmbench.report.pareto import draw

    make_run(tmp_path, task="gsm8k", model="sdar-8b-mrp", threshold=0.6, accuracy=0.8)
    frame = read_results(tmp_path, samples=False)
    pairs = published.pairs(frame.to_dict("records"), published.read())
    ax = draw(frame, "cost", "accuracy", pairs).axes[0]
    (marks,) = [line for line in ax.lines if line.get_label() == "published"]
    assert marks.get_ydata().tolist() == [pytest.approx(79.6)]
    assert marks.get_xdata().tolist() == [frame["cost"].iloc[0]]
    assert not [line for line in draw(frame, "cost", "accuracy").axes[0].lines if line.get_label() == "published"]


def test_threshold_curves(tmp_path):
    from dlmbench.report import figures

    make_family(tmp_path, 4, 4)
    frame = read_results(tmp_path, samples=False)
    panels = []
    figures.save, kept = (lambda make, *_: panels.append(make())), figures.save
    try:
        figures.threshold_curves(frame, tmp_path, "threshold")
    finally:
        figures.save = kept
    upper = [ax for ax in panels[0].axes if ax.get_ylabel().startswith("accuracy")]
    texts = [text.get_text() for ax in upper for text in ax.texts if text.get_text()]
    assert sorted(texts) == ["entropy", "mrp", "static", "threshold"], "confidences share a panel, other knobs do not"
    assert len(upper) == 3
    with pytest.raises(RequestError, match="several values"):
        figures.threshold_curves(frame[frame["threshold"] == 0.3], tmp_path, "threshold")


def test_batch_curves_and_accepted_lengths_need_something_to_draw(tmp_path):
    from dlmbench.report import figures
    from dlmbench.runs import find_runs

    make_run(tmp_path, threshold=0.6)
    frame = read_results(tmp_path, samples=False)
    with pytest.raises(RequestError, match="several batch sizes"):
        figures.batch_curves(frame, tmp_path, "batch")
    with pytest.raises(RequestError, match="No run drafted"):
        figures.acceptance(find_runs(tmp_path), tmp_path, "acceptance")
    make_run(tmp_path, threshold=0.6, batch_size=1)
    written = figures.batch_curves(read_results(tmp_path, samples=False), tmp_path, "batch", column=True)
    assert [path.name for path in written] == ["batch.png", "batch.svg", "batch.pdf"]


def test_accepted_lengths_show_twelve_runs_a_task(tmp_path):
    from dlmbench.report import figures
    from dlmbench.runs import RunFolder

    for number in range(14):
        run = tmp_path / f"run-{number}"
        run.mkdir()
        task = "nano-gsm" if number < 12 else "nano-code"
        manifest = {"format": 1, "label": f"simsd steps={number}", "task": {"name": task}}
        (run / "manifest.json").write_text(json.dumps(manifest))
        (run / "metrics.json").write_text(json.dumps({"acceptance": 0.5, "accepted_lengths": {"0": 1, "2": 1}}))
    drafting = [RunFolder(tmp_path / f"run-{number}") for number in range(14)]
    assert len(figures.acceptance(drafting, tmp_path, "acceptance")) == 3
    with pytest.raises(RequestError, match="13 runs drafted on nano-gsm"):
        figures.acceptance([*drafting, drafting[0]], tmp_path, "acceptance")


def test_names_at_line_ends_are_kept_apart():
    from dlmbench.report.figures import _apart

    places = _apart([10.0, 11.0, 12.0, 80.0], [10.0] * 4)
    assert all(b - a >= 10 for a, b in zip(places, places[1:])) and places[3] == 80.0


def test_projection_follows_from_the_shapes_of_the_large_models():
    from dlmbench.models.shapes import SHAPES

    def read(config):
        return config.num_layers * config.layer_parameters + config.vocab_size * config.hidden_size

    large = SHAPES["sdar-8b"]
    module = 3 * large.layer_parameters + 2 * large.hidden_size**2 + large.vocab_size * large.hidden_size
    assert SHARES["draft"] == pytest.approx(read(SHAPES["sdar-1.7b"]) / read(large), abs=5e-4)
    assert SHARES["head"] == pytest.approx(module / read(large), abs=5e-4)
    assert projected_cost({"method": "static", "nfe": 40.0}) == 40.0
    assert projected_cost({"method": "simsd", "nfe": 20.0, "draft": 10.0}) == pytest.approx(22.27)
    assert projected_cost({"method": "guided", "nfe": 20.0, "guide": 10.0}) is None
    assert projected_cost({"method": "adjust", "nfe": 20.0, "head": 10.0}) is None


def test_weights_with_several_settings_get_their_own_panel(tmp_path):
    from dlmbench.report.pareto import draw

    for threshold in (0.4, 0.6, 0.8):
        make_run(tmp_path, threshold=threshold)
        make_run(tmp_path, threshold=threshold, weights="b" * 16, model="sibling")
    make_run(tmp_path, method="static", threshold=None)
    make_run(tmp_path, method="ar", threshold=None, weights="c" * 16, model="parent")  # one row rides along
    axes = [ax for ax in draw(read_results(tmp_path, samples=False), "cost", "accuracy").axes if ax.get_visible()]
    assert [ax.get_title(loc="left").rpartition(", ")[2] for ax in axes] == ["nano", "sibling"]


def test_checkpoints_of_one_name_are_told_apart_by_their_weights(tmp_path):
    for weights in ("a" * 16, "b" * 16):
        make_run(tmp_path / weights[0], model="final", weights=weights)
    make_run(tmp_path, model="nano", weights="c" * 16)
    assert set(read_results(tmp_path)["model"]) == {"final (aaaaaaaa)", "final (bbbbbbbb)", "nano"}


def test_names_with_dollars_and_brackets_are_drawn_and_printed_as_they_are(tmp_path):
    for weights in ("a" * 16, "b" * 16):
        where = tmp_path / weights[0]
        make_run(where, model="a$x^$b [red]", weights=weights, label="threshold 0.6 draft=ckpt[red] v2", nfe=9)
    frame = read_results(tmp_path)
    plot(frame, tmp_path)
    console = stdout()
    console.width = 120
    with console.capture() as caught:
        print_sweep(console, frame)
    text = caught.get()
    assert "ckpt[red] v2" in text and "a$x^$b [red]" in text
