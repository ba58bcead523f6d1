"""Where a decoder contradicts itself on the ideal model: the first step after which no right answer is left.

Items are lists to be put in another order, so every position depends on all others. Whoever reveals several tokens in
one step may lose there by the rule alone; that is a cost, not a fault, and `limits` measures it. A token that is in no
right answer even beside what stood before its step is a fault: the model gave it probability 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from dlmbench.decoders.base import Decoder
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine, Request
from dlmbench.engine.request import TracedStep
from dlmbench.oracle.family import oracle_config
from dlmbench.oracle.network import Oracle
from dlmbench.tasks.stress.answer_sets import answers

EOS, MASK, FIRST = 1, 3, 4
WORDS, ITEMS, BLOCK = 5, 12, 4


@dataclass(frozen=True)
class Contradiction:
    """Tokens that a step revealed at these positions of the answer, after which no right answer is left. `possible`:
    could each of them alone have stood beside what was there?"""

    item: str
    step: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    possible: bool

    def __str__(self) -> str:
        shown = ", ".join(f"{token} at {at}" for at, token in zip(self.positions, self.tokens, strict=True))
        why = "each possible, not all together" if self.possible else "no right answer has one of them there"
        return f"{self.item}, step {self.step}: tokens {shown} ({why})"


def contradictions(decoder: Decoder, attention: str, seed: int = 0, temperature: float = 1.0) -> list[Contradiction]:
    """The first contradiction of every item that has one, on `ITEMS` draws of one small task.

    Raises RequestError for a decoder that asks for what the ideal model does not have.
    """
    words = [str(word) for word in range(WORDS)]
    right = torch.tensor([[FIRST + int(word) for word in answer] for answer in answers("shuffle", words, 1, "5")])
    network = Oracle(oracle_config(FIRST + WORDS, MASK, (EOS,), attention), BLOCK)
    engine = Engine({"target": network}, decoder, batch_size=4, sampling=Sampling(temperature=temperature))
    asked = [Request(f"item {i}", (FIRST,), WORDS, seed=seed * ITEMS + i, answers=right) for i in range(ITEMS)]
    found = [
        first_contradiction(request.key, run.trace or [], right, len(request.prompt_ids))
        for request, run in zip(asked, engine.generate(asked, trace=True), strict=True)
    ]
    return [one for one in found if one is not None]


def first_contradiction(item: str, steps: Sequence[TracedStep], right: Tensor, prompt: int) -> Contradiction | None:
    """The first step of a recorded decoding that leaves none of the answers `right` [A,L]; None if none does."""
    known: dict[int, int] = {}
    for number, step in enumerate(steps):
        for position in step["remasked"]:
            known.pop(position - prompt, None)
        nothing: dict[str, list[int]] = {"positions": [], "tokens": []}
        replaced: Mapping[str, Any] = step.get("replaced", nothing)
        given = [
            (position - prompt, token)
            for part in (cast(Mapping[str, Any], step), replaced)
            for position, token in zip(part["positions"], part["tokens"], strict=True)
            if position - prompt < right.shape[1]  # a last block may reach beyond the answer
        ]
        before = {at: token for at, token in known.items() if at not in dict(given)}
        known |= dict(given)
        if not _agree(right, known):
            possible = all(_agree(right, {**before, at: token}) for at, token in given)
            positions, tokens = zip(*given, strict=True)
            return Contradiction(item, number, positions, tokens, possible)
    return None


def _agree(right: Tensor, known: dict[int, int]) -> bool:
    at = list(known)
    return bool((right[:, at] == torch.tensor([known[i] for i in at])).all(1).any())
