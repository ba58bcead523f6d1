"""What the local runner does around the engine. Run: pytest tests/unit/test_local.py"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from synthetic import forwards, manifest, sample

from dlmbench.engine.calibrate import Measured
from dlmbench.files import files_hash
from dlmbench.request import RunSpec
from dlmbench.runs.local import LocalRunner
from dlmbench.runs.prices import PriceList
from dlmbench.runs.record import Calibration, Circumstances, Environment, Rate, plain, typed
from dlmbench.runs.runner import with_history

PLAIN = forwards(target_denoise_8=1.0)
WIDE = forwards(target_verify_40=1)


def circumstances(batch_size=2, **weights):
    return Circumstances({"target": "t", **weights}, batch_size, "float32", 8, "nano-gsm", "a CPU", 2, "2.11")


class ToyEngine:
    """Meets the shapes of the items that it is asked for, and prices what it has met."""

    def __init__(self, shapes_of_items):
        self.shapes_of_items, self.shapes, self.made = shapes_of_items, dict.fromkeys(PLAIN), []

    def generate(self, keys):
        self.made += keys
        for key in keys:
            self.shapes.update(dict.fromkeys(self.shapes_of_items.get(key, ())))

    def calibrate(self):
        return Measured(0.1, dict.fromkeys(self.shapes, 1.5))


def calibration(tmp_path, samples, shapes_of_items):
    engine = ToyEngine(shapes_of_items)
    run = SimpleNamespace(
        items=[SimpleNamespace(key=sample.key) for sample in samples],
        circumstances=circumstances,
        folder=SimpleNamespace(path=tmp_path / "run"),
        resolved=SimpleNamespace(spec=SimpleNamespace(out=str(tmp_path))),
        requests=lambda engine, items: [item.key for item in items],
    )
    return engine, LocalRunner().calibration(run, engine, samples)


def with_forwards(*each):
    return [replace(sample(i, True, 8), forwards=one) for i, one in enumerate(each)]


class Runner:
    """An engine whose passes take these seconds, the first of them to warm up."""

    def __init__(self, seconds):
        self.seconds, self.timing = iter(seconds), None

    def generate(self, requests):
        second = next(self.seconds)
        self.timing = SimpleNamespace(decode=second, total=2 * second, outside=0.1 * second)
        return [SimpleNamespace(key=key, tokens=60, ids=[1, 2]) for key in requests]


@pytest.mark.parametrize(
    "seconds, decode",
    [
        ([9, 1, 1.2, 1.1], Rate(pytest.approx(20 / 1.1), pytest.approx(20 / 1.2), 20)),
        ([9, 1, 2, 1, 4, 4, 5], Rate(5, 4, 5)),  # measured again
        ([9, 1, 2, 1, 4, 4, 8], Rate(5, 2.5, 5)),  # and no better
    ],
)
def test_speeds_whose_repeats_lie_far_apart_are_measured_once_more(seconds, decode):
    items = [SimpleNamespace(key="item-0000")]
    preset = SimpleNamespace(source="hub")
    run = SimpleNamespace(
        items=items,
        resolved=SimpleNamespace(batch_size=1, device="cuda", preset=preset),
        requests=lambda engine, items: [item.key for item in items],
    )
    engine = Runner([second * 3 for second in seconds])
    speed = LocalRunner().speed(run, engine, [replace(sample(0, True, 8), ids=[1, 2])])
    assert speed.decode == decode and speed.same_ids == 1 and next(engine.seconds, None) is None
    assert speed.outside == pytest.approx(0.3 * {1: 1.1, 2: 4}[1 if len(seconds) == 4 else 2])
    warm = Runner([second * 3 for second in seconds[1:]])
    again = LocalRunner().speed(run, warm, [replace(sample(0, True, 8), ids=[1, 2])], just_made=True)
    assert again == speed, "items that were just made need no warm-up"


def test_every_shape_of_the_stored_samples_gets_a_price_of_its_own(tmp_path):
    draft = forwards(draft_denoise_8=1)
    samples = with_forwards(PLAIN, {**PLAIN, **WIDE}, {**PLAIN, **WIDE, **draft})
    engine, found = calibration(tmp_path, samples, {one.key: one.forwards for one in samples})
    assert engine.made == ["item-0001", "item-0002"], "as few items as it takes"
    assert found.prices.keys() == {*PLAIN, *WIDE, *draft}
    assert found.interpolated == []


def test_a_price_that_had_to_be_interpolated_is_named(tmp_path):
    engine, found = calibration(tmp_path, with_forwards({**PLAIN, **WIDE}), {})
    assert engine.made == ["item-0000"] and found.interpolated == list(WIDE)


def test_a_forward_of_the_target_has_one_price_whatever_stands_beside_it():
    prices = PriceList()
    alone, first, second = circumstances(), circumstances(draft="a"), circumstances(draft="b")
    ours = forwards(target_denoise_8=1.0, target_verify_40=2.0)
    (draft,) = forwards(draft_denoise_8=0)
    (verify,) = forwards(target_verify_40=0)
    prices.add(first, {**ours, draft: 0.3}, 0.1)
    prices.add(second, {verify: 3.0, draft: 0.6}, 0.2, {verify: (2.9, 3.1), draft: (0.5, 0.7)})
    assert prices.of(alone) == ours
    assert prices.of(second) == {**ours, draft: 0.6}
    assert prices.of(first)[draft] == 0.3
    assert prices.of(circumstances(batch_size=4)) == {}
    wider = set(forwards(target_verify_48=0))
    copy, told = PriceList(), prices.calibration(second, wider)
    copy.learn(told)
    assert copy.of(second) == prices.of(second)
    assert told.spreads == {draft: (0.5, 0.7)}, "of the price that was not known yet"
    assert copy.calibration(second, wider) == told == typed(Calibration, plain(told))
    assert told.interpolated == list(wider) and told.seconds_per_denoise == 0.1


def test_environments_are_kept_when_they_differ():
    here, there = Environment("a CPU", commit="1"), Environment("a CPU", commit="2")
    at_first = manifest(environment=here)
    first = with_history(at_first, None, 0)
    assert first == at_first == with_history(at_first, first, 5)
    second = with_history(manifest(environment=there), first, 5)
    assert second.environment == there
    assert second.environments == [replace(here, samples_before=0), replace(there, samples_before=5)]
    third = with_history(at_first, second, 9)
    assert [one.samples_before for one in third.environments] == [0, 5, 9]


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

    run = RunSpec(method="static", task="nano-gsm", device="cpu", gen_length=64).resolve()
    one, two = (memory_bytes(replace(run, batch_size=n), None) for n in (1, 2))
    by_row, room = two - one, 0.8
    assert by_row > 0 and one > by_row  # the weights are the same whatever the batch
    assert fitting_batch(run, None, (one + 7 * by_row) / room) == 8
    assert fitting_batch(run, None, (one + 7 * by_row) / room - 1) == 4
    assert fitting_batch(run, None, 1) == 1 and fitting_batch(run, None, 1e15) == 256
