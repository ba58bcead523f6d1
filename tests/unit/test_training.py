"""Training: row layouts, masks, Muon, resume, and the small decoder. Run: pytest tests/unit/test_training.py"""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dlmbench.backbone import BackboneConfig, Transformer, load_checkpoint, load_tokenizer, save_checkpoint
from dlmbench.errors import RequestError
from dlmbench.models.presets import PRESETS
from dlmbench.tasks.nano.mix import SOURCES
from dlmbench.training import autoregressive, block_diffusion, full_diffusion, loop
from dlmbench.training.data import ColumnBatches, Example, collate
from dlmbench.training.evaluate import answers_agree, decode, decode_causal, decode_full, dev_items
from dlmbench.training.fold import fold_qk_norm
from dlmbench.training.optim import orthogonalize
from dlmbench.training.recipe import Recipe, Shape, WarmStart, beside, read_recipe
from dlmbench.training.step import batch_loss, run_layers

MASK, END = 2, 1
RECIPES = Path(__file__).parents[2] / "recipes"
TINY = Shape(layers=2, hidden=32, heads=2, intermediate=48, vocabulary=64, max_positions=64)


def draw(seed):
    rng = random.Random(str(seed))
    while True:
        yield Example(tuple(rng.choices(range(4, 64), k=rng.randint(3, 9))), tuple(rng.choices(range(4, 12), k=5)))


def recipe(**changes):
    fields = dict(name="tiny", objective="block_diffusion", mixture={"code": 1.0}, steps=6, shape=TINY, workers=1)
    fields |= dict(columns=256, evaluate_items=0, compile=False, bfloat16=False, warmup=2, block_lengths=(4,))
    return Recipe(**(fields | changes))


def worker(out, **changes):
    out.mkdir(exist_ok=True)
    plan = recipe(**changes)
    return loop._worker(plan.objective)(plan, out, draw)


# --- block diffusion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [3, 4, 6])
def test_a_noisy_column_sees_clean_earlier_blocks_and_its_own_noisy_block_only(prompt):
    example = Example(tuple(range(10, 10 + prompt)), (30, 31, 32, 33, 34))
    row = block_diffusion.layout(example, 4, np.random.default_rng(0), MASK, END)
    sees = collate([row], len(row.ids)).visible[0, 0]
    for query in range(len(row.ids)):
        for key in range(len(row.ids)):
            q, k = row.positions[query] // 4, row.positions[key] // 4
            if row.copy[query] == 0:  # clean: block-causal among the clean columns
                expected = row.copy[key] == 0 and k <= q
            else:
                expected = (row.copy[key] == 0 and k < q) or (row.copy[key] == row.copy[query] and k == q)
            assert bool(sees[query, key]) == expected


def test_the_two_copies_are_complements_and_never_mask_the_prompt():
    example = Example(tuple(range(10, 16)), tuple(range(30, 41)))
    row = block_diffusion.layout(example, 4, np.random.default_rng(1), MASK, END)
    one, two = (row.ids[row.copy == c] == MASK for c in (1, 2))
    positions = row.positions[row.copy == 1]
    assert positions.min() == 4  # the block in which the prompt ends belongs to the copies
    assert not one[positions < 6].any() and not two[positions < 6].any()
    assert (one ^ two)[positions >= 6].all()
    assert ((row.weight > 0) == (row.ids == MASK)).all()


def test_end_tokens_fill_the_last_block_and_are_trained():
    example = Example((10, 11, 12), (30, 31, 32))  # 7 positions with the end token, the block of 8 has one more
    row = block_diffusion.layout(example, 8, np.random.default_rng(0), MASK, END)
    noisy = row.copy == 1
    assert row.label[noisy].tolist() == [10, 11, 12, 30, 31, 32, END, END]
    assert set(row.positions[row.weight > 0]) == {3, 4, 5, 6, 7}


