"""What every task hands to a run: items. Imports nothing, so that specs and the store may use it freely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEPARATOR = "<|sep|>"  # ends every prompt of the nano models
Doc = Mapping[str, Any]  # a record of a data set; only the task's own functions know its fields


@dataclass(frozen=True)
class Item:
    """One question of a task, ready to be sent to an engine."""

    key: str  # names the item inside its task, stable across runs
    prompt: str  # full text: few-shot examples, chat markup and question
    stop: tuple[str, ...]  # strings that end the answer
    max_tokens: int  # most tokens to generate
    doc: Doc  # the record of the data set that scoring reads
