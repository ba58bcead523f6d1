"""What a run holds in memory does not grow with its items: slow. pytest -m slow FILE"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import make_data, make_model

pytestmark = pytest.mark.slow
ITEMS, STRETCH = 10_000, 1_000


def _peaks(process: subprocess.Popen, samples: Path) -> list[int]:
    """Highest resident KiB of the process in each stretch of items."""
    peaks = [0] * (ITEMS // STRETCH)
    seen = done = 0
    while process.poll() is None and done < ITEMS:
        if samples.exists():
            with open(samples, "rb") as stream:
                stream.seek(seen)
                new = stream.read()
            seen, done = seen + len(new), done + new.count(b"\n")
        if 0 < done < ITEMS:
            line = next(one for one in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmRSS" in one)
            peaks[done // STRETCH] = max(peaks[done // STRETCH], int(line.split()[1]))
        time.sleep(0.05)
    return peaks


def test_ten_thousand_items_take_the_memory_of_one_thousand(tmp_path):
    model, data, out = make_model(tmp_path / "tiny"), make_data(tmp_path / "data", ITEMS), tmp_path / "out"
    asked = ["--method", "threshold", "--task", "gsm8k", "--num-fewshot", "0", "--against", "none", "--model", model]
    asked += ["--data-dir", data, "--gen-length", "8", "--batch-size", "16", "--device", "cpu", "--out", str(out)]
    command = [sys.executable, "-m", "dlmbench.cli.app", "run", *asked]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not (found := list(out.glob("*/samples.jsonl"))):
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
        peaks = _peaks(process, *found)
        assert process.wait() == 0, process.stderr.read().decode()
    assert peaks[-1] <= 1.02 * peaks[0], peaks
