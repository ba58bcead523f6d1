"""Promises of decoders whose rows have ends of their own. pytest tests/invariants/test_lengths.py"""

import pytest

from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.decoders.adablock import AdaBlock, AdaBlockConfig
from dlmbench.decoders.testing import random_requests, tiny_model
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine

BLOCK = 4
ITEMS = random_requests(2)
EVERYTHING = tuple(range(89))


def decode(decoder, policy="none", shift=0, **options):
    network = Bidirectional("target", tiny_model("full", shift=shift), BLOCK, CachePolicy(policy))
    return Engine({"target": network}, decoder, **options).generate(ITEMS, trace=True)


def ends(generation):
    return [step["extra"]["block_end"] for step in generation.trace]


@pytest.mark.parametrize("policy", ["none", "prefix", "dual", "dkv"])
def test_blocks_end_inside_their_window_and_rows_do_not_know_of_each_other(policy):
    config = AdaBlockConfig(0.5, EVERYTHING, 0.05, 0.6)
    alone = decode(AdaBlock(config), policy)
    together = decode(AdaBlock(config), policy, batch_size=3)
    assert [(g.raw_ids, ends(g), g.counts) for g in together] == [(g.raw_ids, ends(g), g.counts) for g in alone]
    lengths = set()
    for item, generation in zip(ITEMS, alone):
        start = len(item.prompt_ids)
        for end in dict.fromkeys(ends(generation)):
            assert 0 < end - start <= max(int(0.6 * item.max_tokens), BLOCK)
            lengths.add(end - start)
            start = end
        assert start == len(item.prompt_ids) + item.max_tokens
    assert len(lengths) > 3


@pytest.mark.parametrize("policy", ["none", "prefix", "dual", "dkv"])
@pytest.mark.parametrize("shift", [0, 1])
def test_without_a_delimiter_that_passes_blocks_are_of_one_length(policy, shift):
    fixed = decode(Threshold(ThresholdConfig(0.5)), policy, shift, batch_size=3)
    adaptive = decode(AdaBlock(AdaBlockConfig(0.5, EVERYTHING, 2.0)), policy, shift, batch_size=3)
    assert [g.raw_ids for g in adaptive] == [g.raw_ids for g in fixed]
    assert [len(g.trace) for g in adaptive] == [len(g.trace) for g in fixed]


def test_where_every_token_ends_a_block_it_ends_with_the_surest_of_its_window():
    for item, generation in zip(ITEMS, decode(AdaBlock(AdaBlockConfig(2.0, EVERYTHING, 0.0, 0.5)))):
        reach, last = int(0.5 * item.max_tokens), None
        start = len(item.prompt_ids)
        for step, end in zip(generation.trace, ends(generation)):
            if end == last:
                continue
            window = {p: odds for p, odds in zip(step["scores"]["positions"], step["scores"]["log_odds"])}
            ahead = [p for p in window if p < start + reach]
            assert end - 1 == max(ahead, key=lambda p: (window[p], -p)) and step["positions"] == [end - 1]
            last = start = end
