"""Recorded steps without a GPU, on a tape of operators (`dlmbench.verify.tape`)."""

import gc
import weakref
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from dlmbench.decoders import testing
from dlmbench.decoders.predict import Sampling
from dlmbench.engine import Engine, Request, calibrate
from dlmbench.engine.graphs import Binding, CUDARecording, StepGraphs
from dlmbench.registry import DECODERS
from dlmbench.verify.tape import Tape

DECODER_NAMES = [
    name
    for name, cls in ((name, DECODERS.get(name)) for name in DECODERS.names())
    if testing.traits_of(cls(), cls.attention[0]).lag != 0
]


SWEEP = [  # settings whose steps take other ways than the defaults: decoder, attention, its options, the engine's
    ("entropy", "block_causal", "rule=eb", {}),
    ("entropy", "full", "rule=eb,proxy=margin", {}),
    ("threshold", "block_causal", "rule=factor", {}),
    ("threshold", "full", "rule=planned,steps=4", {}),
    ("threshold", "block_causal", "steps=2", {}),
    ("static", "full", "steps=2,schedule=quota", {}),
    ("static", "full", "steps=2,schedule=dream,alg_temp=0.2", {}),
    ("static", "full", "order=origin,schedule=dream", {}),
    ("static", "block_causal", "order=margin", {}),
    ("rcd", "block_causal", "latent_strategy=top1_token", {}),
    ("rcd", "block_causal", "sampler=static,k=2,residual_temperature=0.9", {}),
    ("klass", "full", "only=kl", {}),
    ("prophet", "full", "answer_start=2", {}),
    ("sched", "full", "max_change=1,high=0.4,low=0.1", {}),
    ("sched", "block_causal", "max_change=0.9,high=0.4,low=0,patience=1,stat=median", {}),
    ("credit", "full", "selector=hierarchy,low=0.05", {}),
    ("entropy", "full", "rule=gate,budget=2", {}),
    ("multiblock", "full", "best=first,gate=0.5", {"fill_after_eos": True}),
    ("rcr", "full", "schedule=cosine,remask=false", {}),
    ("adablock", "full", "tau=0.5,delimiters=5+6+7+8+9+10+11+12,delimiter_tau=0", {}),
    ("daedal", "full", "tau=0.5,low=0.3,initial=4,expansion=3,enough=0.1,checked=4", {}),
    ("saber", "full", "rule=token", {}),
    ("adjust", "full", "schedule=dream", {}),
    ("adjust", "full", "K=3", {}),
    ("learned_policy", "full", "mode=bernoulli-argmax", {}),
    ("learned_policy", "full", "full_context=false", {}),
    ("mrp", "block_causal", "mode=speculative", {}),
    ("mrp", "block_causal", "mode=direct", {}),
    ("mrp", "block_causal", "mode=residual_remask", {}),
    ("mrp", "block_causal", "mode=speculative,K=4,fresh_drafts=true,seed_commits=true", {}),
    ("mrp", "block_causal", "mode=direct,mrp_prefix_cache=false", {}),
    ("static", "block_causal", "", {"sampling": Sampling(1.0, 0, 0.9)}),
    ("static", "block_causal", "", {"sampling": Sampling(1.0, 5, 0.9, "truncated")}),
    ("static", "full", "", {"sampling": Sampling(0.7, 5, 0.9, "filtered")}),
    ("static", "full", "", {"sampling": Sampling(0.0, 0, 1.0, "clean", (1,), (1, 2))}),
    ("threshold", "full", "", {"fill_after_eos": True}),
    ("threshold", "block_causal", "", {"fixed": ((2, 7), (3, 8))}),
    ("static", "full", "", {"guidance": 1.0}),
    ("static", "block_causal", "", {"store": "separate"}),
    ("mrp", "block_causal", "mode=direct", {"store": "separate"}),
]
DEFAULTS = [(name, kind, "", {}) for name in DECODER_NAMES for kind in DECODERS.get(name).attention]


def make(name, attention, graphs, options="", batch_size=3, store="fused", guidance=0.0, **engine):
    """An engine that records with `graphs`; without, the same steps, in the same shapes, are not recorded."""
    cls = DECODERS.get(name)
    decoder = cls(testing.options_of(cls, options))
    networks = testing.tiny_networks(decoder, attention)
    for network in networks.values():
        network.store_mode = store
    networks["target"].guidance = guidance
    made = Engine(networks, decoder, batch_size=batch_size, lag=1, graphs=graphs or Tape, **engine)
    if not graphs:
        made.graphs.refused = "not here"
    return made


