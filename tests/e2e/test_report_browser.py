"""The report in a real browser, where one is installed. Run: pytest tests/e2e/test_report_browser.py"""

import json
import re

import pytest
from browser import Browser, find_chromium
from tiny import make_data, make_model

from dlmbench.cli.app import main
from dlmbench.runs import find_runs

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed here")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """report.html of a sweep; wino takes tokens back."""
    folder = tmp_path_factory.mktemp("report")
    options = {
        "--task": "gsm8k",
        "--method": "static,threshold,wino",
        "--threshold": "0.004,0.9",
        "--num-fewshot": "0",
        "--data-dir": make_data(folder / "data", 6),
        "--model": make_model(folder / "tiny"),
        "--gen-length": "24",
        "--block-length": "8",
        "--batch-size": "3",
        "--device": "cpu",
        "--out": str(folder / "out"),
    }
    with pytest.raises(SystemExit) as leaving:
        main(["sweep", *(word for pair in options.items() for word in pair)])
    assert not leaving.value.code
    assert {"report.html", "table.md"} <= {path.name for path in (folder / "out").iterdir()}
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.fixture
def page(browser, report):
    found = browser.open(report, *SIZES["desktop"])
    yield found
    assert found.complaints() == []
    found.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_and_can_be_read(browser, report, size, dark):
    page = browser.open(report, *SIZES[size], dark=dark)
    assert page.run("document.documentElement.scrollWidth") == SIZES[size][0], "nothing sticks out sideways"
    assert page.run(CONTRAST) == []
    assert page.run(UNNAMED) == []
    assert page.run("document.querySelectorAll('#figure-place svg').length") == 1
    page.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.run("document.documentElement.scrollWidth") == SIZES[size][0], "with all sections open too"
    assert page.run(CONTRAST) == []
    assert page.complaints() == []
    page.close()


def test_a_click_on_a_column_sorts_by_it_and_another_turns_it_round(page):
    column = """(() => {
      const table = document.querySelector("table.sortable"), heads = [...table.tHead.rows[0].cells];
      const at = heads.findIndex((head) => head.textContent === "NFE");
      heads[at].firstElementChild.click();
      const values = [...table.tBodies[0].rows].map((row) => Number(row.cells[at].dataset.v));
      return [heads[at].getAttribute("aria-sort"), values];
    })()"""
    order, values = page.run(column)
    assert order == "ascending" and values == sorted(values) and len(set(values)) > 2
    order, values = page.run(column)
    assert order == "descending" and values == sorted(values, reverse=True)


def test_rows_without_a_value_stay_last_in_both_orders(page):
    script = """(() => {
      const table = document.querySelector("table.sortable"), heads = [...table.tHead.rows[0].cells];
      const at = heads.findIndex((head) => head.textContent.startsWith("vs static"));
      return [1, 2].map(() => {
        heads[at].firstElementChild.click();
        return [...table.tBodies[0].rows].map((row) => row.cells[at].dataset.v);
      });
    })()"""
    for values in page.run(script):
        assert values[-1] == "" and "" not in values[:-1], "the reference is compared with nothing"


POINTS = "[...document.querySelectorAll('.dots > *')].map((dot) => dot.getAttribute('aria-label'))"


def test_the_figure_names_every_setting_and_switches_axis_and_decoders(page):
    names = page.run(POINTS)
    assert len(names) == len(set(names)) == 5 and all("% [" in name and ", cost " in name for name in names)
    choose(page, "figure-axis", "nfe")
    assert all(", NFE " in name for name in page.run(POINTS))
    page.run("document.querySelector('#figure-legend button').click()")
    assert page.run("document.querySelector('#figure-legend button').getAttribute('aria-pressed')") == "false"
    off = page.run("document.querySelector('#figure-legend button').textContent")
    assert 0 < len(page.run(POINTS)) < 5 and not any(name.startswith(off) for name in page.run(POINTS))
    page.run("document.querySelector('#figure-legend button').click()")
    assert len(page.run(POINTS)) == 5


def test_arrow_keys_move_between_points_and_enter_opens_the_items(page):
    stops = "[...document.querySelectorAll('.dots > *')].filter((dot) => dot.tabIndex === 0).length"
    assert page.run(stops) == 1, "the figure is one tab stop"
    page.run("document.querySelector('.dots > [tabindex=\"0\"]').focus()")
    page.press("ArrowRight")
    told = page.run("document.activeElement.getAttribute('aria-label')")
    assert told == page.run(POINTS)[1] and page.run(stops) == 1
    shown = page.run("document.getElementById('figure-tip').textContent")
    assert shown == told.replace(": ", "", 1), "what is heard is what is seen"
    page.press("Enter")
    chosen = page.run("document.getElementById('items-setting').selectedOptions[0].textContent")
    assert chosen == told.partition(":")[0] + ", beside one token a step"


def test_an_answer_is_marked_where_it_differs_from_one_token_a_step(browser, report, tmp_path):
    head, data, tail = re.split(r'(?<=id="data">)(.*?)(?=</script>)', report.read_text(), maxsplit=1, flags=re.DOTALL)
    record = json.loads(data)
    names = record["sections"][0]["settings"]
    slow, fast = names.index("static k=1"), names.index("threshold 0.004")
    record["sections"][0]["items"][0]["answers"] = [
        ["2 + 3 is 5", 1.0, "right", [slow]],
        ["2 + 4 is 6", 0.0, "wrong", [fast]],
    ]
    changed = tmp_path / "report.html"
    changed.write_text(head + json.dumps(record).replace("<", "\\u003c") + tail)
    page = browser.open(changed, *SIZES["desktop"])
    choose(page, "items-setting", "threshold 0.004")
    answers = "[...document.querySelectorAll('#items-detail pre[aria-label=Answer]')].map((pre) => pre.innerHTML)"
    assert page.run(answers) == [
        "2 + 3 is 5",
        "2 + <del>3</del><ins>4</ins> is <del>5</del><ins>6</ins>",
    ]
    assert page.complaints() == []
    page.close()


def test_the_slider_replays_the_recorded_steps(page, report):
    choose(page, "replay-left", "wino 0.004")
    slide = """(step) => { const s = document.getElementById("replay-step"); s.value = step;
      s.dispatchEvent(new Event("input")); }"""
    masked = "document.querySelectorAll('.panel:first-child .cell.mask').length"
    page.run(f"({slide})(0)")
    cells = page.run("document.querySelectorAll('.panel:first-child .cell').length")
    assert cells >= 24 and page.run(masked) == cells, "before the first step everything is masked"
    taken_back, left = 0, []
    for step in range(1, 1 + int(page.run("document.getElementById('replay-step').max"))):
        page.run(f"({slide})({step})")
        left.append(page.run(masked))
        taken_back += page.run("document.querySelectorAll('.panel:first-child .cell.back').length")
    (run,) = [run for run in find_runs(report.parent) if run.manifest.label == "wino 0.004"]
    steps = run.traces[0].steps
    assert left[-1] == 0 and taken_back == sum(len(step["remasked"]) for step in steps) > 0
    words = "[...document.querySelectorAll('.panel:first-child .cell')].map((cell) => cell.textContent)"
    text, final = page.run(f"{words}.join('')"), page.run(f"({ANSWER})('wino 0.004')")
    assert text.replace("↵", "").split("·")[0].startswith(final[:8])


def test_play_runs_to_the_end_and_keys_move_slider_and_cursor(page):
    page.run("document.getElementById('replay-first').click()")
    page.run("document.getElementById('replay-step').focus()")
    page.press("ArrowRight")
    assert page.run("document.getElementById('replay-count').textContent").startswith("Step 1 of")
    page.run("document.querySelector('.canvas').focus()")
    page.press("ArrowRight")
    assert page.run("document.querySelector('.told').textContent").startswith("Position 1: ")
    page.run("document.getElementById('replay-play').focus()")
    page.press("Enter")
    assert page.run("document.getElementById('replay-play').textContent").strip() == "Pause"
    ended = """new Promise((resolve) => { const look = () => {
      const s = document.getElementById("replay-step");
      s.value === s.max ? resolve(true) : setTimeout(look, 50); }; look(); })"""
    assert page.run(ended)
    assert page.run("document.getElementById('replay-play').textContent").strip() == "Play"


def test_items_are_filtered_and_lead_to_their_replay(page):
    count = "document.querySelectorAll('#items-list li').length"
    assert page.run(count) == 6
    choose(page, "items-filter", "none")
    assert page.run(count) == 6, "random weights solve nothing"
    search(page, "4 plus 6")
    assert page.run(count) == 1
    assert "What is 4 plus 6?" in page.run("document.querySelector('#items-detail pre').textContent")
    search(page, "")
    page.run("document.querySelectorAll('#items-list button')[1].click()")
    name = page.run("document.querySelector('#items-detail .chips button').textContent")
    page.run("document.querySelector('#items-detail .chips button').click()")
    assert page.run("document.querySelector('.panel h3').firstChild.textContent") in name
    assert page.run("document.getElementById('replay-item').value") == "test/1"


def choose(page, select, text):
    """Choose the option that begins with `text`, or has that value."""
    page.run(
        f"""(() => {{ const s = document.getElementById("{select}");
        s.value = [...s.options].find((o) => o.value === "{text}" || o.textContent.startsWith("{text}")).value;
        s.dispatchEvent(new Event("input")); s.dispatchEvent(new Event("change")); }})()"""
    )


def search(page, text):
    page.run(
        f"""(() => {{ const s = document.getElementById("items-search"); s.value = "{text}";
        s.dispatchEvent(new Event("input")); }})()"""
    )


ANSWER = """(name) => {
  const section = JSON.parse(document.getElementById("data").textContent).sections[0];
  const setting = section.settings.indexOf(name);
  return section.items[0].answers.find((answer) => answer[3].includes(setting))[0].replaceAll("\\n", ""); }"""

# texts whose contrast with what is behind them is below WCAG's 4.5 (disabled and invisible ones aside)
CONTRAST = """(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const l = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
  const behind = (node) => {
    const colour = channels(getComputedStyle(node).backgroundColor);
    return colour.length < 4 || colour[3] === 1 ? colour : behind(node.parentElement);
  };
  const poor = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    const text = walk.currentNode.textContent.trim();
    if (!text || !node.getClientRects().length || node.closest("script, style, svg, .unknown")) continue;
    const [a, b] = [light(channels(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.add(`${node.tagName}.${node.className}: ${text.slice(0, 30)}`);
  }
  return [...poor];
})()"""

# controls and pictures without a name
UNNAMED = """[...document.querySelectorAll("button, select, input, svg[role=img], [role=region], [role=group]")]
  .filter((node) => !node.getAttribute("aria-label") && !node.closest("label"))
  .filter((node) => node.matches("select") || !node.textContent.trim())
  .map((node) => node.outerHTML.slice(0, 80))"""
