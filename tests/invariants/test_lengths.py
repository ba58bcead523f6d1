"""Promises of decoders whose rows have ends of their own. pytest tests/invariants/test_lengths.py"""

from dataclasses import replace

import pytest
import torch

from dlmbench.backbone.bidirectional import Bidirectional, CachePolicy
from dlmbench.decoders.adablock import AdaBlock, AdaBlockConfig
from dlmbench.decoders.d2f import D2F, D2FConfig
from dlmbench.decoders.daedal import Daedal, DaedalConfig
from dlmbench.decoders.lopa import LoPA, LoPAConfig
from dlmbench.decoders.testing import MASK, random_requests, tiny_model
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Request
from dlmbench.errors import RequestError
from dlmbench.models.presets import PRESETS

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


# --- daedal -----------------------------------------------------------------------------------------------------------

GROWS = DaedalConfig(0.4, 0.15, initial=6, expansion=3, enough=0.05, ending=0.8, checked=4)
LONGER = [replace(item, max_tokens=item.max_tokens + 14) for item in ITEMS[2:6]]
EOS = 80  # which this model expects now and then


def ending_model():
    model = tiny_model("full")
    model.config = replace(model.config, eos_ids=(EOS,))
    return model


def grown(config, items=LONGER, **options):
    network = Bidirectional("target", ending_model(), BLOCK)
    return Engine({"target": network}, Daedal(config), **options).generate(items, trace=True)


