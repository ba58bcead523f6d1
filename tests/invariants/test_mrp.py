"""What MRP promises, on tiny random weights. pytest tests/invariants/test_mrp.py"""

import random

import pytest
import torch

from dlmbench.backbone import BackboneConfig, Transformer
from dlmbench.backbone.network import Network
from dlmbench.decoders.mrp import MRP, MRPConfig
from dlmbench.decoders.static import Static, StaticConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Request
from dlmbench.heads.mrp import MRPModule
from dlmbench.heads.mrp_network import MRPHead

MASK, EOS, VOCABULARY = 3, 1, 61
MODES = ("speculative", "direct", "remask", "residual_remask")


def backbone(seed=0, mask_bonus=0.0):
    """Two layers of loud random weights; `mask_bonus` makes the mask token the likeliest of all."""
    config = BackboneConfig(
        family="sdar", vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
        intermediate_size=48, mask_id=MASK, eos_ids=(EOS,), pad_id=0, max_positions=128,
    )  # fmt: skip
    model = Transformer(config).init_weights(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(8.0 if name == "head.weight" else 5.0)
        if mask_bonus:
            model.norm[0] = mask_bonus  # one direction of the state that only the mask token's row reads
            model.head.weight[:, 0] = 0
            model.layers[-1].down.weight[0] = 0
            model.embedding.weight[:, 0] = 5.0
            model.head.weight[MASK, 0] = 10.0
    return model.requires_grad_(False).eval()


def module_for(model, seed=0, zero=False, residual=None):
    module = MRPModule(model, 2, residual).init_weights("authors", seed)
    with torch.no_grad():
        module.norm.mul_(0.0 if zero else 8.0)
    return module.requires_grad_(False).eval()


def requests(count=5, seed=0):
    rng = random.Random(seed)
    return [
        Request(
            f"item {i}", tuple(rng.randrange(4, VOCABULARY) for _ in range(rng.randrange(1, 14))), rng.randrange(5, 24)
        )
        for i in range(count)
    ]


def run(config, *, model=None, module=None, block=4, items=None, store="fused", lag=0, batch_size=3, trace=False):
    model = model or backbone()
    target = Network("target", model, block, store)
    head = MRPHead(module or module_for(model), target)
    engine = Engine({"target": target, "head": head}, MRP(config), batch_size=batch_size, lag=lag, stall_limit=8)
    return engine.generate(items or requests(), trace=trace)


def plain(decoder, *, model=None, block=4, items=None):
    engine = Engine({"target": Network("target", model or backbone(), block)}, decoder, batch_size=3)
    return engine.generate(items or requests())


def ids(generations):
    return [generation.raw_ids for generation in generations]


def calls(generation, role="target"):
    return {kind: n["calls"] for kind, n in generation.counts.get(role, {}).items()}


def inside(generation):
    """Forwards inside blocks of the target."""
    return sum(n for kind, n in calls(generation).items() if kind not in ("prefill", "store"))


# --- speculative ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [4, 8, 16])
@pytest.mark.parametrize("drafts", [1, 2, 3, 4])
def test_speculative_ids_are_those_of_static_with_one_token_a_step(seed, block, drafts):
    model = backbone(seed)
    expected = plain(Static(StaticConfig(k=1)), model=model, block=block)
    rng = random.Random(f"{seed} {block} {drafts}")
    config = MRPConfig(
        mode="speculative", K=drafts, mix=rng.choice(["logits_sum", "none"]), sum_scale=rng.choice([1.0, 2.0]),
        mrp_prefix_cache=rng.random() < 0.5, shrink=rng.random() < 0.5, fresh_drafts=rng.random() < 0.5,
        seed_commits=rng.random() < 0.5,
    )  # fmt: skip
    ours = run(
        config, model=model, module=module_for(model, seed), block=block, store=rng.choice(["fused", "separate"])
    )
    assert ids(ours) == ids(expected)
    for fast, slow in zip(ours, expected):
        verified = calls(fast)["verify"] if "verify" in calls(fast) else 0
        assert verified <= len(slow.raw_ids)
        tokens = sum(fast.accepted) + sum(len(s["positions"]) for s in fast.trace or ())
        assert tokens <= fast.proposed  # accepted drafts were proposed


def test_accepted_and_bonus_tokens_are_all_tokens_of_a_row():
    for generation in run(MRPConfig(mode="speculative", K=3), trace=True):
        rounds = [step for step in generation.trace if any(f["kind"] == "verify" for f in step["forwards"])]
        assert all(not s["positions"] for s in generation.trace if s not in rounds)  # a seed commits nothing
        bonus = sum(step["extra"]["bonus"][0] >= 0 for step in rounds)
        assert sum(generation.accepted) + bonus == len(generation.raw_ids)
        assert len(generation.accepted) == len(rounds) == calls(generation)["verify"]
        drafts = sum(pair[0] >= 0 for step in rounds for pair in step["extra"]["drafts"])
        assert sum(generation.accepted) <= generation.proposed == drafts


def test_a_module_that_knows_the_next_step_has_its_drafts_accepted():
    """Drafts from the backbone's own logits: the first draft after a seed is always right."""
    after_seeds = [
        after["extra"]["accepted"]
        for generation in run(MRPConfig(mode="speculative", K=1), trace=True)
        for before, after in zip(generation.trace, generation.trace[1:])
        if before["forwards"][0]["kind"] == "seed"
    ]
    assert after_seeds and set(after_seeds) == {1}


def test_options_of_speculation_change_costs_and_never_ids():
    official = run(MRPConfig(mode="speculative", K=3, shrink=False))
    shrunk = run(MRPConfig(mode="speculative", K=3))
    committed = run(MRPConfig(mode="speculative", K=3, seed_commits=True))
    assert ids(official) == ids(shrunk) == ids(committed)
    for a, b, c in zip(official, shrunk, committed):
        assert calls(a) == calls(b) and calls(b, "head")["denoise"] < calls(a, "head")["denoise"]
        tokens = [g.counts["target"]["verify"]["query_tokens"] for g in (a, b)]
        assert tokens[1] < tokens[0] and sum(tokens) % 4 == 0
        assert inside(c) <= inside(b)


def test_with_one_draft_the_module_is_never_called():
    for generation in run(MRPConfig(mode="speculative", K=1)):
        assert "head" not in generation.counts


# --- a module that says nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_direct_with_zero_residual_is_static_with_more_tokens_a_step(steps):
    model = backbone(1)
    ours = run(MRPConfig(mode="direct", K=steps), model=model, module=module_for(model, zero=True), block=8)
    expected = plain(Static(StaticConfig(k=steps + 1)), model=model, block=8)
    assert ids(ours) == ids(expected)
    assert [calls(a) for a in ours] == [calls(a) for a in expected]


@pytest.mark.parametrize("tau", [0.2, 0.5, 0.8])
def test_remask_with_zero_residual_is_plain_threshold(tau):
    model = backbone(2)
    ours = run(MRPConfig(mode="remask", tau=tau), model=model, module=module_for(model, zero=True), block=8)
    assert ids(ours) == ids(plain(Threshold(ThresholdConfig(tau=tau)), model=model, block=8))


# --- residual_remask --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [True, False])
def test_residual_remask_with_infinite_delta_is_plain_threshold(prefix):
    config = MRPConfig(mode="residual_remask", tau=0.3, delta=float("inf"), mrp_prefix_cache=prefix)
    assert ids(run(config, block=8)) == ids(plain(Threshold(ThresholdConfig(tau=0.3)), block=8))


def test_residual_remask_with_negative_delta_commits_one_token_a_step():
    for generation in run(MRPConfig(mode="residual_remask", tau=0.2, delta=-1.0), trace=True):
        assert {len(step["positions"]) for step in generation.trace} == {1}


# --- all modes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_without_module_steps_every_mode_is_the_backbones_own_decoder(mode):
    dynamic = mode.endswith("remask")
    reference = Threshold(ThresholdConfig(tau=0.4)) if dynamic else Static(StaticConfig(k=1))
    ours, expected = run(MRPConfig(mode=mode, K=0, tau=0.4)), plain(reference)
    assert ids(ours) == ids(expected)
    assert [g.counts for g in ours] == [g.counts for g in expected]


CONFIGS = [
    MRPConfig(mode="speculative", K=3),
    MRPConfig(mode="speculative", K=2, fresh_drafts=True, seed_commits=True),
    MRPConfig(mode="direct", K=2),
    MRPConfig(mode="direct", K=1, commit="dynamic", tau=0.3),
    MRPConfig(mode="remask", tau=0.2),
    MRPConfig(mode="remask", tau=0.2, remask_input="masked", mrp_prefix_cache=False),
    MRPConfig(mode="residual_remask", tau=0.2, delta=0.5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.mode}-{c.K}-{c.remask_input}-{c.mrp_prefix_cache}")
def test_batches_late_flags_and_stores_change_nothing(config):
    """A batch of N equals N singles, ids, counts and acceptance per row; stores change the bookkeeping only."""
    items = requests(6, seed=4)
    singles = [run(config, items=[item])[0] for item in items]
    for variant in ({"batch_size": 4}, {"batch_size": 6, "lag": 1}, {"batch_size": 2}):
        batch = run(config, items=items, **variant)
        assert ids(batch) == ids(singles), variant
        assert [g.counts for g in batch] == [g.counts for g in singles], variant
        assert [(g.proposed, g.accepted) for g in batch] == [(g.proposed, sorted(g.accepted)) for g in singles], variant
    for lag in (0, 1):
        separate = run(config, items=items, store="separate", lag=lag)
        assert ids(separate) == ids(singles)
        assert [inside(g) for g in separate] == [inside(g) for g in singles]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.mode}-{c.K}-{c.remask_input}-{c.mrp_prefix_cache}")
def test_every_step_commits_and_a_predicted_mask_token_never_stalls(config):
    model = backbone(3, mask_bonus=5.0)
    logits = model.project(model.hidden(torch.tensor([[5, 6, 7, MASK]])))
    assert (logits.argmax(-1) == MASK).all()  # the guard has something to guard against
    for generation in run(config, model=model, module=module_for(model, 1), trace=True):
        assert MASK not in generation.raw_ids
        seeds = config.mode == "speculative" and not config.seed_commits
        for step in generation.trace:
            seed = seeds and step["forwards"][0]["kind"] == "seed"
            assert bool(step["positions"]) != seed and not step["remasked"]
        committed = [position for step in generation.trace for position in step["positions"]]
        assert len(committed) == len(set(committed)) == len(generation.raw_ids)


def test_head_passes_are_counted_apart_and_stores_ride_with_the_first_pass():
    fused, separate = (run(MRPConfig(mode="direct", K=2), store=store)[1] for store in ("fused", "separate"))
    assert calls(fused, "head")["denoise"] == calls(separate, "head")["denoise"]
    assert "store" not in calls(fused, "head") and calls(separate, "head")["store"] == calls(separate)["store"]
    blocks = calls(separate, "head")["store"]
    riding = fused.counts["head"]["denoise"]["query_tokens"] - 4 * calls(fused, "head")["denoise"]
    assert riding == 4 * (blocks - 1)  # the last block is never read again
    assert calls(fused, "head").get("prefill", 0) == calls(fused).get("prefill", 0)


def test_a_pass_over_the_cached_prefix_equals_one_over_the_whole_row():
    model = backbone(4)
    module = module_for(model)
    prompt, block = tuple(range(10, 21)), 4
    seen = []

    class Watching(MRP):
        def round(self, view, nets):
            decision = super().round(view, nets)
            hidden, tokens = self.inputs
            seen.append((int(view.start[0]), self.canvas.clone(), tokens, hidden, self.output))
            return decision

    target = Network("target", model, block)
    head = MRPHead(module, target)
    decoder = Watching(MRPConfig(mode="residual_remask", tau=0.1))
    original = head.residual

    def residual(view, tokens, hidden, active):
        residual, states = original(view, tokens, hidden, active)
        decoder.inputs, decoder.output, decoder.canvas = (hidden, tokens), residual, head.canvas
        return residual, states

    head.residual = residual
    Engine({"target": target, "head": head}, decoder).generate([Request("r", prompt, 20)])
    assert {start for start, *_ in seen} >= {8, 12, 16}
    for start, canvas, tokens, hidden, output in seen:
        row = torch.cat([canvas[:, :start], tokens], 1)
        blocks = torch.arange(row.shape[1]) // block
        mask = (blocks[None] <= blocks[:, None])[None, None]
        states = torch.cat([model.hidden(canvas[:, :start], mask=mask[..., :start, :start]), hidden], 1)

        def attend(_, q, kv, mask=mask):
            q, k, v = (t.unsqueeze(0).transpose(1, 2) for t in (q, *kv.chunk(2, 1)))
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
            return mixed.transpose(1, 2).flatten(0, 1).flatten(1)

        whole = module(row[0], states[0], torch.arange(row.shape[1]), attend)
        assert torch.allclose(module.project(whole[start:]), output[0], atol=1e-4)


def perfect(model, block, config, items):
    """A run with the backbone itself in the module's place (mix none)."""
    target = Network("target", model, block)
    head = MRPHead(module_for(model), target)

    def residual(view, tokens, hidden, active):
        logits = []
        for row in range(tokens.shape[0]):
            start = int(view.start[row])
            whole = torch.cat([head.canvas[row, :start], tokens[row]]).unsqueeze(0)
            blocks = torch.arange(whole.shape[1]) // block
            states = model.hidden(whole, mask=(blocks[None] <= blocks[:, None])[None, None])
            logits.append(model.project(states[0, start:]))
        return torch.stack(logits), hidden

    head.residual = residual
    return Engine({"target": target, "head": head}, MRP(config), batch_size=2).generate(items)


WHOLE_AND_TAIL = [Request("whole blocks", tuple(range(10, 18)), 32), Request("a tail", tuple(range(10, 21)), 21)]


@pytest.mark.parametrize("seed_commits", [True, False])
def test_a_perfect_module_has_every_draft_accepted(seed_commits):
    """Each block takes its seed and the fewest verifications that there can be."""
    model, block, drafts = backbone(5), 8, 3
    config = MRPConfig(mode="speculative", K=drafts, mix="none", fresh_drafts=True, seed_commits=seed_commits)
    expected = plain(Static(StaticConfig(k=1)), model=model, block=block, items=WHOLE_AND_TAIL)
    for item, slow, ours in zip(WHOLE_AND_TAIL, expected, perfect(model, block, config, WHOLE_AND_TAIL)):
        assert ours.raw_ids == slow.raw_ids
        assert sum(ours.accepted) == ours.proposed
        first = block - len(item.prompt_ids) % block
        blocks = len(ours.raw_ids[first:]) // block
        rounds = [-(-(masks - seed_commits) // (drafts + 1)) for masks in (first, *[block] * blocks)]
        assert calls(ours)["verify"] == sum(rounds) and calls(ours)["seed"] == len(rounds)


@pytest.mark.parametrize("steps", [1, 3])
def test_direct_with_a_perfect_module_is_static_with_one_token_a_step(steps):
    model = backbone(5)
    ours = perfect(model, 8, MRPConfig(mode="direct", K=steps, mix="none"), WHOLE_AND_TAIL)
    assert ids(ours) == ids(plain(Static(StaticConfig(k=1)), model=model, block=8, items=WHOLE_AND_TAIL))
