"""bench: what the clock counts, and the rows of `--decoders`."""

import time
from types import SimpleNamespace

import pytest

from dlmbench.bench import decoders
from dlmbench.bench.clock import Clock


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
