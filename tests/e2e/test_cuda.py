"""The same on a GPU: golden traces, recorded steps, late flags, memory. pytest -m cuda

Needs nothing but torch, transformers, safetensors, numpy and pyyaml beside pytest.
"""

import gc
from pathlib import Path

import pytest
import torch

from dlmbench.backbone.loading import load_checkpoint
from dlmbench.backbone.network import Network
from dlmbench.decoders import testing
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Request
from dlmbench.engine.build import tokenizer_of
from dlmbench.models.presets import PRESETS
from dlmbench.registry import DECODERS
from dlmbench.tasks import task_files
from dlmbench.training.evaluate import dev_items
from dlmbench.verify import run_folder

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
AREAS = sorted(p.parent for p in (Path(__file__).parents[1] / "golden").glob("*/README.md"))
CASES = [(name, kind) for name in DECODERS.names() for kind in DECODERS.get(name).attention]
OTHERS = [  # settings whose steps take other ways
    ("entropy", "block_causal", "rule=eb", {}),
    ("static", "full", "steps=2,schedule=dream,alg_temp=0.2", {}),
    ("mrp", "block_causal", "mode=speculative,K=4,fresh_drafts=true,seed_commits=true", {}),
    ("static", "block_causal", "", {"sampling": Sampling(1.0, 5, 0.9, "truncated")}),
    ("static", "full", "", {"sampling": Sampling(0.0, 0, 1.0, "clean", (1,), (1, 2))}),
    ("threshold", "full", "", {"fill_after_eos": True}),
]
SAMPLED = [("threshold", "block_causal"), ("static", "block_causal"), ("static", "full"), ("sequential", "full")]


def requests(count: int) -> list[Request]:
    """The first dev word problems for nano."""
    tokenizer, budget = tokenizer_of("nano2"), task_files.find("nano-gsm").metadata["gen_length"]
    prompts = [item["prompt"] for item in dev_items(count)["gsm-full"]]
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    return [Request(str(i), tuple(prompt), budget, seed=i) for i, prompt in enumerate(ids)]


def nano(dtype=torch.float32, decoder=None, **options) -> Engine:
    model = load_checkpoint(PRESETS["nano2"].location, "cuda", dtype)
    net = Network("target", model, 8)
    return Engine({"target": net}, decoder or Threshold(ThresholdConfig(tau=0.9)), **options)


def ids(generations):
    return [generation.ids for generation in generations]


def tiny(name, attention, requests, setting="", device="cuda", **options):
    cls = DECODERS.get(name)
    decoder = cls(testing.options_of(cls, setting))
    engine = Engine(testing.tiny_networks(decoder, attention, device), decoder, batch_size=3, **options)
    return engine, engine.generate(requests)


@pytest.mark.parametrize("area", AREAS, ids=lambda area: area.name)
def test_golden_cases_in_float32(area):
    failed = [outcome for outcome in run_folder(area, device="cuda") if outcome.status == "failed"]
    assert failed == []


@pytest.mark.parametrize("name, attention, setting, options", [(*case, "", {}) for case in CASES] + OTHERS)
def test_recorded_steps_equal_plain_ones(name, attention, setting, options):
    items = testing.random_requests(3)
    _, plain = tiny(name, attention, items, setting, graphs=False, **options)
    engine, replayed = tiny(name, attention, items, setting, **options)
    assert ids(replayed) == ids(plain) and [g.counts for g in replayed] == [g.counts for g in plain]
    if engine.graphs:
        assert engine.graphs.refused is None and engine.graphs.steps


@pytest.mark.parametrize("name, attention", SAMPLED)
def test_recorded_steps_draw_what_plain_ones_draw(name, attention):
    items, sampling = testing.random_requests(3), Sampling(temperature=1.0, top_k=20)
    _, plain = tiny(name, attention, items, graphs=False, sampling=sampling)
    _, replayed = tiny(name, attention, items, sampling=sampling)
    assert ids(replayed) == ids(plain) and len(set(map(tuple, ids(plain)))) > 1


