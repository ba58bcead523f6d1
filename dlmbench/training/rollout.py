"""Rows for training on what a frozen full-attention backbone does itself: prompt, an answer of masks, padding.

Prompts are training examples (or dev items, for what is held out), the answer has the length that its task decodes
with. `AnswerRows` says how a batch of them lies in columns, `states` is the backbone's forward over it; `adjust` and
`learned_policy` fill the answers by their own rules. `dev_run` measures with the engine what the trained head is worth
in decoding.

Left out: caches and prefilled prompts, which full attention does not have.

Axes: N rows, R columns, A answer positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dlmbench.backbone import Transformer, load_checkpoint, weights_hash
from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.configuration import read_config
from dlmbench.backbone.network import Network
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine, Request
from dlmbench.errors import RequestError
from dlmbench.training.data import LENGTH_STEP, Batches, Example, Layout
from dlmbench.training.evaluate import FIRST, answers_agree, dev_items
from dlmbench.training.full_diffusion import Region, regions
from dlmbench.training.loop import folder_of
from dlmbench.training.recipe import Recipe
from dlmbench.training.step import run_layers

DEV_ROWS = 32  # dev items decoded at a time
FITTING = {"full": "a LLaDA or Dream", "block_causal": "an SDAR"}  # checkpoints by their attention


@dataclass(frozen=True)
class Prompt:
    """One example to be answered: `ids` are the prompt's with masks behind it, `start` is where these begin."""

    ids: np.ndarray
    start: int
    target: tuple[int, ...]
    block_length: int


@dataclass(frozen=True)
class AnswerRows:
    """N prompts and their answers in R columns.

    ids [N,R] with masked answers; start, length [N]: place and length of the answers; `width` is A, the positions of
    the longest one; targets: token ids without the end token.
    """

    ids: Tensor
    start: Tensor
    length: Tensor
    width: int
    block_length: int
    targets: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], columns: int) -> AnswerRows:
        """Prompts padded to `columns`; nothing sees the padding."""
        ids = np.zeros((len(prompts), columns), dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt.ids)] = prompt.ids
        start = torch.tensor([prompt.start for prompt in prompts])
        length = torch.tensor([len(prompt.ids) for prompt in prompts]) - start
        targets = tuple(prompt.target for prompt in prompts)
        return cls(torch.from_numpy(ids), start, length, int(length.max()), prompts[0].block_length, targets)

    @property
    def columns(self) -> int:
        """Without padding."""
        return int((self.start + self.length).sum())

    @cached_property
    def positions(self) -> Tensor:
        return torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)

    @cached_property
    def visible(self) -> Tensor:
        """Every column sees its whole row: bool [N,1,R,R] (query, key)."""
        inside = self.positions < (self.start + self.length).unsqueeze(1)
        return inside[:, None, None].expand(-1, 1, self.ids.shape[1], -1)

    @cached_property
    def offsets(self) -> Tensor:
        """0 .. A-1 for every row. [N,A]"""
        return torch.arange(self.width, device=self.ids.device).expand(len(self.ids), -1)

    @cached_property
    def valid(self) -> Tensor:
        """Answer positions that a row has. [N,A] bool"""
        return self.offsets < self.length.unsqueeze(1)

    @cached_property
    def at(self) -> Tensor:
        """Columns of the answer positions, the last column for those that a row has not. [N,A]"""
        return (self.start.unsqueeze(1) + self.offsets).clamp_max(self.ids.shape[1] - 1)

    def filled(self, answers: Tensor) -> Tensor:
        """The rows' ids [N,R] with these answers [N,A]."""
        offset = self.positions - self.start.unsqueeze(1)
        inside = (offset >= 0) & (offset < self.length.unsqueeze(1))
        return torch.where(inside, answers.gather(1, offset.clamp(0, answers.shape[1] - 1)), self.ids)

    def select(self, rows: Tensor) -> AnswerRows:
        """Some of the rows [n], the width of the answers kept."""
        targets = tuple(self.targets[row] for row in rows.tolist())
        return replace(self, ids=self.ids[rows], start=self.start[rows], length=self.length[rows], targets=targets)

    def to(self, device: torch.device) -> AnswerRows:
        return replace(self, ids=self.ids.to(device), start=self.start.to(device), length=self.length.to(device))


