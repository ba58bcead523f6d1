"""Prompts of the shipped word problems, read from the package's data: the evaluation packages are not needed."""

from __future__ import annotations

from dlmbench.engine import Request
from dlmbench.engine.build import tokenizer_of
from dlmbench.tasks.base import SEPARATOR
from dlmbench.tasks.data import SHIPPED, read_jsonl


def nano_requests(count: int, tokens: int) -> tuple[list[Request], list[str]]:
    """The first `count` test items of nano-gsm (tier full), `tokens` to generate each -> requests and answers."""
    rows = [row for row in read_jsonl(SHIPPED / "nano-gsm-test.jsonl") if row["tier"] == "full"][:count]
    prompts = tokenizer_of("nano2")([row["question"] + SEPARATOR for row in rows], add_special_tokens=False)[
        "input_ids"
    ]
    requests = [Request(str(i), tuple(ids), tokens, seed=i) for i, ids in enumerate(prompts)]
    return requests, [row["target"] for row in rows]
