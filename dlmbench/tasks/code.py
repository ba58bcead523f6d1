"""Scoring answers that are programs: they run in the sandbox of `dlmbench.scoring`, never in this process.

A task file names two functions in its metadata: ``problem(doc)``, the tests, and ``program(doc, answer)``, the whole
text to run. An answer is `unparsed` when it is empty, or when that text is not Python or does not define the function
that was asked for.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlmbench.scoring import Problem


def score_program(problem: Problem, program: str, answer: str) -> dict[str, float | bool | str]:
    """Run `program`, made of `answer`, against its tests: accuracy 1 or 0, unparsed, and the sandbox's verdict."""
    from dlmbench.scoring import run_tests

    verdict = run_tests(problem, program)
    unparsed = not verdict.passed and not (answer.strip() and _defines(program, problem.entry_point))
    return {"accuracy": float(verdict.passed), "unparsed": unparsed, "verdict": verdict.status}


def pass_at_1(problem: Problem, program: str) -> dict[str, float]:
    """The same for lm-eval, which wants numbers only."""
    return {"pass@1": score_program(problem, program, program)["accuracy"]}


def _defines(program: str, name: str) -> bool:
    """Whether `program` is Python that binds `name` at its top level. Parsing runs nothing."""
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: a null character
        return False
    return any(name in _bound(node) for node in body)


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}
