"""What a decoder is: a plug-in that says which tokens to reveal.

A *step decoder* looks at what one forward says and decides; a *round decoder* asks its networks for forwards itself.
Both see all rows at once, keep their memory in row-indexed tensors that the engine allocates, resets and gathers, and
never count, time, store or read a device value on the host.

What a decoder is stands on its class (attention, caches, roles, equalities: facts without a network) and in the
`Traits` that `bind` returns once the networks are known. Then the engine asks for memory (`init_state`) and, step by
step, for decisions.

The smallest step decoder::

    class Greedy(StepDecoder):
        name = "greedy"

        def decide(self, view, forward):
            best = view.candidates(forward.logits)
            return Decision(best.tokens, top_n(best.log_odds, view.eligible, 1))

Axes: R rows, W positions of the view (the active block), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward, Network
from dlmbench.decoders.predict import Candidates, Sampling
from dlmbench.errors import RequestError

Networks: TypeAlias = Mapping[str, Any]  # role -> `Network`, or the sort of it that the decoder knows in that role
Options: TypeAlias = Any  # an instance of the decoder's Config
Marker: TypeAlias = Mapping[str, Any]  # a task's answer marker: its text, its position, the window behind it


def option(
    default: Any,
    help: str,
    *,
    threshold: bool = False,
    unit: str = "",
    choices: tuple[str, ...] = (),
    added: bool = False,
) -> Any:
    """A documented field of a decoder's Config. `threshold` marks the one that ``--threshold`` sets; a property
    `uses_threshold` of the Config may say that the other options leave it without a use.

    unit "confidence" says that it is a probability that a position must pass: only then do its values mean the
    same to the `threshold` baseline, which runs at them and is compared at them. `added` marks an option that the
    decoder did not always have: runs at its default are those that were made before.
    """
    known = {"help": help, "threshold": threshold, "unit": unit, "choices": choices, "added": added}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class NoOptions:
    """Config of a decoder without options."""


@dataclass(frozen=True)
class Traits:
    """What a configured decoder is beside its networks; asked once, before buffers, lag and recordings are chosen."""

    scope: str = "block"  # "block" | "answer" | "ahead" (to the end of a row that grows): what the view covers
    lag: int | None = None  # most steps the host may read flags late; 0 for decoders whose launches need them
    cached: bool = True  # False: every forward brings its whole row, nothing is prefilled or stored
    ends_rows: bool = False  # True: an EOS stops nothing by itself, the decoder ends rows by `Decision.finish`
    cuts_at_eos: bool = True  # False: a generation keeps what was decoded behind its first EOS
    extra_slots: int = 0  # cache slots that packed forwards need beyond a block
    reach: float = 0.0  # share of the answer that the view of a block covers at least; above 0 decisions end blocks
    initial: int = 0  # positions that an answer begins with and grows from; 0: all of its budget at once
    growth: int = 0  # most positions that a step adds to a row
    extra_answers: int = 0  # cache slots that packed forwards need beyond a block, in answers of the largest budget


class HostRow(NamedTuple):
    """What the host knows of a busy row without asking the device.

    `hint` of the row's last decision, None before its first one and from decoders that leave none; the prompt's length,
    the start of the active block, the end of the canvas, the steps spent on this block and on the row, the end of the
    active block, and where a row with ends of its own had its active block a step ago.
    """

    hint: int | None = None
    prompt: int = 0
    start: int = 0
    end: int = 0
    step: int = 0
    total_steps: int = 0
    stop: int = 0
    before: int = 0


@dataclass
class Asked:
    """What a decoder has asked of a view, for the engine: the last candidates must be numbers (`judged`), those of the
    step itself are shown in traces."""

    judged: Candidates | None = None
    traced: Candidates | None = None


@dataclass(frozen=True)
class View:
    """What a decoder sees of all rows before a step. Nothing in it is to be changed, but for its own `state`.

    tokens [R,W], positions [R,W] (absolute), start [R] first position of the active block, ends [R] end of the row's
    canvas, prompt_length [R], live [R] rows that are still decoding, step [R] steps already spent on this block,
    total_steps [R] on this row, block_masks [R] masks in the block when it began, seed [R]; `state` is the decoder's
    own memory.

    The view is the active block, or the whole answer for decoders with ``scope = "answer"``. `masked` marks mask
    tokens, `eligible` those of them that the active block allows to be revealed now; the two are the same where the
    view is a block.

    `stop` [R] is the end of the active block, `valid` [R,W] marks what belongs to the row, `own` [R,W] those of it that
    began as masks: what may be taken back or rewritten. `overhangs` says that a view may reach past the end of a short
    row at all, `given` [R,L] are the tokens of the row that stood there before the first step. `limit` [R] is where a
    row that grows ends at the latest.

    For the runtime: `max_keys` and `max_row` bound the number of keys in sight and the length of rows, `span` what
    rows that grow have behind their prompts, `host_rows` is the host's knowledge of each row (None while flags are read
    late), `own_stop` [R] the end of blocks that are not all of one length, `edge` [R] how far each may reach, `asked`
    what the decoder has asked for.
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
    given: Tensor
    max_keys: int
    max_row: int
    host_rows: list[HostRow | None] | None = None
    tracing: bool = False
    overhangs: bool = True
    own_stop: Tensor | None = None
    edge: Tensor | None = None
    limit: Tensor | None = None
    span: int = 0
    asked: Asked = field(default_factory=Asked)

    @cached_property
    def masked(self) -> Tensor:
        masked = self.tokens == self.mask_id
        return masked & self.valid if self.overhangs else masked

    @cached_property
    def eligible(self) -> Tensor:
        if self.own_stop is None and self.tokens.shape[1] == self.block_length:
            return self.masked
        return self.masked & (self.positions < self.stop.unsqueeze(1))

    @cached_property
    def own(self) -> Tensor:
        return self.valid & ~self.given.gather(1, self.positions.clamp_max(self.given.shape[1] - 1))

    @cached_property
    def valid(self) -> Tensor:
        return self.positions < (self.ends if self.edge is None else self.edge).unsqueeze(1)

    @cached_property
    def stop(self) -> Tensor:
        return self.start + self.block_length if self.own_stop is None else self.own_stop

    @property
    def fresh(self) -> Tensor:
        """Rows [R] at the first step of a block; state that belongs to a block is reset by these."""
        return self.step == 0

    def candidates(
        self, logits: Tensor, *, sampling: Sampling | None = None, positions: Tensor | None = None,
        tokens: Tensor | None = None, traced: bool = True,
    ) -> Candidates:  # fmt: skip
        """Proposed token and its scores at every position. logits [R,W,V].

        `sampling` and `positions` [R,W] other than the view's; scores of `tokens` [R,W] instead of proposals; not
        `traced`: these are not the candidates that a trace shows for the step.
        """
        best = Candidates(
            logits, self.sampling if sampling is None else sampling, self.mask_id, self.seed, self.total_steps,
            self.positions if positions is None else positions, tokens,
        )  # fmt: skip
        self.asked.judged = best
        if traced and self.tracing:
            self.asked.traced = best
        return best


