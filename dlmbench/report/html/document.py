"""The report: one HTML file that needs nothing else, no network included.

The answer first, as the terminal prints it, then the figure, a closed section a task, recorded decodings to replay, and
every item with every answer. Tables are plain HTML; points, items and traces are data in the page that a script shows.

Left out: anything that is not in the run folders. Traces are recorded by the run (`--traces`), never made here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dlmbench.analysis import text
from dlmbench.analysis.load import Results
from dlmbench.analysis.matched import matched
from dlmbench.analysis.needs import ServedNeed, needs
from dlmbench.analysis.row import REFERENCE, Group, Row
from dlmbench.report import matched as equal_cost
from dlmbench.report import summary
from dlmbench.report.answer import Headline, answer
from dlmbench.report.columns import HTML, Column, Value, legend, table_columns
from dlmbench.report.html import figure
from dlmbench.report.html.items import item_sections
from dlmbench.report.html.trace import Words, trace_records
from dlmbench.report.markdown import circumstances, values


@dataclass(frozen=True)
class Section:
    """All about one task: its rows, what they are called, the columns that say something, its groups by title, and
    what is matched at equal cost."""

    name: str
    rows: list[Row]
    labels: list[str]
    columns: list[Column]
    groups: list[tuple[str, Group]]
    matched: list[tuple[str, dict[str, list[str]], str]]


def write_report(
    results: Results,
    path: str | Path,
    title: str = "Results",
    description: str = "",
    notes: Sequence[str] = (),
    head: Headline | None = None,
) -> Path:
    """Write the report of these results to `path`; the path is returned. `notes` say how settings were chosen, `head`
    is the answer that it begins with, by default that of `dlmbench.report.answer`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results, title, description, notes, head), encoding="utf-8")
    return path


def page(
    results: Results, title: str, description: str = "", notes: Sequence[str] = (), head: Headline | None = None
) -> str:
    """The whole document."""
    head, titles, words = head or answer(results), summary.titled(results), Words()
    sections = [
        Section(
            f"{task} ({split})",
            rows,
            _labels(rows),
            table_columns(HTML, rows),
            [(name, group) for name, group in titles if group.rows[0] in rows],
            [_matched(group) for group in dict.fromkeys(row.group for row in rows) if matched(group)],
        )
        for (task, split), rows in results.sections.items()
    ]
    runs = [[row.run for row in section.rows] for section in sections]
    data = {
        "sections": item_sections([(one.name, one.labels, folders) for one, folders in zip(sections, runs)]),
        "traces": trace_records(runs, words),
        "words": words.list,
        "references": [_references(section.rows) for section in sections],
        "panels": figure.panels([(section.name, section.rows) for section in sections]),
        "axes": figure.axes(),
        "marks": figure.marks([row.method for row in results.rows]),
    }
    assets = files("dlmbench.report.html") / "assets"
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((assets / "report.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        description=description,
        facts=_facts(results.rows),
        style=Markup((assets / "report.css").read_text(encoding="utf-8") + figure.palette()),
        library=Markup((assets / "plot.min.js").read_text(encoding="utf-8")),
        script=Markup("".join((assets / name).read_text(encoding="utf-8") for name in ("chart.js", "report.js"))),
        data=Markup(_embedded(data)),
        answer=head,
        answer_legend=[(one.title, one.help) for one in head.headings],
        chosen_on=_CHOSEN if notes else _FLATTERED,
        sentences=summary.sentences,
        needs=needs,
        need_cells=_need_cells,
        notes=notes,
        sections=sections,
        sortable=_sortable,
        bar=_bar,
        legend=legend(dict.fromkeys(column for section in sections for column in section.columns)),
        circumstances=circumstances,
        values=values,
        zip=zip,
        matched_legend=equal_cost.LEGEND,
    )


_CHOSEN = "Settings were chosen on other items than those reported here, as the sentences below say."
_FLATTERED = (
    "Settings are named on the very items they are reported on, so the best of many is a little flattered; "
    "--tune-on dev chooses them on others."
)


def _references(rows: Sequence[Row]) -> list[int | None]:
    """For each row the number of the one that its answers are compared with; None for none."""
    numbers = {row: number for number, row in enumerate(rows)}
    return [numbers[base] if (base := row.group.judged_by) and base is not row else None for row in rows]


def _facts(rows: Sequence[Row]) -> str:
    machines = dict.fromkeys((row.device, row.manifest.environment.threads) for row in rows)
    devices = ", ".join(
        name if threads is None else f"{name} ({threads} thread{'s' * (threads != 1)})" for name, threads in machines
    )
    tasks = values(f"{row.task} ({row.split})" for row in rows)
    return f"{len(rows)} runs on {tasks}; models {values(row.model for row in rows)}; {devices}."


def _labels(rows: Sequence[Row]) -> list[str]:
    """Names of a section's settings; where labels repeat, with what differs, and a key where nothing seems to."""
    short = [row.label for row in rows]
    if len(set(short)) == len(short):
        return short
    facts = [{"model": row.model, **{name: row.paired[name] for name in _TELLING}} for row in rows]
    differing = [name for name in facts[0] if len({fact[name] for fact in facts}) > 1]
    names = [
        ", ".join([label, *(text.told(name, fact[name]) for name in differing)]) for label, fact in zip(short, facts)
    ]
    return [name if names.count(name) == 1 else f"{name} ({row.key[:8]})" for name, row in zip(names, rows)]


_TELLING = ("batch_size", "block_length", "cache")


def _need_cells(group: Group, need: ServedNeed) -> list[tuple[str, str]]:
    """(what, value) of the row that serves a need."""
    row, reference = need.row, group.judged_by
    cells = dict.fromkeys(
        (
            "take",
            "accuracy, %",
            f"points vs {reference.label if reference else 'reference'}",
            "share of its cost",
            "tok/s",
        ),
        text.DASH,
    )
    if row:
        gap, share = row.against.get(REFERENCE), group.share(row) if reference else None
        found = [
            row.label,
            text.interval(row.accuracy, row.metrics.accuracy_low, row.metrics.accuracy_high),
            text.signed(gap.difference, gap.low, gap.high) if gap else text.DASH,
            text.number(share, 2),
            text.number(row.tps, 0),
        ]
        cells = dict(zip(cells, found))
    return [*cells.items(), ("how sure", need.remark or text.DASH)]


def _matched(group: Group) -> tuple[str, dict[str, list[str]], str]:
    first = group.rows[0]
    title = ", ".join([first.task, first.model, f"batch {first.batch_size}", *summary.unusual(group)])
    return title, equal_cost.columns(matched(group)), equal_cost.reference_sentence(group)


def _sortable(value: Value) -> Value:
    return "" if value is None else value


def _bar(row: Row) -> str:
    """The accuracy and its interval as a bar from 0 to 100."""
    ends = {"low": row.metrics.accuracy_low, "mid": row.accuracy, "high": row.metrics.accuracy_high}
    return ";".join(f"--{name}:{100 * value:.1f}%" for name, value in ends.items())


def _embedded(data: object) -> str:
    """JSON that may stand inside a script element, whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
