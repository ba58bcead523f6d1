"""Rows of a results table: one a run, with everything a reader needs to trust and re-make it.

`read_results` gives a DataFrame with all columns, `write_table` writes it as table.csv (all columns) and table.md (what
fits on a page, then the circumstances). Differences to the baselines are paired on the items both runs hold.

Left out: averaging over runs. Rows of different weights or hardware stand beside each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dlmbench import stats
from dlmbench.errors import RequestError
from dlmbench.report.projection import SHARES, projected_cost
from dlmbench.request.run_spec import PAIRED
from dlmbench.runs import RunFolder, find_runs
from dlmbench.runs.aggregate import HELPER_ROLES
from dlmbench.runs.record import Rate

TIMING = (  # columns that come from a clock: the only ones that may differ when a run is made again
    "cost",
    "unit_seconds",
    "tps_decode",
    "tps_decode_low",
    "tps_decode_high",
    "tps_end_to_end",
    "tps_end_to_end_low",
    "tps_end_to_end_high",
)
PAIRED_ON = (*PAIRED, "weights", "prompt_hash")  # what two rows must share to be compared item by item
_NUMBERS = (
    "items",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "strict",
    "flexible",
    "unparsed",
    "cut_off",
    "nfe",
    "store_forwards",
    "prefills",
    "cost",
    "flops",
    "query_tokens",
    "tokens",
    "tpf",
    "acceptance",
    "fallbacks",
)


def read_results(*folders: str | Path, samples: bool = True) -> pd.DataFrame:
    """All finished runs at or below `folders`, one row each, sorted by task, model, method and setting.

    samples: read the items too, which the paired differences need. Raises RequestError when there is no finished run.
    """
    runs = [run for run in find_runs(*folders) if run.finished]
    if not runs:
        names = ", ".join(Path(folder).name or "." for folder in folders)
        raise RequestError(f"No finished run in {names}; make one with dlmbench run or dlmbench sweep.")
    return table(runs, samples=samples)


def table(runs: Iterable[RunFolder], samples: bool = True) -> pd.DataFrame:
    """The rows of these run folders, sorted; see `read_results`."""
    runs = list(runs)
    rows = [row(run) for run in runs]
    _tell_models_apart(rows)
    if samples:
        _add_differences(rows, [_accuracies(run) for run in runs])
        _add_changes(rows, runs)
        _add_front_shares(rows, runs)
    frame = pd.DataFrame(rows)
    order = sorted(range(len(rows)), key=lambda i: sort_key(rows[i]))
    return frame.iloc[order].reset_index(drop=True)


def row(run: RunFolder) -> dict[str, Any]:
    """One finished run as a flat record."""
    manifest, metrics = run.manifest, run.metrics
    spec, speed, task, here = manifest.spec, metrics.speed, manifest.task, manifest.environment
    record = {
        **{name: getattr(spec, name) for name in PAIRED},
        "task": task.name,
        "model": spec.model,
        "method": spec.method,
        "label": manifest.label,
        "threshold": manifest.threshold,
        "threshold_unit": manifest.threshold_unit,
        "verdicts": _compact(metrics.verdicts) if metrics.verdicts else None,
        **{name: getattr(metrics, name) for name in _NUMBERS},
        "unit_seconds": manifest.calibration.seconds_per_denoise if manifest.calibration else None,
        **{role: metrics.helpers.get(role, 0.0) for role in HELPER_ROLES},
        **_rate("tps_decode", speed.decode if speed else None),
        **_rate("tps_end_to_end", speed.end_to_end if speed else None),
        "speed_items": speed.items if speed else None,
        "speed_repeats": speed.repeats if speed else None,
        "speed_same_ids": speed.same_ids if speed else None,
        "speed_label": speed.label if speed else None,
        "speed_steady": speed.steady if speed else True,
        "block_length": manifest.block_length,
        "gen_length": manifest.gen_length,
        "num_fewshot": task.num_fewshot,
        "chat_template": task.chat_template,
        "task_version": task.version,
        "task_hash": task.content_hash,
        "device": here.device,
        "threads": here.threads,
        "weights": manifest.weights["target"],
        "helper_weights": _compact(manifest.helper_weights),
        "prompt_hash": manifest.prompts,
        "parameters": _compact(manifest.parameters),
        "method_version": manifest.method_version,
        "versions": _compact(here.versions),
        "commit": here.commit,
        "key": manifest.key,
        "folder": run.name,
    }
    return {**record, "projected_cost": projected_cost(record)}


def _rate(name: str, rate: Rate | None) -> dict[str, float | None]:
    if rate is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: rate.median, f"{name}_low": rate.low, f"{name}_high": rate.high}


def _tell_models_apart(rows: list[dict[str, Any]]) -> None:
    """Checkpoints of one name (folders called alike) get the beginning of their weights' hash beside it."""
    weights: dict[str, set[str]] = {}
    for record in rows:
        weights.setdefault(record["model"], set()).add(record["weights"])
    for record in rows:
        if len(weights[record["model"]]) > 1:
            record["model"] = f"{record['model']} ({record['weights'][:8]})"


