"""Several seeds of one setting. Run: pytest tests/unit/test_seeds.py"""

import numpy as np
import pytest
from synthetic import make_run

from dlmbench.analysis.load import Results
from dlmbench.analysis.seeds import average, over_seeds
from dlmbench.errors import RequestError
from dlmbench.report.markdown import seeds_markdown
from dlmbench.runs import RunFolder
from dlmbench.stats import wilson


def test_seeds_are_averaged_item_by_item(tmp_path):
    runs = [make_run(tmp_path, threshold=0.6, seed=seed, items=200) for seed in (2, 0, 1)]
    found = average(Results(runs).rows)
    assert found.seeds == [0, 1, 2] and found.accuracy == pytest.approx(np.mean(found.each))
    assert found.deviation == pytest.approx(np.std(found.each, ddof=1)) and found.deviation > 0
    alone = wilson(round(found.each[0] * 200), 200)
    pooled = wilson(round(found.accuracy * 600), 600)
    width = found.high - found.low
    assert 0.8 * (pooled[1] - pooled[0]) < width < alone[1] - alone[0], "independent seeds of easy items help"


def test_seeds_that_agree_count_as_one(tmp_path):
    """The same answers thrice are no more items."""
    first = make_run(tmp_path / "a", threshold=0.6, items=100)
    second = make_run(tmp_path / "b", threshold=0.6, items=100, seed=1)
    (second.path / "samples.jsonl").write_bytes((first.path / "samples.jsonl").read_bytes())
    (second.path / "metrics.json").write_bytes((first.path / "metrics.json").read_bytes())
    found = average(Results([RunFolder(first.path), RunFolder(second.path)]).rows)
    assert (found.low, found.high) == wilson(round(found.accuracy * 100), 100) and found.deviation == 0


@pytest.mark.parametrize(
    "other, name",
    [({"device": "another CPU"}, "device"), ({"weights": "b" * 16}, "weights"), ({"threshold": 0.7}, "parameters")],
)
def test_whatever_else_differs_is_refused(tmp_path, other, name):
    runs = [make_run(tmp_path, **{"threshold": 0.6}), make_run(tmp_path, **{"threshold": 0.6, "seed": 1, **other})]
    with pytest.raises(RequestError, match=f"differ in {name}.*separate series"):
        average(Results(runs).rows)
    assert over_seeds(Results(runs)) == [], "nobody averages them behind the reader's back"


def test_a_seed_twice_is_refused(tmp_path):
    runs = [make_run(tmp_path / name, threshold=0.6) for name in "ab"]
    with pytest.raises(RequestError, match="twice"):
        average(Results(runs).rows)
    assert over_seeds(Results(runs)) == [], "a sweep ends with its table all the same"


def test_the_section_lists_settings_with_several_seeds(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, threshold=0.6, seed=seed)
    make_run(tmp_path, threshold=0.9)
    text = seeds_markdown(over_seeds(Results.load(tmp_path)))
    assert "nano-gsm threshold 0.6" in text and "threshold 0.9" not in text and seeds_markdown([]) == ""
