"""Families: how an official checkpoint spells its configuration and its tensors.

A family is data: a reader of ``config.json``, the names of its tensors, its attention rule and its logit shift.
SDAR is Qwen3 with block-causal attention (card of SDAR, section 2); Qwen3, Qwen2 and Llama are its causal relatives.
LLaDA is Llama with full attention under names of its own; Dream is Qwen2 with full attention whose head at position i
predicts token i + 1 (cards of LLaDA and Dream, section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dlmbench.backbone.config import BackboneConfig
from dlmbench.errors import RequestError

SDAR_MASK_ID = 151_669  # some released copies lack mask_token_id (card, section 2)


@dataclass(frozen=True)
class Family:
    """One official checkpoint layout.

    `names` maps our tensor to the official names it is packed from, in order; ``{}`` is the layer number. `spell`
    turns a configuration in Hugging Face's usual spelling into the family's own, for families that have one.
    `bos_on_raw_prompts`: prompts without chat markup begin with BOS, which the tokenizer does not add by itself.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]  # written into config.json when we save
    read: Callable[[dict], BackboneConfig]
    names: dict[str, tuple[str, ...]]
    spell: Callable[[dict], dict] = dict
    bos_on_raw_prompts: bool = False


def _qwen_names(qk_norm: bool, bias: bool) -> dict[str, tuple[str, ...]]:
    """Tensor names that Qwen2, Qwen3, Llama and SDAR share."""
    layer = "model.layers.{}."
    qkv = tuple(f"{layer}self_attn.{x}_proj.weight" for x in "qkv")
    names = {
        "embedding.weight": ("model.embed_tokens.weight",),
        "layers.{}.attention_norm": (layer + "input_layernorm.weight",),
        "layers.{}.mlp_norm": (layer + "post_attention_layernorm.weight",),
        "layers.{}.qkv.weight": qkv,
        "layers.{}.out.weight": (layer + "self_attn.o_proj.weight",),
        "layers.{}.gate_up.weight": (layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"),
        "layers.{}.down.weight": (layer + "mlp.down_proj.weight",),
        "norm": ("model.norm.weight",),
        "head.weight": ("lm_head.weight",),
    }
    if qk_norm:
        names["layers.{}.q_norm"] = (layer + "self_attn.q_norm.weight",)
        names["layers.{}.k_norm"] = (layer + "self_attn.k_norm.weight",)
    if bias:
        names["layers.{}.qkv.bias"] = tuple(name.replace(".weight", ".bias") for name in qkv)
    return names


def _read_qwen_like(raw: dict, **fixed) -> BackboneConfig:
    """The fields that Hugging Face's Qwen2, Qwen3 and Llama configurations share.

    Newer files keep the rotary settings in ``rope_parameters``; older ones in ``rope_theta`` and ``rope_scaling``.
    """
    rope = raw.get("rope_parameters") or {}
    scaling = {k: v for k, v in {**(raw.get("rope_scaling") or {}), **rope}.items() if k != "rope_theta"}
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    if scaling["rope_type"] not in ("default", "llama3"):
        raise RequestError(
            f"Rotary scaling {scaling['rope_type']!r} is not supported: only plain and llama3 frequencies are. "
            "Use a checkpoint without long-context scaling."
        )
    eos = raw.get("eos_token_id")
    return BackboneConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        intermediate_size=raw["intermediate_size"],
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        eos_ids=tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,)),
        pad_id=raw.get("pad_token_id"),
        max_positions=raw.get("max_position_embeddings", 32_768),
        rope_scaling=tuple(sorted(scaling.items())) if scaling["rope_type"] == "llama3" else (),
        **fixed,
    )


def _read_sdar(raw: dict) -> BackboneConfig:
    mask = raw.get("mask_token_id", SDAR_MASK_ID)
    return _read_qwen_like(raw, family="sdar", qk_norm=True, attention="block_causal", mask_id=mask)


def _read_qwen3(raw: dict) -> BackboneConfig:
    mask = raw.get("mask_token_id")  # a parent of a diffusion model may carry it; it is never proposed
    return _read_qwen_like(raw, family="qwen3", qk_norm=True, attention="causal", shift=1, mask_id=mask)


