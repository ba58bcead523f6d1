"""Families: how an official checkpoint spells its configuration and its tensors, and how it is used.

A family is data: a layout (a reader of ``config.json`` and the names of tensors) and a descriptor. Many families share
a layout: SDAR and DreamReasoner are Qwen3 with block-causal attention, Fast-dLLM v2 and Dream are Qwen2 with it or
with full attention and a head that stays shifted, iLLaDA is Llama with full attention; dllm's a2d models are any of the
three with one attention or the other, which their files do not say. LLaDA is Llama under names of its own. A family
whose layout is here is one entry at the end of this page, and its name in `dlmbench.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.descriptor import NOTHING, Descriptor, Told
from dlmbench.errors import RequestError
from dlmbench.files import JsonObject
from dlmbench.registry import BACKBONES

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # of rope_scaling
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is written down.

    `names` maps our tensor to the official names it is packed from, in order; ``{}`` is the layer number. `spell` turns
    a configuration in Hugging Face's usual spelling into the layout's own, for those that have one. `read` raises
    RequestError, without the checkpoint's name, for whatever the network here does not have.
    """

    read: Callable[[dict], BackboneConfig]
    names: dict[str, tuple[str, ...]]
    spell: Callable[[dict], dict] = dict


@dataclass(frozen=True)
class Family:
    """Checkpoints of one kind: their layout and what is known of their use.

    Families that share a model type are told apart by `architectures`, and where a file names none by `marks`, fields
    of config.json that only this one has. `block_field` is the field that says the block length,
    `mask_word` the spelling of a mask token that tokenizers have without saying what it is.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]  # those that are read; the first is written into config.json when we save
    layout: Layout
    descriptor: Descriptor = Descriptor()
    marks: tuple[str, ...] = ()
    block_field: str = "block_size"
    mask_word: str | None = None


def find(raw: JsonObject, name: str, told: Told = NOTHING) -> Family:
    """The family of a configuration; `name` is the checkpoint's, for messages.

    Raises RequestError for a model type that no family has, for classes that none of its families names, which may
    decode in another way, and for an autoregressive family's file with a trace of diffusion, unless `told` says how the
    model attends.
    """
    model_type = raw.get("model_type")
    families = [BACKBONES.get(one) for one in BACKBONES.names()]
    related = [one for one in families if model_type in one.model_types]
    if not related:
        known = ", ".join(dict.fromkeys(t for one in families for t in one.model_types))
        raise RequestError(f"{name}: model_type {model_type!r} belongs to no backbone family; known are {known}.")
    architectures, own = _classes(raw)
    named = _named(related, architectures)
    if named is None and architectures and not told.by_user:
        if not any(one.name == told.family and not one.architectures for one in related):
            read = " or ".join(one for family in related for one in family.architectures)
            raise RequestError(
                f"{name}: config.json says model_type {model_type!r} and architectures {', '.join(architectures)}, "
                f"which may decode in another way; {model_type} is read as {read} only: {_DESCRIBE}"
            )
    if named is None or _autoregressive(named):  # a preset, and code of its own, say more than a parent's class
        others = [one for one in related if one is not named and not _autoregressive(one)]
        told_so = [one for one in others if one.name == told.family]
        marked = [one for one in others if any(raw.get(mark) is not None for mark in one.marks)]
        found = told_so + [one for one in others if set(one.architectures) & set(own)] + marked * (named is None)
        if found:
            return found[0]
    family = named or next((one for one in related if one.architectures and not one.marks), related[0])
    if _autoregressive(family) and not told.by_user:
        _refuse_traces(raw, name, family, [one for one in own if one not in family.architectures])
    return family


def _autoregressive(family: Family) -> bool:
    return family.descriptor.attention == "causal"


def _named(families: list[Family], classes: list[str]) -> Family | None:
    return next((one for one in families if set(one.architectures) & set(classes)), None)


_DESCRIBE = (
    "if it is a diffusion model in that layout, give --attention, --block-length, --mask-id and --shift; --attention "
    "causal says that it is none."
)
_TRACES = ("block_size", "bd_size", "block_length")  # fields of diffusion models' files alone


def _refuse_traces(raw: JsonObject, name: str, family: Family, strangers: list[str]) -> None:
    """An autoregressive model's file has no code of its own and knows no blocks."""
    traces = [f"{field}={raw[field]!r}" for field in _TRACES if raw.get(field) is not None]
    if strangers:
        traces.append(f"auto_map to {', '.join(strangers)}")
    if traces:
        raise RequestError(
            f"{name}: config.json says model_type {raw.get('model_type')!r} and has {' and '.join(traces)}, so it may "
            f"not be autoregressive as {family.name} is: {_DESCRIBE}"
        )


def _classes(raw: JsonObject) -> tuple[list[str], list[str]]:
    """Model classes that config.json names: its architectures, and those of its own code."""
    architectures = raw.get("architectures") or []
    architectures = [architectures] if isinstance(architectures, str) else [str(one) for one in architectures]
    mapped = raw.get("auto_map")
    mapped = mapped if isinstance(mapped, dict) else {}
    own = [str(path).rpartition(".")[2] for kind, path in mapped.items() if kind.startswith("AutoModel")]
    return architectures, own


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

    def __init__(self, raw: JsonObject, spelling: Mapping[str, str] = {}):
        self.raw, self.spelling = raw, spelling

    def get(self, name: str, default: object = None) -> Any:
        own = self.raw.get(self.spelling.get(name, name))
        value = self.raw.get(name) if own is None else own
        return default if value is None else value

    def number(self, name: str, default: float | None = None) -> float:
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

    def only(self, name: str, *values: object) -> None:
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


