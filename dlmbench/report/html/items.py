"""The items of a report: prompt, right answer, and what every setting made of them.

Settings often give the same text, so an item holds each distinct answer once, with the settings that gave it. Items are
taken in their order while they fit into `BUDGET`; the report says how many there are altogether.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from dlmbench.runs.folder import RunFolder
from dlmbench.runs.prompts import read_prompts
from dlmbench.runs.record import Sample

BUDGET = 1_200_000  # characters of prompts and answers in one report
_LONGEST = 6_000  # characters of one text; the middle of a longer one is left out


Answer = tuple[str, float, str, list[int]]  # text, right 0 to 1, the same in a word, indices of the settings


class ItemRow(TypedDict):
    """One item of a task."""

    key: str
    prompt: str | None
    target: str | None
    answers: list[Answer]
    nfe: list[int | None]  # of each setting


class Items(TypedDict):
    """The items of one section."""

    title: str
    settings: list[str]
    total: int
    items: list[ItemRow]


def item_sections(sections: Sequence[tuple[str, list[str], list[RunFolder]]]) -> list[Items]:
    """One record a section (title, labels of its settings, their runs in the same order)."""
    share = BUDGET // max(len(sections), 1)
    return [_section(title, labels, runs, share) for title, labels, runs in sections]


def _section(title: str, labels: list[str], runs: list[RunFolder], budget: int) -> Items:
    samples = [{sample.key: sample for sample in run.samples} for run in runs]
    asking = {(run.path.parent, run.manifest.prompts): run for run in runs}  # they share the file of their prompts
    prompts = {key: record for run in asking.values() for key, record in read_prompts(run).items()}
    keys = [key for key in prompts if any(key in one for one in samples)]
    keys += list(dict.fromkeys(key for one in samples for key in one if key not in prompts))
    items: list[ItemRow] = []
    spent = 0
    for key in keys:
        item = _item(key, prompts.get(key), [one.get(key) for one in samples])
        items.append(item)
        spent += len(item["prompt"] or "") + len(item["target"] or "")
        spent += sum(len(answer[0]) + 4 * len(answer[3]) for answer in item["answers"])
        if spent > budget:
            break
    return {"title": title, "settings": labels, "total": len(keys), "items": items}


def _item(key: str, asked: Mapping[str, str] | None, samples: Sequence[Sample | None]) -> ItemRow:
    answers: dict[tuple[str, float, str], list[int]] = {}
    for setting, sample in enumerate(samples):
        if sample is not None:
            answers.setdefault((_cut(sample.text), sample.accuracy, _word(sample)), []).append(setting)
    return {
        "key": key,
        "prompt": _cut(asked["prompt"]) if asked else None,
        "target": _cut(asked["target"]) if asked else None,
        "answers": [(*answer, given) for answer, given in sorted(answers.items(), key=lambda one: -len(one[1]))],
        "nfe": [sample.nfe if sample else None for sample in samples],
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
