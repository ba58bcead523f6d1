"""How a protocol reads an answer: what replaces a task's own extraction. Names are those of `AskedTask.reading`.

Numbers: ``boxed`` is the last ``\\boxed{}``, else the number behind "answer is", else the last one; ``last`` the last
number, both compared as numbers; ``strict`` and ``flexible`` are lm-eval's filters and its comparison of texts.
Programs: ``fence`` is the first fenced block, else the text; ``sanitised`` is described at `dlmbench.tasks.sanitise`;
``lm-eval`` runs the text as it is, behind the prompt where the task completes one; ``opened`` the same up to the end of
the block that the prompt has opened. ``math_verify`` is the task's own.
"""

from __future__ import annotations

from collections.abc import Callable

from dlmbench.scoring import Problem
from dlmbench.tasks import answers
from dlmbench.tasks.base import Doc
from dlmbench.tasks.code import completed, pass_at_1, whole_program
from dlmbench.tasks.gsm8k.functions import process_results
from dlmbench.tasks.sanitise import fenced, sanitised
from dlmbench.tasks.task_files import Metadata

Program = Callable[[Doc, str], str]


def replaced(reading: str, config: Metadata) -> tuple[dict[str, object], dict[str, object], tuple[str, ...]]:
    """What a reading changes in a task: (keys of its configuration, metadata, own keys that lm-eval's file replaces).

    config: the task's own configuration; whether it has programs for answers decides what the reading means.
    """
    metadata = config["metadata"]
    if "problem" in metadata:
        program, problem = PROGRAMS[reading], metadata["problem"]

        def judge(doc: Doc, results: list[str]) -> dict[str, float]:
            return pass_at_1(problem(doc), program(doc, results[0]))

        return {"process_results": judge}, {"program": program}, ()
    if reading in ("strict", "flexible"):
        chain = {"strict": "strict-match", "flexible": "flexible-extract"}[reading]
        return {}, {"primary": f"exact_match,{chain}"}, ("filter_list", "process_results")
    if reading in _NUMBERS:
        return _number(_NUMBERS[reading]), {"primary": "exact_match,answer"}, ()
    return {}, {}, ()


def _number(read: Callable[[str], str]) -> dict[str, object]:
    def chain(resps: list[list[str]], docs: object) -> list[str]:
        return [read(responses[0]) for responses in resps]

    filters = [{"name": "answer", "filter": [{"function": "custom", "filter_fn": chain}]}]
    return {"filter_list": filters, "process_results": process_results}


_NUMBERS: dict[str, Callable[[str], str]] = {
    "boxed": lambda text: answers.stated(text, ("boxed", "phrase")),
    "last": answers.last,
}


# --- programs -------------------------------------------------------------------------------------------------------


def _entry_point(doc: Doc) -> str:
    return doc["entry_point"] if "entry_point" in doc else Problem.from_mbpp(doc).entry_point


def _completes(doc: Doc) -> bool:
    """Is the prompt the beginning of the program? HumanEval's is, MBPP's is a sentence."""
    return "entry_point" in doc


def _fence(doc: Doc, answer: str) -> str:
    block, name = fenced(answer), _entry_point(doc)
    return completed(doc["prompt"], block, name) if _completes(doc) else whole_program(block, name)


def _sanitised(doc: Doc, answer: str) -> str:
    return sanitised(doc["prompt"] if _completes(doc) else "", answer, _entry_point(doc))


def _as_it_is(doc: Doc, answer: str) -> str:
    return doc["prompt"] + answer if _completes(doc) else answer


def _opened(doc: Doc, answer: str) -> str:
    return _as_it_is(doc, answer.partition("```")[0])


PROGRAMS: dict[str, Program] = {
    "fence": _fence,
    "sanitised": _sanitised,
    "opened": _opened,
    "lm-eval": _as_it_is,
}
READINGS: tuple[str, ...] = ("strict", "flexible", "math_verify", *_NUMBERS, *PROGRAMS)
