"""Networks of a shape with random weights, made on the device: nothing is downloaded."""

from __future__ import annotations

import torch

from dlmbench.backbone.memory import check_room
from dlmbench.backbone.model import Transformer
from dlmbench.models.shapes import scaled, shape_of


def random_model(name: str, device: str, dtype: torch.dtype) -> Transformer:
    """A network of that shape, `scaled`, with small normal weights. Raises RequestError for an unknown shape, and for
    one that is larger than the device."""
    config = scaled(shape_of(name), device)
    check_room(name, config.parameters * dtype.itemsize, device, dtype)
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to_empty(device=device).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    return model.requires_grad_(False).eval()
