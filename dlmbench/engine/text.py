"""Text of what was generated, and the stop strings in it."""

from __future__ import annotations

from typing import Any


class Text:
    """Decodes ids with `tokenizer`; without one every text is empty."""

    def __init__(self, tokenizer: Any = None):
        self.tokenizer = tokenizer

    def of(self, ids: list[int]) -> str:
        return "" if self.tokenizer is None else self.tokenizer.decode(ids, skip_special_tokens=True)

    def stops(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        """Does the text of `ids` contain a stop string?"""
        text = self.of(ids)
        return any(string in text for string in stop)

    def cut(self, ids: list[int], stop: tuple[str, ...]) -> tuple[str, int, bool]:
        """(text before the first stop string, tokens up to and including it, was there one?)."""
        text = self.of(ids)
        at = min((at for at in (text.find(string) for string in stop) if at >= 0), default=None)
        return (text, len(ids), False) if at is None else (text[:at], self._tokens_until(ids, stop), True)

    def _tokens_until(self, ids: list[int], stop: tuple[str, ...]) -> int:
        low, high = 0, len(ids)
        while low + 1 < high:  # the text of a prefix only grows
            middle = (low + high) // 2
            low, high = (low, middle) if self.stops(ids[:middle], stop) else (middle, high)
        return high
