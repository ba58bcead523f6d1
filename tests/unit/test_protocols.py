"""Published protocols: the first prompt of each, how answers are read, what is refused and what a key depends on.

Prompts are in protocols.json, as these protocols ask the first GSM8K and HumanEval problem, in the chat markup of the
model that they are for; ids where that model has Qwen's vocabulary. Run: pytest tests/unit/test_protocols.py
"""

import json
import os
from functools import cache
from pathlib import Path

import pytest

from dlmbench.engine.prompts import prompt_ids
from dlmbench.errors import RequestError
from dlmbench.request import RunSpec
from dlmbench.request.key import digest, identity, same_request
from dlmbench.tasks import load_task
from dlmbench.tasks.protocols import DEFAULT, PROTOCOLS, asked, facts, published_as
from dlmbench.tasks.sanitise import fenced, last_block, sanitised

FIXTURE = json.loads((Path(__file__).parent / "protocols.json").read_text(encoding="utf-8"))
EVERY = [(name, task) for name, protocol in PROTOCOLS.items() for task in protocol.tasks]


_TURN, _HEAD = "<|im_start|>{role}\n{content}<|im_end|>\n", "<|start_header_id|>{role}<|end_header_id|>\n\n"
_SYSTEM = _TURN.format(role="system", content="You are a helpful assistant.")
MARKUP = {  # model -> (begin, turn, are contents trimmed, generation prompt)
    "qwen": ("", _TURN, False, "<|im_start|>assistant\n"),
    "dream": (_SYSTEM, _TURN, False, "<|im_start|>assistant\n"),
    "llada": ("<|startoftext|>", _HEAD + "{content}<|eot_id|>", True, _HEAD.format(role="assistant")),
}
MODELS = {"dream-instruct": "dream", "llada-instruct": "llada", "fastdllm": "llada"}  # else qwen's


