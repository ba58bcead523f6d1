"""Held-out accuracy while training: the plainest correct decoder, no cache, whole canvases.

The engine is the real thing; this one exists so that training needs only the network. Settings are chosen on dev items,
so these are the dev sets. Backbones are scored by their tasks; heads, whose answers come by the thousand, by comparing
texts: one counts when its answer line (word problems) or the whole text (a lower bound) equals the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from dlmbench.backbone.model import Transformer
from dlmbench.tasks import load_task
from dlmbench.tasks.base import SEPARATOR
from dlmbench.tasks.data import shipped_rows
from dlmbench.tasks.stress import items as stress
from dlmbench.tasks.stress.answer_sets import GRIDS

TASKS = {  # source of the training stream -> task whose answers it has; the stress tasks' are called like them
    "gsm-full": "nano-gsm",
    "gsm-easy": "nano-gsm/easy",
    "gsm-symbolic": "nano-gsm/symbolic",
    "code": "nano-code",
    "code-long": "nano-code/long",
}
FIRST = ("gsm-full", "gsm-easy", "gsm-symbolic", "code")  # sources of the first models
FILES = {  # source -> shipped file and, where it has several, the tier
    "gsm-full": ("nano-gsm", "full"),
    "gsm-easy": ("nano-gsm", "easy"),
    "gsm-symbolic": ("nano-gsm", "symbolic"),
    "code": ("nano-code", None),
    "code-long": ("nano-code-long", None),
}


def task_of(source: str) -> str:
    """The task that a source of the training stream is for."""
    return TASKS.get(source, source)


@torch.inference_mode()
def decode(
    model: Transformer, prompts: Sequence[Sequence[int]], block_length: int, max_tokens: int, threshold: float = 1.0
) -> list[list[int]]:
    """Greedy block decoding -> ids after each prompt, cut before the first end token.

    A step reveals, in each row's active block, every masked position whose confidence exceeds `threshold`, and the most
    confident one in any case. Blocks are cut at absolute multiples of `block_length`.
    """
    config = model.config
    mask, end = config.mask, config.eos_ids[0]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    total = -(-(int(lengths.max()) + max_tokens) // block_length) * block_length
    canvas = torch.full((len(prompts), total), mask)
    for row, prompt in zip(canvas, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    block = torch.arange(total) // block_length
    sees = (block[None, :] <= block[:, None])[None, None]
    active = lengths // block_length
    while (live := (active < total // block_length).nonzero().squeeze(1)).numel():
        width = (int(active[live].max()) + 1) * block_length
        hidden = model.hidden(canvas[live, :width], mask=sees[..., :width, :width])
        here = (active[live, None] == block[None, :width]) & (canvas[live, :width] == mask)
        rows, columns = here.nonzero(as_tuple=True)
        confidence, token = _best(model.project(hidden[rows, columns]), mask)
        best = torch.zeros(len(live)).scatter_reduce(0, rows, confidence, "amax")
        reveal = (confidence > threshold) | (confidence == best[rows])
        canvas[live[rows[reveal]], columns[reveal]] = token[reveal]
        active = _advance(canvas, active, block, lengths, mask, end)
    return [_cut(row[length:].tolist(), end)[:max_tokens] for row, length in zip(canvas, lengths, strict=True)]


def _advance(canvas: Tensor, active: Tensor, block: Tensor, lengths: Tensor, mask: int, end: int) -> Tensor:
    """Next active block of each row; a row whose finished block holds an end token moves past the canvas."""
    here = active[:, None] == block[None]
    finished = ~((canvas == mask) & here).any(1)
    after_prompt = torch.arange(canvas.shape[1])[None] >= lengths[:, None]
    ended = ((canvas == end) & here & after_prompt).any(1)
    return torch.where(finished, torch.where(ended, canvas.shape[1], active + 1), active)


@torch.inference_mode()
def decode_full(
    model: Transformer, prompts: Sequence[Sequence[int]], block_length: int, length: int, threshold: float = 1.0
) -> list[list[int]]:
    """Greedy decoding with full attention over answers of `length` positions -> ids cut before the first end token.

    Like `decode`, but blocks are counted from each prompt's end and the masks right of a block are seen. Rows whose
    finished block holds an end token go no further: their text is settled.
    """
    config = model.config
    mask, end = config.mask, config.eos_ids[0]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    canvas = torch.full((len(prompts), int(lengths.max()) + length), mask)
    for row, prompt in zip(canvas, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    offset = torch.arange(canvas.shape[1]) - lengths[:, None]
    inside = offset < length
    active = torch.zeros(len(prompts), dtype=torch.long)
    while (live := (active * block_length < length).nonzero().squeeze(1)).numel():
        hidden = model.hidden(canvas[live], mask=inside[live, None, None])
        own = (offset >= 0) & inside & (offset // block_length == active[:, None])
        rows, columns = ((canvas == mask) & own)[live].nonzero(as_tuple=True)
        confidence, token = _best(model.project(hidden[rows, columns]), mask)
        best = torch.zeros(len(live)).scatter_reduce(0, rows, confidence, "amax")
        reveal = (confidence > threshold) | (confidence == best[rows])
        canvas[live[rows[reveal]], columns[reveal]] = token[reveal]
        ended = ((canvas == end) & own).any(1)
        finished = ~((canvas == mask) & own).any(1)
        active = torch.where(finished, torch.where(ended, length, active + 1), active)
    return [_cut(row[n : n + length].tolist(), end) for row, n in zip(canvas, lengths.tolist(), strict=True)]


def _best(logits: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    """Confidence and id of the best token that is not a mask. logits [K,V] -> [K], [K]."""
    probabilities = logits.float().softmax(-1)
    probabilities[:, mask] = 0
    return probabilities.max(-1)


@torch.inference_mode()
def decode_causal(model: Transformer, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Greedy next-token decoding -> ids after each prompt, cut before the first end token."""
    end = model.config.eos_ids[0]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    total = int(lengths.max()) + max_tokens
    canvas = torch.full((len(prompts), total), end)
    for row, prompt in zip(canvas, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    causal = torch.ones(total, total, dtype=torch.bool).tril()[None, None]
    cursor, everyone = lengths.clone(), torch.arange(len(prompts))
    live = everyone
    for _ in range(max_tokens):
        width = int(cursor[live].max())
        hidden = model.hidden(canvas[live, :width], mask=causal[..., :width, :width])
        token = model.project(hidden[torch.arange(len(live)), cursor[live] - 1]).argmax(-1)
        canvas[live, cursor[live]] = token
        cursor[live] += 1
        live = live[token != end]
        if not live.numel():
            break
    return [_cut(row[length:].tolist(), end)[:max_tokens] for row, length in zip(canvas, lengths, strict=True)]


def _cut(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def answers_agree(text: str, target: str) -> bool:
    """The last `####` line of both texts is the same; without such a line in the target, the whole text is."""
    if "####" not in target:
        return text.strip() == target.strip()
    return text.rpartition("####")[2].strip() == target.rpartition("####")[2].strip() and "####" in text


def dev_items(count: int, sources: Iterable[str] = FIRST) -> dict[str, list[dict[str, str]]]:
    """The first `count` dev items of each source: dictionaries with prompt and target."""
    return {source: list(islice(_dev_items(source), count)) for source in sources}


def _dev_items(source: str) -> Iterator[dict[str, str]]:
    if source.startswith("stress-"):
        kind = source.removeprefix("stress-")
        for question in stress.questions(kind, 4 if kind in GRIDS else 6, "dev", stress.SIZES["dev"]):
            yield {"prompt": stress.short_prompt(question), "target": stress.short_answer(stress.pick(question))}
        return
    file, tier = FILES[source]
    for row in shipped_rows(f"{file}-dev"):
        if row.get("tier") == tier:
            asked = row["prompt"] if "prompt" in row else row["question"]
            yield {"prompt": asked + SEPARATOR, "target": row["target"]}


def dev_accuracy(source: str, count: int, answer: Callable[[list[str]], list[str]]) -> float:
    """Share of a source's first `count` dev items that `answer`, from prompts to texts, gets right: the task's own."""
    task = load_task(task_of(source))
    items = task.items("dev", count)
    texts = answer([item.prompt for item in items])
    scores = task.score_many(zip(items, texts, strict=True))
    return sum(float(score["accuracy"]) for score in scores) / len(scores)
