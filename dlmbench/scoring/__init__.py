"""Executing generated code in isolation, and pass@k.

from dlmbench.scoring import Problem, run_tests
problem = Problem.from_cases("double", "double", [((2,), 4), ((5,), 10)])
run_tests(problem, "def double(x):\\n    return 2 * x\\n").status      # "passed"
"""

from dlmbench.scoring.cache import VerdictCache
from dlmbench.scoring.passk import pass_at_k
from dlmbench.scoring.problem import Problem, Verdict
from dlmbench.scoring.sandbox import Sandbox, capabilities, run_many, run_tests, shared_sandbox

__all__ = [
    "Problem",
    "Sandbox",
    "Verdict",
    "VerdictCache",
    "capabilities",
    "pass_at_k",
    "run_many",
    "run_tests",
    "shared_sandbox",
]