@dataclass
class Decision:
    """What to do with the view's positions.

    tokens [R,W] ids for the positions in `reveal` [R,W] bool, anywhere in the view. Of what was revealed before (the
    view's `own` tokens), `remask` [R,W] bool turns positions back into masks and `replace` [R,W] bool rewrites them
    with `tokens`; a step that changes a token is not idle, so a decoder that replaces bounds its steps itself.

    `finish` [R] bool ends rows, with whatever masks are left; `keep_block_open` [R] bool keeps a block active although
    it is full; `fallback` [R] bool says where nothing passed the rule and a guard of progress revealed something;
    `planned_empty` [R] bool marks rows whose schedule prescribes a step without a reveal; `skipped` [R] bool marks rows
    that took no part in this call, which is none of their steps; `host_hint` [R] is a small number (below 2048) that
    the host is to know at the row's next step, in ``view.host_rows``: which forward the row needs then, so that none is
    launched for nobody. For traces: `order` [R,W] ranks the reveals of decoders that make them one after another,
    `extra` is whatever else they should show.

    With ``Traits.reach``, `stop` [R] is the end of the active block, which counts at its first step. With
    ``Traits.initial``, and after what is revealed: `insert`, ([R], [R]), puts so many masks before that position, what
    stands from there on moves right and beyond the row's limit it is lost; `ends` [R] is the row's new end, and the
    last `tail` [R] positions before it become EOS.
    """

    tokens: Tensor
    reveal: Tensor
    remask: Tensor | None = None
    replace: Tensor | None = None
    finish: Tensor | None = None
    keep_block_open: Tensor | None = None
    fallback: Tensor | None = None
    planned_empty: Tensor | None = None
    order: Tensor | None = None
    skipped: Tensor | None = None
    host_hint: Tensor | None = None
    extra: dict[str, Tensor] | None = None
    stop: Tensor | None = None
    insert: tuple[Tensor, Tensor] | None = None
    ends: Tensor | None = None
    tail: Tensor | None = None


