"""The ideal model: its arithmetic against the definition, and what every decoder keeps on it.

pytest tests/unit/test_oracle.py
"""

import random
from fractions import Fraction

import pytest
import torch

from dlmbench.decoders.base import Decision, Decoder, StepDecoder, top_n
from dlmbench.decoders.predict import Sampling
from dlmbench.decoders.testing import conformance
from dlmbench.engine import Engine, Request
from dlmbench.errors import RequestError
from dlmbench.oracle.conditionals import conditionals, zipf
from dlmbench.oracle.contradictions import ITEMS, contradictions, first_contradiction
from dlmbench.oracle.family import oracle_config
from dlmbench.oracle.network import Oracle
from dlmbench.oracle.options import OVERCONFIDENT, OracleOptions
from dlmbench.registry import DECODERS
from dlmbench.tasks.stress.answer_sets import KINDS, ONE_ANSWER, answers

MASK, PROMPT, EOS, FIRST = 0, 1, 2, 3
SIZE = FIRST + 10


def valid(kind: str, n: int) -> torch.Tensor:
    """Ids of the right answers for the items 0 .. n-1. [A,L]"""
    items = [str(i) for i in range(n)]
    if kind == "sudoku":
        items = ["" if cell in (0, 5, 10, 15) else symbol for cell, symbol in enumerate("1234341221434321")]
    return torch.tensor([[FIRST + int(word) for word in answer] for answer in answers(kind, items, 1, str(n))])


def engine(
    method: str, block: int, attention="full", options=None, temperature=0.0, batch_size=16, **settings
) -> Engine:
    decoder: type[Decoder] = DECODERS.get(method)
    network = Oracle(oracle_config(SIZE, MASK, (EOS,), attention), block, options)
    return Engine(
        {"target": network}, decoder(decoder.Config(**settings)), batch_size=batch_size,
        sampling=Sampling(temperature=temperature),
    )  # fmt: skip


def requests(allowed: torch.Tensor, count=40, budget=None, prompts=(1,)) -> list[Request]:
    length = budget or allowed.shape[1]
    return [
        Request(str(i), (PROMPT,) * prompts[i % len(prompts)], length, seed=31 * i, answers=allowed)
        for i in range(count)
    ]


def share_right(generations, allowed: torch.Tensor) -> float:
    right = set(map(tuple, allowed.tolist()))
    return sum(tuple(g.raw_ids[: allowed.shape[1]]) in right for g in generations) / len(generations)


# --- the arithmetic -------------------------------------------------------------------------------------------------


def by_definition(allowed, weights, tokens, revealed, at):
    """Exact shares, one answer after another."""
    others = [i for i, shown in enumerate(revealed) if shown and i != at]
    off = [sum(answer[i] != tokens[i] for i in others) for answer in allowed]
    agree = [(answer, weight) for answer, weight, wrong in zip(allowed, weights, off) if wrong == min(off)]
    total = sum(weight for _, weight in agree)
    return {
        token: sum(weight for answer, weight in agree if answer[at] == token) / total for token in range(FIRST, SIZE)
    }


@pytest.mark.parametrize("seed", range(20))
def test_conditionals_are_those_of_the_definition(seed):
    rng = random.Random(seed)
    length = rng.randint(2, 6)
    allowed = list({tuple(rng.randrange(FIRST, FIRST + 4) for _ in range(length)) for _ in range(rng.randint(1, 30))})
    weights = [Fraction(rng.randint(1, 5)) for _ in allowed]
    tokens = [rng.randrange(FIRST, FIRST + 4) for _ in range(length)]  # often agrees with no answer at all
    revealed = [rng.random() < 0.5 for _ in range(length)]
    at = list(range(length))
    absent = torch.full((length, 3), FIRST)  # answers that this row does not have
    found = conditionals(
        torch.cat([torch.tensor(allowed).T, absent], 1).unsqueeze(0).short(),
        torch.tensor([[*map(float, weights), 0, 0, 0]]), torch.tensor([tokens]), torch.tensor([revealed]),
        torch.tensor([at]), SIZE,
    )[0]  # fmt: skip
    for position in at:
        expected = by_definition(allowed, weights, tokens, revealed, position)
        assert found[position, FIRST:].tolist() == pytest.approx(
            [float(expected[t]) for t in range(FIRST, SIZE)], abs=1e-6
        )
    assert found.sum(1) == pytest.approx(torch.ones(length), abs=1e-6)


