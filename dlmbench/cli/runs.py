"""`dlmbench runs [DIR]`: what is in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmbench import __version__
from dlmbench.analysis import text
from dlmbench.analysis.load import Results
from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout
from dlmbench.errors import DlmbenchError, RequestError
from dlmbench.runs import find_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dlmbench.runs import RunFolder


@dataclass(frozen=True)
class Listed:
    """One run folder."""

    folder: str
    task: str
    model: str
    label: str
    items: int
    asked: int | None
    accuracy: float | None
    """None while it is unfinished."""
    cost: float | None
    when: str
    """Its last change, local time."""
    stale: str
    """Why it is not the run that would be made now; empty where nothing says so."""

    @property
    def counted(self) -> str:
        """``500``, ``120 of 500``: items."""
        return str(self.items) if self.asked in (None, self.items) else f"{self.items} of {self.asked}"

    @property
    def state(self) -> str:
        return "unfinished" if self.accuracy is None else self.stale or "done"


def runs(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders that hold runs.", show_default="runs")] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only runs of other weights or versions than here.")] = False,
    json: flags.Json = False,
) -> None:
    """List the runs of a folder: method, setting, items, accuracy, cost, when, finished or not."""
    places = folders or [Path("runs")]
    found = find_runs(*places)
    if not found:
        raise RequestError(f"No run folder in {', '.join(map(str, places))}; name the folder that --out named.")
    listed = _listed(found, stale)
    listed = [one for one in listed if one.stale] if stale else listed
    if json:
        print_json({"runs": [vars(one) for one in listed]})
        return
    _print(listed)


def _listed(found: Sequence[RunFolder], look: bool) -> list[Listed]:
    rows = {row.run.path: row for row in Results(found).rows}
    listed = []
    for run in found:
        if not run.begun:
            continue
        manifest, row = run.manifest, rows.get(run.path)
        changed = max((file.stat().st_mtime for file in run.path.glob("*.json*")), default=0.0)
        listed.append(
            Listed(
                folder=str(run.path),
                task=manifest.task.name + (f" ({manifest.spec.split})" if manifest.spec.split != "test" else ""),
                model=manifest.spec.model,
                label=manifest.label + (f", seed {manifest.spec.seed}" if manifest.spec.seed else ""),
                items=row.metrics.items if row else len(run.samples),
                asked=manifest.task.items,
                accuracy=row.accuracy if row else None,
                cost=row.cost if row else None,
                when=datetime.fromtimestamp(changed).strftime("%m-%d %H:%M") if changed else text.DASH,
                stale=_stale(run) if look else "",
            )
        )
    return listed


def _stale(run: RunFolder) -> str:
    """What of it is another than here: dlmbench's version, or the weights (where these are at hand)."""
    from dlmbench.engine import network_hashes

    manifest = run.manifest
    version = manifest.environment.versions.get("dlmbench", __version__)
    if version != __version__:
        return f"dlmbench {version}"
    if manifest.server:
        return ""
    try:
        here = network_hashes(manifest.spec.resolve())
    except DlmbenchError:
        return ""
    return "other weights" if here != manifest.weights else ""


_LABEL = 20  # letters of a setting that have room in any terminal


def _print(listed: Sequence[Listed]) -> None:
    from rich.table import Table

    console = stdout()
    if not listed:
        console.print("No stale run: all are of these weights and this version.")
        return
    columns = {
        "task": [one.task for one in listed],
        "model": [one.model for one in listed],
        "setting": [one.label for one in listed],
        "items": [one.counted for one in listed],
        "accuracy": [text.percent(one.accuracy) for one in listed],
        "cost": [text.number(one.cost) for one in listed],
        "when": [one.when for one in listed],
        "state": [one.state for one in listed],
    }
    for name in ("when", "cost", "model"):  # what a narrow terminal does without; settings take two lines before
        if sum(min(max(map(len, [key, *cells])), _LABEL) + 2 for key, cells in columns.items()) > console.width:
            del columns[name]
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for name in columns:
        number = name in ("items", "accuracy", "cost")
        table.add_column(name, justify="right" if number else "left", no_wrap=name != "setting", overflow="fold")
    for cells in zip(*columns.values()):
        table.add_row(*cells)
    console.print(table)
