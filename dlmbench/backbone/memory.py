"""Does a network fit into the memory of a device at all? Asked before it is read."""

from __future__ import annotations

from pathlib import Path

import torch

from dlmbench.errors import RequestError


def total_memory(device: torch.device | str) -> int | None:
    """Bytes of memory of a device, taken or not; None where nobody says."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    info = Path("/proc/meminfo")
    if kind != "cpu" or not info.is_file():
        return None
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
    return int(lines["MemTotal"].split()[0]) * 1024


def check_room(name: str, size: int, device: torch.device | str, dtype: torch.dtype) -> None:
    """Refuse weights of `size` bytes that are more than the device has. Raises RequestError with both figures."""
    room = total_memory(device)
    if room is not None and size > room:
        kind, smaller = str(dtype).removeprefix("torch."), "a 16-bit --dtype, " if dtype.itemsize > 2 else ""
        raise RequestError(
            f"{name} is {size / 1e9:.3g} GB in {kind} and {device} has {room / 1e9:.3g} GB of memory: take "
            f"{smaller}a smaller model, or a device with more memory."
        )
