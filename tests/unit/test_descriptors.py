"""A parent's layout with another descriptor: who says how a checkpoint is used, and what happens where nobody does.
Run: pytest tests/unit/test_descriptors.py"""

import json
from dataclasses import replace

import pytest
import torch
from checkpoints import LAYOUTS, NEWER, edit, make_checkpoint, tensors, write_weights

import dlmbench
from dlmbench.backbone import load_checkpoint
from dlmbench.backbone.bidirectional import Bidirectional
from dlmbench.backbone.configuration import describe, read_config
from dlmbench.backbone.descriptor import Descriptor, Told, settle
from dlmbench.backbone.network import Network
from dlmbench.decoders.static import Static
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Request, network_hashes
from dlmbench.errors import RequestError
from dlmbench.models.compatibility import check_blocks, check_described
from dlmbench.models.descriptors import described, with_flags
from dlmbench.models.presets import PRESETS, resolve
from dlmbench.request import RunSpec

ASKED = {  # what is not established of two releases
    "Stable-DiffCoder-8B-Instruct": Descriptor(block_length=4),
    "Efficient-DLM-4B": Descriptor(block_length=4, shift=0, mask_id=263),
}
ANCHORED = ("Fast_dLLM_v2_1.5B", "Fast_dLLM_v2_7B")
PROMPTS = ((20, 21, 22, 23, 24), (30, 31), tuple(range(40, 53)))


def engine_of(folder, method=None, flags=Descriptor(), store="fused", batch=1):  # noqa: B008
    preset = with_flags(resolve(str(folder)), flags)
    check_described(preset)
    model = load_checkpoint(folder, told=preset.told)
    config = model.config
    if config.attention == "full":
        net = Bidirectional("target", model, 4)
    else:
        net = Network("target", model, 4, store)
    return Engine({"target": net}, method or Threshold(ThresholdConfig(tau=0.5)), batch_size=batch)


def ids(engine, prompts=PROMPTS):
    return [one.ids for one in engine.generate([Request(str(i), p, 10) for i, p in enumerate(prompts)])]


# --- every newer release ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NEWER if name not in ANCHORED])
def test_a_newer_release_loads_by_its_name_and_a_batch_of_rows_is_its_rows(name, tmp_path):
    folder = make_checkpoint(tmp_path / name, name)
    preset = resolve(str(folder))
    assert preset.like in PRESETS and PRESETS[preset.like].source.rpartition("/")[2] == name
    flags = ASKED.get(name, Descriptor())
    together = ids(engine_of(folder, flags=flags, batch=3))
    alone = engine_of(folder, flags=flags)
    assert together == [ids(alone, [prompt])[0] for prompt in PROMPTS]
    if alone.target.config.attention == "block_causal":
        assert together == ids(engine_of(folder, flags=flags, store="separate", batch=3))


@pytest.mark.parametrize("name", sorted({name for name in NEWER if not name.startswith(("SDAR", "d3LLM", "TraDo"))}))
def test_a_newer_release_with_a_wrong_class_or_a_tensor_too_many_is_one_sentence(name, tmp_path):
    folder = make_checkpoint(tmp_path / name, name)
    flags = ASKED.get(name, Descriptor())
    told = with_flags(resolve(str(folder)), flags).told
    weights = tensors(folder)
    weights["model.layers.0.self_attn.extra_proj.weight"] = torch.zeros(4, 4)
    write_weights(folder, weights)
    with pytest.raises(RequestError, match="extra_proj") as refusal:
        load_checkpoint(folder, told=told)
    assert "\n" not in str(refusal.value)
    if name == "Efficient-DLM-4B":  # the name of its class is not established
        return
    edit(folder / "config.json", architectures=["SomethingElse"], auto_map=...)
    with pytest.raises(RequestError, match="SomethingElse, which may decode in another way") as refusal:
        read_config(folder, resolve(str(folder)).told)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1", "Stable-DiffCoder-8B-Instruct",
                                  "iLLaDA-8B-Base", "DreamReasoner-8B", "Fast_dLLM_v2_7B"])  # fmt: skip
def test_a_newer_release_without_a_mask_anywhere_is_asked_for_it(name, tmp_path):
    rows = {"vocab_size": 4} if name.startswith(("iLL", "Stable")) else {}  # their mask id is 5, whatever files say
    folder = make_checkpoint(tmp_path / name, name, mask_token_id=..., **rows)
    for file in folder.glob("*token*.json"):
        text = file.read_text()
        for word in ("<|mask|>", "<[MASK_TOKEN]>", "|<MASK>|"):
            text = text.replace(word, "<other>")
        file.write_text(text)
        if "mask_token" in json.loads(text):
            edit(file, mask_token=...)
    with pytest.raises(RequestError, match="give --mask-id") as refusal:
        read_config(folder, resolve(str(folder)).told)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ANCHORED)
