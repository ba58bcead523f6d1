"""`simsd`: a small model drafts a block, the large one checks all of its steps in one forward (SimSD, arXiv 2606.02544;
docs/methods/simsd.md).

A round is: the draft denoises what is open of the active block, one forward a step; the target verifies in one packed
forward; tokens are committed; whatever of the block is still open is drafted again. Rows of a batch stand at different
points of their rounds. A call launches the draft's forward for all rows that draft, or the target's for all that are
ready; the host knows which from the hints of the last decisions, and rows that are ready wait until no row drafts,
because a forward of the target costs nearly the same for one row as for all.

``verify=packed`` is the published method. It is NOT lossless: the mask copies of positions that are revealed later see
the very draft token that is being judged, so from the second layer on the target's answer depends on it.

``verify=replicated`` is dlmbench's own variant, and it is lossless: static's ids, in float32. The target gets one full
copy of the block for every draft step: copy t is the block as it stood before step t, with masks elsewhere; copies are
blind to each other and all see the cached prefix. In copy t the target therefore sees exactly what it would have seen
decoding alone, so its own choice there (its most confident position and the token for it) is known. Copies are compared
with the draft in STEP order: as long as the draft revealed the same token at the same position, the reveal is kept; at
the first difference the target's own choice is committed instead and drafting resumes from that partly revealed block.
Every commit is one step that the target would have taken itself, hence the output is that of ``static`` with k = 1,
whatever the draft proposes (float32; ties of the ranking aside). The price is B query tokens for each draft step
instead of 2B a block, and rounds that end at the first step where the two orders differ.

``cached=false`` is the official uncached path: blocks follow the last committed token off the absolute grid, every
forward brings the whole row, and `lookahead` blocks are drafted before they are verified together. It exists for
comparison with the official traces.

Left out: pipelining over two devices (changes cost only), verification in reveal order (`step_map`, called a bug by its
authors), ``fill=redraft``, and the batched path's left padding.

Axes: R rows, W positions of the window (B, or lookahead * B), B block length, C copies, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmbench.backbone.network import Network
from dlmbench.decoders import speculation as rules
from dlmbench.decoders.base import Decision, Evidence, Networks, RoundDecoder, Traits, View, option, top_n
from dlmbench.decoders.lookahead import Grid, Rows, Window
from dlmbench.decoders.predict import Candidates, Sampling, draw, uniform
from dlmbench.decoders.speculation import KNOWN, NEVER
from dlmbench.errors import RequestError

FILLS = ("truncate", "target_argmax", "draft_argmax", "target_argmax_all", "truncate_no_bonus")


@dataclass(frozen=True)
class SimSDConfig:
    verify: str = option(
        "packed", "packed: the published mask, not lossless; replicated: a copy a step, lossless against static k=1",
        choices=("packed", "replicated"),
    )  # fmt: skip
    accept: str = option("greedy_match", "packed: how drafted tokens are judged", choices=("greedy_match", "mrs"))
    fill: str = option("truncate", "packed: what follows a rejected token in its block", choices=FILLS)
    drafting: str = option("static", "the draft's schedule; dynamic also reveals all above tau",
                           choices=("static", "dynamic"))  # fmt: skip
    tau: float = option(0.9, "dynamic: confidence that a drafted position must exceed (official 0.9)")
    sampling: str = option("argmax", "how the draft picks tokens; mrs needs multinomial",
                           choices=("argmax", "multinomial"))  # fmt: skip
    steps: int = option(0, "steps that the draft's schedule divides a block into; 0: one a position")
    draft_steps: int = option(0, "steps after which the draft stops early; 0: never")
    budget: str = option("tokens", "what ends a row: its token budget, or a number of rounds as in the official code",
                         choices=("tokens", "rounds"))  # fmt: skip
    rounds: int = option(0, "rounds of budget=rounds")
    emit: str = option(
        "committed", "returned tokens: those committed, or the official concatenation that lacks what a fill added",
        choices=("committed", "official"),
    )  # fmt: skip
    trim_after_eos: bool = option(True, "drop what a round decoded behind an EOS (the official code keeps it)")
    eos_min_prob: float = option(0.0, "an EOS that replaces a rejected token needs this probability; 0: no gate")
    eos_gate: str = option(
        "stop", "a round that only a gated EOS would end: take the EOS after all, or repeat it (official)",
        choices=("stop", "official"),
    )  # fmt: skip
    cached: bool = option(True, "keep keys and values; false is the official uncached path")
    lookahead: int = option(1, "blocks drafted before a verification (more than 1 only with cached=false)")
    share_mask_position: bool = option(True, "mask copies take their draft token's position (false: uncached ablation)")

    def __post_init__(self):
        if min(self.steps, self.draft_steps, self.rounds) < 0 or self.lookahead < 1:
            raise ValueError("steps, draft_steps and rounds must be at least 0 and lookahead at least 1")
        if self.accept == "mrs" and self.sampling != "multinomial":
            raise ValueError("accept=mrs judges drawn tokens, so it needs sampling=multinomial")
        if (self.budget == "rounds") != (self.rounds > 0):
            raise ValueError("budget=rounds and rounds=N belong together")
        if self.eos_gate == "official" and self.budget != "rounds":
            raise ValueError("eos_gate=official may repeat a round for ever, so it needs budget=rounds")
        if self.cached and (self.lookahead > 1 or not self.share_mask_position):
            raise ValueError("lookahead above 1 and share_mask_position=false exist only with cached=false")
        if self.lookahead > 1 and not self.share_mask_position:
            raise ValueError("share_mask_position=false has no layout for lookahead above 1")
        if not self.cached and self.eos_min_prob:
            raise ValueError("the EOS gate exists only with cached=true")
        if self.verify == "replicated":
            self._check_replicated()

    def _check_replicated(self) -> None:
        plain = SimSDConfig()
        for name in ("accept", "fill", "drafting", "sampling", "steps", "emit", "eos_min_prob", "cached"):
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(f"verify=replicated follows static k=1 step by step, so {name} keeps its default")


@dataclass
class Verification:
    """What a verification says of the window, all [R,W]: `accepted` drafts, the `bonus` position where the target's own
    token stands in, `final` tokens of both, `reveal` and `committed` after the fill; `best` the target's candidates,
    `order` ranks what is committed where that is not from left to right."""

    accepted: Tensor
    bonus: Tensor
    final: Tensor
    reveal: Tensor
    committed: Tensor
    best: Candidates | None
    order: Tensor | None = None


class SimSD(RoundDecoder):
    name = "simsd"
    group = "speculation"
    evidence = Evidence("official trace", ("simsd",))
    Config = SimSDConfig
    roles = ("target", "draft")
    equalities = ("verify=replicated == static:k=1", "verify=replicated,draft_steps=2 == static:k=1")

    @classmethod
    def objection(cls, config: SimSDConfig, sampling: Sampling) -> str | None:
        if sampling.temperature == 0 and not sampling.top_k and sampling.top_p == 1:
            return None
        return (
            "Method simsd has no temperature, top-k or top-p (its published form ignores them); leave them out, or "
            "draw drafts with --set simsd.sampling=multinomial --set simsd.accept=mrs."
        )

    def bind(self, nets: Networks, block_length: int) -> Traits:
        target, draft = nets["target"].config, nets["draft"].config
        for what, ours, theirs in (
            ("a vocabulary of", target.vocab_size, draft.vocab_size), ("the mask id", target.mask_id, draft.mask_id),
        ):  # fmt: skip
            if ours != theirs:
                raise RequestError(
                    f"The target has {what} {ours} and the draft {theirs}; drafted ids would mean other tokens. "
                    "Give a --draft of the same family and tokenizer."
                )
        config, replicated = self.config, self.config.verify == "replicated"
        if config.steps > block_length:
            raise RequestError(f"simsd.steps is {config.steps}, more than the block length {block_length}; lower it.")
        self.block_length, self.width = block_length, block_length * config.lookahead
        self.steps = config.steps or block_length
        self.last_step = min(self.steps, self.config.draft_steps or self.steps)
        self.mask_id, self.vocabulary = target.mask_id, target.vocab_size
        device = nets["target"].device
        self.eos = torch.tensor(target.eos_ids or (-1,), device=device)
        self.blocks = torch.arange(self.width, device=device) // block_length  # block of the window [W]
        self.path: Grid | Rows = Grid(self.mask_id)
        if not config.cached:
            self.path = Rows(self.mask_id, block_length, config.lookahead, config.share_mask_position)
        self.ends_rows = not replicated  # packed ends with the round that brings an EOS, static with its block
        return Traits(
            scope="block" if config.cached else "answer",
            lag=0,  # what to launch follows from the rows' phases; one read a forward of two networks costs little
            cached=config.cached,
            ends_rows=self.ends_rows,
            cuts_at_eos=config.trim_after_eos,
            extra_slots=block_length * block_length if replicated else 3 * block_length * config.lookahead,
        )

    def init_state(self, rows: int, capacity: int, width: int, device: torch.device) -> dict[str, Tensor]:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=torch.long, device=device)

        state = {
            "draft": torch.full((rows, self.width), self.mask_id, dtype=torch.long, device=device),
            "revealed": torch.full((rows, self.width), NEVER, dtype=torch.long, device=device),
            "turn": zeros(),  # draft steps taken in the block that is being drafted
            "drafted": zeros(),  # blocks drafted; all of them: ready for verification
            "rounds": zeros(),
            "proposed": zeros(),
            "accepted": zeros(self.width + 1),
        }
        if self.config.accept == "mrs":
            state["chances"] = torch.zeros(rows, self.width, self.vocabulary, device=device)
        if self.config.emit == "official":
            state["emitted"], state["emissions"] = zeros(capacity + 1), zeros()
        return {**state, **self.path.init_state(rows, capacity, device)}

    # --- a call -----------------------------------------------------------------------------------------------------

    def round(self, view: View, nets: Networks) -> Decision:
        state = view.state
        window = self.path.window(view)
        ready = state["drafted"] == self.config.lookahead
        drafting, copies = self._launches(view)
        decision = Decision(view.tokens, torch.zeros_like(view.masked), planned_empty=torch.ones_like(ready))
        if copies:
            decision = self._verify(view, nets["target"], window, ready & view.live, copies)
            decision.planned_empty = ~ready if decision.planned_empty is None else ~ready | decision.planned_empty
        if drafting:
            self._draft(view, nets["draft"], window, ~ready & view.live)
        decision.skipped = ready if not copies else ~ready if not drafting else None
        decision.host_hint = state["drafted"] == self.config.lookahead  # 0: a draft step comes next
        if self.config.verify == "replicated":  # as many copies as draft steps were taken
            taken = torch.where(state["revealed"] < NEVER, state["revealed"] + 1, 0).amax(1)
            decision.host_hint = taken * decision.host_hint
        return decision

    def _launches(self, view: View) -> tuple[bool, int]:
        """(does a row draft, copies that a replicated verification must hold or 0 for no verification), without asking
        the device."""
        if view.host_rows is None:  # the host does not know: both, each masked by the rows that need it
            return True, self.last_step
        hints = [about.hint or 0 for about in view.host_rows if about]
        if not all(hints):  # None at a row's first call, 0 while it drafts
            return True, 0
        return False, max(hints)

    def _draft(self, view: View, net: Network, window: Window, active: Tensor) -> None:
        """One draft step of the rows `active` [R]."""
        state, config = view.state, self.config
        draft, revealed = state["draft"], state["revealed"]
        logits = self.path.draft(view, net, window, active)
        sampling = Sampling(temperature=1.0) if config.sampling == "multinomial" else Sampling()
        best = view.candidates(logits, sampling=sampling, positions=window.positions, traced=False)
        todo = window.open & (revealed == NEVER) & (self.blocks == state["drafted"].unsqueeze(1))
        due: int | Tensor = 1
        if self.steps < self.block_length:
            left, masked = self.steps - state["turn"], todo.sum(1)
            due = (masked + left - 1).div(left.clamp_min(1), rounding_mode="floor")  # ceil(masked / steps left)
        chosen = top_n(best.log_odds, todo, due)
        if config.drafting == "dynamic":
            sure = todo & (best.confidence > config.tau)
            chosen = torch.where((sure.sum(1) >= due).unsqueeze(1), sure, chosen)
        chosen = chosen & active.unsqueeze(1)
        state["draft"] = torch.where(chosen, best.tokens, draft)
        state["revealed"] = torch.where(chosen, state["turn"].unsqueeze(1), revealed)
        if config.accept == "mrs":
            state["chances"] = torch.where(chosen.unsqueeze(-1), self._distribution(logits), state["chances"])
        turn = state["turn"] + active
        goes_on = (turn < self.last_step) & (todo > chosen).any(1)
        done = active > goes_on
        state["turn"] = torch.where(done, 0, turn)
        state["drafted"] = state["drafted"] + done

    def _verify(self, view: View, net: Network, window: Window, active: Tensor, copies: int) -> Decision:
        """One packed forward of the target for the rows `active` [R], and what they commit."""
        revealed = torch.where(window.open, view.state["revealed"], KNOWN)
        if self.config.verify == "replicated":
            verdict = self._judge_copies(view, net, window, revealed, active, copies)
        else:
            verdict = self._judge_pack(view, net, window, revealed, active)
        self._report(view.state, revealed, verdict.accepted, active)
        decision = self._decide(view, window, revealed, verdict, active)
        self._begin_round(view.state, active)
        return decision

    # --- verification -------------------------------------------------------------------------------------------------

    def _judge_pack(self, view: View, net: Network, window: Window, revealed: Tensor, active: Tensor) -> Verification:
        """The published verification: positions in increasing order, the first rejection ends the round."""
        state = view.state
        tokens = torch.where(window.open, state["draft"], window.known)
        logits = self.path.verify(view, net, window, tokens, revealed, active)
        best = view.candidates(logits, sampling=Sampling(), positions=window.positions, traced=False)
        never = window.open & (revealed == NEVER)
        tokens = torch.where(never, best.tokens, tokens)  # what the draft left out is the target's to say
        if self.config.accept == "greedy_match":
            accepted, bonus = rules.leading(tokens == best.tokens, window.open)
            final = torch.where(bonus, best.tokens, tokens)
        else:
            target, draft = self._distribution(logits), state["chances"]
            point = uniform(view.seed ^ 0xACCE97, view.total_steps, window.positions)
            good = never | rules.mrs_accepts(tokens, draft, target, point)
            accepted, bonus = rules.leading(good, window.open)
            at = bonus.int().argmax(1)
            rest = rules.mrs_replacement(*(_at(x, at) for x in (tokens, draft, target)))
            other = draw(rest, _at(uniform(view.seed ^ 0xB0405, view.total_steps, window.positions), at))
            final = torch.where(bonus, other.unsqueeze(1), tokens)
        reveal, committed = rules.filled(
            self.config.fill, accepted, bonus, self.blocks, window.open, tokens, final, best.tokens
        )
        return Verification(accepted, bonus, final, reveal, committed, best)

    def _judge_copies(
        self, view: View, net: Network, window: Window, revealed: Tensor, active: Tensor, copies: int
    ) -> Verification:
        """The lossless verification: the target's own choice before every draft step, compared in step order."""
        tokens = torch.where(window.open, view.state["draft"], window.known)
        ids, allowed = rules.copies(tokens, revealed, copies, self.mask_id)
        rows, width = tokens.shape
        taken = torch.where(window.open & (revealed < NEVER), revealed + 1, 0).amax(1)  # draft steps of each row
        logits = net.packed(
            view, ids, window.positions.repeat(1, copies), allowed.expand(rows, -1, -1), active=active,
            used=taken * width,
        ).logits.view(rows, copies, width, -1)  # fmt: skip
        best = view.candidates(logits, sampling=Sampling(), positions=window.positions, traced=False)
        step = torch.arange(copies, device=tokens.device).view(1, -1, 1)
        masked = window.open.unsqueeze(1) & (revealed.unsqueeze(1) >= step)  # [R,C,W]
        choice = top_n(best.log_odds.flatten(0, 1), masked.flatten(0, 1), 1).view_as(masked)
        drafted = revealed.unsqueeze(1) == step
        same = ((choice == drafted) & (~choice | (best.tokens == tokens.unsqueeze(1)))).all(2)  # [R,C]
        kept, first = rules.leading(same, step.squeeze(2) < taken.unsqueeze(1))
        accepted = (drafted & kept.unsqueeze(2)).any(1)
        own = choice & first.unsqueeze(2)
        bonus = own.any(1)
        final = torch.where(bonus, (best.tokens * own).sum(1), tokens)
        at = (first * step.squeeze(2)).sum(1, keepdim=True)  # the step at which the two went apart
        return Verification(accepted, bonus, final, accepted | bonus, final, None, torch.where(bonus, at, revealed))

    # --- what a verification leads to ---------------------------------------------------------------------------------

    def _decide(self, view: View, window: Window, revealed: Tensor, verdict: Verification, active: Tensor) -> Decision:
        state, config = view.state, self.config
        returned = verdict.accepted | verdict.bonus
        reveal, finish, idle = verdict.reveal, None, None
        dropped = torch.zeros_like(active)
        if config.eos_min_prob:
            dropped, idle = self._gated(window, verdict, reveal)
            returned = returned & ~(verdict.bonus & dropped.unsqueeze(1))
            reveal = reveal & ~(verdict.bonus & dropped.unsqueeze(1))
        if self.ends_rows:
            seen, tokens = (returned, verdict.final) if config.emit == "official" else (reveal, verdict.committed)
            finish = (seen & torch.isin(tokens, self.eos)).any(1) & active
        state["rounds"] = state["rounds"] + active
        if config.budget == "rounds":
            out = (state["rounds"] >= config.rounds) & active
            finish = out if finish is None else finish | out
        if config.emit == "official":
            self._emit(state, returned & active.unsqueeze(1), verdict.final)
        reveal = reveal & active.unsqueeze(1)
        extra = None
        if view.tracing:
            extra = self._trace(view.state, window, revealed, verdict, active, dropped)
        tokens, reveal, complete = self.path.into_view(view, window, verdict.committed, reveal)
        if complete is not None:
            finish = complete & active if finish is None else finish | (complete & active)
        return Decision(tokens, reveal, finish=finish, planned_empty=idle, order=verdict.order, extra=extra)

    def _gated(self, window: Window, verdict: Verification, reveal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows [R] whose only EOS is an improbable replacement, which is dropped; and, officially, rows that commit
        nothing because of it. A block that the EOS completes keeps it."""
        assert verdict.best is not None  # there is no gate where copies are judged
        final = verdict.accepted | verdict.bonus
        eos = final & torch.isin(verdict.final, self.eos)
        gated = (eos & verdict.bonus & (verdict.best.confidence < self.config.eos_min_prob)).any(1)
        closed = ~(window.open & ~reveal).any(1)
        gated = gated & ~(eos & ~verdict.bonus).any(1) & ~closed
        empty = ~verdict.accepted.any(1)
        if self.config.eos_gate == "official":
            return gated, gated & empty
        return gated & ~empty, None  # the round would repeat itself for ever: the EOS is taken

    def _emit(self, state: dict[str, Tensor], returned: Tensor, tokens: Tensor) -> None:
        """Append the returned tokens of this round, in order of position, to what the official code returns."""
        emitted, number = state["emitted"], state["emissions"]
        spare = emitted.shape[1] - 1
        place = torch.where(returned, number.unsqueeze(1) + returned.cumsum(1) - 1, spare)
        state["emitted"] = emitted.scatter(1, place.clamp_max(spare), tokens)
        state["emissions"] = number + returned.sum(1)

    def _report(self, state: dict[str, Tensor], revealed: Tensor, accepted: Tensor, active: Tensor) -> None:
        drafted = (revealed != KNOWN) & (revealed != NEVER)
        state["proposed"] = state["proposed"] + drafted.sum(1) * active
        kept = (accepted & drafted).sum(1, keepdim=True)
        state["accepted"] = state["accepted"].scatter_add(1, kept, active.long().unsqueeze(1))

    def _begin_round(self, state: dict[str, Tensor], rows: Tensor) -> None:
        state["draft"] = torch.where(rows.unsqueeze(1), self.mask_id, state["draft"])
        state["revealed"] = torch.where(rows.unsqueeze(1), NEVER, state["revealed"])
        state["drafted"] = torch.where(rows, 0, state["drafted"])

    def answer(self, state: dict[str, Tensor], row: int, ids: list[int]) -> list[int]:
        if self.config.emit == "official":
            return state["emitted"][row, : int(state["emissions"][row])].tolist()
        return ids[: ids.index(self.mask_id)] if self.mask_id in ids else ids  # a row may end inside a block

    def _trace(self, state, window, revealed, verdict, active, dropped) -> dict[str, Tensor]:
        """What a trace shows of a verification, lists over the window; known and never drafted positions have the draft
        steps -2 and -1."""
        return {
            "verified": active,
            "window": window.positions[:, 0],
            "draft": state["draft"],
            "step_map": torch.where(revealed == KNOWN, -2, torch.where(revealed == NEVER, -1, revealed)),
            "target": verdict.final if verdict.best is None else verdict.best.tokens,
            "accepted": verdict.accepted,
            "replaced": verdict.bonus,
            "final": verdict.final,
            "eos_dropped": dropped,
        }

    def _distribution(self, logits: Tensor) -> Tensor:
        """Probabilities at temperature 1 with the mask token ruled out. logits [R,W,V]."""
        logits = logits.float().clone()
        logits.select(-1, self.mask_id).fill_(float("-inf"))
        return logits.softmax(-1)


def _at(values: Tensor, place: Tensor) -> Tensor:
    """values [R,W] or [R,W,V] at one position of each row, place [R] -> [R] or [R,V]."""
    return values[torch.arange(values.shape[0], device=values.device), place]
