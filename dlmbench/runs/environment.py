"""The circumstances of a run that a reader may know: versions, device model, threads, commit; no host, no path."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dlmbench import __version__
from dlmbench.runs.record import Environment

PACKAGES = ("torch", "transformers", "lm-eval", "numpy")


def environment(device: str) -> Environment:
    """Versions, device model, threads and commit of this process. Imports torch."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_model()
    return Environment(name, torch.get_num_threads(), versions(), commit())


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed version of each package; "missing" for one that is not there."""
    found = {"python": platform.python_version(), "dlmbench": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def cpu_model() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Commit of the checkout that dlmbench runs from, None when it was installed from a package."""
    git = Path(__file__).parents[2] / ".git"
    head = git / "HEAD"
    if not head.is_file():
        return None
    text = head.read_text().strip()
    if not text.startswith("ref: "):
        return text[:10]
    reference = text.removeprefix("ref: ")
    loose = git / reference
    if loose.is_file():
        return loose.read_text().strip()[:10]
    packed = git / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line[:10] for line in lines if line.endswith(f" {reference}")), None)
