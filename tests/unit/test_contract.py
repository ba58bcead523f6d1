"""What passes between decoders, networks and the engine. pytest tests/unit/test_contract.py"""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from dlmbench.decoders import testing
from dlmbench.decoders.base import Decision, StepDecoder, Traits, top_n
from dlmbench.decoders.testing import BLOCK, EOS, MASK, conformance, random_requests, tiny_networks
from dlmbench.engine import Engine, Request
from dlmbench.forwards import ForwardKey
from dlmbench.registry import DECODERS
from dlmbench.verify.tape import Tape

LATER = 2  # forwards that look at a full block again


class Editing(StepDecoder):
    """Reveals two tokens a step and rewrites those that the network would choose otherwise by now; a full block is
    looked at again."""

    name = "editing"
    attention = ("block_causal", "full")

    def init_state(self, rows, capacity, width, device):
        return {"later": torch.zeros(rows, dtype=torch.long, device=device)}

    def round(self, view, nets):
        full = ~view.masked.any(1)
        forward = nets["target"].denoise(view, kind={"denoise": ~full, "edit": full})
        best = view.candidates(forward.logits)
        later = torch.where(view.fresh, 0, view.state["later"]) + full
        view.state["later"] = later
        replace = view.own & (best.tokens != view.tokens)
        reveal = top_n(best.log_odds, view.eligible, 2)
        return Decision(best.tokens, reveal, replace=replace, keep_block_open=later < LATER, planned_empty=full)


class Hasty(StepDecoder):
    """Ends a row with its second step."""

    name = "hasty"

    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        return Decision(best.tokens, top_n(best.log_odds, view.eligible, 1), finish=view.total_steps > 0)


def decode(decoder, requests, attention="block_causal", trace=False, **options):
    return Engine(tiny_networks(decoder, attention), decoder, **options).generate(requests, trace=trace)


@pytest.mark.parametrize("attention", Editing.attention)
def test_a_decision_may_rewrite_what_was_revealed_and_traces_show_it(attention):
    requests = random_requests(3)
    rewritten = 0
    for request, generation in zip(requests, decode(Editing(), requests, attention, trace=True, batch_size=3)):
        text = {}
        for step in generation.trace:
            text.update(zip(step["positions"], step["tokens"]))
            assert set(step["replaced"]["positions"]) <= text.keys() - set(step["positions"])  # not the prompt's
            rewritten += len(step["replaced"]["positions"])
            text.update(zip(step["replaced"]["positions"], step["replaced"]["tokens"]))
        first = len(request.prompt_ids)
        assert [text[first + i] for i in range(len(generation.raw_ids))] == generation.raw_ids
    assert rewritten > 10


def test_a_decoder_that_rewrites_keeps_the_promises_and_can_be_recorded():
    assert [finding for finding in conformance(Editing) if not finding.holds] == []
    requests = random_requests(3)
    networks = tiny_networks(Editing(), "block_causal")
    engine = Engine(networks, Editing(), batch_size=3, lag=1, graphs=Tape)
    recorded, plain = engine.generate(requests), decode(Editing(), requests, batch_size=3)
    assert engine.graphs.steps
    assert [(g.raw_ids, g.counts) for g in recorded] == [(g.raw_ids, g.counts) for g in plain]


def test_a_step_that_only_rewrites_is_not_idle():
    class Restless(StepDecoder):
        name = "restless"

        def decide(self, view, forward):
            best = view.candidates(forward.logits)
            reveal = view.eligible & (view.step == 0).unsqueeze(1)
            changed = torch.where(view.tokens == 20, 21, 20)
            tokens = torch.where(view.masked, best.tokens, changed)
            return Decision(tokens, reveal, replace=view.own, keep_block_open=view.step < 9)

    generation = decode(Restless(), [Request("a", (5,) * BLOCK, 4)], stall_limit=1)[0]
    assert set(generation.raw_ids) <= {20, 21}


@pytest.mark.parametrize("words", ["tokens that were given", "a token with the mask"])
def test_wrong_replacements_are_caught_with_a_sentence(words):
    class Wrong(Editing):
        def round(self, view, nets):
            decision = super().round(view, nets)
            if words == "a token with the mask":
                decision.tokens = torch.where(view.masked, decision.tokens, MASK)
            else:
                decision.replace = ~view.masked
            return decision

    details = [finding.detail for finding in conformance(Wrong) if not finding.holds]
    assert any(words in detail for detail in details), details


