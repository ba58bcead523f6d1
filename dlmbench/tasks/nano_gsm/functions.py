"""Data of nano-gsm; answers and scores of nano-gsm-orders."""

from dlmbench.tasks.data import shipped
from dlmbench.tasks.nano import gsm, orders


def dataset(tier: str, **_):
    """The shipped items of one tier; lm-eval passes the metadata of the task file."""
    return shipped("nano-gsm", lambda row: row if row["tier"] == tier else None)


def answers(doc) -> list[str]:
    """Every valid chain."""
    return orders.chains(doc)


def score_chain(doc, results):
    return {"valid": float(gsm.check(doc, results[0]))}


def no_result(doc, text) -> bool:
    return "\n#### " not in text
