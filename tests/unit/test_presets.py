"""What models and recipes stand for: every cell says what it will do. Run: pytest tests/unit/test_presets.py

`cells.txt` holds a line for every preset on every task under several methods, and for every cell of every recipe. When
a change is meant, `DLMBENCH_WRITE=1 pytest tests/unit/test_presets.py` writes it anew: read its difference.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, tensors, write_weights

from dlmbench.cli.app import main
from dlmbench.errors import RequestError
from dlmbench.models.presets import PRESETS, resolve
from dlmbench.models.shapes import SHAPES
from dlmbench.registry import BACKBONES, DECODERS
from dlmbench.request import RunSpec, SweepSpec
from dlmbench.request.resolved import with_baselines
from dlmbench.runs import preflight

CELLS = Path(__file__).parent / "cells.txt"
RECIPES = sorted(
    path for path in (Path(__file__).parents[2] / "recipes").glob("**/*.yaml") if "methods:" in path.read_text()
)
TASKS = ("gsm8k", "math500", "humaneval", "mbpp")
REAL = [preset for preset in PRESETS.values() if not preset.shipped]
CAUSAL = [preset for preset in REAL if preset.family in ("qwen2", "qwen3", "llama")]
ASKED = [PRESETS["stable-diffcoder-8b"], PRESETS["efficient-dlm-4b"]]  # what is not established is asked for
ANCHORED = [preset for preset in REAL if preset.family == "fastdllm2"]
PLAIN = [preset for preset in REAL if preset not in (*ASKED, *ANCHORED)]


def will_do(cell) -> str:
    """One line: what is asked of which model, and how; only what is unusual of EOS, cache, store and batch."""
    spec = cell.spec
    prompt = f"{'its' if spec.num_fewshot is None else spec.num_fewshot} shots"
    unusual = {"eos": (cell.eos, "free"), "cache": (spec.cache, "none"), "store": (spec.store, "fused"),
               "batch": (spec.batch_size, "auto")}  # fmt: skip
    words = [
        spec.task if spec.limit is None else f"{spec.task} x {spec.limit}", cell.model_label, cell.label,
        f"block {cell.block_length}", f"tokens {cell.gen_length or 'by task'}",
        f"{prompt}, {'chat' if cell.chat_template else 'raw'}",
        *(f"{name} {value}" for name, (value, usual) in unusual.items() if value != usual),
        *(f"{role} {Path(name).name}" for role, name in cell.companions.items()),
    ]  # fmt: skip
    return " | ".join(words)


def all_lines() -> list[str]:
    lines = []
    for preset in PLAIN:
        for task in TASKS:
            for method in ("ar",) if preset in CAUSAL else ("static", "threshold"):
                lines.append(will_do(RunSpec(method, task, model=preset.name).resolve()))
    for path in RECIPES:
        lines.append(f"# {path.stem}")
        lines += dict.fromkeys(map(will_do, SweepSpec.from_recipe(path).resolve()[0]))  # seeds have one line
    return lines


def test_every_preset_and_recipe_does_what_is_written_down(capsys):
    text = "\n".join(all_lines()) + "\n"
    print(text)
    if os.environ.get("DLMBENCH_WRITE"):
        CELLS.write_text(text, encoding="utf-8")
    assert text == CELLS.read_text(encoding="utf-8")


@pytest.mark.parametrize("preset", CAUSAL, ids=lambda preset: preset.name)
def test_an_autoregressive_preset_reads_token_by_token_in_its_chat_markup(preset):
    cell = RunSpec("ar", "gsm8k", model=preset.name).resolve()
    assert (cell.block_length, cell.gen_length, cell.chat_template) == (1, 512, True)
    assert not preset.whole_answer


@pytest.mark.parametrize("method", [name for name in DECODERS.names() if "full" in DECODERS.get(name).attention])
def test_llada_s_eos_control_is_for_fixed_schedules_alone(method):
    given = {"head": "nano2-adjust"} if "head" in DECODERS.get(method).roles else {}
    spec = RunSpec(method, "gsm8k", model="llada-8b-instruct", guide="qwen2.5-1.5b-instruct", block_length=32, **given)
    cell = replace(RunSpec("static", "gsm8k", model=spec.model).resolve(), spec=spec, decoder=DECODERS.get(method))
    assert cell.eos == ("last" if method == "static" else "free")
    assert replace(cell, spec=replace(spec, cache="prefix")).eos == "free"


def test_eos_control_can_still_be_asked_for():
    spec = RunSpec("threshold", "gsm8k", model="llada-8b-instruct", settings={"sampling": {"eos": "last"}})
    assert spec.resolve().eos == "last"


@pytest.mark.parametrize("preset", [*PLAIN, *ANCHORED], ids=lambda preset: preset.name)
def test_the_size_of_every_preset_is_known_before_a_download(preset):
    shape = SHAPES[preset.shape]
    assert shape.family == preset.family and shape.parameters > 4e8
    assert "about" in preflight.weights_need(preset).detail


# --- folders --------------------------------------------------------------------------------------------------------


def folder(root: Path, name: str, **config) -> Path:
    place = root / name
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return place


@pytest.mark.parametrize("preset", PLAIN, ids=lambda preset: preset.name)
def test_a_local_copy_of_a_known_checkpoint_keeps_its_settings(tmp_path, preset):
    family = BACKBONES.get(preset.family)
    place = folder(tmp_path, preset.source.rpartition("/")[2], model_type=family.model_types[0],
                   architectures=list(family.architectures[:1]), mask_token_id=5)  # fmt: skip
    method = "ar" if preset in CAUSAL else "static"
    theirs, ours = (RunSpec(method, "gsm8k", model=name).resolve() for name in (preset.name, str(place)))
    assert ours.preset.like == preset.name and ours.preset.location == str(place)
    for name in ("block_length", "gen_length", "chat_template", "eos", "parameters"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert any(preset.name in note for note in ours.notes)


def test_a_copy_under_another_name_is_known_by_what_its_config_says(tmp_path):
    place = folder(tmp_path, "copy", model_type="sdar", _name_or_path="JetLM/SDAR-8B-Chat")
    assert resolve(str(place)).like == "sdar-8b"


def test_the_name_alone_does_not_make_a_folder_of_another_family_a_known_checkpoint(tmp_path):
    place = folder(tmp_path, "SDAR-8B-Chat", model_type="llama")
    assert resolve(str(place)).like is None


def test_like_chooses_another_preset_s_settings_or_none(tmp_path):
    place = str(folder(tmp_path, "SDAR-8B-Chat", model_type="sdar"))
    cell = RunSpec("static", "gsm8k", model=place, like="sdar-8b-mrp").resolve()
    assert (cell.block_length, cell.preset.like, cell.preset.companions["head"]) == (16, "sdar-8b-mrp", place)
    assert RunSpec("static", "gsm8k", model=place, like="none", block_length=4).resolve().chat_template is False
    hub = RunSpec("static", "gsm8k", model="someone/SDAR-tuned", like="sdar-4b").resolve()
    assert hub.chat_template and hub.preset.location == "someone/SDAR-tuned"


@pytest.mark.parametrize("like, words", [("llada-8b-instruct", "a llada model"), ("sdar-8", "did you mean sdar-8b")])
def test_a_like_that_cannot_be_is_refused(tmp_path, like, words):
    place = str(folder(tmp_path, "mine", model_type="sdar"))
    with pytest.raises(RequestError, match=words):
        RunSpec("static", "gsm8k", model=place, like=like).resolve()


def test_an_unknown_folder_runs_at_its_own_block_size_and_says_that_it_has_a_chat_template(tmp_path):
    place = folder(tmp_path, "mine", model_type="sdar", block_size=16)
    (place / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    cell = RunSpec("static", "gsm8k", model=str(place)).resolve()
    assert cell.block_length == 16
    assert [note for note in cell.notes if "chat template" in note] and not [n for n in cell.notes if "assumed" in n]


@pytest.mark.parametrize("name", ["./nope", "/no/such/place", "~/nope", "a/b/c"])
def test_a_folder_that_is_not_there_is_called_so(name):
    with pytest.raises(RequestError, match="does not exist"):
        resolve(name)


def test_a_file_is_told_from_its_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(RequestError, match="is a file; give the folder"):
        resolve(str(file))


def test_a_sweep_takes_a_folder_with_a_comma_in_its_name_as_one_model(tmp_path):
    place = str(folder(tmp_path, "a,b", model_type="sdar"))
    cells = SweepSpec.from_flags({"method": "static", "task": "gsm8k", "model": place, "against": "none"}).runs
    assert [cell.model for cell in cells] == [place]


# --- batch sizes and memory -----------------------------------------------------------------------------------------


def test_an_automatic_batch_size_does_not_change_with_a_download(tmp_path, monkeypatch):
    """What is known of a preset's shape decides, whether or not its files are here."""
    cell = RunSpec("static", "humaneval", model="llada-8b-base", device="cpu", dtype="bfloat16").resolve()
    before = preflight.fitting_batch(cell, None, 80 << 30)
    place = folder(tmp_path, "snapshot", model_type="llada", mask_token_id=1)
    (place / "model.safetensors").touch()
    monkeypatch.setattr(preflight, "checkpoint_here", lambda preset: place)
    assert preflight.fitting_batch(cell, None, 80 << 30) == before and before > 16