def _compact(record: Any) -> str:
    return json.dumps(record, sort_keys=True)


def sort_key(record: dict[str, Any]) -> tuple:
    """The order of rows everywhere: task, model, method, batch, then the threshold."""
    threshold = record["threshold"]
    return (
        record["task"],
        record["split"],
        record["model"],
        record["method"],
        record["batch_size"],
        threshold if isinstance(threshold, int | float) else math.inf,
        record["label"],
        record["key"],
    )


def _accuracies(run: RunFolder) -> dict[str, float]:
    return {sample.key: sample.accuracy for sample in run.samples}


# --- differences to the baselines -----------------------------------------------------------------------------------


def circumstances_of(record: dict[str, Any]) -> tuple:
    """What must be equal for two rows to stand on one curve; rows that differ in it are separate series.

    Block length, cache policy and store are settings of a decoder there, like any other.
    """
    return tuple(record[name] for name in PAIRED_ON if name not in ("block_length", "cache", "store"))


def _add_front_shares(rows: list[dict[str, Any]], runs: Sequence[RunFolder]) -> None:
    """Column front_share: how often a row is on the front of its comparable rows when the items are drawn again."""
    from dlmbench.report.curves import front_shares, groups

    shares = {key: share for group in groups(runs) for key, share in front_shares(group).items()}
    for record in rows:
        record["front_share"] = shares.get(record["key"])


def _add_differences(rows: list[dict[str, Any]], accuracies: list[dict[str, float]]) -> None:
    """Columns vs_static* and vs_threshold*: paired, same items, same weights; empty where there is no such baseline."""
    for i, record in enumerate(rows):
        for name in ("static", "threshold"):
            j = baseline_of(rows, i, name)
            found = difference(accuracies[i], accuracies[j]) if j is not None else None
            record[f"vs_{name}"] = found.mean if found else None
            record[f"vs_{name}_low"] = found.low if found else None
            record[f"vs_{name}_high"] = found.high if found else None
            record[f"vs_{name}_floor"] = floor(accuracies[i], accuracies[j]) if found else None
            record[f"vs_{name}_p"] = found.p_value if found else None
            record[f"vs_{name}_row"] = rows[j]["label"] if found else None


def _add_changes(rows: list[dict[str, Any]], runs: Sequence[RunFolder]) -> None:
    """Column changed: share of the items whose tokens are not those of the static row; 0 for a lossless method."""
    answers = [{sample.key: sample.ids for sample in run.samples} for run in runs]
    for i, record in enumerate(rows):
        j = baseline_of(rows, i, "static")
        common = answers[i].keys() & answers[j].keys() if j is not None else ()
        differing = sum(answers[i][key] != answers[j][key] for key in common)
        record["changed"] = differing / len(common) if common else None


def baseline_of(rows: Sequence[dict[str, Any]], i: int, name: str) -> int | None:
    """Index of the row that row `i` is compared with, None for none.

    static: the one with the most forwards (one token a step). threshold: for a method whose threshold is a confidence
    the one at the same or nearest value; for any other the one nearest in cost (in forwards where nothing was priced).
    Never a row of the same method, except static at more forwards.
    """
    record = rows[i]
    found = [
        j
        for j, other in enumerate(rows)
        if j != i and other["method"] == name and all(other[column] == record[column] for column in PAIRED_ON)
    ]
    if not found or (name == "threshold" and record["method"] == name):
        return None
    if name == "static":
        best = max(found, key=lambda j: rows[j]["nfe"] or 0)
        return None if record["method"] == name and rows[best]["nfe"] <= record["nfe"] else best
    confident = [j for j in found if rows[j]["threshold_unit"] == "confidence"]  # rule=factor has none
    if record["threshold_unit"] == "confidence" and confident:
        return min(confident, key=lambda j: abs(rows[j]["threshold"] - record["threshold"]))
    scale = "nfe" if any(rows[j]["cost"] is None for j in (i, *found)) else "cost"
    return min(found, key=lambda j: abs(rows[j][scale] - record[scale]))


