"""Recorded steps without a GPU: a tape of operators that is replayed on the same memory, as a CUDA graph is.

The tape refuses what a GPU would refuse to record: host reads, shapes that depend on data, tensors made from host data.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dlmbench.engine import Engine
from dlmbench.engine.graphs import StepGraphs
from dlmbench.registry import DECODERS
from dlmbench.verify import conformance

HOST = (
    "item", "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "lift_fresh", "unique",
    "resolve_conj",  # tolist, numpy
)  # fmt: skip
DECODER_NAMES = [name for name in DECODERS.names() if DECODERS.get(name).lag != 0]


class Tape(TorchDispatchMode):
    """Operators in the order they ran; `replay` runs them again and puts their results where they were."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def record(self, body):
        with self:
            return body()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name in HOST or name.startswith("index") and _mask_index(args):
            raise RuntimeError(f"operation not permitted while recording: {name}")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        self.replays += 1
        for function, args, kwargs, result in self.calls:
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and not t.is_mkldnn]
            read = {t.untyped_storage().data_ptr() for t in given}
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again)):
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in read:
                    old.copy_(new)


def _mask_index(args):
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(index is not None and index.dtype == torch.bool for index in indices)


def run(name, attention, graphs, requests, batch_size=3):
    """Without `graphs` the same steps, in the same shapes, are not recorded."""
    decoder = DECODERS.get(name)()
    networks = conformance._networks(decoder, attention)
    engine = Engine(networks, decoder, batch_size=batch_size, lag=1, graphs=graphs or Tape)
    if engine.graphs and not graphs:
        engine.graphs.refused = "not here"
    return engine, engine.generate(requests)


@pytest.mark.parametrize(
    "name, attention", [(name, kind) for name in DECODER_NAMES for kind in DECODERS.get(name).attention]
)
def test_recorded_steps_equal_plain_ones(name, attention):
    requests = conformance._requests(3)
    tapes = []
    _, plain = run(name, attention, False, requests)
    engine, replayed = run(name, attention, lambda: tapes.append(Tape()) or tapes[-1], requests)
    if engine.graphs is None:
        pytest.skip("its launches depend on what the host has read")
    assert engine.graphs.refused is None
    assert [g.raw_ids for g in replayed] == [g.raw_ids for g in plain]
    assert [g.counts for g in replayed] == [g.counts for g in plain]
    assert [(g.guards, g.proposed, g.accepted) for g in replayed] == [(g.guards, g.proposed, g.accepted) for g in plain]
    assert len(tapes) == 1 and tapes[0].replays > 10  # one shape; every step but the first is a replay


def test_recorded_steps_serve_the_next_call_too():
    tapes, requests = [], conformance._requests(3)
    engine, first = run("threshold", "block_causal", lambda: tapes.append(Tape()) or tapes[-1], requests)
    again = engine.generate(requests[2:])
    assert [g.raw_ids for g in again] == [g.raw_ids for g in first[2:]] and len(tapes) == 1
    engine.generate([requests[0]])  # one row: other buffers
    assert len(tapes) == 2 and len(engine.graphs.steps) == 1


def test_a_step_that_cannot_be_recorded_runs_plainly_and_says_why():
    class Reading(DECODERS.get("static")):
        def decide(self, view, logits):
            self.seen = logits.amax().item()
            return super().decide(view, logits)

    requests, decoder = conformance._requests(3), Reading()
    engine = Engine(conformance._networks(decoder, "block_causal"), decoder, batch_size=3, lag=1, graphs=Tape)
    _, plain = run("static", "block_causal", False, requests)
    assert [g.raw_ids for g in engine.generate(requests)] == [g.raw_ids for g in plain]
    assert "cannot be recorded here (operation not permitted while recording: item)" in str(engine.graphs.refused)


def test_a_replay_that_differs_is_found_before_it_is_used():
    class Forgetful(Tape):
        def replay(self):
            pass

    requests = conformance._requests(3)
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

    graphs = StepGraphs(lambda: [state], Tape)
    results = [int(graphs.run("step", body)) for _ in range(4)]
    assert results == [20, 30, 50, 60] and graphs.refused is None and len(graphs.steps) == 1
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == addresses
