"""What a decoder can reach at best: its rule on the ideal model, and on one that is too sure, before weights are run.

On the ideal model whatever is lost is the rule's own loss. Right answers that are equally likely are ties, where greedy
rules see nothing to choose by; a second ideal model has answers of unlike probability, so that there are none. The
overconfident model never thinks a right answer impossible either, but is sure of tokens that it has no reason to be
sure of: what a rule loses there and not on the ideal model, it loses by trusting confidences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dlmbench.backbone import load_tokenizer
from dlmbench.decoders.base import Decoder, Options
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine
from dlmbench.engine.text import Tokenizer
from dlmbench.errors import RequestError
from dlmbench.models.presets import ASSETS
from dlmbench.oracle.family import oracle_config
from dlmbench.oracle.network import Oracle
from dlmbench.oracle.options import OracleOptions
from dlmbench.request import RunSpec
from dlmbench.stats import wilson
from dlmbench.tasks.base import Item
from dlmbench.tasks.evaluate import evaluate
from dlmbench.tasks.task import Task

BATCH = 64


@cache
def _tokenizer() -> Tokenizer:
    return load_tokenizer(ASSETS / "nano" / "tokenizer", plain=True)


@dataclass(frozen=True)
class Limit:
    """One decoder on one model. Forwards and tokens are summed over the items."""

    model: str
    right: int
    items: int
    forwards: int
    tokens: int

    @property
    def accuracy(self) -> float:
        return self.right / self.items

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, as shares."""
        return wilson(self.right, self.items)

    @property
    def forwards_per_item(self) -> float:
        return self.forwards / self.items

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.forwards


def limit(
    spec: RunSpec,
    decoder: type[Decoder],
    config: Options,
    task: Task,
    items: Sequence[Item],
    model: str,
    options: OracleOptions,
) -> Limit:
    """A decoder with its options on the ideal model `options`, called `model`, and on items of a task that lists its
    right answers. Of `spec`: attention ("full" or "block_causal"), block length (default the whole answer), sampling
    and seed.

    Raises:
        RequestError: the task lists no answers, or the decoder needs what an oracle does not have.
    """
    attention = spec.attention or "full"
    needed = [role for role in decoder.needs(config, attention) if role != "target"]
    if needed:
        raise RequestError(
            f"Method {decoder.name} needs a {needed[0]} with weights, and the ideal model has none beside it: its "
            "limits are not known; take a method without helpers."
        )
    if attention not in decoder.attention:
        raise RequestError(
            f"Method {decoder.name} works with {' or '.join(decoder.attention)} attention, not {attention}: give "
            f"--attention {decoder.attention[0]}."
        )
    tokenizer = _tokenizer()
    ends = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    shape = oracle_config(len(tokenizer), tokenizer.mask_token_id, ends, attention)
    network = Oracle(shape, spec.block_length or task.max_tokens, options)
    sampling = Sampling(spec.temperature, spec.top_k, spec.top_p)
    engine = Engine({"target": network}, decoder(config), tokenizer, batch_size=BATCH, sampling=sampling)
    done = evaluate(task, engine, items, seed=spec.seed)
    return Limit(
        model,
        right=sum(1 for _, _, scores in done if scores["accuracy"] == 1),
        items=len(done),
        forwards=sum(int(work["calls"]) for _, found, _ in done for work in found.counts["target"].values()),
        tokens=sum(generation.tokens for _, generation, _ in done),
    )
