"""Answers as real models write them: the number, the program, the end. pytest tests/unit/test_answers.py"""

import json
import re

import pytest

from dlmbench.engine.text import Text
from dlmbench.tasks import answers, load_task

SUM = "Janet sells 16 - 3 - 4 = 9 duck eggs a day. She makes 9 * 2 = $18 every day."


class ChatML:
    """The part of a tokenizer that prompts need, with the markup of Qwen and SDAR."""

    chat_template = "present"
    bos_token = None

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, continue_final_message):
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        return text + "<|im_start|>assistant\n" * add_generation_prompt


def write(folder, rows, name="test"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def cut(text, stop):
    """What the engine leaves of a text."""
    return text[: min((at for at in (text.find(string) for string in stop) if at >= 0), default=len(text))]


# --- numbers --------------------------------------------------------------------------------------------------------

GSM8K = {  # answer -> is its number 18?
    "a hash": (f"{SUM}\n#### 18", 1),
    "a hash without a blank": (f"{SUM}\n####18", 1),
    "a hash and money": (f"{SUM}\n#### $18", 1),
    "a hash and cents": (f"{SUM}\n#### 18.00", 1),
    "a hash and a full stop": (f"{SUM}\n#### 18.", 1),
    "a hash in bold": (f"{SUM}\n#### **18**", 1),
    "a hash and a unit": (f"{SUM}\n#### 18 dollars", 1),
    "a hash and words": (f"{SUM}\n#### Final Answer: 18", 1),
    "a hash and a box": ("#### \\boxed{18}", 1),
    "a hash and a line after it": ("#### 18\n\nSo the answer is 18 dollars for 7 days.", 1),
    "a heading and a hash": ("#### 1. Count the 9 eggs\n#### Step 2: 9 * 2\n#### 18", 1),
    "three marks": (f"{SUM}\n### 18", 1),
    "a box": (f"{SUM}\n\n\\boxed{{18}}", 1),
    "a box in a sentence": (f"{SUM}\n\nThe final answer is $\\boxed{{18}}$.", 1),
    "a box in display math": ("$$\n\\boxed{18}\n$$", 1),
    "a box in brackets": ("\\[\n\\boxed{18}\n\\]", 1),
    "a box behind bold words": ("**Final Answer:** \\boxed{18}.", 1),
    "a box with money": ("Therefore, Janet makes $\\boxed{\\$18}$ every day.", 1),
    "a box and a tail": (f"{SUM}\n\n\\boxed{{18}}\n\nThis is 2 dollars for each of the 9 eggs.", 1),
    "a box with cents": ("\\boxed{18.00}", 1),
    "a box with a unit": ("\\boxed{18\\text{ dollars}}", 1),
    "a box with bold": ("\\boxed{\\textbf{18}}", 1),
    "a box with an equation": ("\\boxed{9 \\times 2 = 18}", 1),
    "a box with a fraction": ("\\boxed{\\frac{36}{2}}", 1),
    "a box with another fraction": ("\\boxed{\\frac{18}{7}}", 0),
    "two boxes": ("First \\boxed{9} eggs, then \\boxed{18} dollars.", 1),
    "a box that is cut off": ("So she makes \\boxed{18", 1),
    "a box without a number": ("It is 18. Put it within \\boxed{}.", 1),
    "a box behind a thought": (f"<think>\n\\boxed{{7}}\n</think>\n\n{SUM}\n\n\\boxed{{18}}", 1),
    "words": (f"{SUM} The answer is 18.", 1),
    "words and money": (f"{SUM} The answer is $18", 1),
    "words and cents": (f"{SUM} The answer is 18.00", 1),
    "words and an equation": ("The answer is 9 * 2 = 18, for 7 days.", 1),
    "words and more numbers": ("The answer is 18 3 3 3", 1),
    "words and an end of turn": ("The answer is 18<|im_end|>", 1),
    "final answer": ("Final answer: $18.", 1),
    "answer in bold": (f"{SUM}\n\n**Answer: 18**", 1),
    "answer on the next line": ("**Answer:**\n\n18 dollars, for 9 eggs", 1),
    "bold at the end": ("So she makes **$18** per day.", 1),
    "math at the end": ("$18$", 1),
    "an equation in math": ("x = 18$$", 1),
    "a list": ("- 9 eggs\n- 18 dollars", 1),
    "another question": (f"{SUM}\n#### 18\n\nQuestion: Bob has 5", 1),
    "another number at the end": ("She makes 18 dollars per day, for all 7 days", 0),
    "two numbers": ("she earns 18, and 9 eggs.", 0),
    "a negative number": ("#### -18", 0),
    "a larger number": ("#### 180", 0),
    "a number in words": ("She makes eighteen dollars.", 0),
    "nothing": ("", 0),
}


@pytest.fixture(scope="module")
def gsm8k_folder(tmp_path_factory):
    rows = [{"question": "Eggs?", "answer": "9 * 2 = <<9*2=18>>18\n#### 18"}, {"question": "?", "answer": "#### 1,800"},
            {"question": "?", "answer": "#### -3"}]  # fmt: skip
    folder = tmp_path_factory.mktemp("data")
    write(folder, [{"question": "2+2?", "answer": "#### 4"}] * 8, "train")
    return write(folder, rows)


@pytest.fixture(scope="module")
def gsm8k(gsm8k_folder):
    chat = {"tokenizer": ChatML(), "chat_template": True}
    return {
        "chat": load_task("gsm8k", data_dir=gsm8k_folder, num_fewshot=0, **chat),
        "examples": load_task("gsm8k", data_dir=gsm8k_folder, **chat),
        "raw": load_task("gsm8k", data_dir=gsm8k_folder),
        "words": load_task("gsm8k_cot_zeroshot", data_dir=gsm8k_folder),
    }


@pytest.mark.parametrize("asked", ["chat", "examples", "raw", "words"])
@pytest.mark.parametrize(("text", "right"), GSM8K.values(), ids=GSM8K)
def test_the_number_that_an_answer_states_is_found(gsm8k, asked, text, right):
    task = gsm8k[asked]
    item = task.items()[0]
    scores = task.score(item, cut(text, item.stop))
    assert scores["accuracy"] == right
    assert set(scores) == {"accuracy", "strict", "flexible", "unparsed"}
    assert scores["unparsed"] == (not re.search(r"\d", text))


@pytest.mark.parametrize(
    "text",
    ["#### 1800", "#### 1,800", "#### $1,800", "#### $1,800.00", "\\boxed{1,800}", "\\boxed{1{,}800}",
     "\\boxed{1\\,800}", "\\boxed{\\$1,800.00}", "The answer is 1,800.", "The answer is $1,800.00.", "#### 1800.0",
     "**$1,800**"],
)  # fmt: skip
def test_thousands_and_money_are_spellings_of_a_number(gsm8k, text):
    for task in gsm8k.values():
        assert task.score(task.items()[1], text)["accuracy"] == 1


@pytest.mark.parametrize(
    "text", ["#### -3", "#### -$3", "\\boxed{-3}", "The answer is $-3$.", "It is \u22123", "5 - 8 = -3"]
)
def test_a_negative_number_keeps_its_sign(gsm8k, text):
    for task in gsm8k.values():
        assert task.score(task.items()[2], text)["accuracy"] == 1
    assert gsm8k["raw"].score(gsm8k["raw"].items()[2], "from 5 to 8-3")["accuracy"] == 0


@pytest.mark.parametrize("piece", ["\\boxed{", "answer ", "answer is ", "#### ", "1,", " ", "\\text{", "9 - ", "```\n"])
def test_text_in_a_loop_is_read_in_no_time(gsm8k, humaneval, piece):
    """Ten thousand repetitions: a search that begins again at each of them would take minutes."""
    for task in (*gsm8k.values(), *humaneval.values()):
        assert task.score(task.items(limit=1)[0], piece * 10_000)["accuracy"] == 0


def test_each_wording_says_where_it_looks_first(gsm8k):
    text = "The answer is 18. \\boxed{5}\n#### 7"
    found = {asked: task.score(task.items()[0], text)["accuracy"] for asked, task in gsm8k.items()}
    assert found == {"chat": 0, "examples": 0, "raw": 0, "words": 1}
    assert answers.stated(text, ("boxed",)) == "5" and answers.stated(text, ("hash",)) == "7"


def test_strict_and_flexible_follow_the_wording(gsm8k):
    def columns(asked, text):
        scores = gsm8k[asked].score(gsm8k[asked].items()[0], text)
        return scores["strict"], scores["flexible"]

    assert columns("raw", "#### 18.00") == columns("examples", "#### 18") == (1, 1)  # lm-eval's patterns, as numbers
    assert columns("raw", "\\boxed{18}") == (0, 1)
    assert columns("chat", "\\boxed{18}") == (1, 1)
    assert columns("chat", "#### 18") == columns("chat", "The answer is 18.") == (0, 1)
    assert columns("chat", "\\boxed{18} for 7 days") == (1, 0)
    assert columns("words", "The answer is 18.") == (1, 1)
    assert columns("words", "It is 18.") == (0, 1)


def test_a_chat_model_at_0_shots_is_asked_for_a_box(gsm8k):
    sentence = "Please reason step by step, and put your final answer within \\boxed{}."
    item = gsm8k["chat"].items()[0]
    assert item.prompt == f"<|im_start|>user\nEggs?\n{sentence}<|im_end|>\n<|im_start|>assistant\n"
    assert "Question:" not in item.stop
    assert sentence not in gsm8k["examples"].items()[0].prompt + gsm8k["raw"].items()[0].prompt
    assert gsm8k["raw"].items()[0].stop[0] == "Question:"


def test_the_zero_shot_wording_has_its_own_marker_for_prophet(gsm8k):
    assert gsm8k["words"].items()[0].prompt == "Q: Eggs?\nA: Let's think step by step."
    assert gsm8k["words"].metadata["answer"] == gsm8k["raw"].metadata["answer"]


def test_nano_gsm_reads_what_it_always_read():
    task = load_task("nano-gsm")
    item = task.items(limit=1)[0]
    target = item.doc["target"]
    number = target.rpartition(" ")[2]
    assert task.version == "1.0"
    assert task.score(item, target)["accuracy"] == 1
    for text in (f"\\boxed{{{number}}}", f"The answer is {number}.", f"#### ${number}"):
        assert task.score(item, text)["accuracy"] == 0


@pytest.fixture(scope="module")
def math500(tmp_path_factory):
    pytest.importorskip("math_verify")
    rows = [{"problem": "How many divisors has 196?", "solution": "A total of $3\\cdot3=\\boxed{9}$ factors."},
            {"problem": "Polar?", "solution": "They are $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$"}]  # fmt: skip
    folder = write(tmp_path_factory.mktemp("data"), rows)
    return load_task("math500", data_dir=folder, num_fewshot=0, tokenizer=ChatML(), chat_template=True)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "So it is $\\boxed{9}$."), (0, "\\boxed{9}"), (0, "The answer is 9."), (0, "**9**"), (0, "9 divisors"),
     (0, "Final Answer: The final answer is $9$. I hope it is correct."), (0, "**Problem:** we count.\n\n\\boxed{9}"),
     (0, "### Problem: x\n\\boxed{9}"), (0, "\\boxed{9 \\text{ divisors}}"), (0, "\\boxed{3\\cdot3}"),
     (1, "$\\boxed{(3, \\frac{\\pi}{2})}$"), (1, "\\boxed{(3, \\pi/2)}"), (1, "$(3, \\frac{\\pi}{2})$")],
)  # fmt: skip
def test_mathematics_is_compared_by_value_and_no_heading_ends_a_chat_answer(math500, number, text):
    item = math500.items()[number]
    assert math500.score(item, cut(text, item.stop))["accuracy"] == 1


