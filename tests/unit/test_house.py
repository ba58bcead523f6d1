"""The figures of `make house` count what their rules say. pytest tests/unit/test_house.py"""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "house.py"


@pytest.fixture(scope="module")
def house():
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    module = sys.modules["house"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["house"]


@pytest.fixture
def counted(house, tmp_path, monkeypatch):
    """The figures of a package of a few modules, by name."""
    monkeypatch.setattr(house, "mypy", lambda root, folder: [])
    (tmp_path / "tests").mkdir()
    for name, text in {
        "__init__": "",
        "one": "from pkg.two import B\nfrom typing import Any\n\n\nclass RunSpec:\n"
        + "".join(f"    option_{i}: int\n" for i in range(8))
        + "\n\ndef late(x: dict[str, Any]):\n    from pkg import two\n",
        "record": "class Row:\n    accuracy: float\n    nfe: float\n    cost: float\n    tpf: float\n\n\n"
        "ONE = Row(accuracy=1, nfe=1, cost=1, tpf=1)\n",
        "two": '"""Follows the card of X, section 2."""\nimport pkg.one\nfrom typing import Any\n\n\n'
        "class B:\n    x: Any\n\n\n"
        'class RunSpec:\n    pass\n\n\nROW = ("accuracy", "nfe", "cost", "tpf")\n'
        "def keywords(f):\n    f(" + ", ".join(f"option_{i}=1" for i in range(8)) + ")\n",
        "analysis/pairs": 'BY = ("task", "split")\nAGAIN = ["split", "task"]\n',
        "report/table": 'SHOWN = ("task", "seed")\n\n\ndef same_cell():\n    pass\n',
    }.items():
        path = tmp_path / "pkg" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return {figure.name: figure for figure in house.count(tmp_path, "pkg")}


@pytest.mark.parametrize(
    "name, number",
    [
        ("run options", 2),
        ("row columns", 1),
        ("notions of same run", 2),
        ("dict[str, Any]", 1),
        ("Any", 2),
        ("imports in functions", 1),
        ("import cycles", 1),
        ("class names twice", 1),
        ("pointers to cards", 1),
    ],
)
def test_a_figure_counts_what_its_rule_says(counted, name, number):
    assert counted[name].count == number, counted[name].places


def test_a_figure_over_its_limit_says_so(house):
    assert house.Figure("x", "rule", 1, ["a", "b"]).over
    assert not house.Figure("x", "rule", 2, ["a", "b"]).over
    assert not house.Figure("x", "rule", None, ["a", "b"]).over
