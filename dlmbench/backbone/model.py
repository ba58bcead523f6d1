"""The one transformer under every decoder: Llama-shaped, fused products, no framework.

Rows and positions are flattened before the layers, so every product is one matrix multiplication whatever the batch
looks like; only attention knows about rows, and it is handed in as `attend` (see `dlmbench.backbone.attention`).
Families differ by `BackboneConfig` alone: q/k norm (Qwen3, SDAR), q/k/v bias (Qwen2, Dream), neither (Llama, LLaDA),
heads that rotate in part and experts (`dlmbench.backbone.experts`) behind some dense layers (LLaDA2).

Axes: N flattened tokens, H query heads, G key/value heads, d head size, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlmbench.backbone.config import BackboneConfig, Experts
from dlmbench.backbone.experts import SparseMLP, SparseWeights
from dlmbench.backbone.ops import (
    Matrix,
    Norm,
    add_linear,
    frozen,
    linear,
    matrix_of,
    norm_of,
    packed,
    rms_norm,
    rms_norm_heads,
)

Attend = Callable[[int, Tensor, Tensor], Tensor]  # layer, q [N,H,d], kv [N,2*G,d], keys then values -> [N,H*d]


class LayerWeights(NamedTuple):
    """What a layer's forward reads; `qk_norm` has a row a packed head [H+G,d]; `mlp` is a dense one's two products;
    `in_place`: no gradient is asked for."""

    attention_norm: Norm
    qkv: Matrix
    bias: Tensor | None
    qk_norm: Norm | None
    out: Matrix
    mlp_norm: Norm
    mlp: tuple[Matrix, Matrix] | SparseWeights
    in_place: bool


class Prepared(nn.Module):
    """A module whose weights are made ready once for inference: looking them up costs more than small products do.

    Kept in inference mode only, where weights are frozen, and until they are loaded, saved, copied, moved or trained.
    Until then a weight may lie in a layout that only products read (`ops.packed`).
    """

    _ready = None

    def _weights(self):
        if not frozen():
            if self._ready is not None:
                self._release()
            return self._look_up()
        if self._ready is None:
            for part in _products(self):
                _replace_weight(part, packed(part.weight))
            self._ready = self._look_up()
        return self._ready

    def _look_up(self):
        """The weights as the forward reads them."""
        raise NotImplementedError

    def _release(self) -> None:
        """What was made ready is forgotten; weights lie as torch's own modules hold them."""
        self._ready = None
        for part in _products(self):
            if part.weight.is_mkldnn:
                _replace_weight(part, part.weight.to_dense())

    def __getstate__(self):
        self._release()  # a copy makes its own
        return dict(vars(self))

    def _save_to_state_dict(self, *args, **kwargs):
        self._release()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self._release()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn, recurse=True):
        self._release()
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True):
        self._release()
        return super().train(mode)

    def reserve(self, positions: int) -> None:
        """Positions below this will come; for networks that keep a table of them."""


def _products(module: nn.Module) -> Iterator[nn.Linear]:
    """The products of a module that it makes ready itself."""
    for part in module.children():
        if isinstance(part, nn.Linear):
            yield part
        elif not isinstance(part, (Prepared, nn.ModuleList)):
            yield from _products(part)


def _replace_weight(part: nn.Linear, weight: Tensor) -> None:
    if weight is not part.weight:
        part.weight = nn.Parameter(weight, requires_grad=False)


