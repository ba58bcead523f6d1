"""One step of all rows: what the decoder sees, what it decides, what follows; and the buffers that steps live in.

Nothing in a step depends on a tensor's value, so that a GPU can record a whole one and replay it with one launch
(`dlmbench.engine.graphs`). What lives from step to step is listed in `Step.carried`. The scheduler says which rows
there are; this file never waits for a device and never asks which row is at what.

Axes: R rows, L capacity, W positions of the view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dlmbench.backbone.counter import Counter, LogEntry
from dlmbench.backbone.network import Network, bucket
from dlmbench.decoders.base import Decision, Decoder, HostRow, Traits, View
from dlmbench.decoders.predict import Sampling
from dlmbench.engine.canvas import BLOCK_DONE, Canvas
from dlmbench.engine.graphs import Binding, StepGraphs
from dlmbench.engine.lengths import OwnEnds, canvas_kind
from dlmbench.engine.recorder import Recorder

GRAPH_BUCKET = 128  # keys in sight are padded to multiples of this where steps are recorded, so that they are few
REPORTED = ("proposed", "accepted")  # state of a decoder that is read when a row ends


class Sizes(NamedTuple):
    """What buffers are made for. `answer` is the width of a view that covers the whole answer, 0 for the block;
    `fixed`: rows may have tokens that are given in advance; `reach` is the width of a view in which decisions end
    blocks."""

    rows: int
    capacity: int
    answer: int
    fixed: bool
    reach: int = 0

    def serve(self, other: Sizes) -> bool:
        """Do buffers of this size do for a run of that one?"""
        return self.capacity >= other.capacity and self._replace(capacity=other.capacity) == other


class Bounds(NamedTuple):
    """What the host knows of all rows before a step: the largest start of an active block and the largest end of a row;
    where answers grow also the most positions that a row has behind its prompt (scope "ahead": its active block's
    start)."""

    furthest: int
    longest: int
    span: int = 0


@dataclass
class Launched:
    """A step under way. `totals` are the counts as they stood after it, for rows that a stop string ends once a
    further step has been launched, `report` the decoder's account of its drafts then; None when flags are read at
    once. `hinted`: the flags carry hints."""

    flags: Tensor
    hinted: bool
    totals: Tensor | None = None
    report: dict[str, Tensor] | None = None
    copied: torch.cuda.Event | None = None  # when the flags have reached the host


class Step:
    """The decoder over its networks, a step at a time, in buffers that outlive a call of `generate`.

    `lag` is the number of steps between launching one and reading its flags; `graphs` records them, None: plain ones.
    """

    def __init__(
        self, nets: dict[str, Network], decoder: Decoder, traits: Traits, sampling: Sampling, lag: int,
        graphs: StepGraphs | None, fill_after_eos: bool,
    ):  # fmt: skip
        self.nets, self.decoder, self.traits, self.sampling = nets, decoder, traits, sampling
        self.target = nets["target"]
        self.device, self.block_length = self.target.device, self.target.block_length
        self.lag, self.graphs, self.fill_after_eos = lag, graphs, fill_after_eos
        self.recorder: Recorder | None = None  # while a call is traced
        self.finished = self.budgets = 0  # rows that have ended, and the positions of their prompts and budgets
        self.sizes: Sizes | None = None  # of the buffers; None: there are none, or rows have been given up
        self.canvas: Canvas
        self.counter: Counter
        self.state: dict[str, Tensor] = {}
        self._fresh_state: dict[str, Tensor] = {}

    @property
    def own_ends(self) -> bool:
        """Do a step's flags say where rows are?"""
        return isinstance(self.canvas, OwnEnds)

    @property
    def mask_id(self) -> int:
        mask = self.target.config.mask_id
        return self.target.config.vocab_size if mask is None else mask  # an id that no head can produce

    # --- buffers ------------------------------------------------------------------------------------------------------

    def allocate(self, sizes: Sizes) -> None:
        """Buffers for a run; those of the last one are kept where they fit, and with them recorded steps."""
        if self.sizes is not None and self.sizes.serve(sizes) and self._owns_networks():
            self.canvas.live.zero_()
            return
        if self.graphs:
            self.graphs.clear()
        self.state = {}  # before what replaces it is made
        rows, capacity, answer, fixed, reach = sizes
        config = self.target.config
        self.canvas = canvas_kind(self.traits)(
            rows, capacity, self.block_length, self.mask_id, () if self.traits.ends_rows else config.eos_ids,
            config.attention, answer, self.device, self.fill_after_eos, config.grid, fixed, self.traits, reach,
        )  # fmt: skip
        self.counter = Counter(rows, self.device)
        for net in self.nets.values():
            net.allocate(rows, capacity, self.canvas.tokens, self.counter)
        width = reach or answer or self.block_length
        self.state = self.decoder.init_state(rows, capacity, width, self.device)
        fresh = self.decoder.init_state(1, capacity, width, self.device)
        self._fresh_state = {name: tensor.clone() for name, tensor in fresh.items()}
        self.sizes = sizes

    def _owns_networks(self) -> bool:
        """Another engine may have taken a network meanwhile."""
        return all(net.canvas is self.canvas.tokens for net in self.nets.values())

    def release(self) -> None:
        """Give up all buffers, and recorded steps with them."""
        self.sizes = None
        self.state = {}
        for net in self.nets.values():
            net.release()
        if self.graphs:
            self.graphs.clear()

    def begin(self, rows: Tensor) -> None:
        """Rows [n] whose prompts are encoded go live, with a memory of their own."""
        for name, tensor in self.state.items():
            tensor[rows] = self._fresh_state[name]
        self.canvas.begin(rows)

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows [n] alone, in their order."""
        self.sizes = None
        self.canvas.keep_rows(rows)
        self.counter.keep_rows(rows)
        for net in self.nets.values():
            net.keep_rows(rows, self.canvas.tokens)
        self.state = {name: tensor.index_select(0, rows) for name, tensor in self.state.items()}

    def padded(self, longest: int) -> int:
        """The length that whole rows are padded to; a model's limit is one of tokens, not of padding."""
        return bucket(longest, GRAPH_BUCKET) if self.graphs else longest

    def carried(self) -> list[Binding]:
        """Where the tensors are bound that live from step to step; keys and values do too, and are written in place."""
        owners: tuple[Canvas | Counter | Network, ...] = (self.canvas, self.counter, *self.nets.values())
        named = [Binding(owner, name) for owner in owners for name in owner.carried]
        return named + [Binding(self.state, name) for name in self.state]

    # --- a step -------------------------------------------------------------------------------------------------------

    def launch(self, bounds: Bounds, host_rows: list[HostRow | None] | None) -> Launched:
        """Launch one round for all rows; its flags stay on the device until they are read."""
        furthest, longest, span = bounds
        ahead = self.lag * self.block_length  # rows may be one block further than the host knows
        capacity = self.canvas.tokens.shape[1]
        max_keys, max_row = min(bucket(furthest + self.block_length + ahead), capacity), min(longest, capacity)
        if self.graphs and self.recorder is None:
            max_keys, max_row = min(bucket(max_keys, GRAPH_BUCKET), capacity), self.padded(max_row)
            shape = max_keys, max_row, bucket(span, GRAPH_BUCKET)
            flags, hinted = self.graphs.run(shape, lambda: self.round(*shape, None), self.carried)
        else:
            flags, hinted = self.round(max_keys, max_row, bucket(span), host_rows)
        flags, copied = self._to_host(flags)
        if not self.lag:
            return Launched(flags, hinted, copied=copied)
        report = {name: self.state[name].clone() for name in REPORTED if name in self.state}
        return Launched(flags, hinted, self.counter.totals.clone(), report, copied)

    def round(
        self, max_keys: int, max_row: int, span: int, host_rows: list[HostRow | None] | None
    ) -> tuple[Tensor, bool]:
        """One round of the decoder for all rows and its consequences -> flags [R], and whether they carry hints.

        Without `host_rows` nothing in here depends on a tensor's value, so it can be recorded.
        """
        tracing = self.recorder is not None
        view = self.canvas.view(self.state, self.sampling, max_keys, max_row, host_rows, tracing, span)
        log: list[LogEntry] | None = [] if tracing else None
        self.counter.log = log
        nets = self.nets if self.recorder is None else self.recorder.networks(self.nets)
        decision = self._forced(view, self.decoder.round(view, nets))
        flags = self.canvas.apply(view, decision)
        self._store_finished(view, flags)
        if self.recorder is not None and log is not None:
            self.recorder.step(view, decision, log, self.canvas.filled, self.canvas.shifted)
        return flags, decision.host_hint is not None

    def _forced(self, view: View, decision: Decision) -> Decision:
        """A cache policy may replace what the decoder reveals in some rows (Dream with prefix or dual)."""
        forced = self.target.forced(view)
        if forced is None:
            return decision
        rows, reveal = forced
        if decision.finish is not None:
            rows = rows & ~decision.finish
        return replace(decision, reveal=torch.where(rows.unsqueeze(1), reveal, decision.reveal))

    def _store_finished(self, view: View, flags: Tensor) -> None:
        """Tell the networks which blocks are final; with separate stores spend the forward now, last block included."""
        if not self.traits.cached:
            return
        for net in self.nets.values():
            if net.store_mode == "fused":
                net.finish_block(self.canvas.moved)
            elif net.stores:
                done = (flags & BLOCK_DONE).bool()
                if self.lag or bool(done.any()):
                    net.pending = done
                    net.store(view.start + self.block_length, view.max_keys)

    def _to_host(self, flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Start copying a step's flags to the host, without waiting; (flags, event of their arrival)."""
        if not flags.is_cuda:
            return flags.clone() if self.graphs else flags, None  # a replay writes over them
        pinned = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        pinned.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return pinned, event
