"""Training of RCD's target (arXiv 2601.22954, the second stage): block diffusion whose masked columns carry the
residual of a frozen reference.

The reference sees the same noisy copies once; its prediction at every masked column becomes weight and soft embedding,
the latter from the target's own table (which learns through it), and is mixed into the mask embedding there. No
unrolling, no residual temperature, no gradient through the reference. The control without residuals is the same recipe
with ``objective: block_diffusion``. The accuracy in the log is that of plain decoding, without residuals.

Axes: N rows, R columns, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlmbench.backbone import Transformer, load_checkpoint
from dlmbench.decoders.rcd import mix, residual
from dlmbench.errors import RequestError
from dlmbench.training.data import Batch
from dlmbench.training.loop import PlainWorker, folder_of
from dlmbench.training.step import _compiled_head, _head, run_layers


class RCDWorker(PlainWorker):
    """One process of a run; the frozen reference stands beside the trained network."""

    def networks(self) -> tuple[Transformer, Transformer]:
        master, network = super().networks()
        assert self.recipe.reference is not None  # as `read_recipe` makes sure
        self.reference = load_checkpoint(folder_of(self.recipe.reference), self.device, self.dtype)
        if self.reference.config.vocab_size != master.config.vocab_size:
            raise RequestError(
                f"Reference {self.recipe.reference} has {self.reference.config.vocab_size} tokens, the trained model "
                f"{master.config.vocab_size}; take a reference of the same vocabulary."
            )
        return master, network

    def loss(self, batch: Batch) -> Tensor:
        return residual_loss(self.network, self.reference, batch, self.recipe.compile)


def residual_loss(model: Transformer, reference: Transformer, batch: Batch, compiled: bool = True) -> Tensor:
    """Weighted cross-entropy of a batch whose masked columns are mixed, a scalar."""
    head_step = _compiled_head() if compiled else _head
    x = run_layers(model, model, mixed_inputs(model, reference, batch, compiled), batch, compiled)
    return head_step(model, x[batch.predicting], batch.labels, batch.weights)


def mixed_inputs(model: Transformer, reference: Transformer, batch: Batch, compiled: bool = True) -> Tensor:
    """Input embeddings of all columns [N*R,D]: residuals at masked ones, plain elsewhere."""
    ids = batch.ids.flatten()
    masked = (ids == model.config.mask).nonzero().squeeze(1)
    with torch.no_grad():
        states = run_layers(reference, reference, reference.embed(ids), batch, compiled)[masked]
        states = F.rms_norm(states, states.shape[-1:], reference.norm, reference.config.rms_norm_eps)
        logits = reference.project(states)
    table = model.embedding.weight
    alpha, delta = residual(logits, table)
    return model.embed(ids).index_copy(0, masked, mix(table[model.config.mask_id], alpha, delta))


def masked_loss(logits: Tensor, labels: Tensor, masked: Tensor, t: float | Tensor) -> Tensor:
    """The paper's loss of one sequence: (1/t) * sum over masked positions of -log p(label), not divided by the length.

    logits [...,T,V], labels [...,T], masked [...,T] bool, t the probability with which positions were masked, a number
    or [...] -> [...]. Training uses block diffusion's weights instead, which are these over the answer's length, with
    1/t capped.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    return (losses * masked).sum(-1) / t
