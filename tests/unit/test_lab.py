"""The selector laboratory: recorded states and who reveals what in them. pytest tests/unit/test_lab.py"""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from dlmbench.backbone.bidirectional import CachePolicy
from dlmbench.decoders.testing import EOS, MASK, options_of, random_requests, tiny_networks
from dlmbench.engine import Engine
from dlmbench.engine.states import restored, summary
from dlmbench.errors import RequestError, RunError
from dlmbench.lab.replay import left_out
from dlmbench.lab.selectors import Selector, tallies
from dlmbench.registry import DECODERS
from dlmbench.request import RunSpec
from dlmbench.runs.recording import LOGITS, recorded
from dlmbench.runs.states import check_recordable, read_states, record_states, write_states

SETTINGS = [
    ("threshold", ""), ("threshold", "rule=factor"), ("threshold", "steps=2"), ("static", "k=2"),
    ("static", "order=entropy"), ("static", "order=margin,steps=3,schedule=quota"), ("static", "order=random"),
    ("static", "order=origin,schedule=dream"), ("sequential", ""), ("entropy", ""), ("entropy", "rule=eb,proxy=margin"),
    ("entropy", "rule=chosen"), ("entropy", "rule=gate,budget=2"), ("hierarchy", "tau=0.1,low=0.05"), ("frechet", ""),
    ("credit", "tau=0.1,alpha=2"), ("credit", "selector=hierarchy,tau=0.2,low=0.1"), ("pcsampler", ""),
    ("sched", "max_change=1,high=0.4,low=0.1"), ("sched", "max_change=0.9,high=0.4,low=0,patience=1"),
    ("multiblock", "tau=2,gate=0.3"), ("klass", "tau=0.1,kl=0.5"),
]  # fmt: skip
CASES = [(name, options, kind) for name, options in SETTINGS for kind in DECODERS.get(name).attention]


def made(name, options=""):
    cls = DECODERS.get(name)
    return cls(options_of(cls, options))


@cache
def states_of(name, options, attention, count=2, batch_size=2, eos=1.0):
    """A run's states, and the generations without any recording; `eos` makes the end token louder."""
    decoder = made(name, options)
    requests = [replace(one, max_tokens=min(one.max_tokens, 10)) for one in random_requests(0, count)]
    nets = tiny_networks(decoder, attention)
    nets["target"].model.head.weight[EOS] *= eos
    engine = Engine(nets, decoder, batch_size=batch_size)
    plain = engine.generate(requests)
    return record_states(engine, requests, {one.key: one.ids for one in plain}), plain


@pytest.mark.parametrize("name, options, attention", CASES)
def test_the_selector_that_made_the_states_agrees_with_itself_and_recording_changes_nothing(name, options, attention):
    states, plain = states_of(name, options, attention)
    assert [item.ids for item in states.items] == [one.raw_ids for one in plain]
    assert all(item.same_ids and len(item.states) == one.steps for item, one in zip(states.items, plain))
    (tally,) = tallies(states, [Selector("itself", made(name, options))])
    assert tally.agreement == tally.overlap == 1.0 and not tally.first
    assert tally.steps == sum(one.steps for one in plain)


