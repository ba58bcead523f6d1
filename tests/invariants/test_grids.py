"""Where block-causal blocks lie, and heads that stay shifted: what is decoded with a cache equals plain forwards over
whole rows. Run: pytest tests/invariants/test_grids.py"""

import pytest
import torch

from dlmbench.backbone.anchored import AnchoredNetwork
from dlmbench.backbone.attention import visible
from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.model import Transformer
from dlmbench.backbone.network import Network
from dlmbench.decoders.fastdllm2 import FastDLLM2, FastDLLM2Config
from dlmbench.decoders.static import Static, StaticConfig, linear_quota
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Request

MASK, EOS, VOCABULARY, BLOCK = 3, 1, 61, 8
PROMPTS = [tuple(range(10, 10 + n)) for n in (1, 5, 8, 13, 16, 21)]


def model(grid="origin", shift=0, eos=(EOS,)):
    config = BackboneConfig(
        family="sdar", vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
        intermediate_size=48, mask_id=MASK, eos_ids=eos, max_positions=256, grid=grid, shift=shift,
    )  # fmt: skip
    network = Transformer(config).init_weights(7)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() == 2:
                weight.mul_(8.0 if name == "head.weight" else 5.0)
    return network.requires_grad_(False).eval()


def generate(network, decoder, prompts, tokens=18, batch=1, store="fused", kind=Network):
    engine = Engine({"target": kind("target", network, BLOCK, store)}, decoder, batch_size=batch)
    requests = [Request(str(i), prompt, tokens) for i, prompt in enumerate(prompts)]
    return [one.raw_ids for one in engine.generate(requests)]


def logits_of(network, ids, blocks, keys=None):
    """Rows of a plain forward over `ids` in which a position sees its own and earlier `blocks`, or the `keys` given."""
    seen = blocks.unsqueeze(0) <= blocks.unsqueeze(1) if keys is None else keys
    bias = visible(seen.unsqueeze(0).unsqueeze(1), torch.float32)
    with torch.inference_mode():
        positions = torch.arange(len(ids)).unsqueeze(0)
        logits = network.project(network.hidden(torch.tensor([ids]), positions, bias))[0]
    return logits.clone()


def best_of(logits, masked):
    """The masked position of highest confidence and its token."""
    logits = logits.clone()
    probabilities = logits.softmax(-1)
    probabilities[:, MASK] = 0
    confidence, token = probabilities.max(-1)
    confidence[~masked] = -1
    return int(confidence.argmax()), int(token[confidence.argmax()])


