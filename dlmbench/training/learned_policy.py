"""Training of the unmasking policy beside a frozen backbone (arXiv 2512.09106).

GRPO: every training prompt is answered `learned_policy.rollouts` times. The backbone's tokens are greedy, so all
variation comes from the policy, whose decisions are Bernoulli draws without a fall-back: a step may unmask nothing, a
block is left after as many forwards as it has positions, and an answer with a mask before its end is wrong. The reward
is correctness times speed to the power of `alpha`, the advantage what it exceeds the group's mean by. A rollout's loss
is the mean over its steps of the clipped surrogate with the ratio of the step's whole action; the gradient is taken
`updates` times on the same rollouts. Steps in which no group has an advantage are passed over.

Logged: mean reward, accuracy and forwards of the rollouts, and the share of them that has an advantage; on dev items
accuracy and forwards of the greedy policy beside those of a confidence threshold.

Apart from the paper: constant rate with a linear fall, no weight decay, a smaller network for a smaller backbone, and
`bias`, the output's bias at the start: with the paper's -2 (probability 0.12) blocks of 8 positions would nearly always
keep masks, and no rollout would be rewarded. Left out: expert steering (whole answers as one block), the DPLS action
law's rollouts (equal; its likelihood is here for the fixtures).

Axes: N rollouts, A answer positions, M steps of all rollouts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from dlmbench.backbone import Transformer
from dlmbench.backbone.network import Network
from dlmbench.decoders.learned_policy import LearnedPolicy, LearnedPolicyConfig
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.heads.policy import PolicyConfig, PolicyNetwork, save_policy
from dlmbench.heads.policy_network import PolicyHead
from dlmbench.training.data import Draw, map_tensors
from dlmbench.training.evaluate import answers_agree
from dlmbench.training.loop import TrainingWorker
from dlmbench.training.rollout import (
    AnswerRows,
    Prompts,
    check_backbone,
    dev_run,
    load_backbone,
    pick,
    prompt_layout,
    states,
)

DEV_THRESHOLD = 0.9  # the rule that dev figures stand beside


def bernoulli_log_likelihood(logits: Tensor, masked: Tensor, unmasked: Tensor) -> Tensor:
    """Log-probability of unmasking exactly `unmasked`, each masked position on its own.

    logits [R,W], masked and unmasked [R,W] bool -> [R].
    """
    each = torch.where(unmasked, F.logsigmoid(logits), F.logsigmoid(-logits))
    return (each * masked).sum(-1)


def dpls_log_likelihood(logits: Tensor, masked: Tensor, order: Tensor, stop_logit: float = 0.0) -> Tensor:
    """Log-probability of unmasking in this order: the first position by a softmax, every further one in competition
    with a stop item, then the stop itself.

    logits [R,W], masked [R,W] bool, order [R,W] positions padded with -1 -> [R].
    """
    left = logits.masked_fill(~masked, float("-inf"))
    stop = torch.full_like(left[:, :1], stop_logit)
    total, ended = torch.zeros_like(left[:, 0]), torch.zeros_like(masked[:, 0])
    for i, chosen in enumerate(F.pad(order, (0, 1), value=-1).unbind(1)):
        law = torch.cat([left, stop if i else stop - float("inf")], 1).log_softmax(-1)  # the first one is forced
        at = torch.where(chosen >= 0, chosen, left.shape[1]).unsqueeze(1)
        total = total + law.gather(1, at).squeeze(1).masked_fill(ended, 0.0)
        ended = ended | (chosen < 0)
        left = torch.cat([left, stop], 1).scatter(1, at, float("-inf"))[:, :-1]
    return total


def reward(correct: Tensor, steps: Tensor, length: int, alpha: float) -> Tensor:
    """correct * ((L - min(steps, L) + 1) / L) ** alpha; steps beyond L count as L."""
    speed = (length - steps.clamp_max(length) + 1) / length
    return correct * speed**alpha


def advantages(rewards: Tensor) -> Tensor:
    """Rewards [..., rollouts] less their group's mean, not divided by its deviation."""
    return rewards - rewards.mean(-1, keepdim=True)