def run(name, attention, graphs, requests, **options):
    engine = make(name, attention, graphs, **options)
    return engine, engine.generate(requests)


def told(generations):
    """What two ways of decoding must agree on."""
    return [(g.raw_ids, g.counts, g.fallbacks, g.proposed, g.accepted) for g in generations]


def forgetful(engine):
    """After every step, what it bound anew and nobody names as carried is lost."""
    step, step_round = engine.step, engine.step.round

    def then_forget(*args):
        owners = [step.canvas, step.counter, engine.decoder, *engine.nets.values()]
        before = [dict(vars(owner)) for owner in owners]
        result = step_round(*args)
        for owner, known in zip(owners, before):
            for name, value in vars(owner).items():
                holds = any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))
                if holds and value is not known.get(name) and name not in getattr(owner, "carried", ()):
                    setattr(owner, name, None)
        return result

    step.round = then_forget
    return engine


FIRST = {name: number for number, (name, *_) in reversed(list(enumerate(SWEEP)))}  # of each method's other settings
RARER = [
    one if FIRST[one[0]] == number else pytest.param(*one, marks=pytest.mark.slow) for number, one in enumerate(SWEEP)
]


@pytest.mark.parametrize("name, attention, options, others", [*DEFAULTS, *RARER])
def test_recorded_steps_equal_plain_ones(name, attention, options, others):
    requests = testing.random_requests(3, 4)
    tapes = []
    plain = forgetful(make(name, attention, False, options=options, **others)).generate(requests)
    engine, replayed = run(
        name, attention, lambda pool: tapes.append(Tape(pool)) or tapes[-1], requests, options=options, **others
    )
    assert engine.graphs.refused is None
    assert told(replayed) == told(plain)
    assert len(tapes) == 1 and tapes[0].replays > 5  # one shape; every step but the first is a replay


def test_recorded_steps_serve_the_next_call_too():
    tapes, requests = [], testing.random_requests(3)
    engine, first = run("threshold", "block_causal", lambda pool: tapes.append(Tape(pool)) or tapes[-1], requests)
    again = engine.generate(requests[2:])
    assert [g.raw_ids for g in again] == [g.raw_ids for g in first[2:]] and len(tapes) == 1
    engine.generate([requests[0]])  # one row: other buffers
    assert len(tapes) == 2 and len(engine.graphs.steps) == 1


def test_a_step_that_cannot_be_recorded_runs_plainly_and_says_why():
    class Reading(DECODERS.get("static")):
        def decide(self, view, forward):
            self.seen = forward.logits.amax().item()
            return super().decide(view, forward)

    requests, decoder = testing.random_requests(3), Reading()
    engine = Engine(testing.tiny_networks(decoder, "block_causal"), decoder, batch_size=3, lag=1, graphs=Tape)
    _, plain = run("static", "block_causal", False, requests)
    assert [g.raw_ids for g in engine.generate(requests)] == [g.raw_ids for g in plain]
    assert "cannot be recorded here (operation not permitted while recording: item)" in str(engine.graphs.refused)


def test_a_replay_that_differs_is_found_before_it_is_used():
    class Forgetful(Tape):
        def replay(self):
            pass

    requests = testing.random_requests(3)
    engine, generations = run("static", "block_causal", Forgetful, requests)
    _, plain = run("static", "block_causal", False, requests)
    assert engine.graphs.refused == "a recorded step left other results than a plain one"
    assert [g.raw_ids for g in generations] == [g.raw_ids for g in plain]


def test_tensors_bound_anew_return_to_where_they_began():
    """Two that change places are the hard case: each must be read before it is written."""
    state = {"a": torch.tensor([1]), "b": torch.tensor([2]), "c": torch.tensor([0])}
    addresses = {name: tensor.data_ptr() for name, tensor in state.items()}

    def body():
        state["a"], state["b"] = state["b"], state["a"]
        state["c"] = state["c"] + state["a"]
        return state["c"] * 10

    graphs = StepGraphs(Tape)
    results = [int(graphs.run("step", body, lambda: [Binding(state, name) for name in state])) for _ in range(4)]
    assert results == [20, 30, 50, 60] and graphs.refused is None and len(graphs.steps) == 1
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == addresses


