"""Promises of full attention: policies, guidance, markers, training-free decoders. pytest tests/invariants"""

import random

import pytest
import torch

from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.model import Transformer
from dlmbench.decoders.base import View
from dlmbench.decoders.entropy import Entropy, EntropyConfig
from dlmbench.decoders.klass import Klass, KlassConfig
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.prophet import Prophet, ProphetConfig
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.decoders.wino import Wino, WinoConfig
from dlmbench.engine import Engine, Request

MASK, EOS, VOCABULARY, BLOCK = 3, 1, 61, 6
POLICIES = {
    "none": CachePolicy(),
    "prefix": CachePolicy("prefix"),
    "prefix every 2": CachePolicy("prefix", refresh_every=2),
    "dual": CachePolicy("dual"),
    "freecache": CachePolicy("freecache"),
    "freecache refresh": CachePolicy("freecache", freeze="refresh"),
    "freecache prompt": CachePolicy("freecache", window="prompt_only"),
    "dkv": CachePolicy("dkv", reload_every=4),
}
LOW = dict(early=0.6, mid=0.5, late=0.4, answer_start=7)
DECODERS = {
    "static": lambda: Static(StaticConfig(k=2)),
    "quota": lambda: Static(StaticConfig(steps=4, schedule="quota")),
    "dream": lambda: Static(StaticConfig(steps=3, schedule="dream", order="entropy")),
    "origin": lambda: Static(StaticConfig(steps=3, schedule="dream", order="origin")),
    "drawn order": lambda: Static(StaticConfig(k=2, order="margin", alg_temp=0.5)),
    "threshold": lambda: Threshold(ThresholdConfig(tau=0.3)),
    "planned": lambda: Threshold(ThresholdConfig(tau=0.3, rule="planned", steps=3)),
    "factor": lambda: Threshold(ThresholdConfig(rule="factor", factor=1.4)),
    "factor of the release": lambda: Threshold(ThresholdConfig(rule="factor", factor=1.4, factor_rule="code")),
    "eb": lambda: Entropy(EntropyConfig(rule="eb", budget=1.5)),
    "klass": lambda: Klass(KlassConfig(tau=0.1, kl=0.5)),
    "prophet": lambda: Prophet(ProphetConfig(**LOW)),
}


def model(shift=0, layers=2, seed=7, eos=(EOS,)):
    config = BackboneConfig(
        family="dream" if shift else "llada", vocab_size=VOCABULARY, hidden_size=32, num_layers=layers, num_heads=4,
        num_kv_heads=2, head_dim=8, intermediate_size=48, qk_norm=False, qkv_bias=bool(shift), attention="full",
        shift=shift, mask_id=MASK, eos_ids=eos, max_positions=128,
    )  # fmt: skip
    network = Transformer(config).init_weights(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() == 2:
                weight.mul_(9.0 if name == "head.weight" else 6.0)
    return network.requires_grad_(False).eval()


def requests(count=5, seed=3):
    rng = random.Random(seed)
    return [
        Request(str(i), tuple(rng.randrange(4, VOCABULARY) for _ in range(rng.randrange(1, 12))),
                rng.randrange(8, 20), seed=i)
        for i in range(count)
    ]  # fmt: skip


def decode(decoder, items, policy=None, guidance=0.0, batch_size=1, trace=False, sampling=None, net=None,
           block=BLOCK, **options):  # fmt: skip
    network = Bidirectional("target", net or model(), block, policy, guidance)
    engine = Engine({"target": network}, decoder, batch_size=batch_size, sampling=sampling, **options)
    return engine.generate(items, trace=trace)


def ids(generations):
    return [g.raw_ids for g in generations]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["quota", "dream", "threshold", "klass", "prophet"])
def test_a_batch_equals_singles_and_a_refilled_slot_a_fresh_one(name, policy, shift):
    decoder, policy = DECODERS[name], POLICIES[policy]
    if policy.name not in decoder().caches:
        pytest.skip("refused when the spec is read")
    items, net = requests(4), model(shift)
    singles = [decode(decoder(), [item], policy, net=net)[0] for item in items]
    for batch_size in (1, 3):
        together = decode(decoder(), items, policy, batch_size=batch_size, net=net)
        assert ids(together) == ids(singles)
        assert [g.counts for g in together] == [g.counts for g in singles]
    assert all(MASK not in g.raw_ids for g in singles) and len({tuple(g.ids) for g in singles}) > 1


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_fills_the_answer_whatever_the_batch(name):
    items = requests(6)
    singles = [decode(DECODERS[name](), [item])[0] for item in items]
    assert ids(decode(DECODERS[name](), items, batch_size=4)) == ids(singles)
    assert [len(g.raw_ids) for g in singles] == [item.max_tokens for item in items]
    assert all(MASK not in g.raw_ids for g in singles)


