"""The training stream: an endless, seeded mix of the nano and stress sources that never yields a held-out instance."""

import random
from collections.abc import Callable, Iterator
from functools import partial

from dlmbench.errors import RequestError
from dlmbench.tasks.base import SEPARATOR
from dlmbench.tasks.nano import code, gsm, gsm_symbolic, programs
from dlmbench.tasks.nano.separation import split_of
from dlmbench.tasks.stress import items
from dlmbench.tasks.stress.answer_sets import KINDS

AS_TOLD = 0.8  # share of the training chains in the question's own order: every order is possible, one is likeliest


def _stress(kind: str, rng: random.Random, _: float) -> dict:
    return items.generate(kind, rng)


SOURCES: dict[str, Callable[[random.Random, float], dict]] = {
    "gsm-full": lambda rng, as_told: gsm.generate(rng, "full", as_told),
    "gsm-easy": lambda rng, as_told: gsm.generate(rng, "easy", as_told),
    "gsm-symbolic": lambda rng, _: gsm_symbolic.generate(rng),
    "code": lambda rng, _: code.generate(rng),
    "code-long": programs.generate,
    **{f"stress-{kind}": partial(_stress, kind) for kind in KINDS},
}


def stream(mix: dict[str, float], seed: int) -> Iterator[dict]:
    """Return an endless iterator of training examples.

    Args:
        mix: source name (a key of `SOURCES`) -> relative weight, not negative.
        seed: the same mix and seed give the same examples in the same order.

    Returns:
        dictionaries with prompt (ends with the separator token), target (without the end token) and source.

    Raises:
        RequestError: if a source is unknown, a weight is negative or no weight is positive.
    """
    unknown = sorted(set(mix) - set(SOURCES))
    if unknown:
        raise RequestError(f"Unknown nano source {unknown[0]!r} in the mix. Choose among: {', '.join(SOURCES)}.")
    if min(mix.values(), default=0) < 0 or sum(mix.values()) <= 0:
        raise RequestError(f"The mix {mix} cannot be drawn from. Give at least one positive and no negative weight.")
    return _draw(dict(mix), random.Random(seed))


def example(row: dict, source: str) -> dict:
    """Return the training example of a generated problem: prompt, target, source."""
    return {
        "prompt": (row["prompt"] if "prompt" in row else row["question"]) + SEPARATOR,
        "target": row["target"],
        "source": source,
    }


def draw_split(rng: random.Random, source: str, split: str, as_told: float = 0.0) -> dict:
    """Draw problems of a source until one belongs to a split ("train", "dev" or "test"), and return it."""
    while True:
        row = SOURCES[source](rng, as_told)
        if row.get("split", split_of(row["key"])) == split:  # the stress tasks hold out more
            return row


def _draw(mix: dict[str, float], rng: random.Random) -> Iterator[dict]:
    names, weights = list(mix), list(mix.values())
    while True:
        for source in rng.choices(names, weights, k=1000):
            yield example(draw_split(rng, source, "train", AS_TOLD), source)
