"""Run generated programs against their problems, away from this process.

What protects the harness and the score:
- The program runs in a fresh isolated interpreter of its own, as a user without account (when started as root), inside
  whatever the kernel grants of namespaces, Landlock, a call filter and resource limits (`processes.isolation`). All it
  started is ended with it.
- The tests and expected values live in another process, the judge, which calls the program through a pipe and
  takes plain values only (`processes.judge`, `processes.wire`). There is no verdict, test or token in the program's
  process to read or forge: patched built-ins, dishonest `__eq__`, frames and open descriptors gain nothing.
- The verdict carries a random token, new for each job, that only the harness, the keeper and the judge know.

What it does not do: bound the memory of several processes of a program together (each one is bounded), hide installed
packages from a program where the kernel grants neither mount namespaces nor Landlock, or run on Windows. Programs have
the standard library only. Python's string hashes are random per process, so a program that depends on the order of a
set of strings may differ from run to run.

`capabilities()` says what this machine grants.
"""

import atexit
import os
import queue
import secrets
import selectors
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dlmbench.errors import RequestError, RunError
from dlmbench.scoring.cache import VerdictCache, verdict_key
from dlmbench.scoring.problem import Problem, Verdict
from dlmbench.scoring.processes import wire

TIME_FLOOR = 1.0  # CPU seconds that every program may use
TIME_FACTOR = 10.0  # times the canonical solution's own by the clock, its interpreter start included
CANONICAL_LIMIT = 60.0  # CPU seconds for the canonical solution itself
MEMORY = 512 << 20  # bytes of address space, each process
START_SECONDS = 60.0  # a server that has not reported by then is given up
ANSWER_MARGIN = 30.0  # beyond the keeper's own wall clock limit; the keeper always answers before

_SUPERVISOR = Path(__file__).parent / "processes" / "supervisor.py"


