"""The corpus of hostile programs: none passes, none leaves a process or a file, with namespaces and without.

    pytest tests/e2e/test_hostile.py

The test makes itself a child subreaper, so that a process that outlived its sandbox would become its child and be seen.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from dlmbench.scoring import Problem, Sandbox

CORPUS = sorted((Path(__file__).parent.parent / "hostile").glob("*.py"))
TRACE = "dlmbench-hostile-was-here"
LIMIT = 0.3  # CPU seconds
SANDBOX_USERS = range(61184, 65520)

# Large answers, so that none is found by chance in a program's memory.
SOLUTION = "def weigh(word):\n    return 7368787 * sum(at * (ord(letter) - 96) for at, letter in enumerate(word, 1))\n"
ANSWERS = {"cab": 7368787 * 11, "zebra": 7368787 * 119, "quixotic": 3419117168}
ASSERTS = tuple(f"assert weigh({word!r}) == {weight}, 'SENTINEL'" for word, weight in ANSWERS.items())
CHECK = "def check(weigh):\n    " + "\n    ".join(ASSERTS)
PROBLEMS = {
    "cases": Problem.from_cases("weigh", "weigh", [((word,), weight) for word, weight in ANSWERS.items()]),
    "check": Problem("weigh", "weigh", prompt="def weigh(word):\n    'SENTINEL'\n", check=CHECK),
    "asserts": Problem("weigh", "weigh", asserts=ASSERTS),
}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other systems only bound what a program uses")


def children():
    """Living children of this process: pid -> command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                found[int(path.name)] = (path / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
    return found


def strays(names):
    """Of these names in the temporary folder, those that a sandbox left: its own folder, or a file of its users."""
    found = set()
    for name in names:
        path = Path(tempfile.gettempdir(), name)
        server = name.split("-")[2] if name.startswith("dlmbench-sandbox-") else None
        try:
            if path.lstat().st_uid in SANDBOX_USERS or (server and not Path("/proc", server).exists()):
                found.add(name)
        except OSError:
            continue
    return found


@pytest.fixture
def world(monkeypatch):
    """A folder that everyone may write, with one file; a port that counts connections; a secret in the environment."""
    monkeypatch.setenv("DLMBENCH_SECRET", "hidden")
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    outside = Path(tempfile.mkdtemp(prefix="dlmbench-outside-"))
    outside.chmod(0o777)
    precious = outside / "precious"
    precious.write_text("kept")
    precious.chmod(0o666)
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def accept():
        try:
            while True:
                connections.append(listener.accept())
        except OSError:
            pass

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield outside, listener.getsockname()[1], connections
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    shutil.rmtree(outside)


def load(path, outside, port):
    source = path.read_text().replace("@OUTSIDE@", str(outside))
    return source.replace("@HARNESS@", str(os.getpid())).replace("@PORT@", str(port))


def right_verdicts(source):
    return {word.strip() for word in source.splitlines()[0].removeprefix("# verdict:").split(",")}


@linux_only
@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "plain"])
def test_no_hostile_program_passes_or_leaves_anything(world, namespaces):
    outside, port, connections = world
    assert len(CORPUS) >= 14
    before = children()
    temporary = set(os.listdir(tempfile.gettempdir()))
    sources = {path.stem: load(path, outside, port) for path in CORPUS}
    with Sandbox(4, namespaces=namespaces) as sandbox:
        for problem in PROBLEMS.values():
            assert sandbox.run(problem, SOLUTION).passed
        verdicts = sandbox.run_many([(PROBLEMS["cases"], source) for source in sources.values()], LIMIT)
        for name, source, verdict in zip(sources, sources.values(), verdicts, strict=True):
            print(f"{name:22} {verdict.status:8} {verdict.seconds:6.2f} s  {verdict.detail[:90]}")
            assert verdict.status in right_verdicts(source), f"{name}: {verdict}"
            assert "LEAK" not in verdict.detail, f"{name}: {verdict}"
        assert sandbox.run(PROBLEMS["cases"], SOLUTION + "# still works").passed
    assert set(children()) <= set(before)
    assert os.listdir(outside) == ["precious"]
    assert (outside / "precious").read_text() == "kept"
    assert not connections
    assert not strays(set(os.listdir(tempfile.gettempdir())) - temporary)
    library = os.path.dirname(os.__file__)
    for place in (tempfile.gettempdir(), "/", "/etc", "/usr", "/var/tmp", "/dev/shm", library, sys.prefix, os.getcwd()):
        assert not os.path.lexists(os.path.join(place, TRACE))


@linux_only
@pytest.mark.parametrize("form", ["check", "asserts"])
def test_none_passes_tests_that_are_code(world, form):
    """The programs that end by themselves, against a `check` function and against assert statements."""
    outside, port, _ = world
    sources = {path.stem: load(path, outside, port) for path in CORPUS}
    quick = {name: source for name, source in sources.items() if "timeout" not in right_verdicts(source)}
    assert len(quick) > 20
    with Sandbox(4) as sandbox:
        verdicts = sandbox.run_many([(PROBLEMS[form], source) for source in quick.values()], LIMIT)
        for name, verdict in zip(quick, verdicts, strict=True):
            assert verdict.status in ("failed", "crashed", "memory", "timeout"), f"{name}: {verdict}"
            assert "LEAK" not in verdict.detail, f"{name}: {verdict}"


@linux_only
@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "plain"])
def test_nothing_outlives_a_killed_harness(world, namespaces):
    harness = f"""
from dlmbench.scoring import Problem, Sandbox
print("ready", flush=True)
program = "import os, time\\nos.fork()\\nos.setsid()\\ntime.sleep(600)"
Sandbox(1, namespaces={namespaces}).run(Problem.from_cases("p", "f", [((), 1)]), program, 0.2)
"""
    before, temporary = children(), set(os.listdir(tempfile.gettempdir()))
    process = subprocess.Popen([sys.executable, "-c", harness], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    time.sleep(1)
    process.kill()
    process.wait()
    process.stdout.close()
    assert set(children()) - set(before)  # the server, now our child, still waits for its job
    until = time.monotonic() + 20
    while set(children()) - set(before) and time.monotonic() < until:
        for pid in set(children()) - set(before):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.1)
    assert not set(children()) - set(before)
    assert not strays(set(os.listdir(tempfile.gettempdir())) - temporary)
