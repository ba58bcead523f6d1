"""nano-code: a one-line description and a signature, to be completed by a Python function of one to five lines.

    Add 3 to n, then multiply by 4.
    def solve(n):
        return (n + 3) * 4

The model reads "description newline signature" and writes the target, which starts with a newline, so that the program
is signature + target. The families stand in `families.py`. Every item carries tests that are computed by running the
canonical program; their inputs are chosen so that near misses fail: each constant off by one, each operator, comparison
and method exchanged, a step left out, another program of the same kind. Left out: loops without a bound, imports,
classes, input and output.

Only programs of this module are executed here. What a model writes belongs into the sandbox.
"""

import ast
import copy
import json
import random
import warnings
from collections.abc import Iterator
from functools import cache
from typing import TypeVar

from dlmbench.tasks.nano.families import FAMILIES, PARAMETERS, ProgramFamily
from dlmbench.tasks.nano.separation import make_key

Node = TypeVar("Node", bound=ast.AST)

ENTRY_POINTS = ("f", "g", "solve", "run")
MIN_TESTS, MAX_TESTS = 4, 8
CANDIDATES = 160  # inputs among which the tests are chosen
INDENT = "\n    "


def generate(rng: random.Random) -> dict:
    """Draw one item without tests: fields prompt, target, entry_point, family and key.

    Args:
        rng: source of all choices; the same state gives the same item.
    """
    family = rng.choice(FAMILIES)
    return make_item(rng, family, tuple(rng.choice(values) for values in family.slots.values()))


def make_item(rng: random.Random, family: ProgramFamily, values: tuple) -> dict:
    """Write a given program (family and slot values) with a drawn phrasing and drawn names.

    Returns:
        prompt ("description newline signature"), target (starts with a newline), entry_point, family, key.
    """
    names = rng.choice(PARAMETERS[family.kind])
    entry_point = rng.choice(ENTRY_POINTS)
    fields = _fields(family, values, names)
    description = rng.choice(family.descriptions).format(**fields)
    return {
        "prompt": f"{description}\ndef {entry_point}({', '.join(names)}):",
        "target": INDENT + family.body.format(**fields).replace("\n", INDENT),
        "entry_point": entry_point,
        "family": family.name,
        "key": program_key(family, values),
    }


def make_tests(item: dict, seed: int = 0) -> list[list]:
    """Return [[arguments, expected], ...] for an item, enough of them to fail every near miss that can be failed.

    Args:
        item: as `make_item` returns it.
        seed: makes the candidate inputs.
    """
    source = program(item, item["target"])
    inputs = _candidate_inputs(item, seed)
    expected = _outputs(source, item["entry_point"], inputs)
    usable = [i for i, value in enumerate(expected) if value is not _FAILED]
    undetected = []  # for each near miss, the inputs that would give it away
    for mutant in near_misses(item, seed):
        results = _outputs(mutant, item["entry_point"], inputs)
        undetected.append({i for i in usable if not same(results[i], expected[i])})
    undetected = [revealing for revealing in undetected if revealing]
    chosen: list[int] = []
    while undetected and len(chosen) < MAX_TESTS:
        best = max(usable, key=lambda i: (sum(i in revealing for revealing in undetected), -i))
        chosen.append(best)
        undetected = [revealing for revealing in undetected if best not in revealing]
    chosen += [i for i in usable if i not in chosen][: max(0, MIN_TESTS - len(chosen))]
    return [[list(inputs[i]), expected[i]] for i in chosen]


def program(item: dict, completion: str) -> str:
    """Return the Python source that a completion of an item stands for: its signature, then the completion."""
    return item["prompt"].rpartition("\n")[2] + completion


def same(result: object, expected: object) -> bool:
    """Tell whether two results are equal and of the same type, also inside lists."""
    return repr(result) == repr(expected)


# --- names of programs -----------------------------------------------------------------------------------------------


def all_programs(family: ProgramFamily) -> Iterator[tuple]:
    """Yield every combination of slot values of a family, in a fixed order."""
    combinations: list[tuple] = [()]
    for values in family.slots.values():
        combinations = [(*before, value) for before in combinations for value in values]
    yield from combinations


def program_key(family: ProgramFamily, values: tuple) -> str:
    """Return the key of a program; phrasing and names do not matter (see `separation`)."""
    return _program_key(family.name, values)


