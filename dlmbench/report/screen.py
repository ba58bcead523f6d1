"""What a finished run or sweep shows in a terminal: circumstances, rows, paired differences, where it was saved.

Everything is built as rich renderables and adapts to the width: a narrow terminal loses the columns that matter least,
never the accuracy or its interval.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dlmbench.report.table import helpers, interval, number, percent
from dlmbench.runs import Manifest, RunFolder
from dlmbench.stats import LEVEL, verdict

_WIDE, _MIDDLE = 92, 68  # columns of the terminal from which more of the table is shown


def print_run(console: Console, frame: pd.DataFrame, run: RunFolder) -> None:
    """The screen of one finished run: `frame` holds its row and its baselines' rows."""
    records = sorted(frame.to_dict("records"), key=lambda record: record["key"] == run.key)  # ours stands last
    ours, saved = records[-1], run.path
    console.print(_header(ours, run.manifest, console.width), soft_wrap=False)
    console.print(rows(records, console.width, mark=run.key))
    shares = _shares(ours)
    if shares:
        console.print(Text(shares, style="dim"))
    lines = list(_paired(ours, records))
    if lines:
        console.print(Group(Text(f"paired, same items, {LEVEL:.0%} intervals", style="bold"), *lines))
    else:
        console.print(Text("no baseline on these weights and items: this row stands alone", style="yellow"))
    if isinstance(ours["speed_label"], str):
        console.print(Text(f"speed   {ours['speed_label']}", style="dim"))
    console.print(Text(f"saved   {saved}", style="dim"), soft_wrap=True)
    console.print(
        Text(
            f"next    dlmbench sweep --task {ours['task']} --method {ours['method']} ... | "
            f"dlmbench plot {Path(saved).parent}",
            style="dim",
        ),
        soft_wrap=True,
    )


def print_sweep(console: Console, frame: pd.DataFrame) -> None:
    """All rows of a sweep, a table a task and model."""
    for (task, split, model), group in frame.groupby(["task", "split", "model"], sort=False):
        records = group.to_dict("records")
        console.print(Text(f"{task} ({split}, {records[0]['items']:.0f} items), {model}", style="bold"))
        console.print(Padding(rows(records, console.width - 1), (0, 0, 0, 1)))


def print_paragraphs(console: Console, paragraphs: Iterable[tuple[str, Sequence[str]]]) -> None:
    """The sentences that matter (`summary.paragraphs`), a paragraph a group."""
    for title, sentences in paragraphs:
        console.print(Text(f"\n{title}", style="bold"))
        for sentence in sentences:
            console.print(Padding(Text(sentence), (0, 0, 0, 2)))


def _header(ours: dict[str, Any], manifest: Manifest, width: int) -> Text:
    stored = f"{manifest.model['file_dtype']} file, " if manifest.model.get("file_dtype") else ""
    model = (
        f"model   {ours['model']}  (block {ours['block_length']}, {stored}{ours['dtype']} compute, "
        f"weights {ours['weights'][:8]})"
    )
    task = f"task    {ours['task']}  {ours['split']}, {ours['items']:.0f} items"
    method = f"method  {ours['label']}  (batch {ours['batch_size']}, store {ours['store']}, seed {ours['seed']})"
    lines = [model, task, method, *_helper_lines(manifest)]
    return Text("\n".join(lines), overflow="fold")


def _helper_lines(manifest: Manifest) -> Iterable[str]:
    """One line a helper: how large it is, and what its usual pass costs."""
    sizes = cast(dict[str, int], manifest.model.get("parameters") or {})
    for role, size in sizes.items():
        if role == "target":
            continue
        passes = {
            int(forward.shape): price
            for forward, price in manifest.prices.items()
            if forward.role == role and forward.shape.isdigit()
        }
        share = f", {passes[min(passes)]:.2f} of a forward (measured)" if passes else ""
        yield f"helper  {role}: {size / 1e6:.2f} M parameters{share}"


def rows(records: Sequence[dict[str, Any]], width: int, mark: str | None = None) -> Table:
    """Rows as a table; the row with key `mark` gets an arrow."""
    table = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False, header_style="bold")
    if mark:
        table.add_column("", width=1)
    table.add_column("method", overflow="fold")
    for name in _columns(records, width):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        ours = record["key"] == mark
        cells = [_CELLS[name](record) for name in _columns(records, width)]
        marker = [">" if ours else ""] if mark else []
        table.add_row(*marker, record["label"], *cells, style="bold" if ours else "")
    return table


_CELLS = {
    "model": lambda r: r["model"],
    "batch": lambda r: str(r["batch_size"]),
    "accuracy": lambda r: interval(r["accuracy"], r["accuracy_low"], r["accuracy_high"]),
    "NFE/item": lambda r: number(r["nfe"]),
    "helpers": helpers,
    "cost": lambda r: number(r["cost"]),
    "TPF": lambda r: number(r["tpf"], 2),
    "tok/s": lambda r: number(r["tps_decode"], 0),
    "end to end": lambda r: number(r["tps_end_to_end"], 0),
    "fallbacks": lambda r: number(r["fallbacks"], 0),
}


def _columns(records: Sequence[dict[str, Any]], width: int) -> list[str]:
    """The columns that fit, most important first in the terminal's reading order."""
    names = ["accuracy", "NFE/item", "cost"]
    if width >= _MIDDLE:
        names += ["TPF", "tok/s"]
        if any(helpers(record) != "-" for record in records):
            names.insert(2, "helpers")
    if width >= _WIDE:
        names += ["end to end"] + (["fallbacks"] if any(record["fallbacks"] for record in records) else [])
        for name, column in (("batch", "batch_size"), ("model", "model")):
            if len({record[column] for record in records}) > 1:
                names.insert(0, name)
    return names


def _shares(record: dict[str, Any]) -> str:
    known = [(name, record.get(name)) for name in ("strict", "flexible", "unparsed", "cut_off")]
    parts = [f"{name.replace('_', ' ')} {percent(value)} %" for name, value in known if percent(value) != "-"]
    if percent(record.get("acceptance")) != "-":
        parts.append(f"accepted drafts {percent(record['acceptance'])} %")
    if isinstance(record.get("verdicts"), str):
        parts += [f"{verdict} {count}" for verdict, count in json.loads(record["verdicts"]).items()]
    return ("answers " + ", ".join(parts)) if parts else ""


def _paired(ours: dict[str, Any], records: Iterable[dict[str, Any]]) -> Iterable[Text]:
    """One line a baseline: difference, interval, verdict, and at what share of its cost."""
    by_label = {record["label"]: record for record in records}
    for name in ("threshold", "static"):
        mean = ours.get(f"vs_{name}")
        if percent(mean) == "-":
            continue
        low, high, label = ours[f"vs_{name}_low"], ours[f"vs_{name}_high"], ours[f"vs_{name}_row"]
        word = verdict(low, high)
        colour = {"better": "green", "worse": "red"}.get(word, "yellow")
        cost = _relative_cost(ours, by_label[label])
        yield Text.assemble(
            f"  vs {label:<14} {100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]  ", (word, colour), cost
        )


def _relative_cost(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    if number(ours["cost"]) == "-" or number(theirs["cost"]) == "-" or not theirs["cost"]:
        return ""
    return f", at {ours['cost'] / theirs['cost']:.2f}x its cost"
