"""What selectors promise beyond conformance. pytest tests/invariants/test_selectors.py"""

import json
import math
import pickle
from dataclasses import replace

import pytest
import torch

from dlmbench.backbone.bidirectional import CachePolicy
from dlmbench.decoders.base import ranks, top_n
from dlmbench.decoders.frechet import within
from dlmbench.decoders.frequencies import Table, count
from dlmbench.decoders.hierarchy import first_of_runs
from dlmbench.decoders.pcsampler import PCSampler
from dlmbench.decoders.sched import Sched
from dlmbench.decoders.testing import options_of, random_requests, tiny_networks
from dlmbench.engine import Engine
from dlmbench.errors import RequestError
from dlmbench.registry import DECODERS
from dlmbench.request import RunSpec


def decoded(method, options, attention="full", batch_size=3):
    cls = DECODERS.get(method)
    decoder = cls(options_of(cls, options))
    engine = Engine(tiny_networks(decoder, attention), decoder, batch_size=batch_size)
    return engine.generate(random_requests(0), trace=True)


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


BITING = [  # settings at which the rule itself decides on these networks, and not its guard of progress
    ("hierarchy", "tau=0.1,low=0.05"), ("credit", "tau=0.1,alpha=2"), ("credit", "selector=hierarchy,tau=0.1,low=0.05"),
    ("frechet", "margin=-1.8"), ("entropy", "rule=gate,budget=4.35"), ("pcsampler", "k=2,decay=0.1"),
    ("multiblock", "tau=4.35,gate=0.3"), ("rcr", "steps=3"),
    ("saber", ""), ("saber", "n=1,rule=token"), ("remdm_loop", "ratio=0.5,k=2,loops=3"),
]  # fmt: skip


@pytest.mark.parametrize(
    "method, options, attention", [(*one, kind) for one in BITING for kind in DECODERS.get(one[0]).attention]
)
def test_a_batch_gives_what_its_rows_give_alone(method, options, attention):
    def told(batch_size):
        return [(g.raw_ids, g.counts, g.fallbacks, g.steps) for g in decoded(method, options, attention, batch_size)]

    alone = told(1)
    assert told(2) == alone and told(7) == alone
    assert sum(steps for *_, steps in alone) < sum(len(ids) for ids, *_ in alone)


def test_credit_above_every_confidence_reveals_one_token_a_forward():
    assert all(len(step["positions"]) == 1 for g in decoded("credit", "tau=1.1,alpha=2") for step in g.trace)


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_votes_change_decisions_and_begin_with_every_block(attention):
    plain, lifted = (decoded("credit", f"tau=0.05,alpha={alpha}", attention) for alpha in (0, 2))
    assert [g.raw_ids for g in plain] != [g.raw_ids for g in lifted]
    one_forward_a_block = decoded("credit", "tau=0,alpha=50", attention)
    assert [g.raw_ids for g in one_forward_a_block] == [g.raw_ids for g in decoded("threshold", "tau=0", attention)]


def exits(options, attention="full", batch_size=3, cache=None):
    decoder = Sched(options_of(Sched, options))
    nets = tiny_networks(decoder, attention)
    if cache:
        nets["target"].policy = CachePolicy(cache)
    return Engine(nets, decoder, batch_size=batch_size).generate(random_requests(0), trace=True)


def test_without_a_bar_sched_fills_the_answer_in_its_first_forward():
    assert {len(g.trace) for g in exits("max_change=1,high=0,low=0")} == {1}


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_a_higher_bar_never_ends_a_row_earlier(attention):
    bars = ["high=0,low=0", "high=0.4,low=0.1", "high=0.8,low=0.2", "high=1e9,low=1e9"]
    steps = [[len(g.trace) for g in exits(f"max_change=1,{bar}", attention)] for bar in bars]
    assert all(a <= b for low, high in zip(steps, steps[1:]) for a, b in zip(low, high))
    assert steps[0] != steps[1] != steps[2]


def test_the_cosine_bar_is_above_the_line_in_the_first_half_and_below_it_in_the_second():
    steps = torch.arange(17)
    cosine, line = (
        Sched(options_of(Sched, f"curve={name}"))._bar(steps, torch.tensor(17)) for name in ("cosine", "linear")
    )
    assert (cosine[:8] >= line[:8]).all() and (cosine[9:] <= line[9:]).all() and cosine[0] == line[0] == 7.5
    assert torch.isclose(cosine[8], line[8]) and torch.isclose(cosine[16], line[16]) and line[16] == 2.5


