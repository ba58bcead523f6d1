"""What a device does by itself: how fast it reads, copies and multiplies, as measured now."""

from __future__ import annotations

from pathlib import Path

import torch

from dlmbench.backbone.ops import linear, matrix_of
from dlmbench.engine.calibrate import median_seconds

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
LEAST, MOST = 256 << 20, 2 << 30  # a virtual machine may show less cache than it has


def array_bytes(device: torch.device, caches: Path = CACHES) -> int:
    """Size of arrays that no cache holds: four times the last-level cache, within limits; 2 GiB on other devices."""
    if device.type != "cpu":
        return MOST
    sizes = [path.read_text().strip() for path in caches.glob("index*/size")]
    largest = max((int(size.removesuffix("K")) << 10 for size in sizes if size.endswith("K")), default=0)
    return min(max(4 * largest, LEAST), MOST)


@torch.inference_mode()
def device_rates(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> dict[str, float]:
    """Bandwidths in GB/s of reading and of copying (read and write both counted), and the rate in GFLOP/s of the
    products that layers use."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    matrix = matrix_of(b)
    product = median_seconds(lambda: linear(a, matrix), device, repeats)
    size = array_bytes(device)
    source = torch.ones(size // 4, device=device)  # zeros are one page, which a cache holds, until they are written
    read = median_seconds(source.sum, device, repeats)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), device, repeats)
    return {
        "read_gb_per_s": size / read / 1e9,
        "copy_gb_per_s": 2 * size / copy / 1e9,
        "matmul_gflop_per_s": 2 * n**3 / product / 1e9,
    }


def bandwidth(rates: dict[str, float]) -> float:
    """GB/s at which a forward could read its weights at best: the higher of the two."""
    return max(rates["read_gb_per_s"], rates["copy_gb_per_s"])
