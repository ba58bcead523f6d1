"""What the local executor does around the engine. Run: pytest tests/unit/test_local.py"""

from dataclasses import replace
from types import SimpleNamespace

from dlmbench.request import RunSpec
from dlmbench.runs import local
from dlmbench.runs.local import Local, files_hash, with_history
from dlmbench.runs.prices import UNIT, Prices

HERE, THERE = {"device": "a CPU", "commit": "1"}, {"device": "a CPU", "commit": "2"}


class ToyEngine:
    """Meets the shapes of the items that it is asked for, and prices what it has met."""

    def __init__(self, shapes_of_items):
        self.shapes_of_items, self.shapes, self.made = shapes_of_items, {"target/denoise/8": (1, 8, 64, 8)}, []

    def generate(self, keys):
        self.made += keys
        for key in keys:
            self.shapes.update(dict.fromkeys(self.shapes_of_items.get(key, ()), (1, 8, 64, 8)))

    def calibrate(self):
        return {UNIT: 0.1, **dict.fromkeys(self.shapes, 1.5)}


def calibration(monkeypatch, tmp_path, samples, shapes_of_items):
    monkeypatch.setattr(local, "requests_of", lambda job, engine, items: [item.key for item in items])
    engine = ToyEngine(shapes_of_items)
    job = SimpleNamespace(
        items=[SimpleNamespace(key=sample["key"]) for sample in samples],
        circumstances=lambda: {"batch_size": 2},
        folder=SimpleNamespace(path=tmp_path / "run"),
    )
    return engine, Local().calibration(job, engine, samples)


def test_every_shape_of_the_stored_samples_gets_a_price_of_its_own(monkeypatch, tmp_path):
    common = {"target/denoise/8": 4}
    samples = [
        {"key": "a", "widths": common},
        {"key": "b", "widths": {**common, "target/verify/40": 1}},
        {"key": "c", "widths": {**common, "target/verify/40": 2, "draft/denoise/8": 1}},
    ]
    widths = {sample["key"]: sample["widths"] for sample in samples}
    engine, found = calibration(monkeypatch, tmp_path, samples, widths)
    assert engine.made == ["b", "c"], "as few items as it takes"
    assert found["prices"].keys() == {"target/denoise/8", "target/verify/40", "draft/denoise/8"}
    assert found["interpolated"] == []


def test_a_price_that_had_to_be_interpolated_is_named(monkeypatch, tmp_path):
    samples = [{"key": "a", "widths": {"target/denoise/8": 4, "target/verify/40": 1}}]
    engine, found = calibration(monkeypatch, tmp_path, samples, {})
    assert engine.made == ["a"] and found["interpolated"] == ["target/verify/40"]


def test_a_forward_of_the_target_has_one_price_whatever_stands_beside_it():
    prices = Prices()
    alone, first, second = ({"batch_size": 2, "weights": {"target": "t", **more}} for more in (
        {}, {"draft": "a"}, {"draft": "b"}))  # fmt: skip
    prices.add(first, {UNIT: 0.1, "target/denoise/8": 1.0, "target/verify/40": 2.0, "draft/denoise/8": 0.3})
    prices.add(second, {UNIT: 0.2, "target/verify/40": 3.0, "draft/denoise/8": 0.6})
    assert prices.of(alone) == {UNIT: 0.1, "target/denoise/8": 1.0, "target/verify/40": 2.0}
    assert prices.of(second) == {**prices.of(alone), "draft/denoise/8": 0.6}
    assert prices.of(first)["draft/denoise/8"] == 0.3
    assert prices.of({"batch_size": 4, "weights": {"target": "t"}}) == {}
    copy = Prices()
    copy.learn(prices.record(second, {"target/verify/40", "target/verify/48"}))
    assert copy.of(second) == prices.of(second)
    assert prices.record(second, {"target/verify/48"})["interpolated"] == ["target/verify/48"]


def test_environments_are_kept_when_they_differ():
    first = with_history({"environment": HERE}, {}, 0)
    assert first == {"environment": HERE} == with_history({"environment": HERE}, first, 5)
    second = with_history({"environment": THERE}, first, 5)
    assert second["environment"] == THERE
    assert second["environments"] == [{**HERE, "samples_before": 0}, {**THERE, "samples_before": 5}]
    third = with_history({"environment": HERE}, second, 9)
    assert [one["samples_before"] for one in third["environments"]] == [0, 5, 9]


def test_hash_of_files_is_that_of_names_and_contents(tmp_path):
    one, two = tmp_path / "a.json", tmp_path / "b.json"
    one.write_text("x")
    two.write_text("y")
    before = files_hash([one, two])
    assert before == files_hash([two, one]) != files_hash([one])
    two.write_text("z")
    assert files_hash([one, two]) != before


def test_batch_size_fits_into_memory():
    from dlmbench.runs.preflight import fitting_batch, memory_bytes

    cell = RunSpec(method="static", task="nano-gsm", device="cpu", gen_length=64).check()
    one, two = (memory_bytes(replace(cell, spec=replace(cell.spec, batch_size=n)), None) for n in (1, 2))
    by_row, room = two - one, 0.8
    assert by_row > 0 and one > by_row  # the weights are the same whatever the batch
    assert fitting_batch(cell, None, (one + 7 * by_row) / room) == 8
    assert fitting_batch(cell, None, (one + 7 * by_row) / room - 1) == 4
    assert fitting_batch(cell, None, 1) == 1 and fitting_batch(cell, None, 1e15) == 256
