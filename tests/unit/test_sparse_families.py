"""Mixtures of experts: three layouts, their configurations, stacked experts, and decoding with them.

pytest tests/unit/test_sparse_families.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from dlmbench.backbone import load_checkpoint, save_checkpoint
from dlmbench.backbone.attention import block_causal
from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.config import BackboneConfig, Experts
from dlmbench.backbone.experts import by_loop
from dlmbench.backbone.model import Transformer
from dlmbench.backbone.network import Network
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Request
from dlmbench.errors import RequestError
from dlmbench.verify.tape import Tape

MASK, EOS = 58, 57
SHAPE = dict(
    vocab_size=60, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48,
    mask_id=MASK, eos_ids=(EOS,), pad_id=EOS, max_positions=128,
)  # fmt: skip
CONFIGS = {
    "llada2": BackboneConfig(
        "llada2", rotary_dim=4, block_length=32, **SHAPE,
        experts=Experts(
            8, 2, 12, shared_width=24, dense_layers=1, score="sigmoid", bias=True, groups=4, active_groups=2,
            scaling=2.5,
        ),
    ),
    "lladamoe": BackboneConfig(
        "lladamoe", attention="full", experts=Experts(8, 3, 12, renormalised=False), **{**SHAPE, "num_kv_heads": 4}
    ),
    "sdarmoe": BackboneConfig("sdarmoe", experts=Experts(8, 2, 12), **SHAPE),
}  # fmt: skip
FAMILIES = pytest.mark.parametrize("family", CONFIGS)


def _model(family: str, seed: int = 0) -> Transformer:
    """Random weights that are large enough for routing and for choices."""
    model = Transformer(CONFIGS[family])
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        scale = 0.3 if weight.dim() > 1 or name.endswith("bias") else 0.1
        weight.data = torch.randn(weight.shape, generator=generator) * scale + (weight.data if "norm" in name else 0)
    return model.requires_grad_(False).eval()


def _saved(family: str, folder: Path) -> tuple[Transformer, Path]:
    model = _model(family)
    return model, save_checkpoint(model, folder, torch.float32)


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _rewrite(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({name: one.contiguous() for name, one in weights.items()}, folder / "model.safetensors")


# --- layouts ----------------------------------------------------------------------------------------------------------


@FAMILIES
def test_saved_then_loaded_is_the_same_network_under_official_names(family, tmp_path):
    model, folder = _saved(family, tmp_path / "m")
    again = load_checkpoint(folder)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    names = set(_weights(folder))
    assert "model.layers.2.mlp.experts.7.down_proj.weight" in names and "model.layers.1.mlp.gate.weight" in names
    dense = "model.layers.0.mlp.gate_proj.weight"
    assert (dense in names) == (family == "llada2")
    if family == "llada2":
        assert {"model.layers.0.attention.query_key_value.weight", "model.layers.1.mlp.gate.expert_bias"} <= names


@FAMILIES
def test_routers_stay_in_float32_in_a_network_of_bfloat16(family, tmp_path):
    model, folder = _saved(family, tmp_path / "m")
    half = load_checkpoint(folder, dtype=torch.bfloat16)
    kinds = {name: weight.dtype for name, weight in half.named_parameters()}
    assert {kind for name, kind in kinds.items() if ".router" in name or ".bias" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if ".router" not in name and ".bias" not in name} == {torch.bfloat16}
    assert torch.equal(half.layers[1].experts.router, model.layers[1].experts.router)


@FAMILIES
@pytest.mark.parametrize("end", ["", ".weight"])
@pytest.mark.parametrize("joint", [False, True])
def test_stacked_experts_load_too(family, joint, end, tmp_path):
    model, folder = _saved(family, tmp_path / "m")
    weights = _weights(folder)
    for layer, module in enumerate(model.layers):
        if module.experts is None:
            continue
        place = f"model.layers.{layer}.mlp.experts."
        weights = {name: one for name, one in weights.items() if not name.startswith(place)}
        gate, up = module.experts.gate_up.chunk(2, 1)
        weights[f"{place}down_proj{end}"] = module.experts.down
        weights |= {f"{place}gate_up_proj{end}": module.experts.gate_up} if joint else {}
        weights |= {} if joint else {f"{place}gate_proj{end}": gate, f"{place}up_proj{end}": up}
    _rewrite(folder, weights)
    again = load_checkpoint(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("renormalised", [True, False])
def test_sdarmoe_is_qwen3_moe_with_another_mask(renormalised, tmp_path):
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        moe_intermediate_size=16, num_experts=8, num_experts_per_tok=3, norm_topk_prob=renormalised,
        max_position_embeddings=128,
    )  # fmt: skip
    reference = Qwen3MoeForCausalLM(config).eval()
    for key, weight in reference.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in key else 0.0, 0.2)
    reference.save_pretrained(tmp_path)
    _edit(tmp_path, model_type="sdar_moe", architectures=["SDARMoeForCausalLM"], mask_token_id=60)
    model = load_checkpoint(tmp_path)
    ids, positions = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(1)), torch.arange(12)
    bias = block_causal(positions.expand(2, 12), 4, torch.float32)
    with torch.inference_mode():
        expected = reference(input_ids=ids, attention_mask=bias).logits
        ours = model.project(model.hidden(ids, mask=bias))
    assert (ours - expected).abs().max() < 1e-4


def test_lladamoe_is_told_from_llada_by_its_class(tmp_path):
    _, folder = _saved("lladamoe", tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text())
    assert (raw["model_type"], raw["architectures"]) == ("llada", ["LLaDAMoEModelLM"])
    assert raw["expert_intermediate_size"] == 12 and "head_dim" not in raw
    _edit(folder, model_type="lladamoe", norm_topk_prob=True)  # what its files say of weights has no effect
    assert load_checkpoint(folder).config == CONFIGS["lladamoe"]


@pytest.mark.parametrize(
    "family, changes, words",
    [
        ("llada2", {"num_experts": ...}, "no num_experts"),
        ("llada2", {"n_group": 3}, "n_group=3"),
        ("llada2", {"n_group": 8}, "groups of two"),
        ("llada2", {"topk_group": 5}, "topk_group=5"),
        ("llada2", {"num_experts_per_tok": 5}, "choose among 4"),
        ("llada2", {"first_k_dense_replace": 4}, "first_k_dense_replace=4"),
        ("llada2", {"partial_rotary_factor": 0.4}, "partial_rotary_factor=0.4"),
        ("llada2", {"use_qkv_bias": True}, "use_qkv_bias=True"),
        ("llada2", {"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias=False"),
        ("llada2", {"architectures": ["BailingMoeV2ForCausalLM"]}, "BailingMoeV2ForCausalLM"),
        ("lladamoe", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("lladamoe", {"moe_layer_freq": [1, 0, 1]}, "moe_layer_freq"),
        ("lladamoe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size=8"),
        ("lladamoe", {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias=True"),
        ("lladamoe", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("sdarmoe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ("sdarmoe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("sdarmoe", {"moe_intermediate_size": 16}, "config.json says"),
        ("sdarmoe", {"num_experts": 7, "num_experts_per_tok": 2}, "does not have"),
    ],
)
def test_what_is_not_built_is_refused_by_its_field(family, changes, words, tmp_path):
    _, folder = _saved(family, tmp_path / "my model")
    _edit(folder, **changes)
    with pytest.raises(RequestError, match=words) as refusal:
        load_checkpoint(folder)
    assert str(refusal.value).startswith("my model") and "\n" not in str(refusal.value)


def _uneven(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A gate and an up projection whose rows add up to the right number."""
    place = "model.layers.0.mlp.experts.3."
    return weights | {f"{place}gate_proj.weight": torch.ones(10, 32), f"{place}up_proj.weight": torch.ones(14, 32)}


