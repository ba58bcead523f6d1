"""Exact accuracies on the ideal model: some of every task; all with -m "slow or not slow".

pytest tests/golden/test_oracle_exact.py
"""

from pathlib import Path

import pytest

from dlmbench.verify.cases import cases_of, run_case

CASES = {case.raw["id"]: case for case in cases_of(Path(__file__).parent / "oracle")}
SOME = (
    "copy-6-k4", "shuffle-4-k1", "shuffle-6-k3", "shuffle_different-4-k3", "replace_random-4-k2", "replace_random-4-k3",
    "insert_random-6-k7", "remove_random-6-k2", "latin_square-4-k1",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_sequential_at_temperature_one_has_the_exact_accuracy(name):
    outcome = run_case(CASES[name])
    assert outcome.status == "passed", outcome.detail


def test_another_accuracy_is_told_from_the_exact_one():
    case = CASES["shuffle-4-k2"]
    wrong = type(case)(case.folder, {**case.raw, "accuracy": 0.34})  # it is 0.375
    assert "expected 0.3400" in run_case(wrong).detail