def test_a_module_beside_its_target_is_not_counted_as_a_second_target():
    alone = RunSpec("static", "gsm8k", model="sdar-8b-mrp", device="cpu").resolve()
    both = RunSpec("mrp", "gsm8k", model="sdar-8b-mrp", device="cpu").resolve()
    without, with_head = (preflight.memory_bytes(run, None) for run in (alone, both))
    assert without < with_head < 1.2 * without


# --- baselines ------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_the_baselines_that_a_run_does():
    """A cache policy of one method stays with that method, from both entrances."""
    flags = dict(method="guided", task="nano-gsm", model="nano2-llada", cache="prompt", block_length="8")
    swept = SweepSpec.from_flags(flags).resolve()[0]
    spec = RunSpec("guided", "nano-gsm", model="nano2-llada", cache="prompt", block_length=8)
    assert {(c.label, c.spec.cache) for c in swept} == {
        (c.label, c.spec.cache) for c in (b.resolve() for b in with_baselines([spec]))
    }


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_doctor_looks_at_a_model_too(capsys):
    with pytest.raises(SystemExit) as left:
        main(["doctor", "nano2", "--offline", "--json"])
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert left.value.code == 0 and "1,024 tokens" in checks["tokenizer"]["detail"]
    assert "block_causal" in checks["configuration"]["detail"]