def test_loss_factor_is_one_over_the_rate_and_capped():
    target = np.ones(4000, dtype=bool)
    masked, factor = block_diffusion.draw_masks(target, 8, np.random.default_rng(0))
    assert factor.max() <= block_diffusion.LARGEST_FACTOR
    assert (factor[masked] >= 1).all() and not factor[~masked].any()
    assert abs(factor.mean() - 1) < 0.15  # unbiased but for the cap


def test_rows_in_order_are_masked_from_the_right_as_decoding_from_the_left_leaves_them():
    target = np.arange(24) >= 3
    met = set()
    for seed in range(50):
        masked, factor = block_diffusion.draw_masks(target, 8, np.random.default_rng(seed), ordered=1.0)
        assert not masked[:, :3].any() and (masked | ~target).any(1).all()
        hidden = masked[:, 8:16].sum(1)
        assert (np.diff(masked[:, 8:16].astype(int), axis=1) >= 0).all() and hidden.sum() == 9
        assert np.allclose(factor[:, 15], np.minimum(8 / hidden, block_diffusion.LARGEST_FACTOR))
        met |= set(hidden.tolist())
    assert met == set(range(1, 9))


def test_a_share_of_the_rows_is_in_order():
    target, noise = np.ones(16, dtype=bool), np.random.default_rng(0)
    drawn = [block_diffusion.draw_masks(target, 16, noise, ordered=0.4)[0] for _ in range(600)]
    ordered = [(np.diff(masked.astype(int), axis=1) >= 0).all() for masked in drawn]
    assert 0.33 < np.mean(ordered) < 0.47


