"""What names a network, and what is read for it: hashes, networks in memory, memory that ends while loading.

Run: pytest tests/unit/test_hashes.py
"""

import importlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import as_hub, edit, make_checkpoint, tensors, write_weights

import dlmbench
from dlmbench import files
from dlmbench.engine import Request, build, network_hashes
from dlmbench.errors import RequestError, RunError
from dlmbench.files import checkpoint_hash, read_json, weights_hash
from dlmbench.models.presets import PRESETS
from dlmbench.request import RunSpec
from dlmbench.runs.local import LocalRunner

building = importlib.import_module("dlmbench.engine.build")  # the name in the package is the function
SDAR = "SDAR-1.7B-Chat"


@pytest.fixture
def digests(tmp_path, monkeypatch):
    """Names of the files whose bytes are read for a hash, where every file counts as large; a cache of its own."""
    read, digest = [], files._digest
    monkeypatch.setattr(files, "_digest", lambda file: (read.append(file.name), digest(file))[1])
    monkeypatch.setattr(files, "LARGE", 0)
    monkeypatch.setattr(files, "_seen", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return read


def _old(folder):
    """As if nobody had touched the files for a while."""
    for file in folder.iterdir():
        os.utime(file, (1e9, 1e9))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_another_configuration_is_another_network(file, tmp_path):
    folder = make_checkpoint(tmp_path / "m", SDAR)
    spec = RunSpec(method="simsd", task="nano-gsm", model=str(folder), draft=str(folder), block_length=4)
    before, weights = network_hashes(spec.resolve()), weights_hash(folder)
    assert set(before) == {"target", "draft"}
    edit(folder / file, rms_norm_eps=0.5, pad_token_id=3)
    after = network_hashes(spec.resolve())
    assert all(after[role] != before[role] for role in before)
    assert weights_hash(folder) == weights, "a head trained beside these weights still fits"


def test_files_that_are_not_read_are_not_hashed(tmp_path):
    folder = make_checkpoint(tmp_path / "m", SDAR)
    before = checkpoint_hash(folder)
    for name in ("model-00001-of-00009.safetensors", "adapter_model.safetensors", "README.md", "training_args.json"):
        (folder / name).write_bytes(b"something else")
    assert checkpoint_hash(folder) == before


def test_a_network_in_memory_is_read_again_when_its_files_changed(tmp_path):
    folder = make_checkpoint(tmp_path / "m", SDAR)
    load = lambda: dlmbench.load(str(folder), block_length=4, device="cpu").target  # noqa: E731
    first = load()
    assert load().model is first.model
    edit(folder / "config.json", rms_norm_eps=0.5)
    assert load().config.rms_norm_eps == 0.5


def test_the_hubs_cache_names_large_files_by_their_hash_so_that_they_are_not_read(tmp_path, digests):
    folder = make_checkpoint(tmp_path / "m", SDAR)
    snapshot = as_hub(folder, tmp_path / "hub", "owner/model")
    assert weights_hash(snapshot) == weights_hash(folder)
    assert len(digests) == 2, "those of the plain folder"


def test_a_file_is_read_once_for_its_hash_and_again_when_it_changed(tmp_path, digests, monkeypatch, capsys):
    monkeypatch.setattr(files, "_FRESH", -1.0)
    folder = make_checkpoint(tmp_path / "m", SDAR)
    _old(folder)
    first = weights_hash(folder)
    assert "for its hash" in capsys.readouterr().err
    files._seen.clear()  # another process
    assert weights_hash(folder) == first and len(digests) == 2
    weight = sorted(folder.glob("*.safetensors"))[0]
    data = bytearray(weight.read_bytes())
    data[-1] ^= 1
    weight.write_bytes(data)
    os.utime(weight, (1e9, 1e9))  # even with the old time of change
    files._seen.clear()
    assert weights_hash(folder) != first


@pytest.mark.parametrize("what", ["a file in its place", "no JSON", "a list"])
def test_a_cache_that_cannot_be_used_is_done_without(what, tmp_path, digests, monkeypatch):
    monkeypatch.setattr(files, "_FRESH", -1.0)
    if what == "a file in its place":
        (tmp_path / "cache").write_text("")
    else:
        (tmp_path / "cache/dlmbench").mkdir(parents=True)
        (tmp_path / "cache/dlmbench/hashes.json").write_text("{" if what == "no JSON" else "[]")
    folder = make_checkpoint(tmp_path / "m", SDAR)
    assert weights_hash(folder) == weights_hash(folder)
    assert len(digests) == 2, "this process remembers"


def test_an_engine_is_built_without_reading_weights_for_a_hash(monkeypatch):
    def refuse(file):
        raise AssertionError(f"{file} was hashed")

    monkeypatch.setattr(files, "_digest", refuse)
    engine = dlmbench.load("nano2", method="threshold", device="cpu")
    assert engine.generate([Request("k", (20, 21), 4)])[0].ids
    assert "weights" not in engine.describe()


def test_a_head_is_refused_beside_other_weights_than_it_was_trained_on(tmp_path):
    dlmbench.load("nano2", method="mrp", device="cpu")
    with pytest.raises(RequestError, match="trained on backbone weights"):
        dlmbench.load("nano2-rcd", method="mrp", head="nano2-mrp", device="cpu")


# --- memory -----------------------------------------------------------------------------------------------------------


def _place(name, device):
    return building._Place(name, (), device, "bfloat16")


@pytest.mark.parametrize("device, left", [("cpu", {"b", "c", "d"}), ("cuda", {"d"})])
def test_networks_that_a_cell_does_not_need_make_room_first(device, left, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(building, "_networks", {_place(name, device): name for name in "abcd"})
    building._make_room([_place("d", device), _place("e", device)], device)
    assert {place.folder for place in building._networks} == left and bool(emptied) == (device == "cuda")


def test_memory_that_ends_while_loading_is_one_sentence_and_keeps_nothing(tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path / "big", SDAR)

    def end(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB.\nMore words")

    monkeypatch.setattr(building, "load_checkpoint", end)
    with pytest.raises(RunError, match="memory of cpu ended while big was loaded") as failure:
        build(RunSpec(method="threshold", task="nano-gsm", model=str(folder), block_length=4, device="cpu").resolve())
    assert "\n" not in str(failure.value) and not building._networks
    assert failure.value.__context__ is None, "a traceback would hold what was half loaded"


def test_a_cell_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    cells = [SimpleNamespace(label=f"m{i}", spec=SimpleNamespace(task="t"), preset=SimpleNamespace(name=f"big{i}"))
             for i in range(3)]  # fmt: skip
    local, done = LocalRunner(), []

    def run_one(cell):
        if cell.label == "m1":
            raise RunError("The memory of cuda ended.")
        done.append(cell.label)
        return cell.label

    monkeypatch.setattr(local, "run_one", run_one)
    with pytest.raises(RunError, match="1 of 3 runs failed, the other 2 are .* again. m1 on t with big1: The"):
        local.run(cells)
    assert done == ["m0", "m2"] and "m1 on t" in capsys.readouterr().err
    with pytest.raises(RunError, match="^The memory of cuda ended.$"):
        local.run(cells[1:2])


def test_a_shipped_head_knows_the_weights_of_its_backbone():
    for head, model in (
        ("nano2-mrp", "nano2"), ("nano2-mrp-remask", "nano2"), ("nano2-adjust", "nano2-llada"),
        ("nano2-policy", "nano2-llada"),
    ):  # fmt: skip
        record = read_json(Path(PRESETS[head].location) / "config.json")
        assert record["backbone"]["weights"] == weights_hash(Path(PRESETS[model].location))


def test_weights_written_in_other_shards_are_another_network(tmp_path):
    folder = make_checkpoint(tmp_path / "m", SDAR)
    before = weights_hash(folder)
    write_weights(folder, tensors(folder))
    assert weights_hash(folder) != before
