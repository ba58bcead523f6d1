"""Backbone shapes: sizes of known models, before anything is downloaded. `bench` times them with random weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from dlmbench.backbone.config import BackboneConfig, Experts
from dlmbench.errors import RequestError

_LLADA = partial(BackboneConfig, qk_norm=False, attention="full")
_QWEN = partial(BackboneConfig, num_kv_heads=8, head_dim=128, vocab_size=151_936, rope_theta=1e6, mask_id=151_669)
_CAUSAL = partial(BackboneConfig, attention="causal", shift=1)

_LING = partial(BackboneConfig, vocab_size=157_184, head_dim=128, mask_id=156_895, eos_ids=(156_892,), pad_id=156_892)
_LLADA2 = partial(_LING, block_length=32, num_kv_heads=4, rope_theta=600_000.0, rotary_dim=64, max_positions=16_384)
_SIGMOID = partial(Experts, dense_layers=1, score="sigmoid", bias=True, groups=8, active_groups=4, scaling=2.5)
CPU_EXPERTS = 16  # of a layer, at most, on a CPU: all of them are for the memory of a GPU

SHAPES: dict[str, BackboneConfig] = {
    "nano": BackboneConfig("sdar", 1024, 128, 12, 4, 4, 32, 384, tie_embeddings=True, mask_id=2, max_positions=2048),
    "sdar-1.7b": _QWEN("sdar", hidden_size=2048, num_layers=28, num_heads=16, intermediate_size=6144),
    "sdar-4b": _QWEN("sdar", hidden_size=2560, num_layers=36, num_heads=32, intermediate_size=9728),
    "sdar-8b": _QWEN("sdar", hidden_size=4096, num_layers=36, num_heads=32, intermediate_size=12288),
    "dream-7b": BackboneConfig(
        "dream",
        152_064,
        3584,
        28,
        28,
        4,
        128,
        18944,
        1e6,
        qkv_bias=True,
        qk_norm=False,
        attention="full",
        shift=1,
        mask_id=151_666,
        max_positions=4096,
    ),
    "sdar-20m": BackboneConfig("sdar", 4096, 384, 10, 6, 6, 64, 1024, mask_id=2, max_positions=8192),
    "llada-20m": _LLADA("llada", 4096, 384, 10, 6, 6, 64, 1024, mask_id=2, max_positions=4096),
    "llada-8b": _LLADA(
        "llada", 126_464, 4096, 32, 32, 32, 128, 12288, 500_000.0, 1e-5, mask_id=126_336, max_positions=4096
    ),
    "illada-8b": _LLADA(
        "illada", 155_136, 4096, 32, 32, 8, 128, 14336, tie_embeddings=True, mask_id=5, max_positions=8192
    ),
    "dreamreasoner-8b": _QWEN("dreamreasoner", hidden_size=4096, num_layers=36, num_heads=32, intermediate_size=12288),
    "qwen3-0.6b": _QWEN(
        "a2d-qwen3", hidden_size=1024, num_layers=28, num_heads=16, intermediate_size=3072, tie_embeddings=True
    ),
    "qwen2.5-0.5b": BackboneConfig(
        "a2d-qwen2",
        151_936,
        896,
        24,
        14,
        2,
        64,
        4864,
        1e6,
        qk_norm=False,
        qkv_bias=True,
        tie_embeddings=True,
        mask_id=151_665,
    ),
    "fastdllm2-1.5b": BackboneConfig(
        "fastdllm2",
        151_936,
        1536,
        28,
        12,
        2,
        128,
        8960,
        1e6,
        qk_norm=False,
        qkv_bias=True,
        tie_embeddings=True,
        shift=1,
        mask_id=151_665,
    ),
    "fastdllm2-7b": BackboneConfig(
        "fastdllm2", 152_064, 3584, 28, 28, 4, 128, 18944, 1e6, qk_norm=False, qkv_bias=True, shift=1, mask_id=151_665
    ),
    "qwen3-8b": _QWEN(
        "qwen3",
        hidden_size=4096,
        num_layers=36,
        num_heads=32,
        intermediate_size=12288,
        mask_id=None,
        attention="causal",
        shift=1,
    ),
    "qwen2.5-1.5b": _CAUSAL(
        "qwen2", 151_936, 1536, 28, 12, 2, 128, 8960, 1e6, qk_norm=False, qkv_bias=True, tie_embeddings=True
    ),
    "llada2-mini": _LLADA2(
        "llada2",
        hidden_size=2048,
        num_layers=20,
        num_heads=16,
        intermediate_size=5120,
        experts=_SIGMOID(256, 8, 512, shared_width=512),
    ),
    "llada2-flash": _LLADA2(
        "llada2",
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        intermediate_size=9216,
        experts=_SIGMOID(256, 8, 1024, shared_width=1024),
    ),
    "llada-moe-7b": _LING(
        "lladamoe",
        hidden_size=2048,
        num_layers=16,
        num_heads=16,
        num_kv_heads=16,
        intermediate_size=1024,
        rope_theta=50_000.0,
        rms_norm_eps=1e-5,
        attention="full",
        max_positions=8192,
        experts=Experts(64, 8, 1024, renormalised=False),
    ),
    "sdar-30b-a3b": _QWEN(
        "sdarmoe",
        hidden_size=2048,
        num_layers=48,
        num_heads=32,
        intermediate_size=6144,
        experts=Experts(128, 8, 768),
        num_kv_heads=4,
    ),
    "sdar-tiny": BackboneConfig("sdar", 512, 64, 2, 4, 2, 16, 128, mask_id=2, max_positions=2048),
    "llada2-tiny": BackboneConfig(
        "llada2",
        512,
        64,
        2,
        4,
        2,
        16,
        128,
        mask_id=2,
        max_positions=2048,
        block_length=8,
        experts=_SIGMOID(16, 4, 32, shared_width=32, groups=4, active_groups=2),
    ),
    "llada-tiny": _LLADA("llada", 512, 64, 2, 4, 4, 16, 128, mask_id=2, max_positions=2048),
}


def shape_of(name: str) -> BackboneConfig:
    """The shape of that name. Raises RequestError for an unknown one, and for an autoregressive one, which no decoder
    of masks can be timed on."""
    timed = [known for known, config in SHAPES.items() if config.attention != "causal"]
    if name not in timed:
        raise RequestError(f"Unknown shape {name!r}; bench knows {', '.join(timed)}.")
    return SHAPES[name]


def scaled(config: BackboneConfig, device: str) -> BackboneConfig:
    """The shape as it is made on that device: on a CPU with `CPU_EXPERTS` experts a layer at most."""
    experts = config.experts
    if device != "cpu" or experts is None or experts.count <= CPU_EXPERTS:
        return config
    return replace(config, experts=replace(experts, count=CPU_EXPERTS))
