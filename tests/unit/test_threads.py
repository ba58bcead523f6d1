"""How the number of threads is chosen, on a made-up clock. Run: pytest tests/unit/test_threads.py"""

import pytest
import torch

from dlmbench import threads
from dlmbench.backbone import network
from dlmbench.backbone.cache import KVCache
from dlmbench.bench.networks import random_model
from dlmbench.threads import Threads, Watch


class Machine:
    """A clock that moves when work is done: `cost` maps a number of threads to the seconds of a call."""

    def __init__(self, monkeypatch, most=2, **cost):
        self.now, self.calls, self.cost = 0.0, [], {int(n[1:]): seconds for n, seconds in cost.items()}
        self.number = most
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.number)
        monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(self, "number", n))
        for name in threads.GIVEN:
            monkeypatch.delenv(name, raising=False)
        self.threads = Threads(clock=lambda: self.now)

    def work(self):
        self.calls.append(self.number)
        self.now += self.cost[self.number]

    def step(self, watch, times=1):
        for _ in range(times):
            self.now += 10 * self.cost[self.number]
            watch.step(10 * self.cost[self.number])


QUIET, BUSY = {1: 0.003, 2: 0.002}, {1: 0.003, 2: 0.2}


def test_the_faster_number_is_taken(monkeypatch):
    machine = Machine(monkeypatch, t1=0.003, t2=0.002)
    machine.threads.choose(machine.work)
    assert machine.number == 2 and "3.00 with 1, 2.00 with 2" in machine.threads.why
    machine.cost = BUSY
    machine.threads.choose(machine.work)
    assert machine.number == 1 and machine.threads.changes == 1


def test_more_threads_that_save_nothing_to_speak_of_are_not_taken(monkeypatch):
    machine = Machine(monkeypatch, t1=0.003, t2=0.00295)
    machine.threads.choose(machine.work)
    assert machine.number == 1


def test_many_cores_are_tried_by_doubling(monkeypatch):
    machine = Machine(monkeypatch, most=6, t1=0.8, t2=0.4, t4=0.3, t6=0.35)
    machine.threads.choose(machine.work)
    assert machine.number == 4 and list(dict.fromkeys(machine.calls)) == [1, 2, 4, 6]


def test_a_hopeless_number_is_not_timed_to_the_end(monkeypatch):
    machine = Machine(monkeypatch, t1=0.003, t2=0.2)
    machine.threads.choose(machine.work)
    assert machine.calls.count(2) == 2, "one call to come near, one that tells"


@pytest.mark.parametrize("name", threads.GIVEN)
def test_a_number_that_the_user_has_set_stays(monkeypatch, name):
    machine = Machine(monkeypatch, **{"t1": 0.001, "t2": 0.2})
    monkeypatch.setenv(name, "2")
    machine.threads.choose(machine.work)
    assert machine.number == 2 and machine.threads.why == f"set by {name}" and not machine.calls


def test_a_worker_s_share_is_never_exceeded(monkeypatch):
    machine = Machine(monkeypatch, most=4, t1=0.004, t2=0.002, t4=0.001)
    machine.threads.at_most(2)
    machine.threads.choose(machine.work)
    assert machine.number == 2 and 4 not in machine.calls


def test_steps_that_become_slow_bring_one_thread_and_a_quiet_machine_brings_them_back(monkeypatch):
    machine = Machine(monkeypatch, t1=0.003, t2=0.002)
    watch = Watch(machine.threads)
    watch.begin(machine.work, (16, 8))
    machine.step(watch, 20)
    assert machine.number == 2
    machine.cost = BUSY
    machine.step(watch)
    assert machine.number == 1, "after one slow step"
    machine.step(watch, 20)
    assert machine.number == 1
    machine.cost = QUIET
    machine.step(watch, int(2 * threads.WAITS[1] / 0.03))
    assert machine.number == 2


def test_steps_that_are_dear_by_themselves_do_not_make_it_look_all_the_time(monkeypatch):
    """Drafting and verifying alternate; every tenth step takes five times as long as the others."""
    machine = Machine(monkeypatch, t1=0.0003, t2=0.0002)
    watch = Watch(machine.threads)
    watch.begin(machine.work, (1, 8))
    first = len(machine.calls)
    for number in range(2000):
        seconds = 0.01 if number % 10 == 9 else 0.002
        machine.now += seconds
        watch.step(seconds)
    trials = (len(machine.calls) - first) / first
    assert trials <= 4 and watch.spent < 0.01 * machine.now


def test_another_size_of_steps_is_looked_at_and_the_same_is_not(monkeypatch):
    machine = Machine(monkeypatch, t1=0.003, t2=0.002)
    watch = Watch(machine.threads)
    watch.begin(machine.work, (16, 8))
    seen = len(machine.calls)
    watch.begin(machine.work, (16, 8))
    assert len(machine.calls) == seen
    watch.begin(machine.work, (1, 8))
    assert len(machine.calls) == 2 * seen


def test_what_is_measured_under_changing_threads_is_measured_again_or_said(monkeypatch):
    machine = Machine(monkeypatch, t1=0.003, t2=0.002)
    watch = Watch(machine.threads)
    watch.begin(machine.work, 0)
    assert watch.steady(lambda: "rate") == ("rate", True)
    turns = iter([BUSY, BUSY, BUSY])
    assert watch.steady(lambda: setattr(machine, "cost", next(turns))) == (None, True), "the second time it was steady"
    flip = iter([QUIET, BUSY] * 4)
    assert watch.steady(lambda: setattr(machine, "cost", next(flip)))[1] is False


def test_what_is_timed_sees_as_many_keys_as_the_steps_will(monkeypatch):
    made = []

    class Noted(KVCache):
        def __init__(self, config, rows, capacity, *place):
            made.append((config.num_layers, rows, capacity))
            super().__init__(config, rows, capacity, *place)

    monkeypatch.setattr(network, "KVCache", Noted)
    net = network.Network("target", random_model("nano", "cpu", torch.float32), 8)
    for size in ((16, 8, 256), (16, 8, 8192), (2, 900, 900)):  # the last: whole rows
        work = net.sample(*size)
        with torch.inference_mode():
            first = work()
        assert torch.equal(work(), first), "asked for inside of inference mode or not"
    assert made == [(1, 16, 256), (1, 8, 8192), (1, 1, 900)], "one layer, once, and fewer rows where that is much"
