"""What SimSD promises: replicated verification is lossless, rows do not disturb each other. pytest tests/invariants"""

from dataclasses import replace

import pytest
import torch

from dlmbench.backbone.network import Network
from dlmbench.decoders import speculation as rules
from dlmbench.decoders.predict import draw
from dlmbench.decoders.simsd import SimSD, SimSDConfig
from dlmbench.decoders.speculation import KNOWN, NEVER
from dlmbench.decoders.static import Static
from dlmbench.decoders.testing import EOS, MASK, no_host_reads, random_requests, tiny_model
from dlmbench.engine import Engine
from dlmbench.errors import RequestError
from dlmbench.request import RunSpec
from dlmbench.verify.identity import differences

DRAFTS = ("noisy", "self", "unrelated")


def target_model(layers=2, eos=(EOS,)):
    model = tiny_model("block_causal", 7)
    model.layers = model.layers[:layers]
    model.config = replace(model.config, num_layers=layers, eos_ids=eos)
    return model


def draft_model(kind, layers=2, eos=(EOS,)):
    if kind == "unrelated":
        return tiny_model("block_causal", 99)
    model = target_model(layers, eos)
    if kind == "noisy":
        generator = torch.Generator().manual_seed(3)
        for weight in model.parameters():
            if weight.dim() == 2:
                weight += torch.randn(weight.shape, generator=generator) * 0.03 * weight.std()
    return model


def decode(config=None, requests=None, *, draft="noisy", block=4, batch=3, store="fused", lag=0, layers=2, eos=(EOS,)):
    """Generations of the tiny requests; without a config by static k=1."""
    nets = {"target": Network("target", target_model(layers, eos), block, store)}
    decoder = Static()
    if config is not None:
        nets["draft"] = Network("draft", draft_model(draft, layers, eos), block, store)
        decoder = SimSD(config)
    engine = Engine(nets, decoder, batch_size=batch, lag=lag)
    return engine.generate(requests or random_requests(5), trace=True)


def calls(generation, role, kind):
    return generation.counts[role].get(kind, {"calls": 0})["calls"]


def raw(generations):
    return [g.raw_ids for g in generations]


@pytest.mark.parametrize("block", [4, 8])
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("draft_steps", [0, 2])
def test_replicated_is_lossless_whatever_the_draft_proposes(block, draft, draft_steps):
    config = SimSDConfig(verify="replicated", draft_steps=draft_steps)
    ours = decode(config, draft=draft, block=block)
    plain = decode(block=block)
    assert raw(ours) == raw(plain)
    assert [g.ids for g in ours] == [g.ids for g in plain]


@pytest.mark.parametrize("store, lag", [("separate", 0), ("fused", 1)])
def test_replicated_is_lossless_with_separate_stores_and_late_flags(store, lag):
    assert raw(decode(SimSDConfig(verify="replicated"), store=store, lag=lag)) == raw(decode())


def test_replicated_accepts_everything_of_the_target_itself():
    for ours, plain in zip(decode(SimSDConfig(verify="replicated"), draft="self"), decode()):
        blocks = len({step["block"] for step in plain.trace})
        assert calls(ours, "target", "verify") == blocks == len(ours.accepted)
        assert sum(ours.accepted) == ours.proposed == calls(plain, "target", "denoise")


def test_an_unrelated_draft_costs_about_a_forward_a_token_and_never_more():
    for ours, plain in zip(decode(SimSDConfig(verify="replicated"), draft="unrelated"), decode()):
        assert calls(ours, "target", "verify") <= calls(plain, "target", "denoise")


def test_a_difference_from_static_is_located_with_its_gap():
    nets = {"target": Network("target", target_model(), 4)}
    drafted = {
        "target": Network("target", draft_model("noisy"), 4),  # other weights, so that there is something to find
        "draft": Network("draft", draft_model("self"), 4),
    }
    decoder = SimSD(SimSDConfig(verify="replicated"))
    found, ours, theirs = differences(Engine(nets, Static()), Engine(drafted, decoder), random_requests(5))
    different = [a.key for a, b in zip(ours, theirs) if a.ids != b.ids]
    assert different and [d.key for d in found] == different
    assert all(0 < d.gap < 20 for d in found)
    positions = [step["positions"] for step in decode(batch=1)[0].trace]
    trace = decode(SimSDConfig(verify="replicated"), batch=1)[0].trace
    assert [[p] for step in trace for p in step["positions"]] == positions  # commits stand in the order of static


