"""The report and its sentences, from made-up run folders. Run: pytest tests/unit/test_report_html.py"""

import itertools
import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from html import unescape

import pytest
from synthetic import make_family, make_run

from dlmbench.analysis.load import Results
from dlmbench.analysis.needs import needs, within
from dlmbench.cli.app import main
from dlmbench.report.answer import answer
from dlmbench.report.figures.style import COLOURS
from dlmbench.report.html import figure as html_figure
from dlmbench.report.html import items as html_items
from dlmbench.report.html import page, write_report
from dlmbench.report.html import trace as html_trace
from dlmbench.report.summary import sentences, titled
from dlmbench.runs import Sample, Trace, find_runs
from dlmbench.runs.prompts import keep_prompts
from dlmbench.runs.record import EngineReport

STEP = {"block": 0, "remasked": [], "forwards": [{"role": "target", "kind": "denoise"}], "extra": {}, "scores": {}}
SIMSD = {"verified": True, "window": 4, "draft": [40, 51, 60], "step_map": [-2, 0, 0], "accepted": [True, False, True]}
NASTY = '</script><script>alert("x")</script><!-- \u2028 $title &amp;'


def paragraphs(results):
    """(title, sentences) of every group."""
    return [(title, sentences(group)) for title, group in titled(results)]


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=0.9, nfe=40, items=400)
    make_run(tmp_path, threshold=0.4, accuracy=0.5, nfe=10, items=400)
    make_run(tmp_path, threshold=0.9, accuracy=0.9, nfe=24, items=400)
    make_run(tmp_path, method="ar", threshold=None, accuracy=0.9, nfe=31, weights="b" * 16, model="nano2-ar", items=400)
    return tmp_path


def scored(root, label, right):
    """Make exactly these items (a set of numbers) right in one run."""
    (run,) = [run for run in find_runs(root) if run.manifest.label == label]
    with run.writing() as writer:
        samples = [
            replace(sample, scores={**sample.scores, "accuracy": float(number in right)})
            for number, sample in enumerate(run.samples)
        ]
        writer.samples(samples)
        writer.metrics(replace(run.metrics, accuracy=len(right) / len(samples)))


# --- the sentences ----------------------------------------------------------------------------------------------------


def test_three_sentences_name_the_setting_that_keeps_the_accuracy_and_the_cheapest(runs):
    everything = set(range(360))
    for label, right in (("static k=1", everything), ("threshold 0.9", everything), ("threshold 0.4", set(range(200)))):
        scored(runs, label, right)
    results = Results.load(runs)
    ((title, (keep, cheapest, certainty)),) = paragraphs(results)
    assert title == "nano-gsm", "ar has other weights and is compared with nothing"
    cost = {row.label: row.cost for row in results.rows}
    assert "take threshold 0.9: 90.0 %" in keep and "0.0 points on the same items [-1.0, +1.0], equal" in keep
    assert f"at {cost['threshold 0.9'] / cost['static k=1']:.2f} of its cost" in keep
    assert "too few" not in keep, "400 items without a difference rule out a loss of one point"
    assert "cheapest of all 3 settings is threshold 0.4" in cheapest and "-40.0 points" in cheapest
    assert "1 is worse and 1 is equal" in certainty and "400 items" in certainty


def test_a_fourth_sentence_says_who_beats_a_threshold_of_the_same_work(runs):
    for method, right in (("entropy", 340), ("wino", 150), ("sched", 260)):
        label = make_run(runs, method=method, threshold=0.6, nfe=16, items=400).manifest.label
        scored(runs, label, set(range(right)))
    scored(runs, "threshold 0.4", set(range(200)))
    scored(runs, "threshold 0.9", set(range(360)))
    ((_, (*_, told)),) = paragraphs(Results.load(runs))
    assert told.startswith("Beside plain threshold decoding that does the same work, better is entropy 0.6 (+"), told
    assert "; worse is wino 0.6 (-" in told and told.endswith("; the other 1 setting of other methods cannot be told.")


