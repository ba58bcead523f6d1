"""The nano tasks: valid problems, a proven separation of training and evaluation, tests that catch near misses.

Run: pytest tests/unit/test_nano_data.py
"""

import json
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

import dlmbench.tasks.nano as nano
from dlmbench.errors import RequestError
from dlmbench.tasks.base import SEPARATOR
from dlmbench.tasks.nano import code, gsm, gsm_symbolic
from dlmbench.tasks.nano.families import FAMILIES
from dlmbench.tasks.nano.mix import stream
from dlmbench.tasks.nano.separation import make_key, split_of

PACKAGE = Path(nano.__file__).parent
TOKENIZER = PACKAGE.parents[1] / "assets" / "nano" / "tokenizer"
STRICT_FILTER = r"#### (\-?[0-9\.\,]+)"  # lm-eval's gsm8k, strict-match


def read_set(task: str, split: str) -> list[dict]:
    lines = (PACKAGE / "data" / f"{task}-{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


SETS = {(task, split): read_set(task, split) for task in ("nano-gsm", "nano-code") for split in ("dev", "test")}
GSM = SETS["nano-gsm", "dev"] + SETS["nano-gsm", "test"]
CODE = SETS["nano-code", "dev"] + SETS["nano-code", "test"]


# --- word problems ---------------------------------------------------------------------------------------------------


def read_question(question: str) -> tuple:
    """Read a question of our own generator by its words alone: an account of it that shares no code with `gsm`."""
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if "in total" in question:
        signs = [1 if word == "more" else -1 for word in re.findall(r"\d+ (more|fewer)", question)]
        return "compare", numbers[0], *(sign * number for sign, number in zip(signs, numbers[1:]))
    terms = []
    for phrase in re.split(r"\. | and ", question.rpartition(". ")[0]):
        product = re.search(r"(\d+) \w+ of (\d+)", phrase)
        lost = re.search(r"\b(drops|loses|sells|uses|takes)\b", phrase)
        if product:
            terms.append(("product", *sorted(map(int, product.groups()))))
        else:
            terms.append((-1 if lost else 1) * int(re.search(r"\d+", phrase)[0]))
    if question.startswith("There are"):
        return "rows", *sorted(map(str, terms))
    return "events", terms[0], *sorted(map(str, terms[1:]))


def answer_of(account: tuple) -> int:
    """The answer of an account by `read_question`."""
    template, *terms = account
    if template == "compare":
        first, second, third = terms[0], terms[0] + terms[1], sum(terms)
        return first + second + third
    values = [eval(term) if isinstance(term, str) else term for term in terms]
    return sum(value[1] * value[2] if isinstance(value, tuple) else value for value in values)


@pytest.mark.parametrize("tier", ["easy", "full"])
def test_problems_are_valid(tier):
    rng = random.Random(3)
    limits = gsm.TIERS[tier]
    for row in (gsm.generate(rng, tier) for _ in range(3000)):
        assert gsm.check(row, row["target"])
        assert answer_of(read_question(row["question"])) == row["answer"] > 0
        assert re.search(STRICT_FILTER, row["target"])[1] == str(row["answer"])
        results = [int(result) for result in re.findall(r"=(\d+)", row["target"])]
        assert 1 <= len(results) <= gsm.MAX_EQUATIONS and max(results) <= limits.total_max
        assert " 1 " not in row["question"] or not re.search(r" 1 \w+s\b(?! than)", row["question"])


def test_the_same_seed_gives_the_same_problem_and_an_unknown_tier_is_refused():
    assert gsm.generate(random.Random(5), "full") == gsm.generate(random.Random(5), "full")
    with pytest.raises(RequestError, match="no tier 'hard'.*easy, full"):
        gsm.generate(random.Random(0), "hard")


EVENTS = {"template": "events", "numbers": ["+12", "+3*8", "-7"], "answer": 29}
COMPARE = {"template": "compare", "numbers": ["+11", "+5", "-9"], "answer": 34}


@pytest.mark.parametrize(
    "row, chain",
    [
        (EVENTS, "3*8=24 12+24=36 36-7=29"),
        (EVENTS, "8*3=24 12-7=5 24+5=29"),
        (EVENTS, "12-7=5 3*8=24 5+24=29"),
        (COMPARE, "11+5=16 16-9=7 7+11=18 18+16=34"),
        (COMPARE, "5+11=16 11+16=27 16-9=7 7+27=34"),
    ],
)
def test_every_order_of_steps_is_accepted(row, chain):
    assert gsm.check(row, f"{chain}\n#### {row['answer']}")


@pytest.mark.parametrize(
    "row, text",
    [
        (EVENTS, "3*8=24 12+24=36 36-7=29\n#### 28"),  # another answer than the chain's
        (EVENTS, "3*8=24 12+24=37 37-7=30\n#### 29"),  # a false equation
        (EVENTS, "12+24=36 36-7=29\n#### 29"),  # an operand from nowhere
        (EVENTS, "3*8=24 12+24=36\n#### 29"),  # a term left out
        (EVENTS, "3*8=24 24+24=48\n#### 48"),  # a term used twice
        (EVENTS, "3*8=24 12+24=36 36-7=29 ####29"),  # the answer on the line of the chain
        (EVENTS, "3*8=24 12+24=36  36-7=29\n#### 29"),  # an empty step
        (COMPARE, "11+5=16 11+16=27 27+7=34\n#### 34"),  # the third person was never worked out
        (COMPARE, "11+5=16 16-9=7 11+16=27 27+16=43\n#### 34"),  # a person counted twice
        (COMPARE, ""),
    ],
)
def test_wrong_chains_are_rejected(row, text):
    assert not gsm.check(row, text)


def test_the_key_ignores_what_does_not_matter_and_keeps_what_does():
    key = gsm.problem_key("events", ["+12", "+3*8", "-7"])
    assert key == gsm.problem_key("events", ["+12", "-7", "+8*3"])
    assert key != gsm.problem_key("events", ["+12", "+3*8", "+7"])
    assert gsm.problem_key("compare", ["+9", "+5", "-2"]) != gsm.problem_key("compare", ["+9", "-2", "+5"])
    assert gsm.problem_key("rows", ["+3*8", "+2*5"]) == gsm.problem_key("rows", ["+5*2", "+3*8"])


def test_keys_and_splits_do_not_depend_on_the_machine():
    assert make_key("events +12 +3*8 -7") == "eb377c88474f"
    counts = Counter(split_of(make_key(str(number))) for number in range(4000))
    assert 120 < counts["test"] < 280 and 120 < counts["dev"] < 280


def test_compact_equations_drop_words_units_and_false_pieces():
    assert gsm_symbolic.compact("He has 2 * €100 = €200.\nHe has $1,200 - $200 = $1,000 left") == [
        "2*100=200",
        "1200-200=1000",
    ]
    assert gsm_symbolic.compact("300 yards / 50 yards/minute = 6 minutes") == ["300/50=6"]
    assert gsm_symbolic.compact("A 174-page thesis: 174 pages x 2/3 = 116 pages") == ["174*2/3=116"]
    assert gsm_symbolic.compact("Needs 140 - 92 signatures. 140 - 92 = 48 signatures") == ["140-92=48"]
    assert gsm_symbolic.compact("2 + 2 = 5, 1.5 + 2 = 3.5, 7 / 2 = 3, 4 / 0 = 4") == []
    assert not gsm_symbolic.grounded("He works 3 days.", ["3*24=72"])


def test_symbolic_problems_are_consistent():
    pytest.importorskip("reasoning_gym")
    rng = random.Random(1)
    for template in gsm_symbolic.TEMPLATES:
        for row in (gsm_symbolic.generate(rng, template) for _ in range(5)):
            assert gsm_symbolic.check(row, row["target"])
            assert not gsm_symbolic.check(row, row["target"] + "0")
            assert max(map(int, re.findall(r"\d+", row["target"]))) <= gsm_symbolic.LARGEST


# --- code ------------------------------------------------------------------------------------------------------------


def passes(item: dict, source: str) -> bool:
    """Run trusted source on the tests of an item."""
    results = code._outputs(source, item["entry_point"], [tuple(arguments) for arguments, _ in item["tests"]])
    return all(code.same(result, expected) for result, (_, expected) in zip(results, item["tests"]))


def test_names_do_not_change_the_normalised_program():
    first = "def f(xs):\n    total = 3\n    for x in xs:\n        total += x\n    return total"
    second = "def solve(items):\n    t = 3\n    for y in items:\n        t += y\n    return t"
    assert code.normalised(first) == code.normalised(second)
    assert code.normalised(first) != code.normalised(first.replace("3", "4"))
    assert code.normalised("def f(x):\n    return max(x)") != code.normalised("def f(x):\n    return min(x)")


def test_families_are_many_and_their_programs_distinct():
    assert len(FAMILIES) >= 30 and len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert {family.kind for family in FAMILIES} == {"int", "two ints", "list", "string", "sentence"}
    rng = random.Random(2)
    for family in FAMILIES:
        programs = rng.sample(list(code.all_programs(family)), 20)
        assert len({code.program_key(family, values) for values in programs}) == 20
        assert len(family.descriptions) >= 2


def test_shipped_programs_pass_their_own_tests_and_have_their_key():
    for item in CODE:
        source = code.program(item, item["target"])
        assert passes(item, source)
        assert code.make_key("code " + code.normalised(source)) == item["key"]
        assert len(source.splitlines()) <= 6 and len(item["tests"]) >= code.MIN_TESTS


def test_shipped_tests_catch_near_misses():
    caught = total = 0
    for item in CODE[::40]:
        source = code.program(item, item["target"])
        others = code._candidate_inputs(item, seed=11)
        expected = code._outputs(source, item["entry_point"], others)
        for mutant in code.near_misses(item, seed=7):  # other relatives than those the tests were chosen against
            results = code._outputs(mutant, item["entry_point"], others)
            if any(not code.same(*pair) for pair in zip(results, expected) if pair[1] is not code._FAILED):
                total += 1
                caught += not passes(item, mutant)
    assert total > 600 and caught / total > 0.995


def test_tests_of_the_shipped_rows_are_remade():
    for item in CODE[:6]:
        assert json.loads(json.dumps(code.make_tests(item))) == item["tests"]


def test_a_prefix_of_the_code_test_set_covers_most_families():
    assert len({item["family"] for item in SETS["nano-code", "test"][:150]}) >= 40


# --- the sets and the separation -------------------------------------------------------------------------------------


def test_sets_have_their_sizes_tiers_and_no_repeats():
    tiers = [row["tier"] for row in SETS["nano-gsm", "test"]]
    assert tiers == ["full"] * 500 + ["easy"] * 200 + ["symbolic"] * 200
    assert Counter(row["tier"] for row in SETS["nano-gsm", "dev"]) == {"full": 120, "easy": 40, "symbolic": 40}
    assert [len(SETS["nano-code", split]) for split in ("dev", "test")] == [200, 500]
    for (_, split), rows in SETS.items():
        assert len({row["key"] for row in rows}) == len(rows)
        assert {split_of(row["key"]) for row in rows} == {split}


def test_shipped_problems_are_valid():
    for row in GSM:
        assert (gsm_symbolic if row["tier"] == "symbolic" else gsm).check(row, row["target"])


def test_no_answer_is_worth_guessing():
    for tier, bound in (("full", 0.03), ("easy", 0.06), ("symbolic", 0.08)):
        answers = Counter(row["answer"] for row in SETS["nano-gsm", "test"] if row["tier"] == tier)
        assert answers.most_common(1)[0][1] <= bound * answers.total()


def problem_of(prompt: str, target: str, source: str) -> object:
    """What has to be computed, read back from the text that the model sees."""
    if source == "code":
        return code.normalised(prompt.rpartition("\n")[2] + target)
    if source == "gsm-symbolic":
        return tuple(re.findall(r"\d+", prompt)), target
    return read_question(prompt)


def test_training_never_meets_a_held_out_problem():
    pytest.importorskip("reasoning_gym")
    held_out = {
        problem_of(row["question"], row["target"], "gsm-symbolic" if row["tier"] == "symbolic" else "gsm")
        for row in GSM
    } | {problem_of(row["prompt"], row["target"], "code") for row in CODE}
    assert len(held_out) == len(GSM) + len(CODE)  # so dev and test share none either
    mix = {"gsm-full": 0.3, "gsm-easy": 0.3, "gsm-symbolic": 0.1, "code": 0.3}
    seen = Counter()
    for row in islice(stream(mix, seed=0), 20_000):
        problem = problem_of(row["prompt"].removesuffix(SEPARATOR), row["target"], row["source"])
        assert problem not in held_out, row
        seen[row["source"]] += 1
    assert all(abs(seen[source] / 20_000 - weight) < 0.02 for source, weight in mix.items())


def test_without_the_split_held_out_problems_would_appear():
    """The test above can fail: drawn without a look at the buckets, easy problems do repeat held-out ones."""
    held_out = {read_question(row["question"]) for row in GSM if row["tier"] != "symbolic"}
    rng = random.Random(0)
    assert any(read_question(gsm.generate(rng, "easy")["question"]) in held_out for _ in range(2000))


def test_the_stream_repeats_with_its_seed_and_refuses_a_bad_mix():
    mix = {"gsm-full": 1, "code": 1}
    first = list(islice(stream(mix, seed=4), 50))
    assert first == list(islice(stream(mix, seed=4), 50)) != list(islice(stream(mix, seed=5), 50))
    assert all(row["prompt"].endswith("<|sep|>") and "<|" not in row["target"] for row in first)
    with pytest.raises(RequestError, match="'poems'.*gsm-full"):
        stream({"poems": 1.0}, seed=0)
    for mix in ({}, {"code": 0.0}, {"code": 1.0, "gsm-full": -1.0}):
        with pytest.raises(RequestError, match="positive"):
            stream(mix, seed=0)


def test_the_gsm_dev_set_is_remade_byte_for_byte():
    pytest.importorskip("reasoning_gym")
    from dlmbench.tasks.nano.build import make_gsm_set

    assert make_gsm_set("dev") == SETS["nano-gsm", "dev"]


# --- the tokenizer ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER)


def test_special_tokens_come_first_and_none_is_added(tokenizer):
    assert len(tokenizer) == 1024
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id, tokenizer.sep_token_id)
    assert ids == (0, 1, 2, 3)
    assert not set(tokenizer("Tom has 12 apples.")["input_ids"]) & {0, 1, 2, 3}
    assert tokenizer("Why?<|sep|>")["input_ids"][-1] == 3


