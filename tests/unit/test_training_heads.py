"""Training of ADJUST's sampler and of the unmasking policy on a tiny full-attention backbone.

Run: pytest tests/unit/test_training_heads.py
"""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlmbench.backbone import BackboneConfig, Transformer, load_checkpoint, load_tokenizer, save_checkpoint
from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.counter import Counter
from dlmbench.backbone.loading import weights_hash
from dlmbench.backbone.network import Network
from dlmbench.decoders.adjust import Adjust, AdjustConfig
from dlmbench.decoders.learned_policy import LearnedPolicy, LearnedPolicyConfig
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.engine import Engine, Request
from dlmbench.errors import RequestError
from dlmbench.heads.adjust import AdjustModule, load_module
from dlmbench.heads.adjust_network import AdjustHead
from dlmbench.heads.policy import PolicyConfig, PolicyNetwork, load_policy
from dlmbench.heads.policy_network import PolicyHead
from dlmbench.models.presets import PRESETS
from dlmbench.request import RunSpec
from dlmbench.training import adjust, learned_policy, loop
from dlmbench.training.data import Example
from dlmbench.training.recipe import AdjustPlan, PolicyPlan, Recipe, WarmStart, read_recipe
from dlmbench.training.rollout import AnswerRows, dev_run, prompt_layout, states

