"""Terminal plumbing of the verbs: results on stdout, notes and progress on stderr. rich is imported when first used.

Consoles know no markup: names of files, models and settings may hold brackets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def stdout() -> Console:
    """Console for results."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def stderr() -> Console:
    """Console for everything that is not a result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def print_notes(notes: Iterable[str]) -> None:
    """One line a note, each once, on stderr."""
    console = stderr()
    for note in dict.fromkeys(notes):
        console.print(f"note    {note}", style="yellow", markup=False, soft_wrap=True)


def print_json(record: Any) -> None:
    """One JSON object on stdout; values that JSON does not know become null or text."""
    print(as_text(record))


def as_text(record: Any) -> str:
    """The same as one line of text."""
    return json.dumps(_plain(record), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


class Bars:
    """Progress of an executor on stderr: all cells with their ETA, and the cell at work. Plain lines when piped.

    Use as a context manager; satisfies `dlmbench.runs.local.Progress`.
    """

    def __init__(self, cells: int):
        self.cells, self.finished, self.label = cells, 0, ""
        self.console = stderr()

    def __enter__(self) -> Bars:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.bars.start()
        self.all = self.bars.add_task("all cells", total=self.cells, visible=self.cells > 1)
        self.cell = self.bars.add_task("", total=1, visible=False)
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def begin(self, label: str, done: int, total: int) -> None:
        self.label, self.total = label, max(total, 1)
        self.bars.reset(self.cell, total=total, completed=done, description=label, visible=True)
        self._overall(done)
        if done:
            self._line(f"{label}: {done} of {total} items are in the store")

    def advance(self) -> None:
        self.bars.advance(self.cell)
        self._overall(self.bars.tasks[self.cell].completed)

    def stage(self, text: str) -> None:
        self.bars.update(self.cell, description=f"{self.label}: {text}")

    def end(self) -> None:
        self.finished += 1
        self._overall(0)
        self._line(f"[{self.finished}/{self.cells}] {self.label}: done")

    def _overall(self, done: float) -> None:
        self.bars.update(self.all, completed=min(self.finished + done / self.total, self.cells))

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False, soft_wrap=True)
