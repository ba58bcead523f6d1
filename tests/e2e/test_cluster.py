"""A sweep on a cluster ends with the samples of a local one, whoever dies. Run: pytest tests/e2e/test_cluster.py

Most tests replace Ray by a pool that works in this process; those with a real two-node cluster are slow and need ray.
"""

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import make_data, make_model

from dlmbench.cli.app import main
from dlmbench.errors import RequestError, RunError
from dlmbench.request import SweepSpec
from dlmbench.request.resolved import Anywhere
from dlmbench.runs import find_runs
from dlmbench.runs.local import LocalRunner
from dlmbench.runs.pool import Lost, Pool, WorkerSlot
from dlmbench.runs.ray import TRIES, RayRunner
from dlmbench.runs.record import plain
from dlmbench.runs.sweep import run_sweep
from dlmbench.runs.worker import Worker

ITEMS = 20


@pytest.fixture(autouse=True)
def threads():
    """A worker sets the number of torch's threads, here in the process of the tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    make_model(folder / "tiny")
    make_data(folder / "data", ITEMS)
    return folder


def sweep_of(place, out, gen_length=16, **more):
    given = dict(
        method="static,threshold", set=["static.k=1,4"], threshold="0.005", task="gsm8k", num_fewshot="0",
        data_dir=str(place / "data"), model=str(place / "tiny"), gen_length=str(gen_length), block_length="8",
        batch_size="2", device="cpu", out=str(place / out),
    )  # fmt: skip
    return SweepSpec.from_flags({**given, **more})


def run(sweep, runner):
    return run_sweep(sweep, sweep.resolve(Anywhere())[0], runner).folders


def content(out):
    """What must not depend on who did it: ids, text, scores and counts of every item of every run."""
    return {
        folder.name: sorted(
            json.dumps(plain(replace(sample, seconds=0.0)), sort_keys=True) for sample in folder.samples
        )
        for folder in find_runs(out)
    }


@pytest.fixture(scope="module")
def expected(place):
    run(sweep_of(place, "local"), LocalRunner())
    return content(place / "local")


class InProcess:
    """A pool of pretended workers on pretended nodes, which do their shards when they are waited for."""

    worker = None

    def __init__(self, slots=("a", "a", "b"), lose=()):
        self.slots = [WorkerSlot(None, "cpu", node) for node in slots]
        self.lose = set(lose)  # numbers of the shards, in the order in which they were given, that are lost
        self.given, self.alone = [], 0

    def capacity(self, kind):
        return len(self.slots) if kind == "cpu" else 0

    def staff(self, kind, wanted):
        pass

    def give(self, slot, shard):
        assert slot.free
        slot.shard = shard
        if shard.measures:
            assert not [other for other in self.slots if other.node == slot.node and other.shard and other is not slot]
            self.alone += 1
        self.given.append((slot, shard))

    def wait(self):
        number = next((n for n, (slot, shard) in enumerate(self.given) if slot.shard is shard), None)
        if number is None:
            raise AssertionError("nobody works and nobody is given work")
        slot, shard = self.given[number]
        slot.shard = None
        if number in self.lose:
            self.slots.remove(slot)
            self.slots.append(WorkerSlot(None, "cpu", slot.node))
            return [(shard, Lost())]
        InProcess.worker = InProcess.worker or Worker()
        return [(shard, InProcess.worker.work(shard))]


@pytest.mark.parametrize("slots", [("a",), ("a", "a", "b", "c")], ids=["one worker", "four workers"])
def test_any_number_of_workers_gives_the_samples_of_the_local_executor(place, expected, slots):
    out, pool = f"with-{len(slots)}", InProcess(slots)
    folders = run(sweep_of(place, out), RayRunner(pool))
    assert content(place / out) == expected and len(folders) == 3
    assert all(folder.finished and len(folder.traces) == 4 for folder in folders)
    assert not list((place / out).rglob(".lock"))
    assert pool.alone == 3, "every cell was measured, with its node for itself"
    prices = [folder.manifest.prices for folder in folders]
    shared = set.intersection(*map(set, prices))
    assert shared and all(len({one[width] for one in prices}) == 1 for width in shared), "one price for one forward"
    again = InProcess(slots)
    run(sweep_of(place, out), RayRunner(again))
    assert not again.given, "a finished sweep gives nobody work"


def test_lost_pieces_are_done_again_and_nothing_twice(place, expected):
    pool = InProcess(lose=(0, 3, 4, 7))
    cluster = RayRunner(pool)
    run(sweep_of(place, "lossy"), cluster)
    assert cluster.lost == 4
    assert content(place / "lossy") == expected


def test_a_stopped_sweep_goes_on_with_either_executor(place, expected):
    class Stops(InProcess):
        def wait(self):
            if len(self.given) > 4:
                raise KeyboardInterrupt
            return super().wait()

    with pytest.raises(KeyboardInterrupt):
        run(sweep_of(place, "stopped"), RayRunner(Stops()))
    assert not list((place / "stopped").rglob(".lock"))
    left = [len(folder.samples) for folder in find_runs(place / "stopped")]
    assert 0 < sum(left) < 3 * ITEMS
    run(sweep_of(place, "stopped"), LocalRunner())
    assert content(place / "stopped") == expected


def test_a_piece_that_kills_its_workers_ends_the_sweep(place):
    with pytest.raises(RunError, match="lost one after another.*same command goes on"):
        run(sweep_of(place, "deadly"), RayRunner(InProcess(("a",), lose=range(TRIES))))


def test_a_worker_with_other_files_is_refused(place):
    shard = None

    class Keeps(InProcess):
        def wait(self):
            nonlocal shard
            shard = self.given[0][1]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(sweep_of(place, "elsewhere"), RayRunner(Keeps()))
    make_model(place / "other", seed=1)
    with pytest.raises(RunError, match="another run than the driver"):
        Worker().work(replace(shard, spec=replace(shard.spec, model=str(place / "other"))))


def test_devices_are_the_clusters(place):
    with pytest.raises(RequestError, match="the cluster has none"):
        run(sweep_of(place, "gpus", device="cuda"), RayRunner(InProcess()))
    with pytest.raises(RequestError, match="Ray deals out the GPUs"):
        run(sweep_of(place, "gpus", device="cuda:1"), RayRunner(InProcess()))
    cluster = RayRunner(SimpleNamespace(capacity=lambda kind: 2))
    cell = sweep_of(place, "gpus", device="auto").resolve(Anywhere())[0][0]
    placed = cell.on(cluster.machine)
    assert (placed.device, placed.dtype) == ("cuda", "bfloat16")


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(["sweep", "--method", "static", "--task", "nano-gsm", *arguments])
    assert leaving.value.code == 2
    return capsys.readouterr().err


def test_without_ray_one_sentence_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'dlmbench[cluster]'" in refusal(capsys, "--executor", "ray")


def test_executor_options_are_checked(capsys):
    assert "local or ray" in refusal(capsys, "--executor", "slurm")
    assert "belongs to --executor ray" in refusal(capsys, "--address", "auto")


def test_an_address_where_nobody_listens_is_refused_at_once(capsys):
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    assert "No Ray cluster answers at 127.0.0.1:1" in refusal(capsys, "--executor", "ray", "--address", "127.0.0.1:1")


# --- a real cluster -------------------------------------------------------------------------------------------------


@pytest.fixture
def two_nodes(monkeypatch):
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import RayRunner as Nodes

    small = dict(num_cpus=1, object_store_memory=100 << 20)
    nodes = Nodes(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    victim = nodes.add_node(**small)
    yield nodes, victim
    nodes.shutdown()


@pytest.mark.slow
def test_a_node_killed_in_mid_sweep_costs_nothing_but_time(place, two_nodes):
    nodes, victim = two_nodes
    run(sweep_of(place, "calm", gen_length=96), LocalRunner())
    out = place / "stormy"
    sweep = sweep_of(place, "stormy", gen_length=96)
    killed = []

    def kill(pool):
        """Take the second node away while its worker is at work and samples of others are here."""
        began = time.monotonic()
        while time.monotonic() - began < 120:
            at_work = [slot for slot in pool.slots if slot.node == victim.node_id and slot.shard]
            written = sum(file.read_bytes().count(b"\n") for file in out.glob("*/samples.jsonl"))
            if at_work and 0 < written < 2 * ITEMS:
                killed.append(at_work[0].shard)
                nodes.remove_node(victim, allow_graceful=False)
                return
            time.sleep(0.002)

    with Pool(nodes.address) as pool:
        thread = threading.Thread(target=kill, args=(pool,))
        thread.start()
        cluster = RayRunner(pool)
        folders = run(sweep, cluster)
        thread.join()
    assert killed and cluster.lost == 1
    assert content(out) == content(place / "calm")
    assert all(folder.finished and len(folder.samples) == ITEMS for folder in folders)


@pytest.mark.slow
def test_a_cluster_of_its_own_from_the_command_line(place, expected, capsys):
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    arguments = ["--method", "static,threshold", "--set", "static.k=1,4", "--threshold", "0.005", "--task", "gsm8k"]
    arguments += ["--num-fewshot", "0", "--data-dir", str(place / "data"), "--model", str(place / "tiny")]
    arguments += ["--gen-length", "16", "--block-length", "8", "--batch-size", "2", "--device", "cpu"]
    main_code = None
    try:
        main(["sweep", *arguments, "--out", str(place / "own"), "--executor", "ray"])
    except SystemExit as leaving:
        main_code = leaving.code
    assert main_code in (0, None), capsys.readouterr().err
    assert content(place / "own") == expected
