"""The stress tasks: items, both forms, strict reading, and the ideal model on them. pytest tests/unit/test_stress.py"""

import json

import pytest

from dlmbench.backbone import load_tokenizer
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine
from dlmbench.errors import RequestError
from dlmbench.models.presets import ASSETS
from dlmbench.oracle.answers import encode
from dlmbench.oracle.family import oracle_config
from dlmbench.oracle.network import Oracle
from dlmbench.registry import DECODERS
from dlmbench.tasks import catalogue, load_task
from dlmbench.tasks.evaluate import evaluate
from dlmbench.tasks.nano import gsm
from dlmbench.tasks.stress import items
from dlmbench.tasks.stress.answer_sets import GRIDS, KINDS, LISTS, ONE_ANSWER

SIZE = {kind: 4 if kind in GRIDS else 6 for kind in KINDS}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ASSETS / "nano" / "tokenizer")


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(items, "SIZES", {"dev": 12, "test": 20})


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_the_same_every_time_and_no_split_meets_another(kind):
    found = {split: list(items.questions(kind, SIZE[kind], split, 60)) for split in ("train", "dev", "test")}
    assert found["test"] == list(items.questions(kind, SIZE[kind], "test", 60))
    keys = [question.key for questions in found.values() for question in questions]
    assert len(set(keys)) == 180
    for question in found["test"]:
        assert len(question.items) == 16 if kind == "sudoku" else SIZE[kind]
        assert (len(question.answers()) == 1) == (kind in ONE_ANSWER)
        assert len(set(question.answers())) == len(question.answers())


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_read_every_right_answer_and_nothing_beside_it(kind):
    (question,) = items.questions(kind, SIZE[kind], "test", 1)
    for answer in question.answers()[:40]:
        short, chat = items.short_answer(answer), items.chat_answer(kind, answer)
        assert question.is_right(items.parse_short(short)) and question.is_right(items.parse_chat(kind, chat))
        assert items.parse_short(short + " ") is None and items.parse_chat(kind, f"Sure: {chat}") is None
        assert not question.is_right(items.parse_short(short[:-1])) and not question.is_right(answer[:-1])
        assert not question.is_right((*answer[:-1], "Zed"))
    assert not question.is_right(None)


def test_what_is_right_is_told_without_listing_it():
    (question,) = items.questions("shuffle", 5, "test", 1)
    allowed = set(question.answers())
    assert question.items not in allowed and not question.is_right(question.items)
    assert all(question.is_right(answer) for answer in allowed)
    assert not question.is_right((*question.items[:4], question.items[0]))
    assert items.pick(question) in allowed


@pytest.mark.parametrize("text", ["", "[]]", '["Ann", 3]', '{"a": 1}', "Ann, Ben", '["Ann", "Ben"'])
def test_lists_are_read_strictly(text):
    assert items.parse_chat("copy", text) is None


@pytest.mark.parametrize("text", ["", "1,2\n3", "1,2,3", "1 2\n3 4", "1,\n2,3"])
def test_grids_are_read_strictly(text):
    assert items.parse_chat("latin-square", text) is None
    assert items.parse_chat("latin-square", "1,2\n2, 1\n") == ("1", "2", "2", "1")


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_a_token_for_each_of_its_items(kind, tokenizer):
    for question in items.questions(kind, SIZE[kind], "dev", 5):
        answer = items.pick(question)
        ids = encode(tokenizer, [items.short_answer(answer)])
        assert ids.shape == (1, len(answer))
        assert [tokenizer.decode([one]) for one in ids[0].tolist()] == list(answer)