MASK, END, VOCABULARY = 2, 1, 1024  # the nano tokenizer's
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny backbone in LLaDA's layout whose logits are spread out, as a checkpoint."""
    config = BackboneConfig("llada", VOCABULARY, 32, 2, 2, 2, 16, 48, qk_norm=False, tie_embeddings=True,
                            attention="full", mask_id=MASK, eos_ids=(END,), pad_id=0, max_positions=256)  # fmt: skip
    model = Transformer(config).init_weights(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(8.0)
    return save_checkpoint(model, tmp_path_factory.mktemp("backbone"), torch.float32)


@pytest.fixture(scope="module")
def backbone(folder):
    return load_checkpoint(folder)


def draw(seed):
    rng = random.Random(str(seed))
    while True:
        yield Example(tuple(rng.choices(range(4, 900), k=rng.randint(3, 9))), tuple(rng.choices(range(4, 12), k=11)))


def rows_of(count=5, block_length=4, seed=0):
    layout, noise = prompt_layout(None, MASK), np.random.default_rng(0)
    prompts = [layout(example, block_length, noise) for _, example in zip(range(count), draw(seed))]
    return AnswerRows.of(prompts, max(len(prompt.ids) for prompt in prompts) + 3)


def recipe(folder, objective, **changes):
    fields = dict(name="tiny", objective=objective, mixture={"code": 1.0}, steps=6, workers=1, columns=256)
    fields |= dict(evaluate_items=0, compile=False, bfloat16=False, warmup=2, block_lengths=(4,))
    fields |= dict(adjust=AdjustPlan(unrolled=2, single=2, trajectories=10, windows=4))
    fields |= dict(learned_policy=PolicyPlan(rollouts=4, hidden=16, intermediate=32, bias=0.0))
    return Recipe(warm_start=WarmStart(str(folder)), **(fields | changes))


def worker(folder, out, objective, **changes):
    out.mkdir(exist_ok=True)
    return loop._worker(objective)(recipe(folder, objective, **changes), out, draw)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_states_are_those_of_each_row_alone(backbone):
    rows = rows_of()
    answers = torch.where(rows.offsets % 3 == 0, rows.offsets + 7, MASK)
    together = states(backbone, rows, answers, False)
    for i in range(len(rows.ids)):
        length = int(rows.start[i] + rows.length[i])
        ids = torch.cat([rows.ids[i, : rows.start[i]], answers[i, : rows.length[i]]])
        assert torch.allclose(together[i, :length], backbone.hidden(ids[None])[0], atol=1e-5)


def test_answers_are_as_long_as_their_task_decodes_with():
    tokenizer = load_tokenizer(PRESETS["nano2"].tokenizer_location)
    layout, noise = prompt_layout(tokenizer, MASK), np.random.default_rng(0)
    for source, length in (("gsm-full", 64), ("gsm-symbolic", 96), ("code", 48), ("", 16)):
        row = layout(Example((5, 6, 7), tuple(range(4, 13)), source), 8, noise)
        assert len(row.ids) - row.start == length and (row.ids[row.start :] == MASK).all()


# --- ADJUST -----------------------------------------------------------------------------------------------------------


def test_trajectories_are_what_decoding_by_entropy_does(backbone):
    """One token a forward, least entropy first, block by block: the engine's own order and tokens."""
    rows = rows_of(block_length=4)
    paths = adjust.roll_out(backbone, rows, 0.0, 0, compiled=False)
    engine = Engine({"target": Bidirectional("target", backbone, 4)}, Static(StaticConfig(k=1, order="entropy")),
                    sampling=Sampling(confidence="clean"))  # fmt: skip
    for i in range(len(rows.ids)):
        prompt = tuple(rows.ids[i, : rows.start[i]].tolist())
        run = engine.generate([Request("x", prompt, int(rows.length[i]))], trace=True)[0]
        for step in range(int(paths.steps[i])):
            (position,) = (paths.order[i] == step).nonzero().squeeze(1).tolist()
            assert run.trace[step]["positions"] == [position + len(prompt)]
            assert paths.answers[i, position] == run.raw_ids[position]
    every, third = torch.arange(len(rows.ids)), torch.full_like(rows.start, 3)
    alone = states(backbone, rows, paths.tokens(every, third, MASK), False)
    assert torch.allclose(paths.states(every, third), alone, atol=1e-5)


def even_window(paths, calls, seed=0):
    return adjust.cut_windows(
        paths, *adjust.draw_evenly(paths, calls, torch.Generator().manual_seed(seed)), calls, MASK
    )


def test_windows_stay_in_a_block_that_still_has_a_mask(backbone):
    paths = adjust.roll_out(backbone, rows_of(), 0.0, 0, compiled=False)
    for calls in (1, 2, 3):
        for seed in range(10):
            window = even_window(paths, calls, seed)
            assert len(window.answers) == len(window.after) == calls
            now = window.answers.gather(2, window.drawn.unsqueeze(-1)).squeeze(-1)
            then = window.answers[1:].gather(2, window.drawn[:-1].unsqueeze(-1)).squeeze(-1)
            assert (now == MASK).all() and (then != MASK).all()
            counts = (window.answers == MASK).sum(-1)  # [J,N]
            assert (counts[:-1] - counts[1:] == 1).all()
            block = adjust._active(window.answers[-1], window.rows, MASK)
            started = window.rows.offsets // 4 == block.unsqueeze(1)
            left = ((window.answers[-1] == MASK) & started).sum(1)
            assert (left >= 1).all() and (left <= 4 - calls).all()


def test_a_silent_sampler_has_exactly_the_loss_of_the_parallel_baseline(backbone):
    paths = adjust.roll_out(backbone, rows_of(), 0.0, 0, compiled=False)
    window = even_window(paths, 2)
    _, facts = adjust.window_loss(AdjustModule(backbone).init_weights(gain=0.0), window, False)
    assert facts["kl"] == pytest.approx(facts["kl_parallel"], rel=1e-4) and facts["kl"] > 0
    assert facts["kl_next"] == pytest.approx(facts["kl_next_parallel"], rel=1e-4) and facts["gain"] == 0
    _, facts = adjust.window_loss(AdjustModule(backbone).init_weights(), window, False)
    assert facts["kl"] != pytest.approx(facts["kl_parallel"], rel=1e-3) and facts["gain"] == pytest.approx(0.1)


def test_training_calls_move_states_as_decoding_calls_do(backbone):
    """The unrolled states of a window equal those of the head at work on the same tokens."""
    rows = rows_of(1)
    rows = replace(rows, ids=rows.ids[:, : int(rows.start + rows.length)])
    paths = adjust.roll_out(backbone, rows, 0.0, 0, compiled=False)
    window = even_window(paths, 1, seed=3)
    module = AdjustModule(backbone).init_weights(1.0, seed=1).requires_grad_(False)
    ids = rows.filled(window.answers[0])
    x = adjust.run_layers(module, backbone, module.join(ids.flatten(), window.before.flatten(0, 1)), rows, False)
    ours = module.move(window.before.flatten(0, 1), x)
    target = Bidirectional("target", backbone, 4)
    head = AdjustHead(module, target)
    head.allocate(1, 64, torch.nn.functional.pad(ids, (0, 64 - ids.shape[1])), Counter(1, torch.device("cpu")))
    width = ids.shape[1]
    view = SimpleNamespace(ends=torch.tensor([width]), live=torch.tensor([True]), positions=torch.arange(width)[None],
                           valid=torch.ones(1, width, dtype=torch.bool))  # fmt: skip
    theirs, _ = head.step(view, ids, window.before, view.live)
    assert torch.allclose(ours, theirs[0], atol=1e-4)


def test_a_sampler_learns_and_only_the_sampler(tmp_path, folder):
    plan = AdjustPlan(unrolled=2, single=20, trajectories=10, windows=40)
    one = worker(folder, tmp_path / "run", "adjust", steps=40, adjust=plan, columns=400)
    frozen = {name: weight.clone() for name, weight in one.backbone.state_dict().items()}
    window = next(iter(one.batches))
    one.batches.position = (0, 0)
    before = adjust.window_loss(one.network, window, False)[0].item()
    one.run()
    after, facts = adjust.window_loss(one.network, window, False)
    assert after.item() < 0.9 * min(before, facts["kl_parallel"])
    assert all(torch.equal(weight, one.backbone.state_dict()[name]) for name, weight in frozen.items())


def test_a_window_costs_what_doing_nothing_loses_in_it(backbone):
    """The costs of all windows of a pool at once, against the definition on each of them."""
    paths = adjust.roll_out(backbone, rows_of(block_length=4), 1.0, 0, compiled=False)
    for calls, costs in enumerate(adjust.window_costs(backbone, paths, 3), 1):
        assert torch.equal(costs > 0, paths.starts(calls))
        for row, first in paths.starts(calls).nonzero()[::7]:
            at = torch.tensor([row]), torch.tensor([first])
            window = adjust.cut_windows(paths, *at, calls, MASK)
            masks = (window.answers[-1] == MASK) & (window.rows.offsets // 4 == first // 4)
            before, after = (
                backbone.project(states[0, window.rows.at[masks]]).log_softmax(-1)
                for states in (window.before, window.after[-1])
            )
            expected = (after.exp() * (after - before)).sum()
            assert costs[row, first].item() == pytest.approx(expected.item(), rel=1e-3)


def test_windows_are_drawn_by_what_doing_nothing_costs_in_them(backbone):
    paths = adjust.roll_out(backbone, rows_of(40), 0.0, 0, compiled=False)
    costs = adjust.window_costs(backbone, paths, 2)
    for calls, weights in enumerate(adjust.window_weights(backbone, paths, 2, 0.05), 1):
        there = paths.starts(calls)
        assert torch.equal(weights > 0, there) and weights.max() <= adjust.CAP + 0.05
        assert torch.allclose(weights[there], costs[calls - 1][there].clamp_max(adjust.CAP) + 0.05)
        count, generator = torch.zeros_like(weights), torch.Generator().manual_seed(calls)
        for _ in range(400):
            count.index_put_(adjust.draw_windows(paths, weights, generator), torch.ones(len(weights)), accumulate=True)
        expected = weights / weights.sum() * count.sum()
        assert (count - expected).abs().max() < 6 * expected.max().sqrt()


@pytest.mark.parametrize("quiet, learns", [(0.05, True), (1e6, False)])  # a million nats: all windows alike
def test_a_sampler_learns_where_nearly_all_windows_say_nothing(tmp_path, backbone, monkeypatch, quiet, learns):
    """One row in sixteen has states that move when a token is drawn. By cost its windows are found, and the gain grows;
    drawn evenly they are outweighed: the gain shrinks, and little is learned."""
    decided = Transformer(backbone.config)
    decided.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        decided.norm.mul_(4.0)
    folder = save_checkpoint(decided, tmp_path / "decided", torch.float32)
    real = adjust.roll_out
    monkeypatch.setattr(adjust, "roll_out", lambda *given: calmed(real(*given)))
    plan = AdjustPlan(trajectories=48, windows=60, single=60, unrolled=1, temperature=0.0, quiet=quiet)
    changes = dict(steps=60, columns=4096, matrix_lr=0.03, vector_lr=0.004, decay=0.1)
    one = worker(folder, tmp_path / "run", "adjust", adjust=plan, **changes)
    one.run()
    ((paths, _),) = one.batches._groups(0)
    telling = (paths.starts(1) & (torch.arange(len(paths.steps)) % 16 == 0).unsqueeze(1)).float()
    drawn = adjust.draw_windows(paths, telling, torch.Generator().manual_seed(0))
    facts = adjust.window_loss(one.network, adjust.cut_windows(paths, *drawn, 1, MASK), False)[1]
    assert (facts["gain"] > plan.gain) == learns
    assert (facts["kl_next"] < 0.7 * facts["kl_next_parallel"]) == learns


def calmed(paths):
    """The trajectories with states that move within a block in one row of sixteen only."""
    begun, kept = {}, []
    for step, there in enumerate(paths.kept):
        live = (paths.steps > step).nonzero().squeeze(1)
        if step % paths.rows.block_length == 0:
            begun = dict(zip(live.tolist(), there, strict=True))
        pairs = zip(live.tolist(), there, strict=True)
        kept.append(torch.stack([now if row % 16 == 0 else begun[row] for row, now in pairs]))
    return replace(paths, kept=kept)


def test_the_first_steps_take_one_call(tmp_path, folder):
    plan = AdjustPlan(unrolled=3, single=6, trajectories=4, windows=4)
    one = worker(folder, tmp_path / "run", "adjust", adjust=plan, block_lengths=(8,))
    calls = [len(window.answers) for _, window in zip(range(40), one.batches)]
    assert calls[:6] == [1] * 6 and set(calls[6:]) == {1, 2, 3}


def test_an_exported_sampler_loads_and_decodes(tmp_path, folder, backbone):
    one = worker(folder, tmp_path / "run", "adjust", steps=3)
    one.run()
    weights = weights_hash(folder)
    target = Bidirectional("target", backbone, 4)
    nets = {"target": target, "head": Adjust.head_network(target, tmp_path / "run" / "weights", weights)}
    run = Engine(nets, Adjust(AdjustConfig(K=2))).generate([Request("x", (5, 6, 7), 8)])[0]
    assert len(run.raw_ids) == 8 and run.counts["head"]["denoise"]["calls"] == 4
    written = json.loads((tmp_path / "run" / "weights" / "config.json").read_text())
    assert written["training"]["steps"] == 3 and written["backbone"]["weights"] == weights
    with pytest.raises(RequestError, match="was trained on backbone weights"):
        load_module(tmp_path / "run" / "weights", backbone, "0123456789abcdef")


# --- the policy -------------------------------------------------------------------------------------------------------


def policy(bias=0.0, seed=0):
    network = PolicyNetwork(PolicyConfig(16, 32)).init_random(seed)
    with torch.no_grad():
        network.output_proj.bias.fill_(bias)
    return network.requires_grad_(False)


def test_a_policy_that_always_fires_needs_one_forward_a_block(backbone):
    rows = rows_of()
    draws = torch.Generator().manual_seed(0)
    answers, used, steps = learned_policy.roll_out(backbone, policy(100.0), rows, draws, False)
    assert used.tolist() == [int(n) // 4 for n in rows.length] and not (answers == MASK)[rows.valid].any()
    assert torch.equal(steps.unmasked, steps.eligible)
    answers, used, _ = learned_policy.roll_out(backbone, policy(-100.0), rows, draws, False)
    assert used.tolist() == rows.length.tolist() and (answers == MASK)[rows.valid].all()  # no fall-back in training


def test_recorded_steps_give_the_likelihoods_of_what_was_done(backbone):
    rows, network = rows_of(), policy()
    _, used, steps = learned_policy.roll_out(backbone, network, rows, torch.Generator().manual_seed(1), False)
    logits = learned_policy.policy_logits(network, steps.confidence, steps.masked, steps.time, steps.valid)
    again = learned_policy.bernoulli_log_likelihood(logits, steps.eligible, steps.unmasked)
    assert torch.allclose(again, steps.likelihood, atol=1e-4)
    assert len(steps.time) == used.sum() and steps.time[0] == 0
    assert torch.allclose(torch.stack([part.sum() for part in steps.share.split(used.tolist())]), torch.tensor(1.0))
    first = used.cumsum(0) - used
    assert (steps.time[first] == 0).all() and steps.masked[first].sum(1).tolist() == rows.length.tolist()


def test_rollouts_see_what_decoding_sees(backbone):
    """A policy that always fires takes the same steps in both: its logits there, answers and forwards are the same."""
    rows, network = rows_of(), policy(bias=100.0)
    answers, used, steps = learned_policy.roll_out(backbone, network, rows, torch.Generator().manual_seed(0), False)
    logits = learned_policy.policy_logits(network, steps.confidence, steps.masked, steps.time, steps.valid)
    target = Bidirectional("target", backbone, 4)
    nets: dict[str, Network] = {"target": target, "head": PolicyHead(network, 4)}
    engine = Engine(nets, LearnedPolicy(LearnedPolicyConfig()), batch_size=3)
    requests = [Request(str(i), tuple(rows.ids[i, :n].tolist()), int(rows.length[i])) for i, n in enumerate(rows.start)]
    runs = engine.generate(requests, trace=True)
    assert logits.std(0).max() > 1e-2  # they depend on what is seen
    for i, (run, ours) in enumerate(zip(runs, logits.split(used.tolist()), strict=True)):
        assert run.raw_ids == answers[i, : rows.length[i]].tolist()
        assert run.counts["target"]["refresh"]["calls"] == used[i] == len(run.trace)
        theirs = torch.tensor([step["extra"]["policy"] for step in run.trace])[:, : rows.length[i]]
        assert torch.allclose(theirs, ours[:, : rows.length[i]], atol=1e-3)


class Fast(learned_policy.PolicyWorker):
    """Every complete answer is right, so only speed is left to learn."""

    def correct(self, rows, answers):
        return (~((answers == MASK) & rows.valid).any(1)).float().cpu()


def test_a_policy_learns_what_is_rewarded(tmp_path, folder):
    (tmp_path / "run").mkdir()
    plan = PolicyPlan(rollouts=4, hidden=16, intermediate=32, bias=1.0)
    wanted = recipe(folder, "learned_policy", steps=12, columns=400, vector_lr=0.02, learned_policy=plan)
    one = Fast(wanted, tmp_path / "run", draw)
    batch = next(iter(one.batches))
    one.batches.position = (0, 0)
    one._rollouts(batch)
    before = one.measured()
    one.run()
    one.measured()
    one._rollouts(batch)
    after = one.measured()
    assert after["reward"] > before["reward"] + 0.05 and after["forwards"] < before["forwards"]


def test_the_surrogate_is_clipped_where_it_would_gain(backbone):
    rows, network = rows_of(), policy()
    steps = learned_policy.roll_out(backbone, network, rows, torch.Generator().manual_seed(1), False)[2]
    count = len(steps.time)
    doubled = replace(steps, likelihood=steps.likelihood - np.log(2.0), share=torch.full((count,), 1 / count))
    for advantage, ratio in ((1.0, 1.5), (-1.0, 2.0)):
        given = replace(doubled, advantage=torch.full((count,), advantage))
        loss = learned_policy.surrogate_loss(network, given, 0.5)
        assert loss.item() == pytest.approx(-advantage * ratio, rel=1e-4)


def test_answers_with_a_mask_before_their_end_are_wrong(tmp_path, folder):
    tokenizer = load_tokenizer(PRESETS["nano2"].tokenizer_location)
    (tmp_path / "run").mkdir()
    one = learned_policy.PolicyWorker(recipe(folder, "learned_policy"), tmp_path / "run", draw, tokenizer)
    target = tuple(tokenizer("3+4=7\n#### 7", add_special_tokens=False)["input_ids"])
    layout = prompt_layout(None, MASK)
    rows = AnswerRows.of([layout(Example((5, 6), target), 4, np.random.default_rng(0))] * 3, 32)
    answers = torch.full_like(rows.offsets, MASK)
    answers[:, : len(target) + 1] = torch.tensor([*target, END])
    answers[1, 0] = MASK
    answers[2, len(target) - 1] += 1
    assert one.correct(rows, answers).tolist() == [1.0, 0.0, 0.0]


def test_batches_without_an_advantage_change_nothing(tmp_path, folder):
    class Hopeless(learned_policy.PolicyWorker):
        def correct(self, rows, answers):
            return torch.zeros(len(rows.ids))

    (tmp_path / "run").mkdir()
    one = Hopeless(recipe(folder, "learned_policy", steps=2), tmp_path / "run", draw)
    before = {name: weight.clone() for name, weight in one.master.state_dict().items()}
    one.run()
    assert one.step == 2 and one.columns > 0
    assert all(torch.equal(weight, one.master.state_dict()[name]) for name, weight in before.items())


def test_every_part_of_a_policy_has_a_gradient_from_the_second_update_on(tmp_path, folder):
    """The conditioning begins at zero, which hides mask and time from the first update, and from that one alone."""
    plan = PolicyPlan(rollouts=4, updates=1, hidden=16, intermediate=32, bias=1.0)
    one = Fast(recipe(folder, "learned_policy", learned_policy=plan, columns=400), tmp_path / "run", draw)
    batch = next(iter(one.batches))
    one.update(batch, late=False)
    one.loss(one._rollouts(batch)).backward()
    silent = [name for name, weight in one.network.named_parameters() if not weight.grad.abs().max()]
    assert silent == [] and one.measured()["compared"] > 0


def test_a_worker_without_an_advantage_adds_nothing_to_the_other_s_gradient(tmp_path, folder):
    one = Fast(recipe(folder, "learned_policy"), tmp_path / "run", draw)
    steps = one._rollouts(next(iter(one.batches)))
    none = replace(steps, **{k: v[:0] for k, v in vars(steps).items() if isinstance(v, torch.Tensor)})
    one.loss(none).backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in one.network.parameters())


def test_an_exported_policy_loads_and_decodes(tmp_path, folder, backbone):
    (tmp_path / "run").mkdir()
    one = Fast(recipe(folder, "learned_policy", steps=2), tmp_path / "run", draw)
    one.run()
    again = load_policy(tmp_path / "run" / "weights")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in one.master.state_dict().items())
    target = Bidirectional("target", backbone, 4)
    nets = {"target": target, "head": LearnedPolicy.head_network(target, tmp_path / "run" / "weights")}
    run = Engine(nets, LearnedPolicy(LearnedPolicyConfig())).generate([Request("x", (5, 6, 7), 8)])[0]
    assert len(run.raw_ids) == 8 and MASK not in run.raw_ids
    written = json.loads((tmp_path / "run" / "weights" / "config.json").read_text())
    assert written["backbone"]["weights"] == weights_hash(folder) and written["training"]["alpha"] == 1.0


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["adjust", "learned_policy"])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(tmp_path, folder, objective, monkeypatch):
    monkeypatch.setattr(learned_policy.PolicyWorker, "correct", Fast.correct)
    whole = worker(folder, tmp_path / "whole", objective)
    whole.run()
    part = worker(folder, tmp_path / "parts", objective)
    for _, batch in zip(range(3), part.batches):
        part.update(batch, late=False)
        part.step += 1
    part.save()
    rest = worker(folder, tmp_path / "parts", objective)
    rest.run(resume=True)
    assert rest.step == whole.step == 6
    for name, weight in whole.master.state_dict().items():
        assert torch.equal(weight, rest.master.state_dict()[name]), name
    assert rest.measured().keys() == whole.measured().keys()