def test_fast_dllm_v2_loads_by_its_name_and_decodes_by_its_method_alone(name, tmp_path):
    folder = make_checkpoint(tmp_path / name, name)
    engine = dlmbench.load(str(folder), method="fastdllm2", block_length=8, device="cpu", dtype="float32", batch_size=3)
    assert engine.target.config.shift == 1 and engine.describe()["store"] == "separate"
    together = ids(engine)
    alone = dlmbench.load(str(folder), method="fastdllm2", block_length=8, device="cpu", dtype="float32", batch_size=1)
    assert together == [ids(alone, [prompt])[0] for prompt in PROMPTS]
    with pytest.raises(RequestError, match="--method fastdllm2"):
        dlmbench.load(str(folder), method="threshold", device="cpu")
    with pytest.raises(RequestError, match="yields the next block's first token"):
        RunSpec("fastdllm2", "gsm8k", model=str(folder), store="fused").resolve()
    assert RunSpec("fastdllm2", "gsm8k", model=str(folder)).resolve().spec.store == "separate"
    assert RunSpec("static", "gsm8k", model="sdar-8b").resolve().spec.store == "fused"


def test_a_plain_file_decodes_as_the_flags_of_a_run_say(tmp_path):
    folder = make_checkpoint(tmp_path / "m", "Qwen3-8B")
    said = {"attention": "block_causal", "block_length": 4, "mask_id": 263, "shift": 0, "grid": "prompt"}
    engine = dlmbench.load(str(folder), method="threshold", device="cpu", dtype="float32", **said)
    config = engine.target.config
    assert (config.attention, config.mask_id, config.shift, config.grid) == ("block_causal", 263, 0, "prompt")
    assert ids(engine)[0] and engine.describe()["grid"] == "prompt"
    assert dlmbench.load(str(folder), method="ar", device="cpu").target.config.attention == "causal"
    with pytest.raises(RequestError, match="whether its head predicts"):
        RunSpec("static", "gsm8k", model=str(folder), attention="block_causal", block_length=4, mask_id=263).resolve()


# --- who says what ----------------------------------------------------------------------------------------------------


def test_a_flag_comes_first_then_files_then_the_preset_then_the_family(tmp_path):
    folder = make_checkpoint(tmp_path / "Qwen3-0.6B-diffusion-bd3lm-v0.1", "Qwen3-0.6B-diffusion-bd3lm-v0.1")
    preset = resolve(str(folder))
    found = described(preset)
    assert found.descriptor.mask_id == 264 and found.sources["mask_id"] == "tokenizer"
    assert (found.descriptor.grid, found.sources["grid"]) == ("prompt", "preset")
    assert (found.descriptor.shift, found.sources["shift"]) == (0, "family a2d-qwen3")
    edit(folder / "config.json", mask_token_id=7)
    assert described(preset).sources["mask_id"] == "config.json"
    flagged = described(with_flags(preset, Descriptor(mask_id=9, grid="origin")))
    assert (flagged.descriptor.mask_id, flagged.descriptor.grid) == (9, "origin")
    assert {flagged.sources["mask_id"], flagged.sources["grid"]} == {"flag"}


def test_shift_and_blocks_belong_to_the_attention_that_is_used():
    family = Descriptor(attention="causal", shift=1, mask_id=3)
    found = settle(("flag", Descriptor(attention="block_causal", block_length=8)), ("family", family))
    assert found.unknown == ["shift"] and found.descriptor.mask_id == 3
    assert settle(("family", family)).unknown == []


