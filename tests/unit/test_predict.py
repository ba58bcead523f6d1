"""Proposals, scores and draws. pytest tests/unit/test_predict.py"""

from dataclasses import replace

import pytest
import torch

from dlmbench.decoders.base import View, top_n
from dlmbench.decoders.predict import Candidates, Sampling, uniform

V, MASK = 50, 7


def view(rows=2, width=6, sampling=None, seed=0):
    positions = torch.arange(width).expand(rows, width)
    zeros = torch.zeros(rows, dtype=torch.long)
    return View(
        tokens=torch.full((rows, width), MASK), positions=positions, start=zeros, ends=zeros + width,
        prompt_length=zeros, live=torch.ones(rows, dtype=torch.bool), step=zeros, total_steps=zeros,
        block_masks=zeros, seed=zeros + seed,
        state={}, mask_id=MASK, block_length=width, attention="block_causal", sampling=sampling or Sampling(),
        given=torch.zeros(rows, width, dtype=torch.bool), max_keys=width, max_row=width,
    )  # fmt: skip


def logits(rows=2, width=6, scale=3.0):
    return torch.randn(rows, width, V, generator=torch.Generator().manual_seed(0)) * scale


def test_confidence_is_the_full_softmax_at_the_best_token_that_is_not_the_mask():
    raw = logits()
    raw[0, 0, MASK] = 30.0
    best = view().candidates(raw.clone())
    probability = raw.softmax(-1)
    without = probability.clone()
    without[..., MASK] = -1
    assert torch.equal(best.tokens, without.argmax(-1))
    assert torch.allclose(best.confidence, without.amax(-1), atol=1e-7)  # the mask's share stays in the sum
    assert best.confidence[0, 0] < 1e-6


def test_log_odds_order_what_probabilities_cannot_tell_apart():
    raw = torch.zeros(1, 3, V)
    raw[0, :, 3] = torch.tensor([40.0, 41.0, 39.0])
    best = view(1, 3).candidates(raw)
    assert best.confidence.unique().numel() == 1
    assert best.log_odds.argsort(descending=True).tolist() == [[1, 0, 2]]


def test_entropy_and_margin_against_their_definitions():
    raw = logits()
    best = view().candidates(raw.clone())
    p = raw.double().softmax(-1)
    assert torch.allclose(best.entropy.double(), -(p * p.log()).sum(-1), atol=1e-5)
    top = p.topk(2, -1).values
    assert torch.allclose(best.margin.double(), top[..., 0] - top[..., 1], atol=1e-6)
    sure = torch.full((1, 1, V), float("-inf"))
    sure[..., 4] = 0.0
    assert view(1, 1).candidates(sure).entropy.item() == 0.0


def test_temperature_scales_confidence_also_when_greedy():
    raw = logits()
    warm = view(sampling=Sampling(temperature=0.5, top_k=1)).candidates(raw.clone())
    assert torch.allclose(warm.confidence, (raw * 2).softmax(-1).amax(-1), atol=1e-6)


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.7, top_k=5), Sampling(1.0, top_p=0.8), Sampling(1.3, 20, 0.9)]
)
def test_draws_follow_the_truncated_distribution(sampling):
    raw = torch.randn(1, 1, V, generator=torch.Generator().manual_seed(3)).expand(1, 4000, V) * 2
    best = view(1, 4000, sampling).candidates(raw.clone())
    counts = torch.bincount(best.tokens.flatten(), minlength=V).double()
    p = best._truncated[0, 0].double()
    assert counts[MASK] == 0 and counts[p == 0].sum() == 0
    spread = (4000 * p * (1 - p)).sqrt()
    assert ((counts - 4000 * p).abs() <= 5 * spread + 1).all()


def test_top_p_keeps_the_crossing_token():
    raw = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().view(1, 1, 4)
    kept = replace(view(1, 1, Sampling(1.0, top_p=0.6)), mask_id=3).candidates(raw)._truncated
    assert torch.allclose(kept, torch.tensor([[[0.625, 0.375, 0.0, 0.0]]]), atol=1e-6)


def test_uniform_numbers_are_uniform_and_depend_on_all_three():
    base = uniform(torch.tensor([1]), torch.tensor([0]), torch.arange(20_000).unsqueeze(0))
    assert abs(base.mean() - 0.5) < 0.01 and base.min() >= 0 and base.max() < 1
    histogram = torch.histc(base, 20) / 1000
    assert (histogram - 1).abs().max() < 0.15
    for seed, step in ((2, 0), (1, 1)):
        other = uniform(torch.tensor([seed]), torch.tensor([step]), torch.arange(20_000).unsqueeze(0))
        assert torch.corrcoef(torch.cat([base, other]))[0, 1].abs() < 0.03


def test_top_n_breaks_ties_to_the_left_and_takes_fewer_when_fewer_are_eligible():
    score = torch.tensor([[1.0, 2.0, 2.0, 2.0], [5.0, 1.0, 1.0, 0.0]])
    eligible = torch.tensor([[True, True, True, True], [False, True, True, True]])
    assert top_n(score, eligible, 2).int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0]]
    assert top_n(score, eligible, 1).int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]
    assert top_n(score, eligible, torch.tensor([0, 9])).int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]
    flat = torch.full((1, 4), float("-inf"))
    assert top_n(flat, torch.tensor([[False, True, True, False]]), 1).int().tolist() == [[0, 1, 0, 0]]


def test_scores_of_half_width_logits_are_those_of_their_float32_copy():
    """Bit for bit: what is saved is the copy alone."""
    logits = (4 * torch.randn(3, 5, 97, generator=torch.Generator().manual_seed(5))).bfloat16()
    zero = torch.zeros(3, dtype=torch.long)
    for sampling in (Sampling(), Sampling(temperature=0.7, top_k=1), Sampling(banned=(3,), last=(7,))):
        narrow, wide = (
            Candidates(given, sampling, 96, zero, zero, torch.arange(5).expand(3, 5))
            for given in (logits.clone(), logits.float())
        )
        for name in ("tokens", "confidence", "log_odds", "entropy", "margin", "logits"):
            assert torch.equal(getattr(narrow, name), getattr(wide, name)), name