def difference(ours: dict[str, float], theirs: dict[str, float]) -> stats.Difference | None:
    """Paired difference on the shared items, None when there are none."""
    keys = sorted(ours.keys() & theirs.keys())
    return stats.paired_difference([ours[k] for k in keys], [theirs[k] for k in keys]) if keys else None


def floor(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """The largest loss, as a negative number, that the shared items do not rule out: the score interval's lower end."""
    keys = sorted(ours.keys() & theirs.keys())
    return stats.paired_score_interval([ours[k] for k in keys], [theirs[k] for k in keys])[0]


# --- files ----------------------------------------------------------------------------------------------------------


def write_table(
    frame: pd.DataFrame, folder: str | Path, title: str = "Results", notes: Sequence[str] = (), tail: str = ""
) -> list[Path]:
    """table.csv with every column and table.md for readers, in `folder`.

    notes are sentences below the title, `tail` a section at the end (`curves.matched_markdown`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "table.csv", index=False, lineterminator="\n")
    (folder / "table.md").write_text(markdown(frame, title, notes, tail), encoding="utf-8")
    return [folder / "table.csv", folder / "table.md"]


def markdown(frame: pd.DataFrame, title: str, notes: Sequence[str] = (), tail: str = "") -> str:
    """A table a task, then the circumstances that hold for its rows."""
    parts = [f"# {title}", "", *(f"{note}\n" for note in notes)]
    for (task, split), group in frame.groupby(["task", "split"], sort=False):
        columns = _page(group)
        parts += [
            f"## {task} ({split}, {_values(group['items'])} items)",
            "",
            pipe(columns),
            "",
            circumstances(group),
            "",
        ]
    parts.append(LEGEND)
    if tail:
        parts += ["", tail]
    return "\n".join(parts) + "\n"


LEGEND = (
    "Accuracy in percent with its 95 % Wilson interval. *vs static*: paired difference in points on the same items "
    "with its 95 % bootstrap interval; *vs_threshold* in table.csv is against the threshold row at the same or nearest "
    "confidence where the method's threshold is one, else against that nearest in cost. "
    "*changed*: items whose tokens are not those of static, in percent, 0 for a lossless method. "
    "*front*: in how many of a hundred new draws of the items the row is on the front of accuracy against cost. "
    "NFE: forwards of the target after prefill, an item (of these *stores* only "
    "write keys and values). *helpers*: passes of other networks. Cost: all forwards and passes, prefill too, at their "
    "measured price; 1 is one denoise forward of the target at this batch. *8B cost*: the same forwards and passes "
    "where each costs the weights it reads, SDAR-8B with SDAR-1.7B as the draft or a module of three layers, prefill "
    "left out. TPF: tokens / NFE. tok/s: median of "
    "repeated natural-stop passes over a subset (column *speed items*), decoding only and with prefill; ~ where other "
    "work on the machine made the number of threads change, and again in a second try."
)


def _page(group: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of table.md, formatted."""
    records = group.to_dict("records")
    several = group["model"].nunique() > 1
    columns: dict[str, list[str]] = {"method": [r["label"] for r in records]}
    if several:
        columns["model"] = [r["model"] for r in records]
    if group["batch_size"].nunique() > 1:
        columns["batch"] = [str(r["batch_size"]) for r in records]
    columns["accuracy"] = [interval(r["accuracy"], r["accuracy_low"], r["accuracy_high"]) for r in records]
    columns["vs static"] = [
        signed(r.get("vs_static"), r.get("vs_static_low"), r.get("vs_static_high")) for r in records
    ]
    if "changed" in group and group["changed"].notna().any():
        columns["changed"] = [percent(r["changed"]) for r in records]
    if "front_share" in group and group["front_share"].notna().any():
        columns["front"] = [percent(r["front_share"]) for r in records]
    for name in ("strict", "flexible", "unparsed", "cut_off"):
        if group[name].notna().any():
            columns[name.replace("_", " ")] = [percent(r[name]) for r in records]
    columns |= {"NFE": [number(r["nfe"]) for r in records], "stores": [number(r["store_forwards"]) for r in records]}
    if group[list(HELPER_ROLES)].to_numpy().any():
        columns["helpers"] = [helpers(r) for r in records]
    columns["cost"] = [number(r["cost"]) for r in records]
    if group[list(SHARES)].to_numpy().any():
        columns["8B cost"] = [number(r["projected_cost"]) for r in records]
    columns |= {
        "MFLOPs": [number(_scaled(r["flops"], 1e-6), 0) for r in records],
        "query tokens": [number(r["query_tokens"], 0) for r in records],
        "tokens": [number(r["tokens"]) for r in records],
        "TPF": [number(r["tpf"], 2) for r in records],
        "tok/s decode": [with_spread(r, "tps_decode") for r in records],
        "tok/s all": [with_spread(r, "tps_end_to_end") for r in records],
        "speed items (same ids)": [_speed_items(r) for r in records],
    }
    if group["fallbacks"].any():
        columns["fallbacks"] = [number(r["fallbacks"], 0) for r in records]
    return columns


def circumstances(group: pd.DataFrame) -> str:
    """One sentence with what all rows share; a column that differs lists its values."""
    speed = group["speed_label"].dropna().unique()
    units = _units(group)
    parts = [
        f"model {_values(group['model'])} (weights {_values(group['weights'].str[:8])})",
        f"batch {_values(group['batch_size'])}",
        f"block {_values(group['block_length'])}",
        f"at most {_values(group['gen_length'])} tokens",
        f"store {_values(group['store'])}",
        f"{_values(group['dtype'])} on {_values(group['device'])} ({_values(group['threads'])} threads)",
        f"seed {_values(group['seed'])}",
        f"prompts {_values(group['prompt_hash'].str[:8])}",
        f"versions {_values(group['versions'])}",
    ]
    return "; ".join(parts) + "." + "".join(f" Speed: {label}." for label in speed) + units


def _units(group: pd.DataFrame) -> str:
    """Cost counts forwards of a row's own target; where there are several, how they compare."""
    seconds = group.dropna(subset=["unit_seconds"]).groupby(["model", "weights"], sort=False)["unit_seconds"].median()
    if len(seconds) < 2 or group["batch_size"].nunique() > 1:
        return ""
    main = group["weights"].mode()[0]
    unit = next(value for (_, weights), value in seconds.items() if weights == main)
    return "".join(
        f" A forward of {model} takes {value / unit:.2f} of the others', and its cost counts its own."
        for (model, weights), value in seconds.items()
        if weights != main
    )


def _values(column: pd.Series) -> str:
    return ", ".join(dict.fromkeys("-" if _missing(v) else str(v) for v in column))


def pipe(columns: dict[str, list[str]]) -> str:
    """Columns of texts as a Markdown table with aligned bars; the first is left-aligned."""
    widths = {name: max(len(name), *(len(value) for value in values)) for name, values in columns.items()}
    first = next(iter(columns))
    head = "| " + " | ".join(name.ljust(width) for name, width in widths.items()) + " |"
    rule = "|" + "|".join("-" * (w + 2) if n == first else "-" * (w + 1) + ":" for n, w in widths.items()) + "|"
    body = [
        "| "
        + " | ".join(v.ljust(widths[n]) if n == first else v.rjust(widths[n]) for n, v in zip(columns, line))
        + " |"
        for line in zip(*columns.values())
    ]
    return "\n".join([head, rule, *body])


# --- numbers as text ------------------------------------------------------------------------------------------------


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _scaled(value: Any, factor: float) -> Any:
    return None if _missing(value) else value * factor


def number(value: Any, digits: int = 1) -> str:
    """A number with thousands separated, or a dash."""
    return "-" if _missing(value) else f"{value:,.{digits}f}"


def percent(value: Any) -> str:
    return "-" if _missing(value) else f"{100 * value:.1f}"


def interval(value: Any, low: Any, high: Any) -> str:
    """``86.4 [81.6, 90.1]``, in percent."""
    return "-" if _missing(value) else f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def signed(value: Any, low: Any, high: Any) -> str:
    """``-3.2 [-5.6, -0.8]``, in points."""
    return "-" if _missing(value) else f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def helpers(record: dict[str, Any]) -> str:
    """``draft 12.0, head 3.5``: passes an item of each network that is not the target."""
    parts = [f"{role} {record[role]:.1f}" for role in HELPER_ROLES if record.get(role)]
    return ", ".join(parts) or "-"


def with_spread(record: dict[str, Any], name: str) -> str:
    """Median with the range of the repeats; marked where the number of threads had to be changed meanwhile."""
    if _missing(record.get(name)):
        return "-"
    mark = "" if record.get("speed_steady", True) else " ~"
    return f"{record[name]:,.0f} [{record[name + '_low']:,.0f}, {record[name + '_high']:,.0f}]{mark}"


def _speed_items(record: dict[str, Any]) -> str:
    if _missing(record["speed_items"]):
        return "-"
    return f"{record['speed_items']:.0f} ({record['speed_same_ids']:.0f})"
