"""Recorded steps without a GPU: a tape of operators that is replayed on the same memory, as a CUDA graph is.

The tape refuses what a GPU would refuse to record: host reads, shapes that depend on data, tensors made from host data.
`HostReads` refuses the same and records nothing. What neither can show: streams, memory pools, speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")
HOST = (
    "item", "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "lift_fresh", "unique",
    "resolve_conj",  # tolist, numpy
)  # fmt: skip


class HostReads(TorchDispatchMode):
    """Raises RuntimeError for an operator that would make the host wait for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name in HOST or name.startswith("index") and _mask_index(args):
            raise RuntimeError(f"operation not permitted while recording: {name}")
        return function(*args, **(kwargs or {}))


class Tape(HostReads):
    """A `Recording`: operators in the order they ran; `replay` runs them again and puts their results where they were.

    `pool` stands for a memory pool, which recordings share by handing on its handle.
    """

    def __init__(self, pool: object | None = None):
        super().__init__()
        self.calls: list[tuple] = []
        self.replays, self.pool = 0, pool or object()

    def record(self, body: Callable[[], T]) -> T:
        with self:
            return body()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        read = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        fresh = [isinstance(leaf, torch.Tensor) and _memory(leaf) not in read for leaf in tree_leaves(result)]
        if any(fresh) or function._schema.is_mutable:  # what only looks at its arguments in another way stays true
            self.calls.append((function, args, kwargs or {}, result, fresh))
        return result

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, result, fresh in self.calls:
            again = function(*args, **kwargs)
            if any(fresh):
                for old, new, is_fresh in zip(tree_leaves(result), tree_leaves(again), fresh):
                    if is_fresh:
                        old.copy_(new)


def _memory(tensor: torch.Tensor) -> int | None:
    """Where a tensor lies; None for one in a library's own layout."""
    return None if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def _mask_index(args: tuple) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(index is not None and index.dtype == torch.bool for index in indices)
