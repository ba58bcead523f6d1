"""The results for a paper: a booktabs table a task, and a paragraph of experimental settings made from the manifests.

An accuracy is bold only where it is significantly the best: its paired interval excludes zero against every row of
every other method in its comparable group, the intervals widened for the number of rows (Bonferroni). So a table
without bold says that the items do not decide it. Everything a reader needs for the circumstances is in the paragraph.

Left out: colours, figures, and a choice of columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dlmbench import stats
from dlmbench.report.curves import Group, groups
from dlmbench.report.table import number, percent
from dlmbench.runs import RunFolder

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {letter: "\\" + letter for letter in "&%$#_{}"}


def escape(text: Any) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(letter, letter) for letter in str(text))


def latex(runs: Sequence[RunFolder], choices: Sequence[str] = ()) -> str:
    """Tables of all comparable groups and the paragraph; `choices` are sentences on how settings were chosen."""
    found = groups(runs)
    header = "% needs \\usepackage{booktabs}; made by dlmbench report --latex\n"
    return "\n".join([header, *(_table(group) for group in found), settings(found, choices)])


def _table(group: Group) -> str:
    base, best = group.rows[0], clearly_best(group)
    lines = [_line(record, i in best) for i, record in enumerate(group.rows)]
    note = "Bold: better than every row of another method" if best else "No accuracy is significantly the best"
    caption = (
        f"{escape(base['task'])} ({escape(base['split'])}, {base['items']:.0f} items), {escape(base['model'])}, batch "
        f"{base['batch_size']}. Accuracy in percent with its 95\\,\\% Wilson interval. NFE: forwards of the target an "
        f"item after prefill; cost: all passes at their measured price, 1 is a plain forward. {note} (paired, 95\\,\\% "
        "over all rows together)."
    )
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            r"\begin{tabular}{lrrrrr}",
            r"\toprule",
            r"Method & Accuracy & NFE & Cost & TPF & Tokens/s \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _line(record: dict[str, Any], bold: bool) -> str:
    value = percent(record["accuracy"])
    value = rf"\textbf{{{value}}}" if bold else value
    span = f"{{\\small [{percent(record['accuracy_low'])}, {percent(record['accuracy_high'])}]}}"
    cells = [
        escape(record["label"]),
        f"{value} {span}",
        number(record["nfe"]),
        number(record["cost"]),
        number(record["tpf"], 2),
        number(record["tps_decode"], 0).replace(",", r"\,"),
    ]
    return " & ".join("--" if cell == "-" else cell for cell in cells) + r" \\"


def clearly_best(group: Group) -> set[int]:
    """Rows of one method whose accuracy beats every row of every other method, at 95 % for all comparisons together."""
    methods = [record["method"] for record in group.rows]
    others = {method: [i for i, name in enumerate(methods) if name != method] for method in set(methods)}
    level = 1 - (1 - stats.LEVEL) / max(1, len(methods) - 1)

    def beats(i: int, j: int) -> bool:
        return stats.paired_score_interval(group.accuracy[i], group.accuracy[j], level)[0] > 0

    return {i for i, name in enumerate(methods) if others[name] and all(beats(i, j) for j in others[name])}


# --- the paragraph --------------------------------------------------------------------------------------------------


def settings(found: Sequence[Group], choices: Sequence[str] = ()) -> str:
    """A paragraph of experimental settings, every number taken from the rows."""
    rows = [record for group in found for record in group.rows]
    first = rows[0]
    models = _list(f"{escape(m)} (weights {escape(w[:8])})" for m, w in _distinct(rows, "model", "weights"))
    tasks = _list(
        f"{escape(t)} ({n:.0f} {escape(s)} items, {_shots(k)}, at most {g} tokens)"
        for t, n, s, k, g in _distinct(rows, "task", "items", "split", "num_fewshot", "gen_length")
    )
    versions = json.loads(first["versions"])
    sentences = [
        f"We decode {models} with {_list(escape(m) for (m,) in _distinct(rows, 'method'))} on {tasks}.",
        f"Within a table every method runs on the same weights, prompts and hardware. We use "
        f"{_of(rows, 'block_length', 'block length')}, {_of(rows, 'batch_size', 'batch size')}, "
        f"{_of(rows, 'dtype', 'precision')} and {_sampling(rows)} ({_of(rows, 'seed', 'seed')}), on "
        f"{_list(escape(d) for (d,) in _distinct(rows, 'device'))}.",
        _stores(rows),
        "Forwards are counted per item until its row ends; the cost prices every forward of every network, prefill "
        "included, by its measured time in units of one plain denoising forward.",
        _speed(rows),
        "Accuracies carry 95\\,\\% Wilson intervals; differences are paired on the same items.",
        *(escape(choice) for choice in choices),
        f"Versions: {escape(', '.join(f'{name} {version}' for name, version in versions.items()))}.",
    ]
    return "\\paragraph{Experimental settings.}\n" + "\n".join(one for one in sentences if one) + "\n"


def _distinct(rows: Iterable[dict[str, Any]], *names: str) -> list[tuple]:
    return list(dict.fromkeys(tuple(record[name] for name in names) for record in rows))


def _of(rows: Sequence[dict[str, Any]], name: str, word: str) -> str:
    values = [escape(value) for (value,) in _distinct(rows, name)]
    return f"{word} {_list(values)}"


def _list(parts: Iterable[str]) -> str:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _shots(count: Any) -> str:
    return "shots by task" if count is None else f"{count}-shot"


def _sampling(rows: Sequence[dict[str, Any]]) -> str:
    temperatures = [value for (value,) in _distinct(rows, "temperature")]
    if temperatures == [0]:
        return "greedy decoding"
    return f"temperature {_list(f'{value:g}' for value in temperatures)}, {_of(rows, 'top_p', 'top-p')}"


def _stores(rows: Sequence[dict[str, Any]]) -> str:
    kinds = [kind for (kind,) in _distinct(rows, "store")]
    words = {
        "fused": "The keys and values of a finished block are written by the forward that begins the next one.",
        "separate": "The keys and values of a finished block are written by a forward of their own, which counts.",
    }
    return " ".join(words[kind] for kind in kinds)


def _speed(rows: Sequence[dict[str, Any]]) -> str:
    timed = [record for record in rows if record["tps_decode"]]
    if not timed:
        return ""
    counts = [record["speed_items"] for record in timed]
    items = f"{min(counts):.0f}" if min(counts) == max(counts) else f"{min(counts):.0f} to {max(counts):.0f}"
    labels = "".join(f" Speed: {escape(label)}." for (label,) in _distinct(timed, "speed_label") if label)
    return (
        f"Tokens/s are the median of {timed[0]['speed_repeats']:.0f} repeated passes over {items} items with natural "
        f"stop, prefill excluded.{labels}"
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
