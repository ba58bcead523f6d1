"""The ideal model as a model like others: run, keys, refusals, limits. pytest tests/e2e/test_oracle_run.py"""

import json

import pytest

from dlmbench.analysis.load import Results
from dlmbench.cli.app import main


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


RUN = ("run", "--method", "sequential", "--task", "stress-shuffle/4", "--limit", "12", "--against", "none")


@pytest.mark.parametrize("model", ["oracle", "oracle-block"])
def test_a_run_on_the_ideal_model_is_right_everywhere_and_says_what_it_was(capsys, tmp_path, model):
    code, out, err = command(capsys, *RUN, "--model", model, "--temperature", "1", "--out", str(tmp_path))
    assert code == 0, err
    (folder,) = tmp_path.glob("stress-shuffle-4-sequential-*")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12 and all(sample["scores"]["accuracy"] == 1 for sample in samples)
    assert "100.0" in out and model in out


def test_another_oracle_is_another_run(capsys, tmp_path):
    for options in ([], ["--set", "oracle.noise=1"], ["--set", "oracle.weights=zipf"]):
        command(capsys, *RUN, "--model", "oracle", "--out", str(tmp_path), *options)
    assert len(list(tmp_path.glob("stress-shuffle-4-sequential-*"))) == 3
    groups = Results.load(tmp_path).groups
    assert all(len(group.rows) == 1 for group in groups), "rows of different models are never paired"
    assert {group.rows[0].model for group in groups} == {"oracle", "oracle noise=1.0", "oracle weights=zipf"}
    assert {group.rows[0].label for group in groups} == {"sequential k=1"}


def test_what_it_takes_is_told_beforehand(capsys, tmp_path):
    arguments = ("sweep", "--method", "static,threshold", "--task", "stress-latin-square", "--limit", "3", "--dry-run")
    code, out, err = command(capsys, *arguments, "--model", "oracle", "--temperature", "1", "--out", str(tmp_path))
    assert code == 0 and "static k=1" in out + err, err


@pytest.mark.parametrize(
    "options, words",
    [
        (["--model", "oracle", "--task", "nano-gsm"], "does not list its right answers"),
        (["--model", "oracle", "--cache", "prefix"], "keeps keys and values"),
        (["--model", "oracle", "--set", "sampling.guidance=1"], "Guidance needs"),
        (["--model", "oracle", "--set", "oracle.noise=-1"], "noise must be at least 0"),
        (["--model", "oracle", "--set", "oracle.heat=1"], "heat"),
        (["--model", "oracle", "--gen-length", "3"], "valid answers of 4 tokens and a budget of 3"),
        (["--model", "nano2", "--set", "oracle.noise=1"], "is for --model oracle"),
    ],
)
def test_what_cannot_be_run_on_it_is_refused_in_a_sentence(capsys, tmp_path, options, words):
    arguments = list(RUN)
    for name, value in zip(options[::2], options[1::2]):
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    code, _, err = command(capsys, *arguments, "--out", str(tmp_path))
    assert code == 2 and words in err and "Traceback" not in err


def test_limits_of_a_plug_in_are_told_in_one_table(capsys, tmp_path):
    plugin = tmp_path / "all_at_once.py"
    plugin.write_text(
        "from dlmbench.decoders.base import Decision, StepDecoder\n"
        "from dlmbench.registry import DECODERS\n"
        "class AllAtOnce(StepDecoder):\n"
        "    name = 'all-at-once'\n"
        "    attention = ('full', 'block_causal')\n"
        "    def decide(self, view, forward):\n"
        "        return Decision(view.candidates(forward.logits).tokens, view.eligible)\n"
        "DECODERS.register('all-at-once', AllAtOnce)\n"
    )
    code, out, err = command(
        capsys, "limits", "--method", "all-at-once", "--plugin", str(plugin), "--task", "stress-replace-random/4",
        "--limit", "100", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = {one["model"]: one for one in json.loads(out)}
    assert set(found) == {"ideal", "ideal, unequal", "overconfident"}
    ideal = found["ideal"]
    assert ideal["forwards"] == 100 and ideal["tokens"] == 400
    assert ideal["low"] < 27 / 64 < ideal["high"]  # (1 - 1/n) ** (n - 1)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--method", "mrp"], "needs a head with weights"),
        (["--task", "nano-gsm"], "does not list its right answers"),
        (["--attention", "causal"], "full or block_causal"),
        (["--threshold", "0.9", "--set", "threshold.tau=0.3"], "the same option"),
        (["--method", "prophet"], "watches an answer window"),
        (["--method", "pcsampler"], "needs the frequencies"),
        (["--set", "cache.window=shrinking"], "is of no use here"),
        (["--method", "rcd", "--attention", "block_causal"], "needs a trained --model"),
    ],
)
def test_limits_that_cannot_be_known_are_refused(capsys, options, words):
    code, _, err = command(capsys, "limits", "--limit", "2", *options)
    assert code == 2 and words in err
