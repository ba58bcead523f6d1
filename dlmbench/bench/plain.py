"""The loop that a careful user of transformers would write, to compare with.

Qwen3ForCausalLM holds the same weights (the very tensors), dtype and threads; a cache is kept for the clean prefix and
cropped in place after every denoising step; logits are computed for the block only; inference mode. One prompt at a
time, one token a step (SDAR's static decoding with the official extra store forward), EOS ignored. With ``static=True``
the cache is a StaticCache as long as the row, kept for the next row of that length, which on a GPU allows
``torch.compile(mode="reduce-overhead")``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dlmbench.backbone.loading import official_config, official_tensors
from dlmbench.backbone.model import Transformer

if TYPE_CHECKING:
    from transformers import StaticCache


def qwen_of(model: Transformer):
    """transformers' Qwen3 on the tensors of an SDAR network, which has its layout: nothing is copied."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    dtype = model.norm.dtype
    raw = official_config(model.config, dtype) | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    with torch.device("meta"):
        config = Qwen3Config.from_dict(raw)
        qwen = Qwen3ForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    qwen.load_state_dict(official_tensors(model), strict=not model.config.tie_embeddings, assign=True)
    qwen.tie_weights()
    with torch.device(model.norm.device):  # its angles are no weights
        qwen.model.rotary_emb = type(qwen.model.rotary_emb)(config)
    return qwen.requires_grad_(False).eval()


class PlainLoop:
    """Static decoding, k = 1, with transformers' own Qwen3; `qwen` shares one between loops (default: its own)."""

    def __init__(self, model: Transformer, block_length: int, static: bool = False, qwen=None):
        self.mask_id, self.block_length = model.config.mask, block_length
        self.device, self.dtype = model.norm.device, model.norm.dtype
        self.qwen, self.static = qwen_of(model) if qwen is None else qwen, static
        self.caches: dict[int, StaticCache] = {}  # by length: a recording knows their addresses
        self.step = self.qwen
        if static and self.device.type == "cuda":
            self.step = torch.compile(self.qwen, mode="reduce-overhead")

    @torch.inference_mode()
    def generate(self, prompt: list[int], tokens: int, seconds: float = float("inf")) -> list[int]:
        """The first `tokens` ids after the prompt, or those of the blocks that were done when `seconds` were over."""
        block, began = self.block_length, time.perf_counter()
        total = -(-(len(prompt) + tokens) // block) * block
        canvas = torch.full((1, total), self.mask_id, device=self.device)
        canvas[0, : len(prompt)] = torch.tensor(prompt, device=self.device)
        with _own_kernels():
            cache = self._cache(total)
            start = len(prompt) // block * block
            if start:
                blocks = torch.arange(start, device=self.device) // block
                self._forward(canvas[:, :start], 0, cache, blocks.unsqueeze(1) >= blocks, keep=1)
            for first in range(start, total, block):
                if time.perf_counter() - began > seconds:
                    return canvas[0, len(prompt) : first].tolist()
                self._block(canvas[:, first : first + block], first, cache)
        return canvas[0, len(prompt) : len(prompt) + tokens].tolist()

    def _block(self, part: Tensor, first: int, cache) -> None:
        """Fill the block part [1,B] that begins at position `first`, and store it."""
        while bool((masked := part[0] == self.mask_id).any()):
            logits = self._forward(part, first, cache)
            self._crop(cache, self.block_length)
            logits[:, self.mask_id] = float("-inf")
            confidence, best = logits.softmax(-1).max(-1)
            place = confidence.masked_fill(~masked, -1.0).argmax()
            part[0, place] = best[place]
        self._forward(part, first, cache, keep=0 if self.static else 1)  # another number would be compiled anew

    def _cache(self, length: int):
        from transformers import DynamicCache, StaticCache

        self.length = length
        if not self.static:
            return DynamicCache(config=self.qwen.config)
        if length in self.caches:
            self.caches[length].reset()
        else:
            self.caches[length] = StaticCache(config=self.qwen.config, max_cache_len=length)
        return self.caches[length]

    def _crop(self, cache, block: int) -> None:
        """Forget the last `block` positions, without giving up memory that a recording knows."""
        if not self.static:
            cache.crop(-block)
            return
        for layer in cache.layers:
            layer.cumulative_length.sub_(block)

    def _forward(self, ids: Tensor, first: int, cache, allowed: Tensor | None = None, keep: int = 0) -> Tensor:
        """Logits of the last `keep` positions, 0 meaning all; one is the fewest that transformers computes."""
        width = ids.shape[1]
        positions = torch.arange(first, first + width, device=self.device).unsqueeze(0)
        if allowed is None:
            allowed = torch.ones(width, first + width, dtype=torch.bool, device=self.device)
        if self.static:
            allowed = F.pad(allowed, (0, self.length - allowed.shape[1]))
        bias = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device).masked_fill_(~allowed, float("-inf"))
        whole = self.static and width == self.block_length  # the prompt is read once, in its own shape
        out = (self.step if whole else self.qwen)(
            input_ids=ids, position_ids=positions, attention_mask=bias.view(1, 1, *bias.shape), past_key_values=cache,
            use_cache=True, logits_to_keep=keep,
        )  # fmt: skip
        return out.logits[0].float()


def block_forward(qwen, rows: int, width: int, keys: int, compiled: bool = False) -> Callable[[], None]:
    """A forward of `width` positions of `rows` rows that see `keys` keys, their own included, head included, by
    transformers' Qwen3 and its cache; `compiled` by torch at the first call."""
    from transformers import DynamicCache

    config, weight = qwen.config, qwen.model.norm.weight
    shape = (rows, config.num_key_value_heads, keys - width, config.head_dim)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(*torch.randn(2, *shape, device=weight.device, dtype=weight.dtype), layer)
    ids = torch.zeros(rows, width, dtype=torch.long, device=weight.device)
    positions = torch.arange(keys - width, keys, device=weight.device).expand(rows, width)
    everything = torch.zeros(rows, 1, width, keys, device=weight.device, dtype=weight.dtype)
    forward = torch.compile(qwen, dynamic=False) if compiled else qwen

    @torch.inference_mode()
    def once() -> None:
        forward(
            input_ids=ids, position_ids=positions, attention_mask=everything, past_key_values=cache, use_cache=True
        )  # fmt: skip
        cache.crop(-width)

    return once


@contextmanager
def _own_kernels() -> Iterator[None]:
    """Attention as torch chooses it by itself, which our networks keep from one of its kernels."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
