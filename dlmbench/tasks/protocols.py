"""Published protocols: how papers asked and read the tasks that they report. Data, and imports nothing heavy.

``--protocol NAME`` asks and scores a task as that evaluation did: wording, worked examples, chat markup, BOS, what ends
an answer, how it is read, which items, and what becomes of EOS. ``lm-eval`` is the default: the task's own file, with
whatever the user chooses beside it. Sampling stays the user's choice; a protocol only says what was published.

`AskedTask.base` and `AskedTask.config` are a file of lm-eval and the keys of it that a protocol replaces, and
`AskedTask.reading` names one of `dlmbench.tasks.readings`. Where an evaluation used examples or wording that are not
public here, the nearest that can be had is offered and `AskedTask.other` says what is other about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dlmbench.errors import RequestError
from dlmbench.files import Json

DEFAULT = "lm-eval"
FIELDS = ("prompt", "examples", "markup", "extraction", "stop strings", "data set", "items")  # what `facts` tells


@dataclass(frozen=True)
class AskedTask:
    """One task under a protocol."""

    prompt: str  # its wording, in words
    base: str  # file of lm-eval that it begins from
    reading: str  # how an answer is read: a name in `dlmbench.tasks.readings.READINGS`
    shots: int = 0
    config: Mapping[str, Json] = field(default_factory=dict)  # keys of lm-eval's file that are replaced
    gen_length: int | None = None  # most tokens generated, where one number was published
    first: int | None = None  # only so many test items
    shuffled: int | None = None  # seed of a shuffle before they are taken
    other: str = ""  # what is other than published, for protocols that cannot be had whole


@dataclass(frozen=True)
class Protocol:
    """How an evaluation asks."""

    name: str
    source: str
    tasks: Mapping[str, AskedTask]
    chat: bool  # does a chat template wrap the prompt?
    bos: bool | None = None  # do raw prompts begin with BOS? None: as the tokenizer has it
    one_turn: bool = False  # with a template: examples and question as a single user turn
    template: Mapping[str, object] = field(default_factory=dict)  # options of the chat template
    eos: str = "model"  # EOS under fixed schedules: as the model's preset says, or free
    sampling: Mapping[str, Json] = field(default_factory=dict)  # options of ``sampling`` that belong to it
    published: str = ""  # the sampler, as published

    @property
    def version(self) -> str:
        """Part of a run's identity: raised when what the protocol asks or reads changes."""
        return f"{self.name}-1"


_STEPS = "\nPlease reason step by step, and put your final answer within \\boxed{}."
_NO_STOPS: dict[str, Json] = {"until": [], "do_sample": False}
_HUMANEVAL, _HUMANEVAL_INSTRUCT = "humaneval/humaneval.yaml", "humaneval/humaneval_instruct.yaml"
_MBPP, _MBPP_INSTRUCT = "mbpp/mbpp.yaml", "mbpp/mbpp_instruct.yaml"
_GSM8K, _GSM8K_COT = "gsm8k/gsm8k.yaml", "gsm8k/gsm8k-cot.yaml"

_BOXED_GSM8K = AskedTask(
    "the question, then a request to reason step by step and to box the answer",
    _GSM8K,
    "boxed",
    config={"doc_to_text": "{{question}}" + _STEPS, "generation_kwargs": _NO_STOPS},
)
_BOXED_MATH = AskedTask(
    "the problem, then a request to reason step by step and to box the answer",
    "minerva_math/minerva_math500.yaml",
    "math_verify",
    config={"doc_to_text": "{{problem}}" + _STEPS, "generation_kwargs": _NO_STOPS},
)
_COT = {"training_split": "train"}  # the file has fixed examples and no split to take dev items from
_COT_8 = AskedTask("lm-eval gsm8k_cot", _GSM8K_COT, "strict", 8, _COT, 256)
_SHOTS_OF_OPENCOMPASS = "other shots: OpenCompass has its own worked examples, here are lm-eval's"


