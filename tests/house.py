"""How tidy the house is, counted: `make house`, or python tests/house.py [ROOT]. Reads source, imports nothing of it.

Every figure has its rule beside it, and the limit that a change must keep. Exit code 1 where one is over its limit.
mypy's errors are counted where mypy is installed. A figure says where to look, not what is wrong: read the place first.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = {  # of a table of runs
    "accuracy", "nfe", "helpers", "cost", "tpf", "tokens", "flops", "query_tokens", "acceptance", "guards",
    "store_forwards", "tps_decode", "tps_end_to_end", "unparsed", "cut_off",
}  # fmt: skip
IDENTITY = {  # what tells one run from another
    "task", "split", "model", "weights", "method", "prompt_hash", "batch_size", "block_length", "cache", "store",
    "dtype", "seed", "device", "temperature", "top_k", "top_p", "gen_length", "num_fewshot", "setting", "parameters",
}  # fmt: skip
TIDY = ("request", "runs", "analysis", "report", "decoders")  # rooms without a single error of mypy's
POINTERS = re.compile(
    r"\b(method )?cards? of [A-Z`t]|\bcards?,? (section|trap|finding)s?\b|\(cards?[ ,;)]|; cards?\)"
    r"|\bthe (method )?cards?('s)?\b|\bCard: `"
)


@dataclass
class Figure:
    """One line of the table: what was counted, the most that is allowed (None: no limit) and where it was found."""

    name: str
    rule: str
    limit: int | None
    places: list[str] = field(default_factory=list)
    number: int | None = None  # where it is not the number of places; stays None if it could not be counted

    @property
    def count(self) -> int | None:
        return len(self.places) if self.places or self.number is None else self.number

    @property
    def over(self) -> bool:
        return self.limit is not None and self.count is not None and self.count > self.limit


@dataclass(frozen=True)
class Module:
    """A source file: dotted name, text and tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split(".")[1] if self.name.count(".") > 1 else ""


def modules(root: Path, folder: str) -> list[Module]:
    """Every module below `folder`, with its dotted name."""
    found = []
    for path in sorted((root / folder).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        text = path.read_text(encoding="utf-8")
        found.append(Module(".".join(parts).removesuffix(".__init__"), path.relative_to(root), text, ast.parse(text)))
    return found


# --- listings ---------------------------------------------------------------------------------------------------------


def listings(tree: ast.AST) -> Iterator[tuple[ast.AST, list[str]]]:
    """(node, names) of every place that lists names: displays, parameters, keywords of a call, fields of a class."""
    for node in ast.walk(tree):
        match node:
            case ast.Tuple() | ast.List() | ast.Set():
                yield node, [_word(item) for item in node.elts]
            case ast.Dict():
                yield node, [_word(key) for key in node.keys if key is not None]
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node, [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)]
            case ast.Call():
                yield node, [keyword.arg or "" for keyword in node.keywords]
            case ast.ClassDef():
                yield node, _fields(node)


def _word(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _fields(node: ast.ClassDef) -> list[str]:
    targets = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
    return [target.id for target in targets if isinstance(target, ast.Name)]


def run_options(package: list[Module]) -> Figure:
    figure = Figure("run options", "modules with one listing of 8 or more fields of RunSpec", 1)
    classes = (node for module in package for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))
    options = {name for node in classes if node.name == "RunSpec" for name in _fields(node)}
    figure.places = [module.name for module in package if _lists(module, options, 8)]
    return figure


