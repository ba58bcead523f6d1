"""Every shipped decoder keeps the promises, and `check` catches those that do not. pytest tests/invariants"""

import pytest

from dlmbench.decoders.testing import conformance, decoders_of
from dlmbench.registry import DECODERS

HEAD = """
import torch
from dlmbench.decoders.base import Decision, StepDecoder, top_n
from dlmbench.registry import DECODERS

class Mine(StepDecoder):
    name = "mine"
"""
TAIL = "\nDECODERS.register('mine', Mine)\n"
GOOD = """
    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        return Decision(best.tokens, top_n(best.log_odds, view.masked, 1))
"""
BROKEN = {
    "makes no progress": """
    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        return Decision(best.tokens, view.masked & (best.confidence > 0.9))
""",
    "reads a device value on the host": """
    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        n = 2 if best.confidence.max().item() > 0.5 else 1
        return Decision(best.tokens, top_n(best.log_odds, view.masked, n))
""",
    "already committed": """
    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        return Decision((best.tokens + 1) % 80 + 5, torch.ones_like(view.masked))
""",
    "state leaks through a refilled slot": """
    seen = None

    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        if self.seen is None or self.seen.shape != view.step.shape:
            self.seen = torch.zeros_like(view.step)
        self.seen = self.seen + 1
        return Decision(best.tokens, top_n(best.log_odds, view.masked, 1 + (self.seen > 12).long()))
""",
    "a batch of 3 differs from singles": """
    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        n = view.masked.sum(1).amin().expand(view.masked.shape[0]) // 2 + 1
        return Decision(best.tokens, top_n(best.log_odds, view.masked, n))
""",
    "remasks positions of the prompt": """
    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        return Decision(best.tokens, view.masked, remask=~view.masked & (view.step == 0).unsqueeze(1))
""",
    "state 'memory' has shape": """
    def init_state(self, rows, capacity, width, device):
        return {"memory": torch.zeros(capacity, device=device)}
"""
    + GOOD,
    "does not hold": '    equalities = ("== static:k=2",)\n' + GOOD,
}


@pytest.mark.parametrize("name", [n for n in DECODERS.names()])
def test_shipped_decoders_keep_every_promise(name):
    findings = list(conformance(DECODERS.get(name)))
    assert len(findings) >= 5
    assert [f for f in findings if not f.holds] == []


def write(tmp_path, body, name="mine.py"):
    (tmp_path / name).write_text(HEAD + body + TAIL)
    return decoders_of(tmp_path / name)[0]


def test_a_decoder_from_a_file_passes_and_leaves_the_registry_alone(tmp_path):
    names = DECODERS.names()
    decoder = write(tmp_path, '    equalities = ("== static:k=1",)\n' + GOOD)
    assert DECODERS.names() == names
    slow = write(tmp_path, GOOD, "slow.py")
    assert all(f.holds for f in conformance(decoder, slow))


@pytest.mark.parametrize("words", BROKEN)
def test_broken_decoders_are_caught_with_a_sentence(words, tmp_path):
    details = [f.detail for f in conformance(write(tmp_path, BROKEN[words])) if not f.holds]
    assert any(words in detail for detail in details), details


def test_a_wrong_reference_is_noticed(tmp_path):
    fast = write(tmp_path, GOOD)
    slow = write(tmp_path, GOOD.replace("view.masked, 1", "view.masked, 2"), "slow.py")
    assert any("differs from its reference" in f.detail for f in conformance(fast, slow))