# --- rollouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """All steps of all rollouts of a batch, flattened.

    What the policy saw: confidence, masked, valid [M,A], time [M]; what it might and did unmask: eligible, unmasked
    [M,A]; likelihood [M] of that when it was done; advantage [M] of the step's rollout; share [M] of a step in the
    loss; columns that the backbone computed.
    """

    confidence: Tensor
    masked: Tensor
    valid: Tensor
    time: Tensor
    eligible: Tensor
    unmasked: Tensor
    likelihood: Tensor
    advantage: Tensor
    share: Tensor
    columns: int


@torch.no_grad()
def roll_out(
    backbone: Transformer, policy: PolicyNetwork, rows: AnswerRows, generator: torch.Generator, compiled: bool = True
) -> tuple[Tensor, Tensor, Steps]:
    """Answer all rows by the policy's own draws -> answers [N,A] (masks may be left), forwards [N], and the steps.

    Advantages are zero, and shares those of a rollout's steps among themselves.
    """
    mask, device = backbone.config.mask, rows.ids.device
    answers = torch.full_like(rows.offsets, mask)
    block, spent, used = (torch.zeros_like(rows.start) for _ in range(3))  # active block, forwards on it, on the row
    seen, taken, columns = defaultdict[str, list[Tensor]](list), list[Tensor](), 0
    while (live := (block * rows.block_length < rows.length).nonzero().squeeze(1)).numel():
        part = rows.select(live)
        columns += part.columns
        tokens, confidence = _best(backbone, part, answers[live], compiled)
        masked = (answers[live] == mask) & part.valid
        inside = part.valid & (part.offsets // rows.block_length == block[live].unsqueeze(1))
        time, eligible = used[live] / part.length, masked & inside
        logits = policy_logits(policy, confidence, masked, time, part.valid)
        draws = torch.rand(logits.shape, generator=generator).to(device)
        unmasked = eligible & (draws < torch.sigmoid(logits))
        for name, value in dict(
            confidence=confidence, masked=masked, valid=part.valid, time=time, eligible=eligible, unmasked=unmasked,
            likelihood=bernoulli_log_likelihood(logits, eligible, unmasked),
        ).items():  # fmt: skip
            seen[name].append(value)
        taken.append(live)
        answers[live] = torch.where(unmasked, tokens, answers[live])
        used[live] += 1
        spent[live] += 1
        over = ~(eligible & ~unmasked).any(1) | (spent[live] >= inside.sum(1))
        block[live] += over
        spent[live[over]] = 0
    rollout = torch.cat(taken)
    found = {name: torch.cat(values) for name, values in seen.items()}
    found |= {"advantage": torch.zeros(len(rollout), device=device), "share": 1 / used[rollout]}
    order = rollout.argsort(stable=True)  # the steps of one rollout one after another
    return answers, used, map_tensors(lambda values: values[order], Steps(columns=columns, **found))


def _best(backbone: Transformer, rows: AnswerRows, answers: Tensor, compiled: bool) -> tuple[Tensor, Tensor]:
    """The backbone's best tokens [N,A], mask excluded, and their probabilities."""
    logits = backbone.project(pick(states(backbone, rows, answers, compiled), rows.at)).float()
    probability = logits.softmax(-1)
    probability[..., backbone.config.mask_id] = 0
    confidence, tokens = probability.max(-1)
    return tokens, confidence


def policy_logits(policy: PolicyNetwork, confidence: Tensor, masked: Tensor, time: Tensor, valid: Tensor) -> Tensor:
    """Logits [M,A] of unmasking now; confidence, masked, valid [M,A], time [M]."""
    rows, width = confidence.shape

    def attend(_: int, q: Tensor, kv: Tensor) -> Tensor:
        q, kv = (t.view(rows, width, *t.shape[1:]).transpose(1, 2) for t in (q, kv))
        k, v = kv.chunk(2, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None])
        return out.transpose(1, 2).reshape(rows * width, -1)

    positions = torch.arange(width, device=confidence.device).repeat(rows)
    found = policy(confidence.flatten(), masked.flatten(), time.repeat_interleave(width), positions, attend)
    return policy.project(found).view(rows, width)


def surrogate_loss(policy: PolicyNetwork, steps: Steps, clip: float) -> Tensor:
    """Clipped surrogate of the steps, weighted with their shares; the ratio is that of a step's whole action."""
    logits = policy_logits(policy, steps.confidence, steps.masked, steps.time, steps.valid)
    ratio = (bernoulli_log_likelihood(logits, steps.eligible, steps.unmasked) - steps.likelihood).exp()
    gain = torch.minimum(ratio * steps.advantage, ratio.clamp(1 - clip, 1 + clip) * steps.advantage)
    return -(gain * steps.share).sum()


# --- the run ----------------------------------------------------------------------------------------------------------


