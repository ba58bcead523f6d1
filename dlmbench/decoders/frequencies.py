"""How often a tokenizer's tokens occur: the table of counts that `pcsampler` reads.

Its file is that of PC-Sampler's release: {"num_token": N, "p_baseline_dict": {"token id": count}}.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from dlmbench.errors import RequestError
from dlmbench.models.presets import ASSETS


class Table(str):
    """A table's name: what its file is called, and a hash of what is in it. `path` says where the file lies, which
    neither a run's key nor its label names."""

    path: Path

    @classmethod
    def of(cls, file: str | Path) -> Table:
        """The table in a file, the user's or one below assets/. Raises RequestError when there is none."""
        path = next((place for place in (Path(file), ASSETS / file) if place.is_file()), None)
        if path is None:
            raise RequestError(
                f"Table of token frequencies {str(file)!r} does not exist; give a JSON file with counts."
            )
        table = cls(f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}")
        table.path = path
        table._counts()  # a broken file is refused before weights are read
        return table

    def frequencies(self, vocab_size: int) -> Tensor:
        """Share of every token [V] in float64; one that was never counted has that of a single occurrence.

        Raises RequestError when the table counts tokens that the model does not have.
        """
        total, counts = self._counts()
        if max(counts) >= vocab_size:
            raise RequestError(
                f"Table {self.path.name} counts token {max(counts)} and the model has {vocab_size} tokens: give one "
                "that was made with its tokenizer."
            )
        frequency = torch.full((vocab_size,), 1.0, dtype=torch.float64)
        frequency[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.float64)
        return frequency / total

    def _counts(self) -> tuple[int, dict[int, int]]:
        try:
            record = json.loads(self.path.read_text())
            counts = {int(token): int(count) for token, count in record["p_baseline_dict"].items()}
            total = int(record["num_token"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"Table {self.path.name} holds no token counts: it must be JSON of the form "
                '{"num_token": N, "p_baseline_dict": {"token id": count}}.'
            ) from error
        if not counts or total < 1 or min(*counts, *counts.values()) < 0:
            raise RequestError(f"Table {self.path.name} must count at least one token, and none less than never.")
        return total, counts


def count(rows: Iterable[list[int]]) -> dict[str, object]:
    """The table of some texts' token ids, as its file has it."""
    counts = Counter(token for row in rows for token in row)
    ordered = {str(token): counts[token] for token in sorted(counts)}
    return {"num_token": counts.total(), "p_baseline_dict": ordered}
