"""Every method has a page, the page names every option, and links lead somewhere. pytest tests/unit/test_docs.py"""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from dlmbench.decoders.base import EVIDENCE
from dlmbench.models.presets import PRESETS, STATUS, TRACED
from dlmbench.registry import DECODERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", DECODERS.names())
def test_every_method_has_a_page_that_names_its_options(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    options = [f.name for f in fields(DECODERS.get(name).Config)]
    missing = [option for option in options if f"`{option}" not in page and f".{option}" not in page]
    assert not missing


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda page: page.name)
def test_every_relative_link_of_a_page_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not heading or heading in _anchors(file), target


def _anchors(file):
    """Anchors of a page's headings, as renderers make them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_shipped_text_names_a_place_of_one_machine():
    home = str(Path.home())
    for folder in ("dlmbench", "docs", "recipes", "examples", "results"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml", ".json", ".csv") and "__pycache__" not in path.parts:
                text = path.read_text(errors="ignore")
                assert str(ROOT) + "/" not in text and f"{home}/" not in text, path


def test_the_walk_of_an_option_stops_where_the_page_says():
    """Each stop names a file and a name that stands in it, and the value is called threshold at all of them."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    walk = page[page.index("## The walk of") : page.index("## What each part")]
    stops = re.findall(r"^\d\. `([\w/.]+)`, `(?:\w+\.)?(\w+)`", walk, flags=re.MULTILINE)
    assert 4 <= len(stops) <= 6
    for file, name in stops:
        source = (ROOT / "dlmbench" / file).read_text()
        assert re.search(rf"(def |^    ){name}\b", source, flags=re.MULTILINE), (file, name)
        assert "threshold" in source or file == "engine/build.py"


@pytest.mark.parametrize("name", DECODERS.names())
def test_every_method_says_what_shows_that_it_is_right(name):
    evidence = DECODERS.get(name).evidence
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    assert page.split("\n\n")[1] == f"*Evidence*: {evidence}."
    assert evidence.kind in EVIDENCE and bool(evidence.areas) >= (evidence.kind == "official trace")
    sources = [
        json.loads(file.read_text()).get("source", "")
        for area in evidence.areas
        for file in (ROOT / "tests" / "golden" / area).glob("*.json")
    ]
    ours = [source for source in sources if source.startswith(("reference", "no official code", "equations"))]
    assert not evidence.areas or len(sources) > 1
    assert evidence.kind != "official trace" or len(ours) < len(sources), "no trace of published code"


def test_every_family_with_traces_has_their_area():
    for area in TRACED.values():
        assert (ROOT / "tests" / "golden" / area).is_dir()
    assert {preset.status for preset in PRESETS.values()} == set(STATUS)


@pytest.mark.parametrize("name", DECODERS.names())
def test_every_method_is_listed_in_its_group(name):
    table = (ROOT / "docs" / "methods" / "index.md").read_text()
    row = next(line for line in table.splitlines() if f"[{name}]({name}.md)" in line)
    assert row.split("|")[1].strip() == DECODERS.get(name).group != "others"
