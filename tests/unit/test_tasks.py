"""Tasks: prompts and extraction are lm-eval's own, splits stay apart, errors name the remedy.

Run: pytest tests/unit/test_tasks.py
"""

import gzip
import json
import subprocess
import sys

import pytest

from dlmbench.errors import RequestError
from dlmbench.tasks import catalogue, load_task, task_files

lm_eval_tasks = pytest.importorskip("lm_eval.tasks")


def problem(index):
    return {
        "question": f"Ann has {index} pens and buys {index + 1} more. How many?",
        "answer": f"She has {index}+{index + 1} = <<{index}+{index + 1}={2 * index + 1}>>{2 * index + 1} pens.\n"
        f"#### {2 * index + 1}",
    }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def gsm_folder(tmp_path):
    write(tmp_path / "train.jsonl", [problem(i) for i in range(100, 160)])
    write(tmp_path / "test.jsonl", [problem(i) for i in range(8)])
    return tmp_path


def register(folder, monkeypatch, **settings):
    """A task file `mine` with these generation settings and the data folder beside it."""
    from dlmbench.registry import TASKS

    write(folder / "test.jsonl", [{"q": "1+1", "a": "2"}, {"q": "2+2", "a": "4"}])
    (folder / "mine.yaml").write_text(
        "task: mine\noutput_type: generate_until\ntest_split: test\ndoc_to_text: '{{q}}='\ndoc_to_target: '{{a}}'\n"
        f"generation_kwargs: {json.dumps({'until': [';'], **settings})}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {version: 2, description: sums, items: 2, needs: a folder}\n"
    )
    monkeypatch.setattr(TASKS, "_targets", dict(TASKS._targets))
    TASKS.register("mine", folder / "mine.yaml")


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr("dlmbench.tasks.data._hub_answers", lambda: False)


def lm_eval_prompts(folder, shots):
    """The prompts that lm-eval makes of its own file and seed, without dlmbench."""
    from pathlib import Path

    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval_tasks.__file__).parent / "gsm8k" / "gsm8k.yaml")
    config.pop("tag")
    rows = {s: [json.loads(line) for line in (folder / f"{s}.jsonl").open()] for s in ("train", "test")}
    config["custom_dataset"] = lambda **_: {s: datasets.Dataset.from_list(rows[s]) for s in rows}
    task = ConfigurableTask(config={**config, "num_fewshot": shots})
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    return [instance.args[0] for instance in task.instances]


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [0, 5])
def test_gsm8k_prompts_are_those_of_lm_eval(gsm_folder, shots):
    task = load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=shots)
    assert [item.prompt for item in task.items()] == lm_eval_prompts(gsm_folder, shots)


def test_a_prompt_does_not_depend_on_the_limit_or_on_what_was_asked_before(gsm_folder):
    task = load_task("gsm8k", data_dir=str(gsm_folder))
    first = task.items("test", limit=2)
    task.items("dev", limit=3)
    assert task.items("test")[:2] == first
    assert [item.key for item in first] == ["test/0", "test/1"]


def test_default_is_five_examples_and_the_stop_strings_of_lm_eval(gsm_folder):
    task = load_task("gsm8k", data_dir=str(gsm_folder))
    item = task.items(limit=1)[0]
    assert task.num_fewshot == 5 and item.prompt.count("Question:") == 6
    assert "Question:" in item.stop
    assert item.max_tokens == 256
    assert load_task("gsm8k", data_dir=str(gsm_folder), gen_length=64).items(limit=1)[0].max_tokens == 64


GSM_LINE = '{"question": "Zoë has 2?", "answer": "#### 2"}\n'


class ChatTokenizer:
    """The part of a transformers tokenizer that chat prompts need."""

    chat_template = "present"
    bos_token = "<s>"

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, continue_final_message):
        text = "".join(f"<{m['role']}>{m['content']}" + "<end>" for m in messages)
        if continue_final_message:
            text = text.removesuffix("<end>")
        return "<s>" + text + ("<assistant>" if add_generation_prompt else "")

    def encode(self, text, add_special_tokens=True):
        return [1] * add_special_tokens + [ord(c) for c in text]


def test_chat_template_makes_the_examples_earlier_turns(gsm_folder):
    task = load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=2, tokenizer=ChatTokenizer(), chat_template=True)
    prompt = task.items(limit=1)[0].prompt
    assert prompt.startswith("<s><user>Question:") and prompt.endswith("<end><assistant>")
    assert prompt.count("<user>") == 3 and prompt.count("<assistant>") == 3


