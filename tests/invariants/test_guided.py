"""What Guided Diffusion promises. pytest tests/invariants"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.backbone.network import Network
from dlmbench.decoders.guided import Guided, GuidedConfig, agrees
from dlmbench.decoders.sequential import Sequential, SequentialConfig
from dlmbench.decoders.testing import EOS, VOCABULARY, random_requests, tiny_model
from dlmbench.engine import Engine, Request
from dlmbench.errors import RequestError
from dlmbench.request import RunSpec

EVERYTHING = GuidedConfig(match="topk", top=VOCABULARY)
NOTHING = GuidedConfig(match="probability", eta=1.1)
SOMETHING = GuidedConfig(match="topk", top=30, chunk=0)


def model(attention, seed, eos, shift):
    made = tiny_model(attention, seed)
    made.config = replace(made.config, eos_ids=eos, shift=1 if shift else made.config.shift)
    return made


def decode(config, requests=None, *, block=8, batch=3, policy="none", eos=(), shift=False, lag=None):
    """Generations of a tiny bidirectional target; without a config from left to right."""
    caching = CachePolicy("freecache", freeze="refresh") if policy == "refresh" else CachePolicy(policy)
    nets = {"target": Bidirectional("target", model("full", 7, eos, shift), block, caching)}
    decoder = Sequential(SequentialConfig(k=1))
    if config is not None:
        nets["guide"] = Network("guide", model("causal", 8, eos, False), 1)
        decoder = Guided(config)
    return Engine(nets, decoder, batch_size=batch, lag=lag).generate(requests or random_requests(4), trace=True)


def raw(generations):
    return [g.raw_ids for g in generations]


def calls(generation, role):
    return sum(n["calls"] for kind, n in generation.counts[role].items() if kind != "prefill")


@pytest.mark.parametrize("shift", [False, True])
def test_a_guide_that_accepts_everything_takes_one_step(shift):
    requests = [Request(f"{i}", tuple(range(5, 9 + i)), 20, seed=i) for i in range(3)]
    for g in decode(EVERYTHING, requests, block=20, shift=shift):
        assert (calls(g, "target"), calls(g, "guide"), g.fallbacks) == (1, 1, 0)
        assert g.accepted == [20] and g.proposed == 20


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("block", [8, 32])
def test_a_guide_that_accepts_nothing_leaves_left_to_right_decoding(shift, block):
    ours, plain = decode(NOTHING, block=block, shift=shift), decode(None, block=block, shift=shift)
    assert raw(ours) == raw(plain)
    assert [calls(g, "target") for g in ours] == [len(g.ids) for g in ours] == [g.fallbacks for g in ours]


def test_text_grows_from_left_to_right_and_the_guides_tokens_never_appear():
    generations = decode(SOMETHING, block=32)
    assert any(n > 1 for g in generations for n in g.accepted)
    for g in generations:
        positions = [p for step in g.trace for p in step["positions"]]
        assert positions == list(range(positions[0], positions[0] + len(g.ids)))
        assert calls(g, "target") == len(g.accepted) <= len(g.ids)
        assert g.fallbacks == g.accepted.count(0)
        assert [len(step["positions"]) for step in g.trace] == [max(s["extra"]["agreed"], 1) for s in g.trace]


@pytest.mark.parametrize("policy", ["none", "prompt", "freecache", "refresh"])
@pytest.mark.parametrize("eos", [(), (EOS, 17)])
def test_neither_chunk_nor_batch_nor_late_flags_change_the_ids(policy, eos):
    requests = random_requests(4)
    expected = [decode(SOMETHING, [r], batch=1, policy=policy, eos=eos)[0] for r in requests]
    for chunk in (1, 2, 5):
        ours = decode(replace(SOMETHING, chunk=chunk), requests, policy=policy, eos=eos)
        assert raw(ours) == raw(expected)
        assert [calls(g, "target") for g in ours] == [calls(g, "target") for g in expected]
    together = decode(SOMETHING, requests, batch=7, policy=policy, eos=eos)
    assert [(g.raw_ids, g.counts) for g in together] == [(g.raw_ids, g.counts) for g in expected]
    if policy == "none":
        assert raw(decode(SOMETHING, requests, policy=policy, eos=eos, lag=1)) == raw(expected)


def test_chunks_bound_the_rows_of_a_guide_forward():
    requests = [Request("a", tuple(range(5, 14)), 40)]
    widest = {}
    for chunk in (0, 4):
        trace = decode(replace(SOMETHING, chunk=chunk), requests, block=40)[0].trace
        widest[chunk] = max(f["query_tokens"] for step in trace for f in step["forwards"] if f["role"] == "guide")
    assert widest == {0: 41, 4: 4}


def test_an_eos_fills_the_rest_and_ends_the_row():
    for block in (8, 32):
        plain = decode(SOMETHING, random_requests(4)[:1], block=block)[0].ids
        at = next(i for i, token in enumerate(plain) if i > 2 and token not in plain[:i])
        ours = decode(SOMETHING, random_requests(4)[:1], block=block, eos=(plain[at],))[0]
        assert ours.raw_ids == plain[:at] + [plain[at]] * (len(plain) - at) and ours.stop_reason == "eos"


def test_longer_lists_and_lower_demands_agree_with_longer_prefixes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 8, 30, generator=generator) * 2
    tokens = (logits + torch.randn(logits.shape, generator=generator)).argmax(-1)
    sure = torch.rand(50, 8, generator=generator)

    def prefix(**options):
        return agrees(GuidedConfig(**options), tokens, logits, sure).long().cumprod(1).sum(1)

    for rule in ("topk", "topk_relative"):
        lengths = [prefix(match=rule, top=top, relative=0.3) for top in (1, 2, 5, 30)]
        assert all((a <= b).all() for a, b in zip(lengths, lengths[1:]))
    for rule, option in (("topk_relative", "relative"), ("probability", "eta"), ("stochastic", "tau")):
        lengths = [prefix(match=rule, **{option: value}) for value in (0.9, 0.5, 0.1, 0.0)]
        assert all((a <= b).all() for a, b in zip(lengths, lengths[1:])) and (lengths[0] < lengths[-1]).any()
    assert torch.equal(prefix(match="top1"), prefix(match="topk", top=1))


def test_end_tokens_count_as_one_on_both_sides():
    decoder = Guided(GuidedConfig())
    nets = {
        "target": Bidirectional("target", model("full", 7, (9,), False), 4),
        "guide": Network("guide", model("causal", 8, (11,), False), 1),
    }
    decoder.bind(nets, 4)
    logits = torch.zeros(1, 2, VOCABULARY)
    logits[..., 11], logits[..., 20] = 5.0, 4.0  # the guide wants to stop with its own end token
    good = decoder._agrees(torch.tensor([[9, 20]]), logits, torch.ones(1, 2))
    assert good.tolist() == [[True, False]]


WEIGHTS = Path(__file__).parents[1] / "golden" / "guided" / "weights"


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(guide=None), "--guide"),
        (dict(guide=str(WEIGHTS / "dream_a")), "causal"),
        (dict(guide="nano2-ar"), "vocabulary size"),
        (dict(cache="dual"), "cache policy dual"),
        (dict(temperature=0.5), "temperature"),
        (dict(model="nano2"), "full"),
        (dict(method="static", cache="prompt"), "cache policy prompt"),
    ],
)
def test_what_cannot_work_is_refused_when_the_spec_is_read(options, words):
    usual = {"method": "guided", "model": str(WEIGHTS / "dream_a"), "guide": str(WEIGHTS / "guide_qwen2_a")}
    assert RunSpec(task="gsm8k", cache="prompt", **usual).resolve().companions == {"guide": usual["guide"]}
    with pytest.raises(RequestError, match=words):
        RunSpec(task="gsm8k", **{**usual, **options}).resolve()


def test_a_guide_that_looks_ahead_is_refused():
    target = Bidirectional("target", model("full", 7, (), False), 4)
    with pytest.raises(RequestError, match="autoregressive"):
        Engine({"target": target, "guide": target}, Guided())
