"""The columns of every table, each written once: what it holds, what it is called, what it means, and where it stands.

Markdown, HTML, the terminal, LaTeX, table.csv and ``--json`` are loops over `COLUMNS`; the legend of a table is made of
the help texts of the columns that it shows.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias

from dlmbench.analysis import needs, text
from dlmbench.analysis.projection import H100, projected_cost
from dlmbench.analysis.row import CURVE, ORDER, REFERENCE, RIVAL, Against, Row, compact
from dlmbench.runs.aggregate import HELPER_ROLES
from dlmbench.runs.record import UNSTEADY, Rate
from dlmbench.stats import ALPHA, MARGIN

Value: TypeAlias = str | float | int | bool | None
Record: TypeAlias = dict[str, Value]

# where a column stands
CSV, MARKDOWN, HTML, TERMINAL, LATEX = "csv", "markdown", "html", "terminal", "latex"
PAGE = (MARKDOWN, HTML, TERMINAL)
ALL = (*PAGE, LATEX)


def always(values: Sequence[Value]) -> bool:
    return True


def known(values: Sequence[Value]) -> bool:
    """Does any row have it?"""
    return any(value is not None for value in values)


def some(values: Sequence[Value]) -> bool:
    """Is it anything but nothing somewhere?"""
    return any(value not in (None, 0, text.DASH) for value in values)


def several(values: Sequence[Value]) -> bool:
    """Does it tell rows apart?"""
    return len(set(values)) > 1


@dataclass(frozen=True)
class Axis:
    """A column as an axis of the figures: the name that ``plot --x`` takes, and the title."""

    name: str
    value: Callable[[Row], float | None]
    title: str
    larger: bool = False
    """Is more of it better?"""
    batched: bool = True
    """Does it depend on how many rows are decoded together?"""


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: in table.csv and ``--json``.
        value: what these hold, and what a table is sorted by.
        title: above the column; empty where no table shows it.
        help: what it means, for the legend; one or two sentences without their subject.
        form: how a table shows the value of a row.
        brief: the same where there is little room; `form` if None.
        where: the tables that it stands in.
        shown: asked of the values of a table's rows: does the column say anything there?
        width: letters of a line from which on the terminal has room for it.
        formula: how it is computed and which kinds of forwards it counts, for docs/definitions.md.
        circumstances: what is said behind the title about the rows of a table, where there is room.
        timed: a clock gave it or decided on it, so it may differ when a run is made again.
        sampled: needs the samples.
        axis: figures may have it from left to right.
    """

    name: str
    value: Callable[[Row], Value]
    title: str = ""
    help: str = ""
    form: Callable[[Row], str] | None = None
    brief: Callable[[Row], str] | None = None
    where: Collection[str] = ()
    shown: Callable[[Sequence[Value]], bool] = known
    width: int = 0
    in_csv: bool = True
    formula: str = ""
    circumstances: Callable[[Sequence[Row]], str] | None = None
    timed: bool = False
    sampled: bool = False
    axis: Axis | None = None

    def text(self, row: Row, brief: bool = False) -> str:
        """What a table shows of a row."""
        form = (self.brief if brief else None) or self.form
        value = self.value(row)
        return form(row) if form else text.DASH if value is None else str(value)

    def heading(self, rows: Sequence[Row]) -> str:
        """The title above these rows, with what has to be said about them."""
        return self.title + (self.circumstances(rows) if self.circumstances else "")


def table_columns(where: str, rows: Sequence[Row], width: int | None = None) -> list[Column]:
    """The columns that one kind of table shows of these rows."""
    columns = [column for column in COLUMNS if where in column.where and (width is None or column.width <= width)]
    return [column for column in columns if column.shown([column.value(row) for row in rows])]


def legend(columns: Iterable[Column]) -> list[tuple[str, str]]:
    """(title, what it means) of these columns."""
    return [(column.title, column.help) for column in columns if column.help]


def record(row: Row, samples: bool = True) -> Record:
    """Everything about a row by name, as table.csv and ``--json`` have it.

    samples: with what is computed from its items.
    """
    return {one.name: one.value(row) for one in COLUMNS if one.in_csv and (samples or not one.sampled)}


def write_csv(rows: Sequence[Row], path: Path) -> Path:
    """table.csv: all columns of all rows."""
    names = [column.name for column in COLUMNS if column.in_csv]
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(record, rows))
    return path


# --- how values are found and shown ---------------------------------------------------------------------------------


