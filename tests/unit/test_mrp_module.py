"""The MRP module's files, its training, and the command line around it. pytest tests/unit/test_mrp_module.py"""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dlmbench.backbone import BackboneConfig, Transformer, load_checkpoint, save_checkpoint, weights_hash
from dlmbench.backbone.network import Network
from dlmbench.errors import RequestError
from dlmbench.heads.mrp import MRPModule, load_module, save_module
from dlmbench.heads.mrp_network import MRPHead
from dlmbench.request import RunSpec
from dlmbench.training import block_diffusion
from dlmbench.training.data import Example, collate
from dlmbench.training.mrp import MRPWorker, Objective, _rank
from dlmbench.training.recipe import MRPPlan, Recipe, WarmStart, read_recipe

MASK, END, VOCABULARY = 2, 1, 64
GOLDEN = Path(__file__).parents[1] / "golden" / "mrp" / "weights" / "sdar-mrp-tiny-b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny backbone whose logits are spread out, as a checkpoint."""
    config = BackboneConfig("sdar", VOCABULARY, 32, 2, 2, 2, 16, 48, tie_embeddings=True, mask_id=MASK, eos_ids=(END,),
                            pad_id=0, max_positions=64)  # fmt: skip
    model = Transformer(config).init_weights(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(5.0)
    path = tmp_path_factory.mktemp("backbone")
    save_checkpoint(model, path, torch.float32)
    return path


@pytest.fixture(scope="module")
def backbone(folder):
    return load_checkpoint(folder)


def draw(seed):
    rng = random.Random(str(seed))
    while True:
        yield Example(tuple(rng.choices(range(4, 64), k=rng.randint(3, 9))), tuple(rng.choices(range(4, 12), k=7)))


def recipe(folder, **changes):
    plan = MRPPlan(**{"layers": 1, **changes.pop("mrp", {})})
    fields = dict(name="tiny", objective="mrp", mixture={"code": 1.0}, steps=6, workers=1, mrp=plan, columns=384)
    fields |= dict(evaluate_items=0, compile=False, bfloat16=False, warmup=2, block_lengths=(4,))
    return Recipe(warm_start=WarmStart(str(folder)), **(fields | changes))


def worker(folder, out, **changes):
    out.mkdir(exist_ok=True)
    return MRPWorker(recipe(folder, **changes), out, draw)


def batch_of(block_length=4, seed=0, count=6):
    noise = np.random.default_rng(seed)
    rows = [block_diffusion.layout(e, block_length, noise, MASK, END) for _, e in zip(range(count), draw((seed,)))]
    return collate(rows, max(len(row.ids) for row in rows) + 2)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_module_survives_saving_and_is_refused_beside_other_weights(tmp_path, folder, backbone):
    module = MRPModule(backbone, 2, residual=True).init_weights("authors", 3)
    save_module(module, tmp_path, weights_hash(folder), torch.float32, training={"steps": 5})
    again = load_module(tmp_path, backbone, weights_hash(folder))
    assert again.residual is True and not any(p.requires_grad for p in again.parameters())
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert set(load_file(tmp_path / "model.safetensors")) >= {"mrp_modules.0.model.eh_proj.weight"}
    with pytest.raises(RequestError, match="was trained on backbone weights"):
        load_module(tmp_path, backbone, "0123456789abcdef")


def test_the_legacy_prefix_and_tied_copies_are_read(tmp_path):
    model = load_checkpoint(GOLDEN)
    official = load_module(GOLDEN, model)
    tensors = {}
    for name, tensor in load_file(GOLDEN / "model.safetensors").items():
        tensors[name.replace("mrp_modules.", "mtp_modules.")] = tensor
    tensors["mtp_modules.0.lm_head.weight"] = torch.zeros(3, 3)
    tensors["mtp_modules.0.model.embed_tokens.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    legacy = load_module(tmp_path, load_checkpoint(tmp_path))
    for name, weight in official.state_dict().items():
        assert torch.equal(weight, legacy.state_dict()[name]), name
    assert len(legacy.layers) == 2


def test_folders_without_a_fitting_module_are_refused(tmp_path, folder, backbone):
    with pytest.raises(RequestError, match="no MRP module"):
        load_module(folder, backbone)
    with pytest.raises(RequestError, match="has shape"):
        load_module(GOLDEN, backbone)


def test_the_configuration_counts_the_module_alone(backbone):
    module = MRPModule(backbone, 3)
    assert module.config.parameters == sum(p.numel() for p in module.parameters())
    layers, width = 3 * module.config.layer_parameters, module.config.hidden_size
    assert module.config.flops(10, 0, 0) == 2 * 10 * (layers + 2 * width**2)


def test_the_two_halves_of_the_input_are_not_interchangeable(backbone):
    module = MRPModule(backbone, 1).init_weights("authors")
    ids, hidden = torch.tensor([7, 9]), torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    width = module.config.hidden_size
    embedded = torch.nn.functional.rms_norm(backbone.embed(ids), (width,), module.enorm, 1e-6)
    states = torch.nn.functional.rms_norm(hidden, (width,), module.hnorm, 1e-6)
    weight = module.eh_proj.weight
    assert torch.allclose(module.join(ids, hidden), embedded @ weight[:, :width].T + states @ weight[:, width:].T)


# --- the objective ----------------------------------------------------------------------------------------------------


def objective(backbone, seed=0, zero=False, **plan):
    module = MRPModule(backbone, 1).init_weights("authors")
    if zero:
        with torch.no_grad():
            module.norm.zero_()
    return Objective(module, MRPPlan(layers=1, **plan), torch.Generator().manual_seed(seed), compiled=False)


def test_a_silent_module_has_exactly_the_loss_of_doing_nothing(backbone):
    for unrolled in (1, 2):
        trial = objective(backbone, zero=True, unrolled=unrolled)
        trial(batch_of())
        for suffix in ("", "_2")[:unrolled]:
            measured = [trial.facts[name + suffix] for name in ("kl", "agreement")]
            corrected = [trial.facts[name + suffix] for name in ("kl_corrected", "agreement_corrected")]
            assert corrected == pytest.approx(measured) and measured[0] > 0


def test_every_block_with_masks_reveals_as_many_as_planned(backbone):
    batch = batch_of(block_length=8)
    for plan, allowed in ((dict(), {1}), (dict(reveal="gt_random", counts=(2, 3)), {2, 3})):
        trial = objective(backbone, **plan)
        trial._shape = batch.ids.shape
        masked = batch.ids == MASK
        reveal = trial._reveal(batch, masked, None)
        assert not (reveal & ~masked).any()
        for row in range(len(masked)):
            for segment in batch.segment[row].unique().tolist():
                inside = batch.segment[row] == segment
                there, shown = int((masked[row] & inside).sum()), int((reveal[row] & inside).sum())
                assert shown == there if there < min(allowed) else shown in allowed | {there}
    trial = objective(backbone, reveal="model", thresholds=(0.9, 0.9))
    states = trial._states(batch, batch.ids)
    confidence = backbone.project(states).softmax(-1).amax(-1).view(batch.ids.shape)
    reveal = trial._reveal(batch, masked, states)
    assert (reveal | ~masked | (confidence <= 0.9)).all()  # all that pass
    for row in range(len(masked)):
        for segment in batch.segment[row][masked[row]].unique().tolist():
            assert (reveal[row] & (batch.segment[row] == segment)).any()  # and at least one a block


def test_ranks_count_eligible_columns_of_each_segment():
    segment = torch.tensor([[5, 5, 5, 9, 9, 5]])
    eligible = torch.tensor([[True, False, True, True, True, True]])
    rank = _rank(segment, eligible, torch.tensor([[0.3, 0.0, 0.1, 0.9, 0.2, 0.2]]))
    assert rank[0, [2, 5, 0]].tolist() == [0, 1, 2] and rank[0, [4, 3]].tolist() == [0, 1]


def test_the_loss_trains_the_module_and_nothing_else(backbone):
    trial = objective(backbone, unrolled=2, reveal="gt_random", counts=(1, 2), leave_one_out=0.5)
    trial(batch_of()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trial.module.parameters())
    assert all(p.grad is None for p in backbone.parameters())
    assert trial.facts["kl_left_out"] > 0 and trial.facts["kl_2"] > 0


def test_leave_one_out_after_a_single_reveal_asks_for_no_change(backbone):
    """With one reveal a block, the state without it is the state before: a silent module is right."""
    trial = objective(backbone, zero=True, leave_one_out=1.0)
    trial(batch_of())
    assert trial.facts["kl_left_out"] == pytest.approx(0.0, abs=1e-6)


def test_training_passes_see_what_decoding_passes_see(backbone):
    """States of a noisy block in the packed training row equal a pass in decoding over the cached prefix."""
    block = 4
    example = next(draw((8,)))
    row = block_diffusion.layout(example, block, np.random.default_rng(1), MASK, END)
    batch = collate([row], len(row.ids))
    trial = objective(backbone)
    module = trial.module.requires_grad_(False)
    with torch.no_grad():
        carried = trial._states(batch, batch.ids)
        states = trial._module(batch, batch.ids, carried)
    target = Network("target", backbone, block, "separate")
    head = MRPHead(module, target)
    from dlmbench.backbone.counter import Counter
    from dlmbench.decoders.predict import Sampling
    from dlmbench.engine.canvas import Canvas

    for start in sorted({int(p) // block * block for p in row.positions[row.copy == 1]}):
        canvas = Canvas(1, 64, block, MASK, (END,), "block_causal", 0, torch.device("cpu"))
        text = dict(zip(row.positions[row.copy == 0].tolist(), row.ids[row.copy == 0].tolist()))
        canvas.admit(0, [text[i] for i in range(start)] + [5], 20, 0)
        canvas.live[0] = True
        columns = [c for c in range(len(row.ids)) if row.copy[c] == 1 and row.positions[c] // block == start // block]
        canvas.tokens[0, start : start + block] = torch.from_numpy(row.ids[columns])
        for net in (target, head):
            net.allocate(1, 64, canvas.tokens, Counter(1, torch.device("cpu")))
            net.prefill(torch.tensor([0]), [start])
        view = canvas.view({}, Sampling(), 32, 64, None, False)
        with torch.inference_mode():
            hidden = target.denoise(view).hidden
            _, ours = head.residual(view, view.tokens, hidden, view.live)
        assert torch.allclose(ours[0], states[columns], atol=1e-4)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_training_beats_doing_nothing_and_resumes_exactly(tmp_path, folder):
    whole = worker(folder, tmp_path / "whole", steps=30)
    whole.run()
    part = worker(folder, tmp_path / "parts", steps=30)
    for _, batch in zip(range(11), part.batches):
        part.update(batch, late=False)
        part.step += 1
    part.save()
    rest = worker(folder, tmp_path / "parts", steps=30)
    rest.run(resume=True)
    for name, weight in whole.master.state_dict().items():
        assert torch.equal(weight, rest.master.state_dict()[name]), name
    facts = rest.measured()
    assert facts["kl_corrected"] < facts["kl"]
    written = json.loads((tmp_path / "parts" / "weights" / "config.json").read_text())
    assert written["training"]["steps"] == 30 and written["backbone"]["weights"] == weights_hash(folder)
    load_module(tmp_path / "parts" / "weights", load_checkpoint(folder), weights_hash(folder))


@pytest.mark.parametrize("start", ["layers", "random", "authors"])
@pytest.mark.parametrize("residual", [True, False])
def test_every_part_of_a_module_has_a_gradient_from_the_first_step_on(tmp_path, folder, start, residual):
    """A final norm of zero would hide the layers from the loss until it has grown."""
    one = worker(folder, tmp_path / "run", mrp=dict(start=start, residual=residual))
    one.loss(next(iter(one.batches))).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in one.network.parameters())


@pytest.mark.parametrize("start", ["layers", "random", "authors"])
def test_every_start_and_the_naive_head_take_a_step(tmp_path, folder, start):
    for residual in (True, False):
        trainee = worker(folder, tmp_path / f"{start}{residual}", steps=2, mrp=dict(start=start, residual=residual))
        trainee.run()
        assert trainee.step == 2 and all(torch.isfinite(p).all() for p in trainee.master.parameters())


def test_a_trained_module_may_be_the_start_of_the_next_stage(tmp_path, folder):
    first = worker(folder, tmp_path / "first", steps=3)
    first.run()
    later = worker(folder, tmp_path / "later", mrp=dict(start=str(tmp_path / "first" / "weights"), unrolled=2))
    for name, weight in first.master.state_dict().items():
        assert torch.equal(weight.bfloat16(), later.master.state_dict()[name].bfloat16()), name
    later.export()
    assert json.loads((tmp_path / "later/weights/config.json").read_text())["training"]["start"] == "weights"


# --- recipes and the command line -------------------------------------------------------------------------------------


def test_wrong_plans_are_refused_by_name(tmp_path):
    text = "name: x\nobjective: mrp\nmixture: {code: 1}\nsteps: 3\n"
    for more, words in (
        ("", "names no backbone"),
        ("warm_start: {model: nano2}\nmrp: {depth: 3}\n", "no field depth"),
        ("warm_start: {model: nano2}\nmrp: {reveal: all}\n", "mrp.reveal"),
        ("warm_start: {model: nano2}\nmrp: {gain: 0}\n", "mrp.gain"),
    ):
        (tmp_path / "r.yaml").write_text(text + more)
        with pytest.raises(RequestError, match=words):
            read_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(text + "warm_start: {model: nano2}\nmrp: {start: nowhere}\n")
    with pytest.raises(RequestError, match="mrp.start"):
        MRPWorker.check(read_recipe(tmp_path / "r.yaml"))


def test_a_spec_without_a_head_names_the_remedy(tmp_path, folder):
    with pytest.raises(RequestError, match="--head"):
        RunSpec(method="mrp", task="nano-gsm", model=str(folder), block_length=8).resolve()
    with pytest.raises(RequestError, match="temperature"):
        settings = {"mrp": {"mode": "speculative"}}
        RunSpec(method="mrp", task="nano-gsm", model=str(GOLDEN), temperature=1.0, settings=settings).resolve()
    checked = RunSpec(method="mrp", task="nano-gsm", model=str(GOLDEN)).resolve()
    assert checked.companions == {"head": str(GOLDEN)}  # a checkpoint with its module inside
