"""The faster forms of products and norms against torch's own. pytest tests/unit/test_ops.py"""

import copy

import pytest
import torch
import torch.nn.functional as F

from dlmbench.backbone import ops
from dlmbench.decoders.testing import tiny_model
from dlmbench.training import step


@pytest.mark.parametrize("wide", [True, False], ids=["wide vectors", "AVX2"])
@pytest.mark.parametrize("rows", [1, 8, 100, 700])
@pytest.mark.parametrize("width, out", [(32, 48), (128, 768), (1100, 1000)])
def test_products_and_norms_do_not_depend_on_their_form(rows, width, out, wide, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(ops, "WIDE", wide)
    x, weight, bias, residual = (torch.randn(*shape) for shape in ((rows, width), (out, width), (out,), (rows, out)))
    scale = torch.rand(width)
    expected = F.linear(x, weight), F.linear(x, weight, bias), residual + F.linear(x, weight)
    with torch.inference_mode():
        matrix = ops.matrix_of(weight)
        found = ops.linear(x, matrix), ops.linear(x, matrix, bias), ops.add_linear(residual, x, matrix)
        normed = ops.rms_norm(x, ops.norm_of(scale, 1e-5))
    for ours, theirs in zip(found, expected):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * width**0.5)
    assert torch.allclose(normed, F.rms_norm(x, (width,), scale, 1e-5), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected[0], expected[2])


@pytest.mark.parametrize("rows", [3, 40])
def test_bfloat16_products_in_float32_are_torchs_up_to_a_rounding(rows, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(ops, "EMULATED", True)
    monkeypatch.setattr(ops, "AT_ONCE", 7)
    x, weight, bias, residual = (torch.randn(*n).bfloat16() for n in ((rows, 64), (48, 64), (48,), (rows, 48)))
    exact = x.double() @ weight.double().t()
    with torch.inference_mode():
        matrix = ops.matrix_of(weight)
        found = ops.linear(x, matrix), ops.linear(x, matrix, bias), ops.add_linear(residual, x, matrix)
    for ours, theirs in zip(found, (exact, exact + bias.double(), exact + residual.double())):
        assert ours.dtype == torch.bfloat16
        assert torch.allclose(ours.double(), theirs, rtol=2e-2, atol=0.1)


def test_small_numbers_keep_the_epsilon_of_a_norm():
    x, scale = torch.full((2, 16), 1e-4), torch.ones(16)
    with torch.inference_mode():
        found = ops.rms_norm(x, ops.norm_of(scale, 1e-6))
    assert torch.allclose(found, F.rms_norm(x, (16,), scale, 1e-6)) and float(found.max()) < 0.2


@pytest.mark.parametrize("rows", [1, 3, 40, 300])
def test_packed_bfloat16_products_are_torchs_up_to_a_rounding(rows):
    torch.manual_seed(0)
    x, weight, bias, residual = (torch.randn(*n).bfloat16() for n in ((rows, 64), (48, 64), (48,), (rows, 48)))
    exact = x.double() @ weight.double().t()
    with torch.inference_mode():
        layout = ops.packed(weight)
        matrix = ops.matrix_of(layout)
        found = ops.linear(x, matrix), ops.linear(x, matrix, bias), ops.add_linear(residual.clone(), x, matrix, True)
    for ours, theirs in zip(found, (exact, exact + bias.double(), exact + residual.double())):
        assert ours.dtype == torch.bfloat16
        assert torch.allclose(ours.double(), theirs, rtol=2e-2, atol=0.1)
    assert torch.equal(layout.to_dense(), weight)
    assert ops.packed(weight) is weight  # weights that may still change are left as they are


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_weights_are_saved_as_they_were_and_kept_once(dtype, monkeypatch):
    monkeypatch.setattr(ops, "PACKED", 0)  # every float32 weight is a large one
    model = tiny_model("block_causal", seed=4).to(dtype)
    before, ids = {name: weight.clone() for name, weight in model.state_dict().items()}, torch.arange(12).view(1, 12)
    with torch.inference_mode():
        first = model.hidden(ids)
        packs = ops.packed(torch.zeros(8, 8, dtype=dtype)).is_mkldnn
        assert {layer.down.weight.is_mkldnn for layer in model.layers} == {packs}
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    with torch.inference_mode():
        assert torch.equal(model.hidden(ids), first)


@pytest.mark.parametrize(
    "change, dtype",
    [
        ("load", torch.float32),
        ("train", torch.float32),
        ("copy", torch.float32),
        ("outside", torch.float32),
        ("load", torch.bfloat16),
        ("train", torch.bfloat16),
        ("copy", torch.bfloat16),
    ],
)
def test_weights_made_ready_follow_a_change(change, dtype):
    ids, fresh = torch.arange(12).view(1, 12), tiny_model("block_causal", seed=5).to(dtype)
    model, weights = tiny_model("block_causal", seed=4).to(dtype), [weight.clone() for weight in fresh.parameters()]
    with torch.inference_mode():
        before = model.hidden(ids)
        expected = fresh.hidden(ids)
    if change == "load":
        model.load_state_dict(fresh.state_dict())
    else:
        if change == "train":
            model.train()
        if change == "copy":
            model = copy.deepcopy(model).eval()
        with torch.no_grad():
            for ours, theirs in zip(model.parameters(), weights, strict=True):
                ours.copy_(theirs)
    with torch.no_grad() if change == "outside" else torch.inference_mode():
        found = model.hidden(ids)
    near = 1e-5 if dtype == torch.float32 else 0.1  # bfloat16: of other layouts
    assert torch.allclose(found, expected, atol=near) and not torch.allclose(found, before, atol=0.3)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_training_compiles_a_layer_as_a_whole(mode):
    model, x, bias = tiny_model("block_causal"), torch.randn(32, 32), torch.zeros(2, 1, 16, 16)
    cos, sin = model._rotation(torch.arange(16).repeat(2), torch.float32)
    compiled = torch.compile(step._layer, backend="eager", fullgraph=True)
    with mode():
        ours, plain = (form(model.layers[0], x, cos, sin, bias) for form in (compiled, step._layer))
    assert torch.allclose(ours, plain, atol=1e-6)