@pytest.mark.parametrize("policy", ["prefix", "dual"])
@pytest.mark.parametrize("name", ["static", "threshold", "quota"])
def test_refreshing_at_every_step_is_no_cache_at_all(name, policy):
    items = requests()
    plain = decode(DECODERS[name](), items, batch_size=2)
    cached = decode(DECODERS[name](), items, CachePolicy(policy, refresh_every=1), batch_size=2)
    assert ids(cached) == ids(plain) and [g.counts for g in cached] == [g.counts for g in plain]
    assert ids(decode(DECODERS[name](), items, CachePolicy(policy))) != ids(plain)  # without refreshing it matters


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("name", ["static", "threshold", "quota"])
def test_dkv_is_exact_when_it_always_reloads_and_in_the_first_two_steps_of_a_block(name, shift):
    items, options = requests(8), dict(net=model(shift), batch_size=2, trace=True, block=20)
    plain = decode(DECODERS[name](), items, **options)
    always = decode(DECODERS[name](), items, CachePolicy("dkv", reload_every=1), **options)
    assert ids(always) == ids(plain) and [g.counts for g in always] == [g.counts for g in plain]
    never = decode(DECODERS[name](), items, CachePolicy("dkv", reload_every=0), **options)
    done = [[[(step["positions"], step["tokens"]) for step in g.trace] for g in run] for run in (never, plain)]
    assert all(kept[:2] == exact[:2] for kept, exact in zip(*done))
    sure = [[step["scores"]["confidence"] for g in run for step in g.trace[2:]] for run in (never, plain)]
    assert sure[0] != sure[1]


@pytest.mark.parametrize("shift", [0, 1])
def test_dkv_computes_todays_masks_and_what_the_last_step_decoded(shift):
    item = Request("x", tuple(range(10, 20)), 2 * BLOCK)
    steps = decode(Static(StaticConfig(k=2)), [item], POLICIES["dkv"], net=model(shift), trace=True)[0].trace
    masks, last = set(range(10, 22)), set()
    for number, step in enumerate(steps):
        (forward,) = step["forwards"]
        due = masks | last | {at - shift for at in masks if shift}
        full = number % 3 < 2  # three steps a block, of which the first two are full
        assert forward["kind"] == ("refresh" if full else "denoise")
        assert forward["query_tokens"] == (22 if full else len(due))
        last = set(step["positions"])
        masks -= last


def test_on_one_layer_dkv_is_exact_where_tokens_are_kept_with_their_last_keys():
    items, net = requests(8), model(layers=1)
    plain = decode(DECODERS["static"](), items, net=net)
    assert ids(decode(DECODERS["static"](), items, CachePolicy("dkv", reload_every=0), net=net)) == ids(plain)


@pytest.mark.parametrize("shift", [0, 1])
def test_on_one_layer_refreshed_freezing_is_exact_and_stale_freezing_is_not(shift):
    items, net = requests(8), model(shift, layers=1)
    plain = decode(DECODERS["quota"](), items, net=net)
    refreshed = decode(DECODERS["quota"](), items, CachePolicy("freecache", freeze="refresh"), net=net)
    assert ids(refreshed) == ids(plain)
    assert ids(decode(DECODERS["quota"](), items, CachePolicy("freecache"), net=net)) != ids(plain)


def test_frozen_keys_are_never_written_again():
    network = Bidirectional("target", model(), BLOCK, CachePolicy("freecache"))
    frozen = {}

    class Watch(Static):
        def decide(self, view: View, forward):
            start = int(view.start[0])
            keys = network.cache.leading(start)[1][0][0].clone()
            if start in frozen:
                assert torch.equal(keys, frozen[start])
            frozen[start] = keys
            return super().decide(view, forward)

    Engine({"target": network}, Watch()).generate([Request("x", (10, 11, 12, 13), 18)])
    assert len(frozen) == 3