def test_before_it_stops_sched_is_static():
    stopped, plain = exits("max_change=1,high=0.4,low=0.1"), decoded("static", "k=1")
    assert any(len(one.trace) < len(other.trace) for one, other in zip(stopped, plain))
    for one, other in zip(stopped, plain):
        steps = [[(step["positions"], step["tokens"]) for step in g.trace] for g in (one, other)]
        assert steps[0][:-1] == steps[1][: len(steps[0]) - 1]


@pytest.mark.parametrize("attention", ["full", "block_causal"])
@pytest.mark.parametrize(
    "options", ["max_change=1,high=0.4,low=0.1", "max_change=0.9,high=0.4,low=0,patience=1,curve=exp"]
)
def test_rows_that_stop_early_do_not_depend_on_their_batch(attention, options):
    alone = exits(options, attention, batch_size=1)
    for together in (exits(options, attention, batch_size=size) for size in (2, 7)):
        assert [(g.raw_ids, g.counts) for g in together] == [(g.raw_ids, g.counts) for g in alone]
    never = [g.counts for g in exits("high=1e9,low=1e9", attention)]
    assert [g.counts for g in alone] != never


@pytest.mark.parametrize("stat, reference", [("mean", torch.mean), ("median", torch.median),
                                             ("quantile", lambda values: values.quantile(0.2))])  # fmt: skip
def test_gaps_are_aggregated_over_the_positions_that_count(stat, reference):
    generator = torch.Generator().manual_seed(2)
    gap, inside = torch.rand(30, 9, generator=generator), torch.rand(30, 9, generator=generator) < 0.6
    ours = Sched(options_of(Sched, f"stat={stat}"))._aggregate(gap, inside)
    for row, values in zip(ours, (g[i] for g, i in zip(gap, inside))):
        assert not len(values) or torch.isclose(row, reference(values))


@pytest.mark.parametrize("cache", ["prefix", "freecache"])
def test_sched_sees_the_rest_of_the_answer_under_a_cache(cache):
    steps = [len(g.trace) for g in exits("max_change=1,high=0.4,low=0.1", cache=cache)]
    assert steps < [len(g.trace) for g in exits("high=1e9,low=1e9", cache=cache)]


def test_rare_tokens_come_first_and_the_table_is_named_without_its_place(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(count([[5, 6, 6, 7, 7, 7, 7]])))
    config = options_of(PCSampler, f"table={file}")
    assert str(config.table).startswith("mine-") and str(tmp_path) not in str(config.table)
    assert replace(config, k=2).table == config.table == pickle.loads(pickle.dumps(config)).table
    frequency = config.table.frequencies(9)
    assert torch.allclose(frequency * 7, torch.tensor([1, 1, 1, 1, 1, 1, 2, 4, 1]).double())
    with pytest.raises(RequestError, match="made with its tokenizer"):
        config.table.frequencies(7)


@pytest.mark.parametrize("text", ["[]", "{}", '{"num_token": 3, "p_baseline_dict": {}}', "no JSON", '{"num_token": 0}'])
def test_a_file_without_counts_is_refused_in_one_sentence(tmp_path, text):
    file = tmp_path / "table.json"
    file.write_text(text)
    with pytest.raises(RequestError, match="Table table.json"):
        options_of(PCSampler, f"table={file}")


def test_a_model_without_a_table_is_refused_and_nano_brings_its_own():
    with pytest.raises(RequestError, match="pcsampler.table=FILE"):
        RunSpec(method="pcsampler", task="gsm8k", model="llada-8b-instruct").resolve()
    run = RunSpec(method="pcsampler", task="nano-gsm", model="nano2-llada").resolve()
    assert run.config.table.path.parent.name == "tokenizer" and "/" not in run.label
    given = RunSpec(
        method="pcsampler",
        task="nano-gsm",
        model="nano2",
        settings={"pcsampler": {"table": str(run.config.table.path)}},
    )
    assert given.portable()["settings"]["pcsampler"]["table"] == "frequency.json"


def test_the_shipped_table_counts_end_tokens_and_no_masks():
    shipped = Table.of("nano/tokenizer/frequency.json").frequencies(1024)
    assert shipped[1] > 0.005 and shipped[2] < 1e-6
