"""The objective of RCD's target (card of RCD, section 5): masked positions carry the residual of a frozen reference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_loss(logits: Tensor, labels: Tensor, masked: Tensor, t: float | Tensor) -> Tensor:
    """(1/t) * sum over masked positions of -log p(label), not divided by the length.

    logits [...,T,V], labels [...,T], masked [...,T] bool, t the probability with which positions were masked, a number
    or [...] -> [...]
    """
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    return (losses * masked).sum(-1) / t
