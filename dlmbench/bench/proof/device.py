"""What the device is and does by itself: attention kernels on our masks, bandwidth, matrix rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dlmbench.bench.proof.stage import StageTrial
from dlmbench.bench.rates import bandwidth as best_bandwidth
from dlmbench.bench.rates import device_rates
from dlmbench.engine.calibrate import median_seconds

KERNELS = {
    "efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip
# rows, key/value heads, stacked queries, keys in sight, whether each query has a bias of its own
LAYOUTS = {
    "one row": (1, 8, 32, 1152, False),
    "one row, masked by query": (1, 8, 32, 1152, True),
    "128 rows": (128, 8, 32, 384, False),
    "whole row": (1, 32, 32, 1024, False),
}
HEAD = 128
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


class _Given(NamedTuple):
    """What attention is computed of: queries [B,H,T,D], keys and values [B,H,S,D], an additive bias [B,1,T or 1,S]."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor


def working_dtype(device: torch.device) -> torch.dtype:
    """What speed is measured in there."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


@torch.inference_mode()
def sdpa(trial: StageTrial, kernels: Mapping[str, SDPBackend] = KERNELS) -> None:
    """Microseconds of each attention kernel on the layouts that forwards have: keys and values are views of a longer
    cache, the bias is expanded over heads and, mostly, over queries. A kernel that refuses is named with its words."""
    cuda = torch.backends.cuda
    order: list[int] = getattr(torch._C, "_get_sdp_priority_order", list)()
    trial.keep(
        enabled={
            "flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled(),
            "cudnn": cuda.cudnn_sdp_enabled(), "math": cuda.math_sdp_enabled(),
        },
        order=[getattr(SDPBackend(number), "name", number) for number in order],
    )  # fmt: skip
    found: dict[str, dict[str, float | str]] = {}
    for name, layout in LAYOUTS.items():
        given = _tensors(trial, *layout)
        plain = _attention(_Given(*(one.float() for one in given)), kernels["math"])
        found[name] = {kernel: _micros(trial, kernel, one, given, plain, name)
                       for kernel, one in kernels.items()}  # fmt: skip
        if trial.device.type == "cuda" and isinstance(found[name]["efficient"], str):
            trial.fault(f"the efficient kernel, which forwards rely on, is {found[name]['efficient']} ({name})")
        trial.keep("; ".join(f"{layout}: {_said(row)}" for layout, row in found.items()), kernels=found)


def _tensors(trial: StageTrial, rows: int, heads: int, queries: int, keys: int, by_query: bool) -> _Given:
    dtype, device = working_dtype(trial.device), trial.device
    if trial.sizes.name == "tiny":
        rows, keys = min(rows, 2), keys // 4
    cache = torch.randn(2, rows, heads, keys + 129, HEAD, device=device, dtype=dtype)
    q = torch.randn(rows, heads, queries, HEAD, device=device, dtype=dtype)
    bias = torch.zeros(rows, 1, queries if by_query else 1, keys, device=device, dtype=dtype)
    bias[..., keys - 100 :] = float("-inf")
    return _Given(q, cache[0, :, :, :keys], cache[1, :, :, :keys], bias)


def _attention(given: _Given, kernel: SDPBackend) -> Tensor:
    with sdpa_kernel([kernel]):
        return F.scaled_dot_product_attention(given.queries, given.keys, given.values, attn_mask=given.bias)


def _micros(trial: StageTrial, name: str, kernel: SDPBackend, given: _Given, plain: Tensor, layout: str) -> float | str:
    try:
        out = _attention(given, kernel)
    except RuntimeError as error:
        return "refused: " + (str(error).strip().splitlines() or ["without words"])[0]
    off = (out.float() - plain).abs().max().item()
    if not off <= CLOSE[out.dtype]:
        trial.fault(f"attention by {name}, {layout}, is off by {off:.1e}")
    return 1e6 * median_seconds(lambda: _attention(given, kernel), trial.device, trial.sizes.repeats)


def _said(row: dict[str, float | str]) -> str:
    numbers = [f"{kernel} {micros:.0f}" for kernel, micros in row.items() if not isinstance(micros, str)]
    return ", ".join(numbers) + " µs" if numbers else "no kernel"


@torch.inference_mode()
def device(trial: StageTrial, rates=device_rates) -> None:
    """Copy and read bandwidth, and the rate of matrix products."""
    dtype = working_dtype(trial.device)
    measured = rates(trial.device, dtype, trial.sizes.repeats)
    for name, rate in measured.items():
        if not 0 < rate < float("inf"):
            trial.fault(f"{name} is {rate}")
    memory = torch.cuda.get_device_properties(trial.device).total_memory if trial.device.type == "cuda" else 0
    trial.keep(
        f"copy {measured['copy_gb_per_s']:.0f} GB/s, read {measured['read_gb_per_s']:.0f} GB/s, "
        f"products {measured['matmul_gflop_per_s'] / 1e3:.1f} TFLOP/s",
        **measured, memory_gb=memory / 1e9, dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip


def bandwidth(trial: StageTrial) -> float:
    """The higher of the two bandwidths in GB/s, as the stage of that name measured them or as they are now."""
    rates = dict(trial.earlier.get("device", {}))
    if "read_gb_per_s" not in rates:
        rates = device_rates(trial.device, working_dtype(trial.device), trial.sizes.repeats)
    return best_bandwidth(rates)