def test_after_dev_items_were_decoded_the_backbone_can_be_trained_beside_again(tmp_path, folder):
    tokenizer = load_tokenizer(PRESETS["nano2"].tokenizer_location)
    one = worker(folder, tmp_path / "run", "adjust", evaluate_items=1, mixture={"gsm-easy": 1.0})
    one.tokenizer, backbone = tokenizer, one.backbone.bfloat16()
    dev_run(backbone, None, Static(StaticConfig(k=8)), one.recipe, tokenizer)
    assert not any(weight.is_mkldnn for weight in backbone.parameters())


def test_a_finished_run_draws_no_further_batch(tmp_path, folder):
    one = worker(folder, tmp_path / "run", "adjust", adjust=AdjustPlan(trajectories=4, windows=6, unrolled=2))
    one.run()
    assert one.step == 6 and one.batches.position == (0, 6), "the next pool is not rolled out"
    assert one.batches._pool[0] == 0


@pytest.mark.parametrize("objective", ["adjust", "learned_policy"])
def test_dev_figures_stand_beside_doing_nothing(tmp_path, folder, objective):
    tokenizer = load_tokenizer(PRESETS["nano2"].tokenizer_location)
    wanted = recipe(folder, objective, evaluate_items=1, columns=1024, block_lengths=(8,))
    (tmp_path / "run").mkdir()
    one = loop._worker(objective)(wanted, tmp_path / "run", draw, tokenizer)
    one.evaluate()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    if objective == "adjust":
        held_out = lines[0]["held_out"]
        assert held_out.keys() == {"1", "2"}
        names = {name + suffix for name in ("kl", "kl_next", "agreement") for suffix in ("", "_parallel")}
        assert held_out["1"].keys() == names | {"gain"} and held_out["2"]["kl_parallel"] > 0
        assert lines[1]["accuracy"].keys() == {"K=1", "K=2", "K=4", "K=2 parallel", "K=4 parallel"}
    else:
        assert lines[0]["held_out"].keys() == {"accuracy", "forwards", "accuracy_threshold", "forwards_threshold"}
        assert lines[0]["held_out"]["forwards"] >= 8  # blocks of 8 in answers of 48 to 96