class Template:
    """A tokenizer as far as prompts need it: the chat markup of the model that a protocol is for."""

    chat_template = "as published"

    def __init__(self, protocol):
        self.markup = MARKUP[MODELS.get(protocol, "qwen")]

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, continue_final_message, **options):
        begin, turn, trimmed, last = self.markup
        cut = str.strip if trimmed else str
        turns = "".join(turn.format(role=m["role"], content=cut(m["content"])) for m in messages)
        thought = "<think>\n\n</think>\n\n" if options.get("enable_thinking", True) is False else ""
        return begin + turns + last + thought


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dull = {"question": "What is 0+1?", "answer": "0+1=1\n#### 1"}  # in the place of items that are not drawn
    sums = [{"question": f"What is {i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(1, 300)]
    for task in ("gsm8k", "gsm8k_cot_zeroshot"):
        write(
            folder / task / "train.jsonl", [FIXTURE["train"].get(str(i), dull) for i in range(FIXTURE["train_items"])]
        )
        write(folder / task / "test.jsonl", [FIXTURE["question"], *sums])
    tests = ["assert double(2) == 4", "assert double(0) == 0", "assert double(5) == 10"]
    code = {"task_id": 11, "code": "def double(n):\n    return 2 * n", "test_list": tests}
    write(folder / "mbpp" / "test.jsonl", [{**code, "text": "Write a function that doubles."}])
    checked = {**code, "prompt": "Write a function that doubles.", "test_imports": [], "source_file": "a"}
    write(folder / "mbpp" / "sanitized" / "test.jsonl", [checked])
    write(folder / "math500" / "test.jsonl", [{"problem": "What is 1+1?", "solution": "It is $\\boxed{2}$."}])
    return str(folder)


@cache
def load(data, name, task):
    chat = PROTOCOLS[name].chat
    tokenizer = Template(name) if chat else None
    return load_task(task, data_dir=data, tokenizer=tokenizer, chat_template=chat, protocol=name)


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, task", [key.split(" ") for key in FIXTURE["prompts"]])
def test_first_prompts_are_those_that_were_written_down(data, name, task):
    expected, item = FIXTURE["prompts"][f"{name} {task}"], load(data, name, task).items(limit=1)[0]
    assert item.prompt == expected["text"] and list(item.stop) == expected["stop"]


def test_ids_are_those_of_qwens_vocabulary(data):
    """Only where the environment names a folder with that tokenizer."""
    folder = os.environ.get("DLMBENCH_QWEN_TOKENIZER")
    if not folder:
        pytest.skip("DLMBENCH_QWEN_TOKENIZER names no folder")
    from dlmbench.backbone.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    for one in FIXTURE["prompts"].values():
        if "ids" in one:
            assert list(prompt_ids(tokenizer, one["text"], True)) == one["ids"]


def test_every_protocol_of_gsm8k_and_humaneval_is_written_down():
    tasks = ("gsm8k", "humaneval")
    assert set(FIXTURE["prompts"]) == {
        f"{name} {task}" for name, task in EVERY if task in tasks and PROTOCOLS[name].tasks[task].shuffled is None
    }


def test_a_protocol_takes_its_own_items(data):
    assert load(data, "adjust", "gsm8k").size() == 250, "the first ones"
    drawn, whole = load(data, "simsd", "gsm8k"), load(data, "llada-instruct", "gsm8k")
    assert drawn.size() == 200 and whole.size() == 300
    taken = [item.doc["question"] for item in drawn.items()]
    assert taken != [item.doc["question"] for item in whole.items(limit=200)] and len(set(taken)) == 200


def test_fixed_examples_leave_the_training_items_to_the_dev_split(data):
    assert load(data, "dream-base", "gsm8k").size("dev") == FIXTURE["train_items"]


# --- reading answers ------------------------------------------------------------------------------------------------

GSM8K = [  # answer of the first problem is 18
    ("sdar", "So \\boxed{18} dollars.", 1),
    ("sdar", "\\boxed{17}, no: \\boxed{18}. That is for 4 days.", 1),
    ("sdar", "The answer is 18. There are 9 eggs.", 1),
    ("sdar", "9 eggs at 2 dollars: 18", 1),
    ("sdar", "#### 18 \nand 3 more", 0),
    ("sdar", "18.00 is \\boxed{\\$18.00}", 1),
    ("sdar", "", 0),
    ("llada-base", "9 * 2 = 18\n#### 18", 1),
    ("llada-base", "#### 18.00", 0),
    ("llada-base", "The answer is 18.", 0),
    ("llada-instruct", "The answer is 3 and then 18", 1),
    ("llada-instruct", "#### 18, for 3 days", 0),
    ("dream-base", "9 * 2 = 18. The answer is 18.", 1),
    ("dream-base", "#### 18", 0),
    ("dream-base", "The answer is $18.", 0),
    ("dream-instruct", "She makes $18", 1),
    ("dream-instruct", "18 dollars in 1 day", 0),
    ("fastdllm", "#### 18", 1),
    ("fastdllm", "\\boxed{18}", 0),
    ("prophet", "9 eggs. The answer is 18.", 1),
    ("prophet", "so it is 18", 0),
    ("adjust", "The answer is 18.", 1),
    ("dllm", "She makes 18 dollars", 1),
    ("simsd", "18", 1),
]


@pytest.mark.parametrize("name, text, accuracy", GSM8K)
def test_numbers_are_read_as_the_protocol_reads_them(data, name, text, accuracy):
    task = load(data, name, "gsm8k")
    item = next(item for item in task.items() if item.doc == FIXTURE["question"]) if name != "simsd" else None
    if item is None:
        item, text = task.items(limit=1)[0], "So " + load_answer(task)
    assert task.score(item, text)["accuracy"] == accuracy


def load_answer(task):
    return task.items(limit=1)[0].doc["answer"].rpartition(" ")[2]


BODY = "    seen = sorted(numbers)\n    return any(b - a < threshold for a, b in zip(seen, seen[1:]))\n"
WHOLE = f"def has_close_elements(numbers, threshold):\n{BODY}"
HUMANEVAL = [
    ("sdar", f"```python\n{WHOLE}```\nDone.", 1),
    ("sdar", f"```\nnothing\n```\n```python\n{WHOLE}```", 0),
    ("sdar", WHOLE, 1),
    ("llada-base", BODY, 1),
    ("llada-base", f"```python\n{WHOLE}```", 0),
    ("llada-instruct", f"Here:\n```python\n{WHOLE}```", 1),
    ("dream-base", BODY, 1),
    ("dream-base", f"Sure\n```python\nno\n```\n```python\n{WHOLE}```", 1),
    ("dream-base", f"{BODY}\nThis sorts them first.", 1),
    ("dream-instruct", f"{BODY}\n```\n", 1),
    ("dream-instruct", "```python\npass\n```", 0),
    ("fastdllm", f"```python\nfrom math import inf\n{WHOLE}print(oops)\n```", 1),
    ("dllm", f"{BODY}```\nThis works.", 1),
    ("dllm", f"I think\n{BODY}", 0),
]


@pytest.mark.parametrize("name, text, accuracy", HUMANEVAL)
def test_programs_are_read_as_the_protocol_reads_them(data, name, text, accuracy):
    task = load(data, name, "humaneval")
    assert task.score(task.items(limit=1)[0], text)["accuracy"] == accuracy


CODE = "def double(n):\n    return 2 * n\n"
MBPP = [
    ("sdar", "mbpp/sanitized", f"```python\n{CODE}```", 1),
    ("llada-base", "mbpp", CODE, 1),
    ("llada-base", "mbpp", f"```python\n{CODE}```", 0),
    ("llada-instruct", "mbpp", f"```python\n{CODE}```", 1),
    ("dream-base", "mbpp", f"{CODE}print(double(n))", 1),
    ("dream-instruct", "mbpp", f"{CODE}```\nAs asked.", 1),
    ("fastdllm", "mbpp", f"Sure:\n```python\n{CODE}```", 1),
    ("dllm", "mbpp", f"{CODE}```\nAs asked.", 1),
    ("simsd", "mbpp", CODE, 1),
]


@pytest.mark.parametrize("name, task, text, accuracy", MBPP)
def test_sentences_answered_by_programs(data, name, task, text, accuracy):
    task = load(data, name, task)
    assert task.score(task.items(limit=1)[0], text)["accuracy"] == accuracy


@pytest.mark.parametrize("name", [name for name, task in EVERY if task == "math500"])
def test_mathematics_is_compared_by_math_verify(data, name):
    pytest.importorskip("math_verify")
    task = load(data, name, "math500")
    assert task.score(task.items(limit=1)[0], "It is \\boxed{\\frac{4}{2}}.")["accuracy"] == 1


def test_sanitising_keeps_what_the_function_needs():
    needs = "import re\nLIMIT = 3\ndef helper(n):\n    return n + LIMIT\n"
    text = f"{needs}def other():\n    pass\ndef f(n):\n    return helper(n)\nf(1)"
    kept = sanitised("", f"Here it is:\n```python\n{text}\n```\nBye", "f")
    assert "helper" in kept and "LIMIT" in kept and "import re" in kept
    assert "other" not in kept and not kept.rstrip().endswith("f(1)")
    assert sanitised("", "no code", "f") == ""
    assert last_block("```python\na\n``` ```python\nb\n```") == "\nb\n" and last_block("plain") == "plain"
    assert fenced("x\n```py\na\n```\n```\nb\n```") == "a\n" and fenced("plain") == "plain"


def test_sanitising_an_answer_that_runs_in_a_loop_ends():
    assert sanitised("", "def g(:\n" * 3000, "f") == ""
    assert sanitised("def f():\n    '''x'''\n", "return (" * 2000, "f").startswith("def f")


# --- runs -----------------------------------------------------------------------------------------------------------


def spec(**given):
    return RunSpec(**{"method": "static", "task": "gsm8k", "model": "dream-7b-base", "device": "cpu", **given})


def test_the_default_changes_no_key_and_a_protocol_does():
    def key(run):
        content = {"task_version": "1", "content_hash": "c", "tokenizer": "t"}
        return digest(identity(run, {"target": "w"}, "p", {"gen_length": 64}, content))

    plain = RunSpec("threshold", "nano-gsm", device="cpu")
    assert (
        plain.protocol == DEFAULT and RunSpec.from_portable({"method": "static", "task": "gsm8k"}).protocol == DEFAULT
    )
    record = identity(plain.resolve(), {"target": "w"}, "p", {"gen_length": 64}, {})
    assert "protocol" not in json.dumps(record), "keys of runs made before there were protocols stay what they were"
    one, other = spec(protocol="dream-base").resolve(), spec(protocol="adjust").resolve()
    assert same_request(one) != same_request(other)
    assert key(plain.resolve()) == key(RunSpec("threshold", "nano-gsm", device="cpu", protocol=DEFAULT).resolve())


def test_how_answers_are_read_is_part_of_the_tasks_version(data):
    versions = {load(data, name, "gsm8k").version for name, task in EVERY if task == "gsm8k"}
    plain = load_task("gsm8k", data_dir=data).version
    assert len(versions) == len([1 for _, task in EVERY if task == "gsm8k"]) and plain not in versions


def test_a_protocol_settles_markup_bos_length_and_eos():
    run = spec(protocol="dream-base").resolve()
    assert not run.chat_template and run.gen_length == 256 and run.preset.flags.bos_on_raw_prompts
    assert spec(protocol="dream-base", gen_length=64).resolve().gen_length == 64, "length stays the user's choice"
    llada = {"model": "llada-8b-instruct", "method": "static"}
    assert spec(**llada).resolve().eos == "last"
    free = spec(**llada, protocol="fastdllm").resolve()
    assert free.eos == "free" and free.chat_template
    marked = spec(**llada, protocol="prophet").resolve()
    assert marked.fixed and marked.shared.sampling.constraint and not marked.chat_template
    assert spec(model="sdar-4b", protocol="sdar").resolve().gen_length == 4096


def test_rows_of_a_nearest_protocol_say_so():
    run = spec(model="llada-8b-instruct", protocol="llada-instruct").resolve()
    assert "(other shots)" in run.label and any("other shots" in note for note in run.notes)
    whole = spec(protocol="dream-base").resolve()
    assert "other" not in whole.label and any("top_p 0.95" in note for note in whole.notes)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"protocol": "nobody"}, "protocol"),
        ({"protocol": "sdar", "task": "mbpp"}, "mbpp/sanitized"),
        ({"protocol": "dream-base", "num_fewshot": 5}, "settles --num-fewshot"),
        ({"protocol": "dream-base", "chat_template": True}, "settles --chat-template"),
        ({"protocol": "dream-base", "bos": False}, "settles --bos"),
        ({"protocol": "prophet", "task": "nano-gsm"}, "does not ask nano-gsm"),
    ],
)
def test_what_a_protocol_does_not_do_is_refused(given, words):
    with pytest.raises(RequestError, match=words):
        spec(**given).resolve()


# --- published rows -------------------------------------------------------------------------------------------------


def test_published_rows_know_their_protocol():
    assert published_as("MRP, arXiv 2605.18817", "sdar-4b-mrp", "mbpp") == ("sdar", "mbpp/sanitized")
    assert published_as("Fast-dLLM, arXiv 2505.22618", "dream-7b-base", "gsm8k") == ("dream-base", "gsm8k")
    assert published_as("LLaDA2.0, arXiv 2512.15745", "llada2.0-mini", "gsm8k") is None
    assert published_as("KLASS, arXiv 2511.05664", "llada-8b-instruct", "gsm8k") is None


@pytest.mark.parametrize("name, task", EVERY)
def test_every_field_is_told_in_words(name, task):
    assert all(facts(name, task).values()) and asked(name, task)