class Embedding(nn.Embedding):
    """Drawn only where there is memory for it: to draw on torch's meta device imports its whole compiler."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Layer(Prepared):
    """Pre-norm attention and SwiGLU, one or as many as `experts` says; residuals folded into the output products."""

    def __init__(self, config: BackboneConfig, experts: Experts | None = None):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.eps, self.rotated = config.rms_norm_eps, config.rotated
        width, inner = config.hidden_size, config.num_heads * config.head_dim
        packed = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.mlp_norm = nn.Parameter(torch.ones(width))
        self.qkv = nn.Linear(width, packed, bias=config.qkv_bias)
        self.out = nn.Linear(inner, width, bias=False)
        if experts is None:
            self.gate_up = nn.Linear(width, 2 * config.intermediate_size, bias=False)
            self.down = nn.Linear(config.intermediate_size, width, bias=False)
        self.experts = SparseMLP(width, experts) if experts else None
        self.q_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None

    def forward(self, index: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [N,D]; cos and sin [N,1,d] of the numbers that rotate, the sine's first half negated -> [N,D]."""
        weights, heads = self._weights(), self.heads + self.kv_heads
        y = rms_norm(x, weights.attention_norm)
        qkv = linear(y, weights.qkv, weights.bias).view(x.shape[0], -1, self.head_dim)
        qk = qkv[:, :heads] if weights.qk_norm is None else rms_norm_heads(qkv, heads, weights.qk_norm)
        qkv = self._rotate(qkv, qk, cos, sin, weights.in_place)
        mixed = attend(index, qkv[:, : self.heads], qkv[:, self.heads :])
        x = add_linear(x, mixed, weights.out, weights.in_place and index > 0)  # the embeddings are the caller's
        y = rms_norm(x, weights.mlp_norm)
        if self.experts is not None and isinstance(weights.mlp, SparseWeights):
            return self.experts(x, y, weights.mlp)
        gate_up, down = weights.mlp
        gate, up = linear(y, gate_up).chunk(2, -1)
        return add_linear(x, F.silu(gate) * up, down, weights.in_place)

    def _rotate(self, qkv: Tensor, qk: Tensor, cos: Tensor, sin: Tensor, in_place: bool) -> Tensor:
        """qkv [N,H+2G,d] with its queries and keys replaced by qk [N,H+G,d], rotated; the same memory if `in_place`."""
        partial, heads = self.rotated < self.head_dim, self.heads + self.kv_heads
        turned = qk[..., : self.rotated] if partial else qk
        # rotate_half(t) * sin == roll(t) * (sin with its first half negated)
        straight, rolled = turned * cos, turned.roll(self.rotated // 2, -1)
        if not in_place:
            turned = torch.addcmul(straight, rolled, sin)
            qk = torch.cat([turned, qk[..., self.rotated :]], -1) if partial else turned
            return torch.cat([qk, qkv[:, heads:]], 1)
        if partial:
            qkv[:, :heads, self.rotated :] = qk[..., self.rotated :]
        torch.addcmul(straight, rolled, sin, out=qkv[:, :heads, : self.rotated] if partial else qkv[:, :heads])
        return qkv

    def _look_up(self) -> LayerWeights:
        qk_norm = None
        if self.q_norm is not None and self.k_norm is not None:
            both = torch.cat([self.q_norm.expand(self.heads, -1), self.k_norm.expand(self.kv_heads, -1)])
            qk_norm = norm_of(both, self.eps)
        mlp: tuple[Matrix, Matrix] | SparseWeights
        if self.experts is None:
            # what lies between them is elementwise: it may lie either way; the sum of the second wants it back sooner
            mlp = matrix_of(self.gate_up.weight, 256, loose=True), matrix_of(self.down.weight, 64)
        else:
            mlp = self.experts.ready()
        return LayerWeights(
            norm_of(self.attention_norm, self.eps), matrix_of(self.qkv.weight), self.qkv.bias, qk_norm,
            matrix_of(self.out.weight), norm_of(self.mlp_norm, self.eps), mlp, frozen(),
        )  # fmt: skip


class Transformer(Prepared):
    """Embedding, layers, final norm, head. Logits are always those of the position that produced them:
    the engine knows about `config.shift`, the network does not."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        dense = config.num_layers - config.sparse_layers
        mlps = [None] * dense + [config.experts] * config.sparse_layers
        self.layers = nn.ModuleList(Layer(config, experts) for experts in mlps)
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rope: Tensor | None = None
        self._positions = config.max_positions  # that the rotary table reaches
        self._outgrown: list[Tensor] = []  # tables that recorded steps may still read

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run the layers. x [N,D] embeddings, positions [N] -> hidden states after the final norm [N,D]."""
        cos, sin = self._rotation(positions, x.dtype)
        norm = self._weights()[0]  # made ready before the layers are: the head is the largest that lies twice meanwhile
        for index, layer in enumerate(self.layers):
            x = layer(index, x, cos, sin, attend)
        return rms_norm(x, norm)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., D]"""
        return F.embedding(ids, self.embedding.weight)

    def reserve(self, positions: int) -> None:
        """Let the rotary table reach that many positions: blocks and padding may end behind a model's last token."""
        if positions > self._positions:
            self._positions = positions
            self._outgrown += [] if self._rope is None else [self._rope]
            self._rope = None

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm [..., D] -> logits [..., V]."""
        return linear(hidden.flatten(0, -2), self._weights()[1]).view(*hidden.shape[:-1], -1)

    def _look_up(self) -> tuple[Norm, Matrix]:
        head = self.embedding.weight if self.head is None else self.head.weight
        return norm_of(self.norm, self.config.rms_norm_eps), matrix_of(head)

    def hidden(self, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Uncached forward of whole rows, for training and as an oracle.

        ids [B,T]; positions [B,T] (default 0..T-1); mask bool [B or 1, 1, T, T], true where a query may see a key
        (default: everything) -> hidden states after the final norm [B,T,D].
        """
        rows, length = ids.shape
        if positions is None:
            positions = torch.arange(length, device=ids.device).expand(rows, length)

        def attend(_: int, q: Tensor, kv: Tensor) -> Tensor:
            q, kv = (t.reshape(rows, length, -1, t.shape[-1]).transpose(1, 2) for t in (q, kv))
            k, v = kv.chunk(2, 1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
            return out.transpose(1, 2).reshape(rows * length, -1)

        x = self(self.embed(ids).flatten(0, 1), positions.reshape(-1), attend)
        return x.view(rows, length, -1)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> Transformer:
        """Normal weights of standard deviation 0.02, output products scaled down with depth; norms at one."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = 0.02 / math.sqrt(2 * self.config.num_layers) if ".out." in name or "down" in name else 0.02
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
        return self

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine for positions [N] -> two [N,1,d]; tables grow on demand, angles in float32."""
        if self._rope is None or self._rope.device != positions.device or self._rope.dtype != dtype:
            self._rope = _rope_table(self.config, self._positions, positions.device, dtype)
        cos, sin = F.embedding(positions, self._rope).unsqueeze(1).chunk(2, -1)
        return cos, sin


def _rope_table(config: BackboneConfig, positions: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Half-split cosines and signed sines side by side [positions, 2*d] of the d numbers that rotate, with Llama-3
    frequency scaling where the config asks for it."""
    exact = torch.promote_types(dtype, torch.float32)
    half = torch.arange(0, config.rotated, 2, dtype=exact) / config.rotated
    frequency = 1.0 / config.rope_theta**half
    scaling = dict(config.rope_scaling)
    if scaling.get("rope_type") == "llama3":
        frequency = _llama3_frequencies(frequency, scaling)
    angles = torch.outer(torch.arange(positions, dtype=exact), frequency)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos, -sin, sin], -1).to(device=device, dtype=dtype)


def _llama3_frequencies(frequency: Tensor, scaling: dict) -> Tensor:
    """Long wave lengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / frequency
    context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequency / factor + smooth * frequency
