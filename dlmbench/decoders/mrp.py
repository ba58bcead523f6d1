"""`mrp`: a small module predicts how the logits move after a reveal, and stands in for the next forward.

Multi-token residual prediction (arXiv 2605.18817; docs/methods/mrp.md). The module (`dlmbench.heads.mrp`) sees
the tokens after a reveal and the backbone's states from before it; its residual C corrects the old logits to A + C.
Four uses of one module:

* ``speculative``: the module drafts the next K tokens of static decoding, one packed forward of K + 1 copies of the
  block verifies them; the ids are those of `static` with one token a step.
* ``direct``: after each commit of the backbone the module commits K further tokens, unverified.
* ``remask``: after an aggressive reveal the module looks again, and what it doubts stays masked.
* ``residual_remask``: the same by the size of the residual at the proposed token, on the state before the reveal.

Left out: the authors' acceptance of the minimum over a batch (every row accepts its own) and their K/V-less modes as a
rule (`mrp_prefix_cache=false` gives them).

Axes: R rows, B block length, C copies of a block, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlmbench.backbone.network import Network
from dlmbench.decoders.base import Decision, Evidence, Networks, RoundDecoder, Traits, View, option, top_n
from dlmbench.decoders.predict import Candidates, Sampling
from dlmbench.decoders.static import share
from dlmbench.errors import RequestError
from dlmbench.heads.mrp import MRPModule, load_module
from dlmbench.heads.mrp_network import MRPHead

DRAFTS, COMMITS = 3, 1  # K where nobody says: the authors' headline figure (speculative), their first row (direct)


@dataclass(frozen=True)
class MRPConfig:
    tau: float = option(
        0.8,
        "confidence that a position must pass before and after the module looked; 0.8 suits SDAR-8B in the authors' "
        "table, models may bring their own",
        threshold=True,
        unit="confidence",
    )
    mode: str = option(
        "remask",
        "what the module is for: remask works in the dynamic regime",
        choices=("speculative", "direct", "remask", "residual_remask"),
    )
    K: int | None = option(
        None, "speculative: drafts a round (unset: 3); direct: module commits a step (unset: 1); 0: no module"
    )
    delta: float = option(1.0, "residual_remask: largest residual at a proposed token that is kept (authors: 1.0)")
    commit: str = option("static", "direct: how the backbone commits", choices=("static", "dynamic"))
    steps: int = option(0, "denoising steps a block that static commits divide it into; 0: one token a step")
    mrp_prefix_cache: bool = option(
        True, "the module keeps keys and values of earlier blocks (authors: in direct mode only)"
    )
    remask_input: str = option(
        "revealed", "remask: tokens that the module sees, after or before the reveal", choices=("revealed", "masked")
    )
    mix: str = option(
        "logits_sum",
        "logits_sum: the module's output moves the logits; none: it replaces them",
        choices=("logits_sum", "none"),
    )
    sum_scale: float = option(1.0, "factor of the residual (2 is an ablation of the authors)")
    fresh_drafts: bool = option(
        False, "speculative: one more module pass after the bonus token, so that the first draft is not stale"
    )
    seed_commits: bool = option(False, "speculative: the seed forward's own best token is committed at once")
    shrink: bool = option(True, "speculative: no drafts, passes or copies for masks that are not there")

    def __post_init__(self):
        if self.K is not None and self.K < 0:
            raise ValueError(f"K is {self.K}; it is the number of module steps, 0 or more")
        if self.steps < 0:
            raise ValueError("steps must be at least 0")

    @property
    def uses_threshold(self) -> bool:
        """Does the backbone commit by confidence, not by schedule?"""
        return self.mode != "speculative" and (self.mode != "direct" or self.commit == "dynamic")

    @property
    def module_steps(self) -> int:
        if self.K is not None:
            return self.K
        return DRAFTS if self.mode == "speculative" else COMMITS

    @property
    def uses_module(self) -> bool:
        """Is there ever a pass? With one draft a round the backbone's own logits suffice."""
        least = 2 if self.mode == "speculative" and not self.fresh_drafts else 1
        return self.module_steps >= least


