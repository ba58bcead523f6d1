"""Checkpoints as they are released load; what is broken, quantised or would be ignored is one sentence, before weights
are read. Run: pytest tests/unit/test_checkpoints.py"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import LAYOUTS, as_hub, edit, make_checkpoint, tensors, write_weights
from safetensors.torch import save_file

import dlmbench
from dlmbench import files
from dlmbench.backbone import load_checkpoint, load_tokenizer, loading
from dlmbench.backbone.configuration import read_config
from dlmbench.backbone.tensors import Tensors
from dlmbench.backbone.tokenizer import PlainTokenizer, plain_tokenizer
from dlmbench.engine import Request
from dlmbench.errors import RequestError
from dlmbench.files import file_dtype, model_name, read_json, weight_files
from dlmbench.models.presets import ASSETS, Preset

CAUSAL = ("qwen3", "qwen2", "llama")
SDAR, LLADA, DREAM = "SDAR-1.7B-Chat", "LLaDA-8B-Instruct", "Dream-v0-Instruct-7B"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4969539560\n"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loading._snapshot.cache_clear()
    yield tmp_path / "hub"
    loading._snapshot.cache_clear()


def answers(model, name=SDAR):
    method = "ar" if LAYOUTS[name].model_type in CAUSAL else "threshold"
    engine = dlmbench.load(str(model), method=method, block_length=4, device="cpu", dtype="float32")
    ids = tuple(engine.tokenizer.encode("the word"))
    return engine, engine.generate([Request("k", ids, 8, seed=1)])[0].ids


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_released_layout_loads_and_answers_as_a_folder_and_out_of_the_hubs_cache(name, tmp_path, hub):
    folder = make_checkpoint(tmp_path / name, name)
    engine, ids = answers(folder, name)
    config, layout = engine.target.config, LAYOUTS[name]
    assert engine.tokenizer.decode(engine.tokenizer.encode("the word", add_special_tokens=False)) == "the word"
    assert len(engine.tokenizer.encode("word", add_special_tokens=False)) == 1, "merges are read"
    added = {token: engine.tokenizer.convert_tokens_to_ids(token) for token in (*layout.special.values(), *layout.more)}
    named = {added[layout.special["eos_token"]], *(added[end] for end in layout.ends)}
    assert set(read_config(folder)[0].eos_ids) == named <= set(config.eos_ids)
    if config.attention != "causal":
        assert config.mask_id == added[layout.special.get("mask_token", "<|mdm_mask|>")]
    messages = [{"role": "user", "content": "word"}]
    assert "user\nword" in engine.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    as_hub(folder, hub, f"owner/{name}")
    assert answers(f"owner/{name}", name)[1] == ids


def test_an_mrp_checkpoint_brings_its_head(tmp_path):
    folder = make_checkpoint(tmp_path / "m", "sdar-1.7b-mrp-3lyr")
    engine = dlmbench.load(str(folder), method="mrp", block_length=4, device="cpu")
    assert len(engine.nets["head"].model.layers) == 3
    weights = tensors(folder)
    weights["mrp_modules.0.model.layers.1.self_attn.q_proj.bias"] = torch.zeros(32)
    write_weights(folder, weights)
    with pytest.raises(RequestError, match="layers.1.self_attn.q_proj.bias"):
        dlmbench.load(str(folder), method="mrp", block_length=4, device="cpu")


# --- configurations ---------------------------------------------------------------------------------------------------


def test_configurations_in_the_spelling_of_newer_libraries_load(tmp_path):
    folder = make_checkpoint(tmp_path / "m", SDAR)
    want = read_config(folder)[0]
    edit(
        folder / "config.json", rope_theta=..., rope_scaling=..., torch_dtype=..., dtype="bfloat16",
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"}, layer_types=["full_attention"] * 2,
        quantization_config=None, sliding_window=16, use_sliding_window=True, architectures=...,
    )  # fmt: skip
    data = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + data)
    assert read_config(folder)[0] == want


@pytest.mark.parametrize(
    "name, changes, words",
    [
        (SDAR, {"attention_bias": True}, "attention_bias=True"),
        ("Qwen3-8B", {"attention_bias": True}, "attention_bias=True"),
        ("Qwen3-8B", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("Qwen3-8B", {"num_experts": 8}, "num_experts=8"),
        ("Qwen3-8B", {"mlp_bias": True}, "mlp_bias=True"),
        ("Qwen2.5-1.5B-Instruct", {"use_sliding_window": True}, "sliding_window=256"),
        (SDAR, {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}, "sliding_window=4"),
        (SDAR, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        (SDAR, {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor"),
        (SDAR, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (SDAR, {"vocab_size": ...}, "no vocab_size"),
        (SDAR, {"hidden_size": None}, "no hidden_size"),
        (SDAR, {"hidden_size": "64"}, "hidden_size='64'"),
        (SDAR, {"eos_token_id": "<eos>"}, "eos_token_id='<eos>'"),
        (SDAR, {"layer_types": 3}, "a field of another kind"),
        (SDAR, {"rope_scaling": "yarn"}, "rotary settings"),
        (SDAR, {"mask_token_id": 151669}, "151669"),
        (SDAR, {"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        (SDAR, {"model_type": "qwen3"}, "SDARForCausalLM"),
        ("Qwen3-8B", {"architectures": ["A2DForMaskedLM"]}, "A2DForMaskedLM"),
        (SDAR, {"model_type": "sdar_moe"}, "sdar_moe"),
        (LLADA, {"architectures": ["LLaDAMoEModelLM"]}, "no expert_intermediate_size"),
        (LLADA, {"d_model": ...}, "no d_model"),
        (LLADA, {"activation_type": "swiglu"}, "activation_type"),
        (LLADA, {"clip_qkv": 8.0}, "clip_qkv"),
    ],
)
def test_what_is_not_built_is_refused_by_its_name_before_anything_is_loaded(name, changes, words, tmp_path):
    folder = make_checkpoint(tmp_path / "my model", name, **changes)
    with pytest.raises(RequestError, match=words) as refusal:
        read_config(folder)
    assert str(refusal.value).startswith("my model") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [SDAR, DREAM])
@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_mask_id_that_the_configuration_lacks_is_the_tokenizers(name, place, tmp_path):
    folder = make_checkpoint(tmp_path / "m", name)
    want = read_config(folder)[0].mask_id
    edit(folder / "config.json", mask_token_id=None if place == "tokenizer.json" else ...)
    if place == "tokenizer.json":
        load_tokenizer(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))
    if place != "added_tokens.json":
        (folder / "added_tokens.json").unlink()
    if place != "tokenizer_config.json":
        edit(folder / "tokenizer_config.json", added_tokens_decoder=...)
    assert read_config(folder)[0].mask_id == want


@pytest.mark.parametrize("name, constant", [(SDAR, 151_669), (LLADA, 126_336), (DREAM, 151_666)])
def test_without_a_mask_anywhere_the_familys_is_taken_where_the_vocabulary_has_it(name, constant, tmp_path):
    rows = "embedding_size" if name == LLADA else "vocab_size"
    folder = make_checkpoint(tmp_path / "m", name, mask_token_id=..., **{rows: 152_064})
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            edit(folder / file, mask_token=...)
    assert read_config(folder)[0].mask_id == constant
    edit(folder / "config.json", **{rows: 320})
    with pytest.raises(RequestError, match="no mask_token_id"):
        read_config(folder)


def test_two_files_that_disagree_about_the_mask_are_told(tmp_path, capsys):
    folder = make_checkpoint(tmp_path / "m", SDAR, mask_token_id=7)
    assert answers(folder)[0].target.config.mask_id == 7
    assert "the mask id is 7 by config.json" in capsys.readouterr().err


# --- files ------------------------------------------------------------------------------------------------------------


def _cut(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    "file, spoil, words",
    [
        ("config.json", lambda f: f.write_text('{\n  "model_type": "sdar",\n'), "config.json is no JSON"),
        ("config.json", lambda f: f.write_text("[]"), "config.json holds a list"),
        ("config.json", lambda f: f.write_text(""), "config.json is empty"),
        ("config.json", lambda f: f.write_text("<!DOCTYPE html><html>"), "config.json is a web page"),
        ("config.json", lambda f: f.write_text(f.read_text(), "utf-16"), "config.json is not UTF-8"),
        ("generation_config.json", lambda f: f.write_text("{"), "generation_config.json is no JSON"),
        ("model.safetensors.index.json", lambda f: f.write_text(POINTER), "index.json is a git-lfs pointer"),
        ("model.safetensors.index.json", lambda f: f.write_text('{"weight_map": []}'), "no weight_map"),
        ("model-00002-of-00002.safetensors", lambda f: f.write_text(POINTER), "git lfs pull"),
        ("model-00002-of-00002.safetensors", _cut, "is cut off"),
        ("model-00002-of-00002.safetensors", lambda f: f.write_bytes(b"\x01" * 99), "cut off or damaged"),
        ("model-00002-of-00002.safetensors", lambda f: f.write_text("<html>Not found</html>"), "web page"),
        ("model-00002-of-00002.safetensors", Path.unlink, "00002-of-00002.safetensors is missing"),
        ("vocab.json", Path.unlink, "lacks vocab.json"),
        ("vocab.json", lambda f: f.write_text(POINTER), "vocab.json is a git-lfs pointer"),
        ("vocab.json", lambda f: f.write_text("{"), "vocab.json is no JSON"),
        ("merges.txt", Path.unlink, "lacks merges.txt"),
        ("merges.txt", lambda f: f.write_text("#version: 0.2\nw o\n"), "merges.txt is cut off"),
        ("added_tokens.json", lambda f: f.write_text("[]"), "added_tokens.json holds a list"),
        ("tokenizer_config.json", lambda f: edit(f, added_tokens_decoder=[1]), "No tokenizer could be read"),
        ("generation_config.json", lambda f: edit(f, eos_token_id="<eos>"), "generation_config.json has eos_token_id"),
    ],
)
def test_a_broken_file_is_one_sentence_with_the_model_the_file_and_the_remedy(file, spoil, words, tmp_path, hub):
    spoil(make_checkpoint(tmp_path / "m", SDAR) / file)
    as_hub(tmp_path / "m", hub, "owner/model")
    with pytest.raises(RequestError, match=words) as refusal:
        answers("owner/model")
    assert "owner/model" in str(refusal.value) and "\n" not in str(refusal.value)


def test_refusals_come_in_order_of_their_cost(tmp_path):
    folder = make_checkpoint(tmp_path / "m", SDAR, hidden_act="gelu")
    merges = (folder / "merges.txt").read_bytes()
    (folder / "merges.txt").unlink()
    _cut(folder / "model-00001-of-00002.safetensors")
    for words, repair in (
        ("hidden_act", lambda: edit(folder / "config.json", hidden_act="silu")),
        ("merges.txt", lambda: (folder / "merges.txt").write_bytes(merges)),
        ("cut off", lambda: None),
    ):
        with pytest.raises(RequestError, match=words):
            answers(folder)
        repair()


def test_the_files_that_the_index_names_are_read_and_no_others(tmp_path):
    folder = make_checkpoint(tmp_path / "m", SDAR)
    want, files = load_checkpoint(folder), weight_files(folder)
    stale = {name: torch.zeros_like(one) for name, one in tensors(folder).items()}
    for number in range(4):
        part = {name: stale[name] for name in sorted(stale)[number::4]}
        save_file(part, folder / f"model-{number + 1:05d}-of-00004.safetensors")
    save_file({"model.norm.weight": torch.zeros(32)}, folder / "adapter_model.safetensors")
    assert weight_files(folder) == files
    again = load_checkpoint(folder)
    assert all(torch.equal(a, b) for a, b in zip(want.parameters(), again.parameters(), strict=True))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(RequestError, match="2 sets of shards"):
        load_checkpoint(folder)
    for file in folder.glob("*-of-00004.safetensors"):
        file.unlink()
    assert weight_files(folder) == files, "numbered shards need no index"
    files[0].unlink()
    with pytest.raises(RequestError, match="00001-of-00002.safetensors is missing"):
        load_checkpoint(folder)


# --- tensors ----------------------------------------------------------------------------------------------------------


def _fp8(weights):
    found = {n: w.to(torch.float8_e4m3fn) if "_proj" in n else w for n, w in weights.items()}
    return {**found, **{f"{n}_scale_inv": torch.ones(1, 1) for n in weights if "_proj" in n}}


def _int8(weights):
    return {n: (w * 100).to(torch.int8) if "q_proj" in n else w for n, w in weights.items()}


def _renamed(old, new):
    return lambda weights: {n.replace(old, new): w for n, w in weights.items()}


def _without(part):
    return lambda weights: {n: w for n, w in weights.items() if part not in n}


def _with(**more):
    return lambda weights: {**weights, **{n.replace("__", "."): torch.ones(size) for n, size in more.items()}}


@pytest.mark.parametrize(
    "change, words",
    [
        (_fp8, "quantised with fp8"),
        (_int8, "q_proj.weight is stored as I8"),
        (_renamed("proj.weight", "proj.qweight"), "quantised with awq or gptq"),
        (_with(model__layers__0__mlp__up_proj__weight__absmax=3), "quantised with bitsandbytes"),
        (lambda weights: {f"module.{n}": w for n, w in weights.items()}, "begin with 'module.'"),
        (lambda weights: {f"_orig_mod.{n}": w for n, w in weights.items()}, "begin with '_orig_mod.'"),
        (lambda weights: {n.removeprefix("model."): w for n, w in weights.items()}, "lack the beginning 'model.'"),
        (_renamed("mlp.", "mlp.experts.0."), "mixtures of experts"),
        (_without("layers.1."), "2 layers and the files hold 1"),
        (_without("lm_head"), "lm_head.weight is missing"),
        (_with(model__layers__0__self_attn__q_proj__bias=32), "layers.0.self_attn.q_proj.bias"),
        (_with(model__layers__0__self_attn__q_proj__lora_A__weight=32), "lora_A"),
        (_with(**{f"a{i}": 1 for i in range(5)}), "a0, a1, a2 and 2 more"),
    ],
)
def test_tensors_that_cannot_be_loaded_rightly_are_refused_with_what_the_files_hold(change, words, tmp_path):
    folder = make_checkpoint(tmp_path / "m", SDAR)
    write_weights(folder, change(tensors(folder)))
    with pytest.raises(RequestError, match=words) as refusal:
        load_checkpoint(folder)
    assert str(refusal.value).startswith("m") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "extra", ["model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq", "mtp_modules.0.model.x"]
)
def test_tensors_that_change_nothing_are_passed_over(extra, tmp_path):
    folder = make_checkpoint(tmp_path / "m", SDAR)
    write_weights(folder, {**tensors(folder), extra: torch.ones(8)})
    load_checkpoint(folder)


def test_a_tied_head_may_be_saved_when_it_is_the_embedding(tmp_path):
    folder = make_checkpoint(tmp_path / "m", "Qwen2.5-1.5B-Instruct")
    weights = tensors(folder)
    embedding = weights["model.embed_tokens.weight"]
    write_weights(folder, {**weights, "lm_head.weight": embedding.clone()})
    load_checkpoint(folder)
    write_weights(folder, {**weights, "lm_head.weight": embedding + 1})
    with pytest.raises(RequestError, match="lm_head.weight that differs"):
        load_checkpoint(folder)


def test_parts_are_joined_and_converted_one_at_a_time(tmp_path, monkeypatch):
    found = Tensors(make_checkpoint(tmp_path / "m", SDAR))
    names = [f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"]
    parts = {name: found.get(name) for name in names}
    alive, read = [], found._read

    def watched(name):
        import weakref

        assert not any(ref() is not None for ref in alive), "the part before is still there"
        part = read(name)
        alive.append(weakref.ref(part))
        return part

    monkeypatch.setattr(found, "_read", watched)
    joined = found.joined(names, "cpu", torch.float32)
    assert torch.equal(joined, torch.cat(list(parts.values())).float()) and len(alive) == 3


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_a_tokenizer_class_that_transformers_does_not_know_is_read_as_its_familys(whole, tmp_path):
    folder = make_checkpoint(tmp_path / "m", DREAM)
    want = load_tokenizer(folder)
    if whole:
        want.backend_tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "vocab.json").unlink()
    found = load_tokenizer(folder)
    text = "the word<|im_end|> 2+2"
    assert found.encode(text) == want.encode(text) and len(found) == len(want)
    for role in ("mask", "bos", "eos", "pad"):
        assert getattr(found, f"{role}_token_id") == getattr(want, f"{role}_token_id") is not None


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path / "m", "Qwen3-8B")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(RequestError, match="no vocabulary"):
        load_tokenizer(folder)


# --- helpers and heads ------------------------------------------------------------------------------------------------


def _preset(folder, family=None):
    return Preset(folder.name, str(folder), family, "a folder")


def test_a_guide_is_compared_by_vocabulary_whichever_files_hold_it(tmp_path):
    from dlmbench.models.compatibility import check_companion

    target = make_checkpoint(tmp_path / "target", DREAM)
    guide = make_checkpoint(tmp_path / "guide", "Qwen2.5-1.5B-Instruct", vocab_size=288)
    check_companion("guide", _preset(target), _preset(guide))
    vocabulary = read_json(target / "vocab.json")
    (target / "vocab.json").write_text(json.dumps(dict(zip(reversed(vocabulary), range(300)))))
    with pytest.raises(RequestError, match="vocabulary size"):
        check_companion("guide", _preset(target), _preset(guide))


def test_a_head_needs_no_configuration_and_a_model_does(tmp_path):
    from dlmbench.models.presets import ASSETS
    from dlmbench.request import RunSpec

    head = tmp_path / "head"
    head.mkdir()
    (head / "model.safetensors").write_bytes(weight_files(ASSETS / "nano/nano2-policy")[0].read_bytes())
    spec = RunSpec(method="learned_policy", task="nano-gsm", model="nano2-llada", head=str(head))
    assert spec.resolve().companions["head"] == str(head)
    with pytest.raises(RequestError, match="no config.json"):
        RunSpec(method="static", task="nano-gsm", model=str(head)).resolve()


def test_the_stored_dtype_and_the_name_of_a_model_are_known_in_the_hubs_cache(tmp_path, hub):
    snapshot = as_hub(make_checkpoint(tmp_path / "m", SDAR), hub, "owner/model-x")
    assert (file_dtype(snapshot), model_name(snapshot)) == ("bfloat16", "owner/model-x")
    weights = tensors(tmp_path / "m")
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    write_weights(tmp_path / "m", weights, 2)
    assert file_dtype(tmp_path / "m") == "bfloat16+float32"


def test_the_plain_tokenizer_of_the_shipped_models_is_that_of_transformers():
    whole, plain = (load_tokenizer(ASSETS / "nano" / "tokenizer", plain=plain) for plain in (False, True))
    assert isinstance(plain, PlainTokenizer) and not isinstance(whole, PlainTokenizer)
    path = ASSETS.parent / "tasks" / "nano" / "data" / "nano-gsm-test.jsonl"
    texts = [*path.read_text().splitlines()[:50], "<|sep|> a<|eos|>", "", "é 12 <|unheard|>  x\n"]
    for text in texts:
        ids = whole.encode(text)
        assert plain.encode(text) == ids and plain.encode(text, add_special_tokens=False) == ids
        for skip in (False, True):
            assert plain.decode(ids, skip_special_tokens=skip) == whole.decode(ids, skip_special_tokens=skip)
    for name in ("bos_token", "eos_token", "eos_token_id", "mask_token", "mask_token_id", "chat_template"):
        assert getattr(plain, name) == getattr(whole, name), name
    for given in (texts[0], texts[:2]):
        assert plain(given)["input_ids"] == whole(given)["input_ids"]
    assert plain.get_vocab() == whole.get_vocab() and len(plain) == len(whole)
    ours, theirs = (
        {number: (token.content, token.special) for number, token in one.added_tokens_decoder.items()}
        for one in (plain, whole)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "change",
    [{"tokenizer_class": "Qwen2Tokenizer"}, {"chat_template": "x"}, {"add_bos_token": True}, {"eos_token": "<|new|>"},
     {"clean_up_tokenization_spaces": True}],
)  # fmt: skip
def test_a_tokenizer_whose_configuration_adds_something_is_left_to_transformers(tmp_path, change):
    shutil.copytree(ASSETS / "nano" / "tokenizer", tmp_path / "t")
    said = tmp_path / "t" / "tokenizer_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | change))
    assert plain_tokenizer(tmp_path / "t") is None


@pytest.mark.parametrize("size", [64, 65])
def test_packed_weights_come_back_bit_for_bit(tmp_path, monkeypatch, size):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    whole = folder / "model.safetensors"
    whole.write_bytes(bytes(range(size)))
    packed = files.pack(whole)
    assert not whole.exists() and files.has_weights(folder)
    (found,) = files.weight_files(folder)
    assert found.name == whole.name and found.read_bytes() == bytes(range(size))
    made = found.stat().st_mtime_ns
    assert files.unpacked(packed) == found and found.stat().st_mtime_ns == made, "unpacked once"


def test_packed_weights_need_no_cache_that_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = tmp_path / "model.safetensors"
    whole.write_bytes(b"0123456789")
    assert files.unpacked(files.pack(whole)).read_bytes() == b"0123456789"


def test_damaged_packed_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = tmp_path / files.PACKED
    packed.write_bytes(b"<html>")
    with pytest.raises(RequestError, match="is cut off or damaged: fetch it again"):
        files.weight_files(tmp_path)


def test_shipped_weights_are_what_their_hashes_say():
    """The packed files hold the very weights that all results were made with."""
    from dlmbench.models.presets import ASSETS

    known = {"nano2": "36eef133a61490ec", "nano2-llada": "01e73e10601ceea1"}
    assert {name: files.weights_hash(ASSETS / "nano" / name) for name in known} == known
