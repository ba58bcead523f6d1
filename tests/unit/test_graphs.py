"""Recorded steps without a GPU, on a tape of operators (`dlmbench.verify.tape`)."""

import pytest
import torch

from dlmbench.engine import Engine
from dlmbench.engine.graphs import StepGraphs
from dlmbench.registry import DECODERS
from dlmbench.verify import conformance
from dlmbench.verify.tape import Tape

DECODER_NAMES = [name for name in DECODERS.names() if DECODERS.get(name).lag != 0]


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
