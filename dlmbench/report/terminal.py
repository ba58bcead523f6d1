"""What a finished run or sweep shows in a terminal: a run with its paired differences, a sweep as its answer.

Everything is built as rich renderables and adapts to the width: a narrow terminal loses the columns that matter least,
never the accuracy or its interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from rich.cells import cell_len
from rich.console import Console
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from dlmbench.analysis.load import Results
from dlmbench.analysis.row import REFERENCE, RIVAL, Row
from dlmbench.analysis.text import percent, rate, signed
from dlmbench.models.presets import PRESETS
from dlmbench.report.answer import Headline
from dlmbench.report.columns import TERMINAL, table_columns
from dlmbench.runs.folder import RunFolder
from dlmbench.stats import LEVEL

_LABEL = 38  # letters of a decoder and its setting; longer ones take two lines


def print_run(console: Console, results: Results, run: RunFolder) -> None:
    """The screen of one finished run; `results` has its row and its baselines' rows."""
    ours = results.row(run)
    rows = [*(row for row in results.rows if row is not ours), ours]
    console.print(_header(ours), soft_wrap=False)
    console.print(table(rows, console.width, mark=ours))
    if shares := _shares(ours):
        console.print(Text(shares, style="dim"))
    lines = list(_paired(ours))
    if lines:
        console.print(Lines(Text(f"paired, same items, {LEVEL:.0%} intervals", style="bold"), *lines))
    else:
        console.print(Text("no baseline on these weights and items: this row stands alone", style="yellow"))
    if ours.metrics.speed and ours.metrics.speed.label:
        console.print(Text(f"speed   {ours.metrics.speed.label}", style="dim"))
    spec, place = ours.manifest.spec, run.path.parent
    again = f"dlmbench report {place}"
    if ours.manifest.threshold_unit == "confidence" and spec.model in PRESETS:
        asked = f"--model {spec.model} --task {ours.task} --method {ours.method}"
        again = f"dlmbench sweep {asked} --threshold 0.5:0.9:0.1 --out {place}"
    for word, line in (("saved", str(run.path)), ("next", again)):
        console.print(Text(f"{word:<7} {line}", style="dim"), soft_wrap=True)


def print_served(
    console: Console, results: Results, beside: Mapping[Row, Sequence[str]], hour: float | None = None
) -> None:
    """The screen of a server's rows, one a number of requests at a time; `beside` says how each compares; `hour` is
    what an hour of the server costs."""
    ours = results.rows[0]
    server = ours.manifest.server
    flags = (server.flags if server else {}).items()
    told = ", ".join(f"{name} {value}" for name, value in flags if isinstance(value, str | int) and name != "label")
    console.print(f"model   {server and server.model}, read by the tokenizer of {ours.model}", soft_wrap=True)
    console.print(f"task    {ours.task}  {ours.split}, {ours.metrics.items} items", soft_wrap=True)
    console.print(f"server  {ours.label}: {told or 'it tells no flags'}", soft_wrap=True, style="dim")
    console.print(table(results.rows, console.width))
    for row in results.rows:
        for sentence in [*_times(row), *_price(row, hour), *beside[row]]:
            console.print(sentence, soft_wrap=True)
    label = ours.metrics.speed.label if ours.metrics.speed else None
    for word, line in (("speed", label), ("saved", ", ".join(str(row.run.path) for row in results.rows))):
        if line:
            console.print(Text(f"{word:<7} {line}", style="dim"), soft_wrap=True)


def _times(row: Row) -> Iterable[str]:
    """What a server's requests took."""
    speed = row.metrics.speed
    if speed is None or speed.requests is None:
        return
    times = speed.requests
    arriving = f"{row.batch_size} at a time" if times.rate is None else f"{times.rate:g} arriving a second"
    first = "" if times.first_token is None else f", its first text after {times.first_token:.3g} s (p50)"
    good = "" if times.goodput is None else f"; {times.goodput:.3g} a second take at most {times.slo:g} s"
    yield (
        f"{arriving}: {rate(speed.end_to_end)} tokens/s; a request takes {times.p50:.3g} s (p50), {times.p95:.3g} s "
        f"(p95), {times.p99:.3g} s (p99){first}{good}; prefix cache: {times.prefix_cache}"
    )


def _price(row: Row, hour: float | None) -> Iterable[str]:
    """Of useful tokens and of right answers, at the speed that was measured."""
    if hour is None or not row.tps_end_to_end or not row.metrics.tokens:
        return
    token = hour / 3600 / row.tps_end_to_end
    right = f", {token * row.metrics.tokens / row.accuracy:.3g} for a right answer" if row.accuracy else ""
    yield f"  at {hour:g} an hour: {1e6 * token:.3g} for a million useful tokens{right}"