@pytest.mark.parametrize("scale", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("vocabulary", [20, 34, 500])
def test_restored_logits_have_the_kept_tokens_the_mass_and_the_entropy(scale, vocabulary):
    logits = scale * torch.randn(30, vocabulary, generator=torch.Generator().manual_seed(1))
    again = restored(summary(logits, 3), 3, vocabulary)
    before, now = logits.double().softmax(-1), again.double().softmax(-1)
    kept = logits.topk(min(vocabulary, 32) - 1, -1).indices
    assert torch.allclose(before.gather(1, kept), now.gather(1, kept), atol=1e-6)
    assert torch.equal(logits[:, 3], again[:, 3])
    assert torch.allclose(logits.logsumexp(-1), again.logsumexp(-1), atol=1e-5)
    entropy = [torch.special.entr(one).sum(-1) for one in (before, now)]
    assert torch.allclose(*entropy, atol=1e-5)


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_states_do_not_depend_on_the_batch_and_survive_their_file(attention, tmp_path):
    states, _ = states_of("credit", "tau=0.1", attention)
    alone, _ = states_of("credit", "tau=0.1", attention, batch_size=1)
    write_states(tmp_path, states)
    first = (tmp_path / LOGITS).read_bytes()
    write_states(tmp_path, states)
    assert (tmp_path / LOGITS).read_bytes() == first and recorded(tmp_path) == len(states.items)
    again = read_states(tmp_path)
    assert again.facts == states.facts and again.sampling == states.sampling
    for mine, other, single in zip(states.items, again.items, alone.items):
        assert mine.ids == other.ids == single.ids and len(mine.states) == len(other.states) == len(single.states)
        for a, b, c in zip(mine.states, other.states, single.states):
            assert a.place == b.place == c.place
            for name in ("tokens", "positions", "chosen"):
                assert all(torch.equal(getattr(a, name), getattr(one, name)) for one in (b, c))
            assert all(torch.equal(x, y) for x, y in zip(a.marginals, b.marginals))
    choices = [tallies(one, [Selector("x", made("hierarchy", "tau=0.2,low=0.1"))])[0] for one in (states, again)]
    assert vars(choices[0]) | {"selector": 0} == vars(choices[1]) | {"selector": 0}


@pytest.mark.parametrize("cache", ["prefix", "dual", "freecache", "dkv"])
@pytest.mark.parametrize("name, options", [("threshold", "tau=0.1"), ("credit", "tau=0.1"), ("multiblock", "tau=4.35")])
def test_under_a_cache_policy_only_masks_that_a_forward_predicts_are_kept(name, options, cache):
    decoder = made(name, options)
    if cache not in decoder.caches:
        return
    nets, requests = tiny_networks(decoder, "full"), random_requests(3, 2)
    nets["target"].policy = CachePolicy(cache)
    engine = Engine(nets, decoder, batch_size=2)
    states = record_states(engine, requests, {one.key: one.ids for one in engine.generate(requests)})
    assert all(item.same_ids for item in states.items)
    (tally,) = tallies(states, [Selector("itself", made(name, options))])
    assert tally.agreement == 1.0
    masks = [(len(s.positions), int((s.tokens == MASK).sum())) for item in states.items for s in item.states]
    assert all(kept <= there for kept, there in masks)
    assert any(kept < there for kept, there in masks) == (cache == "dual")


def test_full_attention_keeps_every_mask_of_the_answer_whatever_the_view():
    states, _ = states_of("static", "", "full")
    for item in states.items:
        left = [len(state.positions) for state in item.states]
        assert left == list(range(len(item.ids), 0, -1))


def test_what_others_would_have_revealed_is_counted_by_hand():
    states, _ = states_of("static", "", "block_causal")
    everything, one_by_one = tallies(
        states, [Selector("all", made("threshold", "tau=0")), Selector("left", made("sequential"))]
    )
    masks = [len(state.positions) for item in states.items for state in item.states]
    assert everything.steps == len(masks) and everything.commits == sum(masks)
    assert everything.overlap == len(masks) / sum(masks) and everything.same == masks.count(1)
    assert one_by_one.commits == len(masks) == one_by_one.steps
    first = everything.first[states.items[0].key]
    state, item = states.items[0].states[first.step], states.items[0]
    at = state.positions.tolist().index(item.prompt_length + first.position)
    assert state.marginals.ids[at, 0] == first.token != first.final == item.ids[first.position]
    assert first.position < item.text_length


def test_tokens_behind_the_end_of_the_text_are_no_other_tokens():
    states, _ = states_of("static", "", "full", 4, eos=6.0)
    ended = [item for item in states.items if EOS in item.ids[:-1]]
    assert ended and all(item.text_length == item.ids.index(EOS) + 1 for item in ended)
    (tally,) = tallies(states, [Selector("all", made("threshold", "tau=0"))])
    assert all(tally.first[i.key].position < i.text_length for i in ended if i.key in tally.first)


def test_a_row_is_over_for_a_selector_that_would_end_it():
    states, _ = states_of("static", "", "full")
    (tally,) = tallies(states, [Selector("at once", made("sched", "max_change=1,high=0,low=0"))])
    assert tally.steps == len(states.items)


@pytest.mark.parametrize(
    "name, options, attention, words",
    [
        ("simsd", "", "block_causal", "second network"), ("prophet", "answer_start=2", "full", "hold a token"),
        ("sched", "average=answer", "full", "hold a token"), ("saber", "", "full", "what it did itself"),
        ("wino", "", "full", "what it did itself"), ("rcd", "residual_init=cold", "full", "asks for its forwards"),
        ("multiblock", "", "block_causal", "full attention"), ("static", "", "full", None),
    ],
)  # fmt: skip
def test_methods_that_need_more_than_distributions_of_masks_are_left_out(name, options, attention, words):
    reason = left_out(made(name, options), states_of("static", "", attention, 1)[0].facts)
    assert reason is words is None or words in reason


@pytest.mark.parametrize(
    "method, more, words",
    [
        ("simsd", {}, "asks for its forwards itself"), ("adablock", {"model": "nano2-llada"}, "where blocks"),
        ("ar", {"model": "nano2-ar"}, "one mask"),
        ("static", {"temperature": 0.7}, "temperature 0.7"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_is_refused_in_a_sentence(method, more, words):
    with pytest.raises(RequestError, match=words):
        check_recordable(RunSpec(method=method, task="nano-gsm", **more).resolve())
    check_recordable(RunSpec(method="static", task="nano-gsm", temperature=0.7, top_k=1).resolve())


def test_a_file_of_another_version_is_refused(tmp_path):
    with pytest.raises(RunError, match="--record-logits"):
        read_states(tmp_path)
    np.savez(tmp_path / LOGITS, about=np.array(json.dumps({"format": 99, "items": [1]})))
    assert recorded(tmp_path) == 0
    (tmp_path / LOGITS).write_bytes(b"no zip")
    assert recorded(tmp_path) == 0
