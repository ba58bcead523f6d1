"""Results: finished runs, every file of theirs parsed once, and what follows from them, each computed once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cached_property
from pathlib import Path

from dlmbench.analysis.row import Group, Row, paired, sort_key
from dlmbench.errors import RequestError
from dlmbench.runs.folder import RunFolder, find_runs
from dlmbench.runs.record import UNTOLD, Manifest
from dlmbench.runs.sweep import trials_of


def check_folders(folders: Iterable[str | Path]) -> None:
    """Refuse a folder that does not exist."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise RequestError(f"Folder {str(folder)!r} does not exist; give the folder of a run or of a sweep.")


class Results:
    """The rows of some runs.

    Args:
        runs: their folders; unfinished ones are left out.
    """

    def __init__(self, runs: Iterable[RunFolder]):
        self.runs = [run for run in runs if run.finished]

    @classmethod
    def load(cls, *folders: str | Path, split: str = "all") -> Results:
        """All finished runs at or below `folders`, on the items of one split ("test", "dev") or of all.

        Raises RequestError for a folder that does not exist and when no run is left.
        """
        if split not in ("all", "test", "dev"):
            raise RequestError(f"--split is {split!r}; it takes test, dev or all.")
        check_folders(folders)
        found = cls(find_runs(*folders))
        names = ", ".join(map(str, folders))
        found.runs = [run for run in found.runs if split in ("all", run.manifest.spec.split)]
        if not found.runs:
            which, other = "", ""
            if split != "all":
                which, other = f" on {split} items", ", or choose another --split (test, dev or all)"
            raise RequestError(
                f"No finished run{which} in {names}; make one with dlmbench run or dlmbench sweep{other}."
            )
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """One row a run, in the order of a table."""
        models = _model_names(self.runs)
        ordered = sorted(zip(self.runs, models), key=lambda pair: sort_key(pair[0].manifest, pair[1]))
        groups: dict[tuple, Group] = {}
        rows = []
        trials = {folder: trials_of(folder) for folder in {run.path.parent for run in self.runs}}
        parents = _autoregressive(self.runs)
        for run, model in ordered:
            group = groups.setdefault(tuple(paired(run.manifest).items()), Group())
            tried = trials[run.path.parent].get(run.name)
            rows.append(Row(run, run.manifest, run.metrics, model, group, tried, parents.get(_engine(run))))
            group.rows.append(rows[-1])
        return rows

    @property
    def groups(self) -> list[Group]:
        """The comparable rows, a group each, in the order of the table."""
        return list(dict.fromkeys(row.group for row in self.rows))

    @property
    def sections(self) -> dict[tuple[str, str], list[Row]]:
        """(task, split) -> its rows: what one table shows."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.task, row.split), []).append(row)
        return found

    def row(self, run: RunFolder) -> Row:
        """The row of one of the runs."""
        return next(row for row in self.rows if row.key == run.key)


def _engine(run: RunFolder) -> tuple[Hashable, ...]:
    """What a speed has to share with that of an autoregressive model: engine, prompts, hardware, requests at a time,
    and that none waits for its time to arrive."""
    manifest, server = run.manifest, run.manifest.server
    engine = (server.api, server.version) if server else None
    return engine, manifest.prompts, manifest.environment.device, manifest.spec.batch_size, manifest.spec.rate


def _autoregressive(runs: Iterable[RunFolder]) -> dict[tuple[Hashable, ...], float]:
    """Engine -> tokens/s of the autoregressive model that ran on it, prefill included; of several the fastest."""
    found: dict[tuple[Hashable, ...], float] = {}
    for run in runs:
        told = run.manifest.environment.device != UNTOLD
        if told and run.manifest.autoregressive and run.metrics.speed and not run.manifest.spec.rate:
            speed = run.metrics.speed.end_to_end.median
            found[_engine(run)] = max(speed, found.get(_engine(run), 0.0))
    return found


def _model_names(runs: list[RunFolder]) -> list[str]:
    """What the model of each run is called, an ideal one with its options; checkpoints of one name (folders called
    alike) get the beginning of their weights' hash beside it."""
    names = [" ".join([run.manifest.spec.model, *_ideal(run.manifest)]) for run in runs]
    weights: dict[str, set[str]] = {}
    for name, run in zip(names, runs):
        weights.setdefault(name, set()).add(run.manifest.weights["target"])
    return [
        f"{name} ({run.manifest.weights['target'][:8]})" if len(weights[name]) > 1 else name
        for name, run in zip(names, runs)
    ]


def _ideal(manifest: Manifest) -> list[str]:
    """``temperature=0.5``: what an ideal model was made to be."""
    shared = manifest.identity.get("shared")
    found = shared.items() if isinstance(shared, dict) else ()
    return [f"{name.partition('.')[2]}={value}" for name, value in found if name.startswith("oracle.")]