def _number(name: str, path: str, title: str = "", help: str = "", digits: int = 1, **more) -> Column:
    """A column whose value is an attribute of the row, shown as a number."""
    value = attrgetter(path)
    return Column(name, value, title, help, lambda row: text.number(value(row), digits), **more)


def _percent(name: str, path: str, title: str, help: str, **more) -> Column:
    value = attrgetter(path)
    return Column(name, value, title, help, lambda row: text.percent(value(row)), **more)


def _plain(name: str, path: str, **more) -> Column:
    """A column of table.csv alone, or one that needs no format."""
    return Column(name, attrgetter(path), **more)


def helpers(row: Row) -> str:
    """``draft 12.0, head 3.5``: passes an item of each network that is not the target."""
    passes = row.metrics.helpers
    return ", ".join(f"{role} {passes[role]:.1f}" for role in HELPER_ROLES if passes.get(role)) or text.DASH


def _forwards(row: Row) -> str:
    """``38.1 + 4.3``: forwards that decide something, forwards that only store."""
    if row.metrics.nfe is None:
        return text.DASH
    return f"{text.number(row.denoising)} + {text.number(row.metrics.store_forwards or 0.0)}"


def _forwards_briefly(row: Row) -> str:
    """``38.1`` where nothing was stored by a forward of its own."""
    return _forwards(row) if row.metrics.store_forwards else text.number(row.metrics.nfe)


def _relative(
    name: str, measure: Callable[[Row], float | None], title: str, help: str, formula: str, axis: Axis
) -> Column:
    """A measure of an item's work, shown as a share of the reference's."""

    def form(row: Row) -> str:
        return text.number(row.group.relative(row, measure), 2)

    return Column(name, measure, title, help, form, where=(MARKDOWN, HTML), sampled=True, formula=formula, axis=axis)


def _priced_on(rows: Sequence[Row]) -> str:
    """``(AMD EPYC, batch 16)``: where a price was measured."""
    machines = dict.fromkeys(f"{row.device}, batch {row.batch_size}" for row in rows)
    return f" ({next(iter(machines))})" if len(machines) == 1 else ""


def _cost(row: Row) -> str:
    """``8.5 [8.4, 8.7]``."""
    if row.cost is None or row.cost_interval is None:
        return text.number(row.cost)
    return f"{text.number(row.cost)} [{', '.join(map(text.number, row.cost_interval))}]"


def _passes(role: str) -> Callable[[Row], Value]:
    return lambda row: row.metrics.helpers.get(role, 0.0)


def _accuracy(row: Row) -> str:
    return text.interval(row.accuracy, row.metrics.accuracy_low, row.metrics.accuracy_high)


def _speed(name: str, which: str, title: str, help: str, **more) -> list[Column]:
    """Median, lowest and highest of repeated passes."""

    def rate(row: Row) -> Rate | None:
        return getattr(row.metrics.speed, which) if row.metrics.speed else None

    def part(of: str) -> Callable[[Row], Value]:
        return lambda row: getattr(rate(row), of, None)

    def form(row: Row) -> str:
        return text.rate(rate(row), row.metrics.speed.steady if row.metrics.speed else True)

    def brief(row: Row) -> str:
        found = rate(row)
        return text.number(None if found is None or found.unsteady else found.median, 0)

    ends = [Column(f"{name}_{end}", part(end), timed=True) for end in ("low", "high")]
    return [Column(name, part("median"), title, help, form, brief, timed=True, **more), *ends]


def _of_speed(name: str) -> Callable[[Row], Value]:
    return lambda row: getattr(row.metrics.speed, name, None)


def _repeats(rows: Sequence[Row]) -> str:
    """``(3 repeats, first 32 items)``: what a speed was measured over."""
    found = {(speed.repeats, speed.items) for row in rows if (speed := row.metrics.speed)}
    if len({repeats for repeats, _ in found}) != 1:
        return ""
    items = sorted({items for _, items in found})
    return f" ({min(found)[0]} repeats, first {' or '.join(map(str, items))} items)"


def _speed_items(row: Row) -> str:
    speed = row.metrics.speed
    return f"{speed.items} ({speed.same_ids})" if speed else text.DASH


def _projected(row: Row) -> float | None:
    """`8B cost`, on the device that `projected_on` names; None for a server, which does not tell its forwards."""
    block = row.manifest.block_length
    return projected_cost(row.samples.values(), row.method, block, H100, row.batch_size) if block else None


def _number_or_none(value: float) -> float | None:
    return None if value != value else value