EVIDENCE = ("official trace", "own reference", "equations", "read only")


class Evidence(NamedTuple):
    """What shows that a decoder is the method of its name: what its decodings on tiny random weights are compared with.

    `kind`: traces of code that its authors or a framework have published; of a reference that we wrote; values of its
    paper's equations; or nothing, paper and code were read. `areas` are the folders of tests/golden that hold the
    traces, `but` the settings for which something else holds.
    """

    kind: str
    areas: tuple[str, ...] = ()
    but: str = ""

    def __str__(self) -> str:
        areas = f" (golden area{'s' * (len(self.areas) > 1)} {', '.join(self.areas)})" if self.areas else ""
        return self.kind + areas + (f"; {self.but}" if self.but else "")


class Decoder:
    """Common part of step and round decoders. Subclasses set the class attributes they differ in; these say what the
    method is, whatever its options and networks."""

    name: str
    group: str = "others"  # of `registry.GROUPS`
    evidence: Evidence = Evidence("read only")
    version: int = 1
    Config: type = NoOptions
    roles: tuple[str, ...] = ("target",)
    attention: tuple[str, ...] = ("block_causal",)
    grids: tuple[str, ...] = ("origin",)  # where blocks may lie under block-causal attention (`Descriptor.grid`)
    anchored: bool = False  # does a block begin with a known token? Shifted block-causal heads need one
    caches: tuple[str, ...] = ("none", "prefix", "dual", "freecache", "dkv")  # that it works under, of full attention
    fixed_schedule: bool = False  # True: how many tokens a step reveals does not depend on what the model says
    needs_training: bool = False  # True: a model has to be trained for it, and rows of others say that they are not
    guidable: bool = True  # does it work under classifier-free guidance?
    equalities: tuple[str, ...] = ()  # "a=1,b=2 == other:c=3": settings that must give another decoder's ids

    def __init__(self, config: Options = None):
        self.config = self.Config() if config is None else config

    @property
    def reads(self) -> tuple[str, ...]:
        """What decisions depend on beside the likely tokens of masks, for who replays recorded logits: ``filled``, what
        a forward says of positions that hold a token; ``tail``, unlikely tokens one by one."""
        return ()

    @cached_property
    def threshold(self) -> float:
        """Value of the option that ``--threshold`` sets, whatever its paper calls it. Raises TypeError for a decoder
        that has none."""
        name = next((f.name for f in fields(self.Config) if f.metadata.get("threshold")), None)
        if name is None:
            raise TypeError(f"decoder {self.name!r} has no threshold")
        return getattr(self.config, name)

    @classmethod
    def objection(cls, config: Options, sampling: Sampling) -> str | None:
        """Why these options cannot work with this sampling, with the remedy; None when they can."""
        return None

    @classmethod
    def head_network(cls, target: Network, folder: Path | None, weights: str | None = None) -> Network:
        """The trained head of a decoder with that role, beside the `Network` it belongs to.

        Read from `folder`, or with random weights (None, for `check`); `weights` is the hash of the target's files.
        Raises RequestError when the two do not belong together.
        """
        raise TypeError(f"decoder {cls.name!r} has no head_network()")

    @classmethod
    def needs(cls, config: Options, attention: str | None) -> tuple[str, ...]:
        """Those of `roles` that this setting uses; `attention` is the target's, None where it is not known yet."""
        return cls.roles

    @classmethod
    def on_task(cls, config: Options, attention: str | None, fixed: Marker | None, offered: bool) -> Options:
        """The options on a model and task, before anything is loaded.

        `fixed` is the task's answer marker when it is written in advance, `offered` whether the task has one. Raises
        RequestError when the method cannot run there.
        """
        return config

    def bind(self, nets: Networks, block_length: int) -> Traits:
        """Look at the networks before anything runs, and say what the engine must know.

        Raises RequestError when they do not fit together.
        """
        return Traits()

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        """Row-indexed memory [rows, ...] in its starting condition; a row holds `capacity` tokens, a view W = `width`.

        Decoders that draft report through two names: ``proposed`` [rows] tokens proposed, and ``accepted``
        [rows, n] how often 0, 1, ... n-1 tokens were accepted at a time; the engine reads both when a row ends.
        """
        return {}

    def answer(self, state: dict[str, Tensor], row: int, ids: list[int]) -> list[int]:
        """Ids of a finished row; `ids` stand on its canvas behind the prompt. Called on the host, once a row."""
        return ids

    def round(self, view: View, nets: Networks) -> Decision:
        """One step of all live rows."""
        raise TypeError(f"decoder {self.name!r} has no round()")


