"""The operations that layers are made of, each in the form of torch that is fastest where it runs.

On CUDA these are torch's own. On CPU, in inference mode, two of them have a faster form, which gives the same up to
rounding:

Matrix products go to MKL by default, which uses half of the vector width of other makers' processors; oneDNN, which
comes with torch as well, uses all of it and is up to twice as fast for products of some size (docs/performance.md).
Where no vectors are wider than AVX2's it is not; there MKL reads a small weight faster when it lies the other way, and
a large one, for a few rows, when the product is computed the other way round: up to three times as fast.

Weights in bfloat16 and large ones are turned into oneDNN's own layout (`packed`), in which a few rows are multiplied
nearly as fast as memory is read. Where no instructions multiply bfloat16, torch computes it slowly, and products of a
few rows and more are made in float32 instead.

`F.rms_norm` is a chain of some ten calls on CPU; with the norm of a vector computed by one, four remain.

What they need of a weight is made once (`matrix_of`, `norm_of`) and holds for as long as the weight does not change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 1_500_000  # multiplications of a product from which oneDNN is faster than MKL
LARGE_PACKED = 3_200_000  # the same of small weights that are in oneDNN's own layout too
PACKED = 1 << 20  # elements of a float32 weight up to which a copy in that layout is kept, beside the original
FEW = 16  # rows up to which the product with a large weight is computed the other way round, without wide vectors
HINT = 16  # rows that a packed weight is laid out for
MANY = 4  # rows from which on a bfloat16 product is made in float32, where nothing multiplies bfloat16
AT_ONCE = 1 << 19  # elements of a weight that are float32 at a time
EMULATED = not torch.ops.mkldnn._is_mkldnn_bf16_supported() if torch.backends.mkldnn.is_available() else False
WIDE = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
_AT_HAND = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def frozen() -> bool:
    """In inference mode, where no weight changes; what is being compiled is for training."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _fast(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and frozen()


def packed(weight: Tensor) -> Tensor:
    """A weight [M,K], in bfloat16 or large, in oneDNN's own layout where that pays; itself otherwise.

    `to_dense()` turns it back.
    """
    if weight.device.type != "cpu" or weight.is_mkldnn or not (_AT_HAND and WIDE and frozen()):
        return weight
    large = weight.dtype == torch.float32 and weight.numel() > PACKED
    if large or weight.dtype == torch.bfloat16 and not EMULATED:
        return torch.ops.mkldnn._reorder_linear_weight(weight, HINT)
    return weight


class Matrix(NamedTuple):
    """A weight [K,M] and, for oneDNN, the same as [M,K] or in its own layout; from how many multiplications on it is
    asked, up to how many rows the product is computed the other way round, by the weight as [M,K], whether it may then
    lie in memory like that, and from how many rows on it is made in float32."""

    weight: Tensor
    onednn: Tensor | None = None
    least: int = 0
    few: int = 0
    flipped: Tensor | None = None
    loose: bool = False
    many: int = 0


def matrix_of(weight: Tensor, few: int = 0, loose: bool = False) -> Matrix:
    """Weight [M,K], as modules hold it, ready for `linear` and `add_linear`.

    `few`: rows up to which it pays to compute the product with a small one the other way round, without wide vectors.
    `loose`: whoever takes a product does not mind how it lies in memory, which saves a copy.
    """
    weight = packed(weight)
    if weight.is_mkldnn:
        return Matrix(weight, weight)
    if EMULATED and weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and frozen():
        return Matrix(weight.t(), many=MANY)
    if not (_AT_HAND and _fast(weight)):
        return Matrix(weight.t())
    if weight.numel() > PACKED:
        return Matrix(weight.t(), weight, LARGE, FEW, weight, loose)
    if not WIDE:
        return Matrix(weight.t().contiguous(), few=few, flipped=weight, loose=loose)
    return Matrix(weight.t(), torch.ops.mkldnn._reorder_linear_weight(weight), LARGE_PACKED)