def _read_qwen3(raw: dict) -> BackboneConfig:
    return _read_qwen_like(Fields(raw), family="qwen3", qk_norm=True)


def _read_qwen2(raw: dict) -> BackboneConfig:
    return _read_qwen_like(Fields(raw), family="qwen2", qk_norm=False, qkv_bias=True)


def _read_llama(raw: dict) -> BackboneConfig:
    fields = Fields(raw)
    if (eps := fields.get("layer_norm_eps")) is not None:
        raise RequestError(f"has layer_norm_eps={eps!r}; layer norms are not supported, only RMS norms are")
    return _read_qwen_like(fields, family="llama", qk_norm=False)


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
    return _read_qwen_like(Fields({**raw, **rows}, LLADA_SPELLING), family="llada", qk_norm=False)


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


LLAMA_LAYOUT = Layout(_read_llama, _qwen_names(qk_norm=False, bias=False))
QWEN2_LAYOUT = Layout(_read_qwen2, _qwen_names(qk_norm=False, bias=True))
QWEN3_LAYOUT = Layout(_read_qwen3, _qwen_names(qk_norm=True, bias=False))
LLADA_LAYOUT = Layout(_read_llada, _llada_names(), _spell_llada)

_QWEN_BPE, _LLAMA_BPE = "Qwen2Tokenizer", "LlamaTokenizer"

# --- autoregressive: a parent of a diffusion model may carry a mask id, which is never proposed -----------------------

QWEN3 = Family(
    "qwen3", ("qwen3",), ("Qwen3ForCausalLM",), QWEN3_LAYOUT,
    Descriptor(attention="causal", shift=1, tokenizer=_QWEN_BPE),
)  # fmt: skip
QWEN2 = Family(
    "qwen2", ("qwen2",), ("Qwen2ForCausalLM",), QWEN2_LAYOUT,
    Descriptor(attention="causal", shift=1, tokenizer=_QWEN_BPE),
)  # fmt: skip
LLAMA = Family(
    "llama", ("llama",), ("LlamaForCausalLM",), LLAMA_LAYOUT,
    Descriptor(attention="causal", shift=1, tokenizer=_LLAMA_BPE),
)  # fmt: skip

# --- diffusion models; a mask id here is that of all released checkpoints, for copies whose files do not say ----------

SDAR = Family(
    "sdar", ("sdar",), ("SDARForCausalLM", "SDARMRPForCausalLM"), QWEN3_LAYOUT,
    Descriptor(attention="block_causal", shift=0, mask_id=151_669, tokenizer=_QWEN_BPE),
)  # fmt: skip
LLADA = Family(
    "llada", ("llada",), ("LLaDAModelLM",), LLADA_LAYOUT,
    Descriptor(attention="full", shift=0, mask_id=126_336, confidence="clean"),
)  # fmt: skip
DREAM = Family(
    "dream", ("Dream",), ("DreamModel",), QWEN2_LAYOUT,
    Descriptor(attention="full", shift=1, mask_id=151_666, tokenizer=_QWEN_BPE, bos_on_raw_prompts=True),
)  # fmt: skip
DREAMREASONER = Family(  # Dream's model type, Qwen3's tensors
    "dreamreasoner", ("Dream",), ("DreamForCausalLM",), QWEN3_LAYOUT,
    Descriptor(attention="block_causal", shift=0, mask_id=151_669, tokenizer=_QWEN_BPE),
    marks=("block_size",),
)  # fmt: skip
ILLADA = Family(  # neither its configuration nor its tokenizer says the mask id
    "illada", ("illada",), ("ILLaDAForCausalLM",), LLAMA_LAYOUT,
    Descriptor(attention="full", shift=0, mask_id=5, confidence="clean"),
)  # fmt: skip
STABLE_DIFFCODER = Family(
    "stable-diffcoder", ("llama",), ("StableDiffcoderForCausalLM",), LLAMA_LAYOUT,
    Descriptor(attention="block_causal", shift=0, mask_id=5, tokenizer=_LLAMA_BPE),
)  # fmt: skip
EFFICIENT_DLM = Family(  # what its class is called, its mask and its shift are not established
    "efficient-dlm", ("qwen3",), (), QWEN3_LAYOUT, Descriptor(attention="block_causal", tokenizer=_QWEN_BPE)
)
FASTDLLM2 = Family(  # bd_size is the block length of training, with which it is decoded too
    "fastdllm2", ("Fast_dLLM_Qwen",), ("Fast_dLLM_QwenForCausalLM",), QWEN2_LAYOUT,
    Descriptor(attention="block_causal", shift=1, mask_id=151_665, tokenizer=_QWEN_BPE),
    block_field="bd_size", mask_word="|<MASK>|",
)  # fmt: skip

_A2D = Descriptor(shift=0, tokenizer=_QWEN_BPE, confidence="clean")  # mdlm and bd3lm: the files do not say which
_MASK = "<|mask|>"
A2D_QWEN3 = Family(
    "a2d-qwen3", ("a2d-qwen3",), ("A2DQwen3LMHeadModel",), QWEN3_LAYOUT, _A2D, mask_word=_MASK
)  # fmt: skip
A2D_QWEN2 = Family(
    "a2d-qwen2", ("a2d-qwen2",), ("A2DQwen2LMHeadModel",), QWEN2_LAYOUT, _A2D, mask_word=_MASK
)  # fmt: skip
A2D_LLAMA = Family(
    "a2d-llama", ("a2d-llama",), ("A2DLlamaLMHeadModel",), LLAMA_LAYOUT, replace(_A2D, tokenizer=_LLAMA_BPE),
    mask_word=_MASK,
)  # fmt: skip
