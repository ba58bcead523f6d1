"""The oracle as a network in the role of the target.

It keeps the valid answers of every row where another network keeps keys and values, and looks at the whole canvas in
each forward. `conditionals` says which probabilities come out; here they become logits, and the forwards are counted as
those of a full-attention or block-causal network. A forward has no FLOPs and no price: it counts as one.

Axes: R rows, A answers, L positions of the answer, W positions of the view, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dlmbench.backbone.config import BackboneConfig
from dlmbench.backbone.counter import Counter
from dlmbench.backbone.network import Forward, Kinds, Network, served_by
from dlmbench.errors import RequestError
from dlmbench.forwards import ForwardKey
from dlmbench.oracle.conditionals import conditionals, hashes, zipf
from dlmbench.oracle.options import OracleOptions

if TYPE_CHECKING:
    from dlmbench.engine.request import Request

LEAST = 1e-30  # below every share that is not 0
NEVER = -1e9  # logit of what has probability 0: finite, so that differences of two of them are numbers


class _Prepared(NamedTuple):
    """Answers `given` [A,L] of a request as `answers` [L,A] on the device, how likely they are [A], how long the
    shortest and the longest of them is, and a number that stands for all of them whatever their order (0: unused)."""

    given: Tensor
    answers: Tensor
    weights: Tensor
    shortest: int
    longest: int
    name: int


class Oracle(Network):
    """Exact conditionals of the answers that each request brings.

    `carried` names its tensors that live from step to step.
    """

    carried = ("answers", "weights", "errors")
    needs_answers = True
    store_mode = "fused"
    keeps_states = False
    prefill_states = None
    stores = False  # there are no keys and values
    reads_host = False
    priced = False  # a forward counts as one, whatever it takes here

    def __init__(
        self, config: BackboneConfig, block_length: int, options: OracleOptions | None = None, role: str = "target",
        device: str | torch.device = "cpu",
    ):  # fmt: skip
        if not config.eos_ids and config.attention != "full":
            raise ValueError("answers are padded with EOS to whole blocks: a block-causal oracle needs eos_ids")
        self.config, self.block_length, self.role = config, block_length, role
        self.options = options or OracleOptions()
        self.device, self.dtype = torch.device(device), torch.float32
        self.filler = config.eos_ids[0] if config.eos_ids else -1
        self.pending = torch.zeros(0, dtype=torch.bool)
        self.waiting: set[int] = set()
        self._prepared: _Prepared | None = None

    # --- what the engine does -------------------------------------------------------------------------------------

    def allocate(self, rows: int, capacity: int, canvas: Tensor, counter: Counter) -> None:
        """Room for a run. canvas [R, capacity] holds everybody's tokens and is shared, not copied."""
        self.canvas, self.counter = canvas, counter
        small = torch.int16 if self.config.vocab_size < 2**15 else torch.int32
        self.answers = torch.full((rows, 0, 1), self.filler, dtype=small, device=self.device)  # [R,L,A]
        self.weights = torch.zeros(rows, 1, device=self.device)  # [R,A], 0 where a row has no further answer
        self.errors = torch.zeros(rows, 0, self.config.vocab_size, device=self.device)  # [R,L,V], without noise L = 0

    def release(self) -> None:
        """Give up the answers."""
        self.answers, self.weights, self.errors = self.answers[:, :0], self.weights[:, :1], self.errors[:, :0]

    def admit(self, row: int, request: Request) -> None:
        """The answers of what is decoded in `row` from now on.

        Raises RequestError for a request without answers, and for one whose answers are longer than its budget.
        """
        ours = self._prepare(request)
        # On the absolute grid the last block reaches beyond the budget
        length = request.max_tokens + (self.block_length if self.config.attention != "full" else 0)
        self._grow(length, len(ours.weights))
        self.answers[row] = self.filler
        self.answers[row, : len(ours.answers), : len(ours.weights)] = ours.answers
        self.weights[row] = 0.0
        self.weights[row, : len(ours.weights)] = ours.weights
        if self.options.noise:
            self.errors[row] = self.options.noise * _normal(ours.name, *self.errors.shape[1:]).to(self.device)

    def _prepare(self, request: Request) -> _Prepared:
        """A request's answers as they are kept. Items that are drawn again and again bring the same ones."""
        if self._prepared is None or self._prepared.given is not request.answers:
            self._prepared = self._read(request)
        ours = self._prepared
        if ours.longest > request.max_tokens:
            raise RequestError(
                f"Item {request.key!r} has valid answers of {ours.longest} tokens and a budget of "
                f"{request.max_tokens}: give --gen-length {ours.longest} or more."
            )
        if self.filler < 0 and ours.shortest < request.max_tokens:
            raise RequestError(f"Item {request.key!r} has answers shorter than its budget and the oracle no EOS.")
        return ours

    def _read(self, request: Request) -> _Prepared:
        given: Tensor | None = request.answers
        if given is None or not len(given):
            raise RequestError(
                f"Item {request.key!r} has no list of valid answers, which the oracle is made of: take a task that "
                "declares them (stress-shuffle and its siblings), or another --model."
            )
        lengths = (given >= 0).sum(1)
        weights = torch.ones(len(given)) if self.options.weights == "equal" else zipf(given)
        kept = torch.where(given < 0, self.filler, given).T.contiguous().to(self.answers)
        name = int(hashes(given).sum()) if self.options.noise else 0
        return _Prepared(given, kept, weights.to(self.device), int(lengths.min()), int(lengths.max()), name)

    def _grow(self, length: int, count: int) -> None:
        """Room for answers of `length` positions and `count` of them in every row."""
        rows, positions, answers = self.answers.shape
        if length <= positions and count <= answers:
            return
        length, count = max(length, positions), max(count, answers)
        grown = self.answers.new_full((rows, length, count), self.filler)
        grown[:, :positions, :answers] = self.answers
        weights = self.weights.new_zeros(rows, count)
        weights[:, :answers] = self.weights
        self.answers, self.weights = grown, weights
        if self.options.noise:
            errors = self.errors.new_zeros(rows, length, self.config.vocab_size)
            errors[:, : self.errors.shape[1]] = self.errors
            self.errors = errors

    def prefill_lengths(self, prompt_lengths: list[int]) -> list[int]:
        return [0] * len(prompt_lengths)

    def prefill_chunks(self, rows: Tensor, lengths: list[int]) -> Iterator[None]:
        return iter(())

    def forced(self, view) -> None:
        return None

    def finish_block(self, rows: Tensor) -> None:
        pass

    def reset(self, rows: Tensor) -> None:
        pass

    def keep_rows(self, rows: Tensor, canvas: Tensor) -> None:
        self.canvas = canvas
        for name in self.carried:
            setattr(self, name, getattr(self, name).index_select(0, rows))

    def sample(self, rows: int, width: int, keys: int) -> Callable[[], Tensor]:
        """Nothing to be timed: one thread does."""
        return lambda: self.weights

    # --- what a decoder may ask for -------------------------------------------------------------------------------

    def denoise(self, view, embeds: Tensor | None = None, kind: Kinds = "", active: Tensor | None = None) -> Forward:
        """One forward of every row -> logits [R,W,V] that predict the view's positions; states have no width.

        At a revealed position: how probable tokens are given all others. `active` [R] bool marks the live rows that
        need this forward (default: all).
        """
        if embeds is not None:
            raise self._refusal("hands in embeddings")
        for name, served in served_by(kind, active):
            self._count_forward(view, name, served)
        logits = self.logits(view)
        return Forward(logits, logits.new_zeros(*logits.shape[:2], 0))

    def beside(self, view, ids: Tensor, positions: Tensor, unseen: Tensor) -> tuple[Tensor, Tensor]:
        """A forward with a second look: logits at the view, and [R,W,V] those of a mask at each of its positions that
        sees everything but the token there. Which is what every position of a forward is told anyway."""
        logits = self.denoise(view).logits
        return logits, logits.clone()

    def packed(self, view, *_: object, **__: object) -> Forward:
        raise self._refusal("packs several copies of a block into a forward")

    def embed(self, ids: Tensor) -> Tensor:
        raise self._refusal("hands in embeddings")

    def whole(self, view) -> tuple[Tensor, Tensor]:
        raise self._refusal("reads hidden states")

    def forcing(self, view, stored: Tensor) -> Forward:
        raise self._refusal("reads under an attention of its own")

    def branching(self, view, stored: Tensor, places: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        raise self._refusal("reads under an attention of its own")

    def surveyed(self, view, token: int, kind: Kinds = "") -> tuple[Forward, Tensor]:
        raise self._refusal("lets answers grow, and the oracle's have one length")

    def logits(self, view) -> Tensor:
        """[R,W,V], the mask id impossible and no logit infinite."""
        length, prompt = self.answers.shape[1], view.prompt_length.unsqueeze(1)
        everywhere = torch.arange(length, device=self.device)
        places = (prompt + everywhere).clamp_max(self.canvas.shape[1] - 1)
        tokens = self.canvas.gather(1, places)
        revealed = (tokens != self.config.mask_id) & (prompt + everywhere < view.ends.unsqueeze(1))
        if self.config.attention != "full":
            revealed = revealed & (prompt + everywhere < view.stop.unsqueeze(1))
        at = view.positions - prompt
        inside = at.clamp(0, length - 1)
        shares = conditionals(self.answers, self.weights, tokens, revealed, inside, self.config.vocab_size)
        scores = shares.clamp_min(LEAST).log()  # the logarithm of 0 takes ten times as long
        if self.options.noise:
            scores = scores + self.errors.gather(1, inside.unsqueeze(2).expand_as(scores))
        if self.options.temperature != 1.0:
            scores = scores / self.options.temperature
        scores = scores.masked_fill_(shares == 0, NEVER)
        # what stands before the answer (a prompt's tail on the absolute grid) is certain
        tail = torch.full_like(scores, NEVER).scatter_(2, view.tokens.unsqueeze(2), 0.0)
        return torch.where((at < 0).unsqueeze(2), tail, scores)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _count_forward(self, view, kind: str, active: Tensor | None) -> None:
        """As a network of this attention would be counted, its positions as query tokens."""
        width, full = view.positions.shape[1], self.config.attention == "full"
        key = ForwardKey(self.role, kind or ("refresh" if full else "denoise"), f"row:{width}" if full else str(width))
        needed = view.live if active is None else view.live & active
        self.counter.add(self.config, key, needed, view.ends, width, width)

    def _refusal(self, what: str) -> RequestError:
        return RequestError(
            f"The oracle gives distributions alone, and this method {what}: it needs a trained --model."
        )


def _normal(seed: int, length: int, size: int) -> Tensor:
    """Standard normal numbers that follow from `seed`. [length,size]"""
    return torch.randn(length, size, generator=torch.Generator().manual_seed(seed))