def test_a_loss_that_the_items_do_not_rule_out_is_said_to_be_open(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", accuracy=0.9, nfe=40, items=12)
    make_run(tmp_path, threshold=0.9, nfe=20, items=12)
    for label in ("static k=1", "threshold 0.9"):
        scored(tmp_path, label, set(range(11)))
    results = Results.load(tmp_path)
    ((_, (keep, cheapest, certainty)),) = paragraphs(results)
    assert "too close to tell (12 items are too few to rule out a loss of more than 2 points)" in keep
    assert cheapest == "Nothing is cheaper: threshold 0.9 costs least of all 2 settings."
    assert "[-24.2, +24.2]" in keep, "z^2 / (n + z^2), not nothing"
    assert certainty.startswith("12 items are too few to tell the other setting from static k=1")
    (group,) = results.groups
    assert {need.remark for need in needs(group) if "below" in need.need} == {"too few items to tell"}


def test_nothing_is_recommended_that_is_worse_or_dearer(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", nfe=20, items=50)
    make_run(tmp_path, threshold=0.5, nfe=10, items=50)
    make_run(tmp_path, threshold=0.9, nfe=40, items=50)
    for label, right in (("static k=1", 40), ("threshold 0.5", 30), ("threshold 0.9", 45)):
        scored(tmp_path, label, set(range(right)))
    (group,) = Results.load(tmp_path).groups
    best = group.reference
    assert within(group, best, 0.01) is None and within(group, best, 0.3).label == "threshold 0.5"
    keep = paragraphs(Results.load(tmp_path))[0][1][0]
    assert keep.startswith("No cheaper setting stays within 2 points of static k=1")


def test_without_a_reference_nothing_is_claimed_about_it(tmp_path):
    make_run(tmp_path, threshold=0.5, nfe=10)
    make_run(tmp_path, threshold=0.9, nfe=20)
    lines = paragraphs(Results.load(tmp_path))[0][1]
    assert len(lines) == 3 and "no static row" in lines[2]


def test_missing_samples_leave_differences_open(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", nfe=40)
    make_run(tmp_path, threshold=0.9, nfe=20)
    for run in find_runs(tmp_path):
        (run.path / "samples.jsonl").unlink()
    ((_, lines),) = paragraphs(Results.load(tmp_path))
    assert "samples of some rows are missing" in lines[2]
    assert "samples are missing" in page(Results.load(tmp_path), "Bare")


def test_methods_are_compared_at_equal_cost_too(runs):
    text = page(Results.load(runs), "T")
    section = text[text.index("At equal cost and at equal accuracy") :]
    assert "Reference: static k=1" in section and '<th scope="row">threshold</th>' in section
    assert "<dt>cost at accuracy</dt>" in section


def test_groups_of_other_circumstances_are_told_apart(runs):
    make_run(runs, task="nano-code", threshold=0.5)
    make_run(runs, task="nano-code", method="static", threshold=None, label="static k=1")
    make_run(runs, method="static", threshold=None, label="static", weights="b" * 16, model="nano2-ar", items=400)
    titles = [title for title, _ in paragraphs(Results.load(runs))]
    assert titles == ["nano-code, nano2, 120 items", "nano-gsm, nano2, 400 items", "nano-gsm, nano2-ar, 400 items"]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_asks_the_network_for_nothing_and_survives_any_text(runs):
    for run in find_runs(runs):
        with run.writing() as writer:
            first, *others = run.samples
            writer.samples([replace(first, text=NASTY), *others])
    keep_prompts(run, run.manifest.prompts, [{"key": "item-0000", "prompt": NASTY, "target": NASTY}])
    text = page(Results.load(runs), "A <b>title</b>", NASTY, [NASTY])
    names = {f"http://www.w3.org/{name}" for name in ("2000/svg", "1999/xlink", "1999/xhtml", "2000/xmlns/")}
    names.add("http://www.w3.org/XML/1998/namespace")
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= names
    assert not re.search(r"<link(?! rel=\"icon\" href=\"data:,\")|\ssrc=|@import|@font-face", text)
    assert "alert(" not in re.sub(r"&#?\w+;|\\u003c", "", text).replace('alert(\\"x\\")', "").replace("alert(x)", "")
    assert text.count("<script") == 3 and text.count("</script>") == 3
    assert "A &lt;b&gt;title&lt;/b&gt;" in text and "<b>title</b>" not in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    (section,) = data["sections"]
    item = next(item for item in section["items"] if item["key"] == "item-0000")
    assert item["prompt"] == item["target"] == NASTY and [answer[0] for answer in item["answers"]][0] == NASTY


def test_the_report_is_a_file_like_any_other_and_the_same_every_time(runs):
    first = write_report(Results.load(runs), runs / "new" / "report.html").read_bytes()
    assert first == write_report(Results.load(runs), runs / "again.html").read_bytes()


@pytest.mark.slow
def test_a_large_sweep_stays_below_three_megabytes(tmp_path):
    make_family(tmp_path, 6, 5)
    for run in find_runs(tmp_path):
        with run.writing() as writer:
            long = 10 * "a long answer of its own "
            writer.samples([replace(one, text=f"{run.name} {one.key} {long}") for one in run.samples])
            positions = list(range(64))
            scores = {"positions": positions, "tokens": positions, "confidence": 64 * [0.5]}
            steps = [{**STEP, "positions": [i], "tokens": [i], "scores": scores} for i in positions]
            words = {str(i): f"word{i}" for i in positions}
            writer.traces([Trace(f"item-{n:04d}", 0, positions, True, words, steps) for n in range(8)])
    results = Results.load(tmp_path)
    text = page(results, "Large")
    assert 1_000_000 < len(text.encode()) < 3_000_000
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    (section,) = data["sections"]
    assert 0 < len(section["items"]) < section["total"] == 250, "the report says how many it left out"
    shown = [trace["key"] for trace in data["traces"]]
    assert len(set(shown)) < 8 and len(shown) == len(set(shown)) * len(results.rows), (
        "an item for every run or for none"
    )


def section(folder):
    """The rows of the one task of a folder."""
    (rows,) = Results.load(folder).sections.values()
    return rows


def test_the_figure_has_every_setting_with_its_interval(runs):
    rows = section(runs)
    (panel,) = html_figure.panels([("nano-gsm (test)", rows)])
    assert panel["title"] == "nano-gsm (test), nano2" and len(panel["points"]) == len(rows)
    points = {point["name"]: point for point in panel["points"]}
    by_label = {row.label: row for row in rows}
    for name, point in points.items():
        assert point["y"][1] <= point["y"][0] <= point["y"][2]
        assert name == "ar" or point["x"]["cost"] == pytest.approx(by_label[name].cost, abs=1e-4)
    assert points["ar"]["x"]["cost"] == pytest.approx(by_label["ar"].cost / 2, abs=1e-4), "in the panel's forwards"
    assert points["threshold 0.4"]["own"] and not points["ar"]["own"], "other weights are on no front"
    assert "points against static k=1" in points["threshold 0.4"]["told"] and points["ar"]["told"] == "other weights"


def test_colours_can_be_read_on_dark_paper_and_ar_is_a_star():
    found = html_figure.marks(["static", "ar", "threshold"])
    assert found["ar"] == ("var(--ink)", "star") and len({colour for colour, _ in found.values()}) == 3
    card = html_figure.DARK_CARD
    for colour in COLOURS:
        lighter = html_figure._lighter(colour)
        channels = [int(lighter[i : i + 2], 16) for i in (1, 3, 5)]
        assert (html_figure.luminance(channels) + 0.05) / (card + 0.05) >= 4.5


# --- items and traces -------------------------------------------------------------------------------------------------


def test_equal_answers_are_kept_once_with_the_settings_that_gave_them(runs):
    folders = find_runs(runs)
    (section,) = html_items.item_sections([("task", [run.name for run in folders], folders)])
    item = section["items"][0]
    assert sorted(setting for answer in item["answers"] for setting in answer[3]) == list(range(len(folders)))
    assert len(item["answers"]) <= 2 and {answer[2] for answer in item["answers"]} <= {"right", "wrong"}
    assert item["prompt"] is None and len(item["nfe"]) == len(folders)


def test_forwards_of_a_served_answer_are_what_its_server_told():
    report = EngineReport(8, nfe=7)
    served = Sample("a", "", [], "", {"accuracy": 1.0}, {}, {}, 0, 0.0, "eos", 0, 0, [], report)
    assert html_items._item("a", None, [served, None])["nfe"] == [7, None]


def test_verdicts_are_words():
    def word(accuracy, **scores):
        found = {"accuracy": accuracy, **scores}
        return html_items._word(Sample("a", "", [], "", found, {}, {}, 0, 0.0, "eos", 0, 0, []))

    assert word(0.0, unparsed=True) == "no answer found" and word(0.25) == "0.25"
    assert word(0.0, verdict="timeout") == "timeout" and word(1.0, verdict="passed") == "right"


@pytest.mark.parametrize(
    "extra, rejected",
    [
        ({"vetoed": [-1, 7]}, [(7, 70)]),
        ({"drafts": [[5, 50], [6, 61], [-1, -1]], "accepted": 1}, [(6, 61)]),
        (SIMSD, [(5, 51)]),
        ({"agreed": 1}, [(6, 60), (7, 70)]),
        ({}, []),
    ],
)
def test_rejected_drafts_are_read_from_each_method_s_own_record(extra, rejected):
    scores = {"positions": [5, 6, 7], "tokens": [50, 60, 70], "confidence": [0.9, 0.8, 0.7]}
    step = {**STEP, "positions": [5], "tokens": [50], "extra": extra, "scores": scores}
    assert html_trace.rejected(step) == rejected


def test_steps_count_from_the_answer_s_first_position():
    scores = {"positions": [11, 12], "tokens": [1, 2], "confidence": [0.9, None]}
    step = {**STEP, "positions": [11], "tokens": [1], "remasked": [10], "scores": scores}
    block, revealed, back, considered, rejected, passes, rewritten = html_trace._step(step, 10, {1: 4, 2: 5})
    assert (revealed, back, considered) == ([[1, 4, 900]], [0], [[2, 5, None]]) and passes == "target denoise"
    assert rewritten == []
    edited = {**step, "replaced": {"positions": [10], "tokens": [2]}}
    assert html_trace._step(edited, 10, {1: 4, 2: 5})[6] == [[0, 5]]


@pytest.mark.slow
def test_a_folder_of_five_hundred_runs_takes_at_most_a_minute_and_two_gigabytes(tmp_path):
    for task, number, step in itertools.product(range(5), range(10), range(10)):
        method = ["static", "threshold", *(f"method{n}" for n in range(2, 10))][number]
        name = f"static k={step + 1}" if method == "static" else None
        threshold = None if name else 0.05 + 0.09 * step
        nfe = 60 // (step + 1) if name else 6 + 3 * step
        right = dict(accuracy=0.5 + 0.04 * step, items=100)
        make_run(tmp_path, task=f"task-{task}", method=method, threshold=threshold, label=name, nfe=nfe, **right)
    command = [sys.executable, "-m", "dlmbench", "report", str(tmp_path), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found["rows"] == 500 and (tmp_path / "report.html").stat().st_size < 3_000_000
    assert used.ru_utime + used.ru_stime < 60, "seconds of one core, whatever else the machine does"
    assert used.ru_maxrss < 2_000_000  # KiB


# --- the verb ---------------------------------------------------------------------------------------------------------


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    return leaving.value.code or 0, capsys.readouterr()


def test_report_prints_the_answer_that_opens_the_file(runs, capsys):
    code, streams = call(capsys, "report", str(runs), "--json")
    record = json.loads(streams.out)
    assert code == 0 and record["answer"] == answer(Results.load(runs)).record
    text = unescape((runs / "report.html").read_text()).replace("\xa0", " ")
    head = text[text.index('id="answer"') : text.index('id="figure"')]
    assert all(line in head for line in record["answer"]["sentences"])
    assert all(f">{cell}<" in head for row in record["answer"]["rows"] for cell in row.values())
    code, streams = call(capsys, "report", str(runs), "--max-drop", "100")
    assert code == 2 and "--max-drop is 100" in streams.err


def test_report_without_runs_says_what_to_do(tmp_path, capsys):
    code, streams = call(capsys, "report", str(tmp_path))
    assert code == 2 and "dlmbench sweep" in streams.err and "--split" in streams.err
    assert call(capsys, "report", str(tmp_path / "nowhere"))[0] == 2
    assert call(capsys, "report", str(tmp_path), "--out", str(tmp_path))[0] == 2


def test_the_legend_has_no_marks_of_markdown(runs):
    html = page(Results.load(runs), "t")
    legend = html[html.index("What the columns mean") :][:3000].partition("</details>")[0]
    assert "<dt>front</dt><dd>in how many" in legend and "*" not in legend
    assert "reference" in html, "the row that others are compared with says so"
