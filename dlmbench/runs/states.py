"""The recorded states of a run's first items, `logits.npz` in its folder: written by `--record-logits`, read by
`dlmbench selectors`.

A zip of numpy arrays without pickles. `about` is JSON text: format, the network's `Facts`, the sampling, and the items
as in `RecordedItem`. The arrays of all items stand one behind the other: rows [S,9] has a line a step (`ROW`), tokens
what stood on its canvas, cut at token_ends [S]; positions, chosen, ids, logits, mask, log_sum, rest and entropy
(`dlmbench.engine.request.Marginals`) a line a mask, cut at mask_ends [S].
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from dlmbench.decoders.base import StepDecoder
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine, Generation, Request
from dlmbench.engine.request import Marginals, RowPlace, State
from dlmbench.errors import RequestError, RunError
from dlmbench.files import JsonObject
from dlmbench.request import ResolvedRun
from dlmbench.runs.recording import LOGITS, LOGITS_FORMAT, recorded

ROW = ("item", *RowPlace._fields)


@dataclass(frozen=True)
class Facts:
    """What decoders may look at of the target they are bound to."""

    attention: str
    grid: str
    shift: int
    vocab_size: int
    mask_id: int
    eos_ids: tuple[int, ...]
    block_length: int


@dataclass(frozen=True)
class RecordedItem:
    """An item's final tokens and the states on the way to them. `text_length` counts the tokens up to the first end
    token; `same_ids` says whether they are those of the stored sample."""

    key: str
    prompt_length: int
    ids: list[int]
    text_length: int
    same_ids: bool
    states: list[State]


@dataclass(frozen=True)
class States:
    """What `logits.npz` holds."""

    facts: Facts
    sampling: Sampling
    items: list[RecordedItem]


def check_recordable(run: ResolvedRun) -> None:
    """Raises RequestError for a run whose steps are not a choice among the masks of one forward."""
    decoder, spec, reason = run.decoder, run.spec, None
    if not issubclass(decoder, StepDecoder) or decoder.round is not StepDecoder.round:
        reason = "asks for its forwards itself, and what is kept are the logits of one forward a step"
    elif decoder.group == "length":
        reason = "decides where blocks and answers end, and other methods do not know such states"
    elif run.attention == "causal":
        reason = "reveals the one mask that there is, so there is nothing to select"
    elif spec.temperature and spec.top_k != 1:
        reason = f"draws at temperature {spec.temperature:g}, and a draw needs all logits"
    if reason:
        raise RequestError(f"--record-logits: {run.label} {reason}; leave this method out, or record no logits.")


def record_states(engine: Engine, requests: Sequence[Request], stored: Mapping[str, Sequence[int]]) -> States:
    """Decode `requests` again and keep the states; `stored`: key -> ids of the run's samples."""
    config = engine.target.config
    facts = Facts(
        config.attention, config.grid, config.shift, config.vocab_size, engine.step.mask_id, tuple(config.eos_ids),
        engine.target.block_length,
    )  # fmt: skip
    items = [
        RecordedItem(
            request.key, len(request.prompt_ids), list(generation.raw_ids), _text_length(generation, facts.eos_ids),
            list(generation.ids) == list(stored[request.key]), generation.states or [],
        )
        for request, generation in zip(requests, engine.generate(requests, states=True))
    ]  # fmt: skip
    return States(facts, engine.sampling, items)


def _text_length(generation: Generation, eos_ids: Sequence[int]) -> int:
    ends = [at for at, token in enumerate(generation.raw_ids) if token in eos_ids]
    return min(ends[0] + 1 if ends else len(generation.raw_ids), len(generation.ids))


def write_states(folder: Path, found: States) -> None:
    """Replace the file whole."""
    states = [(number, state) for number, item in enumerate(found.items) for state in item.states]
    rows = [[number, *state.place] for number, state in states]
    about = {
        "format": LOGITS_FORMAT,
        "facts": asdict(found.facts),
        "sampling": asdict(found.sampling),
        "items": [{name: value for name, value in vars(item).items() if name != "states"} for item in found.items],
    }
    arrays = {
        "about": np.array(json.dumps(about)),
        "rows": np.array(rows, dtype=np.int64).reshape(-1, len(ROW)),
        "tokens": _joined([state.tokens for _, state in states], torch.int32),
        "token_ends": np.cumsum([len(state.tokens) for _, state in states], dtype=np.int64),
        "positions": _joined([state.positions for _, state in states], torch.int32),
        "chosen": _joined([state.chosen for _, state in states], torch.bool),
        "mask_ends": np.cumsum([len(state.positions) for _, state in states], dtype=np.int64),
    }
    for name in Marginals._fields:
        dtype = torch.int32 if name == "ids" else torch.float32
        arrays[name] = _joined([getattr(state.marginals, name) for _, state in states], dtype)
    draft = folder / f"{LOGITS}.part"
    with open(draft, "wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    os.replace(draft, folder / LOGITS)


def _joined(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> np.ndarray:
    return torch.cat([part.to(dtype) for part in parts]).numpy() if parts else np.zeros(0)


def read_states(folder: Path) -> States:
    """Raises RunError when there is no file, or it is another version's."""
    if not recorded(folder):
        raise RunError(
            f"{folder.name} holds no recorded logits of this version: run its command again with --record-logits 4."
        )
    with np.load(folder / LOGITS, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        data: dict[str, torch.Tensor] = {
            name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "about"
        }
    tokens, masks = (list(pairwise([0, *data[name].tolist()])) for name in ("token_ends", "mask_ends"))
    states: list[list[State]] = [[] for _ in about["items"]]
    for row, (token, token_end), (mask, mask_end) in zip(data["rows"].tolist(), tokens, masks):
        here = slice(mask, mask_end)
        marginals = {name: data[name][here] for name in Marginals._fields}
        marginals["ids"] = marginals["ids"].long()
        states[row[0]].append(
            State(
                RowPlace(*row[1:]),
                tokens=data["tokens"][token:token_end].long(),
                positions=data["positions"][here].long(),
                chosen=data["chosen"][here],
                marginals=Marginals(**marginals),
            )
        )
    facts, sampling = (_with_tuples(about[name]) for name in ("facts", "sampling"))
    items = [RecordedItem(**item, states=found) for item, found in zip(about["items"], states)]
    return States(Facts(**facts), Sampling(**sampling), items)


def _with_tuples(record: JsonObject) -> JsonObject:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