class Prompts(Batches[Prompt, AnswerRows]):
    """Endless batches of rows; what a worker draws and in which order is as for any other objective."""

    def collate(self, rows: Sequence[Prompt], length: int) -> AnswerRows:
        return AnswerRows.of(rows, length)


def prompt_layout(tokenizer, mask: int, sources: Iterable[str] = FIRST) -> Layout[Prompt]:
    """How an example becomes a row: its answer is as long as its task decodes with, and never too short for it."""
    known = regions(tokenizer, sources) if tokenizer else {}

    def layout(example: Example, block_length: int, noise: np.random.Generator) -> Prompt:
        region = known.get(example.source, Region(0))
        needed = -(-(len(example.target) + 1) // LENGTH_STEP) * LENGTH_STEP
        answer = len(example.target) if region.filled else max(region.length, needed)
        ids = np.array([*example.prompt, *[mask] * answer])
        return Prompt(ids, len(example.prompt), example.target, block_length)

    return layout


# --- the frozen backbone ----------------------------------------------------------------------------------------------


def check_backbone(recipe: Recipe, attention: str = "full") -> None:
    """Refuse a backbone of another attention or without a mask token, before any worker starts."""
    config, _ = read_config(folder_of(recipe.backbone))
    if config.attention != attention or config.mask_id is None:
        raise RequestError(
            f"Recipe {recipe.name} trains a head for {attention} attention and {recipe.backbone} has "
            f"{config.attention} attention: name {FITTING[attention]} checkpoint in warm_start.model."
        )


def load_backbone(recipe: Recipe, device: torch.device | str, dtype: torch.dtype) -> tuple[Transformer, str]:
    """The frozen backbone that `warm_start` names, and the hash of its weights."""
    folder = folder_of(recipe.backbone)
    return load_checkpoint(folder, device, dtype), weights_hash(folder)


@torch.no_grad()
def states(model: Transformer, rows: AnswerRows, answers: Tensor, compiled: bool) -> Tensor:
    """States after the final norm for rows with these answers [N,A], each at the position that it predicts [N,R,D]."""
    x = run_layers(model, model, model.embed(rows.filled(answers).flatten()), rows, compiled)
    x = F.rms_norm(x, x.shape[-1:], model.norm, model.config.rms_norm_eps).view(*rows.ids.shape, -1)
    shift = model.config.shift
    return torch.cat([x[:, :shift], x[:, : x.shape[1] - shift]], 1)


def pick(states: Tensor, columns: Tensor) -> Tensor:
    """States [N,R,D] at columns [N,W] -> [N,W,D]"""
    return states.gather(1, columns.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


# --- dev items --------------------------------------------------------------------------------------------------------


def dev_examples(tokenizer, count: int, sources: Iterable[str]) -> Iterator[Example]:
    """The first `count` dev items of each source."""
    for source, items in dev_items(count, sources).items():
        texts = [text for item in items for text in (item["prompt"], item["target"])]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for prompt, target in zip(ids[::2], ids[1::2], strict=True):
            yield Example(tuple(prompt), tuple(target), source)


def dev_run(model: Transformer, head, decoder, recipe: Recipe, tokenizer) -> dict[str, float]:
    """Accuracy and forwards an item of a decoder on the first dev items of each source, by the engine itself.

    `head` makes the head's network from the target's; None for decoders without one.
    """
    target = Bidirectional("target", model, recipe.block_lengths[0])
    nets: dict[str, Network] = {"target": target} | ({"head": head(target)} if head else {})
    layout, noise = prompt_layout(tokenizer, model.config.mask, recipe.mixture), np.random.default_rng(0)
    requests, targets = [], []
    for number, example in enumerate(dev_examples(tokenizer, recipe.evaluate_items, recipe.mixture)):
        row = layout(example, target.block_length, noise)
        requests.append(Request(str(number), example.prompt, len(row.ids) - row.start))
        targets.append(tokenizer.decode(example.target, skip_special_tokens=True))
    engine = Engine(nets, decoder, tokenizer, batch_size=DEV_ROWS, sampling=Sampling(confidence="clean"))
    runs = engine.generate(requests)
    model.eval()  # decoding made its weights ready for itself; a compiled step needs them as they were
    right = sum(answers_agree(run.text, text) for run, text in zip(runs, targets, strict=True))
    forwards = sum(kind["calls"] for run in runs for kind in run.counts["target"].values())
    return {"accuracy": right / len(runs), "forwards": forwards / len(runs)}