def row_columns(package: list[Module]) -> Figure:
    """A typed record is left out, its fields and the call that fills it: they are data under their own names, which the
    type checker holds together, and say nothing of what tables show."""
    rule = f"modules with one listing of 4 or more of {len(COLUMNS)} columns of a table, typed records aside"
    figure = Figure("row columns", rule, 1)
    nodes = [node for module in package for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    records = {node.name for node in nodes if _fields(node)}
    figure.places = [module.name for module in package if _lists(module, COLUMNS, 4, records)]
    return figure


def _lists(module: Module, names: set[str], least: int, records: Collection[str] = ()) -> bool:
    """Does one listing have so many of these names? `records`: classes whose fields and whose calls are none."""

    def counts(node: ast.AST) -> bool:
        called = _word(node.func) if isinstance(node, ast.Call) else getattr(node, "name", "")
        return not (isinstance(node, ast.Call | ast.ClassDef) and called in records)

    return any(len(names & set(found)) >= least for node, found in listings(module.tree) if counts(node))


def sameness(package: list[Module]) -> Figure:
    rule = (
        "different listings of 2 or more identity columns alone where runs are made and compared (request, runs, "
        "analysis; in report and cli they choose what a table or a title shows), and functions named same or identity"
    )
    figure = Figure("notions of same run", rule, 3)
    for module in package:
        if module.room not in ("request", "runs", "analysis", "report", "cli"):
            continue
        deciding = module.room in ("request", "runs", "analysis")
        for line, found in _collections(module.tree) if deciding else ():
            place = ", ".join(sorted(found))
            if len(found) >= 2 and found <= IDENTITY and not any(place == p.partition(" | ")[0] for p in figure.places):
                figure.places.append(f"{place} | {module.name}:{line}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef) and re.search(r"(^|_)(same|identity)(_|$)", node.name):
                figure.places.append(f"{node.name} | {module.name}:{node.lineno}")
    return figure


def _collections(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """(line, strings) of tuples, lists and sets of strings, and of dictionaries that are keyed by them."""
    for node in ast.walk(tree):
        items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else getattr(node, "keys", None)
        if not isinstance(items, list) or not items:
            continue
        words = [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        if len(words) == len(items):
            yield node.lineno, set(words)


# --- types, imports, names --------------------------------------------------------------------------------------------


def loose_dicts(package: list[Module]) -> Figure:
    figure = Figure("dict[str, Any]", "places where the type is written", 25)
    for module, node in _nodes(package, ast.Subscript):
        if ast.unparse(node) == "dict[str, Any]":
            figure.places.append(f"{module.name}:{node.lineno}")
    return figure


def anything(package: list[Module]) -> Figure:
    figure = Figure("Any", "uses of the name, imports aside", 150)
    figure.places = [f"{module.name}:{node.lineno}" for module, node in _nodes(package, ast.Name) if node.id == "Any"]
    return figure


def late_imports(package: list[Module]) -> Figure:
    figure = Figure("imports in functions", "statements inside functions that import own modules", 45)
    for module, function in _nodes(package, ast.FunctionDef):
        for node in ast.walk(function):
            place = f"{module.name}:{getattr(node, 'lineno', 0)}"
            if place not in figure.places and any(name.startswith(package[0].name) for name in _imported(node)):
                figure.places.append(place)
    return figure


def cycles(package: list[Module]) -> Figure:
    figure = Figure("import cycles", "groups of modules that import each other at module level, TYPE_CHECKING aside", 0)
    figure.places = _cycles(package, lambda module: _executed(module.tree.body))
    return figure


def hidden_cycles(package: list[Module]) -> Figure:
    figure = Figure("hidden cycles", "the same, with imports inside functions and under TYPE_CHECKING", None)
    figure.places = _cycles(package, lambda module: ast.walk(module.tree))
    return figure


def _cycles(package: list[Module], statements: Callable[[Module], Iterable[ast.AST]]) -> list[str]:
    names = {module.name for module in package}
    graph = {module.name: set(_targets(module, statements(module), names)) for module in package}
    return [" <-> ".join(sorted(group)) for group in _components(graph) if len(group) > 1]


def _targets(module: Module, statements: Iterable[ast.AST], names: set[str]) -> Iterator[str]:
    """Own modules that these statements of `module` import."""
    for node in statements:
        for name in _imported(node):
            found = name if name in names else name.rpartition(".")[0]
            if found in names and found != module.name:
                yield found


def _executed(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module that run at import: its own, those under if, try and with, and those of class bodies."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _executed(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _executed(getattr(node, part, []))


def _imported(node: ast.AST) -> list[str]:
    """Dotted names that a statement imports; of ``from a import b`` it is a.b, which may be a module or a name in a."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components: two nodes are in one when each reaches the other."""
    reach = {name: _reachable(graph, name) for name in graph}
    groups: dict[str, set[str]] = {}
    for name in graph:
        groups.setdefault(min({name, *(m for m in reach[name] if name in reach[m])}), set()).add(name)
    return list(groups.values())


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def double_names(package: list[Module]) -> Figure:
    figure = Figure("class names twice", "public class names that are defined in two or more modules", 0)
    where = defaultdict(list)
    for module in package:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(module.name)
    figure.places = [f"{name}: {', '.join(places)}" for name, places in sorted(where.items()) if len(places) > 1]
    return figure


def _nodes(package: list[Module], kind: type) -> Iterator[tuple[Module, ast.AST]]:
    for module in package:
        yield from ((module, node) for node in ast.walk(module.tree) if isinstance(node, kind))


# --- words, lines, mypy -----------------------------------------------------------------------------------------------


def pointers(files: list[Module]) -> Figure:
    figure = Figure("pointers to cards", "docstrings and comments that send the reader to a method's card", 0)
    for module in files:
        for line, text in _prose(module):
            if POINTERS.search(text):
                figure.places.append(f"{module.path}:{line}")
    return figure


def _prose(module: Module) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring and comment."""
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), " ".join(text.split())


def lines(package: list[Module]) -> Figure:
    return Figure("lines of the package", "of its Python files", None, number=sum(m.text.count("\n") for m in package))


def mypy(root: Path, folder: str) -> list[Figure]:
    """Errors in the rooms that have none, and elsewhere. Not counted where mypy is not installed."""
    tidy = Figure(f"mypy, {', '.join(TIDY)}", "errors", 0)
    other = Figure("mypy elsewhere", "errors", 50)
    if importlib.util.find_spec("mypy") is None:
        return []
    command = [sys.executable, "-m", "mypy", "--no-error-summary", folder]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True)
    found = Counter(path.split("/")[1] for path in re.findall(r"^(\S+\.py):\d+: error", answer.stdout, re.MULTILINE))
    tidy.number = sum(found[room] for room in TIDY)
    other.number = sum(found.values()) - tidy.number
    return [tidy, other]


def count(root: Path, folder: str = "dlmbench") -> list[Figure]:
    package = modules(root, folder)
    prose = package + [m for m in modules(root, "tests") if m.path.name != Path(__file__).name]
    figures = [rule(package) for rule in (run_options, row_columns, sameness, loose_dicts, anything, late_imports)]
    figures += [rule(package) for rule in (cycles, hidden_cycles, double_names)]
    return [*figures, *mypy(root, folder), pointers(prose), lines(package)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("-v", "--verbose", action="store_true", help="say where")
    given = parser.parse_args()
    figures = count(given.root)
    for one in figures:
        limit = "" if one.limit is None else f"of {one.limit}"
        print(f"{one.count!s:>6} {limit:<7} {'OVER' if one.over else '':<5} {one.name}: {one.rule}")
        for place in one.places if given.verbose else ():
            print(f"{'':20} {place}")
    return int(any(one.over for one in figures))


if __name__ == "__main__":
    sys.exit(main())
