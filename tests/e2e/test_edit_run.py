"""Token editing from the command line, on a tiny checkpoint laid out as LLaDA2.1-mini.

pytest tests/e2e/test_edit_run.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import Layout, _write_tokenizer
from tiny import make_data

from dlmbench.backbone import Transformer, save_checkpoint
from dlmbench.cli.app import main
from dlmbench.engine import build
from dlmbench.models.shapes import SHAPES
from dlmbench.request import RunSpec

TOKENS = Layout(
    "llada2_moe", "LLaDA2MoeModelLM", "PreTrainedTokenizerFast",
    {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"},
    more=("<role>", "</role>", "<|role_end|>"), whole_tokenizer=True, chat="none",
)  # fmt: skip
EAGER = ("--set", "edit.edit_threshold=0")  # random weights are never sure
SHORT = ("--gen-length", "40", "--limit", "2", "--num-fewshot", "0", *EAGER, "--device", "cpu", "--batch-size", "2")


def make_llada2(folder: Path) -> tuple[Path, dict[str, int]]:
    """A random checkpoint with the fields and names of LLaDA2.1-mini's and small numbers; token -> id of its marks."""
    folder.mkdir(parents=True)
    ids = _write_tokenizer(folder, TOKENS)
    mini = SHAPES["llada2-mini"]
    experts = replace(mini.experts, count=16, active=2, width=8, shared_width=8)
    config = replace(
        mini, vocab_size=320, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, rotary_dim=8,
        intermediate_size=48, mask_id=None, eos_ids=(ids["<|endoftext|>"],), pad_id=ids["<|endoftext|>"],
        max_positions=2048, experts=experts,
    )  # fmt: skip
    model = Transformer(config).init_weights(3)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data *= 8.0
    save_checkpoint(model, folder)
    return folder, ids


@pytest.fixture(scope="module")
def llada2(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    return make_llada2(tmp_path_factory.mktemp("models") / "LLaDA2.1-mini")


def call(capsys, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in arguments])
    streams = capsys.readouterr()
    return left.value.code or 0, streams.out + streams.err


def test_a_run_edits_with_the_chat_markup_and_the_ends_of_its_family(llada2, tmp_path, capsys):
    folder, ids = llada2
    data = make_data(tmp_path / "data")
    code, text = call(
        capsys, "run", "--model", folder, "--method", "edit", "--task", "gsm8k", "--data-dir", data, "--out",
        tmp_path / "runs", *SHORT,
    )  # fmt: skip
    assert code == 0, text
    (run,) = (tmp_path / "runs").glob("gsm8k-edit-*")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["label"] == "edit 0.7 edit_threshold=0.0"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 and all(sample["counts"]["target"]["edit"]["calls"] for sample in samples)
    trace = json.loads((run / "traces.jsonl").read_text().splitlines()[0])
    rewritten = [token for step in trace["steps"] for token in step["replaced"]["tokens"]]
    assert rewritten and set(map(str, rewritten)) <= set(trace["words"])

    engine = build(RunSpec("edit", "gsm8k", model=str(folder), device="cpu").resolve())
    ends = engine.target.config.eos_ids
    assert ends[0] == ids["<|endoftext|>"] and ids["<|role_end|>"] in ends
    assert engine.target.block_length == 32 and engine.target.config.mask_id == ids["<|mask|>"]
    prompt = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == (
        "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>"
    )


def test_generate_shows_edited_tokens_as_they_change(llada2, capsys):
    code, text = call(
        capsys, "generate", "--prompt", "word", "--model", llada2[0], "--method", "edit", "--watch", "--device", "cpu",
        "--gen-length", "32", *EAGER,
    )  # fmt: skip
    assert code == 0 and "->" in text, text


def test_show_and_doctor_know_the_method_and_the_model(llada2, capsys):
    code, text = call(capsys, "show", "edit")
    assert code == 0 and "max_post_steps" in text
    _, text = call(capsys, "doctor", llada2[0], "--offline")
    assert "of which a token meets" in text and "llada2" in text, text


def test_a_model_that_was_not_trained_for_it_says_so_in_its_rows():
    run = RunSpec("edit", "nano-gsm", device="cpu").resolve()
    assert run.label.endswith("(model not trained for it)")
    assert any("not known to have been trained for edit" in note for note in run.notes)
    assert "not trained" not in RunSpec("edit", "gsm8k", model="llada2.1-mini", device="cpu").resolve().label
    assert "not trained" not in RunSpec("threshold", "nano-gsm", device="cpu").resolve().label