class MRP(RoundDecoder):
    name = "mrp"
    group = "trained"
    evidence = Evidence("official trace", ("mrp",), but="mode=remask: own reference")
    Config = MRPConfig
    roles = ("target", "head")
    equalities = (
        "mode=speculative,K=1 == static:k=1",
        "mode=speculative,K=3 == static:k=1",
        "mode=speculative,K=4,fresh_drafts=true,seed_commits=true == static:k=1",
        "mode=direct,K=0 == static:k=1",
        "K=0,tau=0.6 == threshold:tau=0.6",
        "mode=residual_remask,tau=0.6,delta=1e9 == threshold:tau=0.6",
        "mode=residual_remask,tau=0.3,delta=-1 == static:k=1",
    )

    @classmethod
    def objection(cls, config: MRPConfig, sampling: Sampling) -> str | None:
        if config.mode == "speculative" and not sampling.greedy:
            return (
                f"mrp.mode=speculative verifies greedy drafts and the temperature is {sampling.temperature}: "
                "use --temperature 0, or another mode."
            )
        return None

    @classmethod
    def head_network(cls, target: Network, folder: Path | None, weights: str | None = None) -> Network:
        if folder is not None:
            return MRPHead(load_module(folder, target.model, weights), target)
        module = MRPModule(target.model, 2).init_weights("authors").to(target.device, target.dtype)
        return MRPHead(module.requires_grad_(False).eval(), target)

    def bind(self, nets: Networks, block_length: int) -> Traits:
        config, module = self.config, nets["head"].model
        nets["head"].keeps_prefix = config.mrp_prefix_cache and config.uses_module
        residual = getattr(module, "residual", None)
        if config.mode != "residual_remask" and residual is not None and residual != (config.mix == "logits_sum"):
            kind, mix = ("residuals", "logits_sum") if residual else ("whole distributions", "none")
            raise RequestError(
                f"This MRP module was trained to predict {kind} and mrp.mix is {config.mix}: use --set mrp.mix={mix}."
            )
        return Traits(extra_slots=config.module_steps * block_length if config.mode == "speculative" else 0)

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        drafts = self.config.module_steps
        if self.config.mode != "speculative" or not drafts:
            return {}
        return {
            "drafts": torch.zeros(rows, dtype=torch.long, device=device),  # how many wait to be verified
            "places": torch.zeros(rows, drafts, dtype=torch.long, device=device),  # where in the block
            "tokens": torch.zeros(rows, drafts, dtype=torch.long, device=device),
            "proposed": torch.zeros(rows, dtype=torch.long, device=device),
            "accepted": torch.zeros(rows, drafts + 1, dtype=torch.long, device=device),
        }

    def round(self, view: View, nets: Networks) -> Decision:
        if not self.config.module_steps:
            return self._backbone_alone(view, nets["target"])
        match self.config.mode:
            case "speculative":
                decision = self._speculate(view, nets["target"], nets["head"])
            case "direct":
                decision = self._commit_directly(view, nets["target"], nets["head"])
            case _:
                decision = self._remask(view, nets["target"], nets["head"])
        nets["head"].settle(view)
        return decision

    # --- the backbone's own commits -----------------------------------------------------------------------------------

    def _backbone_alone(self, view: View, target: Network) -> Decision:
        best = view.candidates(target.denoise(view).logits)
        if not self.config.uses_threshold:
            return Decision(best.tokens, top_n(best.log_odds, view.eligible, self._due(view)))
        reveal, enough = self._confident(view, best)
        return Decision(best.tokens, reveal, fallback=~enough)

    def _due(self, view: View) -> int | Tensor:
        return share(self.config.steps, view.block_length, view.step) if self.config.steps else 1

    def _confident(self, view: View, best: Candidates) -> tuple[Tensor, Tensor]:
        """Positions above tau [R,B], or the schedule's where fewer pass; and the rows [R] where enough passed."""
        passed = (best.confidence > self.threshold) & view.eligible
        least = top_n(best.log_odds, view.eligible, self._due(view))
        enough = passed.sum(1) >= least.sum(1)
        return torch.where(enough.unsqueeze(1), passed, least), enough

    def _mix(self, logits: Tensor, carried: Tensor, residual: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Corrected logits, and the states that the next pass gets: both move by the residual and what it came from."""
        if self.config.mix == "none":
            return residual.float(), states
        scale = self.config.sum_scale
        return logits + scale * residual.float(), carried + scale * states

    # --- direct -------------------------------------------------------------------------------------------------------

    def _commit_directly(self, view: View, target: Network, head: MRPHead) -> Decision:
        logits, carried, _ = target.denoise(view)
        best, fallback = view.candidates(logits), None
        if self.config.commit == "static":
            reveal = top_n(best.log_odds, view.eligible, self._due(view))
        else:
            reveal, enough = self._confident(view, best)
            fallback = ~enough
        tokens = torch.where(reveal, best.tokens, view.tokens)
        order = torch.where(reveal, 0, -1)  # which pass committed a position, 0 being the backbone
        logits = logits.float()
        for number in range(1, min(self.config.module_steps, self._masks_after(view)) + 1):
            masked = tokens == view.mask_id
            residual, states = head.residual(view, tokens, carried, masked.any(1))
            logits, carried = self._mix(logits, carried, residual, states)
            chosen, proposed = _pick(view, tokens, logits)
            tokens = torch.where(chosen, proposed, tokens)
            order = torch.where(chosen, number, order)
        extra = {"mrp_pass": order} if view.tracing else None
        left = tokens == view.mask_id
        return Decision(tokens, view.masked & ~left, fallback=fallback, host_hint=left.sum(1), extra=extra)

    # --- remask and residual_remask -----------------------------------------------------------------------------------

    def _remask(self, view: View, target: Network, head: MRPHead) -> Decision:
        logits, hidden, _ = target.denoise(view)
        best = view.candidates(logits)
        revealed, enough = self._confident(view, best)
        if self.config.mode == "residual_remask":
            residual, _ = head.residual(view, view.tokens, hidden, view.live)
            size = residual.float().gather(-1, best.tokens.unsqueeze(-1)).squeeze(-1).abs()
            kept, score = revealed & (size <= self.config.delta), -size
        else:
            seen = view.tokens
            if self.config.remask_input == "revealed":
                seen = torch.where(revealed, best.tokens, seen)
            corrected, _ = self._mix(logits.float(), hidden, *head.residual(view, seen, hidden, enough))
            second = view.candidates(corrected, tokens=best.tokens, traced=False)
            kept, score = revealed & (second.confidence >= self.threshold), second.log_odds
            kept = torch.where(enough.unsqueeze(1), kept, revealed)  # nothing passed tau: the best stays, no pass
        none = ~kept.any(1, keepdim=True)
        kept = torch.where(none, top_n(score, revealed, 1), kept)
        extra = None
        if view.tracing:
            extra = {"vetoed": torch.where(revealed & ~kept, view.positions, -1)}
        return Decision(best.tokens, kept, fallback=~enough, extra=extra)

    # --- speculative --------------------------------------------------------------------------------------------------

    def _speculate(self, view: View, target: Network, head: MRPHead) -> Decision:
        """Verify the drafts of rows inside a block, seed rows at the first step of one, then draft for all of them."""
        fresh, state = view.fresh, view.state
        drafts = torch.where(fresh, 0, state["drafts"])
        copies = self._copies(view, drafts)  # [R,C,B]
        logits, hidden = self._forward(view, target, copies, drafts)  # [R,C,B,V], [R,C,B,D]
        chosen, best = _pick(view, copies.flatten(0, 1), logits.flatten(0, 1))
        chosen, best = chosen.view_as(copies), best.view_as(copies)
        accepted = self._accepted(state, drafts, chosen, best)  # [R]

        rows = torch.arange(accepted.shape[0], device=accepted.device)
        tokens, bonus = copies[rows, accepted], chosen[rows, accepted]
        if not self.config.seed_commits:
            bonus = bonus & ~fresh.unsqueeze(1)
        tokens = torch.where(bonus, best[rows, accepted], tokens)
        extra = self._trace(view, drafts, accepted, bonus, tokens) if view.tracing else None
        self._report(view, drafts, accepted)

        exact = ~bonus.any(1)  # the logits describe these tokens, no bonus came after them
        self._draft(view, head, tokens, logits[rows, accepted].float(), hidden[rows, accepted], exact)
        left = tokens == view.mask_id
        idle = None if self.config.seed_commits else fresh
        return Decision(tokens, view.masked & ~left, planned_empty=idle, host_hint=left.sum(1), extra=extra)

    def _copies(self, view: View, drafts: Tensor) -> Tensor:
        """The block with its first 0, 1, 2, ... drafts filled in [R,C,B]; C is as small as the host knows."""
        copies = [view.tokens]
        for number in range(self._most_drafts(view)):
            place = view.state["places"][:, number : number + 1]
            there = number < drafts.unsqueeze(1)
            token = torch.where(there, view.state["tokens"][:, number : number + 1], copies[-1].gather(1, place))
            copies.append(copies[-1].scatter(1, place, token))
        return torch.stack(copies, 1)

    def _forward(self, view: View, target: Network, copies: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
        """One packed forward of copies that are blind to one another; a seed is a pack whose first copy is used."""
        rows, count, block = copies.shape
        number = torch.arange(count * block, device=copies.device) // block
        own = (number.unsqueeze(0) == number.unsqueeze(1)).expand(rows, -1, -1)
        needed = 1 + (drafts if self.config.shrink else torch.full_like(drafts, self.config.module_steps))
        logits, hidden, _ = target.packed(
            view,
            copies.flatten(1),
            view.positions.repeat(1, count),
            own,
            kind={"seed": view.fresh, "verify": ~view.fresh},
            used=torch.where(view.fresh, block, needed * block),
        )
        return logits.view(rows, count, block, -1), hidden.view(rows, count, block, -1)

    def _accepted(self, state: dict[str, Tensor], drafts: Tensor, chosen: Tensor, best: Tensor) -> Tensor:
        """How many leading drafts [R] the backbone would have chosen itself, position and token."""
        place = chosen.int().argmax(-1)  # [R,C]
        token = best.gather(-1, place.unsqueeze(-1)).squeeze(-1)
        count = place.shape[1] - 1
        same = (state["places"][:, :count] == place[:, :-1]) & (state["tokens"][:, :count] == token[:, :-1])
        same = same & (torch.arange(count, device=place.device) < drafts.unsqueeze(1))
        return same.int().cumprod(1).sum(1)

    def _draft(self, view: View, head: MRPHead, tokens: Tensor, logits: Tensor, carried: Tensor, exact: Tensor) -> None:
        """Leave the next drafts in the state. tokens [R,B], logits [R,B,V] and states [R,B,D] of their last forward."""
        state, most = view.state, self._masks_after(view)
        unfinished = (tokens == view.mask_id).any(1)
        state["drafts"].zero_()
        if self.config.fresh_drafts and most:
            residual, states = head.residual(view, tokens, carried, unfinished & ~exact)
            fresh_logits, fresh_carried = self._mix(logits, carried, residual, states)
            logits = torch.where(exact.view(-1, 1, 1), logits, fresh_logits)
            carried = torch.where(exact.view(-1, 1, 1), carried, fresh_carried)
        steps = self.config.module_steps if most and not self.config.shrink else min(self.config.module_steps, most)
        for number in range(steps):
            chosen, best = _pick(view, tokens, logits)
            place = chosen.int().argmax(1, keepdim=True)
            state["places"][:, number : number + 1] = place
            state["tokens"][:, number : number + 1] = best.gather(1, place)
            state["drafts"] += chosen.any(1)
            tokens = torch.where(chosen, best, tokens)
            if number + 1 < steps:
                active = (tokens == view.mask_id).any(1) if self.config.shrink else unfinished
                logits, carried = self._mix(logits, carried, *head.residual(view, tokens, carried, active))

    def _report(self, view: View, drafts: Tensor, accepted: Tensor) -> None:
        """Proposed and accepted drafts of live rows, for the engine."""
        verified = view.live & ~view.fresh
        view.state["proposed"] += drafts * verified
        view.state["accepted"].scatter_add_(1, accepted.unsqueeze(1), verified.long().unsqueeze(1))

    def _trace(self, view: View, drafts: Tensor, accepted: Tensor, bonus: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """drafts [R,K,2] and bonus [R,2] as (position, token), -1 where there is none."""
        state, start = view.state, view.start.unsqueeze(1)
        there = torch.arange(state["places"].shape[1], device=drafts.device) < drafts.unsqueeze(1)
        pairs = torch.stack([state["places"] + start, state["tokens"]], -1)
        place = bonus.int().argmax(1, keepdim=True)
        pair = torch.cat([place + start, tokens.gather(1, place)], 1)
        return {
            "drafts": torch.where(there.unsqueeze(-1), pairs, -1),
            "accepted": accepted,
            "bonus": torch.where(bonus.any(1, keepdim=True), pair, -1),
        }

    # --- what the host knows: the masks that a row's last round left, which bound everything that follows -------------

    def _most_drafts(self, view: View) -> int:
        """Most drafts of any row: as many as it has masks, none before its block was seeded."""
        steps = self.config.module_steps
        if view.host_rows is None:
            return steps
        left = max((about.hint or 0 for about in view.host_rows if about), default=0)
        return steps if left and not self.config.shrink else min(steps, left)

    def _masks_after(self, view: View) -> int:
        """Most masks that any row can have after this round's forward: every round but a seed commits at least one."""
        everything = view.block_length
        if view.host_rows is None:
            return everything
        first = everything - (self.config.mode == "direct" or self.config.seed_commits)
        return max((about.hint - 1 if about.hint else first for about in view.host_rows if about), default=0)


def _pick(view: View, tokens: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The masked position of highest confidence of each row, as bool [N,B] (none without masks), and all proposals.

    tokens [N,B], logits [N,B,V].
    """
    best = view.candidates(logits, traced=False)
    return top_n(best.log_odds, tokens == view.mask_id, 1), best.tokens