def by_hand(model, item, config):
    """The rule in lists, one row: ids of the answer and the number of forwards."""
    prompt, budget, checked = list(item.prompt_ids), item.max_tokens, config.checked

    def look(answer):
        share = model.project(model.hidden(torch.tensor([prompt + answer]))).float().softmax(-1)[0, len(prompt) :]
        is_eos = share.argmax(-1) == EOS
        end = sum([float(one[EOS]) for one, yes in zip(share.flip(0), is_eos.flip(0)) if yes][:checked]) / checked
        share[:, MASK] = -1.0
        return share.max(-1), end

    answer, calls = [MASK] * min(config.initial, budget), 0
    while True:
        (_, end), calls = look(answer), calls + 1
        if end >= config.enough or len(answer) >= budget:
            break
        answer = (answer + [MASK] * config.expansion)[:budget]
    answer = (answer + [EOS] * (checked // 2))[:budget]
    while MASK in answer:
        ((confidence, tokens), end), calls = look(answer), calls + 1
        first = answer.index(MASK) // BLOCK * BLOCK
        masks = [i for i in range(first, min(first + BLOCK, len(answer))) if answer[i] == MASK]
        fill = [i for i in masks if confidence[i] > config.tau] or [max(masks, key=lambda i: confidence[i])]
        weak = [i for i in masks if i not in fill and confidence[i] < config.low]
        grows = weak and end < config.ending and len(answer) < budget
        for i in fill:
            answer[i] = int(tokens[i])
        if grows:
            at = min(weak, key=lambda i: confidence[i])
            answer = (answer[:at] + [MASK] * config.expansion + answer[at + 1 :])[:budget]
    return answer, calls


@torch.inference_mode()
@pytest.mark.parametrize("late", [0, 1])
def test_answers_grow_as_the_rule_says_row_by_row(late):
    generations = grown(GROWS, batch_size=3, lag=late)
    expected = [by_hand(ending_model(), item, GROWS) for item in LONGER]
    assert [(g.raw_ids, len(g.trace)) for g in generations] == expected
    kinds = [{kind: work["calls"] for kind, work in g.counts["target"].items()} for g in generations]
    assert len({one["estimate"] for one in kinds}) > 1
    assert sum(max(step["extra"]["inserted"]) >= 0 for g in generations for step in g.trace) > 2


def test_a_trace_of_a_growing_answer_leads_to_its_ids():
    for item, generation in zip(LONGER, grown(GROWS)):
        known = {}
        for step in generation.trace:
            for position in step["remasked"]:
                del known[position]
            known |= dict(zip(step["positions"], step["tokens"]))
            known |= dict(zip(*step.get("replaced", {"positions": (), "tokens": ()}).values()))
        prompt = len(item.prompt_ids)
        assert [known.pop(prompt + i) for i in range(len(generation.raw_ids))] == generation.raw_ids and not known


@pytest.mark.parametrize(
    "config, sizing, length",
    [
        (replace(GROWS, enough=0.0, low=0.0), 1, 8),  # the first length and the tail of EOS
        (replace(GROWS, enough=0.0, ending=0.0), 1, 8),
        (replace(GROWS, enough=1.1), 6, 20),
    ],
)
def test_sizes_follow_the_bounds(config, sizing, length):
    item = Request("x", (10, 11, 12), 20)
    generation = grown(config, [item])[0]
    assert len(generation.raw_ids) == length
    assert generation.counts["target"]["estimate"]["calls"] == sizing


@pytest.mark.parametrize("decoder", [Daedal, D2F, LoPA])
def test_nothing_is_fixed_in_an_answer_that_grows(decoder):
    with pytest.raises(RequestError, match=f"{decoder.name} lets answers grow.*leave sampling.constraint out"):
        decoder.on_task(decoder.Config(), "full", {"window": 3}, True)
    with pytest.raises(ValueError, match="given in advance"):
        network = Bidirectional("target", tiny_model("full"), BLOCK)
        Engine({"target": network}, decoder()).generate([Request("x", (10, 11), 8, fixed=((1, 7),))])


# --- d2f --------------------------------------------------------------------------------------------------------------


def forced_by_hand(model, item, config):
    """D2F's rule in lists, without a cache: ids of the answer and how many blocks were open in each forward."""
    prompt, shift = list(item.prompt_ids), model.config.shift
    answer, opened, ended = [MASK] * min(BLOCK, item.max_tokens), [], False
    while MASK in answer:
        opened.append(-(-len(answer) // BLOCK))
        ids = torch.tensor([prompt + answer])
        block = torch.tensor([0] * len(prompt) + [1 + i // BLOCK for i in range(len(answer))])
        hidden = model.hidden(ids, mask=(block.unsqueeze(0) <= block.unsqueeze(1)).view(1, 1, len(block), -1))
        share = model.project(hidden).float().softmax(-1)[0, len(prompt) - shift : ids.shape[1] - shift]
        share[:, MASK] = -1.0
        confidence, tokens = share.max(-1)
        parts = [answer[i : i + BLOCK] for i in range(0, len(answer), BLOCK)]
        filled = [1.0] + [1 - part.count(MASK) / len(part) for part in parts]
        for number, part in enumerate(parts):
            masks = [number * BLOCK + i for i, token in enumerate(part) if token == MASK]
            fill = [i for i in masks if confidence[i] > config.tau]
            if masks and not fill and filled[number] >= config.full:
                fill = [max(masks, key=lambda i: confidence[i])]
            for i in fill:
                answer[i] = int(tokens[i])
        ended = EOS in answer
        last = answer[(len(answer) - 1) // BLOCK * BLOCK :]
        if not ended and 1 - last.count(MASK) / len(last) >= config.gate:
            answer = (answer + [MASK] * BLOCK)[: item.max_tokens]
    return answer, opened


@torch.inference_mode()
@pytest.mark.parametrize(
    "config, shift, late",
    [
        (D2FConfig(0.4, 0.2, 0.7), 0, 0),
        (D2FConfig(0.4, 0.2, 0.7), 1, 1),
        (D2FConfig(0.9, 0.0, 0.0), 1, 0),
        (D2FConfig(0.6, 1.0, 1.0), 1, 0),
    ],
)
def test_stored_blocks_are_exact(config, shift, late):
    model = tiny_model("full", shift=shift)
    model.config = replace(model.config, eos_ids=(EOS,))
    engine = Engine({"target": Bidirectional("target", model, BLOCK)}, D2F(config), batch_size=3, lag=late)
    generations = engine.generate(LONGER, trace=True)
    ours = [(g.raw_ids, [step["extra"]["open_blocks"] for step in g.trace]) for g in generations]
    assert ours == [forced_by_hand(model, item, config) for item in LONGER]
    for item, generation, (_, opened) in zip(LONGER, generations, ours):
        queries = [step["forwards"][0]["query_tokens"] for step in generation.trace]
        assert queries[0] == len(item.prompt_ids) + BLOCK
        assert all(tokens <= number * BLOCK + shift for tokens, number in zip(queries[1:], opened[1:]))
        if config.gate == 1.0:
            assert max(queries[1:]) <= 2 * BLOCK + shift


# --- lopa -------------------------------------------------------------------------------------------------------------


def branched_by_hand(model, item, config):
    """LoPA's rule in lists, without a cache: ids of the answer, and of every round (extras, winner)."""
    prompt, shift = list(item.prompt_ids), model.config.shift

    def look(answer):
        ids = torch.tensor([prompt + answer])
        block = torch.tensor([0] * len(prompt) + [1 + i // BLOCK for i in range(len(answer))])
        hidden = model.hidden(ids, mask=(block.unsqueeze(0) <= block.unsqueeze(1)).view(1, 1, len(block), -1))
        share = model.project(hidden).float().softmax(-1)[0, len(prompt) - shift : ids.shape[1] - shift]
        share[:, MASK] = -1.0
        confidence, tokens = (one.tolist() for one in share.max(-1))
        return confidence, tokens

    def opened(answer):
        last = answer[(len(answer) - 1) // BLOCK * BLOCK :]
        grows = EOS not in answer and 1 - last.count(MASK) / len(last) >= config.gate
        return (answer + [MASK] * BLOCK * grows)[: item.max_tokens]

    def score(answer, confidence, creation):
        masks = sorted(confidence[i] for i, token in enumerate(answer) if token == MASK)
        least = masks[: max(1, int(len(masks) * config.lowest))]
        return config.alpha * creation + (1 - config.alpha) * (sum(least) / len(least) if masks else 1.0)

    base, extras, rounds = [MASK] * min(BLOCK, item.max_tokens), [], []
    canvas = base
    while MASK in canvas:
        branches = [(at, sure, opened([*base[:at], token, *base[at + 1 :]])) for at, token, sure in extras]
        branches.append((-1, 1.0, canvas))
        looks = [look(answer) for _, _, answer in branches]
        scores = [score(answer, seen[0], sure) for (_, sure, answer), seen in zip(branches, looks)]
        number = scores.index(max(scores))
        (winner, _, before), (confidence, tokens) = branches[number], looks[number]
        rounds.append(([at for at, *_ in extras], winner))
        base = list(before)
        for start in range(0, len(base), BLOCK):
            masks = [i for i in range(start, min(start + BLOCK, len(base))) if before[i] == MASK]
            fill = [i for i in masks if confidence[i] > config.tau]
            if masks and not fill and 1 - before[max(start - BLOCK, 0) : start].count(MASK) / BLOCK >= config.full:
                fill = [max(masks, key=lambda i: confidence[i])]
            for i in fill:
                base[i] = tokens[i]
        left = sorted((i for i, token in enumerate(base) if token == MASK), key=lambda i: -confidence[i])
        extras = [(i, tokens[i], confidence[i]) for i in left[: config.branches]]
        canvas = opened(base)
    return canvas, rounds


@torch.inference_mode()
@pytest.mark.parametrize(
    "config, shift, late",
    [
        (LoPAConfig(0.6, 0.2, 0.7, 2), 0, 0),
        (LoPAConfig(0.6, 0.2, 0.7, 2), 1, 1),
        (LoPAConfig(0.9, 0.5, 0.9, 4, 0.5, 0.5), 1, 0),
        (LoPAConfig(0.9, 0.0, 0.0, 3, 0.2, 0.3), 0, 0),
    ],
)
def test_branches_are_computed_as_if_each_stood_alone(config, shift, late):
    model = tiny_model("full", shift=shift)
    model.config = replace(model.config, eos_ids=(EOS,))
    engine = Engine({"target": Bidirectional("target", model, BLOCK)}, LoPA(config), batch_size=3, lag=late)
    generations = engine.generate(LONGER, trace=True)
    expected = [branched_by_hand(model, item, config) for item in LONGER]
    for item, generation, (answer, rounds) in zip(LONGER, generations, expected):
        shown = [step["extra"] for step in generation.trace]
        prompt = len(item.prompt_ids)
        ours = [([p - prompt for p in s["branches"] if p >= 0], max(s["winner"] - prompt, -1)) for s in shown]
        assert (generation.raw_ids, ours) == (answer, rounds)
        assert generation.proposed == sum(len(extras) for extras, _ in rounds)
        assert sum(generation.accepted) == sum(winner >= 0 for _, winner in rounds)
        assert sum(work["calls"] for work in generation.counts["target"].values()) == len(rounds)
    assert any(sum(generation.accepted) for generation in generations)


def test_what_a_forward_costs_is_told_in_forwards_of_rows_that_do_not_grow():
    item = Request("x", (10, 11, 12), 40)
    engine = Engine(
        {"target": Bidirectional("target", ending_model(), BLOCK)}, Daedal(replace(GROWS, enough=0.0, low=0.0))
    )
    engine.generate([item])
    assert engine.step.budgets / engine.step.finished == 43
    prices = engine.calibrate(1).prices
    assert {key.shape for key in prices} == {"row:all"} and {key.kind for key in prices} == {"estimate", "refresh"}


def test_delimiters_are_those_of_the_model_or_asked_for():
    with pytest.raises(RequestError, match="adablock.delimiters=198"):
        AdaBlock.on_task(AdaBlockConfig(), "full", None, False)
    known = {
        name: preset.settings["adablock"]["delimiters"]
        for name, preset in PRESETS.items()
        if preset.family in ("llada", "dream")
    }
    assert (
        known["llada-8b-instruct"] == [198] and known["dream-7b-base"] == [198, 271] and known["nano2-llada"] == [202]
    )