def test_forwards_are_counted_under_the_names_that_a_decoder_gives_them():
    requests = [Request("a", (5,) * BLOCK, 3 * BLOCK)]
    nets = tiny_networks(Editing(), "block_causal")
    nets["target"].config = replace(nets["target"].config, eos_ids=())
    generation = Engine(nets, Editing()).generate(requests)[0]
    kinds = {kind: work["calls"] for kind, work in generation.counts["target"].items()}
    assert kinds == {"prefill": 1, "denoise": 3 * BLOCK // 2, "edit": 3 * LATER}
    edits = {key: calls for key, calls in generation.forward_counts.items() if key.kind == "edit"}
    assert edits == {ForwardKey("target", "edit", str(BLOCK)): 3 * LATER}


def test_a_row_may_finish_with_masks_left():
    class Letters:
        def decode(self, ids, skip_special_tokens=True):
            assert MASK not in ids
            return "".join(chr(48 + i) for i in ids)

    decoder = Hasty()
    engine = Engine(tiny_networks(decoder, "block_causal"), decoder, Letters())
    for generation in engine.generate([Request(str(n), (n,) * BLOCK, 2 * BLOCK) for n in range(5, 10)]):
        at = generation.ids.index(MASK)
        assert generation.tokens == len(generation.text) == at
        assert generation.raw_ids[: len(generation.ids)] == generation.ids
        assert sum(token not in (MASK, EOS) for token in generation.ids) <= 2


def test_the_engine_asks_once_and_before_anything_else_what_a_decoder_is():
    asked = []

    class Asking(StepDecoder):
        name = "asking"

        def bind(self, nets, block_length):
            asked.append((sorted(nets), block_length))
            return Traits(lag=0, extra_slots=100)

        def decide(self, view, forward):
            best = view.candidates(forward.logits)
            return Decision(best.tokens, top_n(best.log_odds, view.eligible, 1))

    decoder = Asking()
    engine = Engine(tiny_networks(decoder, "block_causal", "meta"), decoder, graphs=True)
    assert asked == [(["target"], BLOCK)] and engine.lag == 0 and engine.graphs is None
    with pytest.raises(FrozenInstanceError):
        engine.traits.lag = 1


def test_a_warm_start_reads_flags_at_once_whatever_its_class_says():
    cls = DECODERS.get("rcd")
    for start, lag in (("warm", 0), ("cold", None)):
        decoder = cls(testing.options_of(cls, f"residual_init={start}"))
        assert testing.traits_of(decoder, "block_causal").lag == lag


def test_nothing_writes_into_a_view():
    class Writing(StepDecoder):
        name = "writing"

        def decide(self, view, forward):
            view.sampling = None

    with pytest.raises(FrozenInstanceError):
        decode(Writing(), random_requests(1, 1))


@torch.inference_mode()
def test_questions_change_nothing():
    machine = Engine(tiny_networks(Editing(), "block_causal"), Editing(), batch_size=4)
    machine.generate(random_requests(1, 4))
    net, canvas = machine.target, machine.step.canvas
    cache = net.cache
    cache.keep_rows(torch.tensor([1]))
    assert cache.fits(4, cache.capacity) and not cache.fits(3, cache.capacity)
    assert cache.leading(8)[0][0].shape[0] == 1  # still the one row that was kept
    net.waiting.update((0, 2))
    net.pending = torch.tensor([True, False, True, False])
    canvas.live[:] = True
    view = canvas.view({}, machine.sampling, 16, 16, [None] * 4, False)
    first, second = (
        (net._waiting(view).tolist(), [rows.tolist() for rows in net._paying(view, None)]) for _ in range(2)
    )
    assert first == second == ([0, 2], [[False, True, False, True], [True, False, True, False]])


def test_what_a_step_depends_on_is_chosen_before_it_is_recorded():
    """A canvas says from the start whether tokens may be given in advance; a run with other needs gets another one."""
    requests = random_requests(3, 3)
    given = [Request(r.key, r.prompt_ids, r.max_tokens, seed=r.seed, fixed=((1, 7), (2, 8))) for r in requests]
    static = DECODERS.get("static")
    decoder = static(testing.options_of(static, "steps=3,schedule=quota"))
    engine = Engine(tiny_networks(decoder, "block_causal"), decoder, batch_size=3, lag=1, graphs=Tape)
    for items in (requests, given, requests):
        recorded = engine.generate(items)
        assert engine.step.canvas.fixed == any(item.fixed for item in items)
        assert [g.raw_ids for g in recorded] == [g.raw_ids for g in decode(decoder, items, batch_size=3)]
    with pytest.raises(ValueError, match="given in advance"):
        engine.step.canvas.admit(0, [5, 6], 8, 0, ((1, 7),))


def test_a_forward_is_a_string_in_files_only():
    key = ForwardKey("target", "refresh", "row:8x2")
    assert str(key) == "target/refresh/row:8x2" and ForwardKey.parse(str(key)) == key
    for text in ("target/refresh", "target//8", "a/b/c/d", ""):
        with pytest.raises(ValueError, match="role/kind/shape"):
            ForwardKey.parse(text)
    with pytest.raises(TypeError):
        json.dumps({key: 1})
