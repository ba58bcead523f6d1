"""Terminal plumbing of the verbs: results on stdout, notes and progress on stderr. rich is imported when first used.

Consoles know no markup: names of files, models and settings may hold brackets.
"""

from __future__ import annotations

import json
import time
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
    """Progress of a runner on stderr: all runs with the time left, and the run at work. Plain lines when piped.

    Use as a context manager; satisfies `dlmbench.runs.runner.Progress`.
    """

    def __init__(self, runs: int):
        self.runs, self.finished, self.label, self.total = runs, 0, "", 1
        self.made, self.began = 0, time.monotonic()
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
        self.all = self.bars.add_task("all runs", total=self.runs, visible=self.runs > 1)
        self.one = self.bars.add_task("", total=1, visible=False)
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def begin(self, label: str, done: int, total: int) -> None:
        self.label, self.total = label, max(total, 1)
        self.bars.reset(self.one, total=total, completed=done, description=label, visible=True)
        self._overall(done)
        if done:
            self._line(f"{label}: {done} of {total} items are in the store")

    def advance(self) -> None:
        self.bars.advance(self.one)
        self._overall(self.bars.tasks[self.one].completed)

    def stage(self, text: str) -> None:
        self.bars.update(self.one, description=f"{self.label}: {text}")

    def end(self) -> None:
        self.finished, self.made = self.finished + 1, self.made + 1
        self._overall(0)
        self._line(f"[{self.finished}/{self.runs}] {self.label}: done{self._left()}")

    def kept(self) -> None:
        self.finished += 1
        self._overall(0)

    def _left(self) -> str:
        """The time that the other runs take if they are like those that were made."""
        seconds = (time.monotonic() - self.began) / self.made * (self.runs - self.finished)
        if seconds <= 0:
            return ""
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else ", about a minute left"

    def _overall(self, done: float) -> None:
        self.bars.update(self.all, completed=min(self.finished + done / self.total, self.runs))

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False, soft_wrap=True)
