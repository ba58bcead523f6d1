"""Answers as texts -> ids, once for each item of a process: a sweep asks the same items under every decoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dlmbench.backbone.tokenizer import PlainTokenizer
    from dlmbench.tasks.base import Item
    from dlmbench.tasks.task import Task

KEPT = 2**26  # ids that are kept in all, 128 MiB of them

_known: dict[tuple[str, str], Tensor] = {}


def answers_of(task: Task, item: Item, tokenizer: PreTrainedTokenizerBase | PlainTokenizer) -> Tensor:
    """All right answers of an item as ids, in the form of `encode`. RequestError for a task that does not list them."""
    record = json.dumps([task.name, task.version, item.doc], sort_keys=True, default=str)
    key = hashlib.sha256(record.encode()).hexdigest(), str(tokenizer.name_or_path)
    if key not in _known:
        while _known and sum(ids.numel() for ids in _known.values()) > KEPT:
            del _known[next(iter(_known))]
        _known[key] = encode(tokenizer, task.answers(item))
    return _known[key]


def encode(tokenizer: PreTrainedTokenizerBase | PlainTokenizer, texts: Sequence[str]) -> Tensor:
    """Ids of all texts without special tokens, int16 or int32, -1 behind the end of each. [A,L]"""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:  # without the wrapper's records it takes a third of the time
        rows = [encoded.ids for encoded in fast.encode_batch(list(texts), add_special_tokens=False)]
    else:
        rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [-1] * (longest - len(row)) for row in rows])
    return ids.short() if ids.max() < 2**15 else ids.int()
