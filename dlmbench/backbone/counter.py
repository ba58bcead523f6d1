"""The one place where work is counted: forwards per row, by role, kind and shape.

Counts live on the device and are masked by the rows that were active, so a finished row that only rides along costs
nothing. Decoders never see this object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dlmbench.backbone.config import BackboneConfig

KINDS = ("prefill", "denoise", "seed", "verify", "store", "refresh")
MEASURES = ("calls", "query_tokens", "key_tokens", "projected")


@dataclass(frozen=True)
class Column:
    """What a forward was. `shape` tells forwards of different price apart: the number of query tokens of a row where
    that is fixed, a word ("row", "window") where it varies with the row."""

    role: str
    kind: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.role}/{self.kind}/{self.shape}"


@dataclass(frozen=True)
class Counts:
    """Host copy of one row.

    `kinds` {role: {kind: {calls, query_tokens, key_tokens, flops}}}, where `key_tokens` counts (query, key) pairs;
    `shapes` {"role/kind/shape": (calls, query tokens, pairs, tokens through the head)}.
    """

    kinds: dict[str, dict[str, dict[str, float]]]
    shapes: dict[str, tuple[int, int, int, int]]


class Counter:
    """`totals` [rows, columns, 4]: the MEASURES of every row in every distinct `Column`."""

    def __init__(self, rows: int, device: torch.device, columns: int = 16):
        self.columns: dict[Column, int] = {}
        self.configs: dict[str, BackboneConfig] = {}
        self.totals = torch.zeros(rows, columns, len(MEASURES), dtype=torch.long, device=device)
        self.log: list[tuple[Column, Tensor, Tensor]] | None = None  # (column, active, query tokens), while tracing

    def add(
        self,
        config: BackboneConfig,
        column: Column,
        active: Tensor,
        keys: Tensor,
        queries: int | Tensor,
        projected: int | Tensor,
        rows: Tensor | None = None,
    ) -> None:
        """One forward.

        active [n] bool, keys [n] slots that each query of the row could see, queries and projected int or [n] tokens
        of a row through the layers and through the head; rows [n] names the rows, None means all in order.
        """
        index = self.columns.get(column)
        if index is None:
            index = self._new_column(column, config)
        if isinstance(queries, int) and isinstance(projected, int):
            fixed, by_key = _units(queries, projected, self.totals.device)
            work = torch.addcmul(fixed, keys.unsqueeze(1), by_key)
        else:
            queries, projected = (torch.as_tensor(x, device=keys.device).expand_as(keys) for x in (queries, projected))
            work = torch.stack([torch.ones_like(keys), queries, queries * keys, projected], 1)
        work = work * active.unsqueeze(1)
        total = self.totals.select(1, index)
        if rows is None:
            total.add_(work)
        else:
            total.index_add_(0, rows, work)
        if self.log is not None:
            self.log.append(self._logged(column, active, work[:, 1], rows))

    def reset(self, rows: Tensor) -> None:
        self.totals.index_fill_(0, rows, 0)

    def keep_rows(self, rows: Tensor) -> None:
        self.totals = self.totals.index_select(0, rows)

    def read(self, row: int, totals: Tensor | None = None) -> Counts:
        """What one row has cost so far, or had cost when `totals` was copied."""
        table = (self.totals if totals is None else totals)[row].tolist()
        kinds: dict[str, dict[str, dict[str, float]]] = {}
        shapes: dict[str, tuple[int, int, int, int]] = {}
        for column, index in self.columns.items():
            if index >= len(table) or not table[index][0]:
                continue
            calls, queries, pairs, projected = table[index]
            empty = {"calls": 0, "query_tokens": 0, "key_tokens": 0, "flops": 0.0}
            kind = kinds.setdefault(column.role, {}).setdefault(column.kind, empty)
            flops = self.configs[column.role].flops(queries, pairs, projected)
            for measure, value in zip(empty, (calls, queries, pairs, flops)):
                kind[measure] += value
            shapes[column.name] = (calls, queries, pairs, projected)
        return Counts(kinds, shapes)

    def _new_column(self, column: Column, config: BackboneConfig) -> int:
        if column.kind not in KINDS:
            raise ValueError(f"kind {column.kind!r} is none of {KINDS}")
        self.configs[column.role] = config
        self.columns[column] = index = len(self.columns)
        if index == self.totals.shape[1]:
            self.totals = torch.cat([self.totals, torch.zeros_like(self.totals)], 1)
        return index

    def _logged(self, column: Column, active: Tensor, queries: Tensor, rows: Tensor | None):
        if rows is None:
            return column, active.clone(), queries.clone()
        whole = self.totals.new_zeros(self.totals.shape[0])
        return column, whole.bool().index_put_((rows,), active), whole.index_put_((rows,), queries)


@lru_cache(maxsize=256)
def _units(queries: int, projected: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Constant part of a row's work and the part that grows with its keys, each [1, 4]."""
    fixed = torch.tensor([[1, queries, 0, projected]], device=device)
    return fixed, torch.tensor([[0, 0, queries, 0]], device=device)
