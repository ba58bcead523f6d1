"""What a row would take on large models and a GPU: `8B cost`, the roofline of each of its forwards.

A forward takes at least as long as its bytes take to arrive and as its products take to be computed:
max(bytes / bandwidth, FLOPs / peak). At batch 1 bytes decide and every width costs the same, at large batch FLOPs do
and wider forwards are dearer. The target is as large as SDAR-8B, a draft as SDAR-1.7B, a head as an MRP module of three
layers of the 8B; other helpers have no such pair and no projection. Counts of forwards, queries and keys are the row's
own. A unit is one forward of the target over one block at the same batch, keys aside. Prefill is left out, and so is
whatever passes outside forwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dlmbench.runs.record import Sample, Work

BYTES = 2  # of a number in bfloat16


@dataclass(frozen=True)
class Accelerator:
    """A device by its data sheet."""

    name: str
    bandwidth: float
    """Bytes a second."""
    peak: float
    """Operations a second in bfloat16 without sparsity."""

    def seconds(self, bytes_read: float, flops: float) -> float:
        """The least that a forward takes."""
        return max(bytes_read / self.bandwidth, flops / self.peak)


H100 = Accelerator("H100", 3.35e12, 989.4e12)  # H100 SXM5, 80 GB (NVIDIA H100 data sheet)
ACCELERATORS = MappingProxyType(
    {
        one.name: one
        for one in (
            H100,
            Accelerator("H200", 4.8e12, 989.4e12),  # H200 SXM, 141 GB (NVIDIA H200 data sheet)
            Accelerator("A100", 2.039e12, 312e12),  # A100 SXM4, 80 GB (NVIDIA A100 data sheet)
        )
    }
)


@dataclass(frozen=True)
class Size:
    """A network by what its forwards take."""

    weights: float
    """Parameters read: layers and output head."""
    key: int
    """Numbers of a key and its value, all layers."""
    attention: int
    """Operations of a pair of a query and a key, all layers."""

    def seconds(self, device: Accelerator, batch: int, queries: float, pairs: float) -> float:
        """Of a forward of `batch` rows of so many queries, which see so many (query, key) pairs, a row."""
        keys = pairs / queries if queries else 0.0
        bytes_read = BYTES * (self.weights + batch * keys * self.key)
        return device.seconds(bytes_read, batch * (2 * self.weights * queries + self.attention * pairs))


# from the shapes of dlmbench.models.shapes, whose test computes them
SIZES = {
    "target": Size(7.568e9, 73_728, 589_824),
    "draft": Size(1.720e9, 57_344, 229_376),
    "head": Size(1.235e9, 6_144, 49_152),
}


def projected_cost(
    samples: Iterable[Sample], method: str, block_length: int, device: Accelerator, batch: int
) -> float | None:
    """Mean over items of the seconds of their forwards, in those of one of the target over a block; None without
    samples and with helpers that have no large pair."""
    items = [_seconds(sample.counts, method, device, batch) for sample in samples]
    known = [one for one in items if one is not None]
    if not items or len(known) < len(items):
        return None
    unit = SIZES["target"].seconds(device, batch, block_length, 0.0)
    return sum(known) / len(known) / unit


def _seconds(counts: Mapping[str, Mapping[str, Work]], method: str, device: Accelerator, batch: int) -> float | None:
    """Of an item's decoding, the whole batch's forwards that it takes part in; those of one role and kind are taken as
    equal."""
    found = 0.0
    for role, kinds in counts.items():
        if role not in SIZES or (role == "head" and method != "mrp"):
            return None  # another head than the one that the size belongs to
        for kind, work in kinds.items():
            if kind != "prefill" and work.calls:
                one = SIZES[role].seconds(device, batch, work.query_tokens / work.calls, work.key_tokens / work.calls)
                found += work.calls * one
    return found
