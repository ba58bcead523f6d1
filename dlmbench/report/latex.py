"""The results for a paper: a booktabs table a task, and a paragraph of experimental settings made from the manifests.

An accuracy is bold only where it is significantly the best: its paired interval excludes zero against every row of
every other method in its comparable group, the intervals widened for the number of rows (Bonferroni). So a table
without bold says that the items do not decide it. Everything a reader needs for the circumstances is in the paragraph.

Left out: colours, figures, and a choice of columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dlmbench import stats
from dlmbench.analysis.load import Results
from dlmbench.analysis.row import Group, Row
from dlmbench.analysis.text import DASH, listed
from dlmbench.report.columns import LATEX, Column, legend, table_columns

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {letter: "\\" + letter for letter in "&%$#_{}"}


def escape(text: object) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(letter, letter) for letter in str(text))


def latex(results: Results, choices: Sequence[str] = ()) -> str:
    """Tables of all comparable groups and the paragraph; `choices` are sentences on how settings were chosen."""
    header = "% needs \\usepackage{booktabs}; made by dlmbench report --latex\n"
    return "\n".join([header, *map(_table, results.groups), settings(results.rows, choices)])


def _table(group: Group) -> str:
    first, best = group.rows[0], clearly_best(group)
    columns = table_columns(LATEX, group.rows)
    note = "Bold: better than every row of another method" if best else "No accuracy is significantly the best"
    means = " ".join(f"{escape(title)}: {escape(help)}." for title, help in legend(columns))
    caption = (
        f"{escape(first.task)} ({escape(first.split)}, {first.metrics.items} items), {escape(first.model)}, batch "
        f"{first.batch_size}. {note} (paired, 95\\,\\% over all rows together). {means}"
    )
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            " & ".join(escape(column.title) for column in columns) + r" \\",
            r"\midrule",
            *(" & ".join(_cell(column, row, row in best) for column in columns) + r" \\" for row in group.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _cell(column: Column, row: Row, best: bool) -> str:
    """A value, its interval in small print; the accuracy bold where it is significantly the best."""
    value, _, ends = column.text(row, brief=True).partition(" [")
    shown = "--" if value == DASH else escape(value).replace(",", r"\,")
    if column.name == "accuracy" and best:
        shown = rf"\textbf{{{shown}}}"
    return shown + (rf" {{\small [{escape(ends)}}}" if ends else "")


def clearly_best(group: Group) -> set[Row]:
    """Rows of one method whose accuracy beats every row of every other method, at 95 % for all comparisons together."""
    if not group.items:
        return set()
    accuracy = dict(zip(group.rows, group.accuracy))
    level = 1 - (1 - stats.LEVEL) / max(1, len(group.rows) - 1)

    def beats(row: Row, other: Row) -> bool:
        return stats.paired_score_interval(accuracy[row].tolist(), accuracy[other].tolist(), level)[0] > 0

    others = {method: [row for row in group.rows if row.method != method] for method in group.methods()}
    return {row for row in group.rows if others[row.method] and all(beats(row, one) for one in others[row.method])}


# --- the paragraph --------------------------------------------------------------------------------------------------


def settings(rows: Sequence[Row], choices: Sequence[str] = ()) -> str:
    """A paragraph of experimental settings, every number taken from the rows."""
    models = _all(rows, lambda row: f"{escape(row.model)} (weights {escape(row.weights[:8])})")
    versions = rows[0].manifest.environment.versions
    sentences = [
        f"We decode {models} with {_all(rows, lambda row: escape(row.method))} on {_all(rows, _task)}.",
        "Within a table every method runs on the same weights, prompts and hardware. We use "
        f"block length {_all(rows, lambda row: row.manifest.block_length)}, "
        f"batch size {_all(rows, lambda row: row.batch_size)}, "
        f"precision {_all(rows, lambda row: row.manifest.spec.dtype)} and {_sampling(rows)} "
        f"(seed {_all(rows, lambda row: row.manifest.spec.seed)}), on {_all(rows, lambda row: escape(row.device))}.",
        _stores(rows),
        "Forwards are counted per item until its row ends; the cost prices every forward of every network but prefill "
        "by its measured time in units of one plain denoising forward.",
        _speed(rows),
        "Accuracies carry 95\\,\\% Wilson intervals; differences are paired on the same items.",
        *(escape(choice) for choice in choices),
        f"Versions: {escape(', '.join(f'{name} {version}' for name, version in versions.items()))}.",
    ]
    return "\\paragraph{Experimental settings.}\n" + "\n".join(one for one in sentences if one) + "\n"


def _all(rows: Iterable[Row], fact: Callable[[Row], object]) -> str:
    """What the rows have there, each once."""
    return listed(list(dict.fromkeys(str(fact(row)) for row in rows)))


def _task(row: Row) -> str:
    manifest = row.manifest
    shots = manifest.task.num_fewshot
    return (
        f"{escape(row.task)} ({row.metrics.items} {escape(row.split)} items, "
        f"{'shots by task' if shots is None else f'{shots}-shot'}, at most {manifest.gen_length} tokens)"
    )


def _sampling(rows: Sequence[Row]) -> str:
    specs = [row.manifest.spec for row in rows]
    if not any(spec.temperature for spec in specs):
        return "greedy decoding"
    temperatures = dict.fromkeys(f"{spec.temperature:g}" for spec in specs)
    shares = dict.fromkeys(f"{spec.top_p:g}" for spec in specs)
    return f"temperature {listed(list(temperatures))}, top-p {listed(list(shares))}"


def _stores(rows: Sequence[Row]) -> str:
    words = {
        "fused": "The keys and values of a finished block are written by the forward that begins the next one.",
        "separate": "The keys and values of a finished block are written by a forward of their own, which counts.",
    }
    return " ".join(words[store] for store in dict.fromkeys(row.manifest.spec.store for row in rows) if store)


def _speed(rows: Sequence[Row]) -> str:
    timed = [row.metrics.speed for row in rows if row.metrics.speed]
    if not timed:
        return ""
    counts = [speed.items for speed in timed]
    items = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    labels = "".join(f" Speed: {escape(label)}." for label in dict.fromkeys(speed.label for speed in timed) if label)
    return (
        f"Tokens/s are the median of {timed[0].repeats} repeated passes over {items} items with natural stop, prefill "
        f"excluded.{labels}"
    )


def choices_of(folder: Path) -> list[str]:
    """How settings were chosen, from the sweep that filled `folder`: one sentence a method; empty without a choice."""
    place = folder / "sweep.json"
    record = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return [
        f"{choice['chosen']} was chosen out of {len(choice['tried'])} settings of {choice['method']} on "
        f"{choice['dev_items']} dev items of {choice['task']}."
        for choice in record.get("choices", [])
    ]
