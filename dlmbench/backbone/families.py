"""Families: how an official checkpoint spells its configuration and its tensors.

A family is data: a reader of ``config.json``, the names of its tensors, its attention rule and its logit shift.
SDAR is Qwen3 with block-causal attention (docs/models/sdar.md); Qwen3, Qwen2 and Llama are its causal relatives.
LLaDA is Llama with full attention under names of its own; Dream is Qwen2 with full attention whose head at position i
predicts token i + 1 (docs/models).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dlmbench.backbone.config import BackboneConfig
from dlmbench.errors import RequestError

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # of rope_scaling
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Family:
    """One official checkpoint layout.

    `names` maps our tensor to the official names it is packed from, in order; ``{}`` is the layer number. `spell`
    turns a configuration in Hugging Face's usual spelling into the family's own, for families that have one. `read`
    raises RequestError, without the checkpoint's name, for whatever the network here does not have.
    `bos_on_raw_prompts`: prompts without chat markup begin with BOS, which the tokenizer does not add by itself.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]  # those that are read; the first is written into config.json when we save
    read: Callable[[dict], BackboneConfig]
    names: dict[str, tuple[str, ...]]
    spell: Callable[[dict], dict] = dict
    mask_id: int | None = None  # of all released checkpoints, for copies whose files do not say
    tokenizer: str = "PreTrainedTokenizerFast"  # class in transformers, for checkpoints that name one of their own
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


class Fields:
    """The fields of one config.json; null is a field that is not there. `spelling`: usual name -> the family's own."""

    def __init__(self, raw: Mapping[str, Any], spelling: Mapping[str, str] = {}):
        self.raw, self.spelling = raw, spelling

    def get(self, name: str, default: Any = None) -> Any:
        own = self.raw.get(self.spelling.get(name, name))
        value = self.raw.get(name) if own is None else own
        return default if value is None else value

    def number(self, name: str, default: float | None = None) -> Any:
        """A positive number. Raises RequestError for anything else, and where there is neither it nor a default."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            name = self.spelling.get(name, name)
            has = f"has {name}={value!r}" if value is not None else f"has no {name}"
            raise RequestError(f"{has}, and a positive number is needed: fetch config.json again")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """The same, whole."""
        value = self.number(name, default)
        if value != int(value):
            raise RequestError(f"has {self.spelling.get(name, name)}={value!r}, and a whole number is needed")
        return int(value)

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them. Raises RequestError for anything else."""
        value = self.get(name, ())
        value = (value,) if isinstance(value, int) else value
        if not isinstance(value, list | tuple) or any(isinstance(i, bool) or not isinstance(i, int) for i in value):
            raise RequestError(f"has {name}={value!r}, and a token id or a list of them is needed")
        return tuple(value)

    def only(self, name: str, *values: Any) -> None:
        """Refuse a switch that stands otherwise; the first value is the usual one."""
        value = self.get(name, values[0])
        if value not in values:
            name = self.spelling.get(name, name)
            raise RequestError(f"has {name}={value!r}; only {values[0]!r} is supported: take another checkpoint")