class _Server:
    """One supervisor process: takes one job at a time. Not safe for several threads at once."""

    def __init__(self, namespaces: bool):
        interpreter = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
        mode = "namespaces" if namespaces else "plain"
        process = subprocess.Popen(
            [interpreter, "-I", "-S", "-B", str(_SUPERVISOR), mode, tempfile.gettempdir()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        assert process.stdin and process.stdout  # both are pipes
        self._process, self._jobs, self._answers = process, process.stdin, process.stdout
        try:
            hello = wire.decode(self._receive(START_SECONDS))
        except (wire.Closed, wire.WireError, TimeoutError) as error:
            self.close()
            raise RunError(
                "the sandbox server did not start, so no generated code can be scored: "
                "run `dlmbench doctor` to see what this machine grants."
            ) from error
        self.report = hello["report"]

    def _receive(self, seconds: float) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise TimeoutError
        return wire.receive(self._answers.fileno())

    def run(self, job: dict) -> dict:
        """The server's answer to `job`.

        Raises:
            RunError: the server failed; it must be closed.
        """
        job = {**job, "token": secrets.token_hex(16)}
        try:
            wire.send(self._jobs.fileno(), wire.encode(job, limit=1 << 25))
            answer = wire.decode(self._receive(4 * job["limit"] + ANSWER_MARGIN))
        except (wire.Closed, TimeoutError) as error:
            raise RunError("the sandbox server stopped answering; the program was not scored.") from error
        if not secrets.compare_digest(answer["token"], job["token"]):
            raise RunError("the sandbox answered with a wrong token; the program was not scored.")
        if answer["status"] == "broken":
            raise RunError(
                f"the sandbox is broken: {answer['detail']}. Run `dlmbench doctor` to see what this machine grants."
            )
        return answer

    def close(self) -> None:
        """End the server. A job in flight ends by its own limit at the latest."""
        self._jobs.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()


def _job(problem: Problem, program: str, limit: float, memory: int) -> dict:
    """What a server needs to know."""
    tests = {
        name: getattr(problem, name) for name in ("form", "entry_point", "cases", "prompt", "check", "asserts", "setup")
    }
    return {**tests, "program": program, "limit": float(limit), "memory": memory}


_RIGHT = "def f(x):\n    return x + 1\n"
_PROBE = Problem.from_cases("probe", "f", [((1,), 2)], canonical=_RIGHT)


class Sandbox:
    """Judges programs, one server per worker, started when first needed.

    Args:
        workers: programs run at the same time; None: one for each CPU this process may use.
        cache: a `VerdictCache`; None: one in memory.
        memory: bytes of address space for each process of a program.
        namespaces: False does without namespaces even where the kernel grants them (to test that case).
    """

    def __init__(
        self,
        workers: int | None = None,
        cache: VerdictCache | None = None,
        *,
        memory: int = MEMORY,
        namespaces: bool = True,
    ):
        if not hasattr(os, "fork"):
            raise RunError(
                "generated code cannot be scored on this system: the sandbox needs fork. Use Linux, macOS or WSL."
            )
        if workers is None:
            workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if workers < 1:
            raise RequestError(f"the sandbox cannot run with {workers} workers: give at least 1.")
        self.workers = workers
        self.cache = VerdictCache() if cache is None else cache
        self._memory = memory
        self._namespaces = namespaces
        self._idle: queue.LifoQueue[_Server] = queue.LifoQueue()
        self._slots = threading.Semaphore(workers)
        self._limits: dict[tuple, float] = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End all idle servers; the sandbox may be used again afterwards."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    @property
    def report(self) -> dict[str, tuple[bool, str]]:
        """What isolation the kernel grants here: name -> (holds, remark)."""
        with self._slots:
            server = self._take()
            self._idle.put(server)
            return dict(server.report)

    def _take(self) -> _Server:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._start()

    def _start(self) -> _Server:
        """A server that has judged a right program rightly: else every program would crash and look wrong.

        Where programs do not start inside namespaces (a library lies where the small tree has none), it does without.
        """
        why = ""
        for namespaces in (True, False) if self._namespaces else (False,):
            server = None
            try:
                server = _Server(namespaces)
                answer = server.run(_job(_PROBE, _RIGHT, CANONICAL_LIMIT, self._memory))
            except RunError as error:
                answer = {"status": "broken", "detail": str(error)}
            if server and answer["status"] == "passed":
                if why:
                    server.report["mount namespace"] = (False, f"not available: programs fail in it ({why})")
                return server
            why = answer["detail"]
            if server:
                server.close()
        raise RunError(
            f"the sandbox cannot run even a trivial program ({why}), so no generated code can be scored: "
            "run `dlmbench doctor` to see what this machine grants."
        )

    def _execute(self, problem: Problem, program: str, limit: float, memory: int) -> Verdict:
        with self._slots:
            server = self._take()
            try:
                answer = server.run(_job(problem, program, limit, memory))
            except BaseException:
                server.close()
                raise
            self._idle.put(server)
        final = answer["status"] != "overdue"
        return Verdict(answer["status"] if final else "timeout", answer["detail"], round(answer["seconds"], 4), final)

    def _scaled_limit(self, problem: Problem) -> float:
        """CPU seconds for a program, from the canonical solution's time here; measured once, if needed at all."""
        if problem.canonical is None:
            return TIME_FLOOR
        known = (problem.form, problem.key, problem.canonical)
        if known not in self._limits:
            verdict = self._execute(problem, problem.canonical, CANONICAL_LIMIT, self._memory)
            self._limits[known] = max(TIME_FLOOR, TIME_FACTOR * verdict.seconds) if verdict.passed else TIME_FLOOR
        return self._limits[known]

    def run(self, problem: Problem, completion: str, time_limit: float | None = None) -> Verdict:
        """Judge one program.

        Args:
            completion: the whole program text that defines `problem.entry_point`. For HumanEval this is the prompt and
                the model's continuation, cut where the caller thinks fit; nothing is put before it here.
            time_limit: CPU seconds; None scales with the canonical solution: at first the floor, which is right for
                nearly all problems, and only a program that exceeds it waits for the canonical solution's time.

        Raises:
            RunError: the sandbox itself failed.
        """
        key = verdict_key(problem, completion, (time_limit, self._memory))
        verdict = self.cache.get(key)
        if verdict is None:
            verdict = self._execute(problem, completion, time_limit or TIME_FLOOR, self._memory)
            if verdict.status == "timeout" and time_limit is None:
                limit = self._scaled_limit(problem)
                if limit > TIME_FLOOR:
                    verdict = self._execute(problem, completion, limit, self._memory)
            self.cache.put(key, verdict)
        return verdict

    def run_many(
        self,
        jobs: Iterable[tuple[Problem, str]],
        time_limit: float | None = None,
        on_done: Callable[[int, Verdict], None] | None = None,
    ) -> list[Verdict]:
        """Judge many programs at once; verdicts in the order of `jobs`.

        Args:
            jobs: pairs (problem, completion).
            on_done: called with (index, verdict) as each one ends, from worker threads, for progress bars.
        """

        def one(numbered):
            index, (problem, completion) = numbered
            verdict = self.run(problem, completion, time_limit)
            if on_done:
                on_done(index, verdict)
            return verdict

        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(one, enumerate(jobs)))


_shared: Sandbox | None = None
_shared_lock = threading.Lock()


def shared_sandbox() -> Sandbox:
    """The sandbox that the module's functions use: created on first use, closed when Python ends."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Sandbox()
            atexit.register(_shared.close)
        return _shared


def run_tests(problem: Problem, completion: str, time_limit: float | None = None) -> Verdict:
    """Judge one program in the shared sandbox; see `Sandbox.run`."""
    return shared_sandbox().run(problem, completion, time_limit)


def run_many(
    jobs: Iterable[tuple[Problem, str]], workers: int | None = None, cache: VerdictCache | None = None
) -> list[Verdict]:
    """Judge many programs; verdicts in order. With `workers` or `cache`, in a sandbox of its own for this call."""
    if workers is None and cache is None:
        return shared_sandbox().run_many(jobs)
    with Sandbox(workers, cache) as sandbox:
        return sandbox.run_many(jobs)


def capabilities() -> dict[str, tuple[bool, str]]:
    """What `dlmbench doctor` prints about the sandbox: name -> (holds, remark).

    The first entry says whether code can be scored at all, the others which walls stand.
    """
    try:
        with Sandbox(1) as sandbox:
            verdict = sandbox.run(_PROBE, _RIGHT)
            speed = f"a program is judged in {1000 * verdict.seconds:.0f} ms"
            return {"sandbox": (verdict.passed, speed if verdict.passed else verdict.detail), **sandbox.report}
    except (RunError, OSError) as error:
        return {"sandbox": (False, str(error))}