def _against(
    baseline: str,
    title: str = "",
    help: str = "",
    where: Collection[str] = (),
    shown: Callable[[Sequence[Value]], bool] = known,
    formula: str = "",
    verdict: bool = False,
) -> list[Column]:
    """The paired difference to a baseline; `verdict`: with the word for it where the corrected test gives one."""

    def part(of: Callable[[Against], Value]) -> Callable[[Row], Value]:
        return lambda row: of(row.against[baseline]) if baseline in row.against else None

    def form(row: Row) -> str:
        if baseline not in row.against:
            return text.DASH
        found = row.against[baseline]
        told = f" {found.verdict}" if verdict and found.p_holm <= ALPHA else ""
        return text.signed(found.difference, found.low, found.high) + told

    name = f"vs_{baseline}"
    parts: dict[str, Callable[[Against], Value]] = {
        "_low": lambda one: one.low,
        "_high": lambda one: one.high,
        "_p": lambda one: _number_or_none(one.p_value),
        "_p_holm": lambda one: _number_or_none(one.p_holm),
        "_p_equal": lambda one: _number_or_none(one.p_equal),
        "_verdict": lambda one: one.verdict,
        "_row": lambda one: one.label,
    }
    difference = part(lambda one: one.difference)
    mean = Column(name, difference, title, help, form, where=where, sampled=True, shown=shown, formula=formula)
    return [mean, *(Column(name + end, part(of), sampled=True) for end, of in parts.items())]


# --- the columns ----------------------------------------------------------------------------------------------------