# --- programs -------------------------------------------------------------------------------------------------------

SIGNATURE = "def has_close_elements(numbers: List[float], threshold: float) -> bool:\n"
BODY = """\
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            if abs(numbers[i] - numbers[j]) < threshold:
                return True
    return False
"""
IMPORT = "from typing import List\n\n"
FLAT = "".join(line[4:] for line in BODY.splitlines(keepends=True))
EXAMPLE = "```\n>>> has_close_elements([1.0], 1)\nFalse\n```\n"
HUMANEVAL = {
    "a body": BODY,
    "a body and a closed fence": BODY + "```\n\nThis function checks every pair.",
    "a body and a fence closed on its last line": BODY.rstrip() + "```",
    "a newline and a body": "\n" + BODY,
    "a body without its first indent": BODY[4:],
    "a body that lost a blank": BODY[1:],
    "a body without indent": FLAT,
    "a body with tabs": BODY.replace("    ", "\t"),
    "a body behind a fence": "```python\n" + BODY + "```",
    "a body without indent behind a fence": "Here it is:\n\n```python\n" + FLAT + "```\n",
    "a fence and the function": "```python\n" + IMPORT + SIGNATURE + BODY + "```",
    "text, a fence, the function and text": "Here is the solution:\n\n```python\n" + IMPORT + SIGNATURE + BODY
    + "```\n\nIt compares all pairs.",
    "a fence without a language": "Here is the solution:\n\n```\n" + SIGNATURE + BODY + "```\nDone.",
    "a fence of tildes": "~~~python\n" + SIGNATURE + BODY + "~~~\n",
    "a fence with a short name": "```py\n" + SIGNATURE + BODY + "```",
    "a fence that is not closed": "```python\n" + SIGNATURE + BODY,
    "the function again": IMPORT + SIGNATURE + BODY,
    "the signature again": SIGNATURE + BODY,
    "a fence and the signature": "```python\n" + SIGNATURE + BODY + "```",
    "an example, then the function": "Examples:\n" + EXAMPLE + "Now:\n```python\n" + SIGNATURE + BODY + "```",
    "the function, then another": "```python\n" + SIGNATURE + BODY + "```\nor\n```\n" + SIGNATURE + "    pass\n```",
    "a helper, then the function": "    return _close(numbers, threshold)\n\ndef _close(numbers, threshold):\n" + BODY,
    "the function with a future import": "```python\nfrom __future__ import annotations\n" + SIGNATURE + BODY + "```",
    "an example call": BODY + "\n# Example\nprint(has_close_elements([1.0, 2.0], 0.5))\n",
    "a main part": BODY + "\nif __name__ == '__main__':\n    print(has_close_elements([1.0], 1))\n",
    "a class behind it": BODY + "\nclass A:\n    pass\n",
    "an empty thought and a fence": "<think>\n\n</think>\n\n```python\n" + SIGNATURE + BODY + "```",
    "a thought with code and a fence": "<think>\n```python\n" + SIGNATURE + "    pass\n```\n</think>\n```python\n"
    + SIGNATURE + BODY + "```",
}  # fmt: skip


