"""Exact accuracies under an ideal model: `sequential` on the oracle, as many draws as tell a wrong rule from bad luck.

A case names a task, its length n and the tokens of a step, and holds the probability that the finished row is a valid
answer. It is met when the share among DRAWS rows, drawn at temperature 1, has the exact one inside its 99.9 % Wilson
interval. Where it is exactly 1, every row must be valid, and fewer tell.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.sequential import Sequential, SequentialConfig
from dlmbench.engine import Engine, Request
from dlmbench.oracle.family import oracle_config
from dlmbench.oracle.network import Oracle
from dlmbench.stats import wilson
from dlmbench.tasks.stress.answer_sets import answers
from dlmbench.verify.cases import Case, Mismatch, equal

DRAWS, FEW, BATCH, LEVEL = 4000, 500, 500, 0.999
MASK, PROMPT, FIRST = 0, 1, 2  # ids: of the mask, of a prompt that says nothing, of the first item


def check(case: Case, device: str = "cpu") -> None:
    """Run a case. Raises Mismatch."""
    row = case.raw
    valid = valid_answers(row["task"], row["n"])
    equal("answers", len(valid), row["answers"])
    equal("length", valid.shape[1], row["length"])
    size = int(valid.max()) + 1
    engine = Engine(
        {"target": Oracle(oracle_config(size, MASK), row["length"], device=device)},
        Sequential(SequentialConfig(k=row["tokens_per_step"])),
        batch_size=BATCH,
        sampling=Sampling(temperature=1.0),
    )
    certain = row["accuracy"] == 1
    draws = FEW if certain else DRAWS
    requests = [Request(str(i), (PROMPT,), row["length"], seed=7919 * i + 1, answers=valid) for i in range(draws)]
    drawn = engine.generate(requests)
    for generation in drawn:
        equal("forwards", generation.counts["target"]["refresh"]["calls"], row["forwards"])
    right = set(map(tuple, valid.tolist()))
    found = sum(tuple(generation.raw_ids) in right for generation in drawn)
    low, high = wilson(found, draws, LEVEL)
    if not low <= row["accuracy"] <= high or (certain and found < draws):
        raise Mismatch(f"accuracy is {found} of {draws} ({low:.4f} to {high:.4f}), expected {row['accuracy']:.4f}")


@cache
def valid_answers(task: str, n: int) -> Tensor:
    """Ids of the valid answers for the items 0 .. n-1. [A,L]"""
    items = [str(i) for i in range(n)]
    if task == "shuffle":  # the given order too
        found = list(permutations(items))
    else:
        kind = {"shuffle_different": "shuffle"}.get(task, task.replace("_", "-"))
        found = answers(kind, items, new=str(n))
    return torch.tensor([[FIRST + int(item) for item in answer] for answer in found])
