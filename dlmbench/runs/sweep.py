"""A sweep: all its cells, or with ``tune_on`` all settings on dev items and the chosen ones on test items.

Choosing: of a method's settings on one task and one set of weights, the one with the highest dev accuracy; of equals
the one with fewer forwards. How many settings were tried is kept and printed, because more tries find more luck.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from dlmbench.request import Checked, SweepSpec
from dlmbench.runs import RunFolder


class Executor(Protocol):
    """Who runs cells: `dlmbench.runs.local.Local` here, `dlmbench.runs.ray.Cluster` on many machines."""

    def run(self, cells: Iterable[Checked]) -> list[RunFolder]:
        """Run or resume every cell; the finished folders, in the order of the cells."""


@dataclass(frozen=True)
class Choice:
    """Which setting of a method was taken, out of which."""

    task: str
    model: str
    method: str
    chosen: str
    tried: list[dict[str, Any]]  # label, accuracy, nfe of every setting, on dev
    dev_items: int

    @property
    def sentence(self) -> str:
        others = f"{len(self.tried)} setting{'s' if len(self.tried) != 1 else ''}"
        best = next(one for one in self.tried if one["label"] == self.chosen)
        return (
            f"{self.task}, {self.model}: {self.chosen} was chosen out of {others} of {self.method} "
            f"on {self.dev_items} dev items ({100 * best['accuracy']:.1f} % there)."
        )


@dataclass(frozen=True)
class Swept:
    """A finished sweep."""

    folders: list[RunFolder]
    choices: list[Choice]


def run_sweep(sweep: SweepSpec, cells: Sequence[Checked], executor: Executor) -> Swept:
    """Run, resume or find finished every cell; writes sweep.json into the sweep's folder."""
    choices: list[Choice] = []
    if sweep.tune_on:
        cells, choices = _tuned(sweep, cells, executor)
    folders = executor.run(cells)
    record = {
        "name": sweep.name,
        "description": sweep.description,
        "tune_on": sweep.tune_on,
        "runs": [folder.name for folder in folders],
        "choices": [asdict(choice) for choice in choices],
    }
    place = Path(sweep.out) / "sweep.json"
    place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Swept(folders, choices)


def tries(cells: Sequence[Checked]) -> list[str]:
    """One sentence a task and model: how many settings each method tries, with a warning where the numbers differ."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for cell in cells:
        found = counts.setdefault((cell.spec.task, cell.spec.portable()["model"]), {})
        found[cell.spec.method] = found.get(cell.spec.method, 0) + 1
    return [
        f"{task}, {model}: settings tried on dev: {', '.join(f'{name} {n}' for name, n in methods.items())}"
        + ("; unequal numbers favour the methods with more tries." if len(set(methods.values())) > 1 else ".")
        for (task, model), methods in counts.items()
    ]


def planned_cells(sweep: SweepSpec, cells: Sequence[Checked]) -> list[Checked]:
    """What will run, as far as it is known before: with ``tune_on`` every setting on dev items and, for the setting of
    each contest that will be chosen, the first one on test items."""
    if not sweep.tune_on:
        return list(cells)
    return [*(on_dev(cell) for cell in cells), *(group[0] for group in contests(cells))]


def contests(cells: Sequence[Checked]) -> list[list[Checked]]:
    """Cells in groups that compete: one a method, task and set of weights."""
    groups: dict[str, list[Checked]] = {}
    for cell in cells:
        groups.setdefault(_contest(cell), []).append(cell)
    return list(groups.values())


def on_dev(cell: Checked) -> Checked:
    """The same setting on dev items, kept below dev/."""
    return replace(cell, spec=replace(cell.spec, split="dev", out=str(Path(cell.spec.out) / "dev")))


def _tuned(sweep: SweepSpec, cells: Sequence[Checked], executor: Executor) -> tuple[list[Checked], list[Choice]]:
    """The cells whose settings won on dev, one a contest."""
    groups = contests(cells)
    folders = iter(executor.run([on_dev(cell) for group in groups for cell in group]))
    winners, choices = [], []
    for group in groups:
        metrics = [next(folders).metrics() for _ in group]
        best = max(range(len(group)), key=lambda i: (metrics[i]["accuracy"], -metrics[i]["nfe"]))
        tried = [
            {"label": cell.label, "accuracy": one["accuracy"], "nfe": one["nfe"]} for cell, one in zip(group, metrics)
        ]
        spec = group[best].spec
        winners.append(group[best])
        model = spec.portable()["model"]
        choices.append(Choice(spec.task, model, spec.method, group[best].label, tried, metrics[best]["items"]))
    return winners, choices


def _contest(cell: Checked) -> str:
    """Cells that differ only in the method's own settings compete with each other."""
    plain = replace(cell.spec, threshold=None, settings={}, against=())
    return json.dumps(asdict(plain), sort_keys=True)