class StepDecoder(Decoder):
    """One forward of the target, one decision."""

    def decide(self, view: View, forward: Forward) -> Decision:
        """Choose what to reveal."""
        raise TypeError(f"decoder {self.name!r} has no decide()")

    def round(self, view: View, nets: Networks) -> Decision:
        return self.decide(view, nets["target"].denoise(view))


class RoundDecoder(Decoder):
    """Asks its networks for forwards itself, in `round`; called once for all live rows, never loops over blocks or
    rows."""


def refuse_fixed(name: str, fixed: Marker | None) -> None:
    """For methods whose answers grow. Raises RequestError for a task's marker that is written in advance."""
    if fixed:
        raise RequestError(
            f"Method {name} lets answers grow, so none of their tokens can be fixed: leave sampling.constraint out."
        )


def top_n(score: Tensor, eligible: Tensor, n: int | Tensor) -> Tensor:
    """The n eligible positions of highest score in each row, ties to the lowest index.

    score [R,W], eligible [R,W] bool, n int or [R] -> bool [R,W]. Fewer when fewer are eligible.
    """
    if isinstance(n, int) and n == 1:  # argmax returns the first of equals
        places = torch.arange(score.shape[1], device=score.device)
        return (places == _ranked(score, eligible).argmax(1, keepdim=True)) & eligible
    limit = n if isinstance(n, int) else n.unsqueeze(1)
    return (ranks(score, eligible) < limit) & eligible


def ranks(score: Tensor, eligible: Tensor) -> Tensor:
    """Place [R,W] of every position in the order of its score [R,W]: 0 is the highest eligible one, ties go to the
    lowest index, and what is not eligible comes last."""
    order = _ranked(score, eligible).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(score.shape[1], device=score.device)
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))


def _ranked(score: Tensor, eligible: Tensor) -> Tensor:
    score = score.clamp_min(torch.finfo(score.dtype).min)  # a score of -inf still ranks before what is not eligible
    return torch.where(eligible, score, float("-inf"))