@pytest.mark.parametrize("index", [True, False])
def test_doctor_compares_tensors_by_the_index_alone(tmp_path, capsys, index):
    place = make_checkpoint(tmp_path / "Qwen3-0.6B-diffusion-bd3lm-v0.1", "Qwen3-0.6B-diffusion-bd3lm-v0.1")
    weights = tensors(place)
    if index:
        weights["model.layers.0.self_attn.q_proj.bias"] = weights.pop("model.layers.0.self_attn.q_norm.weight")
    write_weights(place, weights, 3)
    for file in place.glob("*.safetensors"):
        file.unlink()
    if not index:
        (place / "model.safetensors.index.json").unlink()
    with pytest.raises(SystemExit):
        main(["doctor", str(place), "--offline", "--json"])
    checks = {check["what"]: check["detail"] for check in json.loads(capsys.readouterr().out)["checks"]}
    if index:
        assert checks["tensors"] == (
            "1 missing: model.layers.0.self_attn.q_norm.weight; 1 left over: model.layers.0.self_attn.q_proj.bias"
        )
    else:
        assert "neither an index nor weights" in checks["tensors"]
    assert "grid prompt (preset)" in checks["descriptor"] and "mask_id 264 (tokenizer)" in checks["descriptor"]
    assert checks["task gsm8k"] == "chat markup, 256 tokens, block 32" and "GiB" in checks["memory in bfloat16"]


def test_doctor_says_what_is_asked_for(capsys):
    with pytest.raises(SystemExit) as left:
        main(["doctor", "efficient-dlm-4b", "--offline", "--json"])
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert left.value.code == 1 and "--shift" in checks["shift"]["detail"]


def test_doctor_says_what_a_name_is_not(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "nope", "--offline"])
    assert "is no recipe" in capsys.readouterr().err