def _other_stacks(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rest = {name: one for name, one in weights.items() if ".experts." not in name}
    return rest | {f"model.layers.{layer}.mlp.experts.w13": torch.ones(8, 24, 32) for layer in range(3)}


@pytest.mark.parametrize(
    "change, words",
    [
        (_uneven, "config.json says"),
        (_other_stacks, "names that are not known .*experts.w13"),
        (lambda weights: {n: w for n, w in weights.items() if ".experts.5." not in n}, "experts.5.* is missing"),
    ],
)
def test_experts_that_cannot_be_loaded_rightly_are_refused(change, words, tmp_path):
    _, folder = _saved("sdarmoe", tmp_path / "m")
    _rewrite(folder, change(_weights(folder)))
    with pytest.raises(RequestError, match=words):
        load_checkpoint(folder)


# --- decoding ---------------------------------------------------------------------------------------------------------


def _engine(family: str, model: Transformer | None = None, block: int = 8, **options: object) -> Engine:
    model = model or _model(family)
    full = model.config.attention == "full"
    network = Bidirectional("target", model, block) if full else Network("target", model, block)
    return Engine({"target": network}, Threshold(ThresholdConfig(tau=0.6)), **options)


def _requests() -> list[Request]:
    generator = torch.Generator().manual_seed(5)
    lengths = (3, 9, 16, 22, 8)
    prompts = [tuple(torch.randint(0, EOS, (n,), generator=generator).tolist()) for n in lengths]
    return [Request(str(i), prompt, 8 + 5 * i) for i, prompt in enumerate(prompts)]


@FAMILIES
def test_a_batch_decodes_what_its_rows_decode_alone(family):
    together = _engine(family, batch_size=3).generate(_requests())
    alone = [_engine(family).generate([request])[0] for request in _requests()]
    assert [one.raw_ids for one in together] == [one.raw_ids for one in alone]
    assert len({tuple(one.raw_ids) for one in together}) == len(together)


@FAMILIES
def test_the_loop_over_experts_decodes_the_same(family, monkeypatch):
    ours = _engine(family, batch_size=3).generate(_requests())
    monkeypatch.setattr("dlmbench.backbone.experts.by_group", by_loop)
    assert [one.raw_ids for one in _engine(family, batch_size=3).generate(_requests())] == [one.raw_ids for one in ours]


@FAMILIES
def test_recorded_steps_decode_what_plain_steps_do(family):
    plain = _engine(family, batch_size=3).generate(_requests())
    tapes: list[Tape] = []

    def recording(pool: object | None = None) -> Tape:
        tapes.append(Tape(pool))
        return tapes[-1]

    engine = _engine(family, batch_size=3, lag=1, graphs=recording)
    recorded = engine.generate(_requests())
    assert [one.raw_ids for one in recorded] == [one.raw_ids for one in plain]
    assert engine.describe()["graphs"] == "recorded" and sum(tape.replays for tape in tapes) > 10


@pytest.mark.parametrize("family", ["llada2", "sdarmoe"])
def test_cached_forwards_equal_uncached_ones(family):
    model, block = _model(family), 8
    prompt = _requests()[3].prompt_ids
    run = _engine(family, model).generate([Request("a", prompt, 20)], trace=True)[0]
    row = [*prompt, *[MASK] * (len(run.raw_ids))]
    for step in run.trace:  # every step again, from the whole row
        end = (step["positions"][0] // block + 1) * block
        ids = torch.tensor([row[:end]])
        bias = block_causal(torch.arange(end).unsqueeze(0), block, torch.float32)
        with torch.inference_mode():
            logits = model.project(model.hidden(ids, mask=bias))[0]
        logits = logits.index_fill(1, torch.tensor([MASK]), float("-inf"))
        for position, token in zip(step["positions"], step["tokens"]):
            assert logits[position].argmax().item() == token
            row[position] = token
    assert row[len(prompt) :] == run.raw_ids


def test_work_is_counted_in_chosen_experts():
    model = _model("sdarmoe")
    run = _engine("sdarmoe", model).generate(_requests()[:1])[0]
    more = Transformer(replace(model.config, experts=replace(model.config.experts, active=8)))
    more.load_state_dict(model.state_dict())
    all_of_them = _engine("sdarmoe", more.requires_grad_(False)).generate(_requests()[:1])[0]
    ours, theirs = (one.counts["target"]["denoise"] for one in (run, all_of_them))
    extra = 3 * 2 * (8 - 2) * 3 * 32 * 12
    assert theirs["flops"] / theirs["query_tokens"] - ours["flops"] / ours["query_tokens"] == pytest.approx(
        extra, rel=0.05
    )
