"""Quantities of the policy's training (card of the learned policy, section 4): how likely an action was, its reward,
and its advantage within a group of rollouts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bernoulli_log_likelihood(logits: Tensor, masked: Tensor, unmasked: Tensor) -> Tensor:
    """Log-probability of unmasking exactly `unmasked`, each masked position on its own.

    logits [R,W], masked and unmasked [R,W] bool -> [R].
    """
    each = torch.where(unmasked, F.logsigmoid(logits), F.logsigmoid(-logits))
    return (each * masked).sum(-1)


def dpls_log_likelihood(logits: Tensor, masked: Tensor, order: Tensor, stop_logit: float = 0.0) -> Tensor:
    """Log-probability of unmasking in this order: the first position by a softmax, every further one in competition
    with a stop item, then the stop itself.

    logits [R,W], masked [R,W] bool, order [R,W] positions padded with -1 -> [R].
    """
    left = logits.masked_fill(~masked, float("-inf"))
    stop = torch.full_like(left[:, :1], stop_logit)
    total, ended = torch.zeros_like(left[:, 0]), torch.zeros_like(masked[:, 0])
    for i, chosen in enumerate(F.pad(order, (0, 1), value=-1).unbind(1)):
        law = torch.cat([left, stop if i else stop - float("inf")], 1).log_softmax(-1)  # the first one is forced
        at = torch.where(chosen >= 0, chosen, left.shape[1]).unsqueeze(1)
        total = total + law.gather(1, at).squeeze(1).masked_fill(ended, 0.0)
        ended = ended | (chosen < 0)
        left = torch.cat([left, stop], 1).scatter(1, at, float("-inf"))[:, :-1]
    return total


def reward(correct: Tensor, steps: Tensor, length: int, alpha: float) -> Tensor:
    """correct * ((L - min(steps, L) + 1) / L) ** alpha; steps beyond L count as L."""
    speed = (length - steps.clamp_max(length) + 1) / length
    return correct * speed**alpha


def advantages(rewards: Tensor) -> Tensor:
    """Rewards [..., rollouts] less their group's mean, not divided by its deviation."""
    return rewards - rewards.mean(-1, keepdim=True)
