"""The tables of a report: every setting of a task a row, sorted by a click on a column's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import pandas as pd

from dlmbench.report import summary
from dlmbench.report.table import circumstances, helpers, interval, number, percent, signed, with_spread

_COLUMNS: dict[str, tuple[str, Callable[[dict[str, Any]], str], Callable[[dict[str, Any]], Any]]] = {
    "model": ("model", lambda r: escape(r["model"]), lambda r: r["model"]),
    "batch": ("batch", lambda r: str(r["batch_size"]), lambda r: r["batch_size"]),
    "accuracy": ("accuracy, %", lambda r: _bar(r), lambda r: r["accuracy"]),
    "vs static": (
        "vs static, points",
        lambda r: signed(r.get("vs_static"), r.get("vs_static_low"), r.get("vs_static_high")),
        lambda r: r.get("vs_static"),
    ),
    "verdict": ("verdict", lambda r: summary.row_verdict(r), lambda r: summary.row_verdict(r)),
    "front": ("on the front, %", lambda r: percent(r.get("front_share")), lambda r: r.get("front_share")),
    "nfe": ("NFE", lambda r: number(r["nfe"]), lambda r: r["nfe"]),
    "helpers": ("helpers", helpers, helpers),
    "cost": ("cost", lambda r: number(r["cost"]), lambda r: r["cost"]),
    "tpf": ("TPF", lambda r: number(r["tpf"], 2), lambda r: r["tpf"]),
    "acceptance": ("drafts kept, %", lambda r: percent(r["acceptance"]), lambda r: r["acceptance"]),
    "decode": ("tok/s decode", lambda r: with_spread(r, "tps_decode"), lambda r: r["tps_decode"]),
    "all": ("tok/s all", lambda r: with_spread(r, "tps_end_to_end"), lambda r: r["tps_end_to_end"]),
    "unparsed": ("no answer, %", lambda r: percent(r["unparsed"]), lambda r: r["unparsed"]),
    "cut": ("cut off, %", lambda r: percent(r["cut_off"]), lambda r: r["cut_off"]),
    "guards": ("guards", lambda r: number(r["guards"], 0), lambda r: r["guards"]),
}


def results(name: str, frame: pd.DataFrame, labels: Sequence[str]) -> str:
    records = frame.to_dict("records")
    shown = [column for column in _COLUMNS if _worth_showing(column, records)]
    heads = "".join(_head(_COLUMNS[column][0]) for column in shown)
    body = []
    for label, record in zip(labels, records):
        cells = "".join(
            f'<td data-v="{_sortable(_COLUMNS[c][2](record))}">{_COLUMNS[c][1](record)}</td>' for c in shown
        )
        body.append(f'<tr><th scope="row" data-v="{escape(label)}">{escape(label)}</th>{cells}</tr>')
    items = ", ".join(str(count) for count in sorted(set(frame["items"])))
    return (
        f"<h3>{escape(name)}, {items} items</h3>"
        f'<div class="scroll card" tabindex="0" role="region" aria-label="Results on {escape(name)}">'
        f'<table class="sortable"><thead><tr>{_head("method")}{heads}</tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div><p class="quiet">{escape(circumstances(frame))}</p>'
    )


def _head(name: str) -> str:
    return f'<th scope="col"><button type="button">{escape(name)}</button></th>'


def _worth_showing(column: str, records: Sequence[dict[str, Any]]) -> bool:
    values = [_COLUMNS[column][2](record) for record in records]
    if column in ("model", "batch"):
        return len(set(values)) > 1
    if column in ("unparsed", "cut", "guards"):
        return any(not _missing(value) and value for value in values)
    return any(not _missing(value) and value != "-" for value in values)


def _missing(value: Any) -> bool:
    return value is None or value != value


def _sortable(value: Any) -> str:
    return "" if _missing(value) else escape(str(value))


def _bar(record: dict[str, Any]) -> str:
    """Accuracy with its interval, as text and as a bar from 0 to 100."""
    low, middle, high = (100 * record[name] for name in ("accuracy_low", "accuracy", "accuracy_high"))
    text = interval(record["accuracy"], record["accuracy_low"], record["accuracy_high"])
    place = f"--low:{low:.1f}%;--mid:{middle:.1f}%;--high:{high:.1f}%"
    return f'{text}<span class="bar" style="{place}" aria-hidden="true"></span>'
