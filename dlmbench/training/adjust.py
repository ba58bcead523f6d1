"""Training of ADJUST's sampler beside a frozen backbone (arXiv 2509.22738).

The backbone answers training prompts itself, one token a forward, always at the position of least entropy of the active
block; a row ends with the block of its first end token, because nothing but padding follows. Of such a trajectory the
states of every step are kept, so they are computed once: a window of J + 1 steps inside one block is an example. The
backbone's state from the window's first step goes through J calls of the sampler, each given the tokens of the next
step and the states that the call before it left; after every call the logits are drawn to the backbone's own on the
same tokens, by KL(backbone || sampler) averaged over the block's positions that are still masked there. J is 1 for the
first `adjust.single` steps, then drawn from the softmax of 1, 1/2, 1/4, ... .

Which windows are shown decides whether anything is learned. The sampler moves all states by the same length, its gain.
In nearly all windows a drawn token changes nothing, so where all are shown alike the gain shrinks long before the layer
has found what to do in the few others, and a small gain leaves it hardly a gradient. So windows are drawn in proportion
to what doing nothing costs in them, up to `CAP`, plus `adjust.quiet`; and the layer begins at random with a gain of
`adjust.gain`, because a copy of the backbone's last layer does not get to the rule.

Logged beside the loss, always against doing nothing: the KL after the last call and how often the best token agrees,
for the sampler and for the states of the window's first step, which is what drawing all tokens from one forward's
marginals assumes (`_parallel`); the same on dev items, whose windows are drawn evenly, and what both are worth there in
decoding. `kl_next` is the KL at the position that is drawn next, the only one that decoding reads: the mean over all
positions hides most of what was learned. A sampler is worth something only where it beats the parallel numbers.

Apart from the paper: Muon for the layer's matrices, the choice of windows, one call at first, a small gain at the
start, and the loss after every call instead of after the last. Left out: losses on hidden states, which have weight 0
in the authors' runs.

Axes: N rows, R columns, A answer positions, L block, J calls, K chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass

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
CAP = 2.0  # nats that count of a window's cost: without it, rare windows of many nats are learned by heart


def unroll_probabilities(lengths: int) -> Tensor:
    """Probability of unrolling 1 .. `lengths` calls: the softmax OF the weights 1, 1/2, 1/4, ... [lengths]"""
    return torch.softmax(0.5 ** torch.arange(lengths, dtype=torch.float32), 0)


def teacher_loss(student: Tensor, teacher: Tensor, scored: Tensor) -> Tensor:
    """KL(teacher || student), summed over the vocabulary and averaged over the scored positions, a scalar.

    student and teacher [...,T,V] log-probabilities of the same state, scored [...,T] bool the positions still masked.
    """
    return _kl(student, teacher)[scored].mean()


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities [...,V] -> [...]"""
    return torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


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

    def tokens(self, row: Tensor, step: Tensor, mask: int) -> Tensor:
        """Answers [n,A] of some rows [n] as they stood before a step of each [n]."""
        return torch.where(self.order[row] < step.unsqueeze(1), self.answers[row], mask)

    def drawn(self, row: Tensor, step: Tensor) -> Tensor:
        """Positions [n] that some rows [n] reveal in a step of each [n]."""
        return (self.order[row] == step.unsqueeze(1)).int().argmax(1)

    def states(self, row: Tensor, step: Tensor) -> Tensor:
        """The backbone's states [n,R,D] of some rows [n] in a step of each [n]."""
        slots = self.slot[step, row]
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
        chosen = top_n(-best.entropy, part.valid[:, window] & (now == config.mask), 1)
        answers[live, window] = now = torch.where(chosen, best.tokens, now)
        order[live, window] = order[live, window].masked_fill(chosen, step)
        full = ~((now == config.mask) & part.valid[:, window]).any(1)
        steps[live[full & torch.isin(now, eos).any(1)]] = step + 1
    return Trajectories(rows, answers, order, steps, kept, slot)


