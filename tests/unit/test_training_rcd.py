"""Training of RCD on tiny networks. Run: pytest tests/unit/test_training_rcd.py"""

import random

import pytest
import torch

from dlmbench.backbone import BackboneConfig, Transformer, save_checkpoint
from dlmbench.decoders.rcd import residual
from dlmbench.errors import RequestError
from dlmbench.training.data import Example
from dlmbench.training.loop import MASK
from dlmbench.training.rcd import RCDWorker, mixed_inputs, residual_loss
from dlmbench.training.recipe import Recipe, Shape, read_recipe
from dlmbench.training.step import batch_loss

TINY = Shape(layers=2, hidden=32, heads=2, intermediate=48, vocabulary=64, max_positions=64)


def draw(seed):
    rng = random.Random(str(seed))
    while True:
        yield Example(tuple(rng.choices(range(4, 64), k=rng.randint(3, 9))), tuple(rng.choices(range(4, 12), k=5)))


@pytest.fixture
def reference(tmp_path):
    """A folder with a smaller network of the same vocabulary."""
    config = BackboneConfig(
        family="sdar", vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8,
        intermediate_size=24, tie_embeddings=True, mask_id=MASK, eos_ids=(1,), pad_id=0, max_positions=64,
    )  # fmt: skip
    return str(save_checkpoint(Transformer(config).init_weights(5), tmp_path / "reference", torch.float32))


def worker(out, reference, **changes):
    out.mkdir(exist_ok=True)
    fields = dict(name="tiny", objective="rcd", mixture={"code": 1.0}, steps=6, shape=TINY, workers=1, columns=256)
    fields |= dict(evaluate_items=0, compile=False, bfloat16=False, warmup=2, block_lengths=(4,), reference=reference)
    return RCDWorker(Recipe(**(fields | changes)), out, draw)


def test_only_masked_columns_are_mixed_with_the_targets_own_table(tmp_path, reference):
    one = worker(tmp_path / "run", reference)
    batch, model = next(iter(one.batches)), one.network
    inputs, plain = mixed_inputs(model, one.reference, batch, False), model.embed(batch.ids.flatten())
    masked = batch.ids.flatten() == MASK
    assert torch.equal(inputs[~masked], plain[~masked]) and masked.any()
    assert (inputs[masked] != plain[masked]).any(1).all()
    alpha, _ = residual(torch.zeros(1, 64), model.embedding.weight)
    assert alpha.item() == pytest.approx(1.0)


def test_gradients_reach_the_target_and_never_the_reference(tmp_path, reference):
    one = worker(tmp_path / "run", reference)
    batch = next(iter(one.batches))
    loss = residual_loss(one.network, one.reference, batch, False)
    assert loss.item() != batch_loss(one.network, batch, False).item()
    loss.backward()
    assert one.network.embedding.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in one.reference.parameters())


def test_a_run_learns_and_leaves_a_checkpoint_in_the_family_layout(tmp_path, reference):
    one = worker(tmp_path / "run", reference, steps=40)
    batch = next(iter(one.batches))
    before = residual_loss(one.network, one.reference, batch, False).item()
    one.run()
    assert residual_loss(one.network, one.reference, batch, False).item() < before - 0.1
    assert (tmp_path / "run" / "weights" / "model.safetensors").is_file()


def test_a_recipe_without_a_reference_is_refused(tmp_path):
    file = tmp_path / "rcd.yaml"
    file.write_text("name: x\nobjective: rcd\nmixture: {code: 1.0}\nsteps: 1\n")
    with pytest.raises(RequestError, match="reference"):
        read_recipe(file)
