"""The items of a report: prompt, right answer, and what every setting made of them.

Settings often give the same text, so an item holds each distinct answer once, with the settings that gave it. Items are
taken in their order while they fit into `BUDGET`; the report says how many there are altogether.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlmbench.runs import RunFolder, Sample
from dlmbench.runs.prompts import read_prompts

BUDGET = 1_200_000  # characters of prompts and answers in one report
_LONGEST = 6_000  # characters of one text; the middle of a longer one is left out


def item_sections(sections: Sequence[tuple[str, list[str], list[RunFolder]]]) -> list[dict[str, Any]]:
    """One record a section (title, labels of its settings, their runs in the same order).

    {"title", "settings": [label], "total", "items": [{"key", "prompt", "target", "answers", "nfe"}]}, where answers are
    [text, right 0..1, word, indices of the settings] and nfe has one number a setting.
    """
    share = BUDGET // max(len(sections), 1)
    return [_section(title, labels, runs, share) for title, labels, runs in sections]


def _section(title: str, labels: list[str], runs: list[RunFolder], budget: int) -> dict[str, Any]:
    samples = [{sample.key: sample for sample in run.samples} for run in runs]
    prompts = {key: record for run in runs for key, record in read_prompts(run).items()}
    keys = [key for key in prompts if any(key in one for one in samples)]
    keys += list(dict.fromkeys(key for one in samples for key in one if key not in prompts))
    items, spent = [], 0
    for key in keys:
        items.append(_item(key, prompts.get(key, {}), [one.get(key) for one in samples]))
        spent += sum(len(items[-1][name] or "") for name in ("prompt", "target"))
        spent += sum(len(answer[0]) + 4 * len(answer[3]) for answer in items[-1]["answers"])
        if spent > budget:
            break
    return {"title": title, "settings": labels, "total": len(keys), "items": items}


def _item(key: str, asked: Mapping[str, Any], samples: Sequence[Sample | None]) -> dict[str, Any]:
    answers: dict[tuple, list[int]] = {}
    for setting, sample in enumerate(samples):
        if sample is not None:
            answers.setdefault((_cut(sample.text), sample.accuracy, _word(sample)), []).append(setting)
    return {
        "key": key,
        "prompt": _cut(asked["prompt"]) if asked else None,
        "target": _cut(asked["target"]) if asked else None,
        "answers": [[*answer, given] for answer, given in sorted(answers.items(), key=lambda one: -len(one[1]))],
        "nfe": [sample and sample.calls() for sample in samples],
    }


def _word(sample: Sample) -> str:
    """The verdict on one answer, for readers."""
    if "verdict" in sample.scores:
        return "right" if sample.accuracy == 1 else str(sample.scores["verdict"])
    if sample.scores.get("unparsed"):
        return "no answer found"
    return {1.0: "right", 0.0: "wrong"}.get(sample.accuracy, f"{sample.accuracy:.2f}")


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
