"""A sweep that an earlier version wrote is read, shown, plotted and compared. Run: pytest tests/unit/test_format1.py"""

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dlmbench.analysis.load import Results
from dlmbench.cli.app import app
from dlmbench.report.columns import record
from dlmbench.runs import RunFolder
from dlmbench.runs.record import FORMAT

RENAMED = {"knob": "threshold", "knob_unit": "threshold_unit", "guards": "fallbacks"}


@pytest.fixture
def old(tmp_path):
    """A copy, because figures and reports are written beside the runs."""
    return Path(shutil.copytree(Path(__file__).parent / "format1", tmp_path / "old"))


def test_the_present_table_has_the_numbers_of_the_old_one(old):
    with open(old / "table.csv", newline="") as stream:
        before = list(csv.DictReader(stream))
    rows = Results.load(old).rows
    assert len(before) == len(rows) == 3
    for line, row in zip(before, rows):
        now = record(row)
        for name, text in line.items():
            if name.startswith("vs_") and not name.endswith("_row"):
                continue  # the bootstrap's interval was another
            if name == "projected_cost":
                continue  # each forward cost the weights that it reads
            value = now[RENAMED.get(name, name)]
            if name == "cost":
                value += now["prefill"]  # which was in it
            if isinstance(value, float):
                assert value == pytest.approx(float(text)), name
            else:
                assert str(value or "") == (text if value or text not in ("0", "False") else ""), name


def test_samples_traces_and_prices_are_typed(old):
    run = next(run for run in Results.load(old).runs if run.manifest.label == "threshold 0.9")
    assert (run.manifest.format, run.manifest.threshold, run.manifest.threshold_unit) == (FORMAT, 0.9, "confidence")
    assert json.loads((run.path / "manifest.json").read_text())["format"] == 1, "reading leaves the file as it is"
    assert all(sample.calls() for sample in run.samples) and len(run.traces) == 1
    assert {forward.role for forward in run.manifest.prices} == {"target"}


@pytest.mark.parametrize("verb", [["report", "--latex"], ["plot"], ["plot", "--kind", "threshold"], ["recommend"]])
def test_verbs_take_it(old, verb):
    done = CliRunner().invoke(app, [verb[0], str(old), *verb[1:]])
    assert done.exit_code == 0, done.output


def test_two_of_its_runs_are_told_apart(old):
    first, second = (str(path) for path in sorted(old.glob("nano-gsm-threshold-*")))
    done = CliRunner().invoke(app, ["diff", first, second, "--every"])
    assert done.exit_code == 0 and "they part in step" in done.output


def test_a_run_that_is_written_again_has_the_present_format(old):
    (run, *_) = Results.load(old).runs
    with run.writing() as writer:
        writer.manifest(run.manifest)
        writer.metrics(run.metrics)
        writer.samples(run.samples)
    again = RunFolder(run.path)
    assert json.loads((run.path / "manifest.json").read_text())["format"] == FORMAT
    assert (again.manifest, again.metrics, again.samples) == (run.manifest, run.metrics, run.samples)
