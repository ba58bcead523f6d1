"""Promises of decoders that take tokens back. pytest tests/invariants/test_remasking.py"""

import pytest

from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.decoders.rcr import RCR, RCRConfig
from dlmbench.decoders.remdm_loop import RemdmLoop, RemdmLoopConfig
from dlmbench.decoders.saber import Saber, SaberConfig
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.testing import MASK, random_requests, tiny_model
from dlmbench.engine import Engine, Request

ITEMS = random_requests(5)
DECODERS = {
    "remdm_loop": lambda: RemdmLoop(RemdmLoopConfig(ratio=0.5, k=2, loops=4)),
    "remdm_loop on a full answer": lambda: RemdmLoop(RemdmLoopConfig(ratio=1, loops=5)),
    "rcr": lambda: RCR(RCRConfig(steps=3)),
    "rcr, more steps than masks": lambda: RCR(RCRConfig(steps=9, order="margin")),
    "saber": lambda: Saber(),
    "saber, one by one": lambda: Saber(SaberConfig(n=1)),
    "saber by token": lambda: Saber(SaberConfig(rule="token")),
    "saber by token, one by one": lambda: Saber(SaberConfig(n=1, rule="token")),
}


def decode(decoder, items=ITEMS, block=6, shift=0, loud=1.0, **options):
    model = tiny_model("full", shift=shift)
    model.head.weight.mul_(loud)
    return Engine({"target": Bidirectional("target", model, block)}, decoder, **options).generate(items, trace=True)


def replay(item, generation):
    """The answer's ids after every step, from the trace alone."""
    answer = [MASK] * item.max_tokens
    for offset, token in item.fixed:
        answer[offset] = token
    for step in generation.trace:
        for position, token in zip(step["positions"], step["tokens"]):
            answer[position - len(item.prompt_ids)] = token
        for position in step["remasked"]:
            answer[position - len(item.prompt_ids)] = MASK
        yield list(answer)


@pytest.mark.parametrize("loud", [1.0, 40.0], ids=["spread", "saturated"])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("name", DECODERS)
def test_only_the_answers_own_tokens_are_opened_and_it_ends_without_masks(name, shift, loud):
    items = [Request(r.key, r.prompt_ids, r.max_tokens, fixed=((1, 7), (4, 8))) for r in ITEMS]
    for item, generation in zip(items, decode(DECODERS[name](), items, shift=shift, loud=loud, batch_size=3)):
        first, given = len(item.prompt_ids), {len(item.prompt_ids) + offset for offset, _ in item.fixed}
        states = list(replay(item, generation))
        for before, step in zip([[]] + states, generation.trace):
            changed = step["remasked"] + step["positions"]
            assert not given & set(changed) and all(first <= at < first + item.max_tokens for at in changed)
            assert all(before[at - first] != MASK for at in step["remasked"])
        assert states[-1] == generation.raw_ids and MASK not in generation.raw_ids
        assert generation.raw_ids[1] == 7 and generation.raw_ids[4] == 8


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_without_loops_remdm_loop_is_static_over_one_block(k, ratio):
    for item in ITEMS:
        size = item.max_tokens // 15 * 15 or item.max_tokens  # ratio * size must be a multiple of k for equal steps
        item = Request(item.key, item.prompt_ids, size if k == 1 else 15)
        loop = decode(RemdmLoop(RemdmLoopConfig(ratio, k, 0)), [item])[0]
        plain = decode(Static(StaticConfig(k)), [item], block=item.max_tokens)[0]
        assert loop.raw_ids == plain.raw_ids and loop.counts == plain.counts


@pytest.mark.parametrize("ratio, k, loops", [(0.75, 1, 5), (0.5, 2, 3), (1.0, 4, 2), (0.0, 2, 9)])
def test_remdm_loop_spends_what_its_formula_says_and_keeps_the_number_of_masks_in_the_loops(ratio, k, loops):
    item = Request("x", (10, 11, 12), 16)
    generation = decode(RemdmLoop(RemdmLoopConfig(ratio, k, loops)), [item])[0]
    first = int(16 * ratio)
    spent = first // k, 2 * loops * (first > 0), (16 - first) // k
    assert len(generation.trace) == sum(spent)
    masks = [answer.count(MASK) for answer in replay(item, generation)]
    if first:
        assert masks[spent[0] : spent[0] + spent[1]] == [16 - first + k, 16 - first] * loops


def test_rcr_fills_on_balance_what_its_schedule_says_and_goes_back_to_finished_blocks():
    went_back = 0
    for item in [Request(str(seed), tuple(range(10 + seed, 15 + seed)), 24) for seed in range(6)]:
        generation = decode(RCR(RCRConfig(steps=4)), [item], block=8)[0]
        masks = [answer.count(MASK) for answer in replay(item, generation)]
        assert masks == [22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0]
        went_back += sum(at < 5 + i // 4 * 8 for i, step in enumerate(generation.trace) for at in step["remasked"])
    assert went_back


@pytest.mark.parametrize(
    "config, owed",
    [
        (RCRConfig(steps=10), [9, 8, 7, 6, 5, 4, 3, 1, 0, 0]),  # the floor of 10 * (1 - r) in float64
        (RCRConfig(steps=4, schedule="cosine"), [9, 7, 3, 0]),
        (RCRConfig(steps=4, schedule="pow"), [9, 7, 4, 0]),
    ],
)
def test_rcr_divides_ten_masks_as_maskgit_does(config, owed):
    item = Request("x", (10, 11, 12), 10)
    generation = decode(RCR(config), [item], block=10)[0]
    assert [answer.count(MASK) for answer in replay(item, generation)] == owed


@pytest.mark.parametrize("rule", ["change", "token"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_saber_takes_back_less_than_it_fills_and_nothing_when_all_is_full(n, rule):
    opened = 0
    for item, generation in zip(ITEMS, decode(Saber(SaberConfig(n, rule)), block=32)):
        masks = [item.max_tokens] + [answer.count(MASK) for answer in replay(item, generation)]
        assert all(now < before for before, now in zip(masks, masks[1:]))
        assert masks[1] == item.max_tokens - min(n, item.max_tokens) + _first_back(n, rule, item.max_tokens)
        assert not generation.trace[-1]["remasked"]
        opened += sum(len(step["remasked"]) for step in generation.trace)
    assert opened or n == 1


def _first_back(n, rule, masks):
    """Tokens that the first step takes back of the n that it fills."""
    return 0 if n >= masks else min(max(n // 2 if rule == "change" else 1, 1), n - 1)


def test_saber_with_n_1_takes_nothing_back_in_a_step_that_fills_one():
    steps = [step for g in decode(Saber(SaberConfig(n=1)), block=32) for step in g.trace]
    assert all(len(step["positions"]) > 1 for step in steps if step["remasked"])
    assert any(len(step["positions"]) == 1 for step in steps)
