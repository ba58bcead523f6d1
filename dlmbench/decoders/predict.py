"""From logits to a proposed token and its scores, the same for every decoder.

Conventions (cards of SDAR and of the threshold family): the confidence is the probability of the proposed token under
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

    `confidence`: ``full`` scores the token before top-k and top-p, ``truncated`` after them (what SDAR's unmodified
    script does, card trap 1).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    confidence: str = "full"

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    @property
    def scale(self) -> float:
        return self.temperature or 1.0


class Candidates:
    """Proposals at every position of a view; each score is computed when it is first asked for. All are [R,W].

    With `tokens` [R,W] these are scored instead of proposals.
    """

    def __init__(self, logits: Tensor, view, tokens: Tensor | None = None):
        self.view, self.sampling = view, view.sampling
        if tokens is not None:
            self.tokens = tokens
        logits = logits.float()
        self.logits = logits if self.sampling.scale == 1.0 else logits / self.sampling.scale

    @cached_property
    def tokens(self) -> Tensor:
        """Argmax, or a draw; never the mask token; ties to the lowest id."""
        if not self.sampling.greedy:
            return self._draw
        mask_id = self.view.mask_id
        kept = self.logits[..., mask_id].clone()
        self.logits[..., mask_id] = float("-inf")
        tokens = self.logits.argmax(-1)
        self.logits[..., mask_id] = kept
        return tokens

    @cached_property
    def confidence(self) -> Tensor:
        """Probability of the proposed token."""
        if self.sampling.confidence == "truncated" and not self.sampling.greedy:
            return self._truncated.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)
        if self.sampling.confidence == "truncated":  # one token is left after top-k = 1
            return torch.ones_like(self.tokens, dtype=torch.float32)
        chosen, others = self._mass
        return chosen / (chosen + others)

    @cached_property
    def log_odds(self) -> Tensor:
        """Logit of the proposed token minus the log-sum-exp of all others: confidence without its plateau."""
        if self.sampling.confidence == "truncated":
            return torch.logit(self.confidence.double()).float()
        chosen, others = self._mass
        return chosen.log() - others.log()

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the full distribution in nats, as log-sum-exp minus the mean logit (no 0 log 0)."""
        mass, total = self._exp, self._exp.sum(-1)
        mean = (mass * self._shifted.clamp_min(-1e30)).sum(-1) / total
        return total.log() - mean

    @cached_property
    def margin(self) -> Tensor:
        """Largest minus second largest probability."""
        top = self._exp.topk(2, -1).values / self._exp.sum(-1, keepdim=True)
        return top[..., 0] - top[..., 1]

    @cached_property
    def random(self) -> Tensor:
        """A uniform number for each position, independent of the one that draws the token."""
        return uniform(self.view.seed ^ 0x5EED, self.view.total_steps, self.view.positions)

    @cached_property
    def _shifted(self) -> Tensor:
        return self.logits - self.logits.amax(-1, keepdim=True)

    @cached_property
    def _exp(self) -> Tensor:
        return self._shifted.exp()

    @cached_property
    def _mass(self) -> tuple[Tensor, Tensor]:
        """exp(logit - max) of the proposed token, and the sum over all others without cancellation."""
        index = self.tokens.unsqueeze(-1)
        chosen = self._exp.gather(-1, index)
        others = self._exp.scatter(-1, index, 0.0).sum(-1)
        return chosen.squeeze(-1), others

    @cached_property
    def _truncated(self) -> Tensor:
        """Distribution that tokens are drawn from: mask id out, then top-k, then top-p, renormalised. [R,W,V]"""
        logits = self.logits.clone()
        logits[..., self.view.mask_id] = float("-inf")
        if 0 < self.sampling.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.sampling.top_k, -1).values[..., -1:], float("-inf"))
        probability = logits.softmax(-1)
        if self.sampling.top_p < 1.0:
            ordered, order = probability.sort(stable=True, dim=-1, descending=True)
            outside = ordered.cumsum(-1) - ordered >= self.sampling.top_p  # the crossing token stays
            probability = probability.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
            probability = probability / probability.sum(-1, keepdim=True)
        return probability

    @cached_property
    def _draw(self) -> Tensor:
        """Inverse of the cumulative distribution at one uniform a position."""
        cumulative = self._truncated.double().cumsum(-1)
        point = uniform(self.view.seed, self.view.total_steps, self.view.positions).double()
        drawn = torch.searchsorted(cumulative, (point * cumulative[..., -1]).unsqueeze(-1), right=True).squeeze(-1)
        last = self._truncated.shape[-1] - 1 - self._truncated.flip(-1).ne(0).int().argmax(-1)
        return torch.minimum(drawn, last)


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
