"""The tasks of the second nano models: long programs, more word problems, stress examples for training.

Run: pytest tests/unit/test_nano2_data.py
"""

import random
from collections import Counter
from itertools import islice

import pytest

from dlmbench.backbone import load_tokenizer
from dlmbench.models.presets import PRESETS
from dlmbench.tasks.data import shipped_rows
from dlmbench.tasks.nano import code, gsm, programs
from dlmbench.tasks.nano.mix import SOURCES, stream
from dlmbench.tasks.nano.separation import split_of
from dlmbench.tasks.nano_gsm.functions import many
from dlmbench.tasks.stress import items as stress
from dlmbench.tasks.stress.answer_sets import KINDS

LONG = [row for split in ("dev", "test") for row in shipped_rows(f"nano-code-long-{split}")]


def passes(item: dict, target: str) -> bool:
    inputs = [tuple(arguments) for arguments, _ in item["tests"]]
    results = code._outputs(code.program(item, target), item["entry_point"], inputs)
    return all(code.same(result, expected) for result, (_, expected) in zip(results, item["tests"]))


# --- long programs ---------------------------------------------------------------------------------------------------


def test_every_form_of_a_program_computes_the_same():
    rng = random.Random(0)
    forms = Counter()
    for _ in range(60):
        program = programs.draw(rng)
        item = {"prompt": f"\ndef f({', '.join(program.parameters)}):", "entry_point": "f", "family": program.kind}
        written = {code.INDENT + code.INDENT.join(programs.write(program, rng, ordered=False)) for _ in range(12)}
        item |= {"key": "0", "target": min(written)}
        inputs = code._candidate_inputs(item, seed=1)[:20]
        results = {repr(code._outputs(code.program(item, target), "f", inputs)) for target in written}
        assert len(results) == 1
        forms[len(written) > 5] += 1
    assert forms[True] > 50


@pytest.mark.parametrize(
    "expression, spoken, forms",
    [
        (("*", ("+", "n", "3"), "4"), "the value of the value of n plus 3 times 4", {"(n + 3) * 4", "4 * (3 + n)"}),
        (("-", "n", ("-", "4", "m")), "the value of n minus the value of 4 minus m", {"n - (4 - m)"}),
        (("%", ("*", "n", "3"), "5"), "the remainder of the value of n times 3 mod 5", {"n * 3 % 5", "3 * n % 5"}),
        (("max", "n", "4"), "the larger of n and 4", {"max(n, 4)", "max(4, n)"}),
        (("abs", "n", ("+", "m", "2")), "the distance of n and the value of m plus 2", {"abs(n - (m + 2))"}),
    ],
)
def test_operations_are_said_first_and_written_with_the_brackets_they_need(expression, spoken, forms):
    rng = random.Random(0)
    assert programs.say(expression) == spoken
    assert forms <= {programs.spell(expression, rng) for _ in range(60)}


def test_the_key_ignores_names_and_order_and_keeps_what_is_computed():
    change = programs.Change("k", "7", programs.Condition("t", "above", ">", "3"))
    one = programs.LongProgram("int", ("n",), (("k", ("+", "n", "2")), ("t", "n")), (change,), ("-", "k", "t"))
    change = programs.Change("c", "7", programs.Condition("d", "above", ">", "3"))
    other = programs.LongProgram("int", ("num",), (("d", "num"), ("c", ("+", "2", "num"))), (change,), ("-", "c", "d"))
    assert programs.canonical(one) == programs.canonical(other)
    swapped = programs.LongProgram("int", ("num",), other.values, other.changes, ("-", "d", "c"))
    assert programs.canonical(swapped) != programs.canonical(one)


def test_shipped_long_programs_pass_their_tests_fit_their_budget_and_are_held_out():
    tokenizer = load_tokenizer(PRESETS["nano2"].tokenizer_location)
    assert len(LONG) == 700 == len({item["key"] for item in LONG})
    assert Counter(split_of(item["key"]) for item in LONG) == {"dev": 200, "test": 500}
    assert all(passes(item, item["target"]) for item in LONG[::10])
    assert min(len(item["tests"]) for item in LONG) >= code.MIN_TESTS
    lengths = [len(ids) for ids in tokenizer([item["target"] for item in LONG])["input_ids"]]
    assert max(lengths) < 96 and sum(lengths) / len(lengths) > 40


def test_shipped_tests_of_long_programs_catch_near_misses():
    caught = total = 0
    for item in LONG[::175]:
        others = code._candidate_inputs(item, seed=11)[:60]
        expected = code._outputs(code.program(item, item["target"]), item["entry_point"], others)
        for mutant in code.near_misses(item):
            results = code._outputs(mutant, item["entry_point"], others)
            if any(not code.same(*pair) for pair in zip(results, expected)):
                total += 1
                caught += passes({**item, "prompt": ""}, mutant) is False
    assert total > 100 and caught / total > 0.97


# --- more word problems ----------------------------------------------------------------------------------------------


def test_the_many_problems_are_valid_different_and_held_out():
    sets = many()
    assert {split: len(rows) for split, rows in sets.items()} == {"dev": 200, "test": 2000}
    for split, rows in sets.items():
        assert {split_of(row["key"]) for row in rows} == {split} and len({row["key"] for row in rows}) == len(rows)
        assert all(gsm.check(row, row["target"]) for row in rows[::20])


# --- stress examples -------------------------------------------------------------------------------------------------


def test_stress_examples_are_right_and_never_held_out():
    for kind in KINDS:
        held_out = {q.key for split in ("dev", "test") for q in stress.questions(kind, 4, split, 20)}
        for row in islice(stream({f"stress-{kind}": 1}, seed=3), 40):
            words, *more = row["prompt"].removesuffix("<|sep|>").split(" ")[1:]
            items = tuple("" if kind == "sudoku" and word == "0" else word for word in stress._WORD.findall(words))
            new = next((word for word in more if word.isalpha()), None)
            index = next((int(word) - 1 for word in more if word.isdigit()), None)
            question = stress.Question(kind, items, index, new)
            assert question.split == "train" and question.key not in held_out
            assert question.is_right(stress.parse_short(row["target"]))


def test_every_right_answer_is_equally_likely():
    question = stress.Question("remove-random", ("Ann", "Ben", "Eva", "Tom"))
    rng = random.Random(1)
    drawn = Counter(stress.pick(question, rng) for _ in range(4000))
    assert drawn.keys() == set(question.answers()) and min(drawn.values()) > 880
    shuffled = Counter(stress.pick(stress.Question("shuffle", ("Ann", "Ben", "Eva")), rng) for _ in range(5000))
    assert len(shuffled) == 5 and min(shuffled.values()) > 880


def test_the_words_of_the_short_form_are_one_token_in_first_and_in_later_place():
    """Why the tokenizer of the first models stays: positions of an answer are the items of its list."""
    tokenizer = load_tokenizer(PRESETS["nano2"].tokenizer_location)
    rng = random.Random(5)
    lists = [rng.sample(stress.NAMES + stress.DIGITS, rng.randint(1, 9)) for _ in range(400)]
    assert [len(ids) for ids in tokenizer(["".join(words) for words in lists])["input_ids"]] == list(map(len, lists))


def test_sources_are_named_like_their_tasks():
    assert {f"stress-{kind}" for kind in KINDS} < set(SOURCES) and "code-long" in SOURCES
