"""Programs as the evaluations of Dream (its ``sanitize``) and Fast-dLLM read them out of an answer.

What stands between the last ```` ```python ```` of an answer and the next ```` ``` ```` (the whole answer where there
is none) goes behind the prompt, on a new line. Of that text the part is kept that is Python, and of that the imports
and the definitions that the function under test needs. Nothing is run.
"""

from __future__ import annotations

import ast
import re

from dlmbench.tasks.code import bound_names

_OPENS = "```python"
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_STARTS = re.compile(r"(?:def|async def|class|import|from|@|[A-Za-z_]\w*\s*=)")
_LINES, _TRIES = 2000, 50  # that are read, and places where code may begin: an answer in a loop has many more


def fenced(answer: str) -> str:
    """What stands in the first fenced block of `answer`; the answer itself where there is none."""
    found = _FENCE.search(answer)
    return found[1] if found else answer


def last_block(answer: str) -> str:
    """What stands between the last ```` ```python ```` and the next fence; the answer itself where there is none."""
    return answer.rpartition(_OPENS)[2].partition("```")[0] if _OPENS in answer else answer


def sanitised(prompt: str, answer: str, entry_point: str) -> str:
    """The program for `entry_point` in `prompt`, a new line and the last block of `answer`; "" where there is none."""
    block = last_block(answer)
    return needed(f"{prompt}\n{block}" if prompt else block, entry_point)


def needed(text: str, entry_point: str) -> str:
    """Imports of the Python in `text`, and the definitions that `entry_point` needs, in their order; "" without it."""
    nodes = _python(text, entry_point)
    if not nodes:
        return ""
    named: dict[str, list[ast.stmt]] = {}
    for node in nodes:
        for name in bound_names(node):
            named.setdefault(name, []).append(node)
    wanted, queue = set(), [entry_point]
    while queue:
        name = queue.pop()
        if name in wanted:
            continue
        wanted.add(name)
        queue += [used for node in named.get(name, ()) for used in _names(node) if used in named]
    imports = ast.Import | ast.ImportFrom
    return "\n\n".join(ast.unparse(n) for n in nodes if isinstance(n, imports) or bound_names(n) & wanted) + "\n"


def _names(node: ast.stmt) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def _python(text: str, entry_point: str) -> list[ast.stmt]:
    """The statements of the longest beginning of `text` that is Python and defines `entry_point`, prose above it left
    out where nothing else helps."""
    lines = text.split("\n")[:_LINES]
    starts = [0, *(number for number, line in enumerate(lines) if number and _STARTS.match(line))]
    for start in starts[:_TRIES]:
        nodes = _longest(lines[start:])
        if any(entry_point in bound_names(node) for node in nodes):
            return nodes
    return []


def _longest(lines: list[str]) -> list[ast.stmt]:
    """The statements of the longest beginning that is Python."""
    while lines:
        try:
            return ast.parse("\n".join(lines)).body
        except SyntaxError as error:  # what stands before the line that it names may be right
            lines = lines[: min(len(lines) - 1, error.lineno or 0)]
        except (ValueError, RecursionError, MemoryError):
            return []
    return []
