"""Forward and loss of one batch, arranged for speed.

The layers are compiled one at a time (they share one graph, whatever their number) with free row counts and lengths.
Attention is written out: at these lengths two batched products and a fused masked softmax beat the library's masked
kernel in bfloat16 on a CPU several times over. The head runs only on the columns that carry a loss.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlmbench.backbone.model import Transformer
from dlmbench.training.data import Batch


class Layered(Protocol):
    """A backbone, or a head that has layers like it."""

    @property
    def layers(self) -> nn.ModuleList | tuple[nn.Module, ...]: ...


class Columns(Protocol):
    """What layers ask of a batch: where its columns are, [N,R], and who sees whom, [N,1,R,R] bool."""

    @property
    def positions(self) -> Tensor: ...

    @property
    def visible(self) -> Tensor: ...


HIDDEN_SCORE = -1e4  # finite, so that a row of padding has no NaN


def batch_loss(model: Transformer, batch: Batch, compiled: bool = True) -> Tensor:
    """Weighted cross-entropy of a batch, float32 scalar; about the mean over target tokens."""
    head_step = _compiled_head() if compiled else _head
    x = run_layers(model, model, model.embed(batch.ids.flatten()), batch, compiled)
    return head_step(model, x[batch.predicting], batch.labels, batch.weights)


def run_layers(module: Layered, model: Transformer, x: Tensor, batch: Columns, compiled: bool = True) -> Tensor:
    """Run the layers of `module` over a batch's columns, with the rotary tables of `model`. x [N*R,D] -> [N*R,D]."""
    layer_step = _compiled_layer() if compiled else _layer
    cos, sin = model._rotation(batch.positions.flatten(), x.dtype)
    bias = torch.zeros(batch.visible.shape, dtype=x.dtype, device=x.device).masked_fill_(~batch.visible, HIDDEN_SCORE)
    for layer in module.layers:
        x = layer_step(layer, x, cos, sin, bias)
    return x


def _layer(layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
    """x [N*R,D], bias [N,1,R,R] -> [N*R,D]."""
    rows, length = bias.shape[0], bias.shape[2]

    def attend(_: int, q: Tensor, kv: Tensor) -> Tensor:
        q, kv = (t.reshape(rows, length, -1, t.shape[-1]).transpose(1, 2) for t in (q, kv))
        k, v = kv.chunk(2, 1)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
        mixed = torch.softmax(scores.float(), -1).to(v.dtype) @ v
        return mixed.transpose(1, 2).reshape(rows * length, -1)

    return layer(0, x, cos, sin, attend)


def _head(model: Transformer, x: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    hidden = F.rms_norm(x, x.shape[-1:], model.norm, model.config.rms_norm_eps)
    return (F.cross_entropy(model.project(hidden).float(), labels, reduction="none") * weights).sum()


_cache: dict[str, object] = {}


def _compiled_layer():
    if "layer" not in _cache:
        _cache["layer"] = torch.compile(_layer, dynamic=True)
    return _cache["layer"]


def _compiled_head():
    if "head" not in _cache:
        _cache["head"] = torch.compile(_head, dynamic=True)
    return _cache["head"]
