"""Every golden case shipped with the suite holds. pytest tests/golden"""

import json
import shutil
from pathlib import Path

import pytest

from dlmbench.verify import run_folder
from dlmbench.verify.cases import SKIPPED

AREAS = sorted(p.parent for p in Path(__file__).parent.glob("*/README.md"))


@pytest.mark.parametrize("area", AREAS, ids=lambda area: area.name)
def test_every_case_passes_or_is_on_the_fixed_list(area):
    outcomes = list(run_folder(area))
    assert len(outcomes) >= len(list(area.glob("*.json")))
    assert [o for o in outcomes if o.status == "failed"] == []
    assert {o.case for o in outcomes if o.status == "skipped"} <= set(SKIPPED)


@pytest.fixture
def one_case(tmp_path):
    """A copy of one case that a test may spoil."""
    area = Path(__file__).parent / "sdar"
    shutil.copytree(area / "weights", tmp_path / "weights")
    case = json.loads((area / "static_b4_k2_p8.json").read_text())

    def spoil(change):
        change(case)
        (tmp_path / "case.json").write_text(json.dumps(case))
        return list(run_folder(tmp_path))[0]

    return spoil


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["expected"]["ids"].__setitem__(3, 7), "ids[3]"),
        (lambda c: c["expected"]["forwards"].__setitem__("store", 9), "forwards"),
        (lambda c: c["expected"]["steps"][1]["positions"].__setitem__(0, 0), "steps[1]"),
        (lambda c: c["params"].__setitem__("novel", 1), "unknown field params.novel"),
        (lambda c: c.__setitem__("method", "sdar_unheard_of"), "no adapter"),
    ],
)
def test_a_spoilt_case_fails_and_says_where(one_case, change, words):
    outcome = one_case(change)
    assert outcome.status == "failed" and words in outcome.detail