def test_a_plain_file_is_a_diffusion_model_where_somebody_says_so(tmp_path):
    folder = make_checkpoint(tmp_path / "m", "Qwen3-8B")
    assert read_config(folder)[0].attention == "causal"
    for flags, words in (
        (Descriptor(attention="block_causal", block_length=4), "give --shift and --mask-id"),
        (Descriptor(attention="full", shift=0), "give --mask-id"),
        (Descriptor(attention="full", shift=0, mask_id=320), "no token of a vocabulary of 320"),
    ):
        with pytest.raises(RequestError, match=words):
            read_config(folder, Told(flags))
    flags = Descriptor(attention="block_causal", block_length=4, mask_id=263, shift=0)
    config, family = read_config(folder, Told(flags))
    assert (config.attention, config.shift, config.mask_id, config.block_length, family.name) == (
        "block_causal", 0, 263, 4, "qwen3",
    )  # fmt: skip
    assert ids(engine_of(folder, flags=flags, batch=3)) == ids(engine_of(folder, flags=flags))


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("Qwen3-8B", {"architectures": ["A2DForMaskedLM"]}, "A2DForMaskedLM"),
        ("Qwen3-8B", {"auto_map": {"AutoModel": "modeling.Other"}}, "auto_map to Other"),
        ("Qwen3-8B", {"block_size": 32}, "block_size=32"),
        ("Qwen2.5-1.5B-Instruct", {"bd_size": 32}, "bd_size=32"),
        ("Stable-DiffCoder-8B-Instruct", {"architectures": ["Other"], "auto_map": ...}, "Other"),
        ("Qwen3-0.6B-diffusion-mdlm-v0.1", {}, "nothing says how it attends: give --attention"),
    ],
)
def test_a_file_that_may_be_a_diffusion_model_is_never_read_as_autoregressive(name, changes, words, tmp_path):
    folder = make_checkpoint(tmp_path / "m", name, **changes)
    with pytest.raises(RequestError, match=words) as refusal:
        read_config(folder, resolve(str(folder)).told)
    assert "--attention" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_parents_class_does_not_hide_what_own_code_or_a_preset_says(tmp_path):
    name = "Stable-DiffCoder-8B-Instruct"
    own = {"AutoModelForCausalLM": "modeling.StableDiffcoderForCausalLM"}
    by_code = make_checkpoint(tmp_path / "m", name, architectures=["LlamaForCausalLM"], auto_map=own)
    assert read_config(by_code)[0].attention == "block_causal"
    by_name = make_checkpoint(tmp_path / name, name, architectures=["LlamaForCausalLM"], auto_map=...)
    assert read_config(by_name, resolve(str(by_name)).told)[0].attention == "block_causal"


def test_dreams_model_type_with_blocks_is_dreamreasoner(tmp_path):
    reasoner = make_checkpoint(tmp_path / "r", "DreamReasoner-8B", architectures=..., auto_map=...)
    config, family = read_config(reasoner)
    assert (family.name, config.attention, config.block_length) == ("dreamreasoner", "block_causal", 32)
    load_checkpoint(reasoner)
    dream = make_checkpoint(tmp_path / "d", "Dream-v0-Base-7B", architectures=..., auto_map=...)
    assert read_config(dream)[1].name == "dream"


def test_the_descriptor_is_part_of_what_names_a_network(tmp_path):
    folder = make_checkpoint(tmp_path / "m", "SDAR-1.7B-Chat")
    checked = RunSpec("static", "gsm8k", model=str(folder)).resolve()
    other = replace(checked, preset=with_flags(checked.preset, Descriptor(mask_id=5)))
    assert network_hashes(checked) != network_hashes(other)


def test_models_of_which_too_little_is_known_are_refused_before_anything_is_fetched():
    for name, words in (("stable-diffcoder-8b", "--block-length"), ("efficient-dlm-4b", "--shift and --block-length")):
        with pytest.raises(RequestError, match=words):
            RunSpec("static", "gsm8k", model=name).resolve()
    assert RunSpec("static", "gsm8k", model="stable-diffcoder-8b", block_length=32).resolve().block_length == 32


@pytest.mark.parametrize("bad", [{"attention": "sparse"}, {"shift": 2}, {"grid": "x"}, {"block_length": 0},
                                 {"mask_id": -1}, {"attention": "causal", "shift": 0}])  # fmt: skip
def test_values_that_no_field_has_name_their_flag(bad):
    with pytest.raises(RequestError, match="--"):
        Descriptor(**bad)


def test_methods_that_do_not_know_a_models_blocks_are_refused():
    with pytest.raises(RequestError, match="--grid origin"):
        RunSpec("mrp", "gsm8k", model="qwen3-0.6b-bd3lm", head="nano2-mrp").resolve()
    with pytest.raises(RequestError, match="--method fastdllm2"):
        RunSpec("static", "gsm8k", model="fastdllm2-7b").resolve()
    check_blocks(PRESETS["qwen3-0.6b-bd3lm"], Descriptor(attention="block_causal", grid="prompt"), Static)
    with pytest.raises(RequestError, match="full attention: leave it out"):
        check_described(with_flags(PRESETS["llada-8b-base"], Descriptor(grid="prompt")))


def test_a_saved_checkpoint_says_the_block_length_it_was_trained_with(tmp_path):
    folder = make_checkpoint(tmp_path / "m", "SDAR-1.7B-Chat")
    model = load_checkpoint(folder)
    dlmbench.backbone.save_checkpoint(model, tmp_path / "saved")
    assert describe(tmp_path / "saved").descriptor.block_length == 4 == model.config.block_length


def test_every_layout_of_the_tests_is_one_that_the_presets_know():
    names = {preset.source.rpartition("/")[2] for preset in PRESETS.values() if not preset.shipped}
    assert set(NEWER) | (set(LAYOUTS) - {"sdar-1.7b-mrp-3lyr"}) <= names
