"""Every method has a page, and the page names every option. pytest tests/unit/test_docs.py"""

from dataclasses import fields
from pathlib import Path

import pytest

from dlmbench.registry import DECODERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", DECODERS.names())
def test_every_method_has_a_page_that_names_its_options(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    missing = [f.name for f in fields(DECODERS.get(name).Config) if f"`{f.name}" not in page and f".{f.name}" not in page]
    assert not missing


def test_the_project_speaks_of_itself_alone():
    tracked = [p for folder in ("dlmbench", "docs", "recipes", "examples") for p in (ROOT / folder).rglob("*")]
    words = ("/work/", "/tmp/", "../shared", "pypi.org")
    for path in [*tracked, ROOT / "README.md", ROOT / "Makefile"]:
        if path.suffix in (".py", ".md", ".yaml", ".json", "") and path.is_file() and "__pycache__" not in path.parts:
            found = [word for word in words if word in path.read_text(errors="ignore")]
            assert not found, (path, found)
