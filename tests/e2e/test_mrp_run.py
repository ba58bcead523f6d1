"""`dlmbench run --method mrp` with a module beside a tiny backbone. Run: pytest tests/e2e/test_mrp_run.py"""

import json
from pathlib import Path

import pytest
from tiny import make_data, make_model

from dlmbench.backbone import load_checkpoint, weights_hash
from dlmbench.cli.app import main
from dlmbench.heads.mrp import MRPModule, save_module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mrp")
    for name, seed in (("tiny", 0), ("other", 1)):
        make_model(folder / name, seed=seed)
    make_data(folder / "data", 4)
    module = MRPModule(load_checkpoint(folder / "tiny"), 1, residual=True).init_weights("authors")
    save_module(module, folder / "head", weights_hash(folder / "tiny"))
    return folder


def run(place, *more, model="tiny"):
    """Exit code of `dlmbench run --method mrp`."""
    options = {
        "--task": "gsm8k", "--num-fewshot": "0", "--data-dir": place / "data", "--model": place / model,
        "--gen-length": "16", "--block-length": "8", "--batch-size": "2", "--device": "cpu", "--out": place / "out",
    }  # fmt: skip
    flags = [str(part) for pair in options.items() for part in pair]
    try:
        main(["run", "--method", "mrp", *flags, *more])
    except SystemExit as leaving:
        return leaving.code or 0
    return 0


def samples(place, method):
    for folder in sorted((place / "out").glob(f"gsm8k-{method}-*")):
        lines = [json.loads(line) for line in (Path(folder) / "samples.jsonl").read_text().splitlines()]
        yield json.loads((folder / "manifest.json").read_text()), {line["key"]: line for line in lines}


def test_a_speculative_run_has_the_ids_of_static_and_prices_its_helper(place, capsys):
    assert run(place, "--head", str(place / "head"), "--set", "mrp.mode=speculative") == 0
    assert "head" in capsys.readouterr().out
    (_, static), (manifest, ours) = next(samples(place, "static")), next(samples(place, "mrp"))
    assert {key: line["ids"] for key, line in ours.items()} == {key: line["ids"] for key, line in static.items()}
    prices = manifest["calibration"]["prices"]
    for line in ours.values():
        assert set(line["forwards"]) <= set(prices)
        assert line["counts"]["head"]["denoise"]["calls"] > 0 and line["proposed"] >= sum(line["accepted"]) > 0
        assert set(line["counts"]["target"]) <= {"prefill", "seed", "verify"}


def test_requests_that_cannot_work_say_what_would(place, capsys):
    for more, model, words in (
        ((), "tiny", "--head"),
        (("--head", str(place / "tiny")), "tiny", "no MRP module"),
        (("--head", str(place / "head")), "other", "was trained on backbone weights"),
        (("--head", str(place / "head"), "--set", "mrp.mix=none"), "tiny", "mrp.mix=logits_sum"),
        (("--head", str(place / "head"), "--set", "mrp.mode=speculative", "--temperature", "1"), "tiny", "temperature"),
    ):
        assert run(place, *more, model=model) == 2
        assert words in " ".join(capsys.readouterr().err.split())
