"""Tables and settings for a paper. Run: pytest tests/unit/test_latex.py"""

import json
import re

import pytest
from synthetic import make_run
from typer.testing import CliRunner

from dlmbench.analysis.load import Results
from dlmbench.cli.app import app
from dlmbench.errors import RequestError
from dlmbench.report.latex import clearly_best, escape, latex


def balanced(text):
    """Do braces and environments close, and is nothing special left bare?"""
    bare = re.sub(r"\\[{}%&$#_]", "", re.sub(r"(?m)^%.*$", "", text))
    begun, ended = re.findall(r"begin\{(\w+)\}", bare), re.findall(r"end\{(\w+)\}", bare)
    cells = [line for line in bare.splitlines() if line.endswith("\\\\")]
    return (
        bare.count("{") == bare.count("}")
        and sorted(begun) == sorted(ended)
        and not set("%_#$") & set(bare)
        and {line.count("&") for line in cells} == {5}
    )


def runs(root, items=300):
    make_run(root, method="static", threshold=None, label="static k=1", accuracy=0.8, nfe=40, items=items)
    make_run(root, threshold=0.6, accuracy=0.75, nfe=20, items=items)
    make_run(root, method="learned_policy", threshold=0.6, accuracy=0.96, nfe=15, items=items)
    make_run(root, method="learned_policy", threshold=0.9, accuracy=0.95, nfe=18, items=items)


def test_bold_only_where_significant(tmp_path):
    runs(tmp_path)
    (group,) = Results.load(tmp_path).groups
    best = {row.label for row in clearly_best(group)}
    assert best == {"learned_policy 0.6", "learned_policy 0.9"}, "settings of one method do not compete"
    text = latex(Results.load(tmp_path))
    assert text.count("textbf") == 2 and balanced(text)
    few = tmp_path / "few"
    runs(few, items=12)
    text = latex(Results.load(few))
    assert "textbf" not in text and "No accuracy is significantly the best" in text


def test_the_paragraph_has_the_circumstances(tmp_path):
    runs(tmp_path)
    make_run(tmp_path, method="ar", threshold=None, weights="b" * 16, model="nano2-ar")
    text = latex(Results.load(tmp_path), ["threshold 0.6 was chosen out of 3 settings on 50 dev items of a_task."])
    assert text.count(r"\begin{table}") == 2, "other weights are another table"
    for words in (
        "nano2 (weights aaaaaaaa) and nano2-ar (weights bbbbbbbb)",
        r"learned\_policy",
        "300 test items",
        "batch size 16",
        "greedy decoding (seed 0), on a CPU",
        r"dev items of a\_task",
    ):
        assert words in text.replace("\n", " "), words
    assert balanced(text)


def test_special_letters_are_escaped():
    assert escape("a_b & 5 % {x} ~ \\") == r"a\_b \& 5 \% \{x\} \textasciitilde{} \textbackslash{}"


def test_the_report_writes_it(tmp_path):
    runs(tmp_path)
    choice = {"chosen": "threshold 0.6", "tried": [{}, {}], "method": "threshold", "dev_items": 50, "task": "nano-gsm"}
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "mine", "choices": [choice]}))
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--latex", "--json"])
    assert json.loads(done.stdout)["latex"].endswith("report.tex")
    assert "chosen out of 2 settings of threshold on 50 dev items" in (tmp_path / "report.tex").read_text()
    with pytest.raises(RequestError, match="does not exist"):
        raise CliRunner().invoke(app, ["report", str(tmp_path / "nowhere"), "--latex"]).exception
