"""Who decoded items of a run again, and how many came out the same: ``reruns.jsonl`` in its folder."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime

from dlmbench import __version__
from dlmbench.runs.environment import environment
from dlmbench.runs.folder import RunFolder, write_lines
from dlmbench.runs.record import plain, typed

_FILE = "reruns.jsonl"


@dataclass(frozen=True)
class Rerun:
    """One time that somebody did."""

    by: str
    items: int
    """Drawn at random and decoded again."""
    same: int
    """Of these with the stored tokens, after the stored forwards."""
    seed: int
    """Of the draw."""
    device: str
    """Model of the GPU or the processor."""
    version: str
    """Of dlmbench."""
    day: str

    @classmethod
    def here(cls, by: str, items: int, same: int, seed: int, device: str) -> Rerun:
        """On a device of this machine, today."""
        return cls(by, items, same, seed, environment(device).device, __version__, datetime.now(UTC).date().isoformat())

    @property
    def sentence(self) -> str:
        return f"reproduced {self.same} of {self.items}, by {self.by}"


def keep_rerun(run: RunFolder, found: Rerun) -> None:
    """Add it to the run's folder."""
    write_lines(run.path / _FILE, [*map(plain, reruns(run)), plain(found)])


def reruns(run: RunFolder) -> list[Rerun]:
    """All that are kept, the oldest first."""
    place = run.path / _FILE
    try:
        lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
        return [typed(Rerun, json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError):
        warnings.warn(f"{run.name}/{_FILE} is damaged and is passed over.", RuntimeWarning, stacklevel=2)
        return []