COLUMNS: tuple[Column, ...] = (
    _plain("task", "task"),
    _plain("split", "split"),
    _plain("label", "label", title="method", where=(MARKDOWN, LATEX)),
    _plain("model", "model", title="model", where=PAGE, shown=several, width=92),
    _plain("method", "method"),
    _plain("threshold", "manifest.threshold"),
    _plain("threshold_unit", "manifest.threshold_unit"),
    _plain("batch_size", "batch_size", title="batch", where=PAGE, shown=several, width=92,
           help="rows decoded together"),
    _plain("tried", "tried", title="tried", where=(MARKDOWN, HTML), help="settings of the method that competed on dev "
           "items before this one was taken, the cheapest that loses at most "
           f"{100 * MARGIN:g} points against static there; a dash where it was given"),
    _plain("items", "metrics.items"),
    Column("accuracy", attrgetter("accuracy"), "accuracy", "in percent, with its 95 % Wilson interval (the bootstrap's "
           "for graded items)", _accuracy, where=ALL, formula="sum of scores / items; Wilson's score interval"),
    _plain("accuracy_low", "metrics.accuracy_low"),
    _plain("accuracy_high", "metrics.accuracy_high"),
    *_against(
        REFERENCE, "vs static",
        "difference to static decoding of one token a step, in points, paired on the same items, with Tango's 95 % "
        "score interval (the bootstrap's for graded items), each by itself",
        (MARKDOWN, HTML), always, "(items that only the row solves - items that only static solves) / items",
    ),
    *_against(
        ORDER, "vs best order",
        "the same to the most accurate row of one token a step, whichever order it reveals tokens in", (MARKDOWN, HTML),
        formula="the baseline is the more accurate of static and sequential, each at its most forwards",
    ),
    *_against(RIVAL),
    Column("verdict", needs.standing, "verdict", "of the difference to static: better or worse by McNemar's exact test "
           "at 5 %, corrected by Holm over the rows of a table; equal by a two-sided test within "
           f"{100 * MARGIN:g} points", where=(MARKDOWN, HTML), shown=several, in_csv=False, sampled=True,
           formula="Holm's p at most 0.05; else both one-sided score tests against the margin at most 0.05; else too "
           "close to tell"),
    *_against(
        CURVE, "vs threshold, same work",
        "the same to plain threshold decoding that does as much work: the two thresholds around the row, a coin for "
        "each item deciding between them; better or worse by a test of the mean, corrected by Holm over the rows of "
        "a table; a dash where the row does less than every threshold",
        (MARKDOWN, HTML),
        formula="work is bytes or FLOPs, whichever gives the threshold more; thresholds that cost more than another "
        "and solve less are left out; the shares of the two count as known; the test draws the signs of the items' "
        "differences at random, and is McNemar's exact one beside a single threshold",
        verdict=True,
    ),
    _percent("changed", "changed", "changed", "items whose tokens are not those of static, in percent; 0 for a "
             "lossless method, which in float32 gives static's tokens (not those of the best order)", where=(MARKDOWN,),
             sampled=True, formula="items with other ids / items"),
    _percent("front_share", "front_share", "front", "in how many of a hundred new draws of the items the row is on the "
             "front of accuracy against cost", where=(MARKDOWN, HTML), sampled=True,
             formula="bootstrap over items, all rows of a group together; no other row is as good in both and better "
             "in one"),
    _percent("strict", "metrics.strict", "strict", "right by the strict reading of an answer, in percent",
             where=(MARKDOWN,)),
    _percent("flexible", "metrics.flexible", "flexible", "right by the flexible reading, in percent",
             where=(MARKDOWN,)),
    _percent("unparsed", "metrics.unparsed", "no answer", "answers in which nothing was found, in percent",
             where=(MARKDOWN, HTML), shown=some),
    _percent("cut_off", "metrics.cut_off", "cut off", "answers that ended for want of room, in percent",
             where=(MARKDOWN, HTML), shown=some),
    Column("verdicts", lambda row: compact(row.metrics.verdicts) if row.metrics.verdicts else None),
    Column("nfe", attrgetter("metrics.nfe"), "NFE", "forwards of the target after prefill, an item: those that decide "
           "something + those that only write keys and values", _forwards, _forwards_briefly, where=ALL,
           formula="calls of the target of every kind but prefill; behind the +, those of kind store",
           axis=Axis("nfe", attrgetter("metrics.nfe"), "forwards an item (NFE)")),
    _plain("store_forwards", "metrics.store_forwards"),
    Column("reveals", lambda row: row.group.reveals(row), "reveals a forward", "tokens a forward that decides "
           "something, as a multiple of static's (1.00); a ratio of sums over all items, in which places filled behind "
           "the end of an answer count for both", lambda row: text.number(row.group.reveals(row), 2),
           where=(MARKDOWN, HTML), formula="(tokens / calls of the target but prefill and store), over the same of "
           "static"),
    _plain("prefills", "metrics.prefills"),
    Column("helpers", helpers, "helpers", "passes of other networks, an item", helpers, where=PAGE, shown=some,
           width=68, in_csv=False, formula="calls of a role that is not the target, of every kind but prefill"),
    *(Column(role, _passes(role)) for role in HELPER_ROLES),
    Column("cost", attrgetter("cost"), "cost", "forwards and passes of decoding, an item, at the price that was "
           "measured on the named machine at the named batch, with a 95 % interval over items and over repeats of the "
           "prices; 1 is one denoise forward of the target there", _cost, lambda row: text.number(row.cost), where=ALL,
           shown=always,
           timed=True, sampled=True, circumstances=_priced_on,
           formula="sum over forwards of every role and kind but prefill of their price, each the median of up to 12 "
           "ratios to the plain forward, timed in turns",
           axis=Axis("cost", attrgetter("cost"), "cost of decoding an item, in plain forwards")),
    Column("cost_low", lambda row: row.cost_interval[0] if row.cost_interval else None, timed=True, sampled=True),
    Column("cost_high", lambda row: row.cost_interval[1] if row.cost_interval else None, timed=True, sampled=True),
    _percent("outside", "outside", "outside", "share of the seconds of decoding that pass outside forwards (choosing, "
             "revealing, refilling), in percent, of the passes that measure tok/s; cost leaves it out, and on a GPU, "
             "which the host runs ahead of, no clock tells", where=(MARKDOWN, HTML), timed=True,
             formula="1 - seconds in the layers and heads of all networks / seconds of decoding; median of the passes"),
    _number("prefill", "prefill", "prefill", "what an item's prompt costs, in the same unit", where=(MARKDOWN,),
            timed=True, sampled=True, formula="sum over forwards of kind prefill, of every role, of their price"),
    _relative("bytes", attrgetter("bytes_read"), "bytes", "weights, keys and values that decoding an item reads with "
              "the device for itself, as a share of static's: what counts at batch 1",
              "sum over forwards but prefill of the weights of their role and of each key they see, once a forward",
              Axis("bytes", attrgetter("bytes_read"), "bytes that an item reads: the limit at batch 1",
                   batched=False)),
    _relative("decode_flops", attrgetter("flops"), "FLOPs", "multiplications and additions of decoding an item, as a "
              "share of static's: what counts at large batch",
              "sum over forwards but prefill of 2 a weight and token, 4 a pair of a query and a key and a width",
              Axis("flops", attrgetter("flops"), "FLOPs of decoding an item: the limit at large batch", batched=False)),
    Column("pays", lambda row: row.group.pays(row), "pays?", "pays where both bytes and FLOPs are below static's, does "
           "not pay where neither is, else depends on the batch", where=(MARKDOWN, HTML), sampled=True,
           formula="bytes and FLOPs, both as shares of static's, against 1"),
    Column("projected_cost", _projected, sampled=True,
           axis=Axis("8b", _projected, f"8B cost ({H100.name}, roofline), in forwards")),
    Column("projected_on", lambda row: f"{H100.name}, batch {row.batch_size}"),
    _plain("unit_seconds", "unit_seconds", timed=True),
    _plain("flops", "metrics.flops"),
    _plain("query_tokens", "metrics.query_tokens"),
    _number("tokens", "metrics.tokens", "tokens", "generated, an item, the first EOS or stop string included",
            where=(MARKDOWN,)),
    _number("tpf", "metrics.tpf", "TPF", "tokens a forward: the tokens of all items, up to and including the end of "
            "each answer, over the NFE of all items, which fills whole blocks and so reaches behind that end", 2,
            where=ALL, width=68, formula="sum of tokens / sum of NFE",
            axis=Axis("tpf", attrgetter("metrics.tpf"), "tokens a forward (TPF)", larger=True)),
    _percent("acceptance", "metrics.acceptance", "drafts kept", "accepted share of the draft tokens, in percent",
             where=(HTML,), formula="sum of accepted lengths / tokens proposed"),
    *_speed("tps_decode", "decode", "tok/s", "tokens a second of decoding alone, at natural stop: median "
            "(slowest - fastest) of repeated passes over the first items; a dash, unsteady, where the fastest was more "
            f"than {UNSTEADY:g} times the slowest, and again in a second try; ~ where other work on the machine made "
            "the number of threads change, and again in a second try", where=ALL, width=68,
            formula="tokens of a pass / its synchronised seconds without prefill",
            circumstances=_repeats, axis=Axis("tps", attrgetter("tps"), "tokens/s, decode only", larger=True)),
    *_speed("tps_end_to_end", "end_to_end", "tok/s all", "the same with prefill", where=PAGE, width=92,
            circumstances=_repeats,
            axis=Axis("tps_end_to_end", attrgetter("tps_end_to_end"), "tokens/s, prefill included", larger=True)),
    _number("times_ar", "times_ar", "times AR", "tokens a second, prefill included, over those of an autoregressive "
            "model on the same engine, prompts, hardware and with as many requests at a time", 2,
            where=(MARKDOWN, HTML), timed=True, formula="tok/s all / tok/s all of the autoregressive row"),
    Column("speed_items", _of_speed("items"), "first items (same ids)", "items of such a pass, and how many of them "
           "gave the tokens of the samples", _speed_items, where=(MARKDOWN,)),
    Column("speed_repeats", _of_speed("repeats"), timed=True),
    Column("speed_same_ids", _of_speed("same_ids")),
    Column("speed_label", _of_speed("label")),
    Column("speed_steady", lambda row: row.metrics.speed.steady if row.metrics.speed else True, timed=True),
    _number("fallbacks", "metrics.fallbacks", "fallbacks", "steps in which a decoder's own rule revealed nothing", 0,
            where=PAGE, shown=some, width=92),
    _plain("block_length", "manifest.block_length"),
    _plain("gen_length", "manifest.gen_length"),
    _plain("cache", "manifest.spec.cache"),
    _plain("store", "manifest.spec.store"),
    _plain("temperature", "manifest.spec.temperature"),
    _plain("top_k", "manifest.spec.top_k"),
    _plain("top_p", "manifest.spec.top_p"),
    _plain("num_fewshot", "manifest.task.num_fewshot"),
    _plain("chat_template", "manifest.task.chat_template"),
    _plain("task_version", "manifest.task.version"),
    _plain("task_hash", "manifest.task.content_hash"),
    _plain("dtype", "manifest.spec.dtype"),
    _plain("device", "device"),
    _plain("threads", "manifest.environment.threads", timed=True),
    _plain("seed", "manifest.spec.seed"),
    _plain("weights", "weights"),
    Column("helper_weights", lambda row: compact(row.manifest.helper_weights)),
    _plain("prompt_hash", "manifest.prompts"),
    Column("parameters", lambda row: compact(row.manifest.parameters)),
    _plain("method_version", "manifest.method_version"),
    Column("versions", lambda row: compact(row.manifest.environment.versions)),
    _plain("commit", "manifest.environment.commit"),
    _plain("key", "key"),
    _plain("folder", "run.name"),
)  # fmt: skip

TIMED = tuple(column.name for column in COLUMNS if column.timed)