def test_every_text_survives_encoding(tokenizer):
    texts = [row["question"] + SEPARATOR + row["target"] for row in GSM]
    texts += [row["prompt"] + SEPARATOR + row["target"] for row in CODE]
    texts += ["  two  spaces , and a stop .", "naïve 漢字 🙂\t\r\n\n  x", "don't  #### -5,000.25", ""]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("piece", [*"0123456789+-*/=", "####", "\n    ", "\n        ", " + ", "return", "\n"])
def test_pieces_of_targets_are_one_token(tokenizer, piece):
    assert len(tokenizer(piece)["input_ids"]) == 1


def test_digits_and_operators_are_never_merged(tokenizer):
    for text in ("12+24=36 36-7=29\n#### 29", "3*8=24"):
        pieces = [tokenizer.decode([index]) for index in tokenizer(text)["input_ids"]]
        assert [piece for piece in pieces if piece != "####"] == list(text.replace("####", ""))


def test_words_of_our_questions_are_one_token(tokenizer):
    rng = random.Random(8)
    words = set()
    for tier in ("easy", "full"):
        for _ in range(2000):
            words.update(re.findall(r" ?[A-Za-z]+", gsm.generate(rng, tier)["question"]))
    assert [word for word in words if len(tokenizer(word)["input_ids"]) > 1] == []
