"""The one place where work is counted: forwards per row, by role, kind and query width.

Counts live on the device and are masked by the rows that were active, so a finished row that only rides along costs
nothing. Decoders never see this object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.config import BackboneConfig

KINDS = ("prefill", "denoise", "seed", "verify", "store", "refresh")


@dataclass(frozen=True)
class Column:
    """What a forward was: who ran it, what for, how many query and projected positions a row had in it."""

    role: str
    kind: str
    width: int
    projected: int


class Counter:
    """Calls and attended keys of every row, one column for each distinct `Column`."""

    def __init__(self, rows: int, device: torch.device, columns: int = 16):
        self.columns: dict[Column, int] = {}
        self.configs: dict[str, BackboneConfig] = {}
        self.calls = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self.keys = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self.log: list[tuple[Column, Tensor]] | None = None  # filled while a trace is recorded

    def add(
        self, config: BackboneConfig, column: Column, active: Tensor, keys: Tensor, rows: Tensor | None = None
    ) -> None:
        """One forward. active [n] bool, keys [n] slots that each query of the row could see; rows [n] or None (all)."""
        index = self.columns.get(column)
        if index is None:
            index = self._new_column(column, config)
        if rows is None:
            self.calls[:, index] += active
            self.keys[:, index] += keys * active
        else:
            self.calls[:, index].index_add_(0, rows, active.long())
            self.keys[:, index].index_add_(0, rows, keys * active)
        if self.log is not None:
            marks = active.clone()
            if rows is not None:
                marks = torch.zeros_like(self.calls[:, 0], dtype=torch.bool).index_put_((rows,), active)
            self.log.append((column, marks))

    def _new_column(self, column: Column, config: BackboneConfig) -> int:
        if column.kind not in KINDS:
            raise ValueError(f"kind {column.kind!r} is none of {KINDS}")
        self.configs[column.role] = config
        self.columns[column] = index = len(self.columns)
        if index == self.calls.shape[1]:
            self.calls = torch.cat([self.calls, torch.zeros_like(self.calls)], 1)
            self.keys = torch.cat([self.keys, torch.zeros_like(self.keys)], 1)
        return index

    def reset(self, rows: Tensor) -> None:
        self.calls.index_fill_(0, rows, 0)
        self.keys.index_fill_(0, rows, 0)

    def keep_rows(self, rows: Tensor) -> None:
        self.calls, self.keys = self.calls.index_select(0, rows), self.keys.index_select(0, rows)

    def read(self, row: int, calls: Tensor | None = None, keys: Tensor | None = None):
        """Host copy of one row: {role: {kind: {calls, query_tokens, key_tokens, flops}}}, calls by width, keys by width.

        `key_tokens` is the number of (query, key) pairs; the names of the last two are "role/kind/width". `calls` and
        `keys` may be an earlier snapshot of the counter's own.
        """
        calls = (self.calls if calls is None else calls)[row].tolist()
        keys = (self.keys if keys is None else keys)[row].tolist()
        counts: dict[str, dict[str, dict[str, float]]] = {}
        widths: dict[str, int] = {}
        seen: dict[str, int] = {}
        for column, index in self.columns.items():
            if index >= len(calls) or not calls[index]:
                continue
            kind = counts.setdefault(column.role, {}).setdefault(
                column.kind, {"calls": 0, "query_tokens": 0, "key_tokens": 0, "flops": 0.0}
            )
            queries, pairs = calls[index] * column.width, keys[index] * column.width
            kind["calls"] += calls[index]
            kind["query_tokens"] += queries
            kind["key_tokens"] += pairs
            kind["flops"] += self.configs[column.role].flops(queries, pairs, calls[index] * column.projected)
            name = f"{column.role}/{column.kind}/{column.width}"
            widths[name] = widths.get(name, 0) + calls[index]
            seen[name] = seen.get(name, 0) + keys[index]
        return counts, widths, seen
