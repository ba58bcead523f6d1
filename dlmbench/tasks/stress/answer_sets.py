"""The stress tasks as sets: a question about a list or a grid, and every answer that is right.

What these tasks ask is trivial, but many of them have several right answers, which is what tokens drawn together get
wrong (ParallelBench, Kang et al., arXiv 2510.04767: list edits, shuffles, Latin squares, Sudoku). A list is a tuple of
different words, a grid of symbols is read row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import permutations
from typing import TypeVar

Answer = tuple[str, ...]
T = TypeVar("T")

LONGEST = 8  # items of a list to be shuffled: 8 have 40,320 orders


def answers(kind: str, items: Sequence[str], index: int | None = None, new: str | None = None) -> list[Answer]:
    """Every right answer, without repetition.

    `items` are the list, the symbols of a Latin square, or the cells of a Sudoku with "" where nothing is given;
    `index` counts from 0, `new` is the word to be put in. Raises ValueError for an unknown kind, too many orders, and
    an index or word that is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; there are {', '.join(KINDS)}")
    if kind == "shuffle" and len(items) > LONGEST:
        raise ValueError(f"orders are listed of at most {LONGEST} items, these are {len(items)}")
    items, n = tuple(items), len(items)
    index, new = -1 if index is None else index, new or ""
    match kind:
        case "copy":
            return [items]
        case "reverse":
            return [items[::-1]]
        case "sort":
            return [tuple(sorted(items))]
        case "insert-index":
            return [_insert(items, _given(index), _given(new))]
        case "remove-index":
            return [_remove(items, _given(index))]
        case "replace-index":
            return [_replace(items, _given(index), _given(new))]
        case "insert-random":
            return [_insert(items, i, _given(new)) for i in range(n + 1)]
        case "remove-random":
            return [_remove(items, i) for i in range(n)]
        case "replace-random":
            return [_replace(items, i, _given(new)) for i in range(n)]
        case "shuffle":
            return [order for order in permutations(items) if order != items]
        case "latin-square":
            return [tuple(items[cell] for cell in square) for square in latin_squares(n)]
        case _:
            return sudoku_solutions(items)


LISTS = (
    "copy", "reverse", "sort", "insert-index", "remove-index", "replace-index", "insert-random", "remove-random",
    "replace-random", "shuffle",
)  # fmt: skip
GRIDS = ("latin-square", "sudoku")
KINDS = (*LISTS, *GRIDS)
ONE_ANSWER = ("copy", "reverse", "sort", "insert-index", "remove-index", "replace-index", "sudoku")


def _given(value: T | None) -> T:
    if value is None:
        raise ValueError("this kind of question needs an index, a new word, or both")
    return value


def _insert(items: Answer, index: int, new: str) -> Answer:
    return (*items[:index], new, *items[index:])


def _remove(items: Answer, index: int) -> Answer:
    return (*items[:index], *items[index + 1 :])


def _replace(items: Answer, index: int, new: str) -> Answer:
    return (*items[:index], new, *items[index + 1 :])


@cache
def latin_squares(n: int) -> list[tuple[int, ...]]:
    """All n x n Latin squares over 0 .. n-1, read row by row: 12 of 3, 576 of 4."""
    found: list[tuple[int, ...]] = [()]
    for _ in range(n):
        found = [
            square + row
            for square in found
            for row in permutations(range(n))
            if all(row[column] not in square[column::n] for column in range(n))
        ]
    return found


@cache
def sudoku_grids() -> list[Answer]:
    """All 288 complete 4 x 4 Sudoku grids: Latin squares whose four 2 x 2 boxes have every symbol of 1 .. 4 too."""
    boxes = [[4 * (top + i) + left + j for i in (0, 1) for j in (0, 1)] for top in (0, 2) for left in (0, 2)]
    fit = [grid for grid in latin_squares(4) if all(len({grid[cell] for cell in box}) == 4 for box in boxes)]
    return [tuple(str(cell + 1) for cell in grid) for grid in fit]


def sudoku_solutions(cells: Sequence[str]) -> list[Answer]:
    """Complete grids that agree with the given cells; "" is a cell to be filled."""
    wanted, known = _packed(cells), _packed("3" if symbol else "" for symbol in cells)
    return [grid for grid, packed in zip(sudoku_grids(), _packed_grids()) if not (packed ^ wanted) & known]


@cache
def _packed_grids() -> list[int]:
    return [_packed(grid) for grid in sudoku_grids()]


def _packed(cells: Iterable[str]) -> int:
    """A grid as a number, two bits a cell."""
    number = 0
    for symbol in cells:
        number = 4 * number + int(symbol or 0) % 4
    return number
