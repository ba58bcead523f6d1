"""Exact conditional distributions of a finite set of answers: the arithmetic of the oracle, nothing else.

With all answers equally likely, the ideal model's distribution at a position, given what stands at the others, is the
share of the answers that agree with these:

    p_i(v) = |{a : a agrees with r, a_i = v}| / |{a : a agrees with r}|,

or the same with weights. One rule covers what this leaves open. What counts at position i are the tokens revealed at
all OTHER positions, so that a revealed token can be looked at again; and where no answer agrees with these any more (a
decoder has contradicted itself), those that disagree at the fewest positions stand for it.

Axes: R rows, A answers, L positions of the answer, W positions asked for, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT = 1 << 14  # more disagreements than an answer has positions


def conditionals(answers: Tensor, weights: Tensor, tokens: Tensor, revealed: Tensor, at: Tensor, size: int) -> Tensor:
    """Distributions over `size` ids at the positions `at`, each row summing to 1. [R,W,V] float32

    answers [R,L,A] ids of any integer type; weights [R,A] float, 0 for answers that a row does not have; tokens [R,L]
    the row as it stands and revealed [R,L] bool which of them count; at [R,W] positions in 0 .. L-1.
    """
    differs = (answers != tokens.to(answers.dtype).unsqueeze(2)) & revealed.unsqueeze(2)  # [R,L,A]
    there = at.unsqueeze(2).expand(-1, -1, answers.shape[2])
    differences = differs.sum(1, dtype=torch.int16).masked_fill(weights == 0, ABSENT)  # [R,A]
    elsewhere = differences.unsqueeze(1) - differs.gather(1, there).short()  # [R,W,A]
    agree = elsewhere == elsewhere.amin(2, keepdim=True)
    mass = weights.unsqueeze(1) * agree
    shares = mass.new_zeros(*at.shape, size).scatter_add_(2, answers.gather(1, there).long(), mass)
    return shares / mass.sum(2, keepdim=True)


def zipf(answers: Tensor) -> Tensor:
    """Weights 1, 1/2, 1/3 ... of a row's answers. answers [A,L] -> [A] float32

    Which answer comes first follows from a hash of its ids, so that likely answers have nothing else in common and the
    order in which they were given does not matter.
    """
    order = hashes(answers).argsort(stable=True)
    ranks = torch.empty(len(order)).scatter_(0, order, torch.arange(1, len(order) + 1).float())
    return 1 / ranks


def hashes(answers: Tensor) -> Tensor:
    """A number below 2**32 that follows from an answer's ids. answers [A,L] -> [A] int64"""
    state = torch.zeros(answers.shape[0], dtype=torch.long)
    for column in answers.long().cpu().unbind(1):
        state = _mixed(31 * state + column + 1)
    return state


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of murmur3, on int64 numbers."""
    low = 0xFFFFFFFF
    x = x & low
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & low
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & low
    return x ^ (x >> 16)