def test_cached_forwards_are_narrower_and_counted_apart():
    item = Request("x", tuple(range(10, 20)), 12)
    counts = {
        name: decode(Static(), [item], CachePolicy(name))[0].counts["target"] for name in ("none", "prefix", "dual")
    }
    assert counts["none"]["refresh"]["calls"] == 12 and "denoise" not in counts["none"]
    for name, widths in (("prefix", 5 * 12 + 5 * 6), ("dual", 10 * 6)):
        assert (counts[name]["refresh"]["calls"], counts[name]["denoise"]["calls"]) == (2, 10)
        assert counts[name]["denoise"]["query_tokens"] == widths


def test_dreams_first_position_of_a_block_is_forced_from_the_full_forward():
    item = Request("x", tuple(range(10, 15)), 12)
    steps = decode(Threshold(ThresholdConfig(tau=0.0)), [item], CachePolicy("dual"), net=model(1), trace=True)[0].trace
    assert [step["positions"] for step in steps] == [[5], [6, 7, 8, 9, 10], [11], [12, 13, 14, 15, 16]]


def test_guidance_is_one_call_of_two_rows_and_follows_its_formula():
    item, net = Request("x", tuple(range(10, 16)), 6, fixed=((3, 20),)), model()
    seen = []

    class Watch(Static):
        def decide(self, view: View, forward):
            seen.append((view.tokens.clone(), forward.logits.clone()))
            return super().decide(view, forward)

    result = decode(Watch(), [item], guidance=1.5, net=net)[0]
    assert result.counts["target"]["refresh"] | {"flops": 0} == {
        "calls": 5, "query_tokens": 5 * 2 * 12, "key_tokens": 5 * 2 * 12 * 12, "flops": 0,
    }  # fmt: skip
    tokens, logits = seen[2]
    row = torch.cat([torch.tensor([item.prompt_ids]), tokens], 1)
    blind = row.clone()
    blind[:, [*range(6), 9]] = MASK  # the prompt and what was given in advance
    with torch.inference_mode():
        guided, unguided = (net.project(net.hidden(x))[:, 6:] for x in (row, blind))
    assert torch.allclose(logits, unguided + 2.5 * (guided - unguided), atol=1e-3)


def test_tokens_given_in_advance_stay_and_take_no_step():
    item = Request("x", (10, 11, 12), 12, fixed=((2, 33), (7, 34), (40, 35)))
    result = decode(Static(), [item], trace=True)[0]
    assert (result.raw_ids[2], result.raw_ids[7]) == (33, 34) and len(result.trace) == 10
    assert not {5, 10} & {p for step in result.trace for p in step["positions"]}


def test_fill_after_eos_ends_a_row_early():
    items = requests(8)
    free = decode(Static(), items, net=model(eos=()))
    eos = free[0].raw_ids[4]
    early = decode(Static(), items, net=model(eos=(eos,)), fill_after_eos=True)
    assert any(eos in g.raw_ids for g in early)
    for g, item in zip(early, items):
        if eos in g.raw_ids:
            first = g.raw_ids.index(eos)
            assert set(g.raw_ids[first:]) == {eos} and len(g.raw_ids) == item.max_tokens
    calls = [[g.counts["target"]["refresh"]["calls"] for g in run] for run in (early, free)]
    assert sum(calls[0]) < sum(calls[1])


def test_eos_switches():
    items = requests(4)
    eos = decode(Static(), items)[0].raw_ids[0]
    assert all(eos not in g.raw_ids for g in decode(Static(), items, sampling=Sampling(banned=(eos,))))
    late = decode(Static(), items, sampling=Sampling(last=(eos,)), trace=True)
    for g in late:  # within a block, whatever follows an EOS is an EOS as well
        for block in {step["block"] for step in g.trace}:
            tokens = [step["tokens"][0] for step in g.trace if step["block"] == block]
            assert eos not in tokens or set(tokens[tokens.index(eos) :]) == {eos}


def test_schedules_spend_their_steps_and_split_fairly():
    item = Request("x", (10, 11, 12), 16)  # blocks of 6, 6 and 4
    quota = decode(Static(StaticConfig(steps=4, schedule="quota")), [item], trace=True)[0]
    assert [len(s["positions"]) for s in quota.trace] == [2, 2, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1]
    empty = decode(Static(StaticConfig(steps=8, schedule="quota")), [item], trace=True)[0]
    assert [len(s["positions"]) for s in empty.trace[:8]] == [1] * 6 + [0, 0] and len(empty.trace) == 24
    one = decode(Static(StaticConfig(steps=1, schedule="dream")), [Request("x", (10,), 6)], trace=True)[0]
    assert [len(s["positions"]) for s in one.trace] == [6]
    clock = decode(Static(StaticConfig(schedule="dream")), [Request("x", (10,), 6)], trace=True)[0]
    assert [len(s["positions"]) for s in clock.trace] == [0, 1, 1, 1, 1, 2]


