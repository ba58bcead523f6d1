"""Masked diffusion with full attention (LLaDA's training objective), for answers of a fixed length.

One row is [prompt | answer region]: the target, an end token, and more end tokens up to the region's length. Every
column sees every other one, the prompt is never masked, and a column predicts its own position.

Noise: the region is cut into blocks from the prompt's end, one block is drawn, blocks left of it are clean, its own
tokens are masked with probability t ~ U(0,1), everything right of it is masked. That is what semi-autoregressive
decoding meets; a block length of the region or more is LLaDA's own uniform masking. Loss: cross-entropy over t (capped)
at the masked positions of the block, and, with a small weight, at those right of it, which stage-wise decoders read.

Apart from the paper: end tokens after the first one weigh little, so that padding does not rule the loss; a share of
the rows has a shorter region; and a share has the task's answer marker at its fixed place, never masked, with line
breaks between the chain and it, which is how rows look under ``sampling.constraint``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dlmbench.tasks import task_files
from dlmbench.training.block_diffusion import LARGEST_FACTOR, LOWEST_RATE
from dlmbench.training.data import LENGTH_STEP, Example, LaidExample, Layout
from dlmbench.training.evaluate import FIRST, decode_full, task_of
from dlmbench.training.loop import END, MASK, PlainWorker

MARKED = 0.33  # share of the rows with the marker at its fixed place, where the task has one
SHORT = 0.2  # share of the rows whose region is shorter than the task's, or longer where answers fill theirs
PADDING = 0.15  # loss weight of padding relative to text
AHEAD = 0.3  # loss weight of the text right of the block relative to the text of the block


@dataclass(frozen=True)
class Region:
    """The answer region of a task: positions, and where the answer marker may be fixed in it.

    `marker` holds its token ids, empty without one; `start` is its place; `filler` is the token before it. `filled`
    says that an answer fills its region, whatever its length, and needs no end token.
    """

    length: int
    marker: tuple[int, ...] = ()
    start: int = 0
    filler: int = END
    filled: bool = False


def regions(tokenizer, sources: Iterable[str] = FIRST) -> dict[str, Region]:
    """The regions of sources of the training stream, as their task files say."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    found = {}
    for source in sources:
        file = task_files.find(task_of(source))
        assert file is not None, source
        about = file.metadata
        answer = about.get("answer")
        region = Region(about["gen_length"], filled=source.startswith("stress-"))
        if answer:
            marker = ids(answer["text"])
            region = replace(region, marker=marker, start=answer["position"], filler=ids("\n")[0])
        found[source] = region
    return found


class FullDiffusionWorker(PlainWorker):
    """One process of a run."""

    def layout(self) -> Layout[LaidExample]:
        self.regions = regions(self.tokenizer, self.recipe.mixture) if self.tokenizer else {}
        return lambda example, block_length, noise: layout(
            example, block_length, noise, MASK, END, self.regions.get(example.source)
        )

    def decode(self, network, source: str, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return decode_full(network, prompts, 8, self.regions[source].length, threshold=0.9)


def layout(
    example: Example, block_length: int, noise: np.random.Generator, mask: int, end: int, region: Region | None = None
) -> LaidExample:
    """Lay out one example; without `region` the answer fills the fewest multiples of `LENGTH_STEP` that hold it."""
    text, value, given = answer_region(example.target, end, region or Region(0), noise)
    hidden, weight = draw_mask(value, given, block_length, noise)
    prompt = np.array(example.prompt)
    columns = np.arange(len(prompt) + len(text))
    return LaidExample(
        ids=np.concatenate([prompt, np.where(hidden, mask, text)]),
        positions=columns,
        block=np.zeros_like(columns),
        copy=np.zeros_like(columns),
        label=np.concatenate([prompt, text]),
        weight=np.concatenate([np.zeros(len(prompt)), weight]).astype(np.float32),
    )


def answer_region(
    target: Sequence[int], end: int, region: Region, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, loss weights (1 for text, `PADDING` for padding) and what is given in advance, each [L]."""
    needed = -(-(len(target) + 1) // LENGTH_STEP)  # in steps
    length, draw = max(region.length, needed * LENGTH_STEP), noise.random()
    if region.filled and draw >= SHORT:
        return np.array(target), np.ones(len(target)), np.zeros(len(target), dtype=bool)
    chain = _before(target, region.marker)
    given = np.zeros(length, dtype=bool)
    if chain is not None and len(chain) <= region.start and draw < MARKED:
        filler = region.start - len(chain)
        target = [*chain, *[region.filler] * filler, *target[len(chain) :]]
        padding = slice(len(chain) + 1, region.start)  # the first of them says that the chain ends
        given[region.start : region.start + len(region.marker)] = True
    else:
        padding = slice(0, 0)
        if draw > 1 - SHORT:
            length = LENGTH_STEP * int(noise.integers(needed, length // LENGTH_STEP + 1))
            given = given[:length]
    text, value = np.full(length, end), np.full(length, PADDING)
    text[: len(target)] = target
    value[: len(target) + 1] = 1.0
    value[padding] = PADDING
    return text, value, given


def _before(target: Sequence[int], marker: tuple[int, ...]) -> list[int] | None:
    """What stands before the last occurrence of `marker`; None when there is none."""
    for at in range(len(target) - len(marker), -1, -1):
        if marker and tuple(target[at : at + len(marker)]) == marker:
            return list(target[:at])
    return None


def draw_mask(
    value: np.ndarray, given: np.ndarray, block_length: int, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What is masked, bool [L], and the loss weights [L], zero elsewhere.

    value [L] relative weights, given [L] bool positions that are never masked. Over all blocks that hold text, the
    weights in the drawn block average to value / value.sum(), but for the cap.
    """
    position = np.arange(len(value))
    blocks = np.unique(position[(value == 1) & ~given] // block_length)
    begin = int(noise.choice(blocks)) * block_length
    inside = (position >= begin) & (position < begin + block_length) & ~given
    ahead = (position >= begin + block_length) & ~given
    rate = max(noise.random(), LOWEST_RATE)
    masked = inside & (noise.random(len(value)) < rate)
    if not masked.any():  # a row without a loss teaches nothing
        masked[noise.choice(position[inside])] = True
    factor = len(blocks) * min(1 / rate, LARGEST_FACTOR) * masked + AHEAD * ahead
    return masked | ahead, factor * value / value[~given].sum()
