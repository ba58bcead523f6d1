"""Stage one: a causal language model on the target, with a small weight on the prompt.

Its weights are shipped as the autoregressive baseline and are the start of the block-diffusion stage.
"""

from __future__ import annotations

import numpy as np

from dlmbench.training.data import Example, LaidExample


def layout(example: Example, end: int, prompt_weight: float) -> LaidExample:
    """Prompt, target and end token; column i predicts token i + 1.

    The loss of a row is the mean over target tokens (end token included) plus `prompt_weight` times the sum over prompt
    tokens at the same scale.
    """
    ids = np.array([*example.prompt, *example.target, end])
    label = np.append(ids[1:], end)
    weight = np.full(len(ids), prompt_weight, dtype=np.float32)
    weight[len(example.prompt) - 1 :] = 1.0
    weight[-1] = 0.0
    columns = np.arange(len(ids))
    return LaidExample(ids, columns, columns, np.zeros_like(ids), label, weight / (len(example.target) + 1))
