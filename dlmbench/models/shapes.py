"""Backbone shapes to time, with random weights made on the device: nothing is downloaded."""

from __future__ import annotations

import torch

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.model import Transformer
from dlmbench.errors import RequestError

_LLADA = dict(qk_norm=False, attention="full")
_QWEN = dict(num_kv_heads=8, head_dim=128, vocab_size=151_936, rope_theta=1e6, mask_id=151_669)
_CAUSAL = dict(attention="causal", shift=1)

SHAPES: dict[str, BackboneConfig] = {
    "nano": BackboneConfig("sdar", 1024, 128, 12, 4, 4, 32, 384, tie_embeddings=True, mask_id=2, max_positions=2048),
    "sdar-1.7b": BackboneConfig("sdar", hidden_size=2048, num_layers=28, num_heads=16, intermediate_size=6144, **_QWEN),
    "sdar-4b": BackboneConfig("sdar", hidden_size=2560, num_layers=36, num_heads=32, intermediate_size=9728, **_QWEN),
    "sdar-8b": BackboneConfig("sdar", hidden_size=4096, num_layers=36, num_heads=32, intermediate_size=12288, **_QWEN),
    "dream-7b": BackboneConfig(
        "dream", 152_064, 3584, 28, 28, 4, 128, 18944, 1e6, qkv_bias=True, qk_norm=False, attention="full", shift=1,
        mask_id=151_666, max_positions=4096,
    ),
    "llada-20m": BackboneConfig("llada", 4096, 384, 10, 6, 6, 64, 1024, mask_id=2, max_positions=4096, **_LLADA),
    "llada-8b": BackboneConfig(
        "llada", 126_464, 4096, 32, 32, 32, 128, 12288, 500_000.0, 1e-5, mask_id=126_336, max_positions=4096, **_LLADA
    ),
    "illada-8b": BackboneConfig(
        "illada", 155_136, 4096, 32, 32, 8, 128, 14336, tie_embeddings=True, mask_id=5, max_positions=8192, **_LLADA
    ),
    "dreamreasoner-8b": BackboneConfig(
        "dreamreasoner", hidden_size=4096, num_layers=36, num_heads=32, intermediate_size=12288, **_QWEN
    ),
    "qwen3-0.6b": BackboneConfig(
        "a2d-qwen3", hidden_size=1024, num_layers=28, num_heads=16, intermediate_size=3072, tie_embeddings=True, **_QWEN
    ),
    "qwen2.5-0.5b": BackboneConfig(
        "a2d-qwen2", 151_936, 896, 24, 14, 2, 64, 4864, 1e6, qk_norm=False, qkv_bias=True, tie_embeddings=True,
        mask_id=151_665,
    ),
    "fastdllm2-1.5b": BackboneConfig(
        "fastdllm2", 151_936, 1536, 28, 12, 2, 128, 8960, 1e6, qk_norm=False, qkv_bias=True, tie_embeddings=True,
        shift=1, mask_id=151_665,
    ),
    "fastdllm2-7b": BackboneConfig(
        "fastdllm2", 152_064, 3584, 28, 28, 4, 128, 18944, 1e6, qk_norm=False, qkv_bias=True, shift=1, mask_id=151_665
    ),
    "qwen3-8b": BackboneConfig(
        "qwen3", hidden_size=4096, num_layers=36, num_heads=32, intermediate_size=12288,
        **{**_QWEN, "mask_id": None}, **_CAUSAL,
    ),
    "qwen2.5-1.5b": BackboneConfig(
        "qwen2", 151_936, 1536, 28, 12, 2, 128, 8960, 1e6, qk_norm=False, qkv_bias=True, tie_embeddings=True, **_CAUSAL
    ),
    "sdar-tiny": BackboneConfig("sdar", 512, 64, 2, 4, 2, 16, 128, mask_id=2, max_positions=2048),
    "llada-tiny": BackboneConfig("llada", 512, 64, 2, 4, 4, 16, 128, mask_id=2, max_positions=2048, **_LLADA),
}


def shape_of(name: str) -> BackboneConfig:
    """The shape of that name. Raises RequestError for an unknown one, and for an autoregressive one, which no decoder
    of masks can be timed on."""
    timed = [known for known, config in SHAPES.items() if config.attention != "causal"]
    if name not in timed:
        raise RequestError(f"Unknown shape {name!r}; bench knows {', '.join(timed)}.")
    return SHAPES[name]


def random_model(name: str, device: str, dtype: torch.dtype) -> Transformer:
    """A network of that shape with small normal weights. Raises RequestError for an unknown shape."""
    with torch.device("meta"):
        model = Transformer(shape_of(name))
    model = model.to_empty(device=device).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    return model.requires_grad_(False).eval()
