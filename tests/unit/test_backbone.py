"""The backbone against transformers' own classes, and against itself uncached. pytest tests/unit/test_backbone.py"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from dlmbench.backbone import attention, load_checkpoint, load_tokenizer, save_checkpoint, weights_hash
from dlmbench.backbone.attention import QueryGroup, block_causal, bmm_attention, sdpa_attention
from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.families import DREAM, LLADA, LLAMA, QWEN2
from dlmbench.backbone.model import Transformer
from dlmbench.errors import RequestError

SIZES = dict(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=128,
)  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
ORACLES = {
    "qwen3": (Qwen3Config(**SIZES, head_dim=16), Qwen3ForCausalLM),
    "qwen3-tied": (Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True), Qwen3ForCausalLM),
    "qwen2": (Qwen2Config(**SIZES), Qwen2ForCausalLM),
    "llama": (LlamaConfig(**SIZES), LlamaForCausalLM),
    "llama3-rope": (LlamaConfig(**SIZES, rope_parameters=LLAMA3), LlamaForCausalLM),
}


def oracle(name, folder):
    """A random transformers model with biases and norms away from their defaults, saved to `folder`."""
    torch.manual_seed(0)
    config, cls = ORACLES[name]
    model = cls(config).eval()
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in key else 0.0, 0.3)
        else:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("rule", ["causal", "full", "blocks"])
def test_logits_equal_transformers_with_the_same_mask(name, rule, tmp_path):
    reference = oracle(name, tmp_path)
    model = load_checkpoint(tmp_path)
    ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    position = torch.arange(12)
    unit = {"causal": 1, "full": 12, "blocks": 4}[rule]
    allowed = (position.unsqueeze(1) // unit >= position // unit)[None, None]
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    with torch.inference_mode():
        expected = reference(input_ids=ids, attention_mask=bias.expand(2, 1, 12, 12)).logits
        ours = model.project(model.hidden(ids, mask=allowed))
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["qwen3", "qwen3-tied", "qwen2", "llama", "llama3-rope"])
def test_save_then_load_gives_the_same_tensors(name, tmp_path):
    oracle(name, tmp_path / "official")
    model = load_checkpoint(tmp_path / "official")
    assert model.config.parameters == sum(p.numel() for p in model.parameters())
    again = load_checkpoint(save_checkpoint(model, tmp_path / "ours", torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert again.config.rope_scaling == model.config.rope_scaling
    assert bool(again.config.rope_scaling) == ("rope" in name)
    assert set(load_file(tmp_path / "ours/model.safetensors")) <= set(
        load_file(tmp_path / "official/model.safetensors")
    )


def as_diffusion_checkpoint(name, source, folder):
    """The same weights in the layout of LLaDA (from Llama) or Dream (from Qwen2)."""
    raw, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    family = {"llada": LLADA, "dream": DREAM}[name]
    usual = {"rope_theta": 10_000.0, **raw, "model_type": family.model_types[0], "mask_token_id": 60}
    usual["architectures"] = list(family.architectures)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(family.layout.spell(usual)))
    respelt = {}
    for ours, official in (LLAMA if name == "llada" else QWEN2).layout.names.items():
        for layer in range(2) if "{}" in ours else [0]:
            for theirs, target in zip(official, family.layout.names[ours]):
                respelt[target.format(layer)] = tensors[theirs.format(layer)]
    save_file(respelt, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name, parent", [("llada", "llama"), ("dream", "qwen2")])
def test_bidirectional_families_equal_their_parents_with_a_full_mask(name, parent, tmp_path):
    reference = oracle(parent, tmp_path / "parent")
    model = load_checkpoint(as_diffusion_checkpoint(name, tmp_path / "parent", tmp_path / name))
    assert (model.config.attention, model.config.shift, model.config.mask_id) == ("full", int(name == "dream"), 60)
    assert model.config.parameters == sum(p.numel() for p in model.parameters())
    ids = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(input_ids=ids, attention_mask=torch.zeros(2, 1, 12, 12)).logits
        assert (model.project(model.hidden(ids)) - expected).abs().max() < 1e-4
    again = load_checkpoint(save_checkpoint(model, tmp_path / "again", torch.float32))
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    official = set(load_file(tmp_path / name / "model.safetensors"))
    assert set(load_file(tmp_path / "again/model.safetensors")) == official


def test_a_llada_variant_that_is_not_supported_says_which_switch(tmp_path):
    oracle("llama", tmp_path / "parent")
    folder = as_diffusion_checkpoint("llada", tmp_path / "parent", tmp_path / "llada")
    _edit(folder, include_qkv_bias=True)
    with pytest.raises(RequestError, match="include_qkv_bias=True"):
        load_checkpoint(folder)


def test_sharded_checkpoint_loads_and_changes_the_hash(tmp_path):
    model = oracle("qwen3", tmp_path / "one")
    tensors = load_file(tmp_path / "one/model.safetensors")
    names = sorted(tensors)
    (tmp_path / "two").mkdir()
    (tmp_path / "two/config.json").write_text((tmp_path / "one/config.json").read_text())
    for i in range(2):
        save_file({n: tensors[n] for n in names[i::2]}, tmp_path / f"two/model-{i + 1:05}-of-00002.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "two").embedding.weight, model.model.embed_tokens.weight)
    assert weights_hash(tmp_path / "one") != weights_hash(tmp_path / "two")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors"),
        (lambda folder: _edit(folder, model_type="mamba"), "mamba"),
        (lambda folder: _edit(folder, intermediate_size=40), "config.json says"),
        (lambda folder: _edit(folder, num_hidden_layers=3), "missing"),
    ],
)
def test_a_broken_folder_is_one_clear_sentence(spoil, words, tmp_path):
    oracle("qwen3", tmp_path)
    spoil(tmp_path)
    with pytest.raises(RequestError, match=words):
        load_checkpoint(tmp_path)


def _edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_tokenizer_that_names_custom_code_loads_without_it(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
        )
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('custom code was run')")
    assert load_tokenizer(tmp_path)("a")["input_ids"] == [0]


@pytest.mark.parametrize("at_once", [attention.SCORES, 2000, 1])  # bytes: all of them, two (row, head) pairs, one
@pytest.mark.parametrize("heads, kv_heads, queries", [(4, 4, 8), (4, 2, 8), (6, 2, 1)])
def test_products_equal_fused_attention(heads, kv_heads, queries, at_once, monkeypatch):
    monkeypatch.setattr(attention, "SCORES", at_once)
    torch.manual_seed(0)
    keys, values = torch.randn(2, 3, kv_heads, 20, 16)
    q = torch.randn(3 * queries, heads, 16)
    positions = torch.arange(queries).expand(3, queries)
    bias = torch.zeros(3, 1, 1, 20)
    bias[1, ..., 5:], bias[2, ..., 11:] = float("-inf"), float("-inf")
    group = QueryGroup(positions, bias)
    own = QueryGroup(positions, block_causal(positions, 4, torch.float32))
    for one, seen in ((group, 20), (own, queries)):
        k, v = keys[:, :, :seen], values[:, :, :seen]
        plain = bmm_attention(one, q, k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1))
        assert torch.allclose(plain, sdpa_attention(one, q, k, v), atol=1e-5)


def test_flops_count_every_matrix_once():
    config = BackboneConfig("sdar", 100, 32, 2, 4, 2, 8, 64)
    model = Transformer(config)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embedding" not in n)
    assert config.flops(1, 0) == 2 * matrices
    assert config.flops(3, 10) - config.flops(3, 0) == 4 * 2 * 32 * 10
    assert replace(config, qkv_bias=True).parameters == config.parameters + 2 * 8 * 8
