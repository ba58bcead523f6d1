"""The process that knows the answers: it calls the program through a pipe and compares what comes back.

It never runs a line of generated code. The benchmark's own code (helpers of the prompt, `check`, assert statements)
runs here and sees a `Remote` in place of the function under test. Results arrive as plain built-in values (see
`wire`), so comparison, truth and arithmetic are Python's own.

Left out, on purpose: changes that the program makes to its arguments are not copied back, because a test that compares
a result with its argument (`candidate(x) == sorted(x)`) would let a program empty both.
"""

import ast
import builtins
import importlib
import linecache
import traceback

from wire import Closed, WireError, decode, encode, receive, send

# Modules of pure functions and types: tests may read them where the program imports them, as if both were one file.
READABLE = (
    "cmath", "collections", "datetime", "decimal", "fractions", "itertools", "math", "operator", "re", "statistics",
    "string",
)  # fmt: skip


class Gone(BaseException):
    """The program's process ended before it answered."""


class ProgramError(Exception):
    """The program raised something that may not be raised here by its own name."""


# Exceptions that end a loop or an interpreter: raised here they could make a test finish early without failing.
_NEVER_RAISED = {"StopIteration", "StopAsyncIteration", "AssertionError"}


def _exception(name, message):
    """The built-in `Exception` of that name, so that tests which expect a ValueError see one; else a ProgramError."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and name not in _NEVER_RAISED:
        try:
            error = kind(message)
        except Exception:  # UnicodeDecodeError and the like want five arguments
            error = ProgramError(f"{name}: {message}")
    else:
        error = ProgramError(f"{name}: {message}")
    error.raised_as = name  # type: ignore[attr-defined]  # read by `explain`, on exceptions of any class
    return error


class Remote:
    """Something in the program's process: a global by its name (str) or a returned object by its number (int).

    It can be called and can be an argument. It has no truth and equals nothing, so that no test passes by it.
    """

    def __init__(self, line, reference):
        self._line = line
        self._reference = reference

    def __call__(self, *args, **kwargs):
        return self._line.call(self, args, kwargs)

    def _refuse(self, *_):
        raise TypeError("the program returned an object that is not a plain value")

    __bool__ = __len__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _refuse


class ProgramPipes:
    """The two pipes to the program's process."""

    def __init__(self, read_fd, write_fd):
        self._read_fd = read_fd
        self._write_fd = write_fd
        self.gone = False
        self.out_of_memory = False

    def load(self, program):
        self._ask(encode(program))

    def call(self, target, args, kwargs):
        return self._ask(encode((target, args, kwargs), self._reference))

    @staticmethod
    def _reference(value):
        if not isinstance(value, Remote):
            raise WireError(f"an argument of type {type(value).__name__} cannot be sent to the program")
        return value._reference

    def _ask(self, frame):
        try:
            send(self._write_fd, frame)
            answer = decode(receive(self._read_fd), lambda reference: Remote(self, reference))
        except Closed:
            self.gone = True
            raise Gone from None
        match answer:
            case ("value", value):
                return value
            case ("raise", str(name), str(message)):
                self.out_of_memory = name == "MemoryError"
                raise _exception(name, message)
        raise WireError("the program sent something that is not an answer")


def same(left, right):
    """Equal with equal types all the way down: 1, 1.0 and True differ, [1] and (1,) differ, nan equals nan."""
    if type(left) is not type(right):
        return False
    if type(left) is float:
        return left == right or (left != left and right != right)
    if type(left) in (list, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if type(left) is dict:
        keys = {(type(key), key) for key in right}
        return len(left) == len(right) and all((type(key), key) in keys and same(left[key], right[key]) for key in left)
    if type(left) in (set, frozenset):
        return {(type(item), item) for item in left} == {(type(item), item) for item in right}
    return left == right


def short(value, width=60):
    if isinstance(value, Remote):
        return "an object that is not a plain value"
    try:
        text = repr(value)
    except Exception:  # an int of more than 4300 digits has no repr
        text = f"a long {type(value).__name__}"
    return text if len(text) <= width else text[: width - 3] + "..."


def check_cases(line, job):
    entry = Remote(line, job["entry_point"])
    for args, expected in job["cases"]:
        got = entry(*args)
        shown = f"{job['entry_point']}({', '.join(short(arg) for arg in args)})"
        assert same(got, expected), f"{shown} is {short(got)}, expected {short(expected)}"


def check_function(line, job):
    """HumanEval's form. The prompt is run for its helpers (`poly`); its unfinished entry point is replaced."""
    names: dict = {"__name__": "tests"}
    _execute(job["prompt"], names)
    entry = Remote(line, job["entry_point"])
    names[job["entry_point"]] = entry
    _execute(job["check"], names)
    names["check"](entry)


def check_asserts(line, job):
    """MBPP's form. A name that neither Python nor the setup defines belongs to the program: `Pair`, `root`."""
    names: dict = {"__name__": "tests"}
    source = "\n".join((job["setup"], *job["asserts"]))
    modules = _imported(job["program"])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and not hasattr(builtins, node.id):
            module = modules.get(node.id)
            names[node.id] = importlib.import_module(module) if module else Remote(line, node.id)
    names[job["entry_point"]] = Remote(line, job["entry_point"])  # it may bear the name of a built-in, such as sum
    _execute(job["setup"], names)
    for statement in job["asserts"]:
        _execute(statement, names)


def _imported(program):
    """Names under which a program imports modules that tests may read as well: name -> module."""
    found: dict[str, str] = {}
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return found  # running it fails as well
    for node in body:
        for alias in node.names if isinstance(node, ast.Import) else ():
            if alias.name in READABLE:
                found[alias.asname or alias.name] = alias.name
    return found


def _execute(source, names):
    linecache.cache["<tests>"] = (len(source), None, source.splitlines(True), "<tests>")
    exec(compile(source, "<tests>", "exec"), names)


CHECKS = {"cases": check_cases, "check": check_function, "asserts": check_asserts}


def run_checks(read_fd, write_fd, job):
    """`(status, detail)`: passed, failed, memory, or gone (the process ended: the supervisor knows how)."""
    line = ProgramPipes(read_fd, write_fd)
    try:
        line.load(job["program"])
        CHECKS[job["form"]](line, job)
    except Gone:
        pass
    except BaseException as error:
        if not line.gone:
            return ("memory" if line.out_of_memory else "failed"), explain(error)
    # A test may have caught Gone or a MemoryError: an unanswered call is never a pass.
    return ("gone", "") if line.gone else ("passed", "")


def explain(error):
    """One line: what was raised and, for a bare assert, the line of the test that failed."""
    name = getattr(error, "raised_as", type(error).__name__)
    text = str(error) if isinstance(error, (ProgramError, WireError)) else f"{name}: {error}".rstrip(": ")
    if isinstance(error, AssertionError):
        places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<tests>"]
        text = str(error) or (places[-1].line if places else "") or "an assertion failed"
    return " ".join(text.split())[:300]
