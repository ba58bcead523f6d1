"""nano-code: the answer goes on after the signature, the last line of the prompt."""

import json

from dlmbench.scoring import Problem
from dlmbench.tasks.code import pass_at_1
from dlmbench.tasks.data import shipped


def dataset(file="nano-code", **_):
    """The shipped items of a file. Tests mix types, which a table cannot hold, so they stay JSON text."""
    return shipped(file, change=lambda row: {**row, "tests": json.dumps(row["tests"])})


def program(doc, answer):
    return doc["prompt"].rpartition("\n")[2] + answer


def problem(doc):
    canonical = program(doc, doc["target"])
    return Problem.from_cases(doc["key"], doc["entry_point"], json.loads(doc["tests"]), canonical)


def process_results(doc, results):
    return pass_at_1(problem(doc), program(doc, results[0]))
