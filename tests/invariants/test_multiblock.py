"""Promises of multi-block decoding. pytest tests/invariants/test_multiblock.py"""

import pytest

from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.decoders.multiblock import Multiblock, MultiblockConfig
from dlmbench.decoders.testing import EOS, random_requests, tiny_model
from dlmbench.engine import Engine, Request

BLOCK = 4
ITEMS = random_requests(2)


def decode(config, items=ITEMS, model=None, policy=None, **options):
    network = Bidirectional("target", model or tiny_model("full"), BLOCK, policy)
    return Engine({"target": network}, Multiblock(config), **options).generate(items, trace=True)


@pytest.mark.parametrize("best", ["everywhere", "first"])
@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tau", [-1.0, 0.5, 2.0])
def test_blocks_open_one_a_call_by_the_gate_and_only_open_ones_are_filled(tau, gate, best):
    for item, generation in zip(ITEMS, decode(MultiblockConfig(tau, gate, best), batch_size=3)):
        before, filled = 1, set()
        for step in generation.trace:
            opened, first = step["extra"]["open_blocks"], len(item.prompt_ids)
            share = sum(at // BLOCK == before - 1 for at in filled) / min(BLOCK, item.max_tokens - BLOCK * (before - 1))
            may_open = share >= gate and before * BLOCK < item.max_tokens
            assert opened == before + may_open
            now = {at - first for at in step["positions"]}
            assert now and not now & filled and max(now) // BLOCK < opened
            if tau < 0:
                assert len(now) <= (2 if best == "everywhere" else 1)
            missing = min(set(range(item.max_tokens)) - filled) // BLOCK
            assert any(at // BLOCK == missing for at in now)  # the first block with masks gets something
            before, filled = opened, filled | now
        assert len(filled) == item.max_tokens


def test_a_block_that_is_given_in_advance_is_not_waited_for():
    fixed = tuple((offset, 9) for offset in (*range(4, 8), *range(12, 16)))
    item = Request("x", (10, 11, 12), 20, fixed=fixed)
    for gate in (0.0, 1.0):
        generation = decode(MultiblockConfig(-1, gate, "first"), [item])[0]
        assert len(generation.trace) == 12 and all(step["positions"] for step in generation.trace)


def test_behind_an_eos_no_further_block_opens():
    model = tiny_model("full")
    model.head.weight[EOS] *= 4
    ended = 0
    for seed in range(12):
        item = Request(str(seed), tuple(range(10 + seed, 16 + seed)), 24)
        generation = decode(MultiblockConfig(1.0, 0.2), [item], model, fill_after_eos=True)[0]
        opened = [step["extra"]["open_blocks"] for step in generation.trace]
        if EOS in generation.raw_ids:
            at = generation.raw_ids.index(EOS)
            assert set(generation.raw_ids[at:]) == {EOS}
            first = next(i for i, step in enumerate(generation.trace) if EOS in step["tokens"])
            assert opened[first:] == opened[first : first + 1] * len(opened[first:])
            ended += 1
    assert ended


def test_freezing_complete_blocks_changes_nothing_on_one_layer():
    model = tiny_model("full")
    del model.layers[1:]
    model.config = model.config.__class__(**{**vars(model.config), "num_layers": 1})
    config = MultiblockConfig(1.0, 0.3)
    plain = decode(config, model=model)
    frozen = decode(config, model=model, policy=CachePolicy("freecache", freeze="refresh"), batch_size=2)
    assert [g.raw_ids for g in frozen] == [g.raw_ids for g in plain]
