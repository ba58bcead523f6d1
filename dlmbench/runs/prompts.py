"""The questions of a run's items, for readers: one file beside the run folders, shared by all runs that ask the same.

samples.jsonl has a hash of each prompt only, because the prompts of fifteen settings are fifteen times the same text.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from dlmbench.runs.folder import RunFolder, write_lines
from dlmbench.runs.record import Json

_LETTERS = 16


def keep_prompts(run: RunFolder, prompts: str, records: Iterable[Json]) -> None:
    """Write {"key", "prompt", "target"} of every item beside `run`, unless they are there. `prompts` is their hash."""
    path = _file(run, prompts)
    if not path.is_file():
        with contextlib.suppress(FileNotFoundError):  # another run beside this one has just moved the same file there
            write_lines(path, records)


def read_prompts(run: RunFolder) -> dict[str, dict[str, str]]:
    """Key -> record of `keep_prompts` for this run's items; empty when the file did not come along."""
    path = _file(run, run.manifest.prompts)
    if not path.is_file():
        return {}
    records = (json.loads(line) for line in path.read_bytes().splitlines())
    return {record["key"]: record for record in records}


def _file(run: RunFolder, prompts: str) -> Path:
    return run.path.parent / f"prompts-{prompts[:_LETTERS]}.jsonl"
