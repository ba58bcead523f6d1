"""Text to batches of token columns, with as little padding as possible and a position that can be saved.

Examples come in pools. A pool is drawn, tokenised, laid out by the objective, sorted by length and cut into batches of
about `columns` columns; rows of a batch have nearly the same length, so only a few per cent of the columns are padding
and attention stays within one example. Batches of a pool are then shuffled. Pool and batch number are the whole state:
every random choice is seeded with (seed, worker, pool, batch), so a resumed run sees the same data as one that
was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

POOL = 3072  # examples drawn at a time: enough for full batches of every length
SAMPLE = 64  # examples to measure on
MOST_BLOCKS = 1 << 16  # blocks of a row
LENGTH_STEP = 8  # row lengths are rounded up to a multiple of it


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt (ending with the separator) and of its target (without the end token), and their source."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    source: str = ""


@dataclass(frozen=True)
class LaidExample:
    """One example laid out as columns (arrays of length R).

    `block` and `copy` say who sees whom (see `visible`); `label` is what a column has to predict and `weight` its loss
    weight, 0 where nothing is asked.
    """

    ids: np.ndarray
    positions: np.ndarray
    block: np.ndarray
    copy: np.ndarray
    label: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Batch:
    """N rows of R columns, and the K columns among them (flattened) that carry a loss."""

    ids: Tensor  # [N,R]
    positions: Tensor  # [N,R]
    visible: Tensor  # [N,1,R,R] bool: query sees key
    segment: Tensor  # [N,R]: columns of a row with the same number are one block of one copy; negative is padding
    predicting: Tensor  # [K] flat column numbers
    labels: Tensor  # [K]
    weights: Tensor  # [K]; their sum is about one
    columns: int  # without padding


def visible(block: Tensor, copy: Tensor) -> Tensor:
    """Who sees whom. block, copy [N,R] -> bool [N,1,R,R] (query, key).

    Copy 0 holds clean tokens, others are noisy versions of some of its blocks. A column sees its own block of its own
    copy, and clean columns of earlier blocks; for clean columns this is block-causal attention, and with blocks of one
    token it is causal attention.
    """
    q_block, k_block = block[:, :, None], block[:, None, :]
    q_copy, k_copy = copy[:, :, None], copy[:, None, :]
    own = (q_copy == k_copy) & (q_block == k_block)
    earlier = (k_copy == 0) & (k_block < q_block)
    return (own | earlier)[:, None]


def collate(rows: Sequence[LaidExample], length: int) -> Batch:
    """Pad rows to `length` columns. Padding is its own copy (-1): nothing else sees it and it carries no loss."""

    def pad(name: str, fill: float) -> np.ndarray:
        first = getattr(rows[0], name)
        out = np.full((len(rows), length), fill, dtype=first.dtype)
        for i, row in enumerate(rows):
            values = getattr(row, name)
            out[i, : len(values)] = values
        return out

    weight = torch.from_numpy(pad("weight", 0.0))
    block, copy = torch.from_numpy(pad("block", 0)), torch.from_numpy(pad("copy", -1))
    predicting = weight.flatten().nonzero().squeeze(1)
    return Batch(
        ids=torch.from_numpy(pad("ids", 0)),
        positions=torch.from_numpy(pad("positions", 0)),
        visible=visible(block, copy),
        segment=copy * MOST_BLOCKS + block,
        predicting=predicting,
        labels=torch.from_numpy(pad("label", 0)).flatten()[predicting],
        weights=weight.flatten()[predicting] / len(rows),
        columns=sum(len(row.ids) for row in rows),
    )


class Laid(Protocol):
    """An example laid out in columns, whose tokens are `ids`."""

    @property
    def ids(self) -> np.ndarray: ...


RowT = TypeVar("RowT", bound=Laid)
BatchT = TypeVar("BatchT")
Record = TypeVar("Record", bound="DataclassInstance")
Draw = Callable[[tuple[int, ...]], Iterator[Example]]  # seed -> endless examples
Layout = Callable[[Example, int, np.random.Generator], RowT]  # example, block length, noise -> row


class Batches(Generic[RowT, BatchT]):
    """Endless batches for one worker; `position` is (pool, batch) of the next one and may be set."""

    def __init__(
        self,
        draw: Draw,
        layout: Layout[RowT],
        block_lengths: Sequence[int],
        columns: int,
        seed: int = 0,
        worker: int = 0,
        pool: int = POOL,
    ):
        self.draw, self.layout, self.block_lengths, self.columns = draw, layout, tuple(block_lengths), columns
        self.seed, self.worker, self.pool_size = seed, worker, pool
        self.position = (0, 0)
        self._pool: tuple[int, list[tuple[list[RowT], int]]] | None = None

    def __iter__(self) -> Iterator[BatchT]:
        while True:
            pool, index = self.position
            plan = self.plan(pool)
            if index == len(plan):
                self.position = (pool + 1, 0)
                continue
            rows, length = plan[index]
            self.position = (pool, index + 1)
            yield self.collate(rows, length)

    def collate(self, rows: Sequence[RowT], length: int) -> BatchT:
        """A batch of rows, padded to `length` columns."""
        raise NotImplementedError

    def sample(self) -> BatchT:
        """A small batch to measure on, the same for every worker; the position stays."""
        few = type(self)(self.draw, self.layout, self.block_lengths[:1], self.columns, self.seed, pool=SAMPLE)
        return next(iter(few))

    def plan(self, pool: int) -> list[tuple[list[RowT], int]]:
        """The batches of a pool as (rows, length), each batch of one block length."""
        if self._pool is None or self._pool[0] != pool:
            noise = np.random.default_rng((self.seed, self.worker, pool))
            examples = list(islice(self.draw((self.seed, self.worker, pool)), self.pool_size))
            plan: list[tuple[list[RowT], int]] = []
            for i, block_length in enumerate(self.block_lengths):
                part = examples[i :: len(self.block_lengths)]
                plan += cut([self.layout(example, block_length, noise) for example in part], self.columns)
            self._pool = pool, [plan[i] for i in noise.permutation(len(plan))]
        return self._pool[1]


class ColumnBatches(Batches[LaidExample, Batch]):
    """Batches of rows whose columns say themselves what they have to predict."""

    def collate(self, rows: Sequence[LaidExample], length: int) -> Batch:
        return collate(rows, length)


def map_tensors(change: Callable[[Tensor], Tensor], batch: Record) -> Record:
    """A dataclass whose tensors are all changed alike."""
    changed = {name: change(value) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **changed)


def cut(rows: list[RowT], columns: int) -> list[tuple[list[RowT], int]]:
    """Sort rows by length and cut them into batches of at most `columns` padded columns: a list of (rows, length)."""
    rows, batches = sorted(rows, key=lambda row: -len(row.ids)), []
    while rows:
        length = -(-len(rows[0].ids) // LENGTH_STEP) * LENGTH_STEP
        count = max(1, columns // length)
        batches.append((rows[:count], length))
        rows = rows[count:]
    return batches