def test_chat_template_of_code_tasks_leaves_the_code_block_open():
    task = load_task("humaneval", tokenizer=ChatTokenizer(), chat_template=True)
    item = task.items(limit=1)[0]
    assert item.prompt.endswith("```python\n" + item.doc["prompt"] + "\n")
    assert item.stop == ("\n```\n\n",)


def test_a_chat_template_that_does_not_exist_is_refused(gsm_folder):
    with pytest.raises(RequestError, match="--no-chat-template"):
        load_task("gsm8k", data_dir=str(gsm_folder), tokenizer=object(), chat_template=True)


def test_special_tokens_are_not_added_twice():
    from dlmbench.tasks.lm import prompt_ids

    tokenizer = ChatTokenizer()
    assert prompt_ids(tokenizer, "ab", templated=False) == (1, 97, 98)
    assert prompt_ids(tokenizer, "ab", templated=True) == (97, 98)
    assert prompt_ids(tokenizer, "<s>ab", templated=False)[0] == ord("<")


# --- splits ---------------------------------------------------------------------------------------------------------


def test_dev_items_are_in_no_test_prompt_and_in_no_dev_prompt(gsm_folder):
    task = load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=3)
    test, dev = task.items("test"), task.items("dev")
    assert dev and not {i.key for i in dev} & {i.key for i in test}
    shown = "".join(item.prompt for item in test) + "".join(item.prompt.rpartition("Question:")[0] for item in dev)
    assert not [item.key for item in dev if item.doc["question"] in shown]


def test_without_examples_all_training_items_are_dev(gsm_folder):
    task = load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=0)
    assert task.size("dev") == 60 and task.size("test") == 8


def test_tasks_without_a_second_split_have_no_dev_items():
    with pytest.raises(RequestError, match="no dev items"):
        load_task("humaneval").items("dev")
    with pytest.raises(RequestError, match="test and dev"):
        load_task("humaneval").items("train")


# --- scoring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "accuracy", "strict", "flexible", "unparsed"),
    [
        (" 5+6 = 11\n#### 11", 1, 1, 1, False),
        ("#### 11.", 1, 1, 1, False),
        ("#### $11", 1, 0, 1, False),  # the strict pattern wants a digit after the marks
        ("so it is 11 pens", 1, 0, 1, False),
        ("#### 12", 0, 0, 0, False),
        ("first 11, then 3", 0, 0, 0, False),  # without a mark the last number counts
        ("no idea", 0, 0, 0, True),
        ("", 0, 0, 0, True),
    ],
)
def test_strict_and_flexible_extraction(gsm_folder, text, accuracy, strict, flexible, unparsed):
    task = load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=0)
    scores = task.score(task.items()[5], text)
    assert scores == {"accuracy": accuracy, "strict": strict, "flexible": flexible, "unparsed": unparsed}


def test_score_many_keeps_the_order(gsm_folder):
    task = load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=0)
    scores = task.score_many((item, f"#### {2 * i + 1 + i % 2}") for i, item in enumerate(task.items()))
    assert [s["accuracy"] for s in scores] == [1, 0] * 4


def test_humaneval_programs_are_the_prompt_and_the_answer():
    task = load_task("humaneval")
    item = task.items(limit=3)[2]  # truncate_number
    solution = item.doc["canonical_solution"]
    answers = [solution, "    return 7\n", "    return (", "", "    import os\n    os._exit(0)\n"]
    scores = task.score_many([(item, answer) for answer in answers])
    assert [s["accuracy"] for s in scores] == [1, 0, 0, 0, 0]
    assert [s["unparsed"] for s in scores] == [False, False, True, True, False]
    assert [s["verdict"] for s in scores] == ["passed", "failed", "failed", "failed", "crashed"]
    assert task.lm_task.process_results(item.doc, [solution]) == {"pass@1": 1.0}  # what lm-eval calls


def test_mbpp_programs_are_the_answer(mbpp_folder):
    task = load_task("mbpp", data_dir=str(mbpp_folder), num_fewshot=0)
    item = task.items()[0]
    answers = (item.doc["code"], "def add(a, b):\n    return 0", "x = 1")
    right, wrong, other = (task.score(item, answer) for answer in answers)
    assert (right["accuracy"], wrong["accuracy"], other["accuracy"]) == (1, 0, 0)
    assert (right["unparsed"], wrong["unparsed"], other["unparsed"]) == (False, False, True)


