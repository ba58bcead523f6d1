"""Backbone shapes to time, with random weights made on the device: nothing is downloaded."""

from __future__ import annotations

import torch

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.model import Transformer
from dlmbench.errors import RequestError

_QWEN = dict(num_kv_heads=8, head_dim=128, vocab_size=151_936, rope_theta=1e6, mask_id=151_669)

SHAPES: dict[str, BackboneConfig] = {
    "nano": BackboneConfig("sdar", 1024, 128, 12, 4, 4, 32, 384, tie_embeddings=True, mask_id=2, max_positions=2048),
    "sdar-1.7b": BackboneConfig("sdar", hidden_size=2048, num_layers=28, num_heads=16, intermediate_size=6144, **_QWEN),
    "sdar-4b": BackboneConfig("sdar", hidden_size=2560, num_layers=36, num_heads=32, intermediate_size=9728, **_QWEN),
    "sdar-8b": BackboneConfig("sdar", hidden_size=4096, num_layers=36, num_heads=32, intermediate_size=12288, **_QWEN),
}


def random_model(name: str, device: str, dtype: torch.dtype) -> Transformer:
    """A network of that shape with small normal weights. Raises RequestError for an unknown shape."""
    if name not in SHAPES:
        raise RequestError(f"Unknown shape {name!r}; bench knows {', '.join(SHAPES)}.")
    with torch.device("meta"):
        model = Transformer(SHAPES[name])
    model = model.to_empty(device=device).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    return model.requires_grad_(False).eval()
