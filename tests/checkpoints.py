"""Tiny random checkpoints in the layouts of released ones: same files, fields, names of tensors and of tokenizer
classes; a width of 32 and a byte-level vocabulary of some 300 tokens in place of the real ones.

    folder = make_checkpoint(tmp_path / "m", "Dream-v0-Instruct-7B")
    as_hub(folder, tmp_path / "hub", "Dream-org/Dream-v0-Instruct-7B")  # in the hub's cache, as its client leaves it
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER, ROWS = 32, 2, 2, 1, 16, 48, 320
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Layout:
    """How one released checkpoint is laid out."""

    model_type: str
    architecture: str
    tokenizer_class: str
    special: dict[str, str]  # role in tokenizer_config.json -> token
    more: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")  # added tokens without a role
    ends: tuple[str, ...] = ()  # eos_token_id of generation_config.json; config.json has the tokenizer's eos alone
    own_class: str | None = None  # auto_map of the tokenizer
    whole_tokenizer: bool = False  # tokenizer.json; otherwise vocab.json and merges.txt
    chat: str = "config"  # where the chat template is: config, jinja, none
    tied: bool = False
    shards: int = 2
    config: dict[str, Any] = field(default_factory=dict)  # fields that only this layout has
    own_code: bool = True  # auto_map in config.json
    mask_in_config: bool = True  # where the tokenizer names a mask token
    qk_norm: bool | None = None  # norms of queries and keys, no biases; None: as the model type has it

    @property
    def norms(self) -> bool:
        return self.model_type in ("sdar", "qwen3", "a2d-qwen3") if self.qk_norm is None else self.qk_norm

    @property
    def bias(self) -> bool:
        return not self.norms and self.model_type in ("Dream", "qwen2", "a2d-qwen2", "Fast_dLLM_Qwen")


_END, _TURN = "<|endoftext|>", "<|im_end|>"
_SDAR = dict(
    tokenizer_class="Qwen2Tokenizer",
    special={"eos_token": _END, "pad_token": _END, "mask_token": "<|MASK|>"},
    ends=(_TURN, _END),
    own_class="tokenization_qwen2.Qwen2Tokenizer",
    chat="jinja",
)
_DREAM = dict(
    tokenizer_class="DreamTokenizer",
    special={"eos_token": _END, "pad_token": _END, "bos_token": "<|beginoftext|>", "mask_token": "<|mask|>"},
    ends=(_END,),
    own_class="tokenization_dream.DreamTokenizer",
)
_LLADA = Layout(
    "llada",
    "LLaDAModelLM",
    "PreTrainedTokenizerFast",
    {"eos_token": _END, "pad_token": _END, "bos_token": "<|startoftext|>"},
    more=("<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ends=(_END,),
    whole_tokenizer=True,
    shards=6,
    config={
        "activation_type": "silu", "alibi": False, "block_type": "llama", "include_bias": False, "clip_qkv": None,
        "include_qkv_bias": False, "layer_norm_type": "rms", "layer_norm_with_affine": True, "rope": True,
        "multi_query_attention": None, "rope_full_precision": True, "scale_logits": False, "rope_theta": 500000.0,
    },
)  # fmt: skip
_QWEN = dict(
    tokenizer_class="Qwen2Tokenizer",
    special={"eos_token": _TURN, "pad_token": _END},
    more=("<|im_start|>",),
    ends=(_TURN, _END),
    whole_tokenizer=True,
)
_NO_BIAS = {"attention_bias": False, "sliding_window": None, "use_sliding_window": False, "max_window_layers": LAYERS}

LAYOUTS = {
    "SDAR-1.7B-Chat": Layout("sdar", "SDARForCausalLM", config={**_NO_BIAS, "block_size": 4}, **_SDAR),
    "SDAR-4B-Chat": Layout("sdar", "SDARForCausalLM", config={**_NO_BIAS, "block_size": 4}, **_SDAR),
    "SDAR-8B-Chat": Layout("sdar", "SDARForCausalLM", config={**_NO_BIAS, "block_size": 4}, **{**_SDAR, "shards": 4}),
    "sdar-1.7b-mrp-3lyr": Layout(
        "sdar",
        "SDARMRPForCausalLM",
        config={**_NO_BIAS, "block_size": 16, "num_nextn_predict_layers": 3, "num_mrp_heads": 1},
        **_SDAR,
    ),
    "LLaDA-8B-Base": _LLADA,
    "LLaDA-8B-Instruct": _LLADA,
    "LLaDA-1.5": _LLADA,
    "Dream-v0-Base-7B": Layout("Dream", "DreamModel", **_DREAM),
    "Dream-v0-Instruct-7B": Layout("Dream", "DreamModel", **_DREAM),
    "DiffuCoder-7B-Instruct": Layout(
        "Dream", "DreamModel", **{**_DREAM, "special": {**_DREAM["special"], "pad_token": "<|dlm_pad|>"}}
    ),
    "Qwen3-8B": Layout("qwen3", "Qwen3ForCausalLM", config=_NO_BIAS, **_QWEN),
    "Qwen2.5-1.5B-Instruct": Layout(
        "qwen2",
        "Qwen2ForCausalLM",
        tied=True,
        shards=1,
        config={"sliding_window": 256, "use_sliding_window": False, "max_window_layers": 1},
        **_QWEN,
    ),
}
_A2D = dict(
    tokenizer_class="Qwen2Tokenizer",
    special={"eos_token": _TURN, "pad_token": _END, "bos_token": _END},
    more=("<|im_start|>", "<|mask|>"),
    ends=(_TURN,),
    whole_tokenizer=True,
    tied=True,
    shards=1,
    own_code=False,
)
_MASKED = {**_A2D, "special": {**_A2D["special"], "mask_token": "<|mask|>"}, "mask_in_config": False}
_FASTDLLM2 = dict(
    tokenizer_class="Qwen2Tokenizer", special={"eos_token": _TURN, "pad_token": _TURN}, ends=(_TURN, _END),
    more=("<|im_start|>", "|<MASK>|"), config={"bd_size": 32, "use_sliding_window": False, "sliding_window": None},
)  # fmt: skip
_ILLADA = dict(
    tokenizer_class="PreTrainedTokenizerFast", special={"eos_token": _END, "pad_token": "<pad>"}, ends=(_END,),
    whole_tokenizer=True, tied=True, config={"attention_bias": False, "mlp_bias": False, "layer_norm_eps": None},
)  # fmt: skip

NEWER = {  # of 2025 and 2026: a parent's layout with another descriptor
    "iLLaDA-8B-Base": Layout("illada", "ILLaDAForCausalLM", **_ILLADA),
    "iLLaDA-8B-Instruct": Layout("illada", "ILLaDAForCausalLM", **_ILLADA),
    "DreamReasoner-8B": Layout(
        "Dream", "DreamForCausalLM", **{**_SDAR, "special": {**_SDAR["special"], "mask_token": "<|mask|>"}},
        config={**_NO_BIAS, "block_size": 32}, qk_norm=True,
    ),
    "Qwen3-0.6B-diffusion-mdlm-v0.1": Layout("a2d-qwen3", "A2DQwen3LMHeadModel", config=_NO_BIAS, **_MASKED),
    "Qwen3-0.6B-diffusion-bd3lm-v0.1": Layout("a2d-qwen3", "A2DQwen3LMHeadModel", config=_NO_BIAS, **_MASKED),
    "Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1": Layout("a2d-qwen2", "A2DQwen2LMHeadModel", **_MASKED),
    "Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1": Layout("a2d-qwen2", "A2DQwen2LMHeadModel", **_MASKED),
    "Fast_dLLM_v2_1.5B": Layout("Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM", tied=True, **_FASTDLLM2),
    "Fast_dLLM_v2_7B": Layout("Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM", **_FASTDLLM2),
    "Stable-DiffCoder-8B-Instruct": Layout(
        "llama", "StableDiffcoderForCausalLM", "PreTrainedTokenizerFast",
        {"eos_token": _END, "pad_token": "<pad>", "mask_token": "<[MASK_TOKEN]>"}, ends=(_END,), whole_tokenizer=True,
        mask_in_config=False, config={"attention_bias": False, "mlp_bias": False},
    ),
    "Efficient-DLM-4B": Layout("qwen3", "EfficientForCausalLM", config=_NO_BIAS, **_QWEN),
    "Dream-Coder-v0-Instruct-7B": Layout("Dream", "DreamModel", **_DREAM),
    "dParallel-LLaDA-8B-instruct": _LLADA,
    "dParallel_Dream_7B_Instruct": Layout("Dream", "DreamModel", **_DREAM),
    "d3LLM_LLaDA": _LLADA,
    "d3LLM_Dream": Layout("Dream", "DreamModel", **_DREAM),
    "d3LLM_Dream_Coder": Layout("Dream", "DreamModel", **_DREAM),
    "TraDo-4B-Instruct": Layout("sdar", "SDARForCausalLM", config={**_NO_BIAS, "block_size": 4}, **_SDAR),
    "TraDo-8B-Instruct": Layout("sdar", "SDARForCausalLM", config={**_NO_BIAS, "block_size": 4}, **_SDAR),
    **{
        f"SDAR-{size}-Chat-b{block}": Layout(
            "sdar", "SDARForCausalLM", config={**_NO_BIAS, "block_size": block}, **_SDAR
        )
        for size in ("1.7B", "4B", "8B")
        for block in (8, 16, 32, 64)
    },
}  # fmt: skip


def make_checkpoint(folder: Path, name: str, seed: int = 0, **config: Any) -> Path:
    """A checkpoint of random bfloat16 weights in `folder`; `config` replaces fields of config.json (``...``: none)."""
    layout = {**LAYOUTS, **NEWER}[name]
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder, layout)
    pad, end = ids[layout.special["pad_token"]], ids[layout.special["eos_token"]]
    _dump(folder / "config.json", {**_config(layout, ids), "eos_token_id": end, "pad_token_id": ids[_END]})
    _dump(folder / "generation_config.json", {"eos_token_id": [ids[e] for e in layout.ends], "pad_token_id": pad})
    edit(folder / "config.json", **config)
    torch.manual_seed(seed)
    write_weights(folder, _weights(layout), layout.shards)
    return folder


def as_hub(folder: Path, cache: Path, repository: str) -> Path:
    """The same files in a hub cache: contents among its blobs, named by sha256 (weights) or sha1; the snapshot."""
    root = cache / f"models--{repository.replace('/', '--')}"
    revision = hashlib.sha1(repository.encode()).hexdigest()
    snapshot = root / "snapshots" / revision
    for place in (root / "blobs", root / "refs", snapshot):
        place.mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    for file in folder.iterdir():
        data = file.read_bytes()
        digest = hashlib.sha256(data) if file.suffix == ".safetensors" else hashlib.sha1(data)
        blob = root / "blobs" / digest.hexdigest()
        blob.write_bytes(data)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def edit(file: Path, **changes: Any) -> None:
    """Replace fields of a JSON file; ``...`` removes one."""
    record = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    _dump(file, {name: value for name, value in record.items() if value is not ...})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


def write_weights(folder: Path, weights: dict[str, torch.Tensor], shards: int = 1) -> None:
    """model.safetensors, or numbered shards with their index, in the place of what was there."""
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        file.unlink()
    weights = {name: one.contiguous() for name, one in weights.items()}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in sorted(weights)[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    _dump(folder / "model.safetensors.index.json", {"metadata": {"total_size": 0}, "weight_map": places})


# --- parts ------------------------------------------------------------------------------------------------------------


def _dump(file: Path, record: Any) -> None:
    file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(layout: Layout, ids: dict[str, int]) -> dict[str, Any]:
    usual = {
        "architectures": [layout.architecture],
        **({"auto_map": {"AutoModel": f"modeling.{layout.architecture}"}} if layout.own_code else {}),
        "model_type": layout.model_type,
        "torch_dtype": "bfloat16",
        "rope_theta": 1000000.0,
        **layout.config,
    }
    mask = layout.special.get("mask_token") or ("<|mdm_mask|>" if layout.model_type == "llada" else None)
    if mask and layout.mask_in_config:
        usual["mask_token_id"] = ids[mask]
    if layout.model_type == "llada":
        sizes = {
            "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": HEADS, "mlp_hidden_size": INNER,
            "max_sequence_length": 512, "embedding_size": ROWS, "vocab_size": ROWS, "rms_norm_eps": 1e-5,
            "weight_tying": layout.tied,
        }  # fmt: skip
        return {**usual, **sizes}
    sizes = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": ROWS,
        "num_key_value_heads": KV_HEADS, "intermediate_size": INNER, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": layout.tied, "rope_scaling": None,
    }  # fmt: skip
    return {**usual, **sizes, **({"head_dim": HEAD_DIM} if layout.norms else {})}


def _write_tokenizer(folder: Path, layout: Layout) -> dict[str, int]:
    """The layout's own tokenizer files; token -> id of its added tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("w", "o"), ("r", "d"), ("wo", "rd"), ("Ġ", "word"), ("t", "h"), ("th", "e")]
    vocabulary = {token: number for number, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
    added = list(dict.fromkeys([*layout.special.values(), *layout.more, _END]))
    ids = {token: len(vocabulary) + number for number, token in enumerate(added)}
    settings = {"tokenizer_class": layout.tokenizer_class, **layout.special, "model_max_length": 512}
    if layout.whole_tokenizer:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(added)
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        _dump(folder / "vocab.json", vocabulary)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _dump(folder / "added_tokens.json", ids)
        _dump(folder / "special_tokens_map.json", {role: {"content": token} for role, token in layout.special.items()})
    settings["added_tokens_decoder"] = {
        str(number): {
            "content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
            "single_word": False,
        }
        for token, number in ids.items()
    }  # fmt: skip
    if layout.own_class:
        settings["auto_map"] = {"AutoTokenizer": [layout.own_class, None]}
        module = layout.own_class.partition(".")[0]
        (folder / f"{module}.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    if layout.chat == "jinja":
        (folder / "chat_template.jinja").write_text(CHAT)
    elif layout.chat == "config":
        settings["chat_template"] = CHAT
    _dump(folder / "tokenizer_config.json", settings)
    return ids


def _weights(layout: Layout) -> dict[str, torch.Tensor]:
    if layout.model_type == "llada":
        return _llada_weights()
    bias, norms = layout.bias, layout.norms
    found = {"model.embed_tokens.weight": _random(ROWS, WIDTH), "model.norm.weight": _ones(WIDTH)}
    found |= _layers("model.", LAYERS, bias, norms)
    if not layout.tied:
        found["lm_head.weight"] = _random(ROWS, WIDTH)
    if "num_nextn_predict_layers" in layout.config:
        module = "mrp_modules.0.model."
        found |= {f"{module}{norm}.weight": _ones(WIDTH) for norm in ("enorm", "hnorm", "norm")}
        found[f"{module}eh_proj.weight"] = _random(WIDTH, 2 * WIDTH)
        found |= _layers(module, layout.config["num_nextn_predict_layers"], bias, norms)
        found[f"{module}embed_tokens.weight"] = found["model.embed_tokens.weight"].clone()
        found["mrp_modules.0.lm_head.weight"] = found["lm_head.weight"].clone()
    return found


def _layers(prefix: str, count: int, bias: bool, norms: bool) -> dict[str, torch.Tensor]:
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {
        "self_attn.q_proj": (queries, WIDTH), "self_attn.k_proj": (keys, WIDTH), "self_attn.v_proj": (keys, WIDTH),
        "self_attn.o_proj": (WIDTH, queries), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }  # fmt: skip
    found = {}
    for layer in (f"{prefix}layers.{number}." for number in range(count)):
        found |= {f"{layer}{name}.weight": _random(*shape) for name, shape in shapes.items()}
        found |= {f"{layer}{name}.weight": _ones(WIDTH) for name in ("input_layernorm", "post_attention_layernorm")}
        if norms:
            found |= {f"{layer}self_attn.{x}_norm.weight": _ones(HEAD_DIM) for x in "qk"}
        if bias:
            found |= {f"{layer}self_attn.{x}_proj.bias": _random(shapes[f"self_attn.{x}_proj"][0]) for x in "qkv"}
    return found


def _llada_weights() -> dict[str, torch.Tensor]:
    base = "model.transformer."
    found = {f"{base}wte.weight": _random(ROWS, WIDTH), f"{base}ff_out.weight": _random(ROWS, WIDTH)}
    found[f"{base}ln_f.weight"] = _ones(WIDTH)
    for block in (f"{base}blocks.{number}." for number in range(LAYERS)):
        found |= {f"{block}{name}.weight": _ones(WIDTH) for name in ("attn_norm", "ff_norm")}
        names: Iterable[str] = ("q_proj", "k_proj", "v_proj", "attn_out")
        found |= {f"{block}{name}.weight": _random(WIDTH, WIDTH) for name in names}
        found |= {f"{block}{name}.weight": _random(INNER, WIDTH) for name in ("ff_proj", "up_proj")}
        found[f"{block}ff_out.weight"] = _random(WIDTH, INNER)
    return found


def _random(*shape: int) -> torch.Tensor:
    return (torch.randn(*shape) * 0.2).bfloat16()


def _ones(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bfloat16)