def test_zipf_does_not_depend_on_the_order_of_the_answers():
    allowed = valid("shuffle", 4)
    order = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(3))
    assert torch.equal(zipf(allowed)[order], zipf(allowed[order]))
    assert sorted(zipf(allowed).tolist(), reverse=True) == pytest.approx([1 / (i + 1) for i in range(len(allowed))])
    assert zipf(allowed).argsort(descending=True)[:6].tolist() != list(range(6))


# --- what decoders keep ---------------------------------------------------------------------------------------------

ORDERS = [
    ("sequential", {}), ("static", {}), ("static", {"order": "entropy"}), ("static", {"order": "margin"}),
    ("static", {"order": "random"}), ("threshold", {"tau": 1.1}),
]  # fmt: skip
IMPERFECT = [OracleOptions(weights="zipf"), OracleOptions(temperature=3.0), OVERCONFIDENT]


@pytest.mark.parametrize("attention", ["full", "block_causal"])
@pytest.mark.parametrize("kind, n", [("shuffle", 4), ("replace-random", 5), ("remove-random", 4), ("latin-square", 3)])
def test_one_token_a_step_is_always_right(kind, n, attention):
    allowed = valid(kind, n)
    block = 4 if attention == "block_causal" else allowed.shape[1]
    for method, settings in ORDERS:
        for temperature in (0.0, 1.0, 2.5):
            run = engine(method, block, attention, temperature=temperature, **settings)
            assert share_right(run.generate(requests(allowed, 24, prompts=(1, 2, 3, 5))), allowed) == 1
    for options in IMPERFECT:
        run = engine("static", block, attention, options, temperature=1.0, order="random")
        assert share_right(run.generate(requests(allowed, 24)), allowed) == 1


@pytest.mark.parametrize("kind", ONE_ANSWER)
def test_one_answer_is_found_at_every_setting(kind):
    allowed = valid(kind, 6)
    length = allowed.shape[1]
    one_forward = [("threshold", {"tau": 1.0}), ("threshold", {"tau": 0.3}), ("static", {"k": length})]
    one_forward.append(("sequential", {"k": length}))
    for method, settings in [*one_forward, ("static", {"k": 3}), ("entropy", {}), ("klass", {}), ("wino", {})]:
        for temperature in (0.0, 1.0):
            found = engine(method, length, temperature=temperature, **settings).generate(requests(allowed, 8))
            assert share_right(found, allowed) == 1
            calls = {g.counts["target"]["refresh"]["calls"] for g in found}
            assert (method, settings) not in one_forward or calls == {1}
    in_blocks = engine("wino", length, "block_causal", tau=0.3).generate(requests(allowed, 8))
    assert share_right(in_blocks, allowed) == 1


def test_a_threshold_above_one_is_static_with_one_token():
    allowed = valid("shuffle", 5)
    for temperature in (0.0, 1.0):
        ours = engine("threshold", 5, temperature=temperature, tau=1.1).generate(requests(allowed))
        theirs = engine("static", 5, temperature=temperature, k=1).generate(requests(allowed))
        assert [g.raw_ids for g in ours] == [g.raw_ids for g in theirs]
        assert [g.counts for g in ours] == [g.counts for g in theirs]


def test_greedy_ties_take_the_lowest_id_and_repeat_it():
    allowed = valid("shuffle", 4)
    found = engine("static", 4, k=4).generate(requests(allowed, 3))
    assert all(g.raw_ids == [FIRST + 1, FIRST, FIRST, FIRST] for g in found)  # the given order is no answer


