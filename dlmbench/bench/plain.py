"""The loop that a careful user of transformers would write, to compare with.

Qwen3ForCausalLM holds the same weights, dtype and threads; a DynamicCache is kept for the clean prefix and cropped in
place after every denoising step; logits are computed for the block only; inference mode. One prompt at a time, one
token a step (SDAR's static decoding with the official extra store forward), EOS ignored.
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor

from dlmbench.backbone.loading import save_checkpoint
from dlmbench.backbone.model import Transformer


class PlainLoop:
    """Static decoding, k = 1, with transformers' own Qwen3."""

    def __init__(self, model: Transformer, block_length: int):
        from transformers import Qwen3ForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        self.mask_id, self.block_length = model.config.mask_id, block_length
        self.device, self.dtype = model.norm.device, model.norm.dtype
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(model, folder, self.dtype)
            _as_qwen3(folder)
            qwen = Qwen3ForCausalLM.from_pretrained(folder, dtype=self.dtype, attn_implementation="sdpa")
        self.qwen = qwen.to(self.device).eval()

    @torch.inference_mode()
    def generate(self, prompt: list[int], tokens: int) -> list[int]:
        """The first `tokens` ids after the prompt."""
        from transformers import DynamicCache

        block = self.block_length
        total = -(-(len(prompt) + tokens) // block) * block
        canvas = torch.full((1, total), self.mask_id, device=self.device)
        canvas[0, : len(prompt)] = torch.tensor(prompt, device=self.device)
        cache = DynamicCache(config=self.qwen.config)
        start = len(prompt) // block * block
        if start:
            blocks = torch.arange(start, device=self.device) // block
            self._forward(canvas[:, :start], 0, cache, blocks.unsqueeze(1) >= blocks, keep=1)
        for first in range(start, total, block):
            part = canvas[:, first : first + block]
            while bool((masked := part[0] == self.mask_id).any()):
                logits = self._forward(part, first, cache)
                cache.crop(-block)
                logits[:, self.mask_id] = float("-inf")
                confidence, best = logits.softmax(-1).max(-1)
                place = confidence.masked_fill(~masked, -1.0).argmax()
                part[0, place] = best[place]
            self._forward(part, first, cache, keep=1)
        return canvas[0, len(prompt) : len(prompt) + tokens].tolist()

    def _forward(self, ids: Tensor, first: int, cache, allowed: Tensor | None = None, keep: int = 0) -> Tensor:
        """Logits of the last `keep` positions, 0 meaning all; one is the fewest that transformers computes."""
        width = ids.shape[1]
        positions = torch.arange(first, first + width, device=self.device).unsqueeze(0)
        if allowed is None:
            allowed = torch.ones(width, first + width, dtype=torch.bool, device=self.device)
        bias = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device).masked_fill_(~allowed, float("-inf"))
        out = self.qwen(
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
