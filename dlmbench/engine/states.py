"""States of a row for the selector laboratory: what stood on the canvas before a step, and what the step's forward said
of every mask (`dlmbench run --record-logits`).

A decoder is not asked for any of it: `Listener` stands between it and the target and hears what the forward says. Under
full attention it lets the forward predict the whole answer, whatever the decoder's view is.

Of a mask's logits the KEPT largest are kept with their tokens, the mask token's own, and sums over all others, from
which `restored` makes logits again: those of the kept tokens exactly, the others with the mass and the entropy that
they had together.

Axes: R rows, W positions of a view, M masks, K kept tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dlmbench.backbone.counter import LogEntry
from dlmbench.backbone.network import Forward, Kinds, Network
from dlmbench.decoders.base import Decision, Networks, View
from dlmbench.decoders.predict import without
from dlmbench.engine.recorder import Recorder
from dlmbench.engine.request import Marginals, RowPlace, State, TracedStep

KEPT = 32


def summary(logits: Tensor, mask_id: int, kept: int = KEPT) -> Marginals:
    """What is kept of logits [M,V]; `mask_id` may lie beyond V, where there is no mask token."""
    exact = logits.double()
    others, has_mask = exact, mask_id < exact.shape[1]
    mask = exact.new_full(exact.shape[:1], float("-inf"))
    if has_mask:
        others, mask = without(exact, (mask_id,)), exact[:, mask_id]
    top = others.topk(min(kept, exact.shape[1] - has_mask), -1)
    logs = exact.log_softmax(-1)
    return Marginals(
        ids=top.indices,
        logits=top.values.float(),
        mask=mask.float(),
        log_sum=exact.logsumexp(-1).float(),
        rest=others.scatter(-1, top.indices, float("-inf")).logsumexp(-1).float(),
        entropy=_entropy(logs).sum(-1).float(),
    )


def restored(known: Marginals, mask_id: int, vocabulary: int) -> Tensor:
    """Logits [M,V] with the kept tokens as they were; some of the others share the rest of the mass, as evenly as its
    entropy allows, and the remaining ones are impossible."""
    ids, logits = known.ids, known.logits
    if mask_id < vocabulary:
        ids = torch.cat([ids, torch.full_like(ids[:, :1], mask_id)], 1)
        logits = torch.cat([logits, known.mask.unsqueeze(1)], 1)
    if (number := vocabulary - ids.shape[1]) == 0:
        return torch.zeros(ids.shape).scatter(1, ids, logits)
    spread = _spread_of_rest(known, number)
    count = spread.ceil().clamp_min(1)  # tokens that share: all alike but the last, which has less
    smallest, rest = _smallest_share(spread, count), known.rest.double()
    alike = rest + ((1 - smallest) / (count - 1)).log()  # of no use where one token has it all
    before = ids.sort(1).values - torch.arange(ids.shape[1])  # free tokens before each kept one
    last = count.long() - 1 + (before <= count.unsqueeze(1) - 1).sum(1)  # the last of the first `count` free tokens
    shared = torch.arange(vocabulary) < last.unsqueeze(1)
    out = torch.where(shared, alike.float().unsqueeze(1), float("-inf"))
    out.scatter_(1, last.unsqueeze(1), (rest + smallest.log()).float().unsqueeze(1))
    return out.scatter_(1, ids, logits)


def _spread_of_rest(known: Marginals, number: int) -> Tensor:
    """To how many equal tokens [M] the rest amounts, by its entropy: from 1 to `number`."""
    log_sum = known.log_sum.double()
    parts = torch.cat([known.logits.double(), known.mask.double().unsqueeze(1)], 1) - log_sum.unsqueeze(1)
    log_mass = known.rest.double() - log_sum
    entropy = (known.entropy.double() - _entropy(parts).sum(1)) / log_mass.exp() + log_mass  # of the rest by itself
    return entropy.nan_to_num(0.0).exp().clamp(1, number)


def _smallest_share(spread: Tensor, count: Tensor) -> Tensor:
    """Share b [M] of the last of `count` [M] tokens, the others alike, at which they amount to `spread` [M] equal ones:
    -(1 - b) ln((1 - b) / (count - 1)) - b ln b = ln(spread), by bisection."""
    low, high = torch.zeros_like(spread), 1 / count
    others = (count - 1).clamp_min(1).log()
    for _ in range(50):
        middle = (low + high) / 2
        rest = 1 - middle
        entropy = torch.special.entr(rest) + rest * others + torch.special.entr(middle)
        low, high = (torch.where(entropy < spread.log(), *pair) for pair in ((middle, low), (high, middle)))
    return high.masked_fill(count == 1, 1.0)


def _entropy(logs: Tensor) -> Tensor:
    """-p log p of log-probabilities; what is impossible adds nothing."""
    return -(logs.exp() * logs.clamp_min(-1e30))


class Listener:
    """The target as the decoder sees it; `heard` is the view and the forward of its last call."""

    heard: tuple[View, Forward]

    def __init__(self, target: Network):
        self.target = target

    def __getattr__(self, name: str) -> object:
        return getattr(self.target, name)

    def denoise(
        self, view: View, embeds: Tensor | None = None, kind: Kinds | None = None, active: Tensor | None = None
    ) -> Forward:
        """The target's forward at the view; under full attention it predicts the whole answer."""
        wide = self._whole_answer(view) if self.target.config.attention == "full" and embeds is None else view
        named = {} if kind is None else {"kind": kind}
        forward = self.target.denoise(wide, embeds, active=active, **named)
        self.heard = wide, forward
        if wide is view:
            return forward
        at = (view.positions - wide.positions[:, :1]).clamp_max(wide.positions.shape[1] - 1)

        def shown(values: Tensor) -> Tensor:
            return values.gather(1, at.unsqueeze(-1).expand(*at.shape, values.shape[-1]))

        predicted = None if forward.predicted is None else forward.predicted.gather(1, at)
        return Forward(shown(forward.logits), shown(forward.hidden), predicted)

    def _whole_answer(self, view: View) -> View:
        width = int((view.ends - view.prompt_length).max())  # the host may wait: nothing here is timed
        positions = view.prompt_length.unsqueeze(1) + torch.arange(width, device=view.ends.device)
        reachable = positions.clamp_max(self.target.canvas.shape[1] - 1)
        tokens = self.target.canvas.gather(1, reachable)
        return replace(view, tokens=tokens, positions=positions, overhangs=True, edge=None)