def test_every_stress_task_is_listed_with_its_lengths():
    names = [row.name for row in catalogue()]
    assert {f"stress-{kind}" for kind in KINDS} <= set(names)
    assert {f"stress-{kind}/{n}" for kind in LISTS for n in (4, 5, 7, 8)} <= set(names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_gives_its_answers_their_budget_and_full_marks(kind, few, tokenizer):
    task = load_task(f"stress-{kind}")
    assert (task.size("dev"), task.size("test")) == (12, 20)
    for item in task.items("test", 4):
        assert item.prompt.startswith(kind) and item.prompt.endswith("<|sep|>")
        right = task.answers(item)
        assert encode(tokenizer, right).shape[1] == item.max_tokens
        assert task.target(item) in right
        assert task.score(item, right[-1]) == {"accuracy": 1.0, "unparsed": False, "valid": 1.0}
        assert task.score(item, right[-1] + "!")["unparsed"]


def test_lengths_are_variants_and_the_usual_one_has_a_name_too(few):
    assert load_task("stress-insert-random/8").max_tokens == 9
    assert load_task("stress-shuffle/6").items("test", 2) == load_task("stress-shuffle").items("test", 2)
    with pytest.raises(RequestError, match="has no variant '9'"):
        load_task("stress-shuffle/9")


class _Chat:
    chat_template = "there is one"

    def apply_chat_template(self, messages, **_):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


@pytest.mark.parametrize("kind", ["shuffle", "sudoku"])
def test_a_chat_model_is_asked_in_words_with_one_example(kind, few):
    task = load_task(f"stress-{kind}", tokenizer=_Chat(), chat_template=True)
    item = task.items("test", 1)[0]
    assert item.prompt.count("Answer:\n") == 2 and "<|sep|>" not in item.prompt
    assert item.max_tokens == 64 and item.stop == ("\n\n",)
    right = items.chat_answer(kind, items.pick(items.question_of(item.doc)))
    assert task.score(item, right) == {"accuracy": 1.0, "unparsed": False, "valid": 1.0}
    assert task.score(item, "The answer is " + right)["unparsed"]
    assert task.score(item, task.answers(item)[0])["accuracy"] == 0  # the short form is none


@pytest.mark.parametrize(
    "kind, context, word, answer, index",
    [
        ("shuffle", ["A Bo", "Cy Do", "E F"], None, ["Cy Do", "A Bo", "E F"], None),
        ("insert-random", ["A", "B"], "Z Y", ["A", "Z Y", "B"], None),
        ("insert-index", ["A", "B"], "Z", ["A", "B", "Z"], 2),
        ("remove-index", ["A", "B", "C"], None, ["A", "C"], 1),
        ("remove-index", ["A", "B", "C"], None, ["A", "B"], 2),
        ("replace-index", json.dumps(["A", "B"]), "Z", json.dumps(["Z", "B"]), 0),
    ],
)
def test_lists_of_local_files_are_asked_in_our_words(tmp_path, kind, context, word, answer, index):
    row = {"input": {"context": context, "word": word, "icl_examples": []}, "answer": answer, "metadata": {"length": 3}}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    task = load_task(f"stress-{kind}", data_dir=str(tmp_path), tokenizer=_Chat(), chat_template=True)
    item = task.items("test")[0]
    assert items.question_of(item.doc).index == index
    assert (word or "A") in item.prompt
    assert task.score(item, answer if isinstance(answer, str) else json.dumps(answer))["accuracy"] == 1


def test_a_file_of_another_task_is_refused(tmp_path):
    row = {"input": {"context": ["A", "B"]}, "answer": ["B", "A"]}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    assert load_task("stress-reverse", data_dir=str(tmp_path)).size() == 1
    with pytest.raises(RequestError, match="which it is not"):
        load_task("stress-copy", data_dir=str(tmp_path))
    with pytest.raises(RequestError, match="only lists are read"):
        load_task("stress-sudoku", data_dir=str(tmp_path))


def test_every_chain_of_a_word_problem_is_listed():
    task = load_task("nano-gsm-orders")
    for item in task.items("test", 40):
        chains = task.answers(item)
        assert item.doc["target"] in chains and len(set(chains)) == len(chains)
        assert all(gsm.check(item.doc, chain) for chain in chains)
    assert task.score(item, chains[0])["accuracy"] == 1
    assert task.score(item, chains[0].replace("=", "==", 1))["accuracy"] == 0
    with pytest.raises(RequestError, match="does not list its right answers"):
        load_task("nano-gsm").answers(item)


@pytest.mark.parametrize("attention", ["full", "block_causal"])
@pytest.mark.parametrize("name", ["stress-shuffle/4", "stress-latin-square/3", "nano-gsm-orders"])
def test_the_ideal_model_solves_a_task_one_token_at_a_time(name, attention, few, tokenizer):
    config = oracle_config(1024, tokenizer.mask_token_id, (tokenizer.eos_token_id,), attention)
    task = load_task(name)
    network = Oracle(config, 8 if attention == "block_causal" else task.max_tokens)
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature)
        run = Engine({"target": network}, DECODERS.get("static")(), tokenizer, batch_size=8, sampling=sampling)
        assert all(scores["accuracy"] == 1 for _, _, scores in evaluate(task, run, task.items("test", 12)))
