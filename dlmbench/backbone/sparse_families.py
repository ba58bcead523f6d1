"""Families whose layers are mixtures of experts: LLaDA2, LLaDA-MoE and SDAR-MoE.

LLaDA2 (arXiv 2512.15745, 2602.08676) is Ling 2.0 with block-causal attention: a dense first layer, one product for
queries, keys and values, heads that rotate in part, a sigmoid router. LLaDA-MoE (arXiv 2509.24389) is OLMoE with full
attention: a softmax router whose weights are not renormalised, whatever its files say of it. SDAR-MoE is Qwen3-MoE with
block-causal attention. Files hold one tensor an expert and product, or stacks of them (`stacked`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dlmbench.backbone.config import BackboneConfig, Experts
from dlmbench.backbone.descriptor import Descriptor
from dlmbench.backbone.families import EXPERTS, Family, Fields, Layout, _qwen_names, _read_qwen_like
from dlmbench.errors import RequestError
from dlmbench.files import JsonObject

_CLASS_EPS = 1e-5  # of norms, where a file of Ling or OLMoE descent does not say


def _read_llada2(raw: dict) -> BackboneConfig:
    fields = Fields({"rms_norm_eps": _CLASS_EPS, **raw})
    for switch in ("use_bias", "use_qkv_bias", "norm_head", "norm_softmax", "using_split_qkv_in_self_attention"):
        fields.only(switch, False)
    for switch in ("use_rmsnorm", "moe_router_enable_expert_bias"):
        fields.only(switch, True)
    heads = fields.count("num_attention_heads")
    part = fields.number("partial_rotary_factor", 1.0)
    width = fields.count("moe_intermediate_size")
    experts = Experts(
        _number(fields),
        fields.count("num_experts_per_tok"),
        width,
        shared_width=width * _whole(fields, "num_shared_experts"),
        dense_layers=_whole(fields, "first_k_dense_replace"),
        score="sigmoid",
        bias=True,
        groups=fields.count("n_group", 1),
        active_groups=fields.count("topk_group", 1),
        renormalised=fields.count("num_experts_per_tok") > 1,  # the weight of a single expert stays its score
        scaling=float(fields.number("routed_scaling_factor", 1.0)),
    )
    kept = {"partial_rotary_factor": None, "num_key_value_heads": raw.get("num_key_value_heads") or heads}
    config = _read(Fields({**fields.raw, **kept}), experts, family="llada2", qk_norm=True)
    rotary = int(config.head_dim * part)
    if rotary % 2 or not 0 < rotary <= config.head_dim:
        raise RequestError(
            f"has partial_rotary_factor={part!r}, which makes no even part of heads of {config.head_dim}"
        )
    return replace(config, rotary_dim=None if rotary == config.head_dim else rotary)


def _read_lladamoe(raw: dict) -> BackboneConfig:
    fields = Fields({"rms_norm_eps": _CLASS_EPS, **raw})
    fields.only("moe_router_enable_expert_bias", False)
    for name in ("clip_qkv", "shared_expert_intermediate_size"):
        if (value := fields.get(name)) is not None:
            raise RequestError(f"has {name}={value!r}, which is not supported: take a checkpoint without")
    sparse = fields.get("moe_layer_freq", 1)
    if any(layer != 1 for layer in (sparse if isinstance(sparse, list) else [sparse])):
        raise RequestError(f"has moe_layer_freq={sparse!r}; only layers that all have experts are supported")
    width = fields.count("expert_intermediate_size")
    experts = Experts(_number(fields), fields.count("num_experts_per_tok"), width, renormalised=False)
    sizes = {"intermediate_size": fields.get("dense_intermediate_size", width), "head_dim": None}
    return _read(
        Fields({**fields.raw, **sizes}), experts,
        family="lladamoe", qk_norm=bool(fields.get("qk_layernorm", True)),
    )  # fmt: skip


def _read_sdarmoe(raw: dict) -> BackboneConfig:
    fields = Fields(raw)
    fields.only("decoder_sparse_step", 1)
    fields.only("mlp_only_layers", [])
    width = fields.count("moe_intermediate_size")
    renormalised = bool(fields.get("norm_topk_prob", False))
    experts = Experts(_number(fields), fields.count("num_experts_per_tok"), width, renormalised=renormalised)
    sizes = {"intermediate_size": fields.get("intermediate_size", width)}  # of dense layers, of which there are none
    return _read(
        Fields({**raw, **sizes}), experts, family="sdarmoe", qk_norm=True
    )  # fmt: skip


def _read(fields: Fields, experts: Experts, **fixed) -> BackboneConfig:
    """The rest of a configuration, as Qwen's relatives spell it. Raises RequestError for experts that nobody can
    choose so."""
    without = Fields({**fields.raw, **dict.fromkeys(EXPERTS)})
    config = replace(_read_qwen_like(without, **fixed), experts=experts)
    size, rest = divmod(experts.count, experts.groups)
    if experts.dense_layers > config.num_layers:
        raise RequestError(f"has first_k_dense_replace={experts.dense_layers} of {config.num_layers} layers")
    if rest or experts.active_groups > experts.groups or (experts.groups > 1 and size < 2):
        raise RequestError(
            f"has n_group={experts.groups} and topk_group={experts.active_groups} for num_experts={experts.count}; "
            "groups of two experts or more are needed, and no more of them than there are"
        )
    if experts.active > size * experts.active_groups:
        raise RequestError(
            f"has num_experts_per_tok={experts.active}, and a token may choose among {size * experts.active_groups}"
        )
    return config


def _number(fields: Fields) -> int:
    """How many experts there are, by whichever name."""
    return fields.count(next((name for name in EXPERTS if fields.get(name) is not None), EXPERTS[0]))


def _whole(fields: Fields, name: str) -> int:
    """A whole number that may be 0, which it is where it is not there."""
    return fields.count(name) if fields.get(name) else 0


def usual_fields(config: BackboneConfig) -> dict[str, object]:
    """What config.json says of experts and of heads that rotate in part, in the spelling of LLaDA2."""
    fields: dict[str, object] = {}
    if config.rotary_dim is not None:
        fields["partial_rotary_factor"] = config.rotary_dim / config.head_dim
    if (experts := config.experts) is not None:
        fields |= {
            "num_experts": experts.count,
            "num_experts_per_tok": experts.active,
            "moe_intermediate_size": experts.width,
            "num_shared_experts": experts.shared_width // experts.width,
            "first_k_dense_replace": experts.dense_layers,
            "n_group": experts.groups,
            "topk_group": experts.active_groups,
            "norm_topk_prob": experts.renormalised,
            "routed_scaling_factor": experts.scaling,
        }
    return fields


def _spell_lladamoe(usual: JsonObject) -> JsonObject:
    own = {"moe_intermediate_size": "expert_intermediate_size", "intermediate_size": "dense_intermediate_size"}
    return {own.get(name, name): value for name, value in usual.items() if name != "head_dim"}


def _experts(layer: str, router: str, bias: str | None = None, shared: str | None = None) -> dict[str, tuple[str, ...]]:
    """Names of a sparse MLP; ``{expert}`` is the expert's number."""
    names = {
        "layers.{}.experts.router": (layer + router,),
        "layers.{}.experts.gate_up": tuple(f"{layer}mlp.experts.{{expert}}.{x}_proj.weight" for x in ("gate", "up")),
        "layers.{}.experts.down": (layer + "mlp.experts.{expert}.down_proj.weight",),
    }
    if bias:
        names["layers.{}.experts.bias"] = (layer + bias,)
    if shared:
        names["layers.{}.experts.shared_gate_up.weight"] = tuple(
            f"{layer}{shared}.{x}_proj.weight" for x in ("gate", "up")
        )
        names["layers.{}.experts.shared_down.weight"] = (f"{layer}{shared}.down_proj.weight",)
    return names