def test_a_lower_threshold_never_reveals_less_at_first():
    for item in requests(4):
        first = [
            len(decode(Threshold(ThresholdConfig(tau=tau)), [item], trace=True)[0].trace[0]["positions"])
            for tau in (1.1, 0.8, 0.5, 0.2, 0.0)
        ]
        assert first == sorted(first) and first[0] == 1 and first[-1] == min(BLOCK, item.max_tokens)


def test_factor_rules_agree_but_for_the_last_rank():
    for item in requests(4):
        paper, code = (
            decode(Threshold(ThresholdConfig(rule="factor", factor=0.8, factor_rule=rule)), [item], trace=True)[0]
            for rule in ("paper", "code")
        )
        extra = [step["extra"]["last_rank"] for step in code.trace]
        assert any(extra) or paper.raw_ids == code.raw_ids
        at = extra.index(True) if any(extra) else 0
        assert len(code.trace[at]["positions"]) == len(paper.trace[at]["positions"]) + any(extra)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tau", [0.0, 0.1, 0.3])
def test_wino_ends_and_takes_back_less_than_it_had_drafted(tau, seed):
    items = requests(4, seed)
    results = decode(Wino(WinoConfig(tau=tau)), items, net=model(seed=seed), batch_size=2, trace=True, block=20)
    taken_back = 0
    for g in results:
        assert MASK not in g.raw_ids
        for before, now in zip(g.trace, g.trace[1:]):
            assert len(now["remasked"]) < max(len(before["positions"]), 1) or before["block"] != now["block"]
            assert not now["remasked"] or len(now["positions"]) > 1
            taken_back += len(now["remasked"])
    assert tau > 0 or taken_back > 0


def test_a_shadow_sees_everything_but_the_token_at_its_place():
    net = model()
    network = Bidirectional("target", net, BLOCK)
    item, seen = Request("x", tuple(range(10, 17)), 12), []

    class Watch(Wino):
        def _forward(self, view, target):
            found = super()._forward(view, target)
            seen.append((network.canvas[0, :19].clone(), int(view.start[0]), *found))
            return found

    Engine({"target": network}, Watch(WinoConfig(tau=0.1))).generate([item])
    for row, start, logits, shadows in seen:
        tokens = torch.cat([row, torch.full((BLOCK,), MASK)])
        place = torch.arange(19 + BLOCK)
        positions = torch.where(place < 19, place, start + place - 19)
        shadow = place >= 19
        allowed = ~shadow | (shadow.unsqueeze(1) & (positions < 19))  # (query, key): only shadows see shadows
        allowed &= ~(shadow.unsqueeze(1) & ~shadow & (place == positions.unsqueeze(1)))
        with torch.inference_mode():
            expected = net.project(net.hidden(tokens[None], positions[None], allowed[None, None]))[0]
        block = slice(start, min(start + BLOCK, 19))
        width = block.stop - block.start
        assert torch.allclose(logits[0, :width], expected[block], atol=1e-3)
        assert torch.allclose(shadows[0, :width], expected[19 : 19 + width], atol=1e-3)


def test_prophet_stops_with_the_deciding_forward_and_agrees_until_then():
    item = Request("x", tuple(range(10, 16)), 18)
    at_once = decode(Prophet(ProphetConfig(early=0.0, answer_start=3)), [item], trace=True)[0]
    assert len(at_once.trace) == 1 and len(at_once.trace[0]["positions"]) == 18
    baseline = decode(Static(), [item], trace=True)[0]
    exits = []
    for bound in (2.0, 3.0, 4.0, 6.0, 1e9):
        config = ProphetConfig(early=bound, mid=bound, late=bound, answer_start=9)
        trace = decode(Prophet(config), [item], trace=True)[0].trace
        exits.append(len(trace))
        shared = [(s["positions"], s["tokens"]) for s in trace[:-1]]
        assert shared == [(s["positions"], s["tokens"]) for s in baseline.trace[: len(shared)]]
    assert exits == sorted(exits) and exits[-1] == 18


def test_prophet_without_a_window_is_its_baseline():
    items = requests()
    assert ids(decode(Prophet(), items)) == ids(decode(Static(), items))