# --- data -----------------------------------------------------------------------------------------------------------


def test_without_network_the_error_names_both_remedies(no_network):
    with pytest.raises(RequestError) as error:
        load_task("gsm8k")
    for word in ("no network", "HF_HOME", "--data-dir", "test.jsonl", "train.jsonl"):
        assert word in str(error.value)


def test_without_train_only_zero_shot(gsm_folder):
    (gsm_folder / "train.jsonl").unlink()
    with pytest.raises(RequestError, match="5 examples needs train.jsonl .* --num-fewshot 0"):
        load_task("gsm8k", data_dir=str(gsm_folder))
    task = load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=0)
    assert task.size() == 8
    with pytest.raises(RequestError, match="no dev items"):
        task.items("dev")


def test_a_folder_of_several_tasks_has_subfolders(gsm_folder, tmp_path_factory):
    parent = tmp_path_factory.mktemp("data")
    gsm_folder.rename(parent / "gsm8k")
    assert load_task("gsm8k", data_dir=str(parent)).size() == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "a"}\n', "test.jsonl, line 1, has no field 'answer'"),
        ('{"question": "a", "answer": "#### 1"}\n{"quest', "test.jsonl, line 2, is not JSON"),
        ("\n", "test.jsonl .* is empty"),
        ('["a"]\n', "test.jsonl, line 1, is a JSON list"),
        ('{"question": null, "answer": "#### 1"}\n', "test.jsonl, line 1, has null as 'question'"),
        ('\n{"question": "a", "answer": null}\n', "test.jsonl, line 2, has null as 'answer'"),
        ('{"question": "\\ud83d?", "answer": "#### 2"}\n', "test.jsonl, line 1, has half a character"),
        ('{"question": "a", "answer": "#### 1", "n": ' + "9" * 5000 + "}\n", "test.jsonl, line 1, is not JSON"),
        ("[" * 100_000, "test.jsonl, line 1, is nested too deeply"),
        (GSM_LINE.encode("utf-16"), "test.jsonl is in UTF-16; save it as UTF-8"),
        (b"\n" + GSM_LINE.encode("latin-1"), r"test.jsonl, line 2, is not UTF-8 \(byte 0xeb at 17\)"),
        (gzip.compress(GSM_LINE.encode(), mtime=0), "test.jsonl is compressed with gzip; unpack it"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    (tmp_path / "test.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    with pytest.raises(RequestError, match=message):
        load_task("gsm8k", data_dir=str(tmp_path), num_fewshot=0)


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    (tmp_path / "test.jsonl").write_bytes(b"\xef\xbb\xbf" + GSM_LINE.encode())
    assert load_task("gsm8k", data_dir=str(tmp_path), num_fewshot=0).items()[0].doc["question"] == "Zoë has 2?"


def test_a_field_of_any_type_in_any_row_is_kept(tmp_path):
    """What rows have beside the fields of the task decides nothing, and is there for those who read it."""
    rows = [problem(0), {**problem(1), "id": 1}, {**problem(2), "id": "b2", "n": 2**64}, {**problem(3), "id": ["x"]}]
    write(tmp_path / "test.jsonl", rows)
    task = load_task("gsm8k", data_dir=str(tmp_path), num_fewshot=0)
    assert [item.doc["id"] for item in task.items()] == [None, 1, "b2", ["x"]]
    assert [item.doc["n"] for item in task.items()] == [None, None, 2**64, None]
    assert [item.doc["question"] for item in task.items()] == [row["question"] for row in rows]


@pytest.mark.parametrize("order", [1, -1])
def test_a_program_has_its_setup_whatever_the_order_of_the_rows(tmp_path, order):
    code = "def h(x): return x"
    plain = {"task_id": 1, "text": "a", "code": "def g(x): return x", "test_list": ["assert g(1) == 1"] * 3}
    with_setup = {"task_id": "2", "text": "c", "code": code, "test_list": ["assert h(ONE) == 1"] * 3}
    rows = [plain, {**with_setup, "test_setup_code": "ONE = 1"}]
    write(tmp_path / "test.jsonl", rows[::order])
    task = load_task("mbpp", data_dir=str(tmp_path), num_fewshot=0)
    item = next(item for item in task.items() if item.key == "2")
    assert task.score(item, code)["verdict"] == "passed"


def test_rows_answer_what_lm_evals_helpers_ask_of_a_data_set():
    from dlmbench.tasks.data import Records

    rows = Records([{"a": 1}, {"b": "x"}])
    assert rows.column_names == list(rows.features) == ["a", "b"] and rows["a"] == [1, None]
    assert list(rows.map(lambda row: {"c": row["a"]}))[0] == {"a": 1, "b": None, "c": 1}
    assert len(rows.filter(lambda row: row["b"])) == 1
    assert rows.select([1])[0] == rows[1] and rows.map(lambda row: row, remove_columns=["b"]).column_names == ["a"]


def test_a_row_that_does_not_fit_the_prompt_is_named(tmp_path):
    row = {"task_id": 1, "text": "a", "code": "def g(x): return x", "test_list": ["assert g(1) == 1"] * 3}
    write(tmp_path / "test.jsonl", [row, {**row, "task_id": 2, "test_list": ["assert g(1) == 1"]}])
    task = load_task("mbpp", data_dir=str(tmp_path), num_fewshot=0)
    assert len(task.items(limit=1)) == 1
    with pytest.raises(RequestError, match="Item 2 of the test items of task mbpp does not fit .*no element 1"):
        task.items()


def test_the_users_items_of_a_task_that_ships_its_own(tmp_path):
    row = {"task_id": "mine/0", "prompt": "def g():\n", "entry_point": "g", "canonical_solution": "    return 1\n",
           "test": "def check(c):\n    assert c() == 1\n"}  # fmt: skip
    write(tmp_path / "test.jsonl", [row])
    task = load_task("humaneval", data_dir=str(tmp_path))
    assert [item.key for item in task.items()] == ["mine/0"]
    assert task.score(task.items()[0], row["canonical_solution"])["verdict"] == "passed"
    with pytest.raises(RequestError, match="nano-gsm brings its own items .* leave out --data-dir"):
        load_task("nano-gsm", data_dir=str(tmp_path))
    for name in ("humaneval", "nano-gsm/easy"):
        with pytest.raises(RequestError, match="does not exist"):
            load_task(name, data_dir=str(tmp_path / "nowhere"))


def test_a_folder_of_other_tasks_says_nothing_about_a_task_that_ships_its_items(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    write(tmp_path / "gsm8k" / "test.jsonl", [problem(0)])
    assert load_task("humaneval", data_dir=str(tmp_path)).size() == 164
    assert load_task("nano-gsm/easy", data_dir=str(tmp_path)).size() == 200
    (tmp_path / "humaneval").mkdir()
    with pytest.raises(RequestError, match="no test.jsonl"):
        load_task("humaneval", data_dir=str(tmp_path))


def test_missing_folder_and_missing_test_file(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        load_task("gsm8k", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(RequestError, match="no test.jsonl"):
        load_task("gsm8k", data_dir=str(tmp_path), num_fewshot=0)


def test_text_with_a_line_separator_is_one_line(tmp_path):
    row = {"question": "a\u2028b", "answer": "#### 1"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert load_task("gsm8k", data_dir=str(tmp_path), num_fewshot=0).items()[0].doc["question"] == "a\u2028b"


def test_too_few_examples(gsm_folder):
    with pytest.raises(RequestError, match="61 examples, but its train split has only 60"):
        load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=61)
    with pytest.raises(RequestError, match="negative"):
        load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=-1)


def test_hashes_follow_data_and_prompts(gsm_folder):
    one, other = (load_task("gsm8k", data_dir=str(gsm_folder), num_fewshot=n) for n in (0, 2))
    assert one.content_hash == other.content_hash
    assert one.prompt_hash() != other.prompt_hash()
    assert one.prompt_hash(limit=3) != one.prompt_hash(limit=4)
    write(gsm_folder / "test.jsonl", [problem(i) for i in range(9)])
    assert load_task("gsm8k", data_dir=str(gsm_folder)).content_hash != one.content_hash


def test_humaneval_needs_no_network(no_network):
    task = load_task("humaneval")
    items = task.items()
    assert len(items) == 164 and items[0].key == "HumanEval/0"
    assert items[0].prompt == items[0].doc["prompt"]
    assert {"\nclass", "\ndef", "\n#", "\nif", "\nprint"} <= set(items[0].stop)


def test_humaneval_has_no_examples_to_show():
    with pytest.raises(RequestError, match="--num-fewshot 0"):
        load_task("humaneval", num_fewshot=3)


@pytest.fixture
def mbpp_folder(tmp_path):
    row = {
        "task_id": 11,
        "text": "Write a function to add two numbers.",
        "code": "def add(a, b):\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"],
    }
    write(tmp_path / "test.jsonl", [row])
    return tmp_path


def test_mbpp_shows_lm_evals_three_examples(mbpp_folder):
    task = load_task("mbpp", data_dir=str(mbpp_folder))
    item = task.items()[0]
    assert item.key == "11" and item.stop == ("[DONE]",)
    assert item.prompt.count("You are an expert Python programmer") == 4 and item.prompt.endswith("[BEGIN]\n")
    assert "similar_elements" in item.prompt
    assert "evaluate" not in sys.modules or not hasattr(sys.modules.get("lm_eval.tasks.mbpp.utils"), "pass_at_k")


# --- the shipped tasks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tier", "count"),
    [("nano-gsm", "full", 500), ("nano-gsm/easy", "easy", 200), ("nano-gsm/symbolic", "symbolic", 200)],
)
def test_tiers_of_nano_gsm(name, tier, count):
    task = load_task(name)
    test, dev = task.items("test"), task.items("dev")
    assert len(test) == count and {item.doc["tier"] for item in test + dev} == {tier}
    assert not {item.key for item in test} & {item.key for item in dev}
    assert test[0].prompt == test[0].doc["question"] + "<|sep|>" and test[0].stop == ()
    assert all(score["accuracy"] == 1 for score in task.score_many((i, i.doc["target"]) for i in test))
    wrong = task.score(test[0], test[0].doc["target"] + "0")
    assert (wrong["accuracy"], wrong["strict"], wrong["flexible"], wrong["unparsed"]) == (0, 0, 0, False)


def test_the_default_tier_has_a_name_too():
    assert load_task("nano-gsm/full").name == "nano-gsm"


def test_nano_code_is_judged_by_running_it():
    task = load_task("nano-code")
    items = task.items(limit=6)
    assert task.size() == 500 and task.size("dev") == 200
    assert items[0].prompt.endswith("):<|sep|>") and items[0].stop == ()
    assert all(score["verdict"] == "passed" for score in task.score_many((i, i.doc["target"]) for i in items))
    for answer, verdict, unparsed in (("\n    return 3.5", "failed", False), (" return (", "failed", True)):
        assert task.score(items[0], answer) == {"accuracy": 0.0, "unparsed": unparsed, "verdict": verdict}


@pytest.mark.parametrize("name", ["nano-gsm", "nano-gsm/easy", "nano-gsm/symbolic", "nano-code"])
def test_every_shipped_target_fits_the_token_budget(name):
    from tokenizers import Tokenizer

    from dlmbench.models.presets import ASSETS

    tokenizer = Tokenizer.from_file(str(ASSETS / "nano" / "tokenizer" / "tokenizer.json"))
    task = load_task(name)
    for item in task.items("test") + task.items("dev"):
        assert len(tokenizer.encode(item.doc["target"]).ids) + 1 <= item.max_tokens


def test_the_nano_files_are_plain_lm_eval_files():
    manager = lm_eval_tasks.TaskManager(include_path=str(task_files.FOLDER / "nano_gsm"), include_defaults=False)
    task = manager.load("nano-gsm")["tasks"]["nano-gsm"]
    task.build_all_requests(limit=3)
    assert [i.args[0] for i in task.instances] == [i.prompt for i in load_task("nano-gsm").items(limit=3)]


# --- names ----------------------------------------------------------------------------------------------------------


def test_catalogue_imports_nothing_heavy():
    code = (
        "import sys, dlmbench.tasks as t; rows = t.catalogue(); "
        "print(len(rows), [m for m in ('torch', 'lm_eval', 'datasets', 'transformers', 'pandas') if m in sys.modules])"
    )
    count, _, heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.partition(" ")
    assert int(count) >= 8 and heavy.strip() == "[]"


def test_every_row_of_the_catalogue_is_described():
    for row in catalogue():
        assert row.name and row.description and row.needs and row.items > 0


def test_unknown_variant_names_the_known_ones():
    with pytest.raises(RequestError, match="nano-gsm/easy"):
        load_task("nano-gsm/hard")


def test_a_registered_file_is_a_task(tmp_path, monkeypatch):
    register(tmp_path, monkeypatch, max_gen_toks=4)
    task = load_task("mine", data_dir=str(tmp_path))
    item = task.items()[1]
    assert (item.prompt, item.stop, item.max_tokens, task.version) == ("2+2=", (";",), 4, "2")
    assert task.score(item, "4")["accuracy"] == 1 and task.score(item, "5")["accuracy"] == 0
    assert "mine" in [row.name for row in catalogue()]


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, 256),
        ({"max_new_tokens": 5}, 5),
        ({"max_tokens": 6}, 6),
        ({"max_completion_tokens": 7}, 7),
        ({"max_new_tokens": 5, "max_gen_toks": 4}, 4),
    ],
)
def test_the_budget_of_a_task_file_under_any_of_its_names(tmp_path, monkeypatch, settings, tokens):
    register(tmp_path, monkeypatch, **settings)
    assert load_task("mine", data_dir=str(tmp_path)).items(limit=1)[0].max_tokens == tokens


