"""On nano2: the methods that call themselves lossless give the ids of static decoding with one token a step.

pytest tests/e2e/test_lossless.py            a few items
pytest tests/e2e/test_lossless.py -m slow    the figures of the results page: MRP on 300 word problems and 200 programs,
                                             SimSD on 200 and 100
"""

import shutil
from functools import cache

import pytest

from dlmbench.backbone import Transformer, load_checkpoint, save_checkpoint
from dlmbench.engine import Request, build
from dlmbench.models.presets import PRESETS
from dlmbench.request import RunSpec
from dlmbench.tasks import load_task
from dlmbench.verify.identity import differences, holds

SOME, ALL = "some", pytest.param("all", marks=pytest.mark.slow)
ITEMS = {  # method, how many -> word problems, programs
    ("mrp", "some"): (4, 2), ("mrp", "all"): (300, 200), ("simsd", "some"): (4, 2), ("simsd", "all"): (200, 100),
}  # fmt: skip


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory):
    """A draft that never learned anything: nano2's tokenizer, random weights."""
    folder = tmp_path_factory.mktemp("unrelated")
    preset = PRESETS["nano2-draft"]
    shutil.copytree(preset.tokenizer_location, folder, dirs_exist_ok=True)
    save_checkpoint(Transformer(load_checkpoint(preset.location).config).init_weights(7), folder)
    return str(folder)


def requests(engine, method, size):
    """Prompts of both tasks in one list, as (task, request)."""
    found = []
    for task, count in zip(("nano-gsm", "nano-code"), ITEMS[method, size]):
        for item in load_task(task, tokenizer=engine.tokenizer).items("test", count):
            ids = engine.tokenizer(item.prompt, add_special_tokens=False)["input_ids"]
            found.append(Request(f"{task}/{item.key}", tuple(ids), item.max_tokens or 64))
    return found


@cache
def reference(model, block, method, size):
    """Static decoding at batch 16: the engine, the items, what it gave."""
    spec = RunSpec("static", "nano-gsm", model=model, block_length=block, batch_size=16, device="cpu", dtype="float32")
    static = build(spec.resolve())
    items = requests(static, method, size)
    return static, items, static.generate(items)


def compare(spec, method, size):
    """Static decoding and `spec` on the same items at batch 16 -> (differences, items, target forwards of both)."""
    static, items, known = reference(spec.model, spec.block_length, method, size)
    found, ours, theirs = differences(static, build(spec.resolve()), items, ours=known)
    forwards = [sum(n["calls"] for g in run for kind, n in g.counts["target"].items() if kind != "prefill") for run in (
        ours, theirs)]  # fmt: skip
    return found, len(items), forwards


def check(name, found, items, forwards):
    print(f"\n{name}: {items} items, differing {found}, target forwards {forwards[1] / forwards[0]:.3f} of static's")
    assert holds(found, items), found


@pytest.mark.parametrize("size", [SOME, ALL])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("drafts", [1, 2, 3, 4])
@pytest.mark.parametrize("block", [4, 8, 16])
def test_speculative_mrp(block, drafts, batch, size):
    if size == "some" and (batch == 1 or drafts in (1, 3)):
        pytest.skip("in the slow run")
    settings = {"mrp": {"mode": "speculative", "K": drafts}}
    spec = RunSpec(
        "mrp", "nano-gsm", model="nano2", block_length=block, batch_size=batch, settings=settings, device="cpu",
        dtype="float32",
    )  # fmt: skip
    check(f"mrp block {block} K {drafts} batch {batch}", *compare(spec, "mrp", size))


@pytest.mark.parametrize("size", [SOME, ALL])
@pytest.mark.parametrize("draft", ["nano2-draft", "nano2", "unrelated"])
@pytest.mark.parametrize("block", [4, 8])
def test_replicated_simsd(block, draft, size, unrelated):
    model = unrelated if draft == "unrelated" else draft
    settings = {"simsd": {"verify": "replicated"}}
    spec = RunSpec(
        "simsd", "nano-gsm", model="nano2", block_length=block, batch_size=16, settings=settings, draft=model,
        device="cpu", dtype="float32",
    )  # fmt: skip
    check(f"simsd block {block} draft {draft}", *compare(spec, "simsd", size))
