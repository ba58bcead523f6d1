"""The loop that a careful user of transformers would write, to compare with.

Qwen3ForCausalLM holds the same weights, dtype and threads; a cache is kept for the clean prefix and cropped in place
after every denoising step; logits are computed for the block only; inference mode. One prompt at a time, one token a
step (SDAR's static decoding with the official extra store forward), EOS ignored. With ``static=True`` the cache is a
StaticCache as long as the row, which on a GPU allows ``torch.compile(mode="reduce-overhead")``.
"""

from __future__ import annotations

import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor

from dlmbench.backbone.loading import save_checkpoint
from dlmbench.backbone.model import Transformer


class PlainLoop:
    """Static decoding, k = 1, with transformers' own Qwen3."""

    def __init__(self, model: Transformer, block_length: int, static: bool = False):
        from transformers import Qwen3ForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        self.mask_id, self.block_length = model.config.mask_id, block_length
        self.device, self.dtype = model.norm.device, model.norm.dtype
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(model, folder, self.dtype)
            _as_qwen3(folder)
            qwen = Qwen3ForCausalLM.from_pretrained(folder, dtype=self.dtype, attn_implementation="sdpa")
        self.qwen, self.static = qwen.to(self.device).eval(), static
        self.step = self.qwen
        if static and self.device.type == "cuda":
            self.step = torch.compile(self.qwen, mode="reduce-overhead")

    @torch.inference_mode()
    def generate(self, prompt: list[int], tokens: int) -> list[int]:
        """The first `tokens` ids after the prompt."""
        block = self.block_length
        total = -(-(len(prompt) + tokens) // block) * block
        canvas = torch.full((1, total), self.mask_id, device=self.device)
        canvas[0, : len(prompt)] = torch.tensor(prompt, device=self.device)
        cache = self._cache(total)
        start = len(prompt) // block * block
        if start:
            blocks = torch.arange(start, device=self.device) // block
            self._forward(canvas[:, :start], 0, cache, blocks.unsqueeze(1) >= blocks, keep=1)
        for first in range(start, total, block):
            part = canvas[:, first : first + block]
            while bool((masked := part[0] == self.mask_id).any()):
                logits = self._forward(part, first, cache)
                self._crop(cache, block)
                logits[:, self.mask_id] = float("-inf")
                confidence, best = logits.softmax(-1).max(-1)
                place = confidence.masked_fill(~masked, -1.0).argmax()
                part[0, place] = best[place]
            self._forward(part, first, cache, keep=1)
        return canvas[0, len(prompt) : len(prompt) + tokens].tolist()

    def _cache(self, length: int):
        from transformers import DynamicCache, StaticCache

        self.length = length
        if self.static:
            return StaticCache(config=self.qwen.config, max_cache_len=length)
        return DynamicCache(config=self.qwen.config)

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


def _as_qwen3(folder: str) -> None:
    """Relabel a saved SDAR folder: the layouts are the same, only the names of the class and type differ."""
    import json
    from pathlib import Path

    file = Path(folder) / "config.json"
    raw = json.loads(file.read_text())
    raw.update(model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    file.write_text(json.dumps(raw))