@pytest.mark.parametrize("name", [n for n in DECODERS.names() if DECODERS.get(n).roles == ("target",)])
@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_decoders_without_helpers_run_on_it_and_a_batch_equals_singles(name, attention):
    decoder = DECODERS.get(name)
    if attention not in decoder.attention:
        pytest.skip(f"{name} is not for {attention} attention")
    settings = {"answer_start": 1, "answer_length": 2} if name == "prophet" else {}
    allowed, block = valid("replace-random", 6), 4
    for temperature in (0.0, 1.0):
        asked = requests(allowed, 9, prompts=(1, 4, 6))
        try:
            together = engine(name, block, attention, temperature=temperature, batch_size=4, **settings).generate(asked)
        except RequestError as error:
            assert "needs a trained --model" in str(error) or "this model's head" in str(error)  # not a shifted one
            continue
        for request, one in zip(asked, together):
            (alone,) = engine(name, block, attention, temperature=temperature, **settings).generate([request])
            assert (alone.raw_ids, alone.counts) == (one.raw_ids, one.counts)
        assert all(MASK not in g.raw_ids for g in together)
        assert all(work["flops"] == 0 for g in together for work in g.counts["target"].values())


def test_an_overconfident_model_loses_what_the_ideal_one_keeps():
    allowed = valid("shuffle", 5)
    asked = requests(allowed, 200)
    ideal = engine("threshold", 5, temperature=1.0, tau=0.9).generate(asked)
    sure = engine("threshold", 5, options=OracleOptions(temperature=0.2, noise=1.0), temperature=1.0, tau=0.9).generate(
        asked
    )
    assert share_right(ideal, allowed) == 1
    assert share_right(sure, allowed) < 0.97
    calls = [sum(g.counts["target"]["refresh"]["calls"] for g in found) for found in (ideal, sure)]
    assert calls[1] < calls[0]


def test_answers_of_unlike_length_are_filled_with_eos():
    allowed = torch.tensor([[FIRST, FIRST + 1, FIRST + 2], [FIRST + 3, -1, -1]])
    found = engine("static", 5, temperature=1.0).generate(requests(allowed, 30, budget=5))
    assert {tuple(g.ids) for g in found} == {(FIRST, FIRST + 1, FIRST + 2, EOS), (FIRST + 3, EOS)}
    assert all(len(g.raw_ids) == 5 for g in found)


def test_a_wrong_token_of_a_row_is_seen_by_whoever_looks_again():
    network = Oracle(oracle_config(SIZE, MASK, (EOS,)), 4)
    run = Engine({"target": network}, DECODERS.get("static")(), batch_size=1)
    seen = []
    network_logits = network.logits
    network.logits = lambda view: seen.append(network_logits(view)) or seen[-1]
    allowed = torch.tensor([[FIRST, FIRST + 1, FIRST + 2, FIRST + 3]])
    fixed = ((0, FIRST + 5), (1, FIRST + 1))  # the first contradicts the only answer
    run.generate([Request("a", (PROMPT,), 4, fixed=fixed, answers=allowed)])
    assert seen[0].argmax(-1).tolist() == allowed.tolist()


def test_what_the_oracle_cannot_do_is_refused():
    allowed = valid("copy", 4)
    with pytest.raises(RequestError, match="no list of valid answers"):
        engine("static", 4).generate([Request("a", (PROMPT,), 4)])
    with pytest.raises(RequestError, match="valid answers of 4 tokens and a budget of 3"):
        engine("static", 4).generate([Request("a", (PROMPT,), 3, answers=allowed)])
    with pytest.raises(RequestError, match="needs a trained --model"):
        engine("rcd", 4, "block_causal").generate(requests(allowed, 1))
    with pytest.raises(RequestError, match="no EOS"):
        network = Oracle(oracle_config(SIZE, MASK), 4)
        Engine({"target": network}, DECODERS.get("static")()).generate(requests(allowed, 1, budget=6))
    for wrong in ({"weights": "heavy"}, {"temperature": 0.0}, {"noise": -1.0}, {"temperature": float("nan")}):
        with pytest.raises(ValueError):
            OracleOptions(**wrong)


