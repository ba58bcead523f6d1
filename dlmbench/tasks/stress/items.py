"""Items of the stress tasks, drawn from a seed and asked in two forms.

The short form is for the shipped models and the oracle: names and digits that the shipped tokenizer has as one token
each in any place, nothing between them, so that positions of the answer are items of the list. The chat form is for
real chat models: a sentence, a worked example, and an answer that must be a JSON array (lists) or lines of
comma-separated symbols (grids), nothing else. Both forms ask the same items.

A hash of the question says whether it may be trained on (half of them), is a dev item or a test item (a quarter each),
so no training stream meets an item that is reported, whatever its seed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dlmbench.tasks.base import SEPARATOR
from dlmbench.tasks.nano.gsm import NAMES
from dlmbench.tasks.nano.separation import make_key
from dlmbench.tasks.stress.answer_sets import GRIDS, LONGEST, Answer, answers, latin_squares, sudoku_grids

SEED = 20261
SIZES = {"dev": 200, "test": 2000}
DIGITS = tuple("0123456789")
EMPTY = "0"  # a cell of a Sudoku that is to be filled, in the short form
HOLES = 4
SPLITS = ("test", "dev", "train", "train")  # by the hash of a question
LENGTHS = (4, 5, 6, 6, 7, 8)  # names in training: all that are asked for, the usual number twice
SIDES = (3, 4, 4, 4)  # of Latin squares in training: the small ones are soon learned

_ASKED = {
    "copy": "Write the list again as it is.",
    "reverse": "Write the list backwards.",
    "sort": "Write the list in alphabetical order.",
    "insert-index": "Put the new name into the list so that it stands at the given position, counted from 1.",
    "remove-index": "Take the name at the given position, counted from 1, out of the list.",
    "replace-index": "Write the new name in place of the one at the given position, counted from 1.",
    "insert-random": "Put the new name into the list, at any position you like.",
    "remove-random": "Take one name out of the list, whichever you like.",
    "replace-random": "Write the new name in place of one name of the list, whichever you like.",
    "shuffle": "Write the same names in another order than the given one, whichever you like.",
    "latin-square": "Fill a square with the given symbols so that each stands once in every row and every column.",
    "sudoku": "Fill the empty cells (0) so that 1, 2, 3 and 4 stand once in every row, every column and every one of "
    "the four 2 x 2 boxes.",
}
_AS_LIST = "Answer with the new list alone, as a JSON array of strings."
_AS_GRID = "Answer with the filled grid alone: one row a line, symbols separated by commas."


@dataclass(frozen=True)
class Question:
    """One question: its kind, the list (symbols, cells), and for some kinds a position from 0 and a new word."""

    kind: str
    items: Answer
    index: int | None = None
    new: str | None = None

    @property
    def key(self) -> str:
        return make_key(" ".join([self.kind, *(item or EMPTY for item in self.items), str(self.index), str(self.new)]))

    def answers(self) -> list[Answer]:
        """Every right answer."""
        return answers(self.kind, self.items, self.index, self.new)

    def is_right(self, answer: Sequence[str] | None) -> bool:
        """Is this one of them? Told without listing them where they are many."""
        if answer is None:
            return False
        answer = tuple(answer)
        if self.kind == "shuffle":
            return sorted(answer) == sorted(self.items) and answer != self.items
        return answer in self.answers()

    @property
    def split(self) -> str:
        return SPLITS[int(self.key, 16) % len(SPLITS)]


def draw(rng: random.Random, kind: str, n: int, split: str) -> Question:
    """A question of a split about n names, an n x n square, or a 4 x 4 grid."""
    while True:
        question = _draw(rng, kind, n)
        if question.split == split and (kind != "sudoku" or len(question.answers()) == 1):
            return question


def generate(kind: str, rng: random.Random) -> dict:
    """A training example in the short form, of any length; its answer is any right one, with equal probability."""
    question = draw(rng, kind, rng.choice(SIDES if kind == "latin-square" else LENGTHS), "train")
    target = short_answer(pick(question, rng))
    return {"prompt": short_question(question), "target": target, "key": question.key, "split": "train"}


def _draw(rng: random.Random, kind: str, n: int) -> Question:
    if kind == "sudoku":
        holes = rng.sample(range(16), HOLES)
        return Question(kind, tuple("" if i in holes else cell for i, cell in enumerate(rng.choice(sudoku_grids()))))
    if kind == "latin-square":  # of names alone there would be too few for three splits
        return Question(kind, tuple(rng.sample(NAMES + DIGITS, n)))
    *items, new = rng.sample(NAMES, n + 1)
    index = rng.randrange(n + (kind == "insert-index")) if kind.endswith("-index") else None
    return Question(kind, tuple(items), index, new if kind.startswith(("insert", "replace")) else None)


def questions(kind: str, n: int, split: str, count: int) -> Iterator[Question]:
    """`count` different questions of a split ("train", "dev" or "test"), the same ones every time.

    Lists of fewer than four names are too few for that many.
    """
    rng, seen = random.Random(f"{SEED} {kind} {n} {split}"), set[Question]()
    while len(seen) < count:
        question = draw(rng, kind, n, split)
        if question not in seen:
            seen.add(question)
            yield question


def documents(kind: str, n: int, split: str) -> list[dict]:
    """Records of a split."""
    return [document(question, pick(question), n) for question in questions(kind, n, split, SIZES[split])]


def document(question: Question, right: Answer, n: int) -> dict:
    """A record: the question, both prompts (that for chat with an example of size n), a right answer in both forms."""
    example = draw(random.Random(f"{question.key} example"), question.kind, n, "train")
    return {
        "key": question.key,
        "kind": question.kind,
        "items": list(question.items),
        "index": question.index,
        "new": question.new,
        "prompt": short_prompt(question),
        "target": short_answer(right),
        "chat_prompt": chat_prompt(question, example, pick(example)),
        "chat_target": chat_answer(question.kind, right),
    }


def foreign(kind: str, context: Sequence[str], new: str | None, right: Sequence[str]) -> dict:
    """A record made of somebody else's list, new word and right answer; a position follows from these."""
    items, right = tuple(context), tuple(right)
    index = None
    if kind.endswith("-index"):
        index = next((i for i, pair in enumerate(zip(items, right)) if pair[0] != pair[1]), min(len(items), len(right)))
    question = Question(kind, items, index, new if kind.startswith(("insert", "replace")) else None)
    return document(question, right, min(len(items), LONGEST))