class PolicyWorker(TrainingWorker[PolicyNetwork]):
    """One process of a run; the trained network is the policy, in float32, the backbone stands beside it.

    A step is one batch of prompts, rolled out and then descended `updates` times.
    """

    check = staticmethod(check_backbone)

    def data(self, draw: Draw) -> Prompts:
        recipe, plan = self.recipe, self.recipe.learned_policy
        self.backbone, self.backbone_weights = load_backbone(recipe, self.device, self.dtype)
        layout = prompt_layout(self.tokenizer, self.backbone.config.mask, self.recipe.mixture)
        columns = max(1, recipe.columns // plan.rollouts)  # of the prompts; every one is answered that many times
        return Prompts(draw, layout, recipe.block_lengths, columns, recipe.seed, self.rank)

    def networks(self) -> tuple[PolicyNetwork, PolicyNetwork]:
        plan = self.recipe.learned_policy
        config = PolicyConfig(plan.hidden, plan.intermediate)
        master = PolicyNetwork(config).init_weights(self.recipe.seed, plan.bias)
        self.seen: dict[str, float] = {}  # what dev items give without the policy
        return master.to(self.device).train(), PolicyNetwork(config).to(self.device)

    def loss(self, steps: Steps) -> Tensor:
        if not len(steps.time):  # all rollouts of this worker's prompts went alike; the other's may not have
            return torch.stack([parameter.sum() * 0 for parameter in self.network.parameters()]).sum()
        return surrogate_loss(self.network, steps, self.recipe.learned_policy.clip)

    def update(self, batch: AnswerRows, late: bool) -> tuple[float, float, int, bool]:
        plan = self.recipe.learned_policy
        steps = self._rollouts(batch.to(self.device))
        facts = torch.tensor([float(len(steps.time)), steps.columns, float(late)], device=self.device)
        if self.recipe.workers > 1:
            dist.all_reduce(facts)
        useful, columns, late_workers = facts.tolist()
        loss = norm = 0.0
        for _ in range(plan.updates if useful else 0):
            loss, norm, _, _ = super().update(steps, late)
        return loss, norm, int(columns), late_workers > 0

    def _rollouts(self, rows: AnswerRows) -> Steps:
        """The steps of rollouts that have an advantage, ready for the loss."""
        plan = self.recipe.learned_policy
        seed = np.random.SeedSequence((self.recipe.seed, self.rank, self.step)).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed[0]))
        rows = rows.select(torch.arange(len(rows.ids), device=self.device).repeat_interleave(plan.rollouts))
        answers, used, steps = roll_out(self.backbone, self.network, rows, generator, self.recipe.compile)
        right = self.correct(rows, answers).to(self.device)
        gained = torch.stack([reward(r, u, int(n), plan.alpha) for r, u, n in zip(right, used, rows.length)])
        better = advantages(gained.view(-1, plan.rollouts)).flatten()
        compared = (better != 0).float()  # without an advantage nothing is learned from a rollout
        measures = {"reward": gained, "accuracy": right, "forwards": used.float(), "compared": compared}
        self.notes.append({name: value.mean().item() for name, value in measures.items()})
        advantage = better.repeat_interleave(used)
        chosen = advantage != 0
        weighed = replace(steps, advantage=advantage, share=steps.share / len(used))
        return map_tensors(lambda values: values[chosen], weighed)

    def correct(self, rows: AnswerRows, answers: Tensor) -> Tensor:
        """1 for answers [N,A] that agree with their targets and have no mask before their end, else 0. [N]"""
        config = self.backbone.config
        found = []
        for ids, length in zip(answers.tolist(), rows.length.tolist(), strict=True):
            ids = ids[:length]
            found.append(ids[: next((i for i, token in enumerate(ids) if token in config.eos_ids), length)])
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        targets = self.tokenizer.batch_decode(list(map(list, rows.targets)), skip_special_tokens=True)
        right = [
            config.mask_id not in ids and answers_agree(text, target)
            for ids, text, target in zip(found, texts, targets, strict=True)
        ]
        return torch.tensor(right, dtype=torch.float32)

    def export(self) -> None:
        training = self.budget(**asdict(self.recipe.learned_policy))
        save_policy(self.master, self.out / "weights", self.backbone_weights, training=training)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Dev accuracy and forwards of the greedy policy, beside a confidence threshold."""
        if self.rank or not self.recipe.evaluate_items:
            return
        if not self.seen:
            rule = Threshold(ThresholdConfig(tau=DEV_THRESHOLD))
            found = dev_run(self.backbone, None, rule, self.recipe, self.tokenizer)
            self.seen = {f"{name}_threshold": value for name, value in found.items()}
        greedy = LearnedPolicy(LearnedPolicyConfig())
        found = dev_run(self.backbone, self._head, greedy, self.recipe, self.tokenizer)
        self.log(step=self.step, held_out={k: round(v, 4) for k, v in (found | self.seen).items()})

    def _head(self, target: Network) -> PolicyHead:
        return PolicyHead(self.network, target.block_length)