class StateRecorder(Recorder):
    """A recorder that keeps the states of every row as well."""

    def __init__(self, rows: int, on_step: Callable[[TracedStep], None] | None, target: Network):
        super().__init__(rows, on_step)
        self.states: list[list[State]] = [[] for _ in range(rows)]
        self.listener = Listener(target)

    def networks(self, nets: Networks) -> Networks:
        return {**nets, "target": self.listener}

    def begin(self, row: int) -> None:
        super().begin(row)
        self.states[row] = []

    def step(
        self, view: View, decision: Decision, log: list[LogEntry], filled: Tensor | None = None,
        moved: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().step(view, decision, log, filled, moved)
        wide, forward = self.listener.heard
        masks = wide.masked if forward.predicted is None else wide.masked & forward.predicted
        reveal = decision.reveal & view.masked
        numbers = view.prompt_length, view.ends, view.seed, view.start, view.step, view.total_steps, view.block_masks
        for row in view.live.nonzero().flatten().tolist():
            here = masks[row]
            positions = wide.positions[row, here]
            place = RowPlace(*(int(one[row]) for one in (*numbers, wide.positions[:, 0])))
            self.states[row].append(
                State(
                    place,
                    tokens=wide.tokens[row, : place.end - place.first].cpu(),
                    positions=positions.cpu(),
                    chosen=torch.isin(positions, view.positions[row, reveal[row]]).cpu(),
                    marginals=Marginals(*(one.cpu() for one in summary(forward.logits[row, here], view.mask_id))),
                )
            )

    def states_of(self, row: int) -> list[State] | None:
        return self.states[row]

    def keep_rows(self, rows: list[int]) -> None:
        super().keep_rows(rows)
        self.states = [self.states[row] for row in rows]