def print_answer(console: Console, found: Headline) -> None:
    """The screen of a whole sweep or folder."""
    console.print(answer_table(found, console.width))
    for line in (*found.sentences, *found.panels):
        console.print(Text(line))


def answer_table(found: Headline, width: int) -> Table:
    """The table of an answer in so many letters; columns of the highest rank go first where they do not fit."""
    shown = list(range(len(found.headings)))
    ends = [
        max(map(cell_len, [head.title, head.note, *(line.cells[n] for line in found.lines)]))
        for n, head in enumerate(found.headings)
    ]
    sections = sum(line.leads for line in found.lines)
    ends[0] = min(ends[0] + 2 * (sections > 1), _LABEL)
    while sum(ends[n] + 2 for n in shown) - 2 > width and (least := max(found.headings[n].rank for n in shown)):
        shown = [n for n in shown if found.headings[n].rank < least]
    made = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False, header_style="bold")
    for n in shown:
        head = found.headings[n]
        title = Text(f"{head.title}\n{head.note}")
        made.add_column(title, justify="right" if n else "left", no_wrap=n > 0, max_width=_LABEL if n == 0 else None)
    for line in found.lines:
        inside = "" if line.leads or sections < 2 else "  "
        cells = [inside + line.cells[0], *(line.cells[n] for n in shown[1:])]
        made.add_row(*map(Text, cells), style="bold" if line.leads else "")
    return made


def _header(ours: Row) -> Text:
    manifest, spec = ours.manifest, ours.manifest.spec
    stored = f"{manifest.model['file_dtype']} file, " if manifest.model.get("file_dtype") else ""
    return Text(
        "\n".join(
            [
                f"model   {ours.model}  (block {manifest.block_length}, {stored}{spec.dtype} compute, weights "
                f"{ours.weights[:8]})",
                f"task    {ours.task}  {ours.split}, {ours.metrics.items} items",
                f"method  {ours.label}  (batch {ours.batch_size}, store {spec.store}, seed {spec.seed})",
                *_helper_lines(ours),
            ]
        ),
        overflow="fold",
    )


def _helper_lines(ours: Row) -> Iterable[str]:
    """One line a helper: how large it is, and what its usual pass costs."""
    sizes = cast(dict[str, int], ours.manifest.model.get("parameters") or {})
    for role, size in sizes.items():
        if role == "target":
            continue
        passes = {
            int(forward.shape): price
            for forward, price in ours.manifest.prices.items()
            if forward.role == role and forward.shape.isdigit()
        }
        share = f", {passes[min(passes)]:.2f} of a forward (measured)" if passes else ""
        yield f"helper  {role}: {size / 1e6:.2f} M parameters{share}"


def table(rows: Sequence[Row], width: int, mark: Row | None = None) -> Table:
    """Rows as a table; the row `mark` gets an arrow."""
    found = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False, header_style="bold")
    columns = table_columns(TERMINAL, rows, width)
    if mark:
        found.add_column("", width=1)
    found.add_column("method", overflow="fold")
    for column in columns:
        found.add_column(column.title, justify="right", no_wrap=True)
    for row in rows:
        marker = [">" if row is mark else ""] if mark else []
        cells = (column.text(row, brief=True) for column in columns)
        found.add_row(*marker, row.label, *cells, style="bold" if row is mark else "")
    return found


def _shares(row: Row) -> str:
    """What became of the answers, in one line."""
    metrics = row.metrics
    known = {
        "strict": metrics.strict,
        "flexible": metrics.flexible,
        "unparsed": metrics.unparsed,
        "cut off": metrics.cut_off,
        "accepted drafts": metrics.acceptance,
    }
    parts = [f"{name} {percent(value)} %" for name, value in known.items() if value is not None]
    parts += [f"{verdict} {count}" for verdict, count in metrics.verdicts.items()]
    return ("answers " + ", ".join(parts)) if parts else ""


def _paired(ours: Row) -> Iterable[Text]:
    """One line a baseline: difference, interval, verdict, and at what share of its cost."""
    for name in (RIVAL, REFERENCE):
        if name not in ours.against:
            continue
        found = ours.against[name]
        theirs = found.baseline
        colour = {"better": "green", "worse": "red"}.get(found.verdict, "yellow")
        cost = f", at {ours.cost / theirs.cost:.2f}x its cost" if ours.cost is not None and theirs.cost else ""
        value, _, ends = signed(found.difference, found.low, found.high).partition(" ")
        points = f"{value} points {ends}"
        yield Text.assemble(f"  vs {theirs.label:<14} {points}  ", (found.verdict, colour), cost)
