"""Text of what was generated, and the stop strings in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

Tokenizer: TypeAlias = Any  # of transformers, or whatever has its `decode` and may have `added_tokens_decoder`
TAIL = 8  # tokens of the prompt that an answer is decoded behind


class Text:
    """Decodes answers with `tokenizer`; without one every text is empty.

    An answer is decoded behind the last tokens of its prompt (`before`), or behind its own first token if none are
    given, because SentencePiece decoders take the first space of whatever they decode. Stop strings are looked for
    while special tokens still stand in the text, since a stop string may be one; the text that is handed out has none.
    """

    def __init__(self, tokenizer: Tokenizer | None = None):
        self.tokenizer = tokenizer
        known = getattr(tokenizer, "added_tokens_decoder", None) or {}
        words = sorted((token.content for token in known.values() if token.special), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, words))) if words else None

    def of(self, ids: list[int], before: Sequence[int] = ()) -> str:
        """The text of `ids` without special tokens."""
        return self.plain(self._marked(ids, before))

    def stops(self, ids: list[int], stop: tuple[str, ...], before: Sequence[int] = ()) -> bool:
        """Does the text of `ids` contain a stop string?"""
        return _first(self._marked(ids, before), stop) is not None

    def cut(self, ids: list[int], stop: tuple[str, ...], before: Sequence[int] = ()) -> tuple[str, int, bool]:
        """(text before the first stop string, tokens up to and including it, was there one?)."""
        text = self._marked(ids, before)
        at = _first(text, stop)
        if at is None:
            return self.plain(text), len(ids), False
        return self.plain(text[:at]), self._tokens_until(ids, stop, before), True

    def _tokens_until(self, ids: list[int], stop: tuple[str, ...], before: Sequence[int]) -> int:
        low, high = 0, len(ids)
        while low + 1 < high:  # the text of a prefix only grows
            middle = (low + high) // 2
            low, high = (low, middle) if self.stops(ids[:middle], stop, before) else (middle, high)
        return high

    def _marked(self, ids: list[int], before: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        if self.tokenizer is None:
            return ""
        tail = list(before[-TAIL:]) or ids[:1]
        prompt, both = self._decode(tail), self._decode([*tail, *ids])
        return both[len(prompt) :] if both.startswith(prompt) else self._decode(ids)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False) if ids and self.tokenizer is not None else ""

    def plain(self, text: str) -> str:
        """A text without special tokens."""
        return text if self._special is None else self._special.sub("", text)


def _first(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins. An empty one is in every text and stops nothing."""
    return min((at for at in (text.find(string) for string in stop if string) if at >= 0), default=None)
