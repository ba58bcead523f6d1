"""Training of an MRP module beside a frozen backbone (MRP, arXiv 2605.18817).

A row is laid out as for block diffusion: the clean text, then two complementary noisy copies of its blocks. The
backbone sees the noisy copies (state A: tokens and states h_A), some masked positions are revealed (state B), and the
backbone sees that too. The module gets the tokens of B and the states of A, clean columns included, so that its prefix
is what it will find in its cache; its corrected logits are drawn to the backbone's logits in B at every position that
is still masked, by KL(B || A + C) weighted with the inverse masking rate and divided by what the reveals left
(``kd_diff_sum``). With several unrolled steps the next pass starts from the sum of states so far.

Logged beside the loss, always against doing nothing: KL(B||A) and KL(B||A+C), both also over the positions that the
reveal moved, and how often A and A + C have B's best token; the same on held-out dev texts. A module is worth something
only where the second number beats the first.

Left out: precomputed backbone states (at this size they cost less than reading them), the reverse KL, cross-entropy
and squared-error losses of the authors' code.

Axes: N rows, R columns, K chosen columns, D width, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dlmbench.backbone import Transformer, load_checkpoint, weights_hash
from dlmbench.heads.mrp import MRPModule, load_module, save_module
from dlmbench.training import block_diffusion
from dlmbench.training.data import Batch, Example, collate, cut, map_tensors
from dlmbench.training.evaluate import dev_items
from dlmbench.training.loop import END, TrainingWorker, folder_of
from dlmbench.training.recipe import STARTS, MRPPlan, Recipe
from dlmbench.training.rollout import check_backbone
from dlmbench.training.step import run_layers

LEAST_LEFT = 0.05  # of the loss weight after the reveals: a batch of nearly full blocks must not dominate
HELD_OUT_SEED = 20_250
MOVED = 0.1  # nats: positions that a reveal moves; a few in a hundred, while the mean is of all


class MRPWorker(TrainingWorker[MRPModule]):
    """One process of a run; the trained network is the module, the backbone stands beside it."""

    @staticmethod
    def check(recipe: Recipe) -> None:
        check_backbone(recipe, "block_causal")
        if recipe.mrp.start not in STARTS:
            recipe.mrp.module_folder  # noqa: B018  # says what is missing

    def networks(self) -> tuple[MRPModule, MRPModule]:
        plan, folder = self.recipe.mrp, folder_of(self.recipe.backbone)
        self.backbone_weights = weights_hash(folder)
        precise = load_checkpoint(folder, self.device)
        backbone = precise if self.dtype == torch.float32 else load_checkpoint(folder, self.device, self.dtype)
        master = MRPModule(precise, plan.layers, plan.residual)
        if plan.start in STARTS:
            master.init_weights(plan.start, self.recipe.seed, plan.gain)
        else:
            master.load_state_dict(load_module(Path(plan.module_folder), precise, self.backbone_weights).state_dict())
        network = MRPModule(backbone, plan.layers, plan.residual)
        return master.to(self.device).requires_grad_(True).train(), network.to(self.device, self.dtype)

    def loss(self, batch: Batch) -> Tensor:
        state = np.random.SeedSequence((self.recipe.seed, self.rank, self.step)).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        objective = Objective(self.network, self.recipe.mrp, generator, self.recipe.compile)
        loss = objective(batch)
        self.notes.append(objective.facts)
        return loss

    def export(self) -> None:
        plan = self.recipe.mrp
        training = self.budget(
            start=Path(plan.start).name, gain=plan.gain, reveal=plan.reveal, counts=list(plan.counts),
            unrolled=plan.unrolled, leave_one_out=plan.leave_one_out,
        )  # fmt: skip
        save_module(self.master, self.out / "weights", self.backbone_weights, training=training)

    @torch.no_grad()
    def evaluate(self) -> None:
        """The same measures on dev texts, reveals and masks fixed: one true token a block, as many steps as trained."""
        if self.rank or not self.recipe.evaluate_items:
            return
        plan = replace(self.recipe.mrp, reveal="gt", counts=(1,), leave_one_out=0.0)
        found: dict[str, list[float]] = defaultdict(list)
        for number, batch in enumerate(self._held_out()):
            generator = torch.Generator().manual_seed(HELD_OUT_SEED + number)
            objective = Objective(self.network, plan, generator, self.recipe.compile)
            objective(batch)
            for name, value in objective.facts.items():
                found[name].append(value)
        means = {name: sum(values) / len(values) for name, values in found.items()}
        means["ratio"] = means["kl_corrected"] / max(means["kl"], 1e-9)
        self.log(step=self.step, held_out={name: float(f"{value:.4g}") for name, value in means.items()})

    def _held_out(self) -> list[Batch]:
        noise = np.random.default_rng(HELD_OUT_SEED)
        examples = []
        for items in dev_items(self.recipe.evaluate_items, self.recipe.mixture).values():
            for item in items:
                prompt, target = self.tokenizer([item["prompt"], item["target"]], add_special_tokens=False)["input_ids"]
                examples.append(Example(tuple(prompt), tuple(target)))
        mask, batches = self.network.config.mask, list[Batch]()
        for block_length in self.recipe.block_lengths:
            rows = [block_diffusion.layout(example, block_length, noise, mask, END) for example in examples]
            batches += [collate(part, length) for part, length in cut(rows, self.recipe.columns)]
        return [_on(batch, self.device) for batch in batches]


class Objective:
    """The loss of one batch and what was measured on the way (`facts`)."""

    def __init__(self, module: MRPModule, plan: MRPPlan, generator: torch.Generator, compiled: bool = True):
        self.module, self.backbone, self.plan = module, module.backbone, plan
        self.generator, self.compiled = generator, compiled
        self.facts: dict[str, float] = {}

    def __call__(self, batch: Batch) -> Tensor:
        weight = torch.zeros(batch.ids.numel(), device=batch.ids.device)
        weight[batch.predicting] = batch.weights.float()
        weight = weight.view_as(batch.ids)  # [N,R], positive at masked positions
        truth = batch.ids.flatten().index_put((batch.predicting,), batch.labels).view_as(batch.ids)

        ids, carried = batch.ids, self._states(batch, batch.ids)  # state A
        untouched = before = carried
        losses: list[Tensor] = []
        for number in range(self.plan.unrolled):
            masked = (ids == self.backbone.config.mask_id) & (weight > 0)
            tokens = truth if self.plan.reveal != "model" else self._choices(before)
            reveal = self._reveal(batch, masked, before)
            ids = torch.where(reveal, tokens, ids)
            after = self._states(batch, ids)  # state B, the teacher
            output = self._module(batch, ids, carried)
            student = carried.detach() + output if self.plan.residual else output
            left = masked & ~reveal
            losses.append(self._divergence(number, left, weight, after, student, untouched))
            if self.plan.leave_one_out:
                losses[-1] = losses[-1] + self.plan.leave_one_out * self._left_out(batch, ids, reveal, weight, student)
            carried = carried + output if self.plan.residual else output
            before = after
        return sum(losses[1:], losses[0]) / len(losses)

    def _divergence(
        self, number: int, left: Tensor, weight: Tensor, after: Tensor, student: Tensor, untouched: Tensor
    ) -> Tensor:
        """kd_diff_sum of one step over the positions `left` [N,R]; all states are [N*R,D], `untouched` those of A."""
        chosen = left.flatten().nonzero().squeeze(1)
        share = weight.flatten()[chosen]
        teacher, ours = self._log_probabilities(after, chosen), self._log_probabilities(student, chosen)
        divergence = _kl(teacher, ours)
        with torch.no_grad():
            old = self._log_probabilities(untouched, chosen)
            self._measure(number, share, teacher, ours, old, divergence)
        total = weight.sum()
        return (divergence * share).sum() / (1 - (total - share.sum())).clamp_min(LEAST_LEFT)

    def _measure(
        self, number: int, share: Tensor, teacher: Tensor, ours: Tensor, old: Tensor, divergence: Tensor
    ) -> None:
        """Weighted means of this step, against doing nothing: keeping the backbone's logits from before all reveals."""
        suffix, total = f"_{number + 1}" if number else "", share.sum().clamp_min(1e-9)
        best = teacher.argmax(-1)
        for name, values in (
            ("kl", _kl(teacher, old)),
            ("kl_corrected", divergence.detach()),
            ("agreement", (old.argmax(-1) == best).float()),
            ("agreement_corrected", (ours.argmax(-1) == best).float()),
        ):
            self.facts[name + suffix] = ((values * share).sum() / total).item()
        nothing = _kl(teacher, old)
        moved = share * (nothing > MOVED)
        for name, values in (("kl_moved", nothing), ("kl_moved_corrected", divergence.detach())):
            self.facts[name + suffix] = ((values * moved).sum() / moved.sum().clamp_min(1e-9)).item()

    def _left_out(self, batch: Batch, ids: Tensor, reveal: Tensor, weight: Tensor, student: Tensor) -> Tensor:
        """The same divergence at one revealed position a block, whose teacher does not see that position."""
        held = reveal & (_rank(batch.segment, reveal, self._random(ids)) < 1)
        hidden = torch.where(held, self.backbone.config.mask, ids)
        chosen = held.flatten().nonzero().squeeze(1)
        share = weight.flatten()[chosen]
        teacher = self._log_probabilities(self._states(batch, hidden), chosen)
        divergence = _kl(teacher, self._log_probabilities(student, chosen))
        mean = (divergence * share).sum() / share.sum().clamp_min(1e-9)
        self.facts["kl_left_out"] = mean.item()
        return mean

    # --- reveals ------------------------------------------------------------------------------------------------------

    def _reveal(self, batch: Batch, masked: Tensor, states: Tensor) -> Tensor:
        """Masked positions [N,R] to reveal: in every block that has any, at least one."""
        if self.plan.reveal == "model":
            confidence = self._log_probabilities(states, None).amax(-1).exp().view(masked.shape)
            low, high = self.plan.thresholds
            limit = low + (high - low) * torch.rand(len(masked), 1, generator=self.generator).to(masked.device)
            return masked & ((confidence > limit) | (_rank(batch.segment, masked, -confidence) < 1))
        counts = torch.tensor(self.plan.counts, device=masked.device)
        if self.plan.reveal == "gt":
            number = counts[:1].expand_as(batch.segment)
        else:
            draw = torch.randint(len(counts), (masked.shape[0], 1 << 12), generator=self.generator).to(masked.device)
            number = counts[draw.gather(1, batch.segment.clamp_min(0) % draw.shape[1])]  # one draw a block
        return masked & (_rank(batch.segment, masked, self._random(masked)) < number)

    def _random(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator).to(like.device)

    @torch.no_grad()
    def _choices(self, states: Tensor) -> Tensor:
        """The backbone's best tokens everywhere, mask token excluded."""
        logits = self.backbone.project(states.detach()).float()
        logits[:, self.backbone.config.mask_id] = float("-inf")
        return logits.argmax(-1).view(self._shape)

    # --- networks -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _states(self, batch: Batch, ids: Tensor) -> Tensor:
        """The backbone's states after its final norm [N*R,D]."""
        self._shape = ids.shape
        model: Transformer = self.backbone
        x = run_layers(model, model, model.embed(ids.flatten()), batch, self.compiled)
        return F.rms_norm(x, x.shape[-1:], model.norm, model.config.rms_norm_eps)

    def _module(self, batch: Batch, ids: Tensor, carried: Tensor) -> Tensor:
        """The module's states [N*R,D] for the tokens after the reveal and the states carried so far."""
        x = run_layers(self.module, self.backbone, self.module.join(ids.flatten(), carried), batch, self.compiled)
        return F.rms_norm(x, x.shape[-1:], self.module.norm, self.module.config.rms_norm_eps)

    def _log_probabilities(self, states: Tensor, chosen: Tensor | None) -> Tensor:
        states = states if chosen is None else states[chosen]
        return self.backbone.project(states).float().log_softmax(-1)


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities [K,V] -> [K]."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def _rank(segment: Tensor, eligible: Tensor, score: Tensor) -> Tensor:
    """Rank [N,R] of each eligible column within its segment, lowest score first; scores lie in [-1, 1]."""
    key = segment.double() * 8 + torch.where(eligible, score.double(), 4.0)
    order = key.argsort(1)
    sorted_segment = segment.gather(1, order)
    index = torch.arange(segment.shape[1], device=segment.device).expand_as(segment)
    starts = torch.ones_like(sorted_segment, dtype=torch.bool)
    starts[:, 1:] = sorted_segment[:, 1:] != sorted_segment[:, :-1]
    first = torch.where(starts, index, 0).cummax(1).values
    return torch.empty_like(order).scatter_(1, order, index - first)


def _on(batch: Batch, device: torch.device) -> Batch:
    return map_tensors(lambda tensor: tensor.to(device), batch)
