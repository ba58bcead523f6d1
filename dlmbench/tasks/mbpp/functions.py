"""MBPP: the answer has the whole program; examples are the three that lm-eval shows."""

import ast

from dlmbench.scoring import Problem
from dlmbench.tasks.code import pass_at_1, whole_program
from dlmbench.tasks.harness import LM_EVAL


def problem(doc):
    return Problem.from_mbpp(doc)


def program(doc, answer):
    return whole_program(answer, problem(doc).entry_point)


def process_results(doc, results):
    return pass_at_1(problem(doc), program(doc, results[0]))


def fewshot_samples():
    """lm-eval's examples, read out of its file: importing that file would fetch and run code_eval in this process."""
    tree = ast.parse((LM_EVAL / "mbpp" / "utils.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    last = next(node for node in functions if node.name == "list_fewshot_samples").body[-1]
    assert isinstance(last, ast.Return) and last.value is not None
    return ast.literal_eval(last.value)  # a list of literals