def normalised(source: str) -> str:
    """Return the source of one function with its own names replaced by v0, v1, ... in the order they are bound."""
    tree = ast.parse(source)
    renamed = {_function(tree).name: "v0"}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            renamed.setdefault(node.arg, f"v{len(renamed)}")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            renamed.setdefault(node.id, f"v{len(renamed)}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.name = renamed[node.name]
        elif isinstance(node, ast.arg):
            node.arg = renamed[node.arg]
        elif isinstance(node, ast.Name):
            node.id = renamed.get(node.id, node.id)
    return ast.unparse(tree)


def _function(tree: ast.Module) -> ast.FunctionDef:
    """The function that a source consists of."""
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    return function


_BY_NAME = {family.name: family for family in FAMILIES}


@cache
def _program_key(family_name: str, values: tuple) -> str:
    family = _BY_NAME[family_name]
    names = PARAMETERS[family.kind][0]
    body = family.body.format(**_fields(family, values, names)).replace("\n", INDENT)
    return make_key("code " + normalised(f"def f({', '.join(names)}):{INDENT}{body}"))


def _fields(family: ProgramFamily, values: tuple, names: tuple[str, ...]) -> dict:
    return {**dict(zip(family.slots, values)), **dict(zip("ab", names))}


# --- tests -----------------------------------------------------------------------------------------------------------

_FAILED = object()  # the program raised: such an input is no test, and a mutant that raises has been told apart
_LARGEST_JSON = 120  # characters of one test; longer ones are not worth their bytes
_SWAPPED_NAMES = {
    "max": "min", "min": "max", "all": "any", "any": "all", "upper": "lower", "lower": "upper", "sum": "len",
    "startswith": "endswith", "endswith": "startswith", "rjust": "ljust", "sorted": "list",
}  # fmt: skip
_SWAPPED_OPERATORS: dict[type, tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub, ast.Mult), ast.Sub: (ast.Add, ast.Mult), ast.Mult: (ast.Add, ast.Pow), ast.Pow: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,), ast.FloorDiv: (ast.Mod,), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
    ast.And: (ast.Or,), ast.Or: (ast.And,), ast.In: (ast.NotIn,),
}  # fmt: skip


def near_misses(item: dict, seed: int = 0) -> list[str]:
    """Return sources that differ from the canonical program in one place, and other programs of its family's kind."""
    source = program(item, item["target"])
    tree = ast.parse(source)
    count = sum(1 for _ in ast.walk(tree))
    changed = {ast.unparse(mutant) for index in range(count) for mutant in _mutate(tree, index)}
    family = _BY_NAME.get(item["family"])
    changed |= _relatives(item, tree, family, seed) if family else _confusions(tree)
    return sorted(changed - {ast.unparse(tree)})


def _relatives(item: dict, tree: ast.Module, family: ProgramFamily, seed: int) -> set[str]:
    """Other programs of the same kind with the names of this one."""
    names = tuple(argument.arg for argument in _function(tree).args.args)
    rng = random.Random(f"{seed} {item['key']}")
    found = set()
    for other in [family] * 24 + [other for other in FAMILIES if other.kind == family.kind]:
        values = tuple(rng.choice(choices) for choices in other.slots.values())
        body = other.body.format(**_fields(other, values, names)).replace("\n", INDENT)
        found.add(ast.unparse(ast.parse(f"def {item['entry_point']}({', '.join(names)}):{INDENT}{body}")))
    return found


def _confusions(tree: ast.Module) -> set[str]:
    """One name read in place of another."""
    nodes = list(ast.walk(tree))
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {argument.arg for argument in _function(tree).args.args}
    found = set()
    for index, node in enumerate(nodes):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in own:
            for other in own - {node.id}:
                twin = copy.deepcopy(tree)
                name = list(ast.walk(twin))[index]
                assert isinstance(name, ast.Name)
                name.id = other
                found.add(ast.unparse(twin))
    return found


def _mutate(tree: ast.Module, index: int) -> Iterator[ast.Module]:
    """Yield copies of a tree in which the node at a position of the walk is changed or left out."""

    def variant(kind: type[Node]) -> tuple[ast.Module, Node]:
        twin = copy.deepcopy(tree)
        target = list(ast.walk(twin))[index]
        assert isinstance(target, kind)
        return twin, target

    node = list(ast.walk(tree))[index]
    if isinstance(node, ast.Constant):
        for value in _near_constants(node.value):
            twin, constant = variant(ast.Constant)
            constant.value = value
            yield twin
    for field in ("op", "ops"):
        operators = getattr(node, field, None)
        operator = operators[0] if isinstance(operators, list) else operators
        for other in _SWAPPED_OPERATORS.get(type(operator), ()):
            twin, target = variant(ast.AST)
            setattr(target, field, [other()] if field == "ops" else other())
            yield twin
    for field in ("id", "attr"):
        if getattr(node, field, None) in _SWAPPED_NAMES:
            twin, target = variant(ast.AST)
            setattr(target, field, _SWAPPED_NAMES[getattr(node, field)])
            yield twin
    if isinstance(node, ast.comprehension) and node.ifs:
        twin, loop = variant(ast.comprehension)
        loop.ifs = []
        yield twin
    if isinstance(node, ast.Slice):
        twin, part = variant(ast.Slice)
        part.lower = part.upper = part.step = None
        yield twin
    if isinstance(node, ast.expr):
        for field, child in ast.iter_fields(node):
            # a step left out: the operand alone, or the object of a method call alone
            simpler = child.value if field == "func" and isinstance(child, ast.Attribute) else child
            if field in ("left", "right", "body", "func", "value") and isinstance(simpler, ast.expr):
                twin, target = variant(ast.AST)
                inner = getattr(target, field)
                inner = inner.value if simpler is not child else inner
                _Replace(target, inner).visit(twin)
                yield twin


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else super().generic_visit(node)