def test_training_loss_equals_decoding_forward():
    """The logits of a noisy block equal those of a plain forward over clean prefix + that block."""
    model = Transformer(loop.initial_weights(recipe()).config).init_weights(3).requires_grad_(False)
    example = Example(tuple(range(10, 16)), tuple(range(30, 37)))
    row = block_diffusion.layout(example, 4, np.random.default_rng(2), MASK, END)
    batch = collate([row], len(row.ids) + 3)
    total = 0.0
    for copy in (1, 2):
        for block in sorted(set(row.positions[row.copy == copy] // 4)):
            own = (row.copy == copy) & (row.positions // 4 == block)
            clean = (row.copy == 0) & (row.positions // 4 < block)
            ids = torch.from_numpy(row.ids[clean | own])[None]
            blocks = torch.arange(ids.shape[1]) // 4
            mask = (blocks[None] <= blocks[:, None])[None, None]
            logits = model.project(model.hidden(ids, mask=mask)[0, -4:])
            losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(row.label[own]), reduction="none")
            total += (losses * torch.from_numpy(row.weight[own])).sum()
    assert torch.allclose(batch_loss(model, batch, compiled=False), total, atol=1e-5)


# --- autoregressive --------------------------------------------------------------------------------------------------


def test_autoregressive_rows_are_causal_and_predict_the_next_token():
    row = autoregressive.layout(Example((10, 11, 12), (30, 31)), END, prompt_weight=0.1)
    batch = collate([row], 8)
    assert torch.equal(batch.visible[0, 0, :6, :6], torch.ones(6, 6, dtype=torch.bool).tril())
    assert not batch.visible[0, 0, :6, 6:].any()
    assert batch.labels.tolist() == [11, 12, 30, 31, END]
    assert batch.weights.tolist() == pytest.approx([0.1 / 3] * 2 + [1 / 3] * 3)


# --- full diffusion --------------------------------------------------------------------------------------------------

REGION = full_diffusion.Region(24, marker=(20, 21), start=14, filler=20)
ANSWER = Example((10, 11, 12), (30, 31, 32, 33, 20, 21, 22, 40))  # a chain of four, the marker, a blank, a digit


def layouts(block_length, count=400, region=REGION):
    noise = np.random.default_rng(0)
    return [full_diffusion.layout(ANSWER, block_length, noise, MASK, END, region) for _ in range(count)]


def marked(row):
    return row.label[3 + REGION.start] == 20 and row.label[3 + REGION.start + 1] == 21


def test_rows_are_prompt_and_padded_answer_and_every_column_sees_every_other():
    lengths = set()
    for row in layouts(8):
        text = row.label[3:].tolist()
        lengths.add(len(text))
        assert row.ids[:3].tolist() == row.label[:3].tolist() == [10, 11, 12] and not row.weight[:3].any()
        assert ((row.ids == row.label) | (row.ids == MASK)).all()
        assert ((row.weight > 0) == (row.ids == MASK)).all()
        assert text[:4] == [30, 31, 32, 33] and text[-1] == END
        assert not marked(row) and text[4:9] == [20, 21, 22, 40, END] or marked(row) and text[14:18] == [20, 21, 22, 40]
        assert collate([row], len(row.ids) + 2).visible[0, 0, : len(row.ids), : len(row.ids)].all()
    assert lengths == {16, 24}


def test_left_of_the_drawn_block_is_clean_and_right_of_it_is_masked():
    begins = set()
    for row in layouts(8, region=full_diffusion.Region(24)):
        hidden = row.ids[3:] == MASK
        begin = int(hidden.argmax()) // 8 * 8
        begins.add(begin)
        assert not hidden[:begin].any() and hidden[begin + 8 :].all()
    assert begins == {0, 8}  # blocks that hold text, the first end token included
    assert min((row.ids[3:] == MASK).sum() for row in layouts(24)) < 6  # one block: uniform masking


def test_a_third_of_the_rows_has_the_marker_at_its_place_and_never_masked():
    rows = layouts(24)
    fixed = [row for row in rows if marked(row)]
    assert 0.2 < len(fixed) / len(rows) < 0.45
    for row in fixed:
        assert row.label[3 + 4 : 3 + 14].tolist() == [20] * 10
        assert row.ids[3 + 14 : 3 + 16].tolist() == [20, 21]
        padding = row.weight[3 + 5 : 3 + 14].max()
        text = row.weight[[3, 4, 5, 6, 7, 3 + 16, 3 + 17]].max()
        assert padding == 0 or text == 0 or padding / text == pytest.approx(full_diffusion.PADDING)


def test_weights_of_the_drawn_blocks_average_to_the_share_of_the_text():
    total = sum(row.weight.sum() for row in layouts(24, 3000, full_diffusion.Region(24))) / 3000
    assert total == pytest.approx(1.0, abs=0.08)  # the cap takes a little, nothing is ahead of a single block


def test_answers_that_fill_their_budget_are_trained_without_an_end_token():
    rows = layouts(8, 400, full_diffusion.Region(6, filled=True))
    lengths = [len(row.ids) - 3 for row in rows]
    filled = len(ANSWER.target)
    assert set(lengths) == {filled, 16} and 0.7 < lengths.count(filled) / 400 < 0.9
    assert all((row.label[-1] == END) == (length == 16) for row, length in zip(rows, lengths))
    stress = full_diffusion.regions(load_tokenizer(PRESETS["nano2"].tokenizer_location), ["stress-shuffle"])
    assert stress["stress-shuffle"] == full_diffusion.Region(6, filled=True)


def test_regions_come_from_the_task_files():
    found = full_diffusion.regions(load_tokenizer(PRESETS["nano2"].tokenizer_location))
    assert {source: region.length for source, region in found.items()} == {
        "gsm-full": 64, "gsm-easy": 64, "gsm-symbolic": 96, "code": 48,
    }  # fmt: skip
    assert found["gsm-full"].start == 48 and len(found["gsm-full"].marker) == 2 and not found["code"].marker


def test_folding_keeps_the_mean_of_the_norm_and_a_warm_start_uses_it(tmp_path):
    source = Transformer(loop.initial_weights(recipe()).config).init_weights(3).requires_grad_(False)
    for layer in source.layers:
        layer.qkv.weight.mul_(20)
        layer.q_norm.copy_(torch.linspace(0.5, 2, 16))
    batch = ColumnBatches(draw, loop._layout(recipe()), (4,), columns=256, pool=20).sample()
    folded = Transformer(loop.initial_weights(recipe(objective="full_diffusion")).config)
    folded.load_state_dict(fold_qk_norm(source, batch))
    plain = Transformer(folded.config)
    plain.load_state_dict({k: v for k, v in source.state_dict().items() if k in plain.state_dict()})

    def states(model):
        with torch.no_grad():
            return run_layers(model, model, model.embed(batch.ids.flatten()), batch, compiled=False)[batch.predicting]

    wanted = states(source)
    assert (states(folded) - wanted).norm() < 0.3 * (states(plain) - wanted).norm()

    save_checkpoint(source, tmp_path / "source", torch.float32)
    start = WarmStart(str(tmp_path / "source"), (1,))
    trainee = worker(tmp_path / "run", objective="full_diffusion", warm_start=start, shape=replace(TINY, layers=1))
    assert torch.equal(trainee.master.layers[0].down.weight, source.layers[1].down.weight)
    trainee.export()
    config = load_checkpoint(tmp_path / "run" / "weights").config
    assert (config.family, config.attention, config.qk_norm, config.shift) == ("llada", "full", False, 0)


def test_full_decoding_equals_one_row_at_a_time():
    model = Transformer(loop.initial_weights(recipe(objective="full_diffusion")).config).init_weights(1)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14]]
    together = decode_full(model, prompts, 4, 12)
    assert together == [decode_full(model, [prompt], 4, 12)[0] for prompt in prompts]
    assert all(END not in ids and MASK not in ids and len(ids) <= 12 for ids in together)


# --- data and optimiser ----------------------------------------------------------------------------------------------


def test_batches_hold_every_example_once_within_the_column_budget():
    batches = ColumnBatches(draw, loop._layout(recipe()), (4, 8), columns=200, pool=60)
    plan = batches.plan(0)
    assert sum(len(rows) for rows, _ in plan) == 60
    assert all(len(rows) * length <= 200 for rows, length in plan)
    assert {row.positions.max() % 8 for rows, _ in plan for row in rows} == {3, 7}  # both block lengths


def test_batches_continue_from_a_saved_position():
    first, second = (ColumnBatches(draw, loop._layout(recipe()), (4,), 200, pool=20) for _ in range(2))
    seen = [batch for batch, _ in zip(first, range(5))]
    second.position = (0, 3)
    assert torch.equal(next(iter(second)).ids, seen[3].ids)


def test_orthogonalized_updates_have_singular_values_near_one():
    matrices = torch.randn(3, 48, 16, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    close = torch.nn.functional.cosine_similarity(orthogonalize(matrices).flatten(), (left @ right).flatten(), dim=0)
    assert close > 0.97


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["autoregressive", "block_diffusion", "full_diffusion"])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(tmp_path, objective):
    whole = worker(tmp_path / "whole", objective=objective)
    whole.run()
    part = worker(tmp_path / "parts", objective=objective)
    for _, batch in zip(range(3), part.batches):
        part.update(batch, late=False)
        part.step += 1
    part.save()
    rest = worker(tmp_path / "parts", objective=objective)
    rest.run(resume=True)
    assert rest.step == whole.step == 6
    for name, weight in whole.master.state_dict().items():
        assert torch.equal(weight, rest.master.state_dict()[name]), name


def test_training_lowers_the_loss_and_exports_the_weights(tmp_path):
    trainee = worker(tmp_path / "run", steps=40)
    batch = next(iter(trainee.batches))
    before = batch_loss(trainee.network, batch, compiled=False).item()
    trainee.run()
    assert batch_loss(trainee.network, batch, compiled=False).item() < before - 1.0
    assert (tmp_path / "run" / "weights" / "model.safetensors").is_file()


def test_a_run_out_of_minutes_stops_with_a_checkpoint(tmp_path):
    trainee = worker(tmp_path / "run", steps=1000)
    trainee.run(minutes=0.0)
    assert trainee.step < 10
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


def test_a_recipe_takes_models_without_a_preset_from_the_runs_beside_it(tmp_path):
    worker(tmp_path / "nano9", steps=1).run()
    plan = recipe(warm_start=WarmStart("nano9"), reference="nano2")
    found = beside(plan, tmp_path)
    assert found.warm_start == WarmStart(str(tmp_path / "nano9" / "weights")) and found.reference == "nano2"
    assert beside(plan, tmp_path / "elsewhere") == plan
    assert loop.finished(recipe(steps=1), tmp_path / "nano9") and not loop.finished(recipe(), tmp_path / "nano9")


def test_a_run_goes_on_only_as_it_was_begun(tmp_path):
    worker(tmp_path, steps=1).run()
    assert loop.finished(recipe(steps=1, evaluate_every=7, description="the same"), tmp_path)
    with pytest.raises(RequestError, match="with other mixture, seed:"):
        loop.finished(recipe(mixture={"code": 2.0}, seed=1), tmp_path)
    with pytest.raises(RequestError, match="with other warm_start:"):
        loop.finished(recipe(warm_start=WarmStart("nano2")), tmp_path)


def test_a_run_killed_while_it_writes_its_weights_is_not_finished(tmp_path, monkeypatch):
    trainee = worker(tmp_path, steps=2, save_every=1)
    monkeypatch.setattr(trainee, "export", lambda: trainee.step == 2 and pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        trainee.run()
    assert not loop.finished(recipe(steps=2), tmp_path)


def test_an_error_of_a_worker_is_told_as_it_is(tmp_path):
    with pytest.raises(RequestError, match="Unknown nano source 'gsm-ful'"):
        loop.train(recipe(mixture={"gsm-ful": 1.0}), tmp_path)


def test_a_warm_start_keeps_what_no_weight_says_and_refuses_another_shape(tmp_path):
    source = replace(loop.network_config(recipe()), rope_theta=1e6, rms_norm_eps=1e-5)
    save_checkpoint(Transformer(source).init_weights(1), tmp_path)
    config = loop.initial_weights(recipe(warm_start=WarmStart(str(tmp_path)))).config
    assert (config.rope_theta, config.rms_norm_eps) == (1e6, 1e-5)
    for wrong, field in ((replace(TINY, hidden=64), "hidden_size is 32"), (replace(TINY, layers=3), "num_layers is 2")):
        with pytest.raises(RequestError, match=field):
            loop.PlainWorker.check(recipe(shape=wrong, warm_start=WarmStart(str(tmp_path))))
    save_checkpoint(Transformer(replace(source, mask_id=3)).init_weights(1), tmp_path)
    with pytest.raises(RequestError, match="mask_id is 3; its own is 2"):
        loop.PlainWorker.check(recipe(warm_start=WarmStart(str(tmp_path))))
    save_checkpoint(Transformer(source).init_weights(1), tmp_path)
    with pytest.raises(RequestError, match="has layers 0 to 1"):
        loop.PlainWorker.check(recipe(warm_start=WarmStart(str(tmp_path), (0, 2))))


@pytest.mark.parametrize("objective, block", [("block_diffusion", 8), ("full_diffusion", 8), ("autoregressive", None)])
def test_an_exported_model_says_its_block_length(tmp_path, objective, block):
    worker(tmp_path, steps=1, objective=objective).run()
    assert load_checkpoint(tmp_path / "weights").config.block_length == block


def test_a_module_is_trained_beside_a_backbone_that_its_method_takes():
    plan = recipe(objective="mrp", warm_start=WarmStart("nano2-llada"))
    with pytest.raises(RequestError, match="block_causal attention and nano2-llada has full attention"):
        loop._worker("mrp").check(plan)


# --- decoding for evaluation -----------------------------------------------------------------------------------------


def test_decoding_ends_at_the_end_token_and_ignores_the_rest_of_the_batch():
    config = BackboneConfig("sdar", 64, 32, 2, 2, 2, 16, 48, tie_embeddings=True, mask_id=MASK, eos_ids=(END,))
    model = Transformer(config).init_weights(1).requires_grad_(False)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14]]
    together = decode(model, prompts, 4, 12)
    assert together == [decode(model, [prompt], 4, 12)[0] for prompt in prompts]
    assert all(END not in ids and MASK not in ids and len(ids) <= 12 for ids in together)
    greedy = decode_causal(model, prompts, 6)
    assert greedy == [decode_causal(model, [prompt], 6)[0] for prompt in prompts]


