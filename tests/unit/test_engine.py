"""The engine on tiny random networks: counts, stops, refills, errors. pytest tests/unit/test_engine.py"""

import gc
import math
import random
from collections import Counter
from dataclasses import replace
from itertools import count, groupby
from types import SimpleNamespace

import pytest
import torch

from dlmbench.backbone import attention, network
from dlmbench.backbone.cache import KVCache
from dlmbench.backbone.model import Transformer
from dlmbench.backbone.network import Network
from dlmbench.decoders import testing
from dlmbench.decoders.ar import AR
from dlmbench.decoders.predict import Candidates, Sampling
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.testing import EOS, MASK, VOCABULARY, tiny_model
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Request, calibrate, clock
from dlmbench.engine.request import Arrivals
from dlmbench.errors import RequestError, RunError
from dlmbench.forwards import ForwardKey
from dlmbench.registry import DECODERS

BLOCK = 4


def engine(decoder=None, *, store="fused", eos=(EOS,), tokenizer=None, **options):
    decoder = decoder or Static()
    model = tiny_model(type(decoder).attention[0])
    model.config = replace(model.config, eos_ids=eos)
    net = Network("target", model, 1 if model.config.shift else BLOCK, store)
    return Engine({"target": net}, decoder, tokenizer, **options)


def requests(count=8, stop=(), budget=None):
    rng = random.Random(5)
    return [
        Request(str(i), tuple(rng.randrange(4, VOCABULARY) for _ in range(rng.randrange(1, 15))),
                budget or rng.randrange(3, 20), stop, seed=i)
        for i in range(count)
    ]  # fmt: skip


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(48 + i) for i in ids if i not in (EOS, MASK))


class Marked(Letters):
    """The same; EOS is a special token with a text of its own."""

    added_tokens_decoder = {EOS: SimpleNamespace(content="<e>", special=True)}

    def decode(self, ids, skip_special_tokens=True):
        return "".join("<e>" if i == EOS else chr(48 + i) for i in ids if i != MASK)


