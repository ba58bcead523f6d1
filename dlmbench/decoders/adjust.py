"""`adjust`: several tokens from one forward, drawn one after another (ADJUST, arXiv 2509.22738;
docs/methods/adjust.md).

A forward of the frozen backbone gives the first token; before each further one a one-layer sampler moves the hidden
states in view of the tokens drawn so far, so that the tokens of a step know of each other. The next position is always
the one of least entropy. With ``use_marginals`` the sampler is left out: the parallel baseline.

``schedule=exact_k`` takes K tokens from every forward. ``schedule=dream`` follows the release: Dream's time schedule
says how many (not always K, sometimes none), the mask token takes no part in the distribution that is ranked, and
top-p shapes it at temperature 0 too. Blocks are an addition of ours; the paper has one block as long as the answer.

Left out: the release's other strategies (a second model that accepts a prefix or chooses between two samples).

Axes: R rows, W positions of the answer, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dlmbench.backbone.network import Network
from dlmbench.decoders.base import Decision, Evidence, Networks, RoundDecoder, Traits, View, option, top_n
from dlmbench.decoders.predict import Sampling
from dlmbench.heads.adjust import AdjustModule, load_module
from dlmbench.heads.adjust_network import AdjustHead


@dataclass(frozen=True)
class AdjustConfig:
    K: int = option(4, "tokens a forward of the backbone (the paper's headline: 4)")
    schedule: str = option(
        "exact_k", "exact_k: K tokens every time, the rest at last; dream: the release's own",
        choices=("exact_k", "dream"),
    )  # fmt: skip
    steps: int = option(0, "forwards that schedule=dream divides a block over; 0: its masks over K, rounded up")
    eps: float = option(0.001, "last time of schedule=dream, which runs from 1 to eps")
    use_marginals: bool = option(False, "draw all tokens of a step from the backbone's own marginals (the baseline)")
    suppress: tuple[int, ...] = option((), "ids never proposed (the release's mask_eos: pad and begin of text)")

    def __post_init__(self):
        if self.K < 1 or self.steps < 0:
            raise ValueError("K must be at least 1 and steps at least 0")
        if not 0 < self.eps < 1:
            raise ValueError("eps must lie between 0 and 1")
        if self.steps and self.schedule != "dream":
            raise ValueError("steps belongs to schedule=dream; exact_k takes K")


def due(masks: Tensor, step: Tensor, steps: Tensor, eps: float) -> Tensor:
    """Tokens that Dream's schedule reveals at `step` of `steps` with so many masks left. All long, any one shape."""
    now, after = (1 - (1 - eps) * (step + i).double() / steps for i in (0, 1))
    return torch.where(step < steps - 1, (masks * (1 - after / now)).long(), masks)


@lru_cache(maxsize=256)
def most(length: int, K: int, steps: int, eps: float) -> tuple[int, ...]:
    """For every step of a block of at most `length` masks, the most tokens that `due` can ask for."""
    masks = torch.arange(1, length + 1)
    total = torch.full_like(masks, steps) if steps else -(-masks // K)
    left, table = masks, []
    for i in range(int(total.max())):
        n = due(left, torch.full_like(left, i), total, eps).clamp_max(left)
        table.append(int(n.max()))
        left = left - n
    return tuple(table)


class Adjust(RoundDecoder):
    name = "adjust"
    group = "trained"
    evidence = Evidence("official trace", ("adjust",))
    Config = AdjustConfig
    roles = ("target", "head")
    attention = ("full",)
    caches = ("none",)
    guidable = False  # the sampler moves the states of one forward
    equalities = (
        "K=1 == static:k=1,order=entropy",
        "K=3,use_marginals=true == static:k=3,order=entropy",
    )

    @classmethod
    def needs(cls, config: AdjustConfig, attention: str | None) -> tuple[str, ...]:
        single = config.schedule == "exact_k" and config.K == 1
        return ("target",) if single or config.use_marginals else cls.roles

    @classmethod
    def head_network(cls, target: Network, folder: Path | None, weights: str | None = None) -> Network:
        if folder is not None:
            return AdjustHead(load_module(folder, target.model, weights), target)
        module = AdjustModule(target.model).init_random().to(target.device, target.dtype)
        return AdjustHead(module.requires_grad_(False).eval(), target)

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return Traits(scope="answer")

    def round(self, view: View, nets: Networks) -> Decision:
        config, sampling = self.config, self._sampling(view)
        logits, states = nets["target"].whole(view)
        best, tokens, left = view.candidates(logits, sampling=sampling), view.tokens, view.eligible
        wanted = self._wanted(view)
        order = torch.full_like(tokens, -1)
        for j in range(self._most(view)):
            if j and not config.use_marginals:
                states, logits = nets["head"].step(view, tokens, states, wanted > j)
                best = view.candidates(logits, sampling=sampling, traced=False)
            chosen = top_n(-best.entropy, left, 1) & (wanted > j).unsqueeze(1)
            tokens, left = torch.where(chosen, best.tokens, tokens), left & ~chosen
            order = order.masked_fill(chosen, j)
        return Decision(tokens, order >= 0, order=order, planned_empty=wanted < 1)

    def _sampling(self, view: View) -> Sampling:
        """exact_k ranks as every decoder here does, dream as the release does."""
        sampling, suppress = view.sampling, self.config.suppress
        if self.config.schedule == "dream":
            return replace(sampling, banned=(view.mask_id, *suppress), confidence="filtered")
        return replace(sampling, banned=(*sampling.banned, *suppress)) if suppress else sampling

    def _wanted(self, view: View) -> Tensor:
        """Tokens [R] that this step reveals."""
        config, masks = self.config, view.eligible.sum(1)
        if config.schedule == "exact_k":
            return masks.clamp_max(config.K)
        steps = torch.full_like(masks, config.steps) if config.steps else -(-view.block_masks // config.K)
        return torch.minimum(due(masks, view.step, steps, config.eps), masks)

    def _most(self, view: View) -> int:
        """Most tokens that any row may want now: exactly known where nothing was fixed in advance, else a bound."""
        config = self.config
        block = min(view.block_length, view.tokens.shape[1])
        if view.host_rows is None:
            return config.K if config.schedule == "exact_k" else max(most(block, config.K, config.steps, config.eps))
        wanted = 1
        for row in filter(None, view.host_rows):
            length = min(view.block_length, row.end - row.start)
            if config.schedule == "exact_k":
                wanted = max(wanted, min(config.K, length - config.K * row.step))
            else:
                table = most(length, config.K, config.steps, config.eps)
                wanted = max(wanted, table[min(row.step, len(table) - 1)])
        return wanted