class Pooled(Tape):
    """Refuses a pool whose recordings are all gone, as CUDA does."""

    alive = Counter()

    def __init__(self, pool=None):
        super().__init__(pool)
        if pool is not None and not self.alive[pool]:
            raise RuntimeError("use_count > 0: a memory pool was used again after its last graph")
        self.alive[self.pool] += 1
        weakref.finalize(self, self.alive.subtract, [self.pool])


def test_a_memory_pool_is_shared_while_one_of_its_recordings_lives_and_never_used_again():
    requests = testing.random_requests(3)
    Pooled.alive.clear()
    engine = make("threshold", "block_causal", Pooled)
    engine.generate([Request(str(i), (5,) * 40, 100) for i in range(3)])  # two shapes: 128 keys in sight, then all
    assert engine.graphs.refused is None and sum(Pooled.alive.values()) > 1
    assert len([pool for pool, graphs in Pooled.alive.items() if graphs]) == 1
    engine.generate(requests[:1])  # one row: other buffers, so other recordings
    engine.release()
    engine.generate(requests)
    other = make("static", "block_causal", Pooled)
    other.generate(requests)
    assert engine.graphs.refused is None and other.graphs.refused is None
    assert len([pool for pool, graphs in Pooled.alive.items() if graphs]) == 2  # each engine has its own


def test_an_engine_goes_with_its_last_reference_and_its_graphs_with_it():
    engine = make("threshold", "block_causal", Tape)
    engine.generate(testing.random_requests(3, 3))
    gone = [weakref.ref(engine), weakref.ref(next(iter(engine.graphs.steps.values())).recording)]
    gc.collect()
    gc.disable()
    try:
        del engine
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_nothing_is_collected_while_a_step_is_recorded():
    seen = []

    class Watching(Tape):
        def record(self, body):
            seen.append(gc.isenabled())
            return super().record(body)

    run("static", "block_causal", Watching, testing.random_requests(3, 3))
    assert seen == [False] and gc.isenabled()


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_memory_that_ends_while_a_step_is_recorded_halves_the_batch():
    class Tight(Tape):
        def record(self, body):
            result = super().record(body)
            if result[0].shape[0] > 1:
                try:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
                finally:  # and then the recording cannot be ended either
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            return result

    requests = testing.random_requests(3)
    engine, generations = run("static", "block_causal", Tight, requests)
    _, plain = run("static", "block_causal", False, requests)
    assert engine.batch_size == 1 and engine.graphs.refused is None and engine.graphs.steps
    assert [g.raw_ids for g in generations] == [g.raw_ids for g in plain]


class FakeCUDA:
    """As much of torch.cuda as a recording asks for: the current device and stream, and a capture that may fail."""

    def __init__(self, monkeypatch, fails=""):
        self.device, self.stream, self.fails, self.ended = 0, "main", fails, []
        names = ("current_device", "current_stream", "set_stream", "graph", "device")
        for name in names:
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}" if name == "device" else name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        monkeypatch.setattr("dlmbench.engine.graphs._side_stream", lambda device: f"side {device}")
        monkeypatch.setattr(
            torch._C, "_cuda_endAllocateToPool", lambda device, pool: self.ended.append(device), raising=False
        )

    def current_device(self):
        return self.device

    def current_stream(self, device=None):
        return self.stream

    def set_stream(self, stream):
        self.stream = stream

    @contextmanager
    def _device(self, device):
        before, self.device = self.device, device.index or 0
        yield
        self.device = before

    @contextmanager
    def graph(self, graph, pool, stream):
        before, self.stream = self.stream, stream
        if self.fails == "begin":
            raise RuntimeError("capture_begin")
        try:
            yield
        finally:
            if self.fails == "end":
                raise RuntimeError("capture_end")
        self.stream = before


@pytest.mark.parametrize("fails", ["begin", "end"])
def test_a_capture_that_fails_leaves_the_process_on_its_stream(monkeypatch, fails):
    cuda = FakeCUDA(monkeypatch, fails)
    with pytest.raises(RuntimeError, match=f"capture_{fails}"):
        CUDARecording().record(lambda: None)
    assert cuda.stream == "main" and cuda.ended == [0]


def test_what_failed_first_is_why_a_step_cannot_be_recorded():
    class Broken(Tape):
        def record(self, body):
            try:
                raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
            finally:
                raise RuntimeError("CUDA error: capture invalidated")

    try:
        raise torch.OutOfMemoryError("of somebody else, who now tries it with us")
    except torch.OutOfMemoryError:
        engine, _ = run("static", "block_causal", Broken, testing.random_requests(3, 3))
    assert "(Cannot copy between CPU and CUDA tensors during CUDA graph capture)" in engine.graphs.refused


