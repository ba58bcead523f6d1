"""`lopa`: several futures of a step at once, of which the surest is kept (LoPA, arXiv 2512.16229;
docs/methods/lopa.md).

The ground is D2F's decoding (`dlmbench.decoders.d2f`). A round has branches: extras, which have one more token each,
and the base. All are computed together, each with open blocks of its own.

    score    alpha * creation + (1 - alpha) * mean confidence of a branch's masks, of the least sure share `lowest` of
             them, 1 without a mask; creation is the confidence of the extra's token when it was made, 1 for the base
    commit   the branch of highest score, with what D2F reveals by its logits, is the next base
    extras   of the next round: the `branches` surest masks that were not revealed, one in each

Axes: K extras, C = K + 1 branches, the base last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlmbench.decoders.base import Decision, Evidence, Networks, Traits, View, option, ranks
from dlmbench.decoders.d2f import D2F, D2FConfig
from dlmbench.decoders.predict import Candidates


@dataclass(frozen=True)
class LoPAConfig(D2FConfig):
    branches: int = option(2, "branches with one more token, beside the base (scripts 2, 3, 4); 0: D2F")
    alpha: float = option(0.0, "weight of a token's own confidence in its branch's score (scripts 0, class 0.5)")
    lowest: float = option(
        1.0, "share of a branch's masks, the least sure ones, whose confidence counts (scripts 1, class 0.5)"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.branches == 1 or self.branches < 0:
            raise ValueError("branches must be 0 or at least 2: of 1 the release makes none")
        if not (0 <= self.alpha <= 1 and 0 < self.lowest <= 1):
            raise ValueError("alpha must be between 0 and 1, lowest above 0 and at most 1")


class LoPA(D2F):
    name = "lopa"
    group = "length"
    evidence = Evidence("official trace", ("lopa",))
    Config = LoPAConfig
    equalities = ("branches=0 == d2f",)

    def bind(self, nets: Networks, block_length: int) -> Traits:
        return replace(super().bind(nets, block_length), extra_answers=self.config.branches)

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        """Branches [R,C]: `place` of the extra token (-1: none), `token`, `creation`, and `grown`, the positions that
        it has opened behind `closed` [R]. ``accepted`` counts rounds in which the base and in which an extra won."""
        c = self.config.branches + 1

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=torch.long, device=device)

        state = super().init_state(rows, capacity, width, device)
        state |= {"place": zeros(c) - 1, "token": zeros(c), "creation": torch.ones(rows, c, device=device)}
        return state | {"grown": zeros(c), "closed": zeros() - 1, "proposed": zeros(), "accepted": zeros(2)}

    def round(self, view: View, nets: Networks) -> Decision:
        state = view.state
        place, token = state["place"], state["token"]
        closed = torch.where(state["closed"] < 0, view.ends, state["closed"])
        ends = torch.minimum(closed.unsqueeze(1) + state["grown"], view.ends.unsqueeze(1))
        logits = nets["target"].branching(view, state["stored"], place, token, ends)
        state["stored"] = view.start.clone()  # by this forward
        winner = self._scores(view, logits, ends).argmax(1)  # the first of equals

        mine = view.positions == pick(place, winner).unsqueeze(1)  # the winner's extra token, if it has one
        tokens = torch.where(mine, pick(token, winner).unsqueeze(1), view.tokens)
        branch = replace(view, tokens=tokens, ends=pick(ends, winner))
        best = branch.candidates(pick(logits, winner))
        reveal, passed = self.commits(branch, best)
        tokens = torch.where(mine, tokens, best.tokens)
        state["ended"] = state["ended"] | ((reveal | mine) & self.is_eos(tokens)).any(1)

        tried, won = (place >= 0).sum(1) * view.live, mine.any(1)
        state["proposed"] = state["proposed"] + tried
        state["accepted"] = state["accepted"] + torch.stack([~won, won], 1) * (tried > 0).unsqueeze(1)
        self._branch_out(branch, best, reveal)
        shown = {"branches": place[:, :-1], "winner": pick(place, winner)}
        return Decision(
            tokens, reveal | mine, fallback=~passed.any(1), ends=branch.ends + state["grown"].amax(1),
            extra=shown if view.tracing else None,
        )  # fmt: skip

    def _scores(self, view: View, logits: Tensor, ends: Tensor) -> Tensor:
        """Of every branch [R,C]. logits [R,C,W,V], ends [R,C]."""
        place, creation, alpha = view.state["place"], view.state["creation"], self.config.alpha
        positions = view.positions.unsqueeze(1)
        masked = view.masked.unsqueeze(1) & (positions != place.unsqueeze(2)) & (positions < ends.unsqueeze(2))
        everywhere = positions.expand_as(masked).flatten(1)
        best = view.candidates(logits.flatten(1, 2), positions=everywhere, traced=False)
        confidence = best.confidence.view_as(masked).masked_fill(~masked, float("inf"))
        masks = masked.sum(2)
        counted = (masks.double() * self.config.lowest).long().clamp_min(1)
        least = confidence.sort(2).values.cumsum(2).gather(2, counted.unsqueeze(2) - 1).squeeze(2) / counted
        score = alpha * creation + (1 - alpha) * torch.where(masks > 0, least, 1.0)
        there = place >= 0
        there[:, -1] = True  # the base
        return score.masked_fill(~there, float("-inf"))

    def _branch_out(self, branch: View, best: Candidates, reveal: Tensor) -> None:
        """Choose the extras of the next round, and what they and the base open before it."""
        state, left = branch.state, branch.masked & ~reveal
        rank = ranks(best.log_odds, left)
        base = self.opens(branch, reveal, state["ended"])
        branches = []
        for number in range(self.config.branches):
            extra = left & (rank == number)
            there, at = extra.any(1), extra.byte().argmax(1)
            token = pick(best.tokens, at)
            opens = there & self.opens(branch, reveal | extra, state["ended"] | self.is_eos(token))
            branches.append(
                (torch.where(there, pick(branch.positions, at), -1), token, pick(best.confidence, at), opens)
            )
        nothing = torch.full_like(branch.start, -1)
        branches.append((nothing, nothing, torch.ones_like(state["creation"][:, 0]), base))
        names = ("place", "token", "creation", "grown")
        state |= {name: torch.stack(values, 1) for name, values in zip(names, zip(*branches))}
        state["grown"], state["closed"] = state["grown"] * branch.block_length, branch.ends


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Of every row the one at `index` [R]. values [R,N,...] -> [R,...]"""
    index = index.view(-1, *[1] * (values.dim() - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index).squeeze(1)