def question_of(doc: dict) -> Question:
    """What a record asks."""
    return Question(doc["kind"], tuple(doc["items"]), doc["index"], doc["new"])


def pick(question: Question, rng: random.Random | None = None) -> Answer:
    """One of the right answers with equal probability; without `rng` always the same."""
    rng = rng or random.Random(question.key)
    if question.kind == "shuffle":  # whose answers may be many thousands
        while (order := tuple(rng.sample(question.items, len(question.items)))) == question.items:
            pass
        return order
    if question.kind == "latin-square":
        return tuple(question.items[cell] for cell in rng.choice(latin_squares(len(question.items))))
    return rng.choice(question.answers())


# --- the short form --------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[A-Z][a-z]+|\d")


def short_prompt(question: Question) -> str:
    return short_question(question) + SEPARATOR


def short_question(question: Question) -> str:
    """``insert-index AnnBenEva Zoe 2``; positions count from 1."""
    parts = [question.kind, "".join(item or EMPTY for item in question.items)]
    parts += [question.new] if question.new else []
    parts += [str(question.index + 1)] if question.index is not None else []
    return " ".join(parts)


def short_answer(answer: Answer) -> str:
    return "".join(answer)


def parse_short(text: str) -> Answer | None:
    """Words of an answer; None where there is anything else."""
    words = tuple(_WORD.findall(text))
    return words if words and "".join(words) == text else None


# --- the chat form ---------------------------------------------------------------------------------------------------


def chat_prompt(question: Question, example: Question, right: Answer) -> str:
    """What is asked, a worked example, the question."""
    wanted = _AS_GRID if question.kind in GRIDS else _AS_LIST
    shown = f"{_given(example)}\nAnswer:\n{chat_answer(example.kind, right)}"
    return f"{_ASKED[question.kind]} {wanted}\n\n{shown}\n\n{_given(question)}\nAnswer:\n"


def _given(question: Question) -> str:
    if question.kind == "sudoku":
        return "Grid:\n" + chat_answer("sudoku", tuple(item or EMPTY for item in question.items))
    if question.kind == "latin-square":
        return f"Symbols: {', '.join(question.items)}"
    lines = [f"List: {json.dumps(question.items, ensure_ascii=False)}"]
    lines += [f"New name: {question.new}"] if question.new else []
    lines += [f"Position: {question.index + 1}"] if question.index is not None else []
    return "\n".join(lines)


def chat_answer(kind: str, answer: Answer) -> str:
    if kind not in GRIDS:
        return json.dumps(answer, ensure_ascii=False)
    side = round(len(answer) ** 0.5)
    return "\n".join(",".join(answer[row * side : (row + 1) * side]) for row in range(side))


def parse_chat(kind: str, text: str) -> Answer | None:
    """The list or grid that `text` is; None where it is anything else or more."""
    if kind in GRIDS:
        rows = [[cell.strip() for cell in line.split(",")] for line in text.strip().splitlines()]
        cells = tuple(cell for row in rows for cell in row)
        square = all(len(row) == len(rows) for row in rows) and all(map(_WORD.fullmatch, cells))
        return cells if cells and square else None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return tuple(found) if isinstance(found, list) and all(isinstance(one, str) for one in found) else None
