"""Attention over the cache: a forward is a list of groups of equally long queries.

All groups share the layers' matrix products (their tokens are concatenated); each attends on its own. The active
blocks of all rows are one group; blocks that wait to be stored ride along as a second, smaller one.

Axes: n rows of a group, T queries a row, S keys, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dlmbench.backbone.cache import KVCache

FEW = 64  # queries a row up to which plain products are used on CPU
SCORES = 2 << 20  # bytes of scores that plain products make at once: about what stays in the second-level cache
CUDNN = False  # may cuDNN compute attention on CUDA?


def choose_kernels(device: torch.device) -> None:
    """Leave attention on CUDA to torch's memory-efficient kernel, for the whole process.

    With a mask torch prefers cuDNN in bfloat16, which plans anew for every shape (tens of milliseconds on the host) and
    raises where a layout has no plan; biases that all queries share are such a layout.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(CUDNN)


@dataclass
class QueryGroup:
    """Queries that see the same stretch of the cache.

    positions [n,T] long; bias [n,1,1 or T,S] added to the scores (0 or -inf), S being the number of leading slots
    that any of the rows can see; `rows` [n] names the cache rows, None when they are all in order.
    """

    positions: Tensor
    bias: Tensor
    rows: Tensor | None = None
    _flat: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _stacked: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        return self.positions.numel()

    def followed_by(self, other: QueryGroup) -> QueryGroup:
        """Both groups' queries of every row as one group."""
        seen = max(self.bias.shape[-1], other.bias.shape[-1])
        biases = [
            F.pad(group.bias, (0, seen - group.bias.shape[-1]), value=float("-inf"))
            .expand(-1, -1, group.positions.shape[1], -1)
            for group in (self, other)
        ]  # fmt: skip
        return QueryGroup(torch.cat([self.positions, other.positions], 1), torch.cat(biases, 2), self.rows)

    def stacked_bias(self, share: int) -> Tensor:
        """The bias where query heads that share keys are stacked as queries: [n,1,1 or share*T,S]; made once a
        forward."""
        if self._stacked is None:
            self._stacked = self.bias if self.bias.shape[2] == 1 else self.bias.repeat(1, 1, share, 1)
        return self._stacked

    def flat_bias(self, kv_heads: int, share: int) -> Tensor:
        """The bias for products batched over (row, key/value head): [n*G, 1 or share*T, S]; made once a forward."""
        if self._flat is None:
            n, _, queries, seen = self.bias.shape
            each = self.bias.unsqueeze(2).expand(n, kv_heads, 1 if queries == 1 else share, queries, seen)
            self._flat = each.reshape(n * kv_heads, -1, seen)
        return self._flat


class CachedAttention:
    """Write the fresh keys and values, then let every group attend over its rows of the cache."""

    def __init__(self, cache: KVCache, slot_mapping: Tensor, groups: list[QueryGroup]):
        self.cache, self.slot_mapping, self.groups = cache, slot_mapping, groups
        self.on_cpu = slot_mapping.device.type == "cpu"

    def __call__(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q [N,H,d], kv [N,2*G,d] -> [N,H*d]; N runs over the groups' tokens one after another."""
        self.cache.write(layer, self.slot_mapping, kv)
        if len(self.groups) == 1:
            return self._group(layer, self.groups[0], q)
        parts = q.split([group.tokens for group in self.groups])
        return torch.cat([self._group(layer, group, part) for group, part in zip(self.groups, parts)])

    def _group(self, layer: int, group: QueryGroup, q: Tensor) -> Tensor:
        # SDPA's CPU kernel is slow for a handful of queries a row, where plain products are up to twice as fast; for
        # many queries it is the faster one, and does not hold all scores in memory
        few = self.on_cpu and group.positions.shape[1] <= FEW
        seen = group.bias.shape[-1]
        if group.rows is None:
            keys, values = self.cache.leading(seen, flat=few)[layer]
        else:
            keys, values = (part.index_select(0, group.rows) for part in self.cache.leading(seen)[layer])
            if few:
                keys, values = keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
        return (bmm_attention if few else sdpa_attention)(group, q, keys, values)


def sdpa_attention(group: QueryGroup, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """torch's own fused attention. q [n*T,H,d], keys and values [n,G,S,d] -> [n*T, H*d].

    Query heads that share keys are stacked as queries: with a mask, torch's fast kernels know no grouped heads.
    """
    n, queries = group.positions.shape
    kv_heads, share = keys.shape[1], q.shape[1] // keys.shape[1]
    bias, q = group.stacked_bias(share), _stacked(q, n, queries, kv_heads, 2)
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
    return out.view(n, kv_heads, share, queries, -1).permute(0, 3, 1, 2, 4).reshape(n * queries, -1)


def bmm_attention(group: QueryGroup, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same in three products batched over (row, key/value head). keys [n*G,d,S], values [n*G,S,d]."""
    n, queries = group.positions.shape
    kv_heads, size = values.shape[0] // n, values.shape[2]
    share = q.shape[1] // kv_heads
    # of one row the heads need no copy
    q = q.transpose(0, 1) if n == share == 1 else _stacked(q, n, queries, kv_heads, 1)
    parts = group.flat_bias(kv_heads, share), q, keys, values
    # larger temporaries would also be given back to the system and faulted in again, page by page
    step = max(1, SCORES // (q.shape[1] * keys.shape[2] * q.element_size()))
    few = step >= q.shape[0]
    out = _attend(*parts) if few else torch.cat([_attend(*some) for some in zip(*(part.split(step) for part in parts))])
    return out.view(n, kv_heads, share, queries, size).permute(0, 3, 1, 2, 4).reshape(n * queries, -1)


def _attend(bias: Tensor, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One batch of products: bias [b, 1 or T,S], q [b,T,d], keys [b,d,S], values [b,S,d] -> [b,T,d]."""
    scale = q.shape[2] ** -0.5
    if q.dtype == torch.bfloat16:  # torch would copy the keys
        scores = torch.add(bias, torch.bmm(keys.transpose(1, 2), q.transpose(1, 2)).transpose(1, 2), alpha=scale)
    else:
        scores = torch.baddbmm(bias, q, keys, alpha=scale)
    return torch.bmm(scores.softmax(-1), values)


def _stacked(q: Tensor, n: int, queries: int, kv_heads: int, axes: int) -> Tensor:
    """[n*T,H,d] -> [n,G,H/G*T,d], or with one batch axis [n*G,H/G*T,d]; query heads that share keys become queries."""
    batch = (n, kv_heads) if axes == 2 else (n * kv_heads,)
    return q.view(n, queries, kv_heads, -1, q.shape[-1]).permute(0, 2, 3, 1, 4).reshape(*batch, -1, q.shape[-1])


def visible(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean "may see" -> additive bias, 0 or -inf."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


@lru_cache(maxsize=16)
def prompt_bias(first: int, last: int, block_length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Positions first .. last-1 see all of their own and earlier blocks below `last` -> bias [1,1,last-first,last]."""
    with torch.inference_mode(False):
        return block_causal(torch.arange(first, last, device=device).unsqueeze(0), block_length, dtype, last)


def block_causal(positions: Tensor, block_length: int, dtype: torch.dtype, seen: int | None = None) -> Tensor:
    """Queries at `positions` [n,T] see the slots below `seen` (default T) of their own and earlier blocks
    -> bias [n,1,T,seen]."""
    blocks = torch.arange(seen or positions.shape[1], device=positions.device) // block_length
    return visible(blocks <= (positions // block_length).unsqueeze(-1), dtype).unsqueeze(1)
