"""The report: one HTML file that needs nothing else, no network included.

Sentences first, then the figures, the tables, every item with every answer, and recorded decodings to replay. Summary,
figures and tables are plain HTML; items and traces are data in the page that a small script shows.

Left out: anything that is not in the run folders. Traces are recorded by the run (`--traces`), never made here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from dlmbench.report import summary
from dlmbench.report.curves import groups
from dlmbench.report.html_figure import figures, palette
from dlmbench.report.html_items import item_sections
from dlmbench.report.html_table import emphasised, equal_cost, results
from dlmbench.report.html_trace import Words, trace_records
from dlmbench.report.table import LEGEND, interval, number, signed
from dlmbench.runs import RunFolder


def write_report(
    frame: pd.DataFrame,
    runs: Iterable[RunFolder],
    path: str | Path,
    title: str = "Results",
    description: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of these rows (`table.table`) and their run folders to `path`; the path is returned."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(frame, runs, title, description, notes), encoding="utf-8")
    return path


def page(
    frame: pd.DataFrame, runs: Iterable[RunFolder], title: str, description: str = "", notes: Sequence[str] = ()
) -> str:
    """The whole document."""
    by_key = {run.key: run for run in runs}
    sections = [
        (f"{task} ({split})", group.to_dict("records"))
        for (task, split), group in frame.groupby(["task", "split"], sort=False)
    ]
    folders = [[by_key[row["key"]] for row in rows] for _, rows in sections]
    labels = [_labels(rows) for _, rows in sections]
    references = {group.reference["key"] for group in summary.groups(frame) if group.reference}
    words = Words()
    data = {
        "sections": item_sections([(name, labels[i], folders[i]) for i, (name, _) in enumerate(sections)]),
        "traces": trace_records(folders, words),
        "words": words.list,
    }
    assets = files("dlmbench.report") / "assets"
    return Template((assets / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        description=escape(description),
        facts=escape(_facts(frame)),
        style=(assets / "report.css").read_text(encoding="utf-8") + palette(),
        script=(assets / "report.js").read_text(encoding="utf-8"),
        data=_embedded(data),
        summary=_summary(frame, notes),
        figures=figures(frame),
        tables="".join(
            results(name, frame[_of(frame, rows)], mine, references) for (name, rows), mine in zip(sections, labels)
        )
        + equal_cost(groups(by_key.values())),
        legend=emphasised(LEGEND),
    )


def _of(frame: pd.DataFrame, rows: Sequence[dict[str, Any]]) -> pd.Series:
    return frame["key"].isin([row["key"] for row in rows])


def _facts(frame: pd.DataFrame) -> str:
    machines = _pairs(frame, "device", "threads")
    devices = ", ".join(f"{name} ({threads:g} thread{'s' * (threads != 1)})" for name, threads in machines)
    tasks = ", ".join(f"{task} ({split})" for task, split in _pairs(frame, "task", "split"))
    return f"{len(frame)} runs on {tasks}; models {', '.join(frame['model'].unique())}; {devices}."


def _pairs(frame: pd.DataFrame, *columns: str) -> list[tuple]:
    return list(frame[list(columns)].drop_duplicates().itertuples(index=False, name=None))


def _labels(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of a section's settings; where labels repeat, with what differs, and a key where nothing seems to."""
    parts = [[row["label"]] for row in rows]
    for column, words in (
        ("model", "{}"),
        ("batch_size", "batch {}"),
        ("block_length", "block {}"),
        ("cache", "cache {}"),
    ):
        if len({row[column] for row in rows}) > 1:
            for part, row in zip(parts, rows):
                part.append(words.format(row[column]))
    plain = [", ".join(part) for part in parts]
    short = [row["label"] for row in rows]
    names = short if len(set(short)) == len(short) else plain
    return [name if names.count(name) == 1 else f"{name} ({row['key'][:8]})" for name, row in zip(names, rows)]


def _embedded(data: Any) -> str:
    """JSON that may stand inside a script element, whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


# --- summary ----------------------------------------------------------------------------------------------------------


def _summary(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    parts = []
    for group in summary.groups(frame):
        lines = "".join(f"<p>{escape(line)}</p>" for line in summary.sentences(group))
        parts.append(f'<article class="card"><h3>{escape(group.title)}</h3>{lines}{_needs(group)}</article>')
    if not parts:
        parts = ["<p>Every row stands alone here: no two of them may be compared item by item.</p>"]
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    return "".join(parts)


def _needs(group: summary.Group) -> str:
    reference = escape(group.reference["label"]) if group.reference else "reference"
    heads = ("if you want", "take", "accuracy, %", f"points vs {reference}", "share of its cost", "tok/s", "how sure")
    rows = []
    for need in summary.needs(group):
        row = need.row
        values = ["-"] * (len(heads) - 2)
        if row:
            share = group.price(row)
            values = [
                f"<b>{escape(row['label'])}</b>",
                interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"]),
                signed(row.get("vs_static"), row.get("vs_static_low"), row.get("vs_static_high")),
                "-" if share is None else f"{share:.2f}",
                number(row["tps_decode"], 0),
            ]
        values.append(escape(need.remark) or "-")
        cells = "".join(_need_cell(name, value) for name, value in zip(heads[1:], values))
        rows.append(f'<tr><th scope="row">{escape(need.need)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col"{_WORDS if name in _TEXTS else ""}>{name}</th>' for name in heads)
    label = f"Which setting for which need, {escape(group.title)}"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table class="needs"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


_TEXTS, _WORDS = ("take", "how sure"), ' class="words"'


def _need_cell(name: str, value: str) -> str:
    """On a phone a row becomes a list, where the column's name stands before the value."""
    return f'<td data-label="{name}"{_WORDS if name in _TEXTS else ""}><span>{value}</span></td>'
