"""bench: what the clock counts, the growth law, the loops it compares with. pytest tests/unit/test_bench.py"""

import json
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from dlmbench.bench import core, decoders, rates
from dlmbench.bench.clock import Clock
from dlmbench.bench.core import fit_growth
from dlmbench.bench.networks import random_model
from dlmbench.bench.plain import PlainLoop, qwen_of
from dlmbench.cli.app import app
from dlmbench.models.shapes import SHAPES
from dlmbench.registry import _DECODERS as BUILT_IN

RATES = {"read_gb_per_s": 1.0, "copy_gb_per_s": 1.0, "matmul_gflop_per_s": 1.0}


def test_clock_counts_layers_and_head_but_no_writes(monkeypatch):
    now = 0.0

    def spend(seconds):
        nonlocal now
        now += seconds

    class Model:
        """Layers that take 8 s and 16 s more for writing keys and values; a head that takes 4 s."""

        def __call__(self, *args):
            spend(8)
            net.cache.write()
            return args

        def project(self, hidden):
            spend(4)
            return hidden

    net = SimpleNamespace(model=Model())
    net.allocate = lambda *args: setattr(net, "cache", SimpleNamespace(write=lambda: spend(16)))
    monkeypatch.setattr("dlmbench.bench.clock.time", SimpleNamespace(perf_counter=lambda: now))
    clock = Clock(net)
    net.allocate(3)
    assert net.model("x") == ("x",) and net.model.project("h") == "h"
    assert (clock.seconds, clock.writes) == (12, 16)


@pytest.mark.slow
def test_decoder_rows_on_shipped_models(monkeypatch):
    few = {("nano2", "threshold"), ("nano2", "mrp"), ("nano2-ar", "ar")}
    cases = [case for case in decoders.CASES if case[:2] in few]
    monkeypatch.setattr(decoders, "CASES", cases)
    record = decoders.run_decoders(batch=2, repeats=1)
    rows = {row["decoder"]: row for row in record["decoders"]}
    assert len(rows) == len(cases)
    for row in rows.values():
        assert 0 < row["outside_ms"] <= row["outside_backbone_ms"] < row["ms_per_step"]
        assert row["outside_share"] == pytest.approx(row["outside_ms"] / row["ms_per_step"])
    assert rows["mrp mode=direct"]["outside_backbone_ms"] > 1.2 * rows["mrp mode=direct"]["outside_ms"]  # the module
    assert rows["threshold"]["outside_backbone_ms"] == rows["threshold"]["outside_ms"]  # nothing but the target


def test_every_decoder_that_a_shipped_model_serves_is_measured():
    assert {method for _, method, _ in decoders.CASES} == set(BUILT_IN) - {"fastdllm2"}  # no shifted heads here
    for case in decoders.CASES:
        assert decoders.spec_of(*case, batch=2).resolve().preset.shipped


def test_short_forwards_are_timed_in_more_rounds():
    timers = {"ms": SimpleNamespace(once=lambda: None, seconds=lambda: 0.001)}
    assert [len(list(core._forward_rounds(timers, repeats))) for repeats in (1, 3)] == [1, core.MOST_ROUNDS]
    slow = {"ms": SimpleNamespace(once=lambda: time.sleep(core.ROUND_SECONDS), seconds=lambda: 1.0)}
    assert list(core._forward_rounds(slow, 2)) == [{"ms": 1000.0}] * 2


def test_growth_is_fitted_with_a_constant_rows_and_keys():
    rows = [
        {"batch": batch, "context": context, "ms": 2.0 + 0.5 * batch + 0.001 * batch * context}
        for batch in (1, 4, 16)
        for context in (128, 512, 2048)
    ]
    law = fit_growth(rows)
    assert law["constant_ms"] == pytest.approx(2) and law["ms_a_row"] == pytest.approx(0.5)
    assert law["ms_a_row_and_key"] == pytest.approx(0.001) and law["largest_error"] < 1e-9
    rows[-1]["ms"] *= 1.5
    assert fit_growth(rows)["largest_error"] > 0.1
    flat = [{"batch": batch, "context": 128, "ms": 3.0 - 0.1 * batch} for batch in (1, 2, 3)]
    assert min(fit_growth(flat).values()) >= 0  # what would need a negative price is left out


def test_plain_loop_with_a_static_cache_gives_the_same_ids():
    model = random_model("nano", "cpu", torch.float32)
    prompt = list(range(4, 17))
    growing, static = (PlainLoop(model, 8, static).generate(prompt, 20) for static in (False, True))
    assert growing == static and len(growing) == 20


@pytest.mark.parametrize("shape", ["nano", "untied"])
def test_the_plain_loop_reads_the_very_weights_of_the_network(shape, monkeypatch):
    tied = SHAPES["nano"]
    small = replace(tied, num_layers=2, tie_embeddings=shape == "nano")
    monkeypatch.setitem(SHAPES, "small", small)
    model = random_model("small", "cpu", torch.float32)
    qwen = qwen_of(model)
    ours = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert {tensor.untyped_storage().data_ptr() for tensor in qwen.state_dict().values()} == ours
    ids = torch.arange(4, 40).unsqueeze(0)
    with torch.inference_mode():
        states = model.hidden(ids, mask=torch.ones(1, 1, 36, 36).tril().bool())
        assert torch.allclose(qwen(input_ids=ids).logits, model.project(states), atol=1e-4)