def _raw(reading: str, lengths: tuple[int | None, int | None] = (None, None)) -> dict[str, AskedTask]:
    """The two code tasks as lm-eval asks base models."""
    return {
        "humaneval": AskedTask("lm-eval humaneval", _HUMANEVAL, reading, gen_length=lengths[0]),
        "mbpp": AskedTask("lm-eval mbpp", _MBPP, reading, 3, gen_length=lengths[1]),
    }


def _instruct(reading: str, lengths: tuple[int, int]) -> dict[str, AskedTask]:
    """The two code tasks as lm-eval asks chat models, without examples."""
    return {
        "humaneval": AskedTask("lm-eval humaneval_instruct", _HUMANEVAL_INSTRUCT, reading, gen_length=lengths[0]),
        "mbpp": AskedTask("lm-eval mbpp_instruct", _MBPP_INSTRUCT, reading, gen_length=lengths[1]),
    }


def _nearest(asked: AskedTask, **changes: Any) -> AskedTask:
    return replace(asked, other=_SHOTS_OF_OPENCOMPASS, **changes)


_GSM8K_TURNS = AskedTask("lm-eval gsm8k, examples as turns", _GSM8K, "last", 4, {"generation_kwargs": _NO_STOPS})
_MBPP_TURNS = AskedTask("lm-eval mbpp, examples as turns", _MBPP, "fence", 3)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "sdar",
            "SDAR, arXiv 2510.06303, and MRP, arXiv 2605.18817",
            {
                "gsm8k": replace(_BOXED_GSM8K, gen_length=4096),
                "math500": replace(_BOXED_MATH, gen_length=4096),
                "humaneval": AskedTask(
                    "a request for the code of the function alone, then the prompt",
                    _HUMANEVAL,
                    "fence",
                    config={
                        "doc_to_text": "Read the following function signature and docstring, and fully implement the "
                        "function described. Your response should only contain the code for this function.\n{{prompt}}",
                        "generation_kwargs": _NO_STOPS,
                    },
                    gen_length=4096,
                ),
                "mbpp/sanitized": AskedTask(
                    "task and tests, then a request for a python block",
                    _MBPP,
                    "fence",
                    config={
                        "doc_to_text": "You are an expert Python programmer, and here is your task: {{prompt}} Your "
                        "code should pass these tests:\n\n{{test_list | join('\\n')}}\n"
                        "Write the solution in a ```python block.",
                        "generation_kwargs": _NO_STOPS,
                    },
                    gen_length=4096,
                    other="other wording: the published prompt is known in part only",
                ),
            },
            chat=True,
            published="greedy, as many steps as a block has positions",
        ),
        Protocol(
            "llada-base",
            "LLaDA, arXiv 2502.09992, EVAL.md, base model",
            {"gsm8k": AskedTask("lm-eval gsm8k", _GSM8K, "strict", 5), **_raw("lm-eval")},
            chat=False,
            bos=False,
            published="greedy, one block as long as the answer, as many steps",
        ),
        Protocol(
            "llada-instruct",
            "LLaDA, arXiv 2502.09992, and LLaDA 1.5, arXiv 2505.19223, EVAL.md",
            {
                "gsm8k": _nearest(_GSM8K_TURNS),
                "math500": replace(_BOXED_MATH, other="other data set: MATH has 5,000 problems"),
                "humaneval": AskedTask(
                    "lm-eval humaneval_instruct",
                    _HUMANEVAL_INSTRUCT,
                    "fence",
                    config={"gen_prefix": None, "generation_kwargs": _NO_STOPS},
                    other="other wording: OpenCompass asks to complete the code in its own words",
                ),
                "mbpp": _nearest(_MBPP_TURNS),
            },
            chat=True,
            published="greedy, as many steps as tokens",
        ),  # fmt: skip
        Protocol(
            "dream-base",
            "Dream, base model; Fast-dLLM, arXiv 2505.22618, on it",
            {"gsm8k": _COT_8, **_raw("sanitised", (512, 512))},
            chat=False,
            bos=True,
            published="temperature 0 (code 0.2), top_p 0.95, as many steps as tokens",
        ),
        Protocol(
            "dream-instruct",
            "Dream, instruct model",
            {
                "gsm8k": AskedTask("lm-eval gsm8k_cot", _GSM8K_COT, "flexible", 0, _COT, 256),
                **_instruct("sanitised", (768, 1024)),
            },
            chat=True,
            published="temperature 0.1, top_p 0.9, as many steps as tokens",
        ),
        Protocol(
            "fastdllm",
            "Fast-dLLM, arXiv 2505.22618, on LLaDA (on Dream: dream-base)",
            {
                "gsm8k": AskedTask("lm-eval gsm8k", _GSM8K, "strict", 5),
                "humaneval": AskedTask("the prompt", _HUMANEVAL, "sanitised", 0, {"generation_kwargs": _NO_STOPS}),
                "mbpp": AskedTask("lm-eval mbpp", _MBPP, "sanitised", 3, {"generation_kwargs": _NO_STOPS}),
            },
            chat=True,
            one_turn=True,
            eos="free",
            published="greedy, block 32",
        ),
        Protocol(
            "prophet",
            "Prophet, arXiv 2508.19982",
            dict.fromkeys(
                ("gsm8k", "gsm8k_cot_zeroshot"),
                AskedTask("lm-eval gsm8k_cot_zeroshot", "gsm8k/gsm8k-cot-zeroshot.yaml", "strict"),
            ),
            chat=False,
            eos="free",
            sampling={"constraint": True},
            published="greedy, the marker of the answer fixed at positions 200 to 202",
        ),
        Protocol(
            "adjust",
            "ADJUST, arXiv 2509.22738, on Dream base",
            {"gsm8k": replace(_COT_8, first=250)},
            chat=False,
            bos=True,
            published="greedy",
        ),
        Protocol(
            "dllm",
            "dllm, models made from autoregressive ones (a2d)",
            {
                "gsm8k": AskedTask("lm-eval gsm8k", _GSM8K, "flexible", gen_length=256),
                "math500": AskedTask(
                    "lm-eval minerva_math500", "minerva_math/minerva_math500.yaml", "math_verify", gen_length=256
                ),
                **_instruct("opened", (256, 256)),
            },
            chat=True,
            template={"enable_thinking": False},
            published="greedy, 256 steps",
        ),
        Protocol(
            "simsd",
            "SimSD, arXiv 2606.02544",
            {
                "gsm8k": _nearest(_GSM8K_TURNS, gen_length=512, shuffled=42, first=200),
                "mbpp": _nearest(_MBPP_TURNS, gen_length=512, shuffled=42, first=200),
            },
            chat=True,
        ),
    )
}


