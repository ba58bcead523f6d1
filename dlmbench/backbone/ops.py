"""The operations that layers are made of, each in the form of torch that is fastest where it runs.

On CUDA these are torch's own. On CPU, in float32 and without gradients, two of them have a faster form of the same
value up to rounding:

Matrix products go to MKL by default, which uses half of the vector width of other makers' processors; oneDNN, which
comes with torch as well, uses all of it and is up to twice as fast for products of some size (docs/performance.md).

`F.rms_norm` is a chain of some ten calls on CPU; with the norm of a vector computed by one, four remain.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 1_500_000  # multiplications of a product from which oneDNN is faster than MKL
_ONEDNN = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N,K] times weight [K,M], plus bias [M] -> [N,M]."""
    if x.numel() * weight.shape[1] >= LARGE and _onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight.t(), bias, "none", [], None)
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def add_linear(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """residual [N,M] plus x [N,K] times weight [K,M] -> [N,M]."""
    if x.numel() * weight.shape[1] >= LARGE and _onednn(x):
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight.t(), None, "add")
    return torch.addmm(residual, x, weight)


def _onednn(x: Tensor) -> bool:
    return _ONEDNN and _plain(x) and not torch.is_grad_enabled()


def _plain(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


class Norm(NamedTuple):
    """Weight of a norm [...,D], which broadcasts to what it scales, and what can be computed of it in advance."""

    weight: Tensor
    eps: float
    scaled: Tensor | None = None  # times the root of D
    least: Tensor | None = None  # root of D * eps


def norm_of(weight: Tensor, eps: float) -> Norm:
    """Ready for `rms_norm`; in its shorter form where there is one."""
    if torch.is_grad_enabled() or not _plain(weight):
        return Norm(weight, eps)
    size = weight.shape[-1]
    return Norm(weight, eps, weight * size**0.5, weight.new_full((), (size * eps) ** 0.5))


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """x [...,D] over its root mean square, times the weight."""
    if norm.scaled is not None:
        length = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), norm.least)
        return x.div(length).mul_(norm.scaled)
    if norm.weight.dim() == 1:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return F.rms_norm(x, x.shape[-1:], None, norm.eps) * norm.weight