@pytest.fixture(scope="module")
def humaneval():
    return {chat: load_task("humaneval", tokenizer=ChatML() if chat else None, chat_template=chat) for chat in (0, 1)}


@pytest.mark.parametrize("text", HUMANEVAL.values(), ids=HUMANEVAL)
def test_a_chat_models_function_is_found(humaneval, text):
    item = humaneval[1].items(limit=1)[0]
    assert humaneval[1].score(item, cut(text, item.stop))["verdict"] == "passed"


def test_the_prompt_repeated_is_a_program_too(humaneval):
    item = humaneval[1].items(limit=1)[0]
    for text in (item.doc["prompt"] + BODY, "```python\n" + item.doc["prompt"] + BODY + "```"):
        assert humaneval[1].score(item, cut(text, item.stop))["verdict"] == "passed"


@pytest.mark.parametrize("name", [name for name, text in HUMANEVAL.items() if text.lstrip(" \n")[:3] == "for"])
def test_a_base_models_body_is_found(humaneval, name):
    item = humaneval[0].items(limit=1)[0]
    assert humaneval[0].score(item, cut(HUMANEVAL[name], item.stop))["verdict"] == "passed"


def test_what_is_no_function_is_unparsed(humaneval):
    task, item = humaneval[1], humaneval[1].items(limit=1)[0]
    for text in ("", "```python\n```", "I cannot do that.", "    return (", "<think>\n```python\n" + SIGNATURE):
        scores = task.score(item, text)
        assert (scores["accuracy"], scores["unparsed"]) == (0, True)


