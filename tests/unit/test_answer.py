"""The one screen that answers, from made-up run folders. Run: pytest tests/unit/test_answer.py"""

import pytest
from synthetic import make_run, scored

from dlmbench.analysis.load import Results
from dlmbench.cli.console import stdout
from dlmbench.report.answer import MOST, answer
from dlmbench.report.terminal import print_answer

ITEMS = 400
SAME = set(range(360))
RIGHT = {  # method -> (threshold, items that are right, forwards)
    "static": (None, SAME, 40),
    "threshold": (0.9, SAME, 16),
    "entropy": (0.4, set(range(340)) | set(range(386, 400)), 12),
    "klass": (0.6, set(range(250)), 8),
    "simsd": (None, SAME, 60),
}


@pytest.fixture
def runs(tmp_path):
    """Five decoders on a task that tells them apart, and on one that does not."""
    for method, (threshold, right, nfe) in RIGHT.items():
        label = "static k=1" if method == "static" else None
        for task, solved in (("nano-gsm", right), ("nano-code", set(range(ITEMS)))):
            made = make_run(tmp_path, task=task, method=method, threshold=threshold, nfe=nfe, items=ITEMS, label=label)
            scored(made, solved)
    cheap = make_run(tmp_path, threshold=0.4, nfe=6, items=ITEMS)
    scored(cheap, set(range(200)))
    return tmp_path


def shown(folder, width=100):
    console = stdout()
    console.width = width
    with console.capture() as caught:
        print_answer(console, answer(Results.load(folder)))
    return caught.get().splitlines()


def test_a_decoder_is_a_row_at_its_cheapest_setting_within_the_drop_best_first(runs):
    found = answer(Results.load(runs))
    labels = [line.row.label for line in found.lines]
    assert labels == ["static k=1", "threshold 0.9", "entropy 0.4", "simsd", "klass 0.6"]
    assert [line.leads for line in found.lines] == [True, False, False, False, False]
    assert [head.title for head in found.headings][:5] == [
        "decoder",
        "cost",
        "vs 1 token a step",
        "verdict",
        "nano-gsm",
    ]
    strict = answer(Results.load(runs), max_drop=0.0)
    assert [line.row.label for line in strict.lines][1:3] == ["threshold 0.9", "simsd"], "entropy loses six items"


def test_of_two_item_sets_the_larger_one_answers_and_the_other_is_named(runs):
    for method, threshold, nfe in (("static", None, 40), ("threshold", 0.9, 16)):
        make_run(runs, method=method, threshold=threshold, nfe=nfe, items=8, label=method)
    results = Results.load(runs)
    for row in results.rows:
        if row.metrics.items == 8:
            object.__setattr__(row.manifest, "prompts", "others")
    found = answer(Results(results.runs))
    assert {line.row.metrics.items for line in found.lines} == {ITEMS}
    assert "2 settings on 8 test items of nano-gsm are in table.md alone." in found.panels


def test_one_seed_answers_and_none_is_chosen_among_them(tmp_path):
    for seed, right in ((0, 300), (1, 400), (2, 350)):
        for method, threshold, nfe in (("static", None, 40), ("threshold", 0.7, 10)):
            made = make_run(tmp_path, method=method, threshold=threshold, nfe=nfe, items=ITEMS, seed=seed)
            scored(made, set(range(right)))
    found = answer(Results.load(tmp_path))
    assert {line.row.manifest.spec.seed for line in found.lines} == {0}
    assert found.panels[-1] == "Seeds 1 and 2 are in table.md, with means over seeds."


def test_three_sentences_say_what_pays_what_does_not_and_how_sure(runs):
    best, waste, unsure = answer(Results.load(runs)).sentences
    assert "threshold 0.9 on nano2 for 0.4" in best and "surely within 2 points" in best
    assert "simsd (1.5" in waste and "klass 0.6 (-27.5 [" in waste
    assert unsure.startswith(
        "Unsettled on so few items: entropy 0.4; 400 items of nano-gsm miss a true difference below"
    )


def test_a_task_that_tells_nothing_apart_is_one_line(runs):
    found = answer(Results.load(runs))
    assert found.panels == ["nano-code: all 5 settings equal, within 2 points (100.0 % right)."]
    assert not any(line.row.task == "nano-code" for line in found.lines)