def _read_qwen2(raw: dict) -> BackboneConfig:
    return _read_qwen_like(raw, family="qwen2", qk_norm=False, qkv_bias=True, attention="causal", shift=1)


def _read_llama(raw: dict) -> BackboneConfig:
    if raw.get("attention_bias"):
        raise RequestError("This Llama checkpoint has attention biases, which are not supported; use one without.")
    return _read_qwen_like(raw, family="llama", qk_norm=False, attention="causal", shift=1)


def _read_dream(raw: dict) -> BackboneConfig:
    fixed = dict(family="dream", qk_norm=False, qkv_bias=True, attention="full", shift=1)
    return _read_qwen_like(raw, mask_id=raw["mask_token_id"], **fixed)


LLADA_SPELLING = {  # Hugging Face's usual name -> LLaDA's
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
    "tie_word_embeddings": "weight_tying",
    "hidden_act": "activation_type",
}
LLADA_SWITCHES = {  # the architecture has many switches; all released models stand like this
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "bias_for_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
}


def _read_llada(raw: dict) -> BackboneConfig:
    for switch, value in LLADA_SWITCHES.items():
        if raw.get(switch, value) not in (value, None):
            raise RequestError(
                f"This LLaDA checkpoint has {switch}={raw[switch]!r}; only {value!r} is supported, as in every "
                "released LLaDA, Instruct and 1.5."
            )
    usual = {**raw, **{ours: raw[theirs] for ours, theirs in LLADA_SPELLING.items() if theirs in raw}}
    usual["vocab_size"] = raw.get("embedding_size") or raw["vocab_size"]  # rows of the embedding, padding included
    return _read_qwen_like(usual, family="llada", qk_norm=False, attention="full", mask_id=raw["mask_token_id"])


def _spell_llada(usual: dict) -> dict:
    raw = {LLADA_SPELLING.get(name, name): value for name, value in usual.items() if name != "head_dim"}
    return {**raw, **LLADA_SWITCHES, "embedding_size": usual["vocab_size"]}


def _llada_names() -> dict[str, tuple[str, ...]]:
    """`ff_proj` is the gate; the head shares its leaf name `ff_out` with the layers' down projections."""
    layer = "model.transformer.blocks.{}."
    return {
        "embedding.weight": ("model.transformer.wte.weight",),
        "layers.{}.attention_norm": (layer + "attn_norm.weight",),
        "layers.{}.mlp_norm": (layer + "ff_norm.weight",),
        "layers.{}.qkv.weight": tuple(f"{layer}{x}_proj.weight" for x in "qkv"),
        "layers.{}.out.weight": (layer + "attn_out.weight",),
        "layers.{}.gate_up.weight": (layer + "ff_proj.weight", layer + "up_proj.weight"),
        "layers.{}.down.weight": (layer + "ff_out.weight",),
        "norm": ("model.transformer.ln_f.weight",),
        "head.weight": ("model.transformer.ff_out.weight",),
    }


SDAR = Family("sdar", ("sdar",), ("SDARForCausalLM",), _read_sdar, _qwen_names(qk_norm=True, bias=False))
QWEN3 = Family("qwen3", ("qwen3",), ("Qwen3ForCausalLM",), _read_qwen3, _qwen_names(qk_norm=True, bias=False))
QWEN2 = Family("qwen2", ("qwen2",), ("Qwen2ForCausalLM",), _read_qwen2, _qwen_names(qk_norm=False, bias=True))
LLAMA = Family("llama", ("llama",), ("LlamaForCausalLM",), _read_llama, _qwen_names(qk_norm=False, bias=False))
LLADA = Family("llada", ("llada",), ("LLaDAModelLM",), _read_llada, _llada_names(), _spell_llada)
DREAM = Family(
    "dream", ("Dream",), ("DreamModel",), _read_dream, _qwen_names(qk_norm=False, bias=True), bos_on_raw_prompts=True
)  # fmt: skip
