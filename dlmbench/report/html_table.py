"""The tables of a report: every setting of a task a row, sorted by a click on a column's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from dlmbench.report import curves, summary
from dlmbench.report.table import circumstances, helpers, interval, number, percent, signed

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """Title, what a cell shows, what it is sorted by, and when the column says anything."""

    title: str
    text: Callable[[Row], str]
    value: Callable[[Row], Any]
    when: Callable[[list[Any]], bool] = lambda all_values: not all(map(_missing, all_values))


def results(name: str, frame: pd.DataFrame, labels: Sequence[str], references: Collection[str]) -> str:
    """The table of one task; `labels` name its rows, `references` are keys of rows that others are compared with."""
    records = frame.to_dict("records")
    shown = [column for column in _COLUMNS if column.when([column.value(record) for record in records])]
    heads = "".join(_head(column.title) for column in shown)
    body = []
    for label, record in zip(labels, records):
        cells = "".join(f'<td data-v="{_sortable(one.value(record))}">{one.text(record)}</td>' for one in shown)
        if record["key"] in references:
            cells = cells.replace(summary.ALONE, "reference")
        body.append(f'<tr><th scope="row" data-v="{escape(label)}">{escape(label)}</th>{cells}</tr>')
    items = ", ".join(str(count) for count in sorted(set(frame["items"])))
    return (
        f"<h3>{escape(name)}, {items} items</h3>"
        f'<div class="scroll card" tabindex="0" role="region" aria-label="Results on {escape(name)}">'
        f'<table class="sortable"><thead><tr>{_head("method")}{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f"<details><summary>Circumstances</summary><p>{escape(_readable(circumstances(frame)))}</p></details>"
    )


def equal_cost(found: Sequence[curves.Group]) -> str:
    """What methods reach at one cost and what they pay for one accuracy, a table a comparable group."""
    parts = []
    for group in found:
        records = curves.matched(group)
        if not records:
            continue
        table = curves.columns(records)
        title = f"{group.rows[0]['task']}, {group.rows[0]['model']}, batch {group.rows[0]['batch_size']}"
        heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in table)
        body = "".join(
            f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
            for first, *rest in zip(*table.values())
        )
        parts.append(
            f'<div class="scroll card" tabindex="0" role="region" aria-label="{escape(title)} at equal cost">'
            f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
            f"<p>{escape(title)}. {escape(curves.reference_sentence(group))}</p>"
        )
    if not parts:
        return ""
    return (
        f"<h3>At equal cost and at equal accuracy</h3>{''.join(parts)}"
        f"<details><summary>How to read it</summary><p>{emphasised(curves.LEGEND)}</p></details>"
    )


def emphasised(text: str) -> str:
    """Markdown's *words* as HTML."""
    return re.sub(r"\*([^*]+)\*", r"<i>\1</i>", escape(text))


def _head(name: str) -> str:
    return f'<th scope="col"><button type="button">{escape(name)}</button></th>'


def _missing(value: Any) -> bool:
    return value is None or value != value


def _sortable(value: Any) -> str:
    return "" if _missing(value) else escape(str(value))


def _readable(text: str) -> str:
    """Versions without the marks of JSON."""
    return re.sub(r'[{}"]', "", text)


def _bar(record: Row) -> str:
    """Accuracy with its interval, as text and as a bar from 0 to 100."""
    low, middle, high = (100 * record[name] for name in ("accuracy_low", "accuracy", "accuracy_high"))
    text = interval(record["accuracy"], record["accuracy_low"], record["accuracy_high"])
    place = f"--low:{low:.1f}%;--mid:{middle:.1f}%;--high:{high:.1f}%"
    return f'{text}<span class="bar" style="{place}" aria-hidden="true"></span>'


def _number(title: str, name: str, digits: int = 1) -> Column:
    return Column(title, lambda record: number(record.get(name), digits), lambda record: record.get(name))


def _share(title: str, name: str, when: Callable[[list[Any]], bool] | None = None) -> Column:
    found = Column(title, lambda record: percent(record.get(name)), lambda record: record.get(name))
    return Column(title, found.text, found.value, when) if when else found


def _some(values: list[Any]) -> bool:
    return any(not _missing(value) and value not in (0, "-") for value in values)


def _several(values: list[Any]) -> bool:
    return len(set(values)) > 1


_COLUMNS = (
    Column("accuracy, %", _bar, lambda record: record["accuracy"]),
    Column(
        "vs static, points",
        lambda record: signed(record.get("vs_static"), record.get("vs_static_low"), record.get("vs_static_high")),
        lambda record: record.get("vs_static"),
    ),
    Column("verdict", summary.row_verdict, summary.row_verdict, _several),
    _number("NFE", "nfe"),
    Column("helpers", helpers, helpers, _some),
    _number("cost", "cost"),
    _share("on the front, %", "front_share"),
    _number("TPF", "tpf", 2),
    _share("drafts kept, %", "acceptance"),
    _number("tok/s decode", "tps_decode", 0),
    _number("tok/s all", "tps_end_to_end", 0),
    _share("no answer, %", "unparsed", _some),
    _share("cut off, %", "cut_off", _some),
    Column("model", lambda record: escape(record["model"]), lambda record: record["model"], _several),
    Column("batch", lambda record: str(record["batch_size"]), lambda record: record["batch_size"], _several),
    Column("fallbacks", lambda record: number(record["fallbacks"], 0), lambda record: record["fallbacks"], _some),
)
