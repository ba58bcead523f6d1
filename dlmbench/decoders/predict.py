"""From logits to a proposed token and its scores, the same for every decoder.

Conventions (those of the SDAR, LLaDA and Fast-dLLM code): the confidence is the probability of the proposed token under
the softmax of logits / temperature over the FULL vocabulary; temperature 0 means argmax with confidences at
temperature 1; the mask id is never proposed but stays in that softmax. Positions are ranked by log-odds, because
probabilities of trained models sit on float32's 1.0 plateau.

Draws use one uniform a position, a hash of (row seed, step, position), so a sampled text does not depend on the batch.

Axes: R rows, W positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """temperature 0 or top_k 1 is greedy; top_k 0 and top_p 1 are off.

    `confidence` says which distribution gives the scores: ``full`` the one before top-k and top-p, ``truncated`` the
    one after them (what SDAR's unmodified script does), ``filtered`` the one after top-p and then top-k,
    also at temperature 0 (Dream: filters change the order of greedy decoding), ``clean`` the full one
    at temperature 1 whatever the draw's temperature (LLaDA).

    `banned` ids are out of the distribution altogether (LLaDA's logits_eos_inf); positions that propose one of `last`
    have confidence 0, and the others are scored without these ids (its confidence_eos_eot_inf).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    confidence: str = "full"
    banned: tuple[int, ...] = ()
    last: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    @property
    def scale(self) -> float:
        return self.temperature or 1.0


class Candidates:
    """Proposals at every position; each score is computed when it is first asked for. All are [R,W].

    logits [R,W,V]; `seed` [R], `step` [R] (of the row) and `positions` [R,W] decide the draws. With `tokens` [R,W]
    these are scored instead of proposals.
    """

    def __init__(
        self, logits: Tensor, sampling: Sampling, mask_id: int, seed: Tensor, step: Tensor, positions: Tensor,
        tokens: Tensor | None = None,
    ):  # fmt: skip
        self.sampling, self.mask_id = sampling, mask_id
        self.seed, self.step, self.positions = seed, step, positions
        if tokens is not None:
            self.tokens = tokens
        if self.sampling.banned:
            logits = without(logits, self.sampling.banned)
        # bfloat16 as it came where that says the same: a copy in float32 costs more than the argmax
        as_they_came = self.sampling.scale == 1.0 and logits.dtype != torch.float64
        self._logits = logits if as_they_came else logits.float() / self.sampling.scale

    @cached_property
    def logits(self) -> Tensor:
        """Logits over the temperature in float32. [R,W,V]"""
        return self._logits.float()

    @cached_property
    def tokens(self) -> Tensor:
        """Argmax, or a draw; never the mask token; ties to the lowest id."""
        if not self.sampling.greedy:
            return self._draw
        mask_id = self.mask_id
        if mask_id >= self._logits.shape[-1]:  # a causal network without a mask token
            return self._logits.argmax(-1)
        column = self._logits.select(-1, mask_id)  # in place and back again: a copy would cost more than the argmax
        kept = column.clone()
        column.sub_(float("inf"))
        tokens = self._logits.argmax(-1)
        column.copy_(kept)
        return tokens

    @cached_property
    def confidence(self) -> Tensor:
        """Probability of the proposed token."""
        if self.sampling.confidence == "truncated" and not self.sampling.greedy:
            return self._truncated.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)
        if self.sampling.confidence == "truncated":  # one token is left after top-k = 1
            return torch.ones_like(self.tokens, dtype=torch.float32)
        return self._mass[0]

    @cached_property
    def log_odds(self) -> Tensor:
        """Logit of the proposed token minus the log-sum-exp of all others: confidence without its plateau."""
        if self.sampling.confidence == "truncated":  # from the probability itself, on float32's plateau
            return torch.logit(self.confidence.double()).float()
        chosen, others = self._mass
        return chosen.log() - others.log()

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the scored distribution in nats; what is impossible adds nothing (no 0 log 0)."""
        logs = self._scored.log_softmax(-1, dtype=torch.float32)
        return -(logs.exp() * logs.clamp_min(-1e30)).sum(-1)

    @cached_property
    def margin(self) -> Tensor:
        """Largest minus second largest probability."""
        top = self._scored.softmax(-1, dtype=torch.float32).topk(2, -1).values
        return top[..., 0] - top[..., 1]

    @cached_property
    def random(self) -> Tensor:
        """A uniform number for each position, independent of the one that draws the token."""
        return uniform(self.seed ^ 0x5EED, self.step, self.positions)

    @property
    def health(self) -> Tensor:
        """Finite where the logits are numbers: a score that is known already."""
        if "_mass" in vars(self):
            return self._mass[0]
        scores = self._logits if self.sampling.greedy else self._truncated
        return scores.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)

    @property
    def _scored(self) -> Tensor:
        """Logits of the distribution that gives the scores, in float32 or as they came. [R,W,V]"""
        logits = self._logits
        if self.sampling.confidence == "clean" and self.sampling.scale != 1.0:
            logits = logits * self.sampling.scale
        elif self.sampling.confidence == "filtered":
            logits = _top_k(_top_p(self.logits, self.sampling.top_p), self.sampling.top_k)
        return without(logits, self.sampling.last) if self.sampling.last else logits

    @cached_property
    def _mass(self) -> tuple[Tensor, Tensor]:
        """Probability of the proposed token, and of all others together, without cancellation."""
        index, probability = self.tokens.unsqueeze(-1), self._scored.softmax(-1, dtype=torch.float32)
        chosen = probability.gather(-1, index).squeeze(-1)
        return chosen, probability.scatter_(-1, index, 0.0).sum(-1)

    @cached_property
    def _truncated(self) -> Tensor:
        """Distribution that tokens are drawn from: mask id out, then top-k, then top-p, renormalised. [R,W,V]"""
        logits = without(self.logits, (self.mask_id,) if self.mask_id < self.logits.shape[-1] else ())
        if self.sampling.confidence == "filtered":  # Dream's order
            logits = _top_k(_top_p(logits, self.sampling.top_p), self.sampling.top_k)
        else:
            logits = _top_p(_top_k(logits, self.sampling.top_k), self.sampling.top_p)
        return logits.softmax(-1)

    @cached_property
    def _draw(self) -> Tensor:
        """Inverse of the cumulative distribution at one uniform a position."""
        return draw(self._truncated, uniform(self.seed, self.step, self.positions))


def draw(probability: Tensor, point: Tensor) -> Tensor:
    """Inverse of the cumulative distribution. probability [...,V], point [...] uniform in [0,1) -> ids [...]."""
    cumulative = probability.double().cumsum(-1)
    drawn = torch.searchsorted(cumulative, (point.double() * cumulative[..., -1]).unsqueeze(-1), right=True).squeeze(-1)
    last = probability.shape[-1] - 1 - probability.flip(-1).ne(0).int().argmax(-1)
    return torch.minimum(drawn, last)


def without(logits: Tensor, ids: tuple[int, ...]) -> Tensor:
    """A copy of logits [...,V] in which `ids` are impossible."""
    logits = logits.clone()
    for token in ids:
        logits.select(-1, token).fill_(float("-inf"))
    return logits


def _top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k largest logits [...,V] (and ties of the k-th) stay possible; 0 keeps all."""
    if not 0 < k < logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k, -1).values[..., -1:], float("-inf"))


def _top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest tokens whose probabilities sum to p stay possible, the one that crosses it included. [...,V]"""
    if p >= 1.0:
        return logits
    ordered, order = logits.softmax(-1).sort(stable=True, dim=-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= p
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))


def uniform(seed: Tensor, step: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in [0,1) by hashing. seed [R], step [R], positions [R,W] -> float32 [R,W]."""
    x = _mix((seed & 0xFFFFFFFF) + 0x9E3779B9)
    x = _mix(x + (step & 0xFFFFFFFF))
    x = _mix(x.unsqueeze(1) + positions)
    return (x >> 8).float() / (1 << 24)


def _mix(x: Tensor) -> Tensor:
    """32-bit integer finaliser (murmur3) on int64 tensors."""
    low = 0xFFFFFFFF
    x = x & low
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & low
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & low
    return x ^ (x >> 16)
