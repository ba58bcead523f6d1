"""The objective of ADJUST's sampler (card of ADJUST, section 4): how far it unrolls, and what it is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def unroll_probabilities(lengths: int) -> Tensor:
    """Probability of unrolling 1 .. `lengths` calls: the softmax OF the weights 1, 1/2, 1/4, ... [lengths]"""
    return torch.softmax(0.5 ** torch.arange(lengths, dtype=torch.float32), 0)


def teacher_loss(student: Tensor, teacher: Tensor, scored: Tensor) -> Tensor:
    """KL(teacher || student), summed over the vocabulary and averaged over the scored positions, a scalar.

    student and teacher [...,T,V] log-probabilities of the same state, scored [...,T] bool the positions still masked.
    """
    kl = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return (kl * scored).sum() / scored.sum()