def test_backbones_and_plans_that_cannot_work_are_refused(tmp_path, folder):
    for objective in ("adjust", "learned_policy"):
        with pytest.raises(RequestError, match="block_causal"):
            loop._worker(objective).check(recipe("nano2", objective))
    with pytest.raises(RequestError, match="unrolled calls leave no mask"):
        adjust.AdjustWorker.check(recipe(folder, "adjust", adjust=AdjustPlan(unrolled=4)))
    text = "name: x\nmixture: {code: 1}\nsteps: 3\n"
    for more, words in (
        ("objective: adjust\n", "an ADJUST sampler but names no backbone"),
        ("objective: learned_policy\n", "an unmasking policy but names no backbone"),
        ("objective: adjust\nwarm_start: {model: nano2}\nadjust: {depth: 3}\n", "adjust has no field depth"),
        ("objective: adjust\nwarm_start: {model: nano2}\nadjust: {gain: 0}\n", "adjust.gain"),
        ("objective: learned_policy\nwarm_start: {model: nano2}\nlearned_policy: {rollouts: 1}\n", "rollouts"),
    ):
        (tmp_path / "r.yaml").write_text(text + more)
        with pytest.raises(RequestError, match=words):
            read_recipe(tmp_path / "r.yaml")


# --- shipped names ----------------------------------------------------------------------------------------------------


def test_nano2_llada_finds_the_head_of_each_method(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dlmbench.models.presets.ASSETS", tmp_path)
    shutil.copytree(folder, tmp_path / "nano" / "nano2-llada")
    for method, head in (("adjust", "nano2-adjust"), ("learned_policy", "nano2-policy")):
        spec = RunSpec(method, "nano-gsm", model="nano2-llada")
        with pytest.raises(RequestError, match=f"{head} is not in this copy"):
            spec.resolve()
        shutil.copytree(folder, tmp_path / "nano" / head)
        assert spec.resolve().companions == {"head": head}
        assert replace(spec, head=str(folder)).resolve().companions == {"head": str(folder)}
    with pytest.raises(RequestError, match="docs/methods/learned_policy.md names the recipe"):
        RunSpec("learned_policy", "nano-gsm", model=str(folder)).resolve()


def test_the_control_of_rcd_differs_by_the_residuals_alone():
    ours, control = (read_recipe(RECIPES / f"train-nano2-{name}.yaml") for name in ("rcd", "seqd"))
    same = dict(name="", description="", objective="", reference=None)
    assert replace(ours, **same) == replace(control, **same)
    assert ours.objective == "rcd" and control.objective == "block_diffusion"
