"""Model presets: a short name for a checkpoint and the settings that belong to it. Imports nothing heavy.

`resolve` turns what a user gives to ``--model`` (a preset, a folder, a hub name) into a `Preset`. Values come from the
checkpoints' official configurations and the papers' evaluation settings (docs/models).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from dlmbench.backbone.descriptor import Descriptor, Told
from dlmbench.backbone.families import find
from dlmbench.errors import RequestError
from dlmbench.files import Json, JsonObject, has_weights, read_json
from dlmbench.registry import BACKBONES
from dlmbench.tasks.stress.answer_sets import KINDS

_Settings: TypeAlias = Mapping[str, Mapping[str, Json]]
ASSETS = Path(__file__).parents[1] / "assets"
ABSENT = "not in this copy; make train-nano makes it (in training-runs/)"

STATUS = {
    "measured": "its accuracy was measured by us, on the tasks that it was trained for",
    "traces": "its family decodes tiny random weights as golden traces have it; no accuracy of these weights is known",
    "layout": "files of its layout are read, on tiny random weights; no trace and no accuracy",
}
TRACED = {  # family -> its area of tests/golden
    "sdar": "sdar", "sdarmoe": "sdarmoe", "llada": "llada", "lladamoe": "lladamoe", "llada2": "llada2",
    "dream": "dream", "illada": "illada", "dreamreasoner": "dreamreasoner", "a2d-qwen3": "a2d", "a2d-qwen2": "a2d",
    "fastdllm2": "fastdllm2", "oracle": "oracle",
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """What a model name stands for."""

    name: str
    source: str  # hub name, or folder below assets/, or a local folder
    family: str | None  # None: read from the checkpoint's config.json
    description: str
    _: KW_ONLY
    descriptor: Descriptor = Descriptor()  # what its files do not say
    flags: Descriptor = Descriptor()  # what the user says of it
    shape: str | None = None  # its size among `dlmbench.models.shapes`, known before anything is downloaded
    like: str | None = None  # the preset that a local folder was recognised as
    block_length: int | None = None  # None: not known
    blocks: dict[str, int] = field(default_factory=dict)  # per task, where papers differ by task
    whole_answer: bool = False  # the block is the whole answer unless somebody says otherwise
    eos: dict[str, str] = field(default_factory=dict)  # per task, fixed schedules: EOS never, or last (sampling.eos)
    gen_length: dict[str, int] = field(default_factory=dict)  # per task; a task's own default otherwise
    chat_template: bool = False
    chat: str | None = None  # the template itself, for tokenizers that come without one
    revision: str | None = None
    companions: dict[str, str] = field(default_factory=dict)  # role, or role/method where methods differ -> preset name
    settings: _Settings = field(default_factory=dict)  # method, cache, sampling -> options here
    tokenizer: str | None = None  # where the tokenizer lives when it is not beside the weights
    trained: tuple[str, ...] = ()  # methods that it was trained for, of those that ask for it
    tasks: tuple[str, ...] = ()  # tasks it can be expected to solve; empty: a general model

    @property
    def told(self) -> Told:
        """All that is told of the checkpoint from outside its folder."""
        return Told(self.flags, self.descriptor, self.family if self.family in BACKBONES else None)

    @property
    def location(self) -> str:
        """Local folder (shipped or the user's), or hub name."""
        return str(ASSETS / self.source) if self.shipped else self.source

    @property
    def shipped(self) -> bool:
        """Does it belong to the package? Then it is never looked for on the hub."""
        return self.source.startswith("nano/") or self.source == "oracle"

    @property
    def status(self) -> str:
        """What is known of it, a key of `STATUS`."""
        if self.shipped and self.family != "oracle":
            return "measured"
        return "traces" if self.family in TRACED else "layout"

    @property
    def absent(self) -> bool:
        """Shipped, but this copy has no weights of it."""
        weightless = self.family == "oracle"
        return self.shipped and not weightless and not has_weights(Path(self.location))

    @property
    def tokenizer_location(self) -> str:
        if self.tokenizer is None:
            return self.location
        shipped = ASSETS / self.tokenizer
        return str(shipped) if shipped.is_dir() else self.tokenizer


_NANO2 = partial(
    Preset,
    tokenizer="nano/tokenizer",
    block_length=8,
    tasks=("nano-gsm", "nano-gsm-orders", "nano-code", *(f"stress-{kind}" for kind in KINDS)),
)
_ORACLE = partial(
    Preset, source="oracle", family="oracle", tokenizer="nano/tokenizer", block_length=8,
    settings={"adablock": {"delimiters": [202]}},
)  # fmt: skip
_BY_TOKENIZER: _Settings = {
    "pcsampler": {"table": "nano/tokenizer/frequency.json"},
    "adablock": {"delimiters": [202]},  # its newline
}
_DAEDAL: _Settings = {"daedal": {"initial": 32, "checked": 16}}  # of budgets of 64; on 50 dev items of an older sibling
_LONG: dict[str, int] = {"gsm8k": 512, "math500": 1024, "humaneval": 512, "mbpp": 512}
_SDAR = partial(Preset, family="sdar", block_length=4, gen_length=_LONG, chat_template=True)
_LLADA = partial(
    Preset, family="llada", shape="llada-8b", block_length=32, settings={"adablock": {"delimiters": [198]}}
)
_LAST: dict[str, str] = {"gsm8k": "last", "math500": "last", "mbpp": "last"}
_DREAM_ORDER: Mapping[str, Json] = {"order": "entropy", "schedule": "dream"}
_DREAM = partial(
    Preset,
    family="dream",
    shape="dream-7b",
    block_length=32,
    whole_answer=True,
    settings={
        **dict.fromkeys(("static", "prophet", "sched"), _DREAM_ORDER),
        "adablock": {"delimiters": [198, 271], "delimiter_tau": 0.5},  # a newline, two newlines
        "sampling": {"filtered": True},
    },
)

_LING_CHAT = (  # of Ling's descendants; LLaDA2's turns stand behind the sentence that turns thinking off
    "{%- for m in messages if m.role != 'system' %}<role>{{ 'ASSISTANT' if m.role == 'assistant' else 'HUMAN' }}</role>"
    "{{ m.content }}<|role_end|>{%- endfor %}{%- if add_generation_prompt %}<role>ASSISTANT</role>{%- endif %}"
)
_LLADA2_CHAT = (
    "<role>SYSTEM</role>{%- for m in messages if m.role == 'system' %}{{ m.content }}\n{% endfor %}"
    "detailed thinking off<|role_end|>" + _LING_CHAT
)
_LLADA2 = partial(
    Preset,
    family="llada2",
    block_length=32,
    gen_length=dict.fromkeys(_LONG, 2048),
    chat_template=True,
    chat=_LLADA2_CHAT,
    settings={"threshold": {"tau": 0.95}, "edit": {"threshold": 0.7, "edit_threshold": 0.5}},  # 2.1's quality mode
)
_LLADAMOE = partial(
    Preset, family="lladamoe", shape="llada-moe-7b", block_length=64, gen_length=dict.fromkeys(_LONG, 1024)
)
_DREAM_CODER = partial(_DREAM, chat_template=True, gen_length={"humaneval": 768, "mbpp": 1024})
_A2D = partial(Preset, gen_length=dict.fromkeys(_LONG, 256), chat_template=True)
_MDLM = Descriptor(attention="full")
_BD3LM = Descriptor(attention="block_causal", block_length=32, grid="prompt")
_ONE_BLOCK: _Settings = {"static": {"schedule": "linear", "steps": 256}}  # of 256 tokens in 256 steps
_BLOCKS: _Settings = {"static": {"schedule": "linear", "steps": 32}}  # 256 steps for eight blocks
_QWEN3_MASK = 151_669  # Qwen2.5's tokenizer ends elsewhere and names its own

_CAUSAL = partial(Preset, family="qwen2", block_length=1, gen_length=_LONG, chat_template=True)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _NANO2(
            "nano2",
            "nano/nano2",
            "sdar",
            "shipped block-diffusion model, 2.7 M parameters",
            companions={"draft": "nano2-draft", "head/mrp": "nano2-mrp"},
            settings={**_BY_TOKENIZER, "mrp": {"tau": 0.7}},  # least tau that lost nothing to static on 120 dev items
        ),
        _NANO2("nano2-draft", "nano/nano2-draft", "sdar", "shipped small draft of nano2"),
        _NANO2("nano2-mrp", "nano/nano2-mrp", "mrp", "shipped MRP module, a --head of nano2"),
        _NANO2("nano2-mrp-remask", "nano/nano2-mrp-remask", "mrp", "nano2-mrp, trained at revealed positions too"),
        _NANO2("nano2-ar", "nano/nano2-ar", "qwen3", "shipped autoregressive sibling of nano2"),
        _NANO2(
            "nano2-rcd",
            "nano/nano2-rcd",
            "sdar",
            "nano2, trained on with residuals for --method rcd",
            companions={"reference": "nano2-rcd-ref"},
            settings=_BY_TOKENIZER,
        ),
        _NANO2("nano2-rcd-ref", "nano/nano2-rcd-ref", "sdar", "shipped light reference of nano2-rcd's residuals"),
        _NANO2(
            "nano2-llada",
            "nano/nano2-llada",
            "llada",
            "shipped full-attention sibling of nano2, LLaDA layout",
            companions={"guide": "nano2-ar", "head/adjust": "nano2-adjust", "head/learned_policy": "nano2-policy"},
            settings={**_BY_TOKENIZER, **_DAEDAL},
        ),
        _NANO2("nano2-adjust", "nano/nano2-adjust", "adjust", "shipped ADJUST sampler, a --head of nano2-llada"),
        _NANO2("nano2-policy", "nano/nano2-policy", "policy", "shipped unmasking policy, a --head of nano2-llada"),
        _ORACLE(
            name="oracle",
            description="ideal model without weights, for tasks that list their answers",
            whole_answer=True,
        ),
        _ORACLE(
            name="oracle-block",
            description="the same with block-causal attention",
            descriptor=Descriptor(attention="block_causal", shift=0),
        ),
        _SDAR("sdar-1.7b", "JetLM/SDAR-1.7B-Chat", description="SDAR 1.7B chat, block 4", shape="sdar-1.7b"),
        _SDAR(
            "sdar-4b",
            "JetLM/SDAR-4B-Chat",
            description="SDAR 4B chat, block 4",
            shape="sdar-4b",
            companions={"draft": "sdar-1.7b"},
        ),
        _SDAR(
            "sdar-8b",
            "JetLM/SDAR-8B-Chat",
            description="SDAR 8B chat, block 4",
            shape="sdar-8b",
            companions={"draft": "sdar-1.7b"},
        ),
        *(
            _SDAR(
                f"sdar-{size}-mrp",
                f"heavyball/sdar-{size}-mrp-3lyr",
                description=f"SDAR {size.upper()}, block 16, with its MRP module",
                shape=f"sdar-{size}",
                companions={"head": f"sdar-{size}-mrp"},
                settings={"mrp": {"tau": 0.8}},
                block_length=16,
            )
            for size in ("1.7b", "4b", "8b")
        ),
        _SDAR(
            "sdar-30b-a3b",
            "JetLM/SDAR-30B-A3B-Chat",
            description="SDAR 30B chat, 3B active (mixture of experts), block 4",
            shape="sdar-30b-a3b",
            family="sdarmoe",
        ),
        *(
            _LLADA2(
                f"llada2.{minor}-{size}",
                f"inclusionAI/LLaDA2.{minor}-{size}",
                description=f"LLaDA2.{minor} {size}, {parameters} (mixture of experts), block 32{more}",
                shape=f"llada2-{size}",
                trained=trained,
            )
            for minor, more, trained in (("0", "", ()), ("1", ", trained to edit its own tokens", ("edit",)))
            for size, parameters in (("mini", "16B, 1.4B active"), ("flash", "103B, 6.1B active"))
        ),
        _LLADAMOE(
            "llada-moe-base",
            "inclusionAI/LLaDA-MoE-7B-A1B-Base",
            description="LLaDA-MoE 7B base, 1.4B active, semi-autoregressive",
        ),
        _LLADAMOE(
            "llada-moe-instruct",
            "inclusionAI/LLaDA-MoE-7B-A1B-Instruct",
            description="LLaDA-MoE 7B instruct, 1.4B active, semi-autoregressive",
            settings={"threshold": {"tau": 0.76}},  # of the authors' own engine, with an approximate cache
            chat_template=True,
            chat=_LING_CHAT,
        ),
        _LLADA(
            "llada-8b-base",
            "GSAI-ML/LLaDA-8B-Base",
            description="LLaDA 8B base, the answer as one block",
            gen_length=dict.fromkeys(_LONG, 256),
            whole_answer=True,
        ),
        _LLADA(
            "llada-8b-instruct",
            "GSAI-ML/LLaDA-8B-Instruct",
            description="LLaDA 8B instruct, the answer as one block (--block-length 32: semi-autoregressive)",
            gen_length={"gsm8k": 512, "math500": 512, "humaneval": 512, "mbpp": 256},
            whole_answer=True,
            eos={**_LAST, "humaneval": "never"},
            chat_template=True,
        ),
        _LLADA(
            "llada-1.5",
            "GSAI-ML/LLaDA-1.5",
            description="LLaDA 1.5 (preference optimised), semi-autoregressive",
            gen_length={"gsm8k": 256, "math500": 1024, "humaneval": 512, "mbpp": 512},
            blocks={"gsm8k": 16, "math500": 128, "humaneval": 32, "mbpp": 32},
            eos={**_LAST, "humaneval": "last"},
            chat_template=True,
        ),
        _DREAM(
            "dream-7b-base",
            "Dream-org/Dream-v0-Base-7B",
            description="Dream 7B base, entropy order over the whole answer",
            gen_length={"gsm8k": 256, "math500": 512, "humaneval": 512, "mbpp": 512},
        ),
        _DREAM(
            "dream-7b-instruct",
            "Dream-org/Dream-v0-Instruct-7B",
            description="Dream 7B instruct, entropy order over the whole answer",
            gen_length={"gsm8k": 256, "math500": 512, "humaneval": 768, "mbpp": 1024},
            chat_template=True,
        ),
        _DREAM(
            "diffucoder",
            "apple/DiffuCoder-7B-Instruct",
            description="DiffuCoder 7B instruct: a Dream-layout model for code",
            gen_length={"humaneval": 256, "mbpp": 256},
            chat_template=True,
        ),
        _DREAM_CODER(
            "dream-coder",
            "Dream-org/Dream-Coder-v0-Instruct-7B",
            description="Dream-Coder 7B instruct: Dream's layout, for code",
        ),
        _LLADA(
            "dparallel-llada",
            "Zigeng/dParallel-LLaDA-8B-instruct",
            description="LLaDA 8B instruct, distilled to answer in parallel",
            gen_length=dict.fromkeys(_LONG, 256),
            chat_template=True,
        ),
        _DREAM(
            "dparallel-dream",
            "Zigeng/dParallel_Dream_7B_Instruct",
            description="Dream 7B instruct, distilled to answer in parallel",
            gen_length=dict.fromkeys(_LONG, 256),
            chat_template=True,
            whole_answer=False,
        ),
        _LLADA(
            "d3llm-llada",
            "d3LLM/d3LLM_LLaDA",
            description="LLaDA 8B instruct, distilled for several blocks at once",
            gen_length=dict.fromkeys(_LONG, 256),
            chat_template=True,
        ),
        _DREAM(
            "d3llm-dream",
            "d3LLM/d3LLM_Dream",
            description="Dream 7B instruct, distilled for several blocks at once",
            chat_template=True,
            gen_length={"gsm8k": 256, "math500": 512, "humaneval": 768, "mbpp": 1024},
            whole_answer=False,
        ),
        _DREAM_CODER(
            "d3llm-dream-coder",
            "d3LLM/d3LLM_Dream_Coder",
            description="Dream-Coder 7B instruct, distilled for several blocks at once",
            whole_answer=False,
        ),
        *(
            _SDAR(
                f"sdar-{size}-b{block}",
                f"JetLM/SDAR-{size.upper()}-Chat-b{block}",
                description=f"SDAR {size.upper()} chat, block {block}",
                shape=f"sdar-{size}",
                block_length=block,
            )
            for size in ("1.7b", "4b", "8b")
            for block in (8, 16, 32, 64)
        ),
        *(
            _SDAR(
                f"trado-{size}",
                f"Gen-Verse/TraDo-{size.upper()}-Instruct",
                description=f"TraDo {size.upper()} instruct: SDAR trained by reinforcement, block 4",
                shape=f"sdar-{size}",
            )
            for size in ("4b", "8b")
        ),
        *(
            Preset(
                f"illada-8b-{kind}",
                f"GSAI-ML/iLLaDA-8B-{kind.capitalize()}",
                "illada",
                f"iLLaDA 8B {kind}: LLaDA's successor in Llama's layout",
                shape="illada-8b",
                block_length=32,
                chat_template=kind == "instruct",
            )
            for kind in ("base", "instruct")
        ),
        *(
            Preset(
                f"dreamreasoner-8b{'-base' * base}",
                f"Dream-org/DreamReasoner-8B{'-Base' * base}",
                "dreamreasoner",
                f"DreamReasoner 8B{' base' * base}: Qwen3 as a block-diffusion reasoner",
                shape="dreamreasoner-8b",
                block_length=32,
                chat_template=not base,
                settings={"entropy": {"rule": "chosen", "steps": 32}},
            )
            for base in (False, True)
        ),
        _A2D(
            "qwen3-0.6b-mdlm",
            "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",
            "a2d-qwen3",
            "Qwen3 0.6B made a full-attention diffusion model, the answer as one block",
            descriptor=replace(_MDLM, mask_id=_QWEN3_MASK),
            shape="qwen3-0.6b",
            whole_answer=True,
            settings=_ONE_BLOCK,
        ),
        _A2D(
            "qwen3-0.6b-bd3lm",
            "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1",
            "a2d-qwen3",
            "Qwen3 0.6B made a block-diffusion model, block 32 from the prompt's end",
            descriptor=replace(_BD3LM, mask_id=_QWEN3_MASK),
            shape="qwen3-0.6b",
            block_length=32,
            settings=_BLOCKS,
        ),
        _A2D(
            "qwen2.5-coder-0.5b-mdlm",
            "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1",
            "a2d-qwen2",
            "Qwen2.5-Coder 0.5B made a full-attention diffusion model",
            descriptor=_MDLM,
            shape="qwen2.5-0.5b",
            whole_answer=True,
            settings=_ONE_BLOCK,
        ),
        _A2D(
            "qwen2.5-coder-0.5b-bd3lm",
            "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1",
            "a2d-qwen2",
            "Qwen2.5-Coder 0.5B made a block-diffusion model, block 32 from the prompt's end",
            descriptor=_BD3LM,
            shape="qwen2.5-0.5b",
            block_length=32,
            settings=_BLOCKS,
        ),
        *(
            Preset(
                f"fastdllm2-{size}",
                f"Efficient-Large-Model/Fast_dLLM_v2_{size.upper()}",
                "fastdllm2",
                f"Fast-dLLM v2 {size.upper()}: Qwen2.5 with blocks and a head that stays shifted",
                shape=f"fastdllm2-{size}",
                block_length=32,
                gen_length=dict.fromkeys(_LONG, 2048),
                chat_template=True,
            )
            for size in ("1.5b", "7b")
        ),
        Preset(
            "stable-diffcoder-8b",
            "ByteDance-Seed/Stable-DiffCoder-8B-Instruct",
            "stable-diffcoder",
            "Stable-DiffCoder 8B instruct in Llama's layout; its block length is asked for",
            chat_template=True,
        ),
        Preset(
            "efficient-dlm-4b",
            "nvidia/Efficient-DLM-4B",
            "efficient-dlm",
            "Efficient-DLM 4B in Qwen3's layout; shift, mask and block length are asked for",
        ),
        _CAUSAL(
            "qwen3-8b",
            "Qwen/Qwen3-8B",
            description="autoregressive Qwen3 8B",
            shape="qwen3-8b",
            family="qwen3",
        ),
        _CAUSAL(
            "qwen2.5-1.5b-instruct",
            "Qwen/Qwen2.5-1.5B-Instruct",
            description="autoregressive guide",
            shape="qwen2.5-1.5b",
        ),
    )
}


