"""What ADJUST promises, on tiny random weights. pytest tests/invariants/test_adjust.py"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.decoders.adjust import Adjust, AdjustConfig, due, most
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.testing import BLOCK, MASK, random_requests, tiny_model
from dlmbench.engine import Engine
from dlmbench.errors import RequestError
from dlmbench.heads.adjust import AdjustModule, load_module, save_module
from dlmbench.heads.adjust_network import AdjustHead

SCHEDULES = ("exact_k", "dream")


def backbone(shift=0):
    model = tiny_model("full")
    model.config = replace(model.config, shift=shift)
    return model


def run(config, *, shift=0, module=None, block=BLOCK, items=None, decoder=Adjust, **options):
    model = backbone(shift)
    target = Bidirectional("target", model, block)
    nets = {"target": target}
    if issubclass(decoder, Adjust):
        nets["head"] = AdjustHead((module or AdjustModule(model).init_random()).eval(), target)
    return Engine(nets, decoder(config), **options).generate(items or random_requests(4), trace=True)


def calls(run, role):
    return sum(work["calls"] for work in run.counts.get(role, {}).values())


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_p=0.9)], ids=["greedy", "sampled"])
def test_one_token_a_step_is_static_by_entropy_without_any_pass(shift, sampling):
    ours = run(AdjustConfig(K=1), shift=shift, sampling=sampling, batch_size=3)
    theirs = run(StaticConfig(order="entropy"), shift=shift, decoder=Static, sampling=sampling, batch_size=3)
    assert [a.raw_ids for a in ours] == [b.raw_ids for b in theirs]
    assert all(calls(a, "head") == 0 and calls(a, "target") == calls(b, "target") for a, b in zip(ours, theirs))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_sampler_that_moves_nothing_leaves_the_marginals(schedule):
    still = AdjustModule(backbone()).init_random()
    with torch.no_grad():
        still.norm_postattn.zero_()
    config = AdjustConfig(K=3, schedule=schedule)
    ours, marginals = run(config, module=still), run(replace(config, use_marginals=True))
    assert [a.trace for a in ours] != [b.trace for b in marginals]  # the passes stand in the trace
    assert [[(s["positions"], s["tokens"]) for s in a.trace] for a in ours] == [
        [(s["positions"], s["tokens"]) for s in b.trace] for b in marginals
    ]
    assert [a.raw_ids for a in ours] != [b.raw_ids for b in run(config)]
    assert all(calls(b, "head") == 0 for b in marginals)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("block", [BLOCK, 22])
def test_every_position_once_and_as_many_passes_as_draws_after_the_first(schedule, block):
    for item, ours in zip(random_requests(4), run(AdjustConfig(K=3, schedule=schedule), block=block, batch_size=3)):
        drawn = [position for step in ours.trace for position in step["positions"]]
        prompt = len(item.prompt_ids)
        assert sorted(drawn) == list(range(prompt, prompt + item.max_tokens))
        assert MASK not in ours.raw_ids
        assert calls(ours, "head") == len(drawn) - sum(1 for step in ours.trace if step["positions"])
        assert calls(ours, "target") == len(ours.trace)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_p=0.9)], ids=["greedy", "sampled"])
def test_a_batch_gives_what_singles_give(schedule, sampling):
    config = AdjustConfig(K=3, schedule=schedule)
    singles = [run(config, items=[item], sampling=sampling)[0] for item in random_requests(4)]
    for options in ({"batch_size": 3}, {"batch_size": 7}, {"batch_size": 3, "lag": 1}):
        together = run(config, sampling=sampling, **options)
        assert [a.raw_ids for a in together] == [b.raw_ids for b in singles]
        assert [a.counts for a in together] == [b.counts for b in singles]


class Swapping(Adjust):
    """Shows the sampler another first token than the one that was drawn."""

    def round(self, view, nets):
        head = nets["head"]

        class Head:
            def step(self, view, tokens, states, active):
                return head.step(view, torch.where(tokens != view.tokens, 11, tokens), states, active)

        return super().round(view, {**nets, "head": Head()})


def test_later_draws_see_earlier_tokens():
    ours, swapped = run(AdjustConfig(K=4)), run(AdjustConfig(K=4), decoder=Swapping)
    first = [(a.trace[0], b.trace[0]) for a, b in zip(ours, swapped)]
    assert all(a["positions"][0] == b["positions"][0] and a["tokens"][0] == b["tokens"][0] for a, b in first)
    assert any((a["positions"], a["tokens"]) != (b["positions"], b["tokens"]) for a, b in first)


def test_suppressed_ids_are_never_proposed():
    frequent = Counter(token for a in run(AdjustConfig(K=3)) for token in a.raw_ids).most_common(1)[0][0]
    for schedule in SCHEDULES:
        config = AdjustConfig(K=3, schedule=schedule, suppress=(frequent,))
        assert all(frequent not in a.raw_ids for a in run(config))


@pytest.mark.parametrize("length", [1, 2, 7, 20, 24])
@pytest.mark.parametrize("K, steps", [(1, 0), (2, 0), (4, 0), (4, 6), (1, 30)])
def test_the_bound_on_draws_holds_for_every_number_of_masks(length, K, steps):
    table = most(length, K, steps, 1e-3)
    for masks in range(1, length + 1):
        left, total = torch.tensor([masks]), torch.tensor([steps or -(-masks // K)])
        for i in range(int(total)):
            n = due(left, torch.tensor([i]), total, 1e-3)
            assert int(n) <= table[i]
            left = left - n
        assert int(left) == 0


def test_the_schedules_of_the_card():
    def of(masks, steps):
        left, table = torch.tensor([masks]), []
        for i in range(steps):
            table.append(int(due(left, torch.tensor([i]), torch.tensor([steps]), 1e-3)))
            left = left - table[-1]
        return table

    assert of(24, 6) == [3, 4, 4, 4, 4, 5]
    assert of(8, 8) == [0, 1, 1, 1, 1, 1, 1, 2]


def test_files_keep_a_sampler_and_refuse_another_backbone(tmp_path):
    model = backbone()
    model.config = replace(model.config, family="sdar")  # whose names cover all of the tiny network's tensors
    module = AdjustModule(model).init_random(3)
    save_module(module, tmp_path, "abc", torch.float32)
    loaded = load_module(tmp_path, model, "abc")
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), loaded.state_dict().values()))
    assert sum(p.numel() for p in module.parameters()) == module.config.parameters
    with pytest.raises(RequestError, match="trained on backbone weights abc, the model has def"):
        load_module(tmp_path, model, "def")
    tensors = load_file(tmp_path / "model.safetensors")
    beside = {**tensors, "model.layers.0.mlp.up_proj.weight": torch.zeros(2)}  # a Lightning file holds its base model
    save_file(beside, tmp_path / "model.safetensors")
    load_module(tmp_path, model, "abc")
    (tmp_path / "config.json").write_text('{"disable_attn": true}')
    with pytest.raises(RequestError, match="disable_attn"):
        load_module(tmp_path, model)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match="holds no ADJUST sampler"):
        load_module(tmp_path, model)