# --- the sets -------------------------------------------------------------------------------------------------------


def test_sets_have_the_sizes_that_counting_gives():
    words = ["a", "b", "c", "d", "e"]
    sizes = {kind: len(answers(kind, words, 2, "z")) for kind in KINDS if kind not in ("latin-square", "sudoku")}
    assert {kind for kind, size in sizes.items() if size == 1} == set(ONE_ANSWER) - {"sudoku"}
    assert sizes["insert-random"] == 6 and sizes["remove-random"] == sizes["replace-random"] == 5
    assert sizes["shuffle"] == 119
    assert len(answers("latin-square", words[:4])) == 576 and len(answers("latin-square", words[:3])) == 12
    assert len(answers("sudoku", [""] * 16)) == 288


def test_edits_at_an_index_count_from_nought():
    words = ["a", "b", "c"]
    assert answers("insert-index", words, 1, "z") == [("a", "z", "b", "c")]
    assert answers("insert-index", words, 3, "z") == [("a", "b", "c", "z")]
    assert answers("replace-index", words, 1, "z") == [("a", "z", "c")]
    assert answers("remove-index", words, 1) == [("a", "c")]
    with pytest.raises(ValueError, match="at most 8"):
        answers("shuffle", list("abcdefghi"))
    with pytest.raises(ValueError, match="unknown kind"):
        answers("rotate", words)


# --- where a decoder contradicts itself -------------------------------------------------------------------------------


class Stubborn(StepDecoder):
    """Proposes the same token everywhere, whatever the model says."""

    name = "stubborn"

    def decide(self, view, forward):
        best = view.candidates(forward.logits)
        return Decision(torch.full_like(best.tokens, 6), top_n(best.log_odds, view.masked, 1))


def test_a_token_that_the_model_rules_out_is_a_fault_and_is_shown():
    found = contradictions(Stubborn(), "full")
    assert len(found) == ITEMS and not any(one.possible for one in found)
    assert found[0].step == 1 and found[0].tokens == (6,)
    (finding,) = [f for f in conformance(Stubborn) if f.promise.startswith("no impossible token on the ideal model")]
    assert not finding.holds and "what the ideal model rules out: item 0, step 1: tokens 6 at" in finding.detail


def test_tokens_that_go_together_in_no_answer_are_a_cost_and_not_a_fault():
    static = DECODERS.get("static")
    assert contradictions(static(static.Config(k=1)), "full") == []
    found = contradictions(static(static.Config(k=5)), "full")
    assert found and all(one.possible and one.step == 0 and len(one.tokens) == 4 for one in found)  # a block
    saber = [f for f in conformance(DECODERS.get("saber")) if "ideal model" in f.promise]
    assert all(f.holds and f.detail.startswith("it contradicts itself in") for f in saber) and saber


def test_what_is_remasked_or_replaced_contradicts_nothing():
    right = torch.tensor([[4, 5, 6], [5, 6, 4]])

    def step(positions, tokens, remasked=(), **more):
        return {"positions": positions, "tokens": tokens, "remasked": list(remasked), **more}

    repaired = [step([2], [4]), step([3, 4], [6, 5], [2], replaced={"positions": [], "tokens": []})]
    assert first_contradiction("a", repaired, right, 2).step == 1  # 6, 5 after 4 was taken back
    assert first_contradiction("a", [step([2], [4]), step([3, 4], [6, 4], [2])], right, 2) is None
    replaced = [step([2], [4]), step([3], [6], replaced={"positions": [2], "tokens": [5]}), step([4], [4])]
    assert first_contradiction("a", replaced, right, 2) is None
    wrong = first_contradiction("a", [step([2], [6])], right, 2)
    assert str(wrong) == "a, step 0: tokens 6 at 0 (no right answer has one of them there)"
