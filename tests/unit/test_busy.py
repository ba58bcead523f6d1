"""A bench that loads the machine itself. Run: pytest tests/unit/test_busy.py"""

import json
import os

import pytest

from dlmbench.bench import busy
from dlmbench.cli.app import main


def children() -> set[str]:
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return set(file.read().split())


def test_the_processes_that_spin_are_gone_afterwards():
    before = children()
    with pytest.raises(KeyError), busy.spinning(2):
        assert len(children() - before) == 2
        raise KeyError
    assert children() == before


def test_quiet_and_busy_figures_come_from_one_run(monkeypatch, capsys):
    monkeypatch.setattr(busy, "SECONDS", 0.2)
    with pytest.raises(SystemExit):
        main(["bench", "--shape", "sdar-tiny", "--batch-size", "1,2", "--busy", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)["busy"]
    assert [(row["load"], row["batch"]) for row in rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert all(row["ms"] > 0 and row["all_threads_ms"] > 0 and row["chosen"] >= 1 for row in rows)
    assert [row["times_quiet"] for row in rows[:2]] == [1.0, 1.0]


@pytest.mark.parametrize("arguments", [["--shape", "llada-20m"], ["--busy", "0"]])
def test_loads_that_cannot_be_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(["bench", "--busy", "1", *arguments])
    assert left.value.code == 2 and capsys.readouterr().err