def protocol(name: str) -> Protocol | None:
    """The protocol called `name`; None for lm-eval, which is the tasks' own. Raises RequestError for an unknown one."""
    if name == DEFAULT:
        return None
    if name not in PROTOCOLS:
        raise RequestError(f"Unknown protocol {name!r}; known are {', '.join((DEFAULT, *PROTOCOLS))}.")
    return PROTOCOLS[name]


def asked(name: str, task: str) -> AskedTask | None:
    """How the protocol `name` asks a task; None for lm-eval. Raises RequestError for a task that it does not have."""
    chosen = protocol(name)
    if chosen is None:
        return None
    if task not in chosen.tasks:
        raise RequestError(f"Protocol {name} does not ask {task}: it has {', '.join(chosen.tasks)}.")
    return chosen.tasks[task]


_PUBLISHED: dict[tuple[str, str], str] = {  # (name of the paper, beginning of the model's name) -> protocol
    ("SDAR", ""): "sdar",
    ("MRP", ""): "sdar",
    ("LLaDA", "llada-8b-base"): "llada-base",
    ("LLaDA", "llada-8b-instruct"): "llada-instruct",
    ("LLaDA 1.5", ""): "llada-instruct",
    ("Dream 7B", "dream-7b-base"): "dream-base",
    ("Dream 7B", "dream-7b-instruct"): "dream-instruct",
    ("Fast-dLLM", "llada"): "fastdllm",
    ("Fast-dLLM", "dream"): "dream-base",
    ("Prophet", "llada"): "prophet",
    ("ADJUST", "dream-7b-base"): "adjust",
    ("dllm", ""): "dllm",
    ("SimSD", ""): "simsd",
}