def stacked(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """How files that stack experts may call what has one tensor an expert elsewhere: [E,F,D] and [E,D,F] each, or gate
    and up in one of [E,2F,D]."""
    plain = tuple(name.replace(".{expert}.", ".").removesuffix(".weight") for name in names)
    for some in (plain, (plain[0].replace("gate_proj", "gate_up_proj"),)):
        yield some
        yield tuple(name + ".weight" for name in some)


_LAYER = "model.layers.{}."
_LLADA2_NAMES = {
    "embedding.weight": ("model.word_embeddings.weight",),
    "layers.{}.attention_norm": (_LAYER + "input_layernorm.weight",),
    "layers.{}.mlp_norm": (_LAYER + "post_attention_layernorm.weight",),
    "layers.{}.qkv.weight": (_LAYER + "attention.query_key_value.weight",),  # all of Q, then K, then V, as here
    "layers.{}.q_norm": (_LAYER + "attention.query_layernorm.weight",),
    "layers.{}.k_norm": (_LAYER + "attention.key_layernorm.weight",),
    "layers.{}.out.weight": (_LAYER + "attention.dense.weight",),
    "layers.{}.gate_up.weight": (_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"),
    "layers.{}.down.weight": (_LAYER + "mlp.down_proj.weight",),
    **_experts(_LAYER, "mlp.gate.weight", "mlp.gate.expert_bias", "mlp.shared_experts"),
    "norm": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
}
_QWEN_MOE_NAMES = {**_qwen_names(qk_norm=True, bias=False), **_experts(_LAYER, "mlp.gate.weight")}

LLADA2_LAYOUT = Layout(_read_llada2, _LLADA2_NAMES)
LLADAMOE_LAYOUT = Layout(_read_lladamoe, _QWEN_MOE_NAMES, _spell_lladamoe)
SDARMOE_LAYOUT = Layout(_read_sdarmoe, _QWEN_MOE_NAMES)

LLADA2 = Family(
    "llada2", ("llada2_moe", "llada21_moe", "llada2_moe_veomni"), ("LLaDA2MoeModelLM",), LLADA2_LAYOUT,
    Descriptor(attention="block_causal", shift=0, block_length=32, mask_id=156_895),
)  # fmt: skip
LLADAMOE = Family(  # released under dense LLaDA's model type
    "lladamoe", ("llada", "lladamoe"), ("LLaDAMoEModelLM",), LLADAMOE_LAYOUT,
    Descriptor(attention="full", shift=0, mask_id=156_895, confidence="clean"),
    marks=("num_experts",),
)  # fmt: skip
SDARMOE = Family(
    "sdarmoe", ("sdar_moe",), ("SDARMoeForCausalLM",), SDARMOE_LAYOUT,
    Descriptor(attention="block_causal", shift=0, mask_id=151_669, tokenizer="Qwen2Tokenizer"),
)  # fmt: skip
