"""Stage two: block diffusion (SDAR, arXiv 2510.06303), with the context shared by two complementary noisy copies.

One row is [clean tokens of all blocks but the last | noisy copy | noisy copy], where a copy holds the blocks that
contain target tokens. Blocks are cut at absolute multiples of the block length, so the tail of the prompt stands, never
masked, in the first of them, exactly as in decoding. The last block is padded with end tokens, and these are trained
too. Sharing the clean columns between two copies whose masks are complements predicts every target token once per row,
for a third fewer columns than one copy at a time.

Noise: one rate t ~ U(0,1) a block, kept away from 0 and 1; a token of copy one is masked with probability t, and copy
two masks the others. In a share of the rows (`ordered` of a recipe) both copies mask the right end of every block
instead, m tokens and 1 + block length - m: the states of decoding from left to right, which independent masks seldom
show. Loss: cross-entropy at masked positions over the share of masks (t and 1 - t), the factor capped so that a lucky
rate does not dominate a step. No shift: a column predicts its own position.
"""

from __future__ import annotations

import numpy as np

from dlmbench.training.data import Example, LaidExample

LOWEST_RATE = 0.06
LARGEST_FACTOR = 6.0


def layout(
    example: Example, block_length: int, noise: np.random.Generator, mask: int, end: int, ordered: float = 0.0
) -> LaidExample:
    """Lay out one example; see the module's text for the order of columns."""
    prompt = len(example.prompt)
    tokens = prompt + len(example.target) + 1
    total = -(-tokens // block_length) * block_length
    text = np.full(total, end)
    text[: tokens - 1] = [*example.prompt, *example.target]
    first = prompt // block_length * block_length  # where the copies begin
    clean = np.arange(total - block_length)
    noisy = np.arange(first, total)

    masked, factor = draw_masks(noisy >= prompt, block_length, noise, ordered)
    copies = [np.where(hidden, mask, text[noisy]) for hidden in masked]
    positions = np.concatenate([clean, noisy, noisy])
    copy = np.repeat([0, 1, 2], [len(clean), len(noisy), len(noisy)])
    label = np.concatenate([text[clean], text[noisy], text[noisy]])
    weight = np.concatenate([np.zeros(len(clean)), *factor]) / (2 * (total - prompt))
    ids = np.concatenate([text[clean], *copies])
    return LaidExample(ids, positions, positions // block_length, copy, label, weight.astype(np.float32))


def draw_masks(
    target: np.ndarray, block_length: int, noise: np.random.Generator, ordered: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of both copies over whole blocks; with probability `ordered` those of decoding from left to right.

    target [L] bool: positions that may be masked -> (masked bool [2,L], loss factor [2,L], zero off the masks).
    """
    blocks = len(target) // block_length
    if ordered and noise.random() < ordered:
        hidden = noise.integers(1, block_length + 1, blocks).repeat(block_length)
        hidden = np.stack([hidden, 1 + block_length - hidden])
        masked = target & (np.arange(len(target)) % block_length >= block_length - hidden)
        rates = hidden / block_length
    else:
        rate = noise.random(blocks).clip(LOWEST_RATE, 1 - LOWEST_RATE).repeat(block_length)
        one = target & (noise.random(len(target)) < rate)
        masked, rates = np.stack([one, target & ~one]), np.stack([rate, 1 - rate])
    return masked, np.minimum(1 / rates, LARGEST_FACTOR) * masked
