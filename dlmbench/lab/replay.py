"""Recorded states through real decoders: what would another method have revealed here?

Every state of a recorded item is shown to a decoder in turn, as a batch of one row: the tokens that stood on the canvas
and a target that says what the recorded forward said. The decoder's memory lives on from state to state, its decisions
change nothing: *same states, not same trajectory*. So a rule is judged in seconds, and only on states that the recorded
method reached.

Left out: methods that need more than distributions of the masks (`left_out`).

Axes: W positions of a view, M masks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dlmbench.backbone.network import Forward
from dlmbench.decoders.base import Decoder, StepDecoder, View
from dlmbench.engine.request import Marginals, State
from dlmbench.engine.states import restored
from dlmbench.runs.states import Facts, RecordedItem, States


def left_out(decoder: Decoder, facts: Facts, cache: str = "none") -> str | None:
    """Why recorded states do not say what this decoder would do; None where they do."""
    helpers = [role for role in decoder.needs(decoder.config, facts.attention) if role != "target"]
    if facts.attention not in decoder.attention:
        return f"for {' and '.join(decoder.attention)} attention alone"
    if cache not in decoder.caches:
        return f"does not work under cache {cache}"
    if helpers:
        return f"asks a second network ({', '.join(helpers)})"
    if decoder.group in ("remasking", "length"):
        return "goes on from what it did itself, which is not what was recorded"
    if not isinstance(decoder, StepDecoder) or type(decoder).round is not StepDecoder.round:
        return "asks for its forwards itself"
    if "filled" in decoder.reads:
        return "reads what is predicted at positions that hold a token"
    return None


@dataclass(frozen=True)
class Revealed:
    """What a decoder reveals in one state: position -> token. `ends`: it would end the row with it."""

    tokens: dict[int, int]
    ends: bool


class Replay:
    """The recorded states of a run, one after another, for any number of decoders."""

    def __init__(self, states: States):
        self.facts, self.sampling, self.items = states.facts, states.sampling, states.items

    def choices(self, decoders: list[Decoder], item: RecordedItem) -> Iterator[list[Revealed]]:
        """For every state of an item what each decoder reveals; `left_out` must be None for all of them."""
        width = max(len(state.tokens) for state in item.states)
        own = torch.cat([state.positions for state in item.states]).unique()
        given = torch.ones(1, int(own.max()) + width + self.facts.block_length, dtype=torch.bool)
        given[:, own] = False
        rows = [_Row(decoder, self.facts, width, given.shape[1]) for decoder in decoders]
        widths = {"answer": width, "block": self.facts.block_length}
        for state in item.states:
            shown = {scope: _Shown(state, self, given, scope, widths[scope]) for scope in widths}
            yield [row.choice(shown[row.scope]) for row in rows]


class _Target:
    """Stands in for the network: its forward is the recorded one."""

    role, device, dtype = "target", torch.device("cpu"), torch.float32

    def __init__(self, facts: Facts):
        self.config, self.block_length = facts, facts.block_length

    def say(self, forward: Forward) -> None:
        self.forward = forward

    def denoise(self, view: View) -> Forward:
        return self.forward


class _Row:
    """A decoder and its memory of one item."""

    def __init__(self, decoder: Decoder, facts: Facts, width: int, capacity: int):
        self.decoder, self.nets = decoder, {"target": _Target(facts)}
        self.scope = decoder.bind(self.nets, facts.block_length).scope
        width = width if self.scope == "answer" else facts.block_length
        self.memory = decoder.init_state(1, capacity, width, torch.device("cpu"))

    def choice(self, shown: _Shown) -> Revealed:
        view = shown.view(self.memory)
        self.nets["target"].say(shown.forward)
        decision = self.decoder.round(view, self.nets)
        here = decision.reveal[0] & view.masked[0]
        tokens = dict(zip(view.positions[0, here].tolist(), decision.tokens[0, here].tolist()))
        return Revealed(tokens, decision.finish is not None and bool(decision.finish[0]))


class _Shown:
    """A state as a view of this `scope` and `width`, and its forward."""

    def __init__(self, state: State, run: Replay, given: Tensor, scope: str, width: int):
        self.state, self.facts, self.sampling, self.given = state, run.facts, run.sampling, given
        first = state.place.first if scope == "answer" else state.place.start
        self.positions = first + torch.arange(width).unsqueeze(0)

    def view(self, memory: dict[str, Tensor]) -> View:
        tokens, place, row = self.state.tokens, self.state.place, torch.tensor
        at = (self.positions[0] - place.first).clamp_max(len(tokens) - 1)
        return View(
            tokens=tokens[at].unsqueeze(0), positions=self.positions, start=row([place.start]),
            ends=row([place.end]), prompt_length=row([place.prompt_length]), live=row([True]), step=row([place.step]),
            total_steps=row([place.total_steps]), block_masks=row([place.block_masks]), seed=row([place.seed]),
            state=memory, mask_id=self.facts.mask_id, block_length=self.facts.block_length,
            attention=self.facts.attention, sampling=self.sampling, given=self.given, max_keys=place.end,
            max_row=place.end,
        )  # fmt: skip

    @property
    def forward(self) -> Forward:
        logits, predicted = self._said
        return Forward(logits, logits.new_zeros(*self.positions.shape, 0), predicted)

    @cached_property
    def _said(self) -> tuple[Tensor, Tensor | None]:
        """Logits [1,W,V], zero where none were recorded, and under full attention where some were [1,W]."""
        place = self.state.positions - self.positions[0, 0]
        inside = (place >= 0) & (place < self.positions.shape[1])
        known = Marginals(*(values[inside] for values in self.state.marginals))
        logits = torch.zeros(self.positions.shape[1], self.facts.vocab_size)
        logits[place[inside]] = restored(known, self.facts.mask_id, self.facts.vocab_size)
        predicted = torch.zeros(self.positions.shape[1], dtype=torch.bool)
        predicted[place[inside]] = True
        return logits.unsqueeze(0), predicted.unsqueeze(0) if self.facts.attention == "full" else None
