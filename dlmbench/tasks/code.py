"""Answers that are programs: what in them is the code, and scoring in the sandbox of `dlmbench.scoring`.

A task file names two functions in its metadata: ``problem(doc)``, the tests, and ``program(doc, answer)``, the whole
text to run. An answer is `unparsed` when it is empty, or when that text is not Python or does not define the function
that was asked for.

*Where the code is.* Code fences (``` or ~~~), [BEGIN] and [DONE] cut an answer into parts. The first part that defines
the function is the program; else the first that goes on where the prompt ends, with its indentation put right if need
be. So it does not matter whether the prompt has opened a fence, whether the model opened another, or what it says
around them. Nothing is run to find out.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator

from dlmbench.scoring import Problem, run_tests
from dlmbench.tasks.answers import after_thought

_FILE = "<answer>"
_BORDER = re.compile(r"(?:`{3,}|~{3,})[^\n`]*(?:\n|\Z)|(?m:^\[(?:BEGIN|DONE)\][ \t]*$\n?)")
_QUOTES = ("'''", '"""', "'", '"')
warnings.filterwarnings("ignore", category=SyntaxWarning, module=re.escape(_FILE))  # "\d" in a model's code


def score_program(problem: Problem, program: str, answer: str) -> dict[str, float | bool | str]:
    """Run `program`, made of `answer`, against its tests: accuracy 1 or 0, unparsed, and the sandbox's verdict."""
    verdict = run_tests(problem, program)
    unparsed = not verdict.passed and not (answer.strip() and _defines(program, problem.entry_point))
    return {"accuracy": float(verdict.passed), "unparsed": unparsed, "verdict": verdict.status}


def pass_at_1(problem: Problem, program: str) -> dict[str, float]:
    """The same for lm-eval, which wants numbers only."""
    return {"pass@1": float(run_tests(problem, program).passed)}


def whole_program(answer: str, entry_point: str) -> str:
    """The program in `answer`; the answer as it is where no part of it defines `entry_point`."""
    for part in _parts(answer):
        for program in (part, _unquoted(part)):
            if _defines(program, entry_point):
                return program
    return answer


def completed(prompt: str, answer: str, entry_point: str) -> str:
    """The program that `answer` makes of `prompt`, which ends in the middle of the function `entry_point`.

    A part that defines the function itself stands behind what the prompt has above it: imports and helpers.
    """
    above = re.split(rf"^(?:async )?def {re.escape(entry_point)}\b", prompt, maxsplit=1, flags=re.MULTILINE)[0]
    parts = _parts(answer)
    for part in parts:
        if _defines(part, entry_point):
            return above + part if _defines(above + part, entry_point) else part  # it may begin with __future__
    for part in parts:
        for body in _bodies(part):
            if _goes_on(prompt, body, entry_point):
                return prompt + body
    return prompt + answer


def _parts(answer: str) -> list[str]:
    """The answer itself if it has no borders, else what stands between them; nothing that is blank."""
    return [part for part in _BORDER.split(after_thought(answer)) if part.strip()]


def _unquoted(part: str) -> str:
    """`part` without quotes around the whole of it (MBPP's examples in some evaluations have them)."""
    text = part.strip()
    for quote in _QUOTES:
        if text.startswith(quote) and text.endswith(quote) and len(text) > 2 * len(quote):
            return text[len(quote) : -len(quote)] + "\n"
    return part


def _bodies(part: str) -> Iterator[str]:
    """`part`, then with what models lose or change at the beginning of a body put right: indentation and tabs."""
    for text in dict.fromkeys((part, part.expandtabs(4))):
        yield text
        yield "    " + text.lstrip()
        yield textwrap.indent(textwrap.dedent(text), "    ")


def _goes_on(prompt: str, body: str, name: str) -> bool:
    """Whether `body` is Python behind `prompt` and adds statements to the function `name`."""
    begun, whole = _function(prompt, name), _function(prompt + body, name)
    return whole is not None and (begun is None or len(whole.body) > len(begun.body))


def _function(program: str, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The first function called `name` at the top level of `program`."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return next((node for node in statements(program) if isinstance(node, kinds) and node.name == name), None)


def _defines(program: str, name: str) -> bool:
    """Whether `program` is Python that binds `name` at its top level."""
    return any(name in bound_names(node) for node in statements(program))


def statements(program: str) -> list[ast.stmt]:
    """The statements of `program`; none if it does not compile."""
    try:
        compile(program, _FILE, "exec", dont_inherit=True)  # sees what parsing does not: a return outside a function
        return ast.parse(program, _FILE).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: a null character
        return []


def bound_names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}
