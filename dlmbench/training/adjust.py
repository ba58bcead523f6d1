"""Training of ADJUST's sampler beside a frozen backbone (arXiv 2509.22738).

The backbone answers training prompts itself, one token a forward, always at the position of least entropy of the active
block; a row ends with the block of its first end token, because nothing but padding follows. Of such a trajectory the
states of every step are kept, so they are computed once: a window of J + 1 steps inside one block is an example. The
backbone's state from the window's first step goes through J calls of the sampler, each given the tokens of the next
step and the states that the call before it left; the logits of the last are drawn to the backbone's own on the same
tokens, by KL(backbone || sampler) averaged over the block's positions that are still masked there. J is drawn from the
softmax of 1, 1/2, 1/4, ... .

Logged beside the loss, always against doing nothing: the same KL and agreement for the states of the window's first
step, which is what drawing all tokens from one forward's marginals assumes (kl_parallel); the same on dev items, and
what both are worth there in decoding. A sampler is worth something only where it beats the parallel numbers.

Apart from the paper: Muon for the layer's matrices, greedy trajectories unless `adjust.temperature` says otherwise,
and a start at doing nothing as an option (`adjust.start`). Left out: losses on hidden states, which have weight 0 in
the authors' runs.

Axes: N rows, R columns, A answer positions, K chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlmbench.backbone import Transformer
from dlmbench.decoders.adjust import Adjust, AdjustConfig
from dlmbench.decoders.base import top_n
from dlmbench.decoders.predict import Candidates, Sampling
from dlmbench.errors import RequestError
from dlmbench.heads.adjust import AdjustModule, save_module
from dlmbench.heads.adjust_network import AdjustHead
from dlmbench.training.data import LENGTH_STEP, Draw, cut
from dlmbench.training.loop import TrainingWorker
from dlmbench.training.recipe import Recipe
from dlmbench.training.rollout import (
    AnswerRows,
    Prompts,
    check_backbone,
    dev_examples,
    dev_run,
    load_backbone,
    pick,
    prompt_layout,
    states,
)
from dlmbench.training.step import run_layers

HELD_OUT_SEED = 20_250
HELD_OUT_WINDOWS = 8  # windows of every dev trajectory and number of calls


def unroll_probabilities(lengths: int) -> Tensor:
    """Probability of unrolling 1 .. `lengths` calls: the softmax OF the weights 1, 1/2, 1/4, ... [lengths]"""
    return torch.softmax(0.5 ** torch.arange(lengths, dtype=torch.float32), 0)


def teacher_loss(student: Tensor, teacher: Tensor, scored: Tensor) -> Tensor:
    """KL(teacher || student), summed over the vocabulary and averaged over the scored positions, a scalar.

    student and teacher [...,T,V] log-probabilities of the same state, scored [...,T] bool the positions still masked.
    """
    kl = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return (kl * scored).sum() / scored.sum()


# --- trajectories -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trajectories:
    """What the backbone did with N prompts, one token a step.

    answers [N,A] final ids; order [N,A] the step that revealed each position, A for none; steps [N] how many there
    were; kept: for every step the states [n,R,D] of the rows that took it; slot [A,N]: where a row is in these.
    """

    rows: AnswerRows
    answers: Tensor
    order: Tensor
    steps: Tensor
    kept: list[Tensor]
    slot: Tensor

    def tokens(self, step: Tensor, mask: int) -> Tensor:
        """Answers [N,A] as they stood before each row's own step [N]."""
        return torch.where(self.order < step.unsqueeze(1), self.answers, mask)

    def states(self, step: Tensor) -> Tensor:
        """The backbone's states [N,R,D] in each row's own step [N]."""
        slots = self.slot.gather(0, step.unsqueeze(0)).squeeze(0)
        return torch.stack([self.kept[s][i] for s, i in zip(step.tolist(), slots.tolist(), strict=True)])

    def starts(self, calls: int) -> Tensor:
        """First steps of windows with so many calls: bool [N,A]. A window stays in its block, whose last call still
        finds a mask."""
        first = self.rows.offsets
        block = self.rows.block_length
        return (first // block == (first + calls) // block) & (first + calls < self.steps.unsqueeze(1))


@torch.no_grad()
def roll_out(
    model: Transformer, rows: AnswerRows, temperature: float, seed: int, compiled: bool = True
) -> Trajectories:
    """Answer all rows, one token a forward. Tokens are drawn at `temperature` (0: greedy), positions without it."""
    config, block = model.config, rows.block_length
    answers = torch.full_like(rows.offsets, config.mask)
    order, slot = torch.full_like(answers, rows.width), torch.zeros_like(answers).t().contiguous()
    steps, kept = rows.length.clone(), []
    sampling, eos = Sampling(temperature, confidence="clean"), torch.tensor(config.eos_ids, device=answers.device)
    seeds = seed + torch.arange(len(answers), device=answers.device)
    for step in range(rows.width):
        live = (steps > step).nonzero().squeeze(1)
        if not live.numel():
            break
        part = rows.select(live)
        kept.append(states(model, part, answers[live], compiled))
        slot[step, live] = torch.arange(len(live), device=live.device)
        first = step // block * block
        window = slice(first, first + block)
        logits = model.project(pick(kept[-1], part.at[:, window]))
        clock, positions = torch.full_like(live, step), part.offsets[:, window]
        best = Candidates(logits, sampling, config.mask, seeds[live], clock, positions)
        now = answers[live, window]
        chosen = top_n(-best.entropy, part.valid[:, window] & (now == config.mask_id), 1)
        answers[live, window] = now = torch.where(chosen, best.tokens, now)
        order[live, window] = order[live, window].masked_fill(chosen, step)
        full = ~((now == config.mask_id) & part.valid[:, window]).any(1)
        steps[live[full & torch.isin(now, eos).any(1)]] = step + 1
    return Trajectories(rows, answers, order, steps, kept, slot)


# --- windows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepWindow:
    """One window of every row: the backbone's states [N,R,D] in its first and last step, and the answers
    [J,N,A] of the steps after the first."""

    rows: AnswerRows
    before: Tensor
    answers: Tensor
    after: Tensor
    columns: int


def draw_window(paths: Trajectories, calls: int, mask: int, generator: torch.Generator) -> StepWindow:
    """A window with so many calls of each row, its first step uniform."""
    first = torch.multinomial(paths.starts(calls).float().cpu(), 1, generator=generator).squeeze(1)
    first = first.to(paths.steps.device)
    answers = torch.stack([paths.tokens(first + j, mask) for j in range(1, calls + 1)])
    return StepWindow(paths.rows, paths.states(first), answers, paths.states(first + calls), calls * paths.rows.columns)


class Windows:
    """Endless windows for one worker; `position` is (pool, window) of the next one and may be set.

    A pool is `adjust.trajectories` prompts, rolled out when its first window is asked for; `adjust.windows` windows are
    drawn from it, and all seeds follow from the position, so a resumed run meets the same ones.
    """

    def __init__(self, prompts: Prompts, backbone: Transformer, recipe: Recipe, device: torch.device):
        self.prompts, self.backbone, self.recipe, self.device = prompts, backbone, recipe, device
        self.position = (0, 0)
        self._pool: tuple[int, list[Trajectories]] | None = None

    def __iter__(self) -> Iterator[StepWindow]:
        plan, mask = self.recipe.adjust, self.backbone.config.mask
        chance = unroll_probabilities(plan.unrolled)
        while True:
            pool, index = self.position
            if index == plan.windows:
                self.position = (pool + 1, 0)
                continue
            generator = torch.Generator().manual_seed(self._seed(pool, index))
            calls = 1 + int(torch.multinomial(chance, 1, generator=generator))
            groups = self._groups(pool)
            sizes = torch.tensor([float(len(group.steps)) for group in groups])
            group = groups[int(torch.multinomial(sizes, 1, generator=generator))]
            self.position = (pool, index + 1)
            yield draw_window(group, calls, mask, generator)

    def _groups(self, pool: int) -> list[Trajectories]:
        if self._pool is None or self._pool[0] != pool:
            self._pool = None  # its memory first
            plan = self.prompts.plan(pool)
            rolled = [
                roll_out(
                    self.backbone, AnswerRows.of(rows, length).to(self.device), self.recipe.adjust.temperature,
                    self._seed(pool, number) & 0xFFFFFF, self.recipe.compile,
                )
                for number, (rows, length) in enumerate(plan)
            ]  # fmt: skip
            self._pool = pool, rolled
        return self._pool[1]

    def _seed(self, pool: int, index: int) -> int:
        return int(np.random.SeedSequence((self.recipe.seed, self.prompts.worker, pool, index)).generate_state(1)[0])


# --- the run ----------------------------------------------------------------------------------------------------------


class AdjustWorker(TrainingWorker[AdjustModule]):
    """One process of a run; the trained network is the sampler, the backbone stands beside it."""

    @staticmethod
    def check(recipe: Recipe) -> None:
        check_backbone(recipe)
        room = min(*recipe.block_lengths, LENGTH_STEP)
        if recipe.adjust.unrolled >= room:
            raise RequestError(
                f"Recipe {recipe.name}: {recipe.adjust.unrolled} unrolled calls leave no mask in a block of {room}; "
                "lower adjust.unrolled or use longer block_lengths."
            )

    def data(self, draw: Draw) -> Windows:
        recipe = self.recipe
        self.backbone, self.backbone_weights = load_backbone(recipe, self.device, self.dtype)
        layout = prompt_layout(self.tokenizer, self.backbone.config.mask)
        prompts = Prompts(
            draw, layout, recipe.block_lengths, recipe.columns, recipe.seed, self.rank, recipe.adjust.trajectories
        )
        return Windows(prompts, self.backbone, recipe, self.device)

    def networks(self) -> tuple[AdjustModule, AdjustModule]:
        precise = self.backbone if self.dtype == torch.float32 else load_backbone(self.recipe, "cpu", torch.float32)[0]
        master = AdjustModule(precise).init_weights(self.recipe.adjust.start, self.recipe.seed)
        self.seen: dict = {}  # what dev items give without the sampler
        network = AdjustModule(self.backbone).to(self.device, self.dtype)
        return master.to(self.device).requires_grad_(True).train(), network

    def loss(self, window: StepWindow) -> Tensor:
        loss, facts = window_loss(self.network, window, self.recipe.compile)
        self.notes.append(facts)
        return loss

    def export(self) -> None:
        plan = self.recipe.adjust
        training = self.budget(start=plan.start, unrolled=plan.unrolled, temperature=plan.temperature)
        save_module(self.master, self.out / "weights", self.backbone_weights, training=training)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Dev items: the loss by number of calls, and decoding with 2 and 4 tokens a forward, both against parallel."""
        if self.rank or not self.recipe.evaluate_items:
            return
        held_out = {}
        for calls, windows in self._held_out().items():
            found = [window_loss(self.network, window, self.recipe.compile)[1] for window in windows]
            held_out[calls] = {name: round(sum(f[name] for f in found) / len(found), 5) for name in found[0]}
        self.log(step=self.step, held_out=held_out)
        accuracy = dict(self._parallel())
        for K in (2, 4):
            run = self._decode(AdjustConfig(K=K), lambda target: AdjustHead(self.network, target))
            accuracy[f"K={K}"] = round(run["accuracy"], 4)
        self.log(step=self.step, accuracy=accuracy)

    def _held_out(self) -> dict[int, list[StepWindow]]:
        """Windows of dev trajectories by number of calls, always the same."""
        if "windows" not in self.seen:
            recipe, mask = self.recipe, self.backbone.config.mask
            layout, noise = prompt_layout(self.tokenizer, mask), np.random.default_rng(HELD_OUT_SEED)
            examples = dev_examples(self.tokenizer, recipe.evaluate_items)
            prompts = [layout(example, recipe.block_lengths[0], noise) for example in examples]
            generator = torch.Generator().manual_seed(HELD_OUT_SEED)
            found: dict[int, list[StepWindow]] = {calls: [] for calls in range(1, recipe.adjust.unrolled + 1)}
            for rows, length in cut(prompts, recipe.columns):
                paths = roll_out(self.backbone, AnswerRows.of(rows, length).to(self.device), 0.0, 0, recipe.compile)
                for calls, windows in found.items():
                    windows += [draw_window(paths, calls, mask, generator) for _ in range(HELD_OUT_WINDOWS)]
            self.seen["windows"] = found
        return self.seen["windows"]

    def _parallel(self) -> dict[str, float]:
        """Dev accuracy at one token a forward, and with 2 and 4 from the same marginals."""
        if "parallel" not in self.seen:
            settings = {"K=1": AdjustConfig(K=1)} | {
                f"K={K} parallel": AdjustConfig(K=K, use_marginals=True) for K in (2, 4)
            }
            self.seen["parallel"] = {
                name: round(self._decode(config)["accuracy"], 4) for name, config in settings.items()
            }
        return self.seen["parallel"]

    def _decode(self, config: AdjustConfig, head=None) -> dict[str, float]:
        return dev_run(self.backbone, head, Adjust(config), self.recipe, self.tokenizer)


def window_loss(module: AdjustModule, window: StepWindow, compiled: bool = True) -> tuple[Tensor, dict[str, float]]:
    """The loss of one window a row, and its measures against doing nothing."""
    rows, backbone, mask = window.rows, module.backbone, module.config.mask
    carried = window.before
    for answers in window.answers:
        ids = rows.filled(answers).flatten()
        x = run_layers(module, backbone, module.join(ids, carried.flatten(0, 1)), rows, compiled)
        carried = module.move(carried.flatten(0, 1), x).view_as(carried)
    last = window.answers[-1]
    started = rows.offsets // rows.block_length == _active(last, rows, mask).unsqueeze(1)
    chosen = ((last == mask) & rows.valid & started).nonzero(as_tuple=True)

    def scores(states: Tensor) -> Tensor:
        return module.project(states[chosen[0], rows.at[chosen]]).float().log_softmax(-1)

    with torch.no_grad():
        teacher, parallel = scores(window.after), scores(window.before)
    student, everywhere = scores(carried), torch.ones_like(chosen[0], dtype=torch.bool)
    loss = teacher_loss(student, teacher, everywhere)
    best = teacher.argmax(-1)
    facts = {
        "kl_parallel": teacher_loss(parallel, teacher, everywhere).item(),
        "kl": loss.item(),
        "agreement_parallel": (parallel.argmax(-1) == best).float().mean().item(),
        "agreement": (student.argmax(-1) == best).float().mean().item(),
    }
    return loss, facts


def _active(answers: Tensor, rows: AnswerRows, mask: int) -> Tensor:
    """Number of the first block [N] that holds a mask."""
    masked = (answers == mask) & rows.valid
    return masked.int().argmax(1) // rows.block_length
