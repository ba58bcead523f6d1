"""The README's decoder from outside the package: it is short, conforms, and is the file that the README shows."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dlmbench.decoders.frechet import Frechet
from dlmbench.decoders.testing import conformance, decoders_of, random_requests, tiny_networks
from dlmbench.engine import Engine

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "left_run.py"
PUBLISHED = ROOT / "examples" / "frechet.py"


def test_the_readme_shows_the_example_and_it_is_short():
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 30
    assert source.strip() in (ROOT / "README.md").read_text()


def test_the_example_keeps_every_promise():
    findings = list(conformance(decoders_of(EXAMPLE)[0]))
    assert len(findings) == 7 and all(f.holds for f in findings)


@pytest.mark.parametrize("margin", [-1.0, 0.1, 0.25, 0.6])
@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_a_published_rule_fits_into_forty_lines_and_is_the_built_in_one(attention, margin):
    assert len(PUBLISHED.read_text().splitlines()) <= 40
    found = []
    for cls in (decoders_of(PUBLISHED)[0], Frechet):
        decoder = cls(cls.Config(margin))
        generations = Engine(tiny_networks(decoder, attention), decoder, batch_size=3).generate(random_requests(1))
        found.append([(one.raw_ids, one.counts) for one in generations])
    assert found[0] == found[1]


def test_the_published_rule_keeps_every_promise():
    assert all(f.holds for f in conformance(decoders_of(PUBLISHED)[0]))


def test_the_decoder_of_the_page_keeps_every_promise(tmp_path):
    page = (ROOT / "docs" / "add-a-decoder.md").read_text()
    file = tmp_path / "surest.py"
    file.write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    assert all(f.holds for f in conformance(decoders_of(file)[0]))


def test_it_runs_by_plugin_and_appears_in_table_and_figure(tmp_path):
    from dlmbench.cli.app import app

    command = ["run", "--method", "left-run", "--plugin", str(EXAMPLE), "--task", "nano-gsm", "--limit", "1",
               "--against", "static", "--threshold", "0.7", "--out", str(tmp_path)]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "left-run" in result.stdout and "static" in result.stdout
    assert CliRunner().invoke(app, ["plot", str(tmp_path)]).exit_code == 0
    assert list(tmp_path.rglob("pareto.svg")) and "left-run" in next(tmp_path.rglob("pareto.svg")).read_text()