def test_a_task_of_several_answers_an_item_is_refused(tmp_path, monkeypatch):
    register(tmp_path, monkeypatch)
    with (tmp_path / "mine.yaml").open("a") as file:
        file.write("repeats: 64\n")
    with pytest.raises(RequestError, match="64 answers an item together and dlmbench makes one"):
        load_task("mine", data_dir=str(tmp_path))


def test_known_keys_of_task_files_are_those_that_are_told_and_those_that_are_shipped():
    import re

    from dlmbench import tasks
    from dlmbench.tasks import task_files

    told = {key for line in re.findall(r"^    ([a-z][a-z_, ]*?)  +\S", tasks.__doc__, re.M) for key in line.split(", ")}
    shipped = {key for path in task_files._paths().values() for key in task_files._metadata(path)}
    assert {"gen_length", "needs", "from_local"} <= told and told | shipped <= task_files.KNOWN


def test_a_misspelt_key_of_a_task_file_is_refused(tmp_path, monkeypatch):
    register(tmp_path, monkeypatch)
    written = (tmp_path / "mine.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(written.replace("{version: 2", "{gen_lenght: 16, of_a_method: 1, version: 2"))
    with pytest.raises(RequestError, match="nothing reads metadata 'gen_lenght'; did you mean gen_length"):
        load_task("mine", data_dir=str(tmp_path))


def test_a_shipped_name_cannot_be_registered_again(tmp_path, monkeypatch):
    from dlmbench.registry import TASKS

    monkeypatch.setattr(TASKS, "_targets", dict(TASKS._targets))
    TASKS.register("gsm8k", tmp_path / "mine.yaml")
    with pytest.raises(RequestError, match="another name"):
        load_task("humaneval")


def test_lm_evals_unsafe_and_likelihood_tasks_are_refused():
    with pytest.raises(RequestError, match="sandbox"):
        load_task("humaneval_plus")
    with pytest.raises(RequestError, match="multiple_choice"):
        load_task("hellaswag")


def test_a_task_of_lm_eval_by_its_name(tmp_path):
    write(tmp_path / "validation.jsonl", [{"question": "who is it", "answer": ["Me", "Myself"]}])
    write(tmp_path / "train.jsonl", [{"question": f"why {i}", "answer": [f"so {i}"]} for i in range(5)])
    task = load_task("nq_open", data_dir=str(tmp_path), num_fewshot=2)
    item = task.items()[0]
    assert item.prompt.startswith("Answer these questions:\n\nQ: why") and item.prompt.endswith("Q: who is it?\nA:")
    assert item.stop == ("\n", ".", ",")
    answers = (" Myself", " You", "  ")
    assert [(s["accuracy"], s["unparsed"]) for s in task.score_many((item, a) for a in answers)] == [
        (1, False), (0, False), (0, True),
    ]  # fmt: skip
    assert task.size("dev") == 3  # two of five are shown


@pytest.mark.slow
def test_unknown_names_are_looked_up_in_lm_evals_index():
    with pytest.raises(RequestError, match="did you mean"):
        load_task("gsm8kk")
    with pytest.raises(RequestError, match="group"):
        load_task("mmlu")