def test_a_gpu_gives_the_ids_of_a_cpu_and_batches_do_not_matter():
    items = requests(64)
    torch.backends.cuda.matmul.allow_tf32 = False
    batched = nano(batch_size=16).generate(items)
    single = nano(batch_size=1).generate(items[:16])
    model = load_checkpoint(PRESETS["nano2"].location, "cpu", torch.float32)
    here = Engine({"target": Network("target", model, 8)}, Threshold(ThresholdConfig(tau=0.9)), batch_size=16)
    assert ids(single) == ids(batched)[:16]
    assert ids(here.generate(items)) == ids(batched)


def test_bfloat16_agrees_mostly(record_property):
    items = requests(64)
    exact, rounded = (nano(dtype, batch_size=16).generate(items) for dtype in (torch.float32, torch.bfloat16))
    rate = sum(a == b for a, b in zip(ids(exact), ids(rounded))) / len(items)
    record_property("bfloat16_agreement", rate)
    print(f"bfloat16 gives the ids of float32 on {rate:.1%} of {len(items)} items")
    assert rate > 0.5


@pytest.mark.parametrize("graphs", [True, False], ids=["recorded", "plain"])
def test_nothing_inside_a_step_waits_for_the_device(graphs):
    engine = nano(batch_size=8, graphs=graphs)
    engine.generate(requests(16))  # whatever is set up once
    launch = engine.step.launch

    def strict(*bounds):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(*bounds)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    engine.step.launch = strict
    assert all(generation.ids for generation in engine.generate(requests(16)))


def test_memory_returns_to_where_it_was():
    def spend():
        engine = nano(batch_size=16)
        engine.generate(requests(32))
        engine.calibrate(1)
        del engine  # its graphs and buffers go with it, whatever the garbage collector does
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    spend()  # libraries keep what they allocate first
    before = torch.cuda.memory_allocated()
    gc.disable()
    try:
        spend()
        assert torch.cuda.memory_allocated() <= before + (1 << 20)
    finally:
        gc.enable()


def test_an_engine_records_again_after_its_graphs_are_gone():
    engine = nano(batch_size=8)
    first = ids(engine.generate(requests(8)))
    for _ in range(2):
        engine.release()
        assert ids(engine.generate(requests(8))) == first
    assert engine.graphs.refused is None and engine.graphs.steps


def test_a_step_that_cannot_be_recorded_leaves_the_next_engine_as_it_was():
    class Reading(Threshold):
        def decide(self, view, forward):
            self.seen = forward.logits.amax().item()
            return super().decide(view, forward)

    config, items = ThresholdConfig(tau=0.9), requests(8)
    here, engine = torch.cuda.current_stream(), nano(decoder=Reading(config), batch_size=8)
    plain = ids(engine.generate(items))
    assert "cannot be recorded here" in engine.graphs.refused and torch.cuda.current_stream() == here
    torch.cuda.empty_cache()
    after = nano(decoder=Threshold(config), batch_size=8)
    assert ids(after.generate(items)) == plain and after.graphs.refused is None


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_another_device_than_the_first_records_on_its_own():
    items = testing.random_requests(3)
    _, first = tiny("threshold", "block_causal", items)
    engine, second = tiny("threshold", "block_causal", items, device="cuda:1")
    assert ids(second) == ids(first) and engine.graphs.refused is None and engine.graphs.steps
    assert torch.cuda.current_device() == 0


def test_out_of_memory_on_the_device_halves_the_batch():
    engine = nano(batch_size=16, graphs=False)
    launch, hoard = engine.step.launch, []

    def greedy(*bounds):
        if engine.step.canvas.rows > 4:
            hoard.append(torch.empty(1 << 42, dtype=torch.uint8, device="cuda"))  # 4 TiB
        return launch(*bounds)

    engine.step.launch = greedy
    with pytest.warns(RuntimeWarning, match="Out of memory: going on with --batch-size 4"):
        generations = engine.generate(requests(24))
    assert ids(generations) == ids(nano(batch_size=4).generate(requests(24)))