@pytest.mark.parametrize("store", ["fused", "separate"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=20)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch, lag", [(3, 0), (3, 1), (16, 0)])
def test_ids_do_not_depend_on_batch_store_or_lag(store, sampling, batch, lag):
    items = requests()
    singles = [engine(Threshold(ThresholdConfig(tau=0.4)), sampling=sampling).generate([item])[0] for item in items]
    batched = engine(
        Threshold(ThresholdConfig(tau=0.4)), sampling=sampling, store=store, batch_size=batch, lag=lag
    ).generate(items)
    assert [g.raw_ids for g in batched] == [g.raw_ids for g in singles]
    denoise = [g.counts["target"]["denoise"]["calls"] for g in batched]
    assert denoise == [g.counts["target"]["denoise"]["calls"] for g in singles]
    assert len({tuple(g.ids) for g in batched}) > 1


def test_seeds_decide_draws():
    item = requests(1, budget=12)[0]
    sampling = Sampling(temperature=1.0)
    runs = [engine(sampling=sampling).generate([Request("x", item.prompt_ids, 12, seed=s)])[0].ids for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_separate_stores_are_counted_and_fused_ones_widen_a_forward():
    item = Request("x", tuple(range(10, 17)), 9)  # 7 prompt tokens: blocks 1, 2, 3 with 1, 4 and 4 free positions
    separate = engine(eos=(), store="separate").generate([item])[0]
    fused = engine(eos=()).generate([item])[0]
    assert {k: n["calls"] for k, n in separate.counts["target"].items()} == {"prefill": 1, "denoise": 9, "store": 3}
    assert {k: n["calls"] for k, n in fused.counts["target"].items()} == {"prefill": 1, "denoise": 9}
    assert {str(key): n for key, n in fused.forward_counts.items()} == {
        "target/prefill/prompt": 1,
        "target/denoise/4": 7,
        "target/denoise/8": 2,
    }
    assert separate.counts["target"]["denoise"]["query_tokens"] == 36
    assert fused.counts["target"]["denoise"]["query_tokens"] == 7 * 4 + 2 * 8
    assert separate.counts["target"]["denoise"]["key_tokens"] == 4 * (8 + 4 * 12 + 4 * 16)


def test_the_time_of_forwards_is_that_of_layers_and_heads_after_prefill(monkeypatch):
    """On a clock that ticks whenever it is looked at: a second for the layers of each forward, one for its head."""
    monkeypatch.setattr(clock, "perf_counter", count().__next__)
    machine = engine(eos=(), store="separate")
    machine.generate([Request("x", tuple(range(10, 17)), 9)])  # 9 denoise, and 3 stores, which no head sees
    assert machine.timing.forwards == 9 * 2 + 3
    machine.timing.total, machine.timing.prefill = 32.0, 4.0
    assert machine.timing.outside == 0.25, "7 of 28 seconds"
    assert type(machine.target.model) is Transformer, "nothing stands in for it after a call"


def test_autoregressive_spends_one_forward_a_token_and_equals_an_uncached_loop():
    decoder = AR()
    item = Request("x", tuple(range(10, 19)), 8)
    result = engine(decoder, eos=()).generate([item])[0]
    assert result.counts["target"]["denoise"]["calls"] == 8
    model, ids = tiny_model("causal"), list(item.prompt_ids)
    for _ in range(8):
        length = len(ids)
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        with torch.inference_mode():
            logits = model.project(model.hidden(torch.tensor([ids]), mask=causal))[0, -1].tolist()
        ids.append(max((i for i in range(VOCABULARY) if i != MASK), key=logits.__getitem__))
    assert result.ids == ids[9:]


def test_generation_ends_at_the_first_eos_of_the_answer():
    items = requests(12, budget=40)
    free = engine(eos=(), batch_size=4).generate(items)
    eos = Counter(token for g in free for token in g.ids[5:30]).most_common(6)[-1][
        0
    ]  # a token that comes up now and then
    results = engine(eos=(eos,), batch_size=4).generate(items)
    ended = [(a, b) for a, b in zip(results, free) if a.stop_reason == "eos"]
    assert 0 < len(ended)
    for stopped, whole in ended:
        assert stopped.ids.index(eos) == len(stopped.ids) - 1 == stopped.tokens - 1
        assert whole.raw_ids[: len(stopped.raw_ids)] == stopped.raw_ids
    assert any(len(stopped.raw_ids) < len(whole.raw_ids) for stopped, whole in ended)


def test_an_eos_in_the_prompt_stops_nothing():
    item = Request("x", (10, EOS, 12, 13, EOS), 9)
    with_eos, without = engine().generate([item])[0], engine(eos=()).generate([item])[0]
    assert EOS not in without.raw_ids and with_eos.raw_ids == without.raw_ids and len(without.raw_ids) == 11


def test_budget_cuts_inside_the_last_block():
    result = engine(eos=()).generate([Request("x", (10, 11, 12, 13, 14), 6)])[0]
    assert (len(result.ids), len(result.raw_ids), result.tokens, result.stop_reason) == (6, 7, 6, "length")


@pytest.mark.parametrize("lag", [0, 1])
def test_stop_strings_cut_text_tokens_and_forwards(lag):
    free = engine(eos=(), tokenizer=Letters()).generate([Request("x", (10, 11), 30)])[0]
    stop = free.text[9:11]
    at = free.text.index(stop)
    items = [Request("x", (10, 11), 30, (stop,)), Request("y", (12, 13, 14), 30)]
    result = engine(eos=(), tokenizer=Letters(), lag=lag).generate(items)
    assert result[0].text == free.text[:at] and result[0].stop_reason == "stop"
    assert result[0].tokens == at + 2
    blocks = (2 + at + 1) // BLOCK + 1
    assert result[0].counts["target"]["denoise"]["calls"] == blocks * BLOCK - 2
    assert result[1].ids == engine(eos=()).generate([items[1]])[0].ids


def test_results_come_in_order_and_callbacks_as_items_finish():
    items = requests(9)
    finished = []
    results = engine(batch_size=4).generate(items, on_finish=lambda g: finished.append(g.key))
    assert [g.key for g in results] == [item.key for item in items]
    assert sorted(finished) == sorted(item.key for item in items) and finished != [item.key for item in items]
    heard = []
    assert engine(batch_size=4).generate(items, heard.append, keep=False) == [], "whoever listens has had them"
    assert sorted((one.key, one.ids) for one in heard) == sorted((one.key, one.ids) for one in results)


@pytest.mark.parametrize(
    "request_, words",
    [
        (Request("a", (), 4), "empty prompt"),
        (Request("a", (5, MASK), 4), "mask token"),
        (Request("a", (5, VOCABULARY), 4), "vocabulary"),
        (Request("a", (5,), 0), "at least 1"),
        (Request("a", (5,) * 250, 40), "positions"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(request_, words):
    with pytest.raises(RequestError, match=words):
        engine().generate([request_])


def test_static_k_reveals_k_and_the_mask_token_never_comes_out():
    result = engine(Static(StaticConfig(k=3)), eos=()).generate([Request("x", (10, 11, 12, 13), 8)], trace=True)[0]
    assert [len(step["positions"]) for step in result.trace] == [3, 1, 3, 1]
    assert MASK not in result.raw_ids


def test_calibration_prices_every_forward_that_was_met():
    machine = engine(Threshold(), batch_size=2)
    results = machine.generate(requests(4, budget=16))
    measured = machine.calibrate(repeats=3)
    prices = measured.prices
    assert {key for g in results for key in g.forward_counts} <= set(prices) and measured.seconds_per_denoise > 0
    assert prices[ForwardKey("target", "denoise", "4")] == 1.0 and all(price > 0 for price in prices.values())


def test_prices_are_timed_in_turns_with_the_plain_forward(monkeypatch):
    """A machine that becomes slower with every call: each ratio is of neighbours, so prices hardly move."""
    clock = count(100)

    class Drifting(calibrate.Timer):
        def __init__(self, once, device, least):
            once()

        def seconds(self):
            return float(next(clock))

    machine = engine(Threshold(), batch_size=2)
    machine.generate(requests(4, budget=16))
    monkeypatch.setattr(calibrate, "Timer", Drifting)
    measured = machine.calibrate()
    wide = ForwardKey("target", "denoise", "8")
    ratios = sorted((101 + 2 * n) / (100 + 2 * n) for n in range(12))
    assert measured.prices[wide] == pytest.approx((ratios[5] + ratios[6]) / 2, abs=1e-4)
    assert measured.spreads[wide] == pytest.approx((ratios[2], ratios[9]), abs=1e-4)
    assert measured.spreads.keys() == measured.prices.keys() - {ForwardKey("target", "denoise", "4")}


@pytest.mark.parametrize("decoder", [Static(), AR()], ids=["block-causal", "causal"])
def test_long_prompts_in_chunks_give_the_same_text(decoder, monkeypatch):
    items = [Request(str(n), tuple(10 + i % 70 for i in range(n)), 6) for n in (3, 40, 97)]
    whole = engine(decoder, eos=(), batch_size=3).generate(items)
    monkeypatch.setattr("dlmbench.backbone.network.PREFILL_CHUNK", 16)
    chunked = engine(decoder, eos=(), batch_size=3).generate(items)
    assert [g.raw_ids for g in chunked] == [g.raw_ids for g in whole]
    assert [g.counts for g in chunked] == [g.counts for g in whole]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9)], ids=["greedy", "sampled"])
def test_a_causal_network_without_a_mask_token_works_in_batches(sampling):
    items = requests(5)
    plain = engine(AR(), eos=(), sampling=sampling).generate(items)
    machine = engine(AR(), eos=(), sampling=sampling, batch_size=3)
    machine.target.config = machine.target.model.config = replace(machine.target.config, mask_id=None)
    results = machine.generate(items)
    assert [len(g.ids) for g in results] == [item.max_tokens for item in items]
    if sampling.greedy and MASK not in {token for g in results for token in g.ids}:  # all that may differ
        assert [g.ids for g in results] == [g.ids for g in plain]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("decoder", [Threshold, AR])
def test_a_long_prompt_does_not_stall_rows_under_way(monkeypatch, decoder, lag):
    rng = random.Random(3)
    sizes = ((6, 8), (6, 70), (60, 8), (50, 12), (6, 40), (55, 8))  # of a prompt and its answer
    items = [Request(f"{n}", tuple(rng.choices(range(4, VOCABULARY), k=n)), budget) for n, budget in sizes]
    expected = engine(decoder(), eos=()).generate(items)
    monkeypatch.setattr(network, "PREFILL_CHUNK", 16)
    machine, told = engine(decoder(), eos=(), batch_size=2, lag=lag), []
    for owner, name in ((machine.target, "_prefill_chunk"), (machine.step, "round")):
        plain = getattr(owner, name)
        setattr(owner, name, lambda *args, name=name, plain=plain: told.append(name) or plain(*args))
    results = machine.generate(items)
    assert [g.ids for g in results] == [g.ids for g in expected]
    assert [g.counts for g in results] == [g.counts for g in expected]
    chunks = [len(list(run)) for name, run in groupby(told) if name == "_prefill_chunk"]
    assert sum(chunks) > 10 and max(chunks) == 1  # each between two steps


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_out_of_memory_halves_the_batch_and_changes_nothing():
    items, finished = requests(9), []
    expected = engine(batch_size=8).generate(items)
    tight = engine(batch_size=8)
    launch = tight.step.launch

    def limited(*bounds):
        if tight.step.canvas.rows > 3 and len(finished) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")
        return launch(*bounds)

    tight.step.launch = limited
    results = tight.generate(items, on_finish=lambda g: finished.append(g.key))
    assert [g.raw_ids for g in results] == [g.raw_ids for g in expected]
    assert [g.counts for g in results] == [g.counts for g in expected]
    assert sorted(finished) == sorted(item.key for item in items)  # each once
    assert tight.batch_size == 2


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_memory_that_holds_no_single_row_is_said():
    tight = engine(batch_size=4)

    def never(*bounds):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")

    tight.step.launch = never
    with pytest.raises(RunError, match="single row .CUDA out of memory. Tried to allocate 2 GiB.: shorten"):
        tight.generate(requests(4))


def limited(name, kind, limit, block, shift=None):
    """An engine on tiny networks of at most `limit` positions."""
    decoder = DECODERS.get(name)()
    nets = testing.tiny_networks(decoder, kind)
    for net in nets.values():
        config = replace(net.config, max_positions=limit, shift=net.config.shift if shift is None else shift)
        net.model = net.model.__class__(config).requires_grad_(False).eval()
        net.config, net.block_length = config, block
    return Engine(nets, decoder, batch_size=2)


@pytest.mark.parametrize("limit", [100, 96])
@pytest.mark.parametrize(
    "name, kind, block, shift",
    [("threshold", "block_causal", 7, 0), ("threshold", "block_causal", 4, 0), ("ar", "causal", 1, 1),
     ("threshold", "full", 7, 0), ("threshold", "full", 7, 1), ("wino", "full", 7, 0)],
)  # fmt: skip
def test_answers_come_up_to_the_last_position_of_a_model(name, kind, block, shift, limit):
    sizes = ((limit - 1, 1), (3, limit - 3), (limit - 6, 6))  # of a prompt and its answer
    items = [Request(str(n), (20,) * n, budget) for n, budget in sizes]
    results = limited(name, kind, limit, block, shift).generate(items)
    assert [len(g.ids) for g in results if g.stop_reason == "length"] == [
        item.max_tokens for item, g in zip(items, results) if g.stop_reason == "length"
    ]
    with pytest.raises(RequestError, match=f"need {limit + 1} positions, the model has {limit}"):
        limited(name, kind, limit, block, shift).generate([Request("x", (20,) * limit, 1)])


def test_a_table_of_angles_that_grows_keeps_its_values_and_the_one_that_recorded_steps_read():
    model = tiny_model("block_causal")
    before = [table.clone() for table in model._rotation(torch.arange(200), torch.float32)]
    old = model._rope
    model.reserve(300)
    after = model._rotation(torch.arange(300), torch.float32)
    assert all(torch.equal(a, b[:200]) for a, b in zip(before, after)) and len(model._rope) == 300
    assert model._outgrown[0] is old
    model.reserve(250)
    assert len(model._rope) == 300


def broken(value, head):
    """A model whose logits are no numbers: a weight of a layer, or of the head, is `value`."""
    model = tiny_model("block_causal")
    weight = model.head.weight if head else model.layers[1].down.weight
    with torch.no_grad():
        weight[7, 3] = value
    return model


@pytest.mark.parametrize("head", [False, True], ids=["layer", "head"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize(
    "name, sampling",
    [("threshold", Sampling()), ("static", Sampling()), ("sequential", Sampling()), ("entropy", Sampling()),
     ("sequential", Sampling(temperature=1.0)), ("static", Sampling(temperature=1.0, top_p=0.9)),
     ("static", Sampling(confidence="truncated")), ("rcd", Sampling()), ("wino", Sampling())],
)  # fmt: skip
def test_logits_that_are_no_numbers_end_a_run_with_the_remedy(name, sampling, lag, value, head):
    decoder = DECODERS.get(name)()
    nets = {role: Network(role, broken(value, head), BLOCK) for role in decoder.needs(decoder.config, "block_causal")}
    machine = Engine(nets, decoder, batch_size=2, lag=lag, sampling=sampling)
    remedy = "item '[012]' in float32 are no numbers .*: float16 overflows, so take --dtype bfloat16 or float32"
    with pytest.raises(RunError, match=remedy):
        machine.generate(requests(3))


@pytest.mark.parametrize("options", ["verify=packed", "verify=replicated"])
def test_logits_of_a_draft_or_of_its_verifier_that_are_no_numbers_end_a_run(options):
    cls = DECODERS.get("simsd")
    for role in cls.roles:
        decoder = cls(testing.options_of(cls, options))
        nets = testing.tiny_networks(decoder, "block_causal")
        nets[role] = Network(role, broken(math.nan, False), BLOCK)
        with pytest.raises(RunError, match="are no numbers"):
            Engine(nets, decoder, batch_size=2).generate(requests(3))


@pytest.mark.parametrize("name, options", [("mrp", "mode=speculative"), ("mrp", "mode=direct"), ("guided", "")])
def test_logits_of_a_target_that_are_no_numbers_end_a_run_whoever_else_decides(name, options):
    cls = DECODERS.get(name)
    decoder = cls(testing.options_of(cls, options))
    nets = testing.tiny_networks(decoder, decoder.attention[0])
    with torch.no_grad():
        nets["target"].model.layers[1].down.weight[7, 3] = math.nan
    with pytest.raises(RunError, match="are no numbers"):
        Engine(nets, decoder, batch_size=2).generate(requests(3))


def test_a_step_leaves_no_logits_behind():
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing) is Candidates for thing in gc.get_objects())
        engine(Threshold(), batch_size=2).generate(requests(3))
        assert sum(type(thing) is Candidates for thing in gc.get_objects()) == before
    finally:
        gc.enable()


def test_a_row_of_nothing_but_minus_infinity_ends_a_run_and_single_ones_do_not(monkeypatch):
    def limit_logits(machine, seen):
        project = machine.target.model.project

        def projected(hidden):
            logits = project(hidden)
            logits[..., seen:] = float("-inf")
            return logits

        monkeypatch.setattr(machine.target.model, "project", projected)
        return machine

    for decoder in (Threshold, Static, AR):
        items = requests(3)
        results = limit_logits(engine(decoder(), eos=()), 60).generate(items)
        assert all(max(g.ids) < 60 for g in results)
        with pytest.raises(RunError, match="minus infinity for every token"):
            limit_logits(engine(decoder(), eos=()), 0).generate(items)


def test_a_slot_is_judged_anew_when_its_next_prompt_is_ready():
    machine = engine(batch_size=1)
    first = machine.generate(requests(2))
    with torch.inference_mode():
        machine.step.canvas.health.fill_(math.nan)  # what an empty slot has read is nobody's
    assert [g.ids for g in machine.generate(requests(2))] == [g.ids for g in first]


def test_pricing_takes_the_buffers_that_are_there_and_frees_those_that_are_too_small(monkeypatch):
    made = []

    class Noted(KVCache):
        def __init__(self, config, rows, capacity, *rest):
            made.append((rows, capacity))
            assert machine.target.cache is None
            super().__init__(config, rows, capacity, *rest)

    machine = engine(Threshold(), batch_size=3)
    expected = [g.ids for g in machine.generate(requests(6, budget=16))]
    monkeypatch.setattr(calibrate, "KVCache", Noted)
    machine.calibrate(repeats=1)
    assert made == [] and machine.target.cache is not None
    machine.batch_size = 5  # rows that the last call did not have
    machine.calibrate(repeats=1)
    assert made and machine.target.cache is None
    assert [g.ids for g in machine.generate(requests(6, budget=16))] == expected


@pytest.mark.parametrize("lag", [0, 1])
def test_many_long_prompts_are_encoded_some_rows_at_a_time(monkeypatch, lag):
    rng = random.Random(4)
    items = [Request(str(i), tuple(rng.choices(range(4, VOCABULARY), k=30)), 5 + i) for i in range(9)]
    expected = engine(eos=(), batch_size=9).generate(items)
    monkeypatch.setattr(network, "PREFILL_TOKENS", 100)
    machine, widths = engine(eos=(), batch_size=6, lag=lag), []
    chunk = machine.target._prefill_chunk
    machine.target._prefill_chunk = lambda rows, *rest: widths.append(len(rows)) or chunk(rows, *rest)
    results = machine.generate(items)
    assert max(widths) == 3 and sum(widths) == 9
    assert [g.ids for g in results] == [g.ids for g in expected]
    assert [g.counts for g in results] == [g.counts for g in expected]


def test_attention_on_cuda_is_left_to_a_kernel_that_takes_every_mask(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked.append)
    engine()
    assert asked == []
    attention.choose_kernels(torch.device("cuda:1"))
    monkeypatch.setattr(attention, "CUDNN", True)
    attention.choose_kernels(torch.device("cuda"))
    assert asked == [False, True]


def test_a_stop_string_that_is_the_eos_changes_nothing():
    sampling = Sampling(temperature=1.0)
    plain = engine(tokenizer=Marked(), sampling=sampling, batch_size=4).generate(requests(24, budget=40))
    named = engine(tokenizer=Marked(), sampling=sampling, batch_size=4).generate(requests(24, ("<e>",), budget=40))
    one, other = ([(g.ids, g.text, g.tokens, g.stop_reason) for g in found] for found in (plain, named))
    assert one == other
    assert not any("<e>" in generation.text for generation in plain)
    assert {generation.stop_reason for generation in plain} == {"eos", "length"}


def arriving(items, at_once=2, unwanted=()):
    """A source that brings some requests a step, gives up the numbers in `unwanted` and ends when all have come."""
    waiting = list(enumerate(items))

    def source(free, idle):
        come = [waiting.pop(0) for _ in range(min(free, at_once, len(waiting)))]
        return Arrivals(come, unwanted)

    return source


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("decoder", [Threshold(ThresholdConfig(tau=0.4)), Static()], ids=["threshold", "static"])
def test_requests_that_come_while_others_run_get_the_same_ids_and_counts(decoder, lag):
    items = requests(12)
    alone = engine(decoder).generate(items)
    found = {}
    engine(decoder, batch_size=3, lag=lag).serve(arriving(items), found.__setitem__, max_length=40, max_tokens=20)
    assert [found[i].ids for i in range(12)] == [g.ids for g in alone]
    assert [found[i].forward_counts for i in range(12)] == [g.forward_counts for g in alone]


@pytest.mark.parametrize("name", ["threshold", "simsd", "mrp", "prophet", "wino", "rcd", "daedal", "fastdllm2"])
def test_a_service_computes_about_as_many_rows_as_are_asked_for(name):
    """Waves of requests, the next when the last is nearly done: rows come and go, and no answer changes."""
    items, waves, found, rows = requests(24), [1, 8, 2, 8, 5], {}, []
    kind = DECODERS.get(name)
    attention = kind.attention[-1]

    def tiny(batch_size=1):
        return Engine(testing.tiny_networks(kind(), attention), kind(), batch_size=batch_size)

    alone, service = tiny().generate(items), tiny(8)
    waiting = list(enumerate(items))

    def source(free, idle):
        if service.scheduler:
            rows.append((len(service.scheduler.slots), 8 - free))
        if not idle and 8 - free > 1:
            return Arrivals([])
        wave = waves.pop(0) if waves else 0
        come, waiting[:] = waiting[: min(free, wave)], waiting[min(free, wave) :]
        return Arrivals(come)

    service.serve(source, found.__setitem__, max_length=40, max_tokens=20)
    assert all(found[i].ids == alone[i].ids for i in found) and len(found) >= 20
    assert all(found[i].counts == alone[i].counts for i in found)
    assert {computed for computed, _ in rows} >= {1, 8} and all(computed <= max(8, 2 * busy) for computed, busy in rows)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_row_that_nobody_waits_for_is_given_up_and_its_slot_serves_others(lag):
    items = requests(8)
    alone = engine().generate(items)
    found = {}
    service = engine(batch_size=2, lag=lag)
    service.serve(arriving(items, unwanted={1, 4}), found.__setitem__, max_length=40, max_tokens=20)
    assert sorted(found) == [0, 2, 3, 5, 6, 7]
    assert all(found[i].ids == alone[i].ids for i in found)


def test_a_service_refuses_what_its_buffers_do_not_hold():
    service = engine()
    for request, says in [
        (Request("x", (10,), 21), "at most 20"),
        (Request("x", (10,) * 30, 20), "40 are kept"),
        (Request("x", (), 4), "empty"),
    ]:
        with pytest.raises(RequestError, match=says):
            service.check(request, max_length=40, max_tokens=20)