def test_helpers_above_the_signature_stay_with_a_function_that_is_written_again(humaneval):
    item = humaneval[1].items(limit=33)[32]  # find_zero uses poly of the prompt
    body = item.doc["canonical_solution"]
    text = f"```python\ndef find_zero(xs: list):\n{body}```"
    assert humaneval[1].score(item, text)["verdict"] == "passed"


def test_a_plain_body_is_run_exactly_as_it_is(humaneval):
    for item in humaneval[0].items():
        solution = item.doc["canonical_solution"]
        assert humaneval[0].metadata["program"](item.doc, solution) == item.doc["prompt"] + solution


def test_a_code_block_ends_a_chat_answer_only_where_it_is_closed(humaneval):
    stop = humaneval[1].items(limit=1)[0].stop
    assert cut(BODY + "```\n\nThis checks.", stop) == BODY.rstrip("\n")
    for opening in ("```python\n", "Solution:\n\n```\n", "Solution:\n\n```python\n\n"):
        assert cut(opening + BODY, stop) == opening + BODY


CODE = "def add(a, b):\n    c = a + b\n    return c\n"
MBPP = {
    "code": CODE,
    "code and a closed fence": CODE + "```\nIt works",
    "a fence": "```python\n" + CODE + "```",
    "text, a fence and text": "Sure:\n\n```python\n" + CODE + "```\nok",
    "a fence of tildes": "~~~\n" + CODE + "~~~",
    "the marks of the examples": "[BEGIN]\n" + CODE + "[DONE]",
    "code and its mark": CODE + "[DONE]\n more",
    "quoted code": "'" + CODE + "'\n[DONE]",
    "code in triple quotes": '"""\n' + CODE + '"""',
    "code and a test": CODE + "\nassert add(1, 1) == 2\n",
    "code and a call": CODE + "\nprint(add(1, 2))\n",
    "carriage returns": CODE.replace("\n", "\r\n"),
    "a fence with carriage returns": ("```python\n" + CODE + "```").replace("\n", "\r\n"),
    "a thought": "<think>\nadd them\n</think>\n" + CODE,
}