def linear(x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
    """x [N,K] times the matrix [K,M], plus bias [M] -> [N,M]."""
    weight, onednn, least, few, flipped, loose, many = matrix
    if many and x.shape[0] >= many:
        return _in_float32(x, weight, bias)
    if flipped is not None and 1 < x.shape[0] <= few:
        product = torch.mm(flipped, x.t()).t()
        if bias is not None:
            return product + bias
        return product if loose else product.contiguous()
    if onednn is not None and x.numel() * weight.shape[1] >= least:
        return torch.ops.mkldnn._linear_pointwise(x, onednn, bias, "none", [], None)
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def add_linear(residual: Tensor, x: Tensor, matrix: Matrix, in_place: bool = False) -> Tensor:
    """residual [N,M] plus x [N,K] times the matrix [K,M] -> [N,M], in the residual's memory where `in_place` allows it.

    A new result costs a copy of the residual on CUDA.
    """
    weight, onednn, least, few, flipped, _, many = matrix
    if many and x.shape[0] >= many:
        product = _in_float32(x, weight, None)
        return residual.add_(product) if in_place else residual + product
    if flipped is not None and 1 < x.shape[0] <= few:
        product = torch.mm(flipped, x.t()).t()
        return residual.add_(product) if in_place else residual + product
    if onednn is not None and x.numel() * weight.shape[1] >= least:
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, onednn, None, "add")
    return torch.addmm(residual, x, weight, out=residual) if in_place else torch.addmm(residual, x, weight)


def _in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [N,K] times the weight [K,M] in bfloat16, computed in float32; rounded once, in the end.

    The other way round, which suits few rows, and with so much of the weight at a time as stays in the cache.
    """
    wide, columns = x.float().t(), max(1, AT_ONCE // len(weight))
    product = wide.new_empty(weight.shape[1], x.shape[0])
    room = wide.new_empty(min(columns, len(product)), len(weight))
    for part, out in zip(weight.t().split(columns), product.split(columns)):
        torch.mm(room[: len(part)].copy_(part), wide, out=out)
    product = product.t() if bias is None else product.t() + bias
    return product.to(x.dtype, memory_format=torch.contiguous_format)


class Norm(NamedTuple):
    """Weight of a norm [...,D], which broadcasts to what it scales, and what can be computed of it in advance."""

    weight: Tensor
    eps: float
    scaled: Tensor | None = None  # times the root of D, in float32 or wider
    least: Tensor | None = None  # root of D * eps


def norm_of(weight: Tensor, eps: float) -> Norm:
    """Ready for `rms_norm`."""
    if weight.device.type != "cpu" or not frozen():
        return Norm(weight, eps)
    size = weight.shape[-1]
    scaled = weight.to(torch.promote_types(weight.dtype, torch.float32)) * size**0.5
    return Norm(weight, eps, scaled, scaled.new_full((), (size * eps) ** 0.5))


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """x [...,D] over its root mean square, times the weight."""
    scaled = norm.scaled
    if scaled is not None and norm.least is not None:
        # asking for the dtype that is there already takes as long as a norm's product
        exact = x if x.dtype == scaled.dtype else x.to(scaled.dtype)
        length = torch.hypot(torch.linalg.vector_norm(exact, dim=-1, keepdim=True), norm.least)
        normed = exact.div(length).mul_(scaled)
        return normed if exact is x else normed.to(x.dtype)
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)


def rms_norm_heads(x: Tensor, heads: int, norm: Norm) -> Tensor:
    """x [N,K,d] -> its first `heads` vectors, each over its root mean square, times its row of the weight [heads,d]."""
    if norm.scaled is not None:
        return rms_norm(x[:, :heads], norm)
    # of all K, since torch's kernel copies what does not lie in one piece
    return F.rms_norm(x, x.shape[-1:], None, norm.eps)[:, :heads] * norm.weight
