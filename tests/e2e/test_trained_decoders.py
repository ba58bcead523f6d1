"""RCD, ADJUST and the learned policy from the command line, on random checkpoints with files of their own.
pytest tests/e2e/test_trained_decoders.py"""

import json
import shutil
from dataclasses import replace

import pytest
from tiny import MASK, make_data, make_model
from typer.testing import CliRunner

from dlmbench.backbone import load_checkpoint, save_checkpoint
from dlmbench.backbone.loading import weights_hash
from dlmbench.cli.app import app
from dlmbench.errors import RequestError
from dlmbench.heads.adjust import AdjustModule
from dlmbench.heads.adjust import save_module as save_adjust
from dlmbench.heads.policy import PolicyConfig, PolicyNetwork, save_policy


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders by name: a block-causal model, a second one, a full-attention one, its sampler and its policy."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make_model(folder / "causal")
    make_model(folder / "reference", layers=1, seed=1)
    shutil.copytree(folder / "causal", folder / "full")
    model = load_checkpoint(folder / "causal")
    full = type(model)(replace(model.config, family="llada", attention="full", qk_norm=False)).init_weights(2)
    save_checkpoint(full, folder / "full")
    weights = weights_hash(folder / "full")
    save_adjust(AdjustModule(full).init_random(), folder / "sampler", weights)
    save_policy(PolicyNetwork(PolicyConfig(16, 32, time_size=16)).init_random(), folder / "policy", weights)
    return {path.name: str(path) for path in folder.iterdir()}


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments):
    """What a wrong request is told."""
    result = invoke("generate", "--prompt", "hi", *arguments)
    assert isinstance(result.exception, RequestError)
    return str(result.exception)


def generate(*arguments):
    """One item of 16 tokens; its JSON."""
    result = invoke("generate", "--prompt-ids", "65,66,67,68,69", "--gen-length", 16, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_rcd_warm_and_cold_on_both_kinds_of_attention(files):
    causal = ("--method", "rcd", "--model", files["causal"], "--threshold", "0.9")
    cold = generate(*causal)
    assert "reference" not in cold["counts"] and len(cold["steps"][0]["extra"]["alpha"]) > 0
    warm = generate(*causal, "--set", "rcd.residual_init=warm", "--reference", files["reference"])
    assert warm["counts"]["reference"]["denoise"] == len({step["block"] for step in warm["steps"]})
    whole = generate("--method", "rcd", "--model", files["full"], "--set", "rcd.residual_init=cold",
                     "--set", "rcd.sampler=static", "--set", "rcd.k=4", "--block-length", 8)  # fmt: skip
    assert whole["counts"] == {"target": {"refresh": 4}}
    plain = generate("--method", "static", "--model", files["full"], "--set", "static.k=4", "--block-length", 8)
    assert plain["steps"][0]["positions"] == whole["steps"][0]["positions"]


def test_a_warm_rcd_without_a_reference_is_refused_with_the_flag(files):
    assert "--reference" in refusal("--method", "rcd", "--model", files["full"])


def test_adjust_draws_its_tokens_and_counts_its_passes(files):
    ours = ("--method", "adjust", "--model", files["full"], "--block-length", 16)
    drawn = generate(*ours, "--head", files["sampler"])
    assert drawn["counts"] == {"target": {"refresh": 4}, "head": {"denoise": 12}}
    assert [len(step["positions"]) for step in drawn["steps"]] == [4, 4, 4, 4]
    marginals = generate(*ours, "--set", "adjust.use_marginals=true")  # the baseline needs no sampler
    assert marginals["counts"] == {"target": {"refresh": 4}}


def test_adjust_refuses_another_backbone_a_cache_and_a_missing_head(files, tmp_path):
    ours = ("--method", "adjust", "--model", files["full"])
    assert "full attention" in refusal("--method", "adjust", "--model", files["causal"])
    assert "--head" in refusal(*ours)
    assert "--cache none" in refusal(*ours, "--cache", "dual")
    shutil.copytree(files["sampler"], tmp_path / "sampler")
    config = tmp_path / "sampler" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "backbone": {"weights": "0" * 16}}))
    assert "trained on backbone weights" in refusal(*ours, "--head", tmp_path / "sampler")


def test_the_learned_policy_decides(files):
    ours = ("--method", "learned_policy", "--model", files["full"], "--head", files["policy"], "--block-length", 8)
    drawn = generate(*ours)
    assert drawn["counts"]["head"]["denoise"] == drawn["counts"]["target"]["refresh"] == len(drawn["steps"])
    assert MASK not in drawn["ids"]
    assert "--temperature 0" in refusal(*ours, "--temperature", "0.5")


@pytest.mark.parametrize(
    "method, helper",
    [("adjust", ("--head", "sampler")), ("learned_policy", ("--head", "policy")), ("rcd", ("--reference", "full"))],
)
def test_a_whole_run_prices_the_helper(files, tmp_path, method, helper):
    command = ["run", "--method", method, "--task", "gsm8k", "--model", files["full"], helper[0], files[helper[1]],
               "--data-dir", make_data(tmp_path / "data"), "--num-fewshot", 0, "--limit", 2, "--gen-length", 8,
               "--block-length", 8, "--against", "static", "--out", tmp_path / "results"]  # fmt: skip
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    manifests = [json.loads(file.read_text()) for file in (tmp_path / "results").rglob("manifest.json")]
    prices = next(m for m in manifests if m["spec"]["method"] == method)["calibration"]["prices"]
    role = "reference" if method == "rcd" else "head"
    assert any(name.startswith(f"{role}/") and price > 0 for name, price in prices.items())