@pytest.fixture(scope="module")
def mbpp(tmp_path_factory):
    tests = ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"]
    row = {"task_id": 11, "text": "Add two numbers.", "code": "def add(a, b):\n    return a + b", "test_list": tests}
    folder = write(tmp_path_factory.mktemp("data"), [row])
    return {
        chat: load_task("mbpp", data_dir=folder, tokenizer=ChatML() if chat else None, chat_template=chat)
        for chat in (False, True)
    }


@pytest.mark.parametrize("chat", [False, True], ids=["raw", "chat"])
@pytest.mark.parametrize("text", MBPP.values(), ids=MBPP)
def test_a_whole_program_is_found(mbpp, chat, text):
    item = mbpp[chat].items()[0]
    assert mbpp[chat].score(item, cut(text, item.stop))["verdict"] == "passed"


# --- the beginning of an answer ---------------------------------------------------------------------------------------

THINKING = (  # the form of Qwen3's template: the last assistant turn gets an empty thought
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = "{{ raise_exception('Conversation roles must alternate') }}"


def tokenizer(template=None, special=("<|im_start|>", "<|im_end|>", "<|endoftext|>"), words=(), **options):
    """Byte-level, so that any text can be encoded: a token a byte, then `words`, then `special`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(vocabulary)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True) for word in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **options)
    fast.chat_template = template
    return fast


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_no_thought_is_put_before_the_beginning_of_an_answer(name, tmp_path):
    row = {"task_id": 1, "text": "Add.", "code": "def f(): pass", "test_list": ["assert f() is None"] * 3}
    folder = write(tmp_path, [row]) if name == "mbpp" else None
    options = {"data_dir": folder, "num_fewshot": 0, "tokenizer": tokenizer(THINKING), "chat_template": True}
    item = load_task(name, **options).items(limit=1)[0]
    begun = f"Here is the completed function:\n```python\n{item.doc.get('prompt')}\n" if not folder else "\n```python\n"
    assert item.prompt.endswith("<|im_start|>assistant\n" + begun)
    assert "think" not in item.prompt


def test_lm_eval_gets_the_same_markup():
    from types import SimpleNamespace

    from dlmbench.tasks.lm import EngineLM

    lm = EngineLM(SimpleNamespace(tokenizer=tokenizer(THINKING)))
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "def f():\n"}]
    assert lm.apply_chat_template(turns, add_generation_prompt=False) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\ndef f():\n"
    )


def test_a_template_that_raises_is_one_sentence(gsm8k_folder):
    from dlmbench.errors import RequestError

    task = load_task("gsm8k", data_dir=gsm8k_folder, tokenizer=tokenizer(ALTERNATING), chat_template=True)
    with pytest.raises(RequestError, match=r"roles must alternate\).*--no-chat-template"):
        task.items()


# --- ends and prompts as ids ------------------------------------------------------------------------------------------


def test_a_stop_string_may_be_a_special_token():
    made = tokenizer()
    ids = made.encode(" 37<|im_end|>user8<|endoftext|>")
    assert Text(made).cut(ids, ("Question:", "<|im_end|>")) == (" 37", 4, True)
    assert Text(made).stops(ids, ("<|im_end|>",)) and not Text(made).stops(ids[:3], ("<|im_end|>",))
    assert Text(made).cut(ids, ("Question:",)) == (" 37user8", len(ids), False)
    assert Text(made).cut(ids, ("er8",))[0] == " 37us"


def test_an_empty_stop_string_stops_nothing():
    made = tokenizer()
    ids = made.encode("ab.c")
    assert Text(made).cut(ids, ("", ".")) == ("ab", 3, True)
    assert Text(made).cut(ids, ("",)) == ("ab.c", 4, False)
    assert not Text(made).stops(ids, ("",))


def sentencepiece():
    """Decodes as Llama 2's does: the first blank of whatever it is given goes."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "▁", "▁▁▁▁", "return", "▁a", ":", "<0x0A>", *(f"<0x{byte:02X}>" for byte in "€".encode())]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_the_first_blank_of_an_answer_is_kept():
    text, prompt, body = Text(sentencepiece()), (3, 5, 6), [2, 3, 4]
    assert text.of(body, prompt) == text.of(body) == "    return a"
    assert text.cut(body, (" a",), prompt) == ("    return", 3, True)
    assert text.of([7, 8, 9], prompt) == "€"  # bytes of one character, behind a prompt that ends with a byte
    assert text.of([], prompt) == ""


def test_special_tokens_of_the_prompt_are_no_part_of_the_answer():
    made = tokenizer()
    prompt, answer = made.encode("<|im_start|>assistant\n"), made.encode("  x<|im_end|>")
    assert Text(made).of(answer, prompt) == "  x"


@pytest.mark.parametrize(
    ("own", "special", "eos", "ends"),
    [
        ((256,), ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|endoftext|>", (256, 258)),
        ((256,), ("<|endoftext|>", "<|im_end|>", "<|mask|>", "<|dlm_pad|>"), "<|endoftext|>", (256, 257, 259)),
        ((256,), ("<|endoftext|>", "<|eot_id|>"), "<|endoftext|>", (256, 257)),
        ((), ("<|im_end|>", "<|endoftext|>"), "<|im_end|>", (256, 257)),
        ((1,), ("<s>", "</s>"), "</s>", (1, 257)),
        ((1,), ("<|mask|>", "<|sep|>"), "<|sep|>", (1, 257)),
    ],
    ids=[
        "Dream and SDAR",
        "DiffuCoder",
        "LLaDA",
        "no EOS in the configuration",
        "the tokenizer's EOS",
        "no such words",
    ],
)
def test_ends_are_the_configurations_the_tokenizers_and_the_familys(own, special, eos, ends):
    from types import SimpleNamespace

    from dlmbench.engine.build import end_ids

    config = SimpleNamespace(eos_ids=own, vocab_size=300, mask_id=None)
    assert end_ids(config, tokenizer(special=special, eos_token=eos)) == ends


def test_an_end_is_an_id_of_the_model_and_not_its_mask():
    from types import SimpleNamespace

    from dlmbench.engine.build import end_ids

    made = tokenizer(special=("<|endoftext|>", "<|im_end|>"), eos_token="<|im_end|>")
    assert end_ids(SimpleNamespace(eos_ids=(3,), vocab_size=257, mask_id=256), made) == (3,)
    ordinary = tokenizer(special=(), words=("<|im_end|>",))
    assert end_ids(SimpleNamespace(eos_ids=(3,), vocab_size=300, mask_id=None), ordinary) == (3,)


@pytest.fixture
def checkpoint(tmp_path):
    """Makes a folder with a shipped model, some values of its files changed."""
    import shutil

    from dlmbench.models.presets import ASSETS

    def make(name, model="nano2", **changes):
        folder = tmp_path / name
        shutil.copytree(ASSETS / "nano" / model, folder)
        shutil.copytree(ASSETS / "nano" / "tokenizer", folder, dirs_exist_ok=True)
        for file, values in changes.items():
            path = folder / f"{file}.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return str(folder)

    return make


def test_a_row_ends_at_the_tokenizers_eos_and_the_switch_for_eos_stays_the_configurations(checkpoint):
    import dlmbench

    folder = checkpoint("model", "nano2-llada", tokenizer_config={"eos_token": "<|sep|>"})
    for _ in range(2):  # the second engine shares the first one's network
        engine = dlmbench.load(folder, method="static", block_length=8, settings={"sampling": {"eos": "never"}})
        assert engine.target.config.eos_ids == (1, 3)
        assert engine.sampling.banned == (1,)
    assert dlmbench.load("nano2", method="static").target.config.eos_ids == (1,)


def test_raw_prompts_of_dream_begin_with_bos_and_chat_prompts_do_not(checkpoint):
    from dlmbench.engine import tokenizer_of
    from dlmbench.engine.prompts import prompt_ids

    with_bos = {"bos_token": "<|sep|>"}
    other = tokenizer_of(checkpoint("other", tokenizer_config=with_bos))
    layout = {"model_type": "Dream", "architectures": ["DreamModel"]}
    dream = tokenizer_of(checkpoint("dream", tokenizer_config=with_bos, config=layout))
    plain = prompt_ids(other, "2+2", False)
    assert 3 not in plain
    assert prompt_ids(dream, "2+2", False) == prompt_ids(dream, "<|sep|>2+2", False) == (3, *plain)
    assert prompt_ids(dream, "2+2", True) == plain


def test_an_eos_that_the_tokenizer_appends_is_not_part_of_a_prompt():
    from tokenizers.processors import TemplateProcessing

    from dlmbench.engine.prompts import prompt_ids

    made = tokenizer(eos_token="<|endoftext|>")
    plain = tuple(made.encode("2+2"))
    end = made.eos_token_id
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    assert made.encode("2+2")[-1] == end
    assert prompt_ids(made, "2+2", False) == plain
    assert prompt_ids(made, "2+2<|endoftext|>", False)[: len(plain) + 1] == (*plain, end)
