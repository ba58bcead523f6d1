"""What selectors promise beyond conformance. pytest tests/invariants/test_selectors.py"""

import math

import pytest
import torch

from dlmbench.decoders.base import ranks, top_n
from dlmbench.decoders.frechet import within
from dlmbench.decoders.hierarchy import first_of_runs
from dlmbench.decoders.testing import options_of, random_requests, tiny_networks
from dlmbench.engine import Engine
from dlmbench.registry import DECODERS


def decoded(method, options, attention="full"):
    cls = DECODERS.get(method)
    decoder = cls(options_of(cls, options))
    return Engine(tiny_networks(decoder, attention), decoder, batch_size=3).generate(random_requests(0), trace=True)


def first_commits(method, options):
    return [len(generation.trace[0]["positions"]) for generation in decoded(method, options)]


@pytest.mark.parametrize(
    "method, loosening",
    [
        ("hierarchy", ["tau=1,low=0.9", "tau=1,low=0.3", "tau=0.1,low=0.1", "tau=0,low=-1"]),
        ("frechet", ["margin=0.5", "margin=0.1", "margin=-1", "margin=-9"]),
        ("entropy", ["rule=gate,budget=0.1", "rule=gate,budget=2", "rule=gate,budget=5"]),
    ],
)
def test_a_looser_bar_never_reveals_fewer_in_the_first_forward(method, loosening):
    counts = [first_commits(method, options) for options in loosening]
    assert all(a <= b for low, high in zip(counts, counts[1:]) for a, b in zip(low, high))
    assert counts[0] != counts[-1]


def test_the_best_of_every_run_of_masks_is_its_first_among_equals():
    masked = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1]]).bool()
    score = torch.tensor([[1.0, 2, 9, 5, 3, 5, 9, -math.inf]]).expand(3, -1)
    first = first_of_runs(ranks(score, masked), masked)
    assert first.int().tolist() == [[0, 1, 0, 1, 0, 0, 0, 1], [0] * 8, [0, 0, 1, 0, 0, 0, 0, 0]]


def test_runs_alone_split_in_two_and_double_the_tokens_of_a_step():
    for generation in decoded("hierarchy", "tau=1,low=-1"):
        for block in {step["block"] for step in generation.trace}:
            counts = [len(step["positions"]) for step in generation.trace if step["block"] == block]
            assert counts[0] == 1 and all(b <= 2 * a for a, b in zip(counts, counts[1:]))


def test_positions_that_only_their_run_reveals_are_never_neighbours():
    for generation in decoded("hierarchy", "tau=1,low=-1"):
        for step in generation.trace:
            assert all(b - a > 1 for a, b in zip(step["positions"], step["positions"][1:]))


@pytest.mark.parametrize("margin", [0.02, 0.25, 0.6])
def test_frechet_is_the_factor_rule_at_equal_confidences_and_never_below_it_elsewhere(margin):
    generator = torch.Generator().manual_seed(0)
    for e in torch.rand(50, generator=generator).square().tolist():
        equal = torch.full((1, 12), 1 - e, dtype=torch.float64)
        n = within(equal, ranks(equal, equal > -1), margin).item()
        assert n == sum((n + 1) * e < 1 - margin for n in range(1, 13))
    profile = torch.rand(50, 12, generator=generator, dtype=torch.float64) ** 0.1
    n = within(profile, ranks(profile, profile > -1), margin)
    sorted_profile = profile.sort(dim=1, descending=True).values
    by_factor = ((torch.arange(1, 13) + 1) * (1 - sorted_profile) < 1 - margin).int().cumprod(1).sum(1)
    assert (n >= by_factor).all() and (n > by_factor).any()


def test_ranks_agree_with_top_n():
    score = torch.randint(0, 4, (20, 9), generator=torch.Generator().manual_seed(1)).float()
    eligible = score != 2
    for n in (1, 3, torch.arange(20) % 5):
        limit = n if isinstance(n, int) else n.unsqueeze(1)
        assert torch.equal(top_n(score, eligible, n), eligible & (ranks(score, eligible) < limit))


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_votes_change_decisions_and_begin_with_every_block(attention):
    plain, lifted = (decoded("credit", f"tau=0.05,alpha={alpha}", attention) for alpha in (0, 2))
    assert [g.raw_ids for g in plain] != [g.raw_ids for g in lifted]
    one_forward_a_block = decoded("credit", "tau=0,alpha=50", attention)
    assert [g.raw_ids for g in one_forward_a_block] == [g.raw_ids for g in decoded("threshold", "tau=0", attention)]