# --- windows ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def window_costs(model: Transformer, paths: Trajectories, most: int) -> list[Tensor]:
    """What doing nothing costs in windows with 1 .. `most` calls: KL(last step || first step) in nats, summed over the
    block's positions that are still masked in the last. Each [N,A] by the first step, 0 where no window begins."""
    rows, length = paths.rows, paths.rows.block_length
    costs = [torch.zeros(rows.offsets.shape, device=paths.steps.device) for _ in range(most)]
    recent: deque[Tensor] = deque(maxlen=most)  # log-probabilities [N,L,V] of the block's steps so far, latest last
    for step, kept in enumerate(paths.kept):
        if step % length == 0:
            recent.clear()
        live = (paths.steps > step).nonzero().squeeze(1)
        window = slice(step // length * length, (step // length + 1) * length)
        known = model.project(pick(kept, rows.select(live).at[:, window])).float().log_softmax(-1)
        now = known.new_zeros(len(rows.ids), *known.shape[1:]).index_copy_(0, live, known)
        left = (paths.order[live, window] >= step) & rows.valid[live, window]
        for calls, before in enumerate(reversed(recent), 1):
            costs[calls - 1][live, step - calls] = (_kl(before[live], known) * left).sum(1)
        recent.append(now)
    return costs


def window_weights(model: Transformer, paths: Trajectories, most: int, quiet: float) -> list[Tensor]:
    """How often windows with 1 .. `most` calls are drawn: by their cost, no more than CAP, plus `quiet`. Each [N,A]"""
    costs = window_costs(model, paths, most)
    return [(cost.clamp_max(CAP) + quiet) * paths.starts(calls) for calls, cost in enumerate(costs, 1)]


@dataclass(frozen=True)
class StepWindow:
    """N windows of J calls: the backbone's states before [N,R,D] in the first step and after [J,N,R,D] in the others,
    with the answers [J,N,A] there and the positions [J,N] that are drawn next."""

    rows: AnswerRows
    before: Tensor
    answers: Tensor
    drawn: Tensor
    after: Tensor
    columns: int


def draw_windows(paths: Trajectories, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As many windows as there are rows, with these weights [N,A], with replacement -> their rows and first steps."""
    drawn = torch.multinomial(weights.flatten().cpu(), len(weights), replacement=True, generator=generator)
    drawn = drawn.to(paths.steps.device)
    return drawn // weights.shape[1], drawn % weights.shape[1]


def draw_evenly(paths: Trajectories, calls: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One window of each row, its first step uniform -> rows and first steps [N]."""
    first = torch.multinomial(paths.starts(calls).float().cpu(), 1, generator=generator).squeeze(1)
    return torch.arange(len(first), device=paths.steps.device), first.to(paths.steps.device)


def cut_windows(paths: Trajectories, row: Tensor, first: Tensor, calls: int, mask: int) -> StepWindow:
    """The windows of some rows [N] that begin in these steps [N]."""
    steps = [first + number for number in range(1, calls + 1)]
    rows = paths.rows.select(row)
    return StepWindow(
        rows,
        before=paths.states(row, first),
        answers=torch.stack([paths.tokens(row, step, mask) for step in steps]),
        drawn=torch.stack([paths.drawn(row, step) for step in steps]),
        after=torch.stack([paths.states(row, step) for step in steps]),
        columns=calls * rows.columns,
    )


Group = tuple[Trajectories, list[Tensor]]  # rows of one length and the weights of their windows, by calls


class Windows:
    """Endless windows for one worker; `position` is (pool, window) of the next one and may be set.

    A pool is `adjust.trajectories` prompts, rolled out when its first window is asked for; `adjust.windows` steps are
    taken on it, and all seeds follow from the position, so a resumed run meets the same ones.
    """

    def __init__(self, prompts: Prompts, backbone: Transformer, recipe: Recipe, device: torch.device):
        self.prompts, self.backbone, self.recipe, self.device = prompts, backbone, recipe, device
        self.position = (0, 0)
        self._pool: tuple[int, list[Group]] | None = None

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
            if pool * plan.windows + index < plan.single:
                calls = 1
            groups = self._groups(pool)
            sizes = torch.tensor([float(len(paths.steps)) for paths, _ in groups])
            paths, weights = groups[int(torch.multinomial(sizes, 1, generator=generator))]
            self.position = (pool, index + 1)
            yield cut_windows(paths, *draw_windows(paths, weights[calls - 1], generator), calls, mask)

    def _groups(self, pool: int) -> list[Group]:
        if self._pool is None or self._pool[0] != pool:
            self._pool = None  # its memory first
            batches, plan, groups = self.prompts.plan(pool), self.recipe.adjust, []
            for number, (rows, length) in enumerate(batches):
                there, seed = AnswerRows.of(rows, length).to(self.device), self._seed(pool, number) & 0xFFFFFF
                paths = roll_out(self.backbone, there, plan.temperature, seed, self.recipe.compile)
                groups.append((paths, window_weights(self.backbone, paths, plan.unrolled, plan.quiet)))
            self._pool = pool, groups
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
        layout = prompt_layout(self.tokenizer, self.backbone.config.mask, self.recipe.mixture)
        prompts = Prompts(
            draw, layout, recipe.block_lengths, recipe.columns, recipe.seed, self.rank, recipe.adjust.trajectories
        )
        return Windows(prompts, self.backbone, recipe, self.device)

    def networks(self) -> tuple[AdjustModule, AdjustModule]:
        precise = self.backbone if self.dtype == torch.float32 else load_backbone(self.recipe, "cpu", torch.float32)[0]
        master = AdjustModule(precise).init_weights(self.recipe.adjust.gain, self.recipe.seed)
        self.seen: dict = {}  # what dev items give without the sampler
        network = AdjustModule(self.backbone).to(self.device, self.dtype)
        return master.to(self.device).requires_grad_(True).train(), network

    def loss(self, window: StepWindow) -> Tensor:
        loss, facts = window_loss(self.network, window, self.recipe.compile)
        self.notes.append(facts)
        return loss

    def export(self) -> None:
        training = self.budget(**asdict(self.recipe.adjust))
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
        """Even windows of dev trajectories by number of calls, always the same."""
        if "windows" not in self.seen:
            recipe, mask = self.recipe, self.backbone.config.mask
            layout, noise = prompt_layout(self.tokenizer, mask, recipe.mixture), np.random.default_rng(HELD_OUT_SEED)
            examples = dev_examples(self.tokenizer, recipe.evaluate_items, recipe.mixture)
            prompts = [layout(example, recipe.block_lengths[0], noise) for example in examples]
            generator = torch.Generator().manual_seed(HELD_OUT_SEED)
            found: dict[int, list[StepWindow]] = {calls: [] for calls in range(1, recipe.adjust.unrolled + 1)}
            for rows, length in cut(prompts, recipe.columns):
                paths = roll_out(self.backbone, AnswerRows.of(rows, length).to(self.device), 0.0, 0, recipe.compile)
                for calls, windows in found.items():
                    for _ in range(HELD_OUT_WINDOWS):
                        row, first = draw_evenly(paths, calls, generator)
                        windows.append(cut_windows(paths, row, first, calls, mask))
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
    """The loss of N windows, the mean over their calls, and the measures of the last call against doing nothing."""
    rows, backbone, mask = window.rows, module.backbone, module.config.mask
    carried, losses = window.before, []
    for answers, after in zip(window.answers, window.after, strict=True):
        ids, states = rows.filled(answers).flatten(), carried.flatten(0, 1)
        x = run_layers(module, backbone, module.join(ids, states), rows, compiled)
        carried = module.move(states, x).view_as(carried)
        chosen = _left(answers, rows, mask)
        teacher, student = _scores(module, after, chosen, rows).detach(), _scores(module, carried, chosen, rows)
        losses.append(_kl(student, teacher).mean())
    with torch.no_grad():
        parallel = _scores(module, window.before, chosen, rows)
        facts = _measures(student, teacher, "") | _measures(parallel, teacher, "_parallel")
        following = chosen[1] == window.drawn[-1][chosen[0]]
        for name, ours in (("kl_next", student), ("kl_next_parallel", parallel)):
            facts[name] = _kl(ours[following], teacher[following]).mean().item()
        facts["gain"] = module.norm_postattn.abs().mean().item()
    return torch.stack(losses).mean(), facts


def _measures(student: Tensor, teacher: Tensor, suffix: str) -> dict[str, float]:
    agreement = (student.argmax(-1) == teacher.argmax(-1)).float().mean().item()
    return {f"kl{suffix}": _kl(student, teacher).mean().item(), f"agreement{suffix}": agreement}


def _scores(module: AdjustModule, states: Tensor, chosen: tuple[Tensor, Tensor], rows: AnswerRows) -> Tensor:
    """Log-probabilities [K,V] of states [N,R,D] at the chosen rows and answer positions."""
    return module.project(states[chosen[0], rows.at[chosen]]).float().log_softmax(-1)


def _left(answers: Tensor, rows: AnswerRows, mask: int) -> tuple[Tensor, Tensor]:
    """AnswerRows and positions [K] that are still masked in each row's active block; answers [N,A]."""
    started = rows.offsets // rows.block_length == _active(answers, rows, mask).unsqueeze(1)
    row, position = ((answers == mask) & rows.valid & started).nonzero(as_tuple=True)
    return row, position


def _active(answers: Tensor, rows: AnswerRows, mask: int) -> Tensor:
    """Number of the first block [N] that holds a mask."""
    masked = (answers == mask) & rows.valid
    return masked.int().argmax(1) // rows.block_length
