"""On nano: ids do not depend on batch size or store, for every decoder, greedy and sampled.

pytest tests/e2e/test_identity.py            a few items
pytest tests/e2e/test_identity.py -m slow    200 items, the figures of the results page
"""

from dataclasses import replace

import pytest

from dlmbench.engine import Request, build
from dlmbench.request import RunSpec
from dlmbench.tasks import load_task
from dlmbench.verify.identity import differences, holds

METHODS = [("static", {"k": 2, "order": "entropy"}), ("threshold", {"tau": 0.6}), ("ar", {})]
MORE = [("static", {"k": 1}), ("sequential", {"k": 1}), ("entropy", {"budget": 0.35})]


def compare(method, options, sampled, items):
    model = "nano2-ar" if method == "ar" else "nano2"
    spec = RunSpec(
        method=method, task="nano-gsm", model=model, settings={method: options}, batch_size=1, dtype="float32",
        device="cpu", temperature=1.0 if sampled else 0.0, top_k=20 if sampled else 0,
    )  # fmt: skip
    engine = build(spec.resolve())
    task = load_task("nano-gsm", tokenizer=engine.tokenizer)
    requests = [
        Request(item.key, tuple(engine.tokenizer(item.prompt, add_special_tokens=False)["input_ids"]), 64, seed=i)
        for i, item in enumerate(task.items("test", items))
    ]
    rows = min(16, items - 1)  # slots are refilled, whatever the number
    batched = build(replace(spec, batch_size=rows).resolve())
    separate = build(replace(spec, batch_size=rows, store="separate").resolve())
    tau = options.get("tau")
    by_batch, singles, fused = differences(engine, batched, requests, tau)
    by_store, _, stored = differences(batched, separate, requests, tau)
    return by_batch, by_store, singles, fused, stored


def forwards(generations):
    kinds = [kind for g in generations for kind in g.counts["target"].items()]
    return sum(n["calls"] for kind, n in kinds if kind != "prefill") / len(generations)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "method, options",
    [*METHODS, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.parametrize("items", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_ids_depend_on_neither_batch_nor_store(method, options, sampled, items, record_property):
    by_batch, by_store, singles, fused, stored = compare(method, options, sampled, items)
    figures = {"fused": forwards(fused), "separate": forwards(stored), "batch": by_batch, "store": by_store}
    print(f"\n{method} {options} {'sampled' if sampled else 'greedy'} {items} items: {figures}")
    assert holds(by_batch, items), by_batch
    assert holds(by_store, items), by_store
    assert len({tuple(g.ids) for g in singles}) > items // 2
    if method == "ar":
        assert forwards(stored) == forwards(fused)
    else:
        assert forwards(fused) < forwards(stored)