def test_answers_agree_on_the_last_line_or_the_whole_program():
    assert answers_agree("1+2=3\n#### 3", "2+1=3\n#### 3")
    assert not answers_agree("1+2=3\n#### 4", "2+1=3\n#### 3")
    assert not answers_agree("", "2+1=3\n#### 3")
    assert answers_agree("\n    return n", "\n    return n") and not answers_agree("return m", "return n")


def test_dev_items_cover_every_source():
    items = dev_items(3, SOURCES)
    assert {source: len(rows) for source, rows in items.items()} == dict.fromkeys(SOURCES, 3)


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(RECIPES.glob("train-*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_and_stay_small(path):
    plan = read_recipe(path)
    shape = plan.shape
    config = BackboneConfig("sdar", shape.vocabulary, shape.hidden, shape.layers, shape.heads, shape.heads,
                            shape.hidden // shape.heads, shape.intermediate, tie_embeddings=True)  # fmt: skip
    assert config.parameters <= 2_700_000
    assert plan.learning_rate(0) <= plan.learning_rate(plan.warmup) == 1.0
    assert plan.learning_rate(plan.steps) == plan.final_lr


def test_a_wrong_recipe_is_refused_by_name(tmp_path):
    (tmp_path / "r.yaml").write_text("name: x\nobjective: magic\nmixture: {code: 1}\nsteps: 3\n")
    with pytest.raises(RequestError, match="magic"):
        read_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("name: x\nobjective: autoregressive\nmixture: {code: 1}\nsteps: 3\nstep: 4\n")
    with pytest.raises(RequestError, match="step"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("line, said", [
    ("block_lengths: []", "name one or more"), ("workers: 0", "at least 1"), ("matrix_lr: -0.02", "above 0"),
    ("shape: {width: 32}", "shape has no field width"), ("shape: {hidden: 30}", "multiple of 8"),
    ("warm_start: nano2", "fields of its own"), ("warm_start: {layers: [1]}", "has no model"),
    ("mrp: {layers: x}", "whole number"), ("bfloat16: maybe", "true or false"), ("save_every: 0", "at least 1"),
])  # fmt: skip
def test_a_wrong_value_is_refused_by_its_field(tmp_path, line, said):
    (tmp_path / "r.yaml").write_text(f"name: x\nobjective: block_diffusion\nmixture: {{code: 1}}\nsteps: 3\n{line}\n")
    with pytest.raises(RequestError, match=said):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("objective, ordered", [("autoregressive", 0.4), ("block_diffusion", 1.5)])
def test_an_order_of_masks_that_would_not_be_kept_is_refused(tmp_path, objective, ordered):
    lines = [f"name: x\nobjective: {objective}\nmixture: {{code: 1}}\nsteps: 3", f"ordered: {ordered}\n"]
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(RequestError, match="ordered"):
        read_recipe(tmp_path / "r.yaml")
