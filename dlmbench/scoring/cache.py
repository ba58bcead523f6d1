"""Verdicts kept by the hash of (problem, program), in memory and, if asked, in a JSONL file.

Executing a program is the slow part of scoring a sweep, and greedy settings often write the same program. A verdict is
kept unless it is a timeout by the clock: that one may be the machine's fault. A file line that cannot be read (a run
killed while writing) is passed over and its program run again.
"""

import hashlib
import json
import threading
from dataclasses import asdict, fields
from pathlib import Path

from dlmbench.scoring.problem import STATUSES, Problem, Verdict
from dlmbench.scoring.processes import wire

VERSION = 2  # of the judging rules; a change of rules makes old files useless


def verdict_key(problem: Problem, program: str, limits: tuple) -> str:
    """Hash of all that a verdict depends on: rules, tests, program and `limits` (time limit or None, memory)."""
    tests = [getattr(problem, field.name) for field in fields(Problem) if field.name != "key"]
    return hashlib.sha256(wire.encode([VERSION, tests, program, limits], limit=1 << 26)).hexdigest()


class VerdictCache:
    """Verdicts by key. Safe to use from several threads.

    Args:
        path: JSONL file to read now and to append to; None keeps verdicts in memory only.
    """

    def __init__(self, path: Path | str | None = None):
        self._lock = threading.Lock()
        self._verdicts: dict[str, Verdict] = {}
        self._path = None if path is None else Path(path)
        if self._path and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            record = json.loads(line)
            key = record.pop("key")
            verdict = Verdict(**record)
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        if verdict.status in STATUSES:
            self._verdicts[key] = verdict

    def __len__(self) -> int:
        return len(self._verdicts)

    def get(self, key: str) -> Verdict | None:
        return self._verdicts.get(key)

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep `verdict` if it is final."""
        if not verdict.final:
            return
        with self._lock:
            if key in self._verdicts:
                return
            self._verdicts[key] = verdict
            if self._path:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, **asdict(verdict)}) + "\n")
