"""What a decoder is: a plug-in that says which tokens to reveal.

A *step decoder* looks at the logits of one forward and decides; a *round decoder* asks its networks for forwards
itself. Both see all rows at once, keep their memory in row-indexed tensors that the engine allocates, resets and
gathers, and never count, time, store or read a device value on the host.

The smallest step decoder::

    class Greedy(StepDecoder):
        name = "greedy"

        def decide(self, view, logits):
            best = view.candidates(logits)
            return Decision(best.tokens, top_n(best.log_odds, view.eligible, 1))

Axes: R rows, W positions of the view (the active block), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlmbench.decoders.predict import Candidates, Sampling


def option(default: Any, help: str, *, knob: bool = False, unit: str = "", choices: tuple[str, ...] = ()) -> Any:
    """A documented field of a decoder's Config. `knob` marks the one that ``--threshold`` sets; a property `uses_knob`
    of the Config may say that the other options leave it without a use.

    unit "confidence" says that the knob is a probability that a position must pass: only then do its values mean the
    same to the `threshold` baseline, which runs at them and is compared at them.
    """
    return field(default=default, metadata={"help": help, "knob": knob, "unit": unit, "choices": choices})


@dataclass(frozen=True)
class NoOptions:
    """Config of a decoder without options."""


class HostRow(NamedTuple):
    """What the host knows of a busy row without asking the device.

    `note` of the row's last decision, None before its first one and from decoders that leave none; the prompt's length,
    the start of the active block, the end of the canvas, and the steps spent on this block and on the row.
    """

    note: int | None = None
    prompt: int = 0
    start: int = 0
    end: int = 0
    step: int = 0
    total_steps: int = 0


@dataclass
class View:
    """What a decoder sees of all rows before a step.

    tokens [R,W], positions [R,W] (absolute), start [R] first position of the active block, ends [R] end of the row's
    canvas, prompt_length [R], live [R] rows that are still decoding, step [R] steps already spent on this block,
    total_steps [R] on this row, block_masks [R] masks in the block when it began, seed [R]; `state` is the decoder's
    own memory.

    The view is the active block, or the whole answer for decoders with ``scope = "answer"``. `masked` marks mask
    tokens, `eligible` those of them that the active block allows to be revealed now; the two are the same where the
    view is a block.

    `stop` [R] is the end of the active block, `valid` [R,W] marks what belongs to the row; `overhangs` says that a view
    may reach past the end of a short row at all. `predicted` [R,W] marks positions that the last forward predicted,
    None for all of them: a cache policy may leave the rest of the answer out. `seen`, `longest` and `host` are for the
    runtime: upper bounds on key and row length, and the host's knowledge (None while flags are read late).
    """

    tokens: Tensor
    positions: Tensor
    start: Tensor
    ends: Tensor
    prompt_length: Tensor
    live: Tensor
    step: Tensor
    total_steps: Tensor
    block_masks: Tensor
    seed: Tensor
    state: dict[str, Tensor]
    mask_id: int
    block_length: int
    attention: str
    sampling: Sampling
    seen: int
    longest: int
    host: list[HostRow | None] | None = None
    tracing: bool = False
    overhangs: bool = True
    predicted: Tensor | None = None

    def __post_init__(self):
        self.traced: Candidates | None = None  # what `candidates` last returned, for the recorder
        self.judged: Candidates | None = None  # those whose logits must be numbers, until the decision is carried out
        self.masked = self.tokens == self.mask_id
        if self.overhangs:
            self.masked = self.masked & self.valid
        self.eligible = self.masked
        if self.tokens.shape[1] != self.block_length:
            self.eligible = self.masked & (self.positions < self.stop.unsqueeze(1))

    @cached_property
    def valid(self) -> Tensor:
        return self.positions < self.ends.unsqueeze(1)

    @cached_property
    def stop(self) -> Tensor:
        return self.start + self.block_length

    @property
    def fresh(self) -> Tensor:
        """Rows [R] at the first step of a block; state that belongs to a block is reset by these."""
        return self.step == 0

    def candidates(self, logits: Tensor) -> Candidates:
        """Proposed token and its scores at every position. logits [R,W,V]."""
        best = self.judged = Candidates(logits, self)
        if self.tracing:
            self.traced = best
        return best


@dataclass
class Decision:
    """What to do with the view's positions.

    tokens [R,W] ids for the positions in `reveal` [R,W] bool, anywhere in the view; `remask` [R,W] bool turns revealed
    ones back; `finish` [R] bool ends rows; `hold` [R] bool keeps a block active although it is full; `guard` [R] bool
    says where a progress guard had to fire; `idle` [R] bool marks rows whose schedule prescribes a step without a
    reveal; `waits` [R] bool marks rows that took no part in this call, which is none of their steps; `note` [R] is a
    small number (below 2048) that the host is to know at the row's next step, in ``view.host``: which forward the row
    needs then, so that none is launched for nobody. For traces: `order` [R,W] ranks the reveals
    of decoders that make them one after another, `extra` is whatever else they should show.
    """

    tokens: Tensor
    reveal: Tensor
    remask: Tensor | None = None
    finish: Tensor | None = None
    hold: Tensor | None = None
    guard: Tensor | None = None
    idle: Tensor | None = None
    order: Tensor | None = None
    waits: Tensor | None = None
    note: Tensor | None = None
    extra: dict[str, Tensor] | None = None


class Decoder:
    """Common part of step and round decoders. Subclasses set the class attributes they differ in."""

    name: str
    version: int = 1
    Config: type = NoOptions
    roles: tuple[str, ...] = ("target",)
    attention: tuple[str, ...] = ("block_causal",)
    grids: tuple[str, ...] = ("origin",)  # where blocks may lie under block-causal attention (`Descriptor.grid`)
    anchored: bool = False  # does a block begin with a known token? Shifted block-causal heads need one
    caches: tuple[str, ...] = ("none", "prefix", "dual", "freecache")  # policies of full attention that it works under
    scope: str = "block"  # "block" | "answer": what the view covers
    fixed_schedule: bool = False  # True: how many tokens a step reveals does not depend on what the model says
    guidable: bool = True  # does it work under classifier-free guidance?
    view_width: int = 0  # positions of a view; the engine says so before `init_state`
    equalities: tuple[str, ...] = ()  # "a=1,b=2 == other:c=3": settings that must give another decoder's ids
    lag: int | None = None  # most steps the host may read flags late; 0 for decoders whose launches need them
    cached: bool = True  # False: every forward brings its whole row, nothing is prefilled or stored
    ends_rows: bool = False  # True: an EOS stops nothing by itself, the decoder ends rows by `Decision.finish`
    cuts_at_eos: bool = True  # False: a generation keeps what was decoded behind its first EOS

    def __init__(self, config: Any = None):
        self.config = self.Config() if config is None else config

    @classmethod
    def knob(cls) -> str | None:
        """Name of the option that ``--threshold`` sets, None when there is none."""
        return next((f.name for f in fields(cls.Config) if f.metadata.get("knob")), None)

    @classmethod
    def objection(cls, config: Any, sampling: Sampling) -> str | None:
        """Why these options cannot work with this sampling, with the remedy; None when they can."""
        return None

    @classmethod
    def head_network(cls, target: Any, folder: Path | None, weights: str | None = None) -> Any:
        """The trained head of a decoder with that role, beside the `Network` it belongs to.

        Read from `folder`, or with random weights (None, for `check`); `weights` is the hash of the target's files.
        Raises RequestError when the two do not belong together.
        """
        raise TypeError(f"decoder {cls.name!r} has no head_network()")

    @classmethod
    def needs(cls, config: Any, attention: str | None) -> tuple[str, ...]:
        """Those of `roles` that this setting uses; `attention` is the target's, None where it is not known yet."""
        return cls.roles

    @classmethod
    def on_task(cls, config: Any, attention: str, fixed: Mapping[str, Any] | None, offered: bool) -> Any:
        """The options on a model and task, before anything is loaded.

        `fixed` is the task's answer marker when it is written in advance, `offered` whether the task has one. Raises
        RequestError when the method cannot run there.
        """
        return config

    def extra_slots(self, block_length: int) -> int:
        """Cache slots that packed forwards need beyond a block."""
        return 0

    def attach(self, nets: Mapping[str, Any]) -> None:
        """Look at the networks before anything runs. Raises RequestError when they do not fit together."""

    def init_state(self, rows: int, length: int, device: torch.device) -> dict[str, Tensor]:
        """Row-indexed memory [rows, ...] in its starting condition; `length` is the row's capacity in tokens.

        Decoders that draft report through two names: ``proposed`` [rows] tokens proposed, and ``accepted``
        [rows, n] how often 0, 1, ... n-1 tokens were accepted at a time; the engine reads both when a row ends.
        """
        return {}

    def answer(self, state: dict[str, Tensor], row: int, ids: list[int]) -> list[int]:
        """Ids of a finished row; `ids` stand on its canvas behind the prompt. Called on the host, once a row."""
        return ids


