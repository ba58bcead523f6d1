"""Run folders survive kills, refuse second writers, and add up right. Run: pytest tests/unit/test_store.py"""

import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from synthetic import PRICES, forwards, make_run, manifest, sample

from dlmbench.errors import RunError
from dlmbench.forwards import ForwardKey
from dlmbench.runs import RunFolder, find_runs
from dlmbench.runs.aggregate import aggregate, price
from dlmbench.runs.folder import Index, write_bundle
from dlmbench.runs.record import Work

KEY = "ab" * 32


@pytest.fixture
def folder(tmp_path):
    found = RunFolder.at(tmp_path, "nano-gsm/easy", "static", KEY)
    with found.writing() as writer:
        writer.manifest(manifest(KEY))
        for number in range(3):
            writer.sample(sample(number, True, 8))
    return found


def test_names_are_flat_and_carry_the_key(folder):
    assert folder.name == "nano-gsm-easy-static-abababab"
    assert RunFolder.at(folder.path.parent, "nano-gsm/easy", "static", KEY).path == folder.path


def test_another_key_with_the_same_beginning_gets_its_own_folder(folder):
    other = RunFolder.at(folder.path.parent, "nano-gsm/easy", "static", "ab" * 31 + "cd")
    assert other.path != folder.path


def test_samples_come_back_as_written(folder):
    assert folder.samples == [sample(number, True, 8) for number in range(3)]
    assert not folder.finished


@pytest.mark.parametrize("torn", ['{"key": "item-0', '{"key": "item-0003"}', "\x00\x00"])
def test_a_torn_last_line_is_ignored_and_then_repaired(folder, torn):
    with open(folder.path / "samples.jsonl", "a") as stream:
        stream.write(torn)
    assert len(folder.samples) == 3
    with folder.writing() as writer:
        writer.sample(sample(3, False, 8))
    assert [one.key for one in folder.samples] == [f"item-{n:04d}" for n in range(4)]


def test_every_prefix_of_the_file_can_be_resumed(folder):
    whole = (folder.path / "samples.jsonl").read_bytes()
    for cut in range(0, len(whole), 37):
        (folder.path / "samples.jsonl").write_bytes(whole[:cut])
        with folder.writing() as writer:
            done = {one.key for one in folder.samples}
            for number in range(3):
                if f"item-{number:04d}" not in done:
                    writer.sample(sample(number, True, 8))
        assert folder.samples == [sample(number, True, 8) for number in range(3)]


def test_damage_elsewhere_and_doubled_items_are_errors(folder):
    file = folder.path / "samples.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0][:20], *lines[1:]]) + "\n")
    with pytest.raises(RunError, match="Line 1"):
        list(RunFolder(folder.path).samples)
    file.write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(RunError, match="twice"):
        list(RunFolder(folder.path).samples)