def published_as(paper: str, model: str, task: str) -> tuple[str, str] | None:
    """(protocol, data set) of a published row whose protocol is known; `task` is the row's own word for its data."""
    short = paper.partition(",")[0]
    for (title, begins), name in _PUBLISHED.items():
        if title == short and model.startswith(begins):
            found = next((known for known in PROTOCOLS[name].tasks if known.partition("/")[0] == task), None)
            return (name, found) if found else None
    return None


# --- what differs between ours and a published one ----------------------------------------------------------------


def data_set(task: str) -> str:
    """What a task's items are taken from: GSM8K has two tasks."""
    return "gsm8k" if task == "gsm8k_cot_zeroshot" else task


def facts(name: str, task: str, num_fewshot: int = 0, chat: bool = False) -> dict[str, str]:
    """What a run asked: each of `FIELDS` in words. Examples and markup are looked at for lm-eval, which settles
    neither."""
    how = asked(name, task)
    told = _own_facts(task, num_fewshot, chat) if how is None else _published_facts(PROTOCOLS[name], task, how)
    return dict(zip(FIELDS, told, strict=True))


def _published_facts(protocol: Protocol, task: str, how: AskedTask) -> tuple[str, ...]:
    turn = ", one user turn" if protocol.one_turn and how.shots else ""
    drawn = f" of those shuffled with seed {how.shuffled}" if how.shuffled is not None else ""
    return (
        how.prompt,
        str(how.shots) + (" of OpenCompass" if how.other == _SHOTS_OF_OPENCOMPASS else ""),
        f"chat{turn}" if protocol.chat else "raw" + (", BOS first" if protocol.bos else ""),
        how.reading,
        "none" if how.config.get("generation_kwargs") is _NO_STOPS else "lm-eval's",
        data_set(task),
        f"first {how.first}{drawn}" if how.first else "all",
    )


_OWN_PROMPTS: dict[tuple[str, bool], str] = {  # (task, in chat markup) -> whose wording a task's own file takes
    ("gsm8k", False): "lm-eval gsm8k",
    ("gsm8k", True): _GSM8K_TURNS.prompt,
    ("gsm8k_cot_zeroshot", False): "lm-eval gsm8k_cot_zeroshot",
    ("math500", False): "lm-eval minerva_math500",
    ("humaneval", False): "lm-eval humaneval",
    ("humaneval", True): "lm-eval humaneval_instruct",
    ("mbpp", False): "lm-eval mbpp",
    ("mbpp", True): "lm-eval mbpp_instruct",
}
_OWN_BOXED: dict[str, AskedTask] = {"gsm8k": _BOXED_GSM8K, "math500": _BOXED_MATH}  # in chat markup without examples


def _own_facts(task: str, num_fewshot: int, chat: bool) -> tuple[str, ...]:
    prompt = _OWN_PROMPTS.get((task, chat), f"dlmbench {task}")
    if chat and not num_fewshot and task in _OWN_BOXED:
        prompt = _OWN_BOXED[task].prompt
    markup, stops = ("chat", "dlmbench's own") if chat else ("raw", "lm-eval's")
    reading = "math_verify" if task == "math500" else "dlmbench's own"
    return prompt, str(num_fewshot), markup, reading, stops, data_set(task), "all"