class StepDecoder(Decoder):
    """One forward of the target, one decision."""

    def decide(self, view: View, logits: Tensor) -> Decision:
        """Choose what to reveal. logits [R,W,V] predict the view's positions."""
        raise TypeError(f"decoder {self.name!r} has no decide()")

    def round(self, view: View, nets: Mapping[str, Any]) -> Decision:
        return self.decide(view, nets["target"].denoise(view))


class RoundDecoder(Decoder):
    """Asks its networks for forwards; called once a round for all live rows, never loops over blocks or rows."""

    def round(self, view: View, nets: Mapping[str, Any]) -> Decision:
        raise TypeError(f"decoder {self.name!r} has no round()")


def top_n(score: Tensor, eligible: Tensor, n: int | Tensor) -> Tensor:
    """The n eligible positions of highest score in each row, ties to the lowest index.

    score [R,W], eligible [R,W] bool, n int or [R] -> bool [R,W]. Fewer when fewer are eligible.
    """
    score = score.clamp_min(torch.finfo(score.dtype).min)  # a score of -inf still ranks before what is not eligible
    score = torch.where(eligible, score, float("-inf"))
    places = torch.arange(score.shape[1], device=score.device)
    if isinstance(n, int) and n == 1:  # argmax returns the first of equals
        return (places == score.argmax(1, keepdim=True)) & eligible
    order = score.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, places.expand_as(order))
    limit = n if isinstance(n, int) else n.unsqueeze(1)
    return (rank < limit) & eligible
