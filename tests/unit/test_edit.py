"""Token editing against the release's loop in the plainest form, and the promises of its options.

pytest tests/unit/test_edit.py
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from dlmbench.backbone.attention import block_causal
from dlmbench.decoders.base import Decoder
from dlmbench.decoders.edit import Edit, EditConfig
from dlmbench.decoders.testing import BLOCK, EOS, MASK, conformance, random_requests, tiny_model, tiny_networks
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Generation, Request
from dlmbench.errors import RequestError
from dlmbench.verify.tape import Tape

ENDS = tuple(range(20, 45))  # frequent enough for random weights to end rows


def _decode(
    decoder: Decoder, requests: list[Request], ends: tuple[int, ...] = (EOS,), **options: object
) -> list[Generation]:
    nets = tiny_networks(decoder, "block_causal")
    nets["target"].config = replace(nets["target"].config, eos_ids=ends)
    return Engine(nets, decoder, batch_size=3, **options).generate(requests, trace=True)


def _by_hand(request: Request, config: EditConfig) -> tuple[list[int], dict[str, int]]:
    """LLaDA2.1's `generate` with SGLang's penalty: the whole row every time, no cache -> (ids, forwards by kind)."""
    model, prompt = tiny_model("block_causal"), list(request.prompt_ids)
    end = -(-(len(prompt) + request.max_tokens) // BLOCK) * BLOCK
    row, calls = torch.tensor(prompt + [MASK] * (end - len(prompt))), {"denoise": 0, "edit": 0}
    for start in range(len(prompt) // BLOCK * BLOCK, end, BLOCK):
        block, post = slice(start, start + BLOCK), 0
        while True:
            masked = row[block] == MASK
            if not masked.any():
                post += 1
                if post > config.max_post_steps:
                    break
            calls["denoise" if masked.any() else "edit"] += 1
            ids = row[None, : start + BLOCK]
            mask = block_causal(torch.arange(start + BLOCK)[None], BLOCK, torch.float32)
            with torch.no_grad():
                logits = model.project(model.hidden(ids, mask=mask))[0, block].clone()
            for i in range(1, BLOCK):
                logits[i, row[start + i - 1]] -= config.penalty
            proposals = logits.index_fill(1, torch.tensor([MASK]), float("-inf")).argmax(-1)
            sure = logits.softmax(-1).gather(1, proposals[:, None])[:, 0]
            fill = masked & (sure > config.threshold)
            if fill.sum() < config.least:
                best = sure.masked_fill(~masked, -1.0).topk(min(config.least, int(masked.sum()))).indices
                fill = torch.zeros_like(masked).index_fill(0, best, True)
            own = torch.arange(start, start + BLOCK) >= len(prompt)
            edit = ~masked & own & (proposals != row[block]) & (sure > config.edit_threshold)
            row[block] = torch.where(fill | edit, proposals, row[block])
            if not masked.any() and not edit.any():
                break
        if config.stop == "eos" and (row[len(prompt) : start + BLOCK] == EOS).any():
            return row[len(prompt) : start + BLOCK].tolist(), calls
    return row[len(prompt) :].tolist(), calls


SETTINGS = [
    EditConfig(),
    EditConfig(threshold=0.7, edit_threshold=0.5),
    EditConfig(threshold=0.5, edit_threshold=0.0, max_post_steps=5),
    EditConfig(threshold=0.3, edit_threshold=0.2, max_post_steps=1, least=2),
    EditConfig(threshold=0.6, edit_threshold=0.3, max_post_steps=0, stop="budget"),
    EditConfig(threshold=0.4, edit_threshold=0.1, max_post_steps=3, penalty=2.0, stop="budget"),
]


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_it_gives_the_ids_and_spends_the_forwards_of_the_plain_loop(config: EditConfig):
    requests = random_requests(4)
    for request, ours in zip(requests, _decode(Edit(config), requests)):
        ids, calls = _by_hand(request, config)
        assert ours.raw_ids == ids, request.key
        assert {kind: ours.counts["target"].get(kind, {}).get("calls", 0) for kind in calls} == calls, request.key


def test_tokens_are_rewritten_while_masks_are_left_and_behind_them():
    steps = [step for run in _decode(Edit(SETTINGS[2]), random_requests(4)) for step in run.trace]
    kinds = {(bool(step["replaced"]["positions"]), step["forwards"][0]["kind"]) for step in steps}
    assert kinds == set(itertools.product((False, True), ("denoise", "edit")))


def test_it_keeps_the_promises_of_a_decoder():
    assert [finding for finding in conformance(Edit) if not finding.holds] == []


def test_the_prompt_is_never_edited():
    requests = random_requests(8)
    for request, run in zip(requests, _decode(Edit(SETTINGS[2]), requests)):
        assert all(min(step["replaced"]["positions"], default=99) >= len(request.prompt_ids) for step in run.trace)


def test_a_threshold_that_nothing_passes_costs_one_forward_more_a_block():
    requests = random_requests(2)
    edited = _decode(Edit(EditConfig(threshold=0.6, edit_threshold=1.0)), requests)
    for plain, ours in zip(_decode(Threshold(ThresholdConfig(tau=0.6)), requests), edited):
        assert ours.raw_ids == plain.raw_ids
        blocks = len({step["block"] for step in ours.trace})
        assert ours.counts["target"]["edit"]["calls"] == blocks
        assert ours.counts["target"]["denoise"]["calls"] == plain.counts["target"]["denoise"]["calls"]


def test_an_editing_threshold_of_zero_means_all_or_off():
    requests = random_requests(2)
    everything, nothing = (
        _decode(Edit(EditConfig(threshold=0.6, edit_threshold=0.0, zero=zero)), requests) for zero in ("all", "off")
    )
    plain = _decode(Threshold(ThresholdConfig(tau=0.6)), requests)
    assert [run.raw_ids for run in nothing] == [run.raw_ids for run in plain]
    assert [run.raw_ids for run in everything] != [run.raw_ids for run in plain]
    assert sum(len(step["replaced"]["positions"]) for run in everything for step in run.trace) > 0


def test_a_row_may_decode_its_whole_budget_and_is_cut_behind_its_eos_all_the_same():
    requests = [Request(str(seed), (seed, seed + 1), 20) for seed in range(4, 20)]
    budget = _decode(Edit(EditConfig(threshold=0.3, edit_threshold=0.3, stop="budget")), requests, ENDS)
    ended = [run for run in budget if run.stop_reason == "eos" and len(run.ids) < 16]
    assert ended and all(len(run.raw_ids) >= 20 and run.ids[-1] in ENDS for run in ended)
    stopped = _decode(Edit(EditConfig(threshold=0.3, edit_threshold=0.3)), requests, ENDS)
    assert [run.ids for run in stopped] == [run.ids for run in budget]
    assert sum(len(run.trace) for run in stopped) < sum(len(run.trace) for run in budget)


def test_recorded_steps_edit_as_plain_ones_do():
    requests, decoder = random_requests(6), Edit(SETTINGS[1])
    engine = Engine(tiny_networks(decoder, "block_causal"), decoder, batch_size=3, lag=1, graphs=Tape)
    recorded, plain = engine.generate(requests), _decode(Edit(SETTINGS[1]), requests)
    assert engine.describe()["graphs"] == "recorded"
    assert [(run.raw_ids, run.counts) for run in recorded] == [(run.raw_ids, run.counts) for run in plain]


@pytest.mark.parametrize("wrong", [{"max_post_steps": -1}, {"least": 0}])
def test_options_without_a_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="at least"):
        EditConfig(**wrong)


# --- threshold's early end --------------------------------------------------------------------------------------------


def test_a_row_may_end_in_the_step_that_reveals_its_eos_with_masks_behind_it():
    requests = [Request(str(seed), (seed, seed + 1), 20) for seed in range(4, 60)]
    early = _decode(Threshold(ThresholdConfig(tau=0.5, early_eos=True)), requests, ENDS)
    late = _decode(Threshold(ThresholdConfig(tau=0.5)), requests, ENDS)
    assert [run.ids for run in early] == [run.ids for run in late]
    spared = [sum(len(run.trace) for run in runs) for runs in (late, early)]
    assert spared[1] < spared[0] and any(MASK in run.raw_ids for run in early)
    for run in early:
        if MASK in run.raw_ids:
            first = next(i for i, token in enumerate(run.raw_ids) if token in ENDS)
            assert MASK not in run.raw_ids[:first] and set(ENDS) & set(run.trace[-1]["tokens"])


def test_an_early_end_is_refused_where_no_eos_ends_a_row():
    decoder = Threshold(ThresholdConfig(early_eos=True))
    with pytest.raises(RequestError, match="early_eos is for block-causal"):
        Engine(tiny_networks(decoder, "full"), decoder)