def _near_constants(value: object) -> tuple:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return ()
    if isinstance(value, int):
        return value - 1, value + 1
    return ("z" if value != "z" else "y",) if value else ()


def _outputs(source: str, entry_point: str, inputs: list[tuple]) -> list:
    """Run a function on copies of all inputs; `_FAILED` where it raises or returns nothing worth comparing."""
    scope: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # a near miss may call a string
        exec(compile(source, "<nano-code>", "exec"), scope)
    results = []
    for arguments in inputs:
        try:
            result = scope[entry_point](*copy.deepcopy(arguments))
            results.append(result if len(json.dumps([arguments, result])) <= _LARGEST_JSON else _FAILED)
        except Exception:  # a mutant may do anything
            results.append(_FAILED)
    return results


def _kind(item: dict) -> str:
    """What the parameters are; the programs of nano-code/long have this in place of a family."""
    family = _BY_NAME.get(item["family"])
    return family.kind if family else item["family"]


def _candidate_inputs(item: dict, seed: int) -> list[tuple]:
    """Return argument tuples around the constants of a program, in a fixed order.

    A yes-or-no program tells little with each answer and may say no nearly always, so it gets many more.
    """
    rng = random.Random(f"{seed} {item['key']} inputs")
    source = program(item, item["target"])
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    numbers = sorted({value for value in constants if type(value) is int})
    letters = sorted({value for value in constants if isinstance(value, str) and value})
    near = [number + step for number in numbers for step in (-1, 0, 1)]
    draw = _DRAWERS[_kind(item)]
    inputs = [draw(rng, near, letters) for _ in range(CANDIDATES)]
    if all(isinstance(answer, bool) for answer in _outputs(source, item["entry_point"], inputs)):
        inputs += [draw(rng, near, letters) for _ in range(CANDIDATES * 20)]
    return inputs


def _draw_int(rng: random.Random, near: list[int], letters: list[str]) -> tuple:
    return (rng.choice(near) if near and rng.random() < 0.5 else rng.randint(-30, 60),)


def _draw_two(rng: random.Random, near: list[int], letters: list[str]) -> tuple:
    first = rng.randint(-20, 40)
    close = first + rng.choice((-1, 1)) * rng.randint(0, 12)
    return first, close if rng.random() < 0.5 else rng.randint(-20, 40)


def _draw_list(rng: random.Random, near: list[int], letters: list[str]) -> tuple:
    length = _draw_length(rng, near, 11)
    if near and rng.random() < 0.4:  # all on one side of a constant, so that "all" and "any" are put to the test
        bound, side = rng.choice(near), rng.choice((-1, 1))
        return ([bound + side * (rng.randint(0, 20) if rng.random() < 0.7 else 0) for _ in range(length)],)
    return ([_draw_int(rng, near, letters)[0] for _ in range(length)],)


def _draw_length(rng: random.Random, near: list[int], longest: int) -> int:
    """A length that is often one of the constants or next to it."""
    close = [number for number in near if 0 <= number <= longest + 1]
    return rng.choice(close) if close and rng.random() < 0.5 else rng.randint(0, longest)


def _draw_text(rng: random.Random, length: int, letters: list[str]) -> str:
    common = [*letters, *"abcdemnortuxz"]
    text = [rng.choice(letters) if letters and rng.random() < 0.3 else rng.choice(common) for _ in range(length)]
    return "".join(letter.upper() if rng.random() < 0.2 else letter for letter in text)


def _draw_string(rng: random.Random, near: list[int], letters: list[str]) -> tuple:
    text = _draw_text(rng, _draw_length(rng, near, rng.choice((8, 12, 28))), letters)
    if letters and rng.random() < 0.4:  # begins and ends with letters of the program
        text = rng.choice(letters) + text[1:-1] + rng.choice(letters) if len(text) > 1 else rng.choice(letters)
    return (text,)


def _draw_sentence(rng: random.Random, near: list[int], letters: list[str]) -> tuple:
    return (" ".join(_draw_text(rng, rng.randint(1, 10), letters) for _ in range(rng.randint(1, 10))),)


_DRAWERS = {
    "int": _draw_int,
    "two ints": _draw_two,
    "list": _draw_list,
    "string": _draw_string,
    "sentence": _draw_sentence,
}