def reference(network, prompt, tokens, grid):
    """One token a step, without a cache."""
    ids = list(prompt)
    offset = -len(prompt) % BLOCK if grid == "prompt" else 0
    start = len(prompt) if grid == "prompt" else len(prompt) // BLOCK * BLOCK
    end = {
        "origin": -(-(len(prompt) + tokens) // BLOCK) * BLOCK,
        "split": start + -(-tokens // BLOCK) * BLOCK,
    }.get(grid, len(prompt) + tokens)
    while start < end:
        stop = min(start + BLOCK, end)
        ids += [MASK] * (stop - len(ids))
        while MASK in ids:
            places = torch.arange(stop)
            blocks, keys = (places + offset) // BLOCK, None
            if grid == "split" and start < len(prompt):  # the tail does not see the answer yet
                keys = (blocks.unsqueeze(0) <= blocks.unsqueeze(1)) & ~(
                    (places >= len(prompt)) & (places < len(prompt)).unsqueeze(1)
                )
            masked = torch.tensor([token == MASK for token in ids])
            place, token = best_of(logits_of(network, ids, blocks, keys), masked)
            ids[place] = token
        if EOS in ids[max(start, len(prompt)) :]:
            break
        start = stop
    return ids[len(prompt) :]


@pytest.mark.parametrize("grid", ["origin", "cut", "prompt", "split"])
def test_a_cached_answer_is_that_of_plain_forwards_with_the_same_grid(grid):
    network = model(grid)
    expected = [reference(network, prompt, 18, grid) for prompt in PROMPTS]
    for store in ("fused", "separate"):
        assert generate(network, Static(StaticConfig(k=1)), PROMPTS, store=store) == expected
    assert generate(network, Static(StaticConfig(k=1)), PROMPTS, batch=4) == expected


@pytest.mark.parametrize("grid", ["prompt", "split"])
def test_a_long_prompt_is_encoded_in_chunks_on_its_own_grid(grid, monkeypatch):
    network, prompts = model(grid), [tuple(4 + i * i % 50 for i in range(n)) for n in (37, 50)]
    whole = generate(network, Threshold(ThresholdConfig(tau=0.5)), prompts, batch=2)
    monkeypatch.setattr("dlmbench.backbone.network.PREFILL_CHUNK", 16)
    assert generate(network, Threshold(ThresholdConfig(tau=0.5)), prompts, batch=2) == whole


def test_grids_agree_where_prompt_and_answer_end_with_a_block():
    prompts = [prompt for prompt in PROMPTS if len(prompt) % BLOCK == 0]
    answers = [
        generate(model(grid), Static(StaticConfig(k=2)), prompts, tokens=16)
        for grid in ("origin", "cut", "prompt", "split")
    ]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("n", [1, 5, 8, 16])
@pytest.mark.parametrize("steps", [1, 3, 8, 40])
def test_the_linear_schedule_spends_every_mask_and_runs_no_empty_step(n, steps):
    due = linear_quota(n, steps, torch.device("cpu"))[n].tolist()
    used = [k for k in due if k]
    assert sum(due) == n and due == used + [0] * (steps - len(used)) and len(used) <= min(n, steps)


# --- heads that predict the next position -----------------------------------------------------------------------------


def anchored_reference(network, prompt, tokens):
    """Threshold above 1: one token a forward, plain forwards over the whole row; position i is predicted at i - 1."""
    ids, end = list(prompt), -(-(len(prompt) + tokens) // BLOCK) * BLOCK
    start = len(prompt) // BLOCK * BLOCK
    while start < end:
        if len(ids) == start:
            rows = logits_of(network, ids, torch.arange(len(ids)) // BLOCK)
            rows[:, MASK] = float("-inf")
            ids.append(int(rows[-1].argmax()))
        ids += [MASK] * (start + BLOCK - len(ids))
        while MASK in ids:
            rows = logits_of(network, ids, torch.arange(len(ids)) // BLOCK)
            masked = torch.tensor([token == MASK for token in ids])
            part = ids.index(MASK) // 4 * 4
            masked &= (torch.arange(len(ids)) >= part) & (torch.arange(len(ids)) < part + 4)
            place, token = best_of(torch.cat([rows[:1], rows[:-1]]), masked)
            ids[place] = token
        start += BLOCK
    return ids[len(prompt) :]


def test_a_shifted_head_decodes_as_plain_forwards_do():
    network = model(shift=1, eos=())
    decoder = FastDLLM2(FastDLLM2Config(tau=1.0, sub_block=4))
    expected = [anchored_reference(network, prompt, 18) for prompt in PROMPTS]
    assert generate(network, decoder, PROMPTS, kind=AnchoredNetwork) == expected
    assert generate(network, decoder, PROMPTS, batch=4, kind=AnchoredNetwork) == expected


def test_a_sub_block_as_wide_as_the_block_makes_the_block_cache_exact():
    network = model(shift=1)
    answers = [
        generate(network, FastDLLM2(FastDLLM2Config(0.4, BLOCK, cache)), PROMPTS, batch=3, kind=AnchoredNetwork)
        for cache in (False, True)
    ]
    assert answers[0] == answers[1]


def test_at_threshold_one_a_block_costs_its_unknown_positions_and_one_store():
    engine = Engine(
        {"target": AnchoredNetwork("target", model(shift=1, eos=()), BLOCK)}, FastDLLM2(FastDLLM2Config(tau=1.0))
    )
    (run,) = engine.generate([Request("a", tuple(range(10, 18)), 3 * BLOCK)])
    calls = {kind: work["calls"] for kind, work in run.counts["target"].items()}
    assert calls == {"prefill": 1, "denoise": 3 * (BLOCK - 1), "store": 2}, "the last block is not stored"


@pytest.mark.parametrize("stop", ["early", "block"])
def test_a_stop_token_ends_a_row_and_the_answer_up_to_it_is_the_same(stop):
    network = model(shift=1)
    free = generate(
        model(shift=1, eos=()), FastDLLM2(FastDLLM2Config(tau=0.4, stop="block")), PROMPTS, kind=AnchoredNetwork
    )
    ours = generate(network, FastDLLM2(FastDLLM2Config(tau=0.4, stop=stop)), PROMPTS, kind=AnchoredNetwork)
    for row, whole in zip(ours, free):
        end = row.index(EOS) if EOS in row else len(row)
        assert row[:end] == whole[:end]
