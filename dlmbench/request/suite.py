"""A frozen suite: a recipe that a paper can cite, because it refuses to run on anything but what it was frozen with.

The key ``suite`` of a recipe holds `budget`, `margin` and `hashes`; tasks and grid are the recipe's own. The hashes are
compared by `dlmbench.runs.sweep` before the first forward, the rest when the recipe is read and resolved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from dlmbench.errors import RequestError
from dlmbench.request.resolved import ResolvedRun
from dlmbench.stats import MARGIN


@dataclass(frozen=True)
class Suite:
    """What was frozen."""

    name: str
    budget: int  # most settings of one method on one task and one set of weights
    margin: float  # of accuracy, as a share: differences within it are called equal, losses within it are allowed
    hashes: Mapping[str, str]  # task -> hash of its records, `Task.content_hash`

    @classmethod
    def of(cls, name: str, record: object) -> Suite:
        """From a recipe. Raises RequestError for a missing or unknown field, and for another margin than ours."""
        wanted = {field.name for field in fields(cls)} - {"name"}
        if not isinstance(record, Mapping) or set(record) != wanted:
            raise RequestError(f"Suite {name} has to give {', '.join(sorted(wanted))} and nothing else.")
        suite = cls(name, int(record["budget"]), float(record["margin"]), dict(record["hashes"]))
        if suite.margin != MARGIN:
            raise RequestError(
                f"Suite {name} was frozen with a margin of {suite.margin:g}, this version of dlmbench judges by "
                f"{MARGIN:g}: install the version that the suite names."
            )
        return suite

    def check_grid(self, runs: Sequence[ResolvedRun]) -> None:
        """Raises RequestError where a method has more settings than the budget, or a task is not in the suite."""
        counts: dict[tuple[str, str, str], int] = {}
        for run in runs:
            spec = run.spec
            if spec.task not in self.hashes:
                raise RequestError(f"Suite {self.name} has no task {spec.task}; it has {', '.join(self.hashes)}.")
            place = spec.task, run.preset.name, spec.method
            counts[place] = counts.get(place, 0) + 1
        for (task, model, method), count in counts.items():
            if count > self.budget:
                raise RequestError(
                    f"Suite {self.name} allows {self.budget} settings a method and {method} has {count} on {task} with "
                    f"{model}: leave some out."
                )

    def check_data(self, task: str, found: str) -> None:
        """Raises RequestError where a task's records are not those that the suite was frozen with."""
        if found != self.hashes[task]:
            raise RequestError(
                f"The items of {task} ({found}) are not those of suite {self.name} ({self.hashes[task]}): install the "
                "version of dlmbench that the suite was frozen with, or run it under another name."
            )
