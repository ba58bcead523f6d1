"""The sparse MLP: routers by their equations, three ways to the same sum, and counts of active and total parameters."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dlmbench.backbone import load_checkpoint, save_checkpoint
from dlmbench.backbone.config import BackboneConfig, Experts
from dlmbench.backbone.experts import SparseMLP, by_all, by_group, by_loop, groupable, route
from dlmbench.backbone.model import Transformer
from dlmbench.bench.networks import random_model
from dlmbench.cli.app import main
from dlmbench.errors import RequestError
from dlmbench.models.shapes import SHAPES, scaled
from dlmbench.verify.tape import HostReads, Tape

D = 16
SIGMOID = Experts(8, 3, 8, shared_width=12, score="sigmoid", bias=True, groups=4, active_groups=2, scaling=2.5)
SOFTMAX = Experts(8, 3, 8)
PLAIN = replace(SOFTMAX, renormalised=False)
RULES = pytest.mark.parametrize("rule", [SIGMOID, SOFTMAX, PLAIN], ids=["sigmoid", "softmax", "plain"])


def _mlp(rule: Experts, seed: int = 0) -> SparseMLP:
    generator = torch.Generator().manual_seed(seed)
    mlp = SparseMLP(D, rule)
    for weight in mlp.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return mlp.requires_grad_(False)


def _tokens(n: int = 23) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1))


def _run(mlp: SparseMLP, x: torch.Tensor) -> torch.Tensor:
    return mlp(torch.zeros_like(x), x, mlp.ready())


@RULES
@pytest.mark.parametrize("way", [by_group, by_all])
@pytest.mark.parametrize("tokens", [1, 4, 23])
def test_every_way_gives_the_sum_of_the_loop_over_experts(rule: Experts, way, tokens: int):
    mlp, x = _mlp(rule), _tokens(tokens)
    chosen, shares = route(x, mlp.router, mlp.bias, rule)
    want = by_loop(x, chosen, shares, mlp.gate_up, mlp.down)
    assert torch.allclose(way(x, chosen, shares, mlp.gate_up, mlp.down), want, atol=1e-5)


def test_all_experts_in_small_parts_is_the_same(monkeypatch):
    mlp, x = _mlp(SOFTMAX), _tokens()
    chosen, shares = route(x, mlp.router, None, SOFTMAX)
    want = by_all(x, chosen, shares, mlp.gate_up, mlp.down)
    monkeypatch.setattr("dlmbench.backbone.experts.WIDEST", 5 * 8 * 16)
    assert torch.allclose(by_all(x, chosen, shares, mlp.gate_up, mlp.down), want, atol=1e-6)


def test_the_grouped_product_is_left_where_torch_has_none():
    mlp, x = _mlp(SOFTMAX), _tokens()
    assert groupable(x, mlp.gate_up, mlp.down)
    assert not groupable(x.double(), mlp.gate_up.double(), mlp.down.double())
    odd = _mlp(replace(SOFTMAX, width=7))  # rows of 28 bytes
    assert not groupable(x, odd.gate_up, odd.down)
    chosen, shares = route(x, odd.router, None, SOFTMAX)
    assert torch.allclose(_run(odd, x), by_loop(x, chosen, shares, odd.gate_up, odd.down), atol=1e-5)


def test_a_softmax_router_takes_the_best_and_renormalises_them_only_if_told():
    mlp, x = _mlp(SOFTMAX), _tokens()
    shares = (x @ mlp.router.t()).softmax(-1)
    best = shares.sort(-1, descending=True)
    for rule, divisor in ((SOFTMAX, best.values[:, :3].sum(-1, keepdim=True)), (PLAIN, 1.0)):
        chosen, ours = route(x, mlp.router, None, rule)
        assert torch.equal(chosen, best.indices[:, :3])
        assert torch.allclose(ours, best.values[:, :3] / divisor)


def test_a_sigmoid_router_chooses_with_the_bias_inside_the_best_groups_and_weighs_without_it():
    mlp, x = _mlp(SIGMOID), _tokens(50)
    chosen, shares = route(x, mlp.router, mlp.bias, SIGMOID)
    for token, experts, ours in zip(x, chosen.tolist(), shares):
        score = (mlp.router @ token).sigmoid()
        ranked = score + mlp.bias
        groups = [ranked[i : i + 2].sum().item() for i in range(0, 8, 2)]  # of two experts each
        kept = sorted(range(4), key=lambda g: -groups[g])[:2]
        inside = [e for g in kept for e in (2 * g, 2 * g + 1)]
        assert sorted(experts) == sorted(sorted(inside, key=lambda e: -ranked[e].item())[:3])
        assert torch.allclose(ours, 2.5 * score[experts] / score[experts].sum(), atol=1e-6)
        assert ours.sum().item() == pytest.approx(2.5, abs=1e-5)
    moved = route(x, mlp.router, mlp.bias + 7, SIGMOID)
    assert torch.equal(moved[0], chosen) and torch.equal(moved[1], shares)


def test_one_group_is_no_group():
    mlp, x = _mlp(SIGMOID), _tokens()
    everything = replace(SIGMOID, groups=4, active_groups=4)
    plain = replace(SIGMOID, groups=1, active_groups=1)
    assert torch.equal(route(x, mlp.router, mlp.bias, everything)[0], route(x, mlp.router, mlp.bias, plain)[0])


@RULES
def test_experts_in_another_order_with_their_router_rows_change_nothing(rule: Experts):
    mlp, x = _mlp(rule), _tokens()
    want = _run(mlp, x)
    order = torch.tensor([5, 4, 0, 1, 7, 6, 2, 3])  # groups of two stay together
    for name in ("router", "bias", "gate_up", "down"):
        weight = getattr(mlp, name)
        if weight is not None:
            weight.data = weight[order]
    assert torch.allclose(_run(mlp, x), want, atol=1e-5)


def test_all_experts_chosen_and_renormalised_are_the_dense_mixture():
    rule = replace(SOFTMAX, active=8)
    mlp, x = _mlp(rule), _tokens()
    shares = (x @ mlp.router.t()).softmax(-1)
    gate, up = torch.einsum("nd,efd->nef", x, mlp.gate_up).chunk(2, -1)
    want = torch.einsum("nef,edf,ne->nd", F.silu(gate) * up, mlp.down, shares)
    assert torch.allclose(_run(mlp, x), want, atol=1e-5)


def test_equal_experts_are_one_dense_mlp():
    mlp, x = _mlp(SOFTMAX), _tokens()
    mlp.gate_up.data, mlp.down.data = mlp.gate_up[:1].expand(8, -1, -1).clone(), mlp.down[:1].expand(8, -1, -1).clone()
    gate, up = F.linear(x, mlp.gate_up[0]).chunk(2, -1)
    assert torch.allclose(_run(mlp, x), F.linear(F.silu(gate) * up, mlp.down[0]), atol=1e-5)


def test_the_shared_expert_sees_every_token_with_weight_one():
    mlp, x = _mlp(SIGMOID), _tokens()
    routed = by_loop(x, *route(x, mlp.router, mlp.bias, SIGMOID), mlp.gate_up, mlp.down)
    gate, up = F.linear(x, mlp.shared_gate_up.weight).chunk(2, -1)
    shared = F.linear(F.silu(gate) * up, mlp.shared_down.weight)
    residual = torch.randn_like(x)
    assert torch.allclose(mlp(residual, x, mlp.ready()), residual + routed + shared, atol=1e-5)


def test_the_router_computes_in_float32_in_layers_of_bfloat16():
    mlp, x = _mlp(SIGMOID).to(torch.bfloat16), _tokens().to(torch.bfloat16)
    weights = mlp.ready()
    assert weights.router.dtype == weights.bias.dtype == torch.float32
    chosen, shares = route(x, weights.router, weights.bias, SIGMOID)
    assert shares.dtype == torch.float32 and _run(mlp, x).dtype == torch.bfloat16
    exact = route(x.float(), mlp.router.float(), mlp.bias.float(), SIGMOID)
    assert torch.equal(chosen, exact[0]) and torch.equal(shares, exact[1])


@RULES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by groups, and without them
@torch.inference_mode()
def test_a_recorded_sparse_layer_follows_its_input(rule: Experts, dtype: torch.dtype):
    mlp, x = _mlp(rule).to(dtype), _tokens().to(dtype)
    tape = Tape()
    out = tape.record(lambda: _run(mlp, x))
    x.copy_(x.flip(0) * 1.5)
    tape.replay()
    with HostReads():
        want = _run(mlp, x)
    assert torch.equal(out, want)


def test_gradients_reach_chosen_experts_and_the_router():
    mlp = _mlp(SIGMOID).requires_grad_(True)
    x = _tokens(2)
    chosen = set(route(x, mlp.router, mlp.bias, SIGMOID)[0].flatten().tolist())
    _run(mlp, x).square().sum().backward()
    moved = {e for e in range(8) if mlp.gate_up.grad[e].abs().max() > 0}
    assert moved == chosen and mlp.router.grad.abs().max() > 0


CONFIG = BackboneConfig(
    "llada2", 64, D, 3, 4, 2, 4, 24, mask_id=2, max_positions=128, rotary_dim=2,
    experts=Experts(8, 2, 8, shared_width=8, dense_layers=1, score="sigmoid", bias=True, groups=2, active_groups=1),
)  # fmt: skip


def test_parameters_are_those_of_the_network_and_active_ones_leave_out_what_is_not_chosen():
    model = Transformer(CONFIG)
    assert CONFIG.parameters == sum(weight.numel() for weight in model.parameters())
    assert [layer.experts is None for layer in model.layers] == [True, False, False]
    assert CONFIG.parameters - CONFIG.active_parameters == 2 * (8 - 2) * 3 * D * 8
    dense = replace(CONFIG, experts=None)
    assert dense.parameters == dense.active_parameters == sum(w.numel() for w in Transformer(dense).parameters())


def test_flops_count_chosen_experts_and_reading_counts_those_that_somebody_chose():
    active = replace(CONFIG, experts=replace(CONFIG.experts, count=16))
    router = 2 * 2 * D * 8 * 10  # of eight more rows, in two layers, for ten tokens
    assert active.flops(10, 0) - CONFIG.flops(10, 0) == router
    embedding = CONFIG.vocab_size * D
    assert CONFIG.parameters_read(1) == pytest.approx(CONFIG.active_parameters - embedding)
    assert CONFIG.parameters_read(1000) == pytest.approx(CONFIG.parameters - embedding)


def test_heads_that_rotate_in_part_leave_the_rest_as_it_is():
    model = Transformer(CONFIG).init_weights(3).requires_grad_(False)
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(4))
    seen = []

    def attend(_: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        seen.append((q.clone(), kv[:, :2].clone()))
        return q.flatten(1)

    for positions in (torch.zeros(18, dtype=torch.long), torch.arange(18)):
        with torch.inference_mode():
            model(model.embed(ids).flatten(0, 1), positions, attend)
    (q0, k0), (q1, k1) = seen[0], seen[3]  # of the first layer
    assert torch.equal(q0[..., 2:], q1[..., 2:]) and torch.equal(k0[..., 2:], k1[..., 2:])
    assert not torch.allclose(q0[5, :, :2], q1[5, :, :2])
    with torch.inference_mode():
        fast = model.hidden(ids)
    assert torch.allclose(model.hidden(ids), fast, atol=1e-5)  # what training computes


def test_shapes_of_sparse_models_have_the_published_sizes():
    billions = {name: (config.parameters / 1e9, config.active_parameters / 1e9) for name, config in SHAPES.items()}
    assert billions["llada2-mini"] == pytest.approx((16.3, 1.4), abs=0.05)
    assert billions["llada2-flash"] == pytest.approx((103, 6.1), abs=0.15)
    assert billions["llada-moe-7b"][0] == pytest.approx(7.36, abs=0.005)
    assert billions["sdar-30b-a3b"] == pytest.approx((30.5, 3.35), abs=0.05)
    assert SHAPES["llada2-mini"].parameters_read(32) / 1e9 == pytest.approx(10.4, abs=0.1)


def test_a_shape_has_fewer_experts_on_a_cpu_and_all_of_them_elsewhere():
    mini = SHAPES["llada2-mini"]
    assert scaled(mini, "cuda:0") is mini and scaled(SHAPES["sdar-4b"], "cpu") is SHAPES["sdar-4b"]
    here = scaled(mini, "cpu").experts
    assert (here.count, here.active, here.groups) == (16, 8, 8)


def test_weights_that_are_larger_than_the_device_are_refused_with_both_figures(tmp_path, monkeypatch):
    folder = save_checkpoint(Transformer(replace(CONFIG, mask_id=2)).init_weights(), tmp_path / "m", torch.float32)
    monkeypatch.setattr("dlmbench.backbone.memory.total_memory", lambda device: 20_000)
    with pytest.raises(RequestError, match=r"m is \S+ GB in float32 and cpu has 2e-05 GB of memory: take a 16-bit"):
        load_checkpoint(folder)
    monkeypatch.setattr("dlmbench.backbone.memory.total_memory", lambda device: 8_000_000_000)
    with pytest.raises(RequestError, match=r"llada2-flash is 18.5 GB in bfloat16 and cpu has 8 GB .*: take a smaller"):
        random_model("llada2-flash", "cpu", torch.bfloat16)


def test_bench_times_a_sparse_shape_and_says_how_many_experts_it_has(monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "tiny", replace(CONFIG, experts=replace(CONFIG.experts, count=64, groups=2)))
    short = ["--repeats", "1", "--batch-size", "1,2", "--new-tokens", "16"]
    with pytest.raises(SystemExit) as left:
        main(["bench", "--shape", "tiny", *short])
    text = capsys.readouterr().out
    record = json.loads(text.splitlines()[-1])
    assert left.value.code == 0 and "experts a layer: 16 of 64" in text
    assert (record["experts"], record["experts_of_shape"]) == (16, 64)
    assert record["active_parameters"] < record["parameters"] and len(record["decoding"]) == 4