def default_model() -> str:
    """``DLMBENCH_MODEL``, or the shipped `nano2`."""
    return os.environ.get("DLMBENCH_MODEL") or "nano2"


def resolve(name: str, like: str | None = None) -> Preset:
    """The preset, local checkpoint folder or hub name (owner/model or owner/model@revision) that `name` means.

    A folder keeps the settings of the preset whose checkpoint it holds (`recognised`); `like` names the preset whose
    settings a folder or hub name takes instead, "none" none at all.

    Raises RequestError for a folder without config.json, a shipped preset without its weights, a name that is none of
    the three, and a `like` that is no preset or of another family.
    """
    if name in PRESETS:
        if PRESETS[name].absent:
            raise RequestError(f"Model {name} is {ABSENT}.")
        return _taken_as(PRESETS[name], _preset(like)) if like else PRESETS[name]
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not has_weights(path):  # heads may lack one
            raise RequestError(f"Model folder {name!r} has no config.json; give the folder of a checkpoint.")
        plain = Preset(path.resolve().name, str(path), None, "local checkpoint folder")
        plain = replace(plain, block_length=_block_length(plain))
        return _taken_as(plain, _preset(like) if like else recognised(path))
    if path.is_file():
        raise RequestError(f"Model {name!r} is a file; give the folder that it lies in, with its config.json.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RequestError(f"Model folder {name!r} does not exist; give the folder of a checkpoint, or a preset.")
    place, _, revision = name.partition("@")
    if place.count("/") == 1:
        known = next((p for p in PRESETS.values() if p.source == place), None)
        preset = known or Preset(name, place, None, "checkpoint on the hub")
        preset = replace(preset, name=name, revision=revision or preset.revision)
        return _taken_as(preset, _preset(like)) if like else preset
    near = difflib.get_close_matches(name, PRESETS, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise RequestError(
        f"Unknown model {name!r}: {hint}Give a preset ({', '.join(PRESETS)}), a checkpoint folder, "
        "or a hub name owner/model[@revision]."
    )


def recognised(folder: Path) -> Preset | None:
    """The preset whose checkpoint a local folder holds: by its name, or by the name that its config.json came under."""
    known = {preset.source.rpartition("/")[2].lower(): preset for preset in PRESETS.values() if not preset.shipped}
    names = (folder.resolve().name, str(_raw_config(folder).get("_name_or_path") or "").rstrip("/").rpartition("/")[2])
    found = next((known[name.lower()] for name in names if name.lower() in known), None)
    return found if found and _same_family(folder, found) else None


def _preset(name: str) -> Preset | None:
    if name == "none":
        return None
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise RequestError(f"--like is {name!r}: {hint}It takes a preset ({', '.join(PRESETS)}) or none.")
    return PRESETS[name]


def _taken_as(preset: Preset, known: Preset | None) -> Preset:
    """`preset`'s weights with the settings of `known`. Helpers that `known` finds in its own checkpoint stay there."""
    if known is None:
        return preset
    if preset.family not in (None, known.family) or not _same_family(Path(preset.location).expanduser(), known):
        raise RequestError(f"--like {known.name} names a {known.family} model and {preset.name} is none: leave it out.")
    own = str(preset.source)
    return replace(
        known,
        name=preset.name,
        source=preset.source,
        description=preset.description,
        revision=preset.revision,
        tokenizer=preset.tokenizer,
        like=known.name,
        block_length=_block_length(preset) or known.block_length,
        flags=preset.flags,
        companions={role: own if name == known.name else name for role, name in known.companions.items()},
    )


def _same_family(folder: Path, known: Preset) -> bool:
    raw = _raw_config(folder)
    if known.family not in BACKBONES or not raw.get("model_type"):
        return raw.get("model_type") in (None, known.family)
    try:
        return find(raw, folder.name, known.told).name == known.family
    except RequestError:  # loading says what is wrong with it
        return False


def _block_length(preset: Preset) -> int | None:
    """What the config.json of a local checkpoint says, under whichever name its family has for it."""
    raw = config_of(preset)
    lengths = (raw.get(BACKBONES.get(name).block_field) for name in BACKBONES.names())
    return next((length for length in lengths if length), None)


def config_of(preset: Preset) -> JsonObject:
    """config.json of a checkpoint that is a folder here, empty where it is none. RequestError for a broken one."""
    return _raw_config(Path(preset.location).expanduser())


def _raw_config(folder: Path) -> JsonObject:
    return read_json(folder / "config.json") or {}