def _read_qwen_like(fields: Fields, **fixed) -> BackboneConfig:
    """The fields that Hugging Face's Qwen2, Qwen3 and Llama configurations share."""
    rows = fields.count("vocab_size")
    _check_switches(fields, fixed.get("qkv_bias", False))
    theta, scaling = _rope(fields)
    heads, width = fields.count("num_attention_heads"), fields.count("hidden_size")
    return BackboneConfig(
        vocab_size=rows,
        hidden_size=width,
        num_layers=fields.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.count("num_key_value_heads", heads),
        head_dim=fields.count("head_dim", width // heads),
        intermediate_size=fields.count("intermediate_size"),
        rope_theta=theta,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        eos_ids=fields.ids("eos_token_id"),
        pad_id=fields.get("pad_token_id"),
        mask_id=fields.get("mask_token_id"),
        max_positions=fields.count("max_position_embeddings", 32_768),
        rope_scaling=scaling,
        **fixed,
    )


def _check_switches(fields: Fields, qkv_bias: bool) -> None:
    """Refuse what would change the result and is not built."""
    fields.only("hidden_act", "silu", "swish")
    fields.only("mlp_bias", False)
    if not qkv_bias:  # Qwen2 and Dream have these biases always and no switch
        fields.only("attention_bias", False)
    for name in EXPERTS:
        fields.only(name, 0)
    layers, longest = fields.count("num_hidden_layers"), fields.count("max_position_embeddings", 32_768)
    window = fields.get("sliding_window") or longest
    slides = fields.get("use_sliding_window") and fields.get("max_window_layers", 0) < layers
    kinds = fields.get("layer_types") or ["sliding_attention" if slides else "full_attention"]
    if other := next((kind for kind in kinds if kind not in ("full_attention", "sliding_attention")), None):
        raise RequestError(f"has layer_types with {other!r}; only 'full_attention' is supported")
    if "sliding_attention" in kinds and window < longest:
        raise RequestError(
            f"has sliding_window={window} in use below max_position_embeddings={longest}; attention over a window is "
            "not supported: take a checkpoint without"
        )


def _rope(fields: Fields) -> tuple[float, tuple[tuple[str, object], ...]]:
    """Base and scaling of the rotary frequencies. Newer files keep both in ``rope_parameters``, older ones in
    ``rope_theta`` and ``rope_scaling``."""
    rope, old = fields.get("rope_parameters", {}), fields.get("rope_scaling", {})
    if not isinstance(rope, dict) or not isinstance(old, dict):
        raise RequestError("has rotary settings that are no object: fetch config.json again")
    scaling = {k: v for k, v in {**old, **rope}.items() if k != "rope_theta" and v is not None}
    kind = scaling.pop("type", "default")
    kind = scaling.setdefault("rope_type", kind)
    if kind not in ("default", "llama3"):
        raise RequestError(
            f"has rotary scaling {kind!r}, which is not supported: only plain and llama3 frequencies are. Use a "
            "checkpoint without long-context scaling"
        )
    Fields({**fields.raw, **rope}).only("partial_rotary_factor", 1.0)
    theta = float(Fields({**fields.raw, **{k: v for k, v in rope.items() if v is not None}}).number("rope_theta", 1e4))
    if kind == "default":
        return theta, ()
    for name in LLAMA3:
        Fields(scaling).number(name)
    return theta, tuple(sorted(scaling.items()))


def _read_sdar(raw: dict) -> BackboneConfig:
    return _read_qwen_like(Fields(raw), family="sdar", qk_norm=True, attention="block_causal")


def _read_qwen3(raw: dict) -> BackboneConfig:  # a parent of a diffusion model may carry a mask id; it is never proposed
    return _read_qwen_like(Fields(raw), family="qwen3", qk_norm=True, attention="causal", shift=1)


def _read_qwen2(raw: dict) -> BackboneConfig:
    return _read_qwen_like(Fields(raw), family="qwen2", qk_norm=False, qkv_bias=True, attention="causal", shift=1)


def _read_llama(raw: dict) -> BackboneConfig:
    return _read_qwen_like(Fields(raw), family="llama", qk_norm=False, attention="causal", shift=1)


def _read_dream(raw: dict) -> BackboneConfig:
    return _read_qwen_like(Fields(raw), family="dream", qk_norm=False, qkv_bias=True, attention="full", shift=1)


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
    fields = Fields(raw, LLADA_SPELLING)
    for switch, value in LLADA_SWITCHES.items():
        fields.only(switch, value)
    fields.only("layer_norm_with_affine", True)
    fields.only("multi_query_attention", False)
    if (clip := fields.get("clip_qkv")) is not None:
        raise RequestError(f"has clip_qkv={clip!r}, which is not supported: take a checkpoint without")
    rows = {"vocab_size": fields.get("embedding_size", fields.get("vocab_size"))}  # of the embedding, padding included
    return _read_qwen_like(Fields({**raw, **rows}, LLADA_SPELLING), family="llada", qk_norm=False, attention="full")


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


_QWEN_BPE = "Qwen2Tokenizer"

SDAR = Family(
    "sdar",
    ("sdar",),
    ("SDARForCausalLM", "SDARMRPForCausalLM"),
    _read_sdar,
    _qwen_names(qk_norm=True, bias=False),
    mask_id=151_669,
    tokenizer=_QWEN_BPE,
)
QWEN3 = Family(
    "qwen3",
    ("qwen3",),
    ("Qwen3ForCausalLM",),
    _read_qwen3,
    _qwen_names(qk_norm=True, bias=False),
    tokenizer=_QWEN_BPE,
)
QWEN2 = Family(
    "qwen2",
    ("qwen2",),
    ("Qwen2ForCausalLM",),
    _read_qwen2,
    _qwen_names(qk_norm=False, bias=True),
    tokenizer=_QWEN_BPE,
)
LLAMA = Family(
    "llama",
    ("llama",),
    ("LlamaForCausalLM",),
    _read_llama,
    _qwen_names(qk_norm=False, bias=False),
    tokenizer="LlamaTokenizer",
)
LLADA = Family("llada", ("llada",), ("LLaDAModelLM",), _read_llada, _llada_names(), _spell_llada, mask_id=126_336)
DREAM = Family(
    "dream",
    ("Dream",),
    ("DreamModel",),
    _read_dream,
    _qwen_names(qk_norm=False, bias=True),
    mask_id=151_666,
    tokenizer=_QWEN_BPE,
    bos_on_raw_prompts=True,
)
