"""Prompts as token ids, the same from every entrance: runs, `generate` and Python."""

from __future__ import annotations

from typing import Any


def prompt_ids(tokenizer: Any, prompt: str, templated: bool) -> tuple[int, ...]:
    """Token ids of a prompt. Special tokens are added where the tokenizer does so, but not to text that has them."""
    begin = getattr(tokenizer, "bos_token", None)
    has_them = templated or bool(begin and prompt.startswith(begin))
    return tuple(tokenizer.encode(prompt, add_special_tokens=not has_them))
