"""The one place where work is counted: forwards per row, by role, kind and shape.

Counts live on the device and are masked by the rows that were active, so a finished row that only rides along costs
nothing. Decoders never see this object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlmbench.backbone.config import BackboneConfig
from dlmbench.forwards import ForwardKey

MEASURES = ("calls", "keys", "query_tokens", "projected")


LogEntry = tuple[ForwardKey, Tensor, Tensor]  # a forward, rows [R] that it served, query tokens [R] of each


class ForwardSum(NamedTuple):
    """Forwards of one key, summed: `pairs` are (query, key) pairs, `projected` tokens that went through the head."""

    calls: int = 0
    query_tokens: int = 0
    pairs: int = 0
    projected: int = 0

    def plus(self, other: ForwardSum) -> ForwardSum:
        return ForwardSum(*(a + b for a, b in zip(self, other)))


@dataclass(frozen=True)
class Counts:
    """Host copy of one row.

    `kinds` {role: {kind: {calls, query_tokens, key_tokens, flops}}}, where `key_tokens` counts (query, key) pairs.
    """

    kinds: dict[str, dict[str, dict[str, float]]]
    work: dict[ForwardKey, ForwardSum]


class Counter:
    """`totals` [columns, 4, rows]: the MEASURES of every row in every column.

    Columns are also told apart by the tokens of a row through the layers and the head where all their forwards have
    the same numbers of them: there calls and the keys of one query say everything, and only they are summed. In the
    others "keys" are (query, key) pairs.
    """

    carried = ("totals",)  # what lives from step to step

    def __init__(self, rows: int, device: torch.device, columns: int = 64):
        self.columns: dict[tuple[ForwardKey, tuple[int, int] | None], int] = {}
        self.configs: dict[str, BackboneConfig] = {}
        self.totals = torch.zeros(columns, len(MEASURES), rows, dtype=torch.long, device=device)
        self.log: list[LogEntry] | None = None  # while tracing

    def add(
        self,
        config: BackboneConfig,
        key: ForwardKey,
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
        even = (queries, projected) if isinstance(queries, int) and isinstance(projected, int) else None
        index = self.columns.get((key, even))
        if index is None:
            index = self._new_column(key, even, config)
        amounts = [active, keys * active]
        if not even:
            tokens = queries * active
            amounts = [active, tokens * keys, tokens, projected * active]
        if rows is None:
            for total, amount in zip(self.totals[index].unbind(), amounts):
                total.add_(amount)
        else:
            stacked = torch.stack(torch.broadcast_tensors(*amounts)).long()
            self.totals[index, : len(amounts)].index_add_(1, rows, stacked)
        if self.log is not None:
            self.log.append((key, self._everyone(active, rows), self._everyone(queries * active, rows)))

    def reset(self, rows: Tensor) -> None:
        self.totals.index_fill_(2, rows, 0)

    def keep_rows(self, rows: Tensor) -> None:
        self.totals = self.totals.index_select(2, rows)

    def read(self, row: int, totals: Tensor | None = None) -> Counts:
        """What one row has cost so far, or had cost when `totals` was copied."""
        table = (self.totals if totals is None else totals)[: len(self.columns), :, row].tolist()
        kinds: dict[str, dict[str, dict[str, float]]] = {}
        work: dict[ForwardKey, ForwardSum] = {}
        for (key, even), (calls, pairs, queries, projected) in zip(self.columns, table):
            if not calls:
                continue
            if even:
                pairs, queries, projected = pairs * even[0], calls * even[0], calls * even[1]
            empty = {"calls": 0, "query_tokens": 0, "key_tokens": 0, "flops": 0.0}
            kind = kinds.setdefault(key.role, {}).setdefault(key.kind, empty)
            flops = self.configs[key.role].flops(queries, pairs, projected)
            for measure, value in zip(empty, (calls, queries, pairs, flops)):
                kind[measure] += value
            work[key] = work.get(key, ForwardSum()).plus(ForwardSum(calls, queries, pairs, projected))
        return Counts(kinds, work)

    def _new_column(self, key: ForwardKey, even: tuple[int, int] | None, config: BackboneConfig) -> int:
        self.configs[key.role] = config
        self.columns[key, even] = index = len(self.columns)
        if index == self.totals.shape[0]:
            self.totals = torch.cat([self.totals, torch.zeros_like(self.totals)])
        return index

    def _everyone(self, values: Tensor, rows: Tensor | None) -> Tensor:
        """`values` [n] of some rows as those of all [R]; a copy."""
        if rows is None:
            return values.clone()
        return values.new_zeros(self.totals.shape[2]).index_put_((rows,), values)
