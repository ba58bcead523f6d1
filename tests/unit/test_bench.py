"""bench: what the clock counts, the growth law, the loops it compares with. pytest tests/unit/test_bench.py"""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from dlmbench.bench import decoders
from dlmbench.bench.clock import Clock
from dlmbench.bench.core import fit_growth
from dlmbench.bench.plain import PlainLoop
from dlmbench.bench.shapes import random_model
from dlmbench.cli.app import app


class Model:
    """Ten milliseconds a forward, two of them writing keys and values; five in the head."""

    def __init__(self, net):
        self.net = net

    def __call__(self, *args):
        time.sleep(0.008)
        self.net.cache.write()
        return args

    def project(self, hidden):
        time.sleep(0.005)
        return hidden


def test_clock_counts_layers_and_head_but_no_writes():
    net = SimpleNamespace()
    net.model, net.allocate = Model(net), lambda *args: setattr(net, "cache", SimpleNamespace(write=write))

    def write(*args):
        time.sleep(0.02)

    clock = Clock(net)
    net.allocate(3)
    assert net.model("x") == ("x",) and net.model.project("h") == "h"
    assert 0.012 < clock.seconds < 0.02  # 8 + 5 ms; the write of 20 ms is not in it


def test_decoder_rows_on_shipped_models(monkeypatch):
    cases = [case for case in decoders.CASES if case[:2] in {("nano", "threshold"), ("nano", "mrp"), ("nano-ar", "ar")}]
    monkeypatch.setattr(decoders, "CASES", cases)
    record = decoders.run_decoders(batch=2, repeats=1)
    rows = {row["decoder"]: row for row in record["decoders"]}
    assert len(rows) == len(cases)
    for row in rows.values():
        assert 0 < row["outside_ms"] <= row["outside_backbone_ms"] < row["ms_per_step"]
        assert row["outside_share"] == pytest.approx(row["outside_ms"] / row["ms_per_step"])
    assert rows["mrp mode=direct"]["outside_backbone_ms"] > 1.2 * rows["mrp mode=direct"]["outside_ms"]  # the module
    assert rows["threshold"]["outside_backbone_ms"] == rows["threshold"]["outside_ms"]  # nothing but the target


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
