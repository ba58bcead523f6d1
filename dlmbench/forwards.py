"""The name of a forward: whose network, what for, how wide. Strings of it stand in files only. (No torch in here.)"""

from __future__ import annotations

from typing import NamedTuple


class ForwardKey(NamedTuple):
    """What a forward was, as far as its price depends on it.

    `role` of the network ("target", "draft", ...), `kind` of the forward ("prefill", "denoise", "store", or whatever
    name its decoder gives it), `shape`: the query tokens of a row where they are fixed, else a word ("prompt", "row",
    "dual") and, behind a colon, the positions that go through the head ("row:8"; "row:8x2" under guidance).
    """

    role: str
    kind: str
    shape: str

    def __str__(self) -> str:
        return f"{self.role}/{self.kind}/{self.shape}"

    @classmethod
    def parse(cls, text: str) -> ForwardKey:
        """The key that is written as `text`. Raises ValueError when it is none."""
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{text!r} names no forward: it is written role/kind/shape")
        return cls(*parts)
