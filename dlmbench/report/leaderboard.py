"""A leaderboard: result folders of several machines and people on one page that needs nothing else.

A table for everything that rows must share to be compared: task, protocol, weights, hardware, batch, cache. Nothing is
averaged over any of it. A row links to its manifest and holds the command that makes it again; it says how far it can
be believed: decoded again by somebody, consistent, or a table only. A folder that contradicts itself is named, not
shown.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dlmbench.analysis.load import Results, check_folders
from dlmbench.analysis.row import REFERENCE, Group, Row
from dlmbench.errors import RequestError
from dlmbench.report.columns import HTML, Column, legend, table_columns
from dlmbench.report.summary import unusual
from dlmbench.request.command import command
from dlmbench.runs.folder import BUNDLE, RunFolder, find_runs
from dlmbench.runs.reruns import reruns
from dlmbench.runs.validate import Validator
from dlmbench.stats import MARGIN

TABLE_ONLY = "table only, not verifiable"
COLUMNS = ("accuracy", "vs_static", "verdict", "nfe", "cost", "helpers", "tpf", "tps_decode")


@dataclass(frozen=True)
class Entry:
    """One row: its cells, how far it can be believed, where its manifest is, and the command that makes it again."""

    label: str
    cells: list[str]
    standing: str
    source: str
    link: str
    command: str


@dataclass(frozen=True)
class Board:
    """Rows that may stand beside each other: what they share, by name."""

    title: str
    shared: list[str]
    columns: list[Column]
    entries: list[Entry]


def write_leaderboard(folders: Sequence[Path], path: Path, title: str = "Leaderboard") -> Path:
    """The page of all finished runs on test items in these folders.

    Raises RequestError where there is none, and for a folder that does not exist.
    """
    check_folders(folders)
    runs = [
        run for folder in folders for run in find_runs(folder) if run.finished and run.manifest.spec.split == "test"
    ]
    if not runs:
        raise RequestError(
            f"No finished run on test items in {', '.join(map(str, folders))}; give the folders of sweeps."
        )
    validator = Validator()
    verdicts = {run.path: validator.look(run, deep=False) for run in runs}
    refused = [(_source(run, folders), verdict.problems[0]) for run in runs if (verdict := verdicts[run.path]).problems]
    sound = [run for run in runs if not verdicts[run.path].problems]
    path.parent.mkdir(parents=True, exist_ok=True)
    boards = [_board(group, folders, path.parent) for group in Results(sound).groups]
    assets = files("dlmbench.report.html") / "assets"
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((assets / "leaderboard.html").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        style=Markup((assets / "report.css").read_text(encoding="utf-8")),
        boards=boards,
        refused=refused,
        runs=len(sound),
        legend=legend(dict.fromkeys(column for board in boards for column in board.columns)),
    )
    path.write_text(page, encoding="utf-8")
    return path


def _board(group: Group, folders: Sequence[Path], place: Path) -> Board:
    first = group.rows[0]
    columns = [one for one in table_columns(HTML, group.rows) if one.name in COLUMNS]
    items = f"{first.metrics.items} {first.split} items"
    title = f"{first.task} ({items}), {first.model}, {first.device}, batch {first.batch_size}"
    return Board(title, unusual(group), columns, [_entry(row, columns, folders, place) for row in _best_first(group)])


def _best_first(group: Group) -> list[Row]:
    """Those that lost at most the margin, the cheapest first; then the others, the most accurate first."""

    def order(row: Row) -> tuple[bool, float]:
        gap = row.against.get(REFERENCE)
        lost = gap is not None and (gap.verdict == "worse" or gap.difference < -MARGIN - 1e-9)
        return lost, -row.accuracy if lost else group.spent(row)

    return sorted(group.rows, key=order)


def _entry(row: Row, columns: Sequence[Column], folders: Sequence[Path], place: Path) -> Entry:
    run = row.run
    manifest = run.path / "manifest.json"
    target = manifest if manifest.is_file() else run.path.parent / BUNDLE
    return Entry(
        label=row.label,
        cells=[column.text(row, brief=True) for column in columns],
        standing=standing(run),
        source=_source(run, folders),
        link=os.path.relpath(target, place),
        command=command(row.manifest.spec),
    )


def standing(run: RunFolder) -> str:
    """How far a consistent run can be believed."""
    if not run.samples:
        return TABLE_ONLY
    return "; ".join(one.sentence for one in reruns(run)) or "consistent"


def _source(run: RunFolder, folders: Sequence[Path]) -> str:
    """The folder that was given, and the run's name in it; no place of this machine."""
    root = next(folder for folder in folders if folder == run.path or folder in run.path.parents)
    return f"{root.resolve().name}/{run.path.relative_to(root)}".removesuffix("/.")