def test_a_static_cache_is_kept_for_rows_of_its_length_and_a_loop_ends_in_time():
    loop = PlainLoop(random_model("nano", "cpu", torch.float32), 8, static=True)
    prompts = [list(range(first, first + 13)) for first in (4, 50)]
    first = [loop.generate(prompt, 11) for prompt in prompts]
    keys = loop.caches[24].layers[0].keys.data_ptr()
    assert [loop.generate(prompt, 11) for prompt in prompts] == first and first[0] != first[1]
    assert list(loop.caches) == [24] and loop.caches[24].layers[0].keys.data_ptr() == keys
    assert loop.generate(prompts[0], 11, seconds=-1.0) == []


def test_contenders_are_made_together_or_one_after_another():
    alive, most = weakref.WeakSet(), []

    class Contender:
        row = {"loop": "x"}

        def __init__(self):
            alive.add(self)

        def once(self):
            most.append(len(alive))
            return {"tokens_per_s": 1.0}

    assert len(core.decode_rows([Contender] * 3, 2, together=True)) == 3 and set(most) == {3}
    most.clear()
    assert len(core.decode_rows([Contender] * 3, 2, together=False)) == 3 and set(most) == {1}


def test_a_plain_loop_that_fails_on_a_device_is_named_and_the_rest_is_kept(monkeypatch):
    class Fails(PlainLoop):
        def __init__(self, model, block, static=False, qwen=None):
            if static:
                raise RuntimeError("no compiler here\nmore")
            super().__init__(model, block, static, qwen)

    monkeypatch.setattr(core, "PlainLoop", Fails)
    model = random_model("nano", "cpu", torch.float32)
    settings = core.Settings(device="cuda", batch_sizes=(1,), new_tokens=8, repeats=1)  # the order of a GPU
    record = core._block_causal(model, settings, RATES)
    assert record["failed"] == {"transformers, compiled": "no compiler here"}
    assert [row["loop"] for row in record["decoding"]][-1] == "transformers"
    assert "batch 1 over transformers" in record["ratios"]


def test_forwards_may_be_timed_behind_a_model_s_last_position():
    settings = core.Settings(batch_sizes=(1,), contexts=(2100,), repeats=1)  # nano has 2048
    model = random_model("nano", "cpu", torch.float32)
    assert core.forward_rows(model, settings, RATES)[0]["ms"] > 0


@pytest.mark.parametrize("works", [True, False])
def test_the_compiled_forward_of_transformers_is_timed_where_it_works(works, monkeypatch):
    def compile_(module, **options):
        def once(*args, **kwargs):
            if not works:
                raise RuntimeError("no compiler is found\nand more")
            return module(*args, **kwargs)

        return once

    monkeypatch.setattr(torch, "compile", compile_)
    model = random_model("nano", "cpu", torch.float32)
    settings = core.Settings(batch_sizes=(1,), repeats=1, new_tokens=0, contexts=(16,), compiled=True)
    record = core._block_causal(model, settings, RATES)
    row = record["forwards"][0]
    assert row["transformers_ms"] > 0 and ("compiled_ms" in row) == works
    assert ("a forward, batch 1, 16 keys, over transformers, compiled" in record["ratios"]) == works
    assert record.get("failed", {}) == ({} if works else {"transformers, compiled": "no compiler is found"})


def test_compiled_is_refused_where_it_would_change_nothing():
    result = CliRunner().invoke(app, ["bench", "--compiled", "--shape", "llada-20m"])
    assert "leave it out" in str(result.exception or result.output)


def test_bench_saves_its_record_and_the_growth_picture(tmp_path):
    short = ["--repeats", "1", "--contexts", "32,64", "--batch-size", "1,2", "--new-tokens", "8", "--no-plain"]
    result = CliRunner().invoke(app, ["bench", *short, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "cpu-nano.json").read_text())
    assert result.exit_code == 0 and json.loads(result.stdout.splitlines()[-1]) == record
    assert len(record["forwards"]) == 4 and {row["context"] for row in record["forwards"]} == {32, 64}
    assert (tmp_path / "cpu-nano-growth.png").stat().st_size > 10_000
    assert "fused over separate stores, batch 2" in record["ratios"]
    for row in record["decoding"]:
        assert 0 < row["first_block_ms"] <= row["latency_p50_ms"] <= row["latency_p95_ms"]


@pytest.mark.parametrize(
    ("told", "size"), [(["32K", "1024K", "8192K"], 256), (["131072K"], 512), (["1048576K"], 2048), ([], 256)]
)
def test_bandwidth_is_measured_on_more_than_the_caches_hold(tmp_path, told, size):
    for number, text in enumerate(told):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}/size").write_text(text + "\n")
    assert rates.array_bytes(torch.device("cpu"), tmp_path) == size << 20
