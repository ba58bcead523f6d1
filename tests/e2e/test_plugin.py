"""The README's decoder from outside the package: it is short, conforms, and is the file that the README shows."""

import re
from pathlib import Path

from typer.testing import CliRunner

from dlmbench.decoders.testing import conformance, decoders_of

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "left_run.py"


def test_the_readme_shows_the_example_and_it_is_short():
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 30
    assert source.strip() in (ROOT / "README.md").read_text()


def test_the_example_keeps_every_promise():
    findings = list(conformance(decoders_of(EXAMPLE)[0]))
    assert len(findings) == 7 and all(f.holds for f in findings)


def test_the_decoder_of_the_page_keeps_every_promise(tmp_path):
    page = (ROOT / "docs" / "add-a-decoder.md").read_text()
    file = tmp_path / "surest.py"
    file.write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    assert all(f.holds for f in conformance(decoders_of(file)[0]))


def test_it_runs_by_plugin_and_appears_in_table_and_figure(tmp_path):
    from dlmbench.cli.app import app

    command = ["run", "--method", "left-run", "--plugin", str(EXAMPLE), "--task", "nano-gsm", "--limit", "3",
               "--against", "static", "--threshold", "0.7", "--out", str(tmp_path)]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "left-run" in result.stdout and "static" in result.stdout
    assert CliRunner().invoke(app, ["plot", str(tmp_path)]).exit_code == 0
    assert list(tmp_path.rglob("pareto.svg")) and "left-run" in next(tmp_path.rglob("pareto.svg")).read_text()
