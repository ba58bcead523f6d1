"""What the stress tasks' files name: their items, their scores in both forms, and the lists of right answers."""

from __future__ import annotations

import json

from dlmbench.errors import RequestError
from dlmbench.tasks.data import as_dataset
from dlmbench.tasks.stress import items
from dlmbench.tasks.stress.answer_sets import LISTS


def dataset(kind: str, tier: str, **_):
    """The items of one length; lm-eval passes the metadata of the task file."""
    return as_dataset({split: items.documents(kind, int(tier), split) for split in items.SIZES})


def answers(doc) -> list[str]:
    """Every right answer in the short form."""
    return [items.short_answer(answer) for answer in items.question_of(doc).answers()]


def score_short(doc, results):
    return _scored(doc, items.parse_short(results[0]))


def score_chat(doc, results):
    return _scored(doc, items.parse_chat(doc["kind"], results[0]))


def _scored(doc, answer):
    return {"valid": float(items.question_of(doc).is_right(answer))}


def short_unparsed(doc, text) -> bool:
    return items.parse_short(text) is None


def chat_unparsed(doc, text) -> bool:
    return items.parse_chat(doc["kind"], text) is None


def read_foreign(row, metadata):
    """A line of ParallelBench's files of lists (`input.context`, `input.word`, `answer`) as a record of ours.

    What is asked is theirs, the wording and the worked example are ours.
    """
    kind = metadata["kind"]
    if kind not in LISTS:
        raise RequestError(f"Task stress-{kind} reads no local files, only lists are read: leave --data-dir out.")
    asked = row["input"]
    context, right = (_as_list(kind, value) for value in (asked.get("context"), row["answer"]))
    record = items.foreign(kind, context, asked.get("word"), right)
    if not items.question_of(record).is_right(right):
        raise RequestError(
            f"A line for stress-{kind} gives {right} as the right answer to {context}, which it is not: is the file "
            "that of another task?"
        )
    return record


def _as_list(kind: str, value) -> list[str]:
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise RequestError(f"A line for stress-{kind} needs lists of names as input.context and answer.")
    return value
