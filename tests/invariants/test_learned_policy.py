"""What the learned unmasking policy promises, on tiny random weights.
pytest tests/invariants/test_learned_policy.py"""

import json

import pytest
import torch

from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.decoders.learned_policy import LearnedPolicy, LearnedPolicyConfig
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.testing import BLOCK, MASK, random_requests, tiny_model
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine
from dlmbench.errors import RequestError
from dlmbench.heads.policy import PolicyConfig, PolicyNetwork, load_policy, save_policy
from dlmbench.heads.policy_network import PolicyHead

CONFIGS = [
    LearnedPolicyConfig(),
    LearnedPolicyConfig(full_context=False),
    LearnedPolicyConfig(mode="bernoulli-argmax", beta=1.4),
    LearnedPolicyConfig(mode="bernoulli-argmax", full_context=False, policy_temperature=0.5),
]


class Rule(PolicyHead):
    """A policy that is a formula of the probabilities it is shown."""

    def __init__(self, formula):
        super().__init__(PolicyNetwork(PolicyConfig(16, 32, time_size=16)).init_random(), BLOCK)
        self.formula = formula

    def logits(self, view, confidence, masked, length, time):
        return self.formula(confidence)


def target():
    return Bidirectional("target", tiny_model("full"), BLOCK)


def run(config, formula=None, items=None, **options):
    nets = {"target": target()}
    nets["head"] = Rule(formula) if formula else LearnedPolicy.head_network(nets["target"], None)
    return Engine(nets, LearnedPolicy(config), **options).generate(items or random_requests(5), trace=True)


def baseline(decoder, **options):
    return Engine({"target": target()}, decoder, **options).generate(random_requests(5), trace=True)


def steps(run):
    return [(step["positions"], step["tokens"]) for step in run.trace]


def calls(run):
    return run.counts["target"]["refresh"]["calls"]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_policy_that_always_fires_spends_one_forward_a_block(config):
    for item, ours in zip(random_requests(5), run(config, lambda c: torch.full_like(c, 1e4))):
        assert calls(ours) == -(-item.max_tokens // BLOCK)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_policy_that_never_fires_reveals_its_best_one_at_a_time(config):
    ours = run(config, lambda c: c - 1e4, batch_size=3)  # ranks by confidence, in coarse steps
    assert all(len(step["positions"]) == 1 for a in ours for step in a.trace)
    assert all(a.fallbacks == calls(a) == len(a.raw_ids) for a in ours)


@pytest.mark.parametrize("context", [True, False])
def test_ranking_by_confidence_and_never_firing_is_static(context):
    ours = run(LearnedPolicyConfig(full_context=context), lambda c: c.double() - 2, batch_size=3)
    assert [steps(a) for a in ours] == [steps(b) for b in baseline(Static(StaticConfig()), batch_size=3)]


@pytest.mark.parametrize("tau", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("mode", ["greedy", "bernoulli-argmax"])
def test_a_threshold_written_as_a_policy_is_the_threshold_decoder(mode, tau):
    config = LearnedPolicyConfig(mode=mode, policy_temperature=1e-8)
    theirs = baseline(Threshold(ThresholdConfig(tau=tau, inclusive=False)), batch_size=3)
    assert [steps(a) for a in run(config, lambda c: c - tau, batch_size=3)] == [steps(b) for b in theirs]


@pytest.mark.parametrize("config", CONFIGS)
def test_reveals_stay_in_the_active_block_and_every_forward_commits(config):
    for item, ours in zip(random_requests(5), run(config, batch_size=3)):
        prompt = len(item.prompt_ids)
        drawn = [position for step in ours.trace for position in step["positions"]]
        blocks = [(position - prompt) // BLOCK for position in drawn]
        assert blocks == sorted(blocks) and sorted(drawn) == list(range(prompt, prompt + item.max_tokens))
        assert all(step["positions"] for step in ours.trace) and MASK not in ours.raw_ids
        assert ours.counts["head"]["denoise"]["calls"] == calls(ours)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_batch_gives_what_singles_give(config):
    singles = [run(config, items=[item])[0] for item in random_requests(5)]
    for options in ({"batch_size": 3}, {"batch_size": 7}, {"batch_size": 3, "lag": 1}):
        together = run(config, **options)
        assert [a.raw_ids for a in together] == [b.raw_ids for b in singles]
        assert [a.counts for a in together] == [b.counts for b in singles]


class _View:
    seed, total_steps = torch.arange(4), torch.zeros(4, dtype=torch.long)
    positions = torch.arange(30).expand(4, 30)
    masked = torch.ones(4, 30, dtype=torch.bool)


@pytest.mark.parametrize("mode", ["greedy", "bernoulli-argmax"])
def test_a_larger_beta_or_bias_only_adds_positions(mode):
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(1)) * 2
    wanted = [
        LearnedPolicy(LearnedPolicyConfig(mode=mode, beta=beta))._wanted(_View, logits + bias)
        for beta, bias in ((0.3, 0), (0.7, 0), (1.0, 0), (1.5, 0), (1.5, 1.0), (9.0, 1.0))
    ]
    sizes = [int(w.sum()) for w in wanted]
    assert all(bool((more | ~less).all()) for less, more in zip(wanted, wanted[1:])) and sizes[0] < sizes[2] < sizes[-1]


def test_draws_of_another_seed_differ():
    config = LearnedPolicyConfig(mode="bernoulli-argmax")
    items = random_requests(5)
    other = [type(item)(item.key, item.prompt_ids, item.max_tokens, item.stop, item.seed + 77) for item in items]
    assert [steps(a) for a in run(config)] != [steps(b) for b in run(config, items=other)]


def test_sampled_tokens_are_refused():
    assert "--temperature 0" in LearnedPolicy.objection(LearnedPolicyConfig(), Sampling(0.7))
    assert LearnedPolicy.objection(LearnedPolicyConfig(), Sampling()) is None


def test_files_keep_a_policy_and_its_sizes_follow_from_the_tensors(tmp_path):
    config = PolicyConfig(24, 40, num_heads=3, time_size=8, num_layers=2)
    policy = PolicyNetwork(config).init_weights(4)
    assert sum(p.numel() for p in policy.parameters()) == config.parameters
    save_policy(policy, tmp_path, "abc")
    loaded = load_policy(tmp_path)
    assert loaded.config == config
    assert all(torch.equal(a, b) for a, b in zip(policy.state_dict().values(), loaded.state_dict().values()))
    assert PolicyConfig().parameters == 331_265  # the authors' count
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, "confidences_top_p": 50}))
    with pytest.raises(RequestError, match="confidences_top_p"):
        load_policy(tmp_path)