def test_two_writers_exclude_each_other_and_a_dead_one_does_not(folder):
    with folder.writing():
        with pytest.raises(RunError, match="Another process"):
            with folder.writing():
                raise AssertionError("two writers")
    code = (
        "import os, sys; from dlmbench.runs import RunFolder\n"
        "with RunFolder(sys.argv[1]).writing(): os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(folder.path)])
    assert dead.returncode == -9
    with folder.writing():
        pass
    assert sorted(path.name for path in folder.path.iterdir()) == ["manifest.json", "samples.jsonl"]


def test_metrics_mark_a_run_as_finished(folder):
    metrics = aggregate(folder.samples)
    with folder.writing() as writer:
        writer.metrics(metrics)
    assert folder.finished and folder.metrics == metrics == RunFolder(folder.path).metrics
    with folder.writing() as writer:
        writer.unfinish()
    assert not folder.finished


def test_runs_are_found_by_place_and_by_key(tmp_path):
    first, second = make_run(tmp_path, threshold=0.5), make_run(tmp_path / "deep", threshold=0.6)
    assert {run.name for run in find_runs(tmp_path)} == {first.name, second.name}
    assert [run.name for run in find_runs(second.path)] == [second.name]
    renamed = first.path.rename(tmp_path / "baseline")
    key = json.loads((renamed / "manifest.json").read_text())["key"]
    assert Index(tmp_path).at("nano-gsm", "threshold", key).path == renamed
    assert not Index(tmp_path).at("nano-gsm", "threshold", key[::-1]).begun


# --- aggregates -----------------------------------------------------------------------------------------------------


def test_counts_follow_their_definitions():
    metrics = aggregate([sample(0, True, 10, tokens=20, draft=4), sample(1, False, 30, tokens=40)], PRICES)
    assert metrics.accuracy == 0.5 and metrics.nfe == 20 and metrics.prefills == 1
    assert metrics.helpers == {"draft": 2.0}
    assert metrics.tpf == 60 / 40, "tokens of all items over forwards of all items"
    assert metrics.cost == pytest.approx((10 + 30) / 2 + 1.8 + 0.3 * 4 / 2)
    assert metrics.query_tokens == (2 * 32 + 40 * 8 + 4 * 8) / 2
    assert metrics.cut_off == 0 and metrics.unparsed == 0


def test_aggregates_do_not_depend_on_the_order_of_arrival():
    samples = [sample(n, n % 3 == 0, 5 + n) for n in range(40)]
    shuffled = random.Random(0).sample(samples, len(samples))
    assert aggregate(samples, PRICES) == aggregate(shuffled, PRICES)


def test_store_forwards_are_shown_apart_and_counted():
    one = sample(0, True, 8)
    one.counts["target"]["store"] = Work(2, 16, 80, 1.0)
    metrics = aggregate([one])
    assert metrics.nfe == 10 and metrics.store_forwards == 2 and metrics.cost is None


def test_acceptance_and_its_histogram():
    metrics = aggregate([replace(sample(0, True, 8), proposed=8, accepted=[0, 3, 3])])
    assert metrics.acceptance == 6 / 8 and metrics.accepted_lengths == {"0": 1, "3": 2}


def test_prices_between_measured_widths():
    prices = forwards(target_denoise_8=1.0, target_denoise_16=1.4)

    def of(role, kind, shape, **more):
        return price({**prices, **forwards(**more)}, ForwardKey(role, kind, shape))

    assert of("target", "denoise", "16") == 1.4
    assert of("target", "verify", "12") == pytest.approx(1.2), "other kinds of the role stand in"
    assert of("target", "denoise", "4") == 1.0
    assert of("draft", "denoise", "8") is None and of("target", "prefill", "prompt") is None
    assert of("target", "denoise", "99", target_prefill_prompt=3.0) == 1.4


# --- what is not a run's --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "null", '{"name": "a web app", "icons": []}', '{"key": "ab'])
def test_a_foreign_or_broken_manifest_is_passed_over_by_its_name(tmp_path, text):
    ours = make_run(tmp_path)
    other = tmp_path / "aaa"
    other.mkdir()
    (other / "manifest.json").write_text(text)
    (other / "metrics.json").write_text("{}")
    with pytest.warns(RuntimeWarning, match="aaa/manifest.json is not a run's file"):
        assert [run.path for run in Index(tmp_path).runs()] == [ours.path]
    with pytest.warns(RuntimeWarning):
        assert [run.name for run in find_runs(tmp_path) if run.finished] == [ours.name]


def test_a_damaged_line_of_a_bundle_is_passed_over(tmp_path):
    bundle = write_bundle([make_run(tmp_path / "made"), make_run(tmp_path / "made", threshold=0.7)], tmp_path)
    bundle.write_bytes(bundle.read_bytes()[:-40])
    with pytest.warns(RuntimeWarning, match="manifests.jsonl is damaged"):
        assert len(find_runs(tmp_path)) == 3, "two folders, and one line of the two"


def test_a_bundle_keeps_the_runs_that_are_nowhere_else(tmp_path):
    (tmp_path / "clone").mkdir()
    write_bundle([make_run(tmp_path / "elsewhere", threshold=0.7)], tmp_path / "clone")
    second = make_run(tmp_path / "clone")
    write_bundle([second], tmp_path / "clone")
    assert len(find_runs(tmp_path / "clone")) == 2
    third = make_run(tmp_path / "clone", threshold=0.8)
    write_bundle([third], tmp_path / "clone")
    names = [json.loads(line)["folder"] for line in (tmp_path / "clone" / "manifests.jsonl").read_text().splitlines()]
    assert second.name not in names and third.name in names and len(names) == 2, "one that is here speaks for itself"


@pytest.mark.parametrize("name", ["metrics.json", "traces.jsonl"])
def test_a_file_cut_by_a_crash_is_as_good_as_missing(tmp_path, name):
    run = make_run(tmp_path)
    (run.path / name).write_text('{"items": 1')
    with pytest.warns(RuntimeWarning, match=name):
        again = RunFolder(run.path)
        assert again.traces == [] and again.finished is (name == "traces.jsonl")


def test_linked_runs_are_found_once_and_a_link_in_a_circle_ends(tmp_path):
    ours = make_run(tmp_path / "real")
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "first").symlink_to(ours.path)
    (tmp_path / "chosen" / "again").symlink_to(ours.path)
    (tmp_path / "chosen" / "round").symlink_to(tmp_path)
    assert [run.key for run in find_runs(tmp_path / "chosen")] == [ours.key]
