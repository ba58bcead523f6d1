"""Data of nano-gsm; answers and scores of nano-gsm-orders."""

import json
import random

from dlmbench.tasks.data import SHIPPED, as_dataset, shipped
from dlmbench.tasks.nano import gsm, orders


def dataset(tier: str, **_):
    """The shipped items of one tier; lm-eval passes the metadata of the task file."""
    return shipped("nano-gsm", lambda row: row if row["tier"] == tier else None)


def many(**_):
    """More problems of the full tier, generated: the file has their seeds."""
    seeds = json.loads((SHIPPED / "nano-gsm-many.json").read_text())
    return as_dataset({split: [gsm.generate(random.Random(seed), "full") for seed in seeds[split]] for split in seeds})


def answers(doc) -> list[str]:
    """Every valid chain."""
    return orders.chains(doc)


def score_chain(doc, results):
    return {"valid": float(gsm.check(doc, results[0]))}


def no_result(doc, text) -> bool:
    return "\n#### " not in text