def test_two_tasks_have_a_column_and_others_that_tell_are_named(runs):
    for n, task in enumerate(("gsm8k", "mbpp")):
        for method, (threshold, right, nfe) in RIGHT.items():
            label = "static k=1" if method == "static" else None
            made = make_run(runs, task=task, method=method, threshold=threshold, nfe=nfe, items=ITEMS, label=label)
            scored(made, right if method != "klass" else set(range(260 + n)))
    found = answer(Results.load(runs))
    assert [head.title for head in found.headings][4:6] == ["nano-gsm", "gsm8k"], "where settings differ most"
    assert "mbpp tells settings apart too: table.md." in found.panels


def test_the_first_task_is_the_one_that_most_decoders_ran_on(runs):
    for method, solved in (("static", set(range(ITEMS))), ("threshold", set(range(5)))):
        label = "static k=1" if method == "static" else None
        made = make_run(runs, task="gsm8k", method=method, items=ITEMS, label=label, nfe=40 if label else 12)
        scored(made, solved)
    found = answer(Results.load(runs))
    assert [head.title for head in found.headings][4:6] == ["nano-gsm", "gsm8k"], "settings differ more on gsm8k"
    assert len(found.lines) == len(RIGHT)


def test_stress_tasks_show_the_worst_and_the_mean_of_those_that_tell(runs):
    for method, (threshold, _, nfe) in RIGHT.items():
        label = "static k=1" if method == "static" else None
        for task, right in (("stress-copy", 300), ("stress-order", 100 if method == "threshold" else 300)):
            made = make_run(runs, task=task, method=method, threshold=threshold, nfe=nfe, items=ITEMS, label=label)
            scored(made, set(range(right)))
    found = answer(Results.load(runs))
    titles = [head.title for head in found.headings]
    cells = dict(zip(titles, next(line for line in found.lines if line.row.method == "threshold").cells))
    assert cells["worst stress task"] == "order -50.0" and cells["stress"] == "-50.0", "copy tells nothing apart"
    assert any(line.startswith("stress-copy: ") for line in found.panels)


def test_groups_are_sections_and_what_stands_alone_comes_last(runs):
    parent = dict(weights="b" * 16, model="nano2-ar", items=ITEMS)
    make_run(runs, method="ar", threshold=None, nfe=31, **parent)
    for method, label in (("static", "static k=1"), ("threshold", None)):
        make_run(runs, method=method, threshold=None if label else 0.9, weights="c" * 16, model="other", label=label)
    found = answer(Results.load(runs))
    assert [line.cells[0] for line in found.lines if line.leads] == ["nano2: static k=1"]
    assert any(
        "nano-gsm, other: 120 items cannot tell static k=1 and threshold 0.9 apart" in line for line in found.panels
    )
    assert found.lines[-1].cells[0] == "nano2-ar: ar" and found.lines[-1].cells[3] == "alone"


def test_twenty_rows_at_most_and_the_rest_is_counted(tmp_path):
    make_run(tmp_path, method="static", threshold=None, label="static k=1", nfe=40)
    for number in range(24):
        make_run(tmp_path, method=f"method{number:02d}", threshold=0.5, nfe=5 + number)
    found = answer(Results.load(tmp_path))
    assert len(found.lines) == MOST and found.panels[-1] == "5 more decoders are in table.md."


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_screen_keeps_difference_verdict_and_cost_at_any_width(runs, width):
    lines = shown(runs, width)
    assert max(map(len, lines)) <= width
    assert all(title in lines[0] for title in ("decoder", "vs 1 token a step", "verdict", "cost"))
    assert ("nano-gsm" in lines[0], "tok/s" in lines[0]) == (width > 60, width > 60)


def test_the_screen_is_at_most_thirty_lines(runs):
    assert len(shown(runs)) <= 30


def test_nothing_is_claimed_without_a_row_of_one_token_a_step(tmp_path):
    make_run(tmp_path, threshold=0.5)
    make_run(tmp_path, threshold=0.9)
    found = answer(Results.load(tmp_path))
    assert len(found.lines) == 1 and "no row of one token a step" in found.sentences[0]