def test_packed_is_exact_on_one_layer_and_not_on_two():
    exact = decode(SimSDConfig(), draft="self", layers=1, eos=())
    assert raw(exact) == raw(decode(layers=1, eos=()))
    assert all(sum(g.accepted) == g.proposed for g in exact)
    assert any(sum(g.accepted) < g.proposed for g in decode(SimSDConfig(), draft="self", block=8, eos=()))


@pytest.mark.parametrize("draft", DRAFTS)
def test_packed_with_blocks_of_one_equals_the_target(draft):
    assert raw(decode(SimSDConfig(), draft=draft, block=1)) == raw(decode(block=1))


SETTINGS = {
    "packed": {},
    "mrs": dict(accept="mrs", sampling="multinomial"),
    "mrs filled": dict(accept="mrs", sampling="multinomial", fill="target_argmax_all"),
    "dynamic": dict(drafting="dynamic", tau=0.5),
    "few steps": dict(steps=2),
    "early stop": dict(draft_steps=1),
    "target fill": dict(fill="target_argmax"),
    "draft fill": dict(fill="draft_argmax"),
    "no bonus": dict(fill="truncate_no_bonus"),
    "gate": dict(eos_min_prob=0.9),
    "official gate": dict(eos_min_prob=0.9, eos_gate="official", budget="rounds", rounds=6),
    "rounds": dict(budget="rounds", rounds=3, emit="official", trim_after_eos=False),
    "uncached": dict(cached=False),
    "uncached, two ahead": dict(cached=False, lookahead=2),
    "uncached, filled": dict(cached=False, lookahead=2, fill="draft_argmax", accept="mrs", sampling="multinomial"),
    "replicated": dict(verify="replicated"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_equals_singles(name):
    config, requests = SimSDConfig(**SETTINGS[name]), random_requests(5)
    singles = [decode(config, [request], batch=1)[0] for request in requests]
    for batch, lag in ((2, 0), (3, 1)):
        together = decode(config, requests, batch=batch, lag=lag)
        assert raw(together) == raw(singles)
        assert [g.counts for g in together] == [g.counts for g in singles]
        assert [(g.proposed, g.accepted) for g in together] == [(g.proposed, g.accepted) for g in singles]


@pytest.mark.parametrize("name", [n for n, s in SETTINGS.items() if s.get("budget") != "rounds"])
def test_token_budgets_are_filled_and_the_mask_never_comes_out(name):
    requests = random_requests(5)
    for request, g in zip(requests, decode(SimSDConfig(**SETTINGS[name]), requests, eos=())):
        assert len(g.ids) == request.max_tokens and MASK not in g.raw_ids


def test_counts_follow_rounds_and_blocks():
    for g in decode(SimSDConfig(), store="separate", eos=()):
        rounds = [step for step in g.trace if step["extra"].get("verified")]
        opened = [sum(s != -2 for s in step["extra"]["step_map"]) for step in rounds]
        closed = sum(len(step["positions"]) == k for step, k in zip(rounds, opened))
        assert calls(g, "target", "verify") == len(rounds) == len(g.accepted)
        assert calls(g, "draft", "denoise") == sum(opened) == g.proposed
        assert calls(g, "target", "store") == calls(g, "draft", "store") == closed
        for step, k in zip(rounds, opened):
            assert 1 <= len(step["positions"]) <= k
            full = all(a or s == -2 for a, s in zip(step["extra"]["accepted"], step["extra"]["step_map"]))
            assert full != any(step["extra"]["replaced"])  # full acceptance brings no bonus, a rejection one


def test_fused_stores_cost_no_forward_of_their_own_and_change_no_token():
    fused, separate = decode(SimSDConfig(), eos=()), decode(SimSDConfig(), store="separate", eos=())
    assert raw(fused) == raw(separate)
    for a, b in zip(fused, separate):
        for role, kind in (("target", "verify"), ("draft", "denoise")):
            assert calls(a, role, kind) == calls(b, role, kind)
            assert calls(a, role, "store") == 0


def test_an_eos_ends_a_row_in_its_round_and_a_gated_one_that_returns_is_taken():
    free = decode(SimSDConfig(), draft="unrelated", eos=())
    at = next(i for i in range(1, 20) if free[0].ids[i] not in free[0].ids[:i])
    eos = (free[0].ids[at],)  # an unrelated draft makes nearly every token a replacement
    for config in (SimSDConfig(), SimSDConfig(eos_min_prob=1.0)):
        ours = decode(config, draft="unrelated", eos=eos)[0]
        assert ours.ids == free[0].ids[: at + 1] and ours.stop_reason == "eos"
    kept = decode(SimSDConfig(trim_after_eos=False, fill="target_argmax"), draft="unrelated", eos=eos)
    assert any(g.stop_reason == "eos" and g.ids[-1] not in eos for g in kept)


def test_a_row_of_d_at_one_step_is_the_row_of_m_at_the_next():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = torch.randperm(8, generator=generator).unsqueeze(0)
        allowed = rules.pack_mask(step)[0]
        for i in range(8):
            after = (step[0] == step[0, i] + 1).nonzero()
            assert all(torch.equal(allowed[i], allowed[8 + int(j)]) for j in after)
    mixed = torch.tensor([[KNOWN, KNOWN, 1, NEVER, 0, 2, NEVER, 3]])
    allowed = rules.pack_mask(mixed)[0]
    assert allowed.any(1).all() and not allowed[:, 8:10].any()  # everybody sees something, nobody idle copies


def test_rejection_sampling_gives_the_targets_distribution():
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.rand(1, 1, 6, generator=generator).softmax(-1) ** 3 for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    n = 40_000
    uniform = torch.rand(3, n, 1, generator=generator)
    tokens = draw(p.expand(n, 1, 6), uniform[0])
    p, q = p.expand(n, 1, 6), q.expand(n, 1, 6)
    accepted = rules.mrs_accepts(tokens, p, q, uniform[1])
    final = torch.where(accepted, tokens, draw(rules.mrs_replacement(tokens, p, q), uniform[2]))
    share = torch.bincount(final.view(-1), minlength=6) / n
    assert (share - q[0, 0]).abs().max() < 0.012
    assert rules.mrs_accepts(tokens, q, q, torch.full_like(uniform[1], 0.9999)).all()


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(accept="mrs"), "multinomial"),
        (dict(rounds=3), "belong together"),
        (dict(lookahead=2), "cached=false"),
        (dict(eos_gate="official"), "budget=rounds"),
        (dict(verify="replicated", fill="target_argmax"), "keeps its default"),
        (dict(cached=False, eos_min_prob=0.5), "gate"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SimSDConfig(**options)


def spoilt(**changes):
    model = draft_model("self")
    model.config = replace(model.config, **changes)
    return Network("draft", model, 4)


@pytest.mark.parametrize("changes, words", [(dict(vocab_size=90), "vocabulary"), (dict(mask_id=5), "mask id")])
def test_networks_of_other_tokens_are_refused(changes, words):
    with pytest.raises(RequestError, match=words):
        Engine({"target": Network("target", target_model(), 4), "draft": spoilt(**changes)}, SimSD())


def test_a_spec_refuses_other_drafts_and_sampling_before_anything_is_loaded(tmp_path):
    from dlmbench.backbone import save_checkpoint

    folders = {}
    for name, changes in (("mine", {}), ("wide", {"vocab_size": 90}), ("masked", {"mask_id": 5})):
        model = target_model()
        if "vocab_size" in changes:
            model = type(model)(replace(model.config, **changes)).init_weights(0)
        model.config = replace(model.config, **changes)
        folders[name] = str(save_checkpoint(model, tmp_path / name))
        (tmp_path / name / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    folders["spelt"] = str(save_checkpoint(target_model(), tmp_path / "spelt"))
    (tmp_path / "spelt" / "tokenizer.json").write_text('{"model": {"vocab": {"b": 0}}}')

    def check(draft, **options):
        usual = {"method": "simsd", "task": "nano-gsm", "model": folders["mine"], "block_length": 4}
        return RunSpec(**usual, draft=draft, **options).resolve()

    assert check(folders["mine"]).companions == {"draft": folders["mine"]}  # the target may draft for itself
    refusals = (("wide", "vocabulary size 90"), ("masked", "mask id 5"), ("spelt", "tokenizer"), ("nano2-ar", "causal"))
    for draft, words in refusals:
        with pytest.raises(RequestError, match=words) as error:
            check(folders.get(draft, draft))
        assert "--draft" in str(error.value)
    with pytest.raises(RequestError, match="temperature"):
        check(folders["mine"], temperature=0.7)
    with pytest.raises(RequestError, match="--draft"):
        check(None)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_reads_a_device_value_on_the_host(name):
    decoder = type("Set", (SimSD,), {"__init__": lambda self: SimSD.__init__(self, SimSDConfig(**SETTINGS[name]))})
    no_host_reads(decoder, "block_causal")
