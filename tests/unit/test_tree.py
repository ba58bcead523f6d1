"""The tracked tree stays small enough to travel as a whole. pytest tests/unit/test_tree.py"""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 56  # MiB


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not in a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_tracked_files_fit_into_what_may_travel(tracked):
    size = sum(path.stat().st_size for path in tracked) / 2**20
    assert size < MOST, f"the tracked files have {size:.1f} MiB"


def test_no_weights_are_kept_twice(tracked):
    seen: dict[str, Path] = {}
    for path in tracked:
        if path.suffix == ".safetensors":
            first = seen.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
            assert first is path, f"{path.relative_to(ROOT)} is {first.relative_to(ROOT)} once more"
