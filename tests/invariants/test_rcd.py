"""What RCD promises, on tiny random weights. pytest tests/invariants/test_rcd.py"""

from dataclasses import replace

import pytest
import torch

from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.counter import Counter
from dlmbench.backbone.network import Network
from dlmbench.decoders.rcd import RCD, STRATEGIES, RCDConfig, residual
from dlmbench.decoders.testing import BLOCK, random_requests, tiny_model
from dlmbench.engine import Engine
from dlmbench.errors import RequestError

ATTENTIONS = ("block_causal", "full")
WARM = RCDConfig(tau=0.3, residual_init="warm")
COLD = RCDConfig(tau=0.3, residual_init="cold")


def networks(attention, roles=("target", "reference"), store="fused"):
    if attention == "full":
        return {role: Bidirectional(role, tiny_model(attention, 7 + i), BLOCK) for i, role in enumerate(roles)}
    return {role: Network(role, tiny_model(attention, 7 + i), BLOCK, store) for i, role in enumerate(roles)}


def run(config, attention, *, decoder=None, items=None, nets=None, **options):
    decoder = decoder or RCD(config)
    nets = nets or networks(attention, decoder.needs(config, attention))
    return Engine(nets, decoder, **options).generate(items or random_requests(3), trace=True)


def plain(config, attention, **options):
    decoder = config.plain(attention == "full")
    return Engine(networks(attention, ("target",)), decoder, **options).generate(random_requests(3), trace=True)


def calls(run, role="target"):
    return {kind: work["calls"] for kind, work in run.counts.get(role, {}).items()}


def steps(run):
    return [(step["positions"], step["tokens"]) for step in run.trace]


def test_uniform_and_certain_predictions_give_the_ends_of_the_weight():
    logits = torch.full((3, 50), -1e4)
    logits[0], logits[1, 7], logits[2, 3:5] = 0.0, 1e4, 0.0
    alpha, delta = residual(logits, torch.randn(50, 8))
    assert torch.allclose(alpha, torch.tensor([1.0, 0.0, torch.log(torch.tensor(2.0)) / torch.log(torch.tensor(50.0))]))
    assert torch.isfinite(delta).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_weight_lies_between_0_and_1(strategy):
    alpha, delta = residual(torch.randn(64, 50) * 9, torch.randn(50, 8), 0.9, strategy)
    assert ((alpha >= 0) & (alpha <= 1)).all() and delta.shape == (64, 8)


def test_the_weight_grows_with_its_temperature_and_the_content_does_not_depend_on_it():
    logits, table = torch.randn(64, 50) * 3, torch.randn(50, 8)
    results = [residual(logits, table, temperature) for temperature in (0.5, 0.9, 1.0, 1.3, 4.0)]
    for (low, first), (high, second) in zip(results, results[1:]):
        assert (high > low).all() and torch.equal(first, second)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("sampler", ["threshold", "static"])
def test_without_a_weight_it_is_the_plain_sampler(attention, sampler):
    config = replace(WARM, alpha=0.0, sampler=sampler, k=2)
    for ours, theirs in zip(run(config, attention, batch_size=3), plain(config, attention, batch_size=3)):
        assert ours.raw_ids == theirs.raw_ids and steps(ours) == steps(theirs)
        assert calls(ours) == calls(theirs) and "reference" not in ours.counts


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_cold_start_changes_nothing_in_the_first_step_and_something_later(attention):
    ours, theirs = run(COLD, attention), plain(COLD, attention)
    assert [steps(a)[0] for a in ours] == [steps(b)[0] for b in theirs]
    assert [a.raw_ids for a in ours] != [b.raw_ids for b in theirs]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_warm_start_changes_the_first_step(attention):
    ours, theirs = run(WARM, attention), plain(WARM, attention)
    assert [steps(a)[0] for a in ours] != [steps(b)[0] for b in theirs]


class Littering(RCD):
    """Fills the memory of committed positions with junk, and notes what becomes of their inputs."""

    def _inputs(self, view, target):
        state, committed = view.state, ~view.masked
        state["alpha"] = state["alpha"].masked_fill(committed, 0.77)
        state["delta"] = state["delta"].masked_fill(committed.unsqueeze(-1), 55.0)
        inputs = super()._inputs(view, target)
        assert torch.equal(inputs[committed], target.embed(view.tokens)[committed])
        return inputs


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_committed_positions_are_plain_tokens(attention):
    ours = run(COLD, attention, decoder=Littering(COLD), batch_size=3)
    assert [a.raw_ids for a in ours] == [b.raw_ids for b in run(COLD, attention, batch_size=3)]


def test_full_attention_keeps_the_residual_from_block_to_block_and_calls_the_reference_once_a_row():
    for ours in run(WARM, "full", batch_size=3):
        assert calls(ours, "reference") == {"refresh": 1}
        assert calls(ours) == {"refresh": len(ours.trace)}
    for ours in run(COLD, "full"):
        assert "reference" not in ours.counts


@pytest.mark.parametrize("store", ["fused", "separate"])
def test_block_causal_models_call_the_reference_once_a_block(store):
    for ours in run(WARM, "block_causal", nets=networks("block_causal", store=store), batch_size=3):
        blocks = len({step["block"] for step in ours.trace})
        assert calls(ours, "reference")["denoise"] == blocks
        assert calls(ours)["denoise"] == len(ours.trace)
        assert calls(ours, "reference").get("store", 0) == (blocks if store == "separate" else 0)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("config", [COLD, WARM], ids=["cold", "warm"])
def test_a_batch_gives_what_singles_give(attention, config):
    singles = [run(config, attention, items=[item])[0] for item in random_requests(3)]
    for options in ({"batch_size": 3}, {"batch_size": 7}, {"batch_size": 3, "lag": 1}):
        together = run(config, attention, **options)
        assert [a.raw_ids for a in together] == [b.raw_ids for b in singles]
        assert [a.counts for a in together] == [b.counts for b in singles]


def test_the_cache_of_finished_blocks_never_sees_a_residual():
    nets = networks("block_causal", store="separate")
    item = random_requests(3)[0]
    run(WARM, "block_causal", items=[item], nets=nets)
    for net in nets.values():
        length = (len(item.prompt_ids) + item.max_tokens) // BLOCK * BLOCK
        fresh = Network("target", net.model, BLOCK)
        fresh.allocate(1, net.cache.capacity, net.canvas, Counter(1, net.device))
        with torch.inference_mode():
            fresh.prefill(torch.tensor([0]), [length])
        for ours, theirs in zip(net.cache.leading(length), fresh.cache.leading(length)):
            assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(ours, theirs))


def test_a_reference_that_does_not_fit_is_refused():
    nets = networks("block_causal")
    with pytest.raises(RequestError, match="--reference"):
        Engine({"target": nets["target"]}, RCD(WARM))
    nets["reference"].config = replace(nets["reference"].config, vocab_size=12)
    with pytest.raises(RequestError, match="12 tokens"):
        Engine(nets, RCD(WARM))
