"""How many kernels a layer of a block's forward asks a device for, counted on tensors without data.

Views launch nothing and are left out. Two operators launch a copy beside their kernel, which is counted: `addmm` of a
full matrix where its result is a new tensor (what is added is copied first), `rms_norm` of what is not contiguous.
"""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.counter import Counter
from dlmbench.backbone.model import Transformer
from dlmbench.backbone.network import Network
from dlmbench.decoders.predict import Sampling
from dlmbench.engine.canvas import Canvas
from dlmbench.models.shapes import SHAPES

VIEWS = {
    "view", "t", "permute", "expand", "slice", "select", "unsqueeze", "transpose", "split", "unfold", "alias",
    "_unsafe_view", "empty", "detach", "chunk",
}  # fmt: skip


class Kernels(TorchDispatchMode):
    """Operators that are called inside, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.tally: Tally[str] = Tally()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.tally[name] += 1
        if name == "addmm" and args[0].dim() == 2 and "out" not in (kwargs or {}):
            self.tally["copy of what is added"] += 1
        if name == "rms_norm" and not args[0].is_contiguous():
            self.tally["copy of what is normed"] += 1
        return func(*args, **(kwargs or {}))


def forward(shape: str, block: int, layers: int) -> Tally[str]:
    """Kernels of one denoising forward, finished blocks riding along, of so many layers in bfloat16."""
    meta = torch.device("meta")
    config = replace(SHAPES[shape], num_layers=layers)
    with meta:
        model = Transformer(config).to(torch.bfloat16).requires_grad_(False).eval()
    net = (Bidirectional if config.attention == "full" else Network)("target", model, block)
    capacity, prompt = 1136, 1024
    answer = 0 if config.attention != "full" else 64
    canvas = Canvas(1, capacity, block, config.mask_id, (1,), config.attention, answer, meta)
    with torch.inference_mode():
        net.allocate(1, capacity, canvas.tokens, Counter(1, meta))
        model._rope = torch.empty(model._positions, 2 * config.head_dim, device=meta, dtype=torch.bfloat16)
        view = canvas.view({}, Sampling(), capacity, prompt + 64, None, False)
        net.denoise(view)
        with Kernels() as counted:
            net.denoise(view)
    return counted.tally


@pytest.mark.parametrize(("shape", "block", "most"), [("sdar-8b", 4, 17), ("llada-8b", 32, 15), ("qwen3-0.6b", 4, 17)])
def test_a_layer_asks_for_few_kernels(shape, block, most):
    a, b = (forward(shape, block, layers) for layers in (2, 3))
    a_layer = b - a
    assert a_layer.total() <= most, a_layer
