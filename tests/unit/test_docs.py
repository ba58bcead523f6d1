"""Every method has a page, and the page names every option. pytest tests/unit/test_docs.py"""

from dataclasses import fields
from pathlib import Path

import pytest

from dlmbench.registry import DECODERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", DECODERS.names())
def test_every_method_has_a_page_that_names_its_options(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    options = [f.name for f in fields(DECODERS.get(name).Config)]
    missing = [option for option in options if f"`{option}" not in page and f".{option}" not in page]
    assert not missing


def test_no_shipped_text_names_a_place_of_one_machine():
    home = str(Path.home())
    for folder in ("dlmbench", "docs", "recipes", "examples", "results"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml", ".json", ".csv") and "__pycache__" not in path.parts:
                text = path.read_text(errors="ignore")
                assert str(ROOT) + "/" not in text and f"{home}/" not in text, path