def test_everything_an_engine_does_happens_on_its_own_device(monkeypatch):
    engine = make("static", "block_causal", Tape)
    cuda, seen = FakeCUDA(monkeypatch), []
    engine.device = torch.device("cuda:1")
    serving = SimpleNamespace(serve=lambda queue, done: done(0, seen.append(cuda.device)))
    monkeypatch.setattr(engine, "_prepare", lambda *_: seen.append(cuda.device) or serving)
    monkeypatch.setattr(calibrate, "prices", lambda *_: seen.append(cuda.device))
    recording = SimpleNamespace(replay=lambda: seen.append((cuda.device, torch.is_inference_mode_enabled())))
    engine.graphs.steps["step"] = SimpleNamespace(recording=recording)
    engine.generate(testing.random_requests(3, 1))
    engine.calibrate()
    engine.replay_seconds(1)
    assert seen[:3] == [1, 1, 1] and set(seen[3:]) == {(1, True)} and cuda.device == 0
    cuda.device = 1
    with pytest.raises(ZeroDivisionError):
        CUDARecording().record(lambda: seen.append(cuda.stream) or 1 / 0)
    assert seen[-1] == "side 1"


def test_a_decoder_sees_its_networks_before_the_engine_asks_how_late_flags_may_be_read():
    for start, lag in (("warm", 0), ("cold", 1)):
        cls = DECODERS.get("rcd")
        decoder = cls(testing.options_of(cls, f"residual_init={start}"))
        networks = testing.tiny_networks(decoder, "block_causal", "meta")
        engine = Engine(networks, decoder, graphs=False)
        assert engine.lag == lag


def test_float_state_that_a_recording_leaves_behind_is_found():
    class Stale(Tape):
        """Leaves out what is written into float tensors of this shape, as an unnamed copy would."""

        def replay(self):
            kept = [call for call in self.calls if not self._writes(call)]
            self.calls = kept
            super().replay()

        def _writes(self, call):
            return call[0]._schema.name == "aten::copy_" and call[1][0].is_floating_point() and call[1][0].dim() == 3

    requests = testing.random_requests(3, 5)
    engine, generations = run("rcd", "block_causal", Stale, requests)
    assert engine.graphs.refused == "a recorded step left other results than a plain one"
    _, plain = run("rcd", "block_causal", False, requests)
    assert told(generations) == told(plain)


def test_columns_that_grow_while_prompts_are_encoded_do_not_leave_recordings_with_the_old_counts(monkeypatch):
    from dlmbench.backbone import counter

    small = counter.Counter.__init__
    monkeypatch.setattr(counter.Counter, "__init__", lambda self, rows, device: small(self, rows, device, columns=1))
    requests, tapes = testing.random_requests(3), []
    _, plain = run("threshold", "block_causal", False, requests)
    engine, replayed = run("threshold", "block_causal", lambda pool: tapes.append(Tape(pool)) or tapes[-1], requests)
    assert told(replayed) == told(plain) and engine.graphs.refused is None
    counts = engine.step.counter
    counts.totals = torch.cat([counts.totals, torch.zeros_like(counts.totals)])
    again = engine.generate(requests)
    assert told(again) == told(plain) and len(tapes) > 1


def test_a_request_with_tokens_given_in_advance_is_not_served_by_a_recording_made_without():
    requests = testing.random_requests(3, 3)
    given = [Request(r.key, r.prompt_ids, r.max_tokens, seed=r.seed, fixed=((1, 7), (2, 8), (5, 9))) for r in requests]
    engine = make("static", "block_causal", Tape, options="steps=3,schedule=quota")
    engine.generate(requests)
    plain = make("static", "block_causal", False, options="steps=3,schedule=quota").generate(given)
    assert told(engine.generate(given)) == told(plain)
    assert engine.graphs.refused is None


def test_hidden_states_of_prompts_are_kept_only_for_a_network_that_reads_them():
    for name in ("threshold", "mrp"):
        engine = make(name, "block_causal", Tape)
        target, seen = engine.target, []
        begin = engine.step.begin

        def watched(rows, target=target, seen=seen, begin=begin):
            begin(rows)
            seen.append(target.prefill_states)

        engine.step.begin = watched
        assert target.keeps_states == (name == "mrp")
        engine.generate(testing.random_requests(3))
        assert seen and set(seen) == {None}
