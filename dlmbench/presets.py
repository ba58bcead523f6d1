"""Model presets: a short name for a checkpoint and the settings that belong to it. Imports nothing heavy.

`resolve` turns what a user gives to ``--model`` (a preset, a folder, a hub name) into a `Preset`. Values come from the
checkpoints' official configurations and the papers' evaluation settings (cards of SDAR and its relatives).
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from dlmbench.errors import RequestError

ASSETS = Path(__file__).parent / "assets"
ABSENT = "not in this copy; make train-nano makes it (in training-runs/)"


@dataclass(frozen=True)
class Preset:
    """What a model name stands for."""

    name: str
    source: str  # hub name, or folder below assets/, or a local folder
    family: str | None  # None: read from the checkpoint's config.json
    description: str
    block_length: int = 4
    blocks: dict[str, int] = field(default_factory=dict)  # per task, where papers differ by task
    whole_answer: bool = False  # the block is the whole answer unless somebody says otherwise
    eos: dict[str, str] = field(default_factory=dict)  # per task: EOS never proposed, or last (sampling.eos)
    gen_length: dict[str, int] = field(default_factory=dict)  # per task; a task's own default otherwise
    chat_template: bool = False
    revision: str | None = None
    companions: dict[str, str] = field(default_factory=dict)  # role, or role/method where methods differ -> preset name
    settings: dict[str, dict[str, object]] = field(default_factory=dict)  # method, cache, sampling -> options here
    tokenizer: str | None = None  # where the tokenizer lives when it is not beside the weights
    tasks: tuple[str, ...] = ()  # tasks it can be expected to solve; empty: a general model

    @property
    def location(self) -> str:
        """Local folder (shipped or the user's), or hub name."""
        return str(ASSETS / self.source) if self.shipped else self.source

    @property
    def shipped(self) -> bool:
        """Does it belong to the package? Then it is never looked for on the hub."""
        return self.source.startswith("nano/")

    @property
    def absent(self) -> bool:
        """Shipped, but this copy has no weights of it."""
        return self.shipped and not any(Path(self.location).glob("*.safetensors"))

    @property
    def tokenizer_location(self) -> str:
        if self.tokenizer is None:
            return self.location
        shipped = ASSETS / self.tokenizer
        return str(shipped) if shipped.is_dir() else self.tokenizer


_NANO = dict(tokenizer="nano/tokenizer", block_length=8, tasks=("nano-gsm", "nano-code"))
_LONG = {"gsm8k": 512, "math500": 1024, "humaneval": 512, "mbpp": 512}
_SDAR = dict(family="sdar", block_length=4, gen_length=_LONG, chat_template=True)
_LLADA = dict(family="llada", block_length=32)
_LAST = {"gsm8k": "last", "math500": "last", "mbpp": "last"}
_DREAM_ORDER = {"order": "entropy", "schedule": "dream"}
_DREAM = dict(
    family="dream",
    block_length=32,
    whole_answer=True,
    settings={"static": _DREAM_ORDER, "prophet": _DREAM_ORDER, "sampling": {"filtered": True}},
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "nano",
            "nano/nano",
            "sdar",
            "shipped block-diffusion model, 2.7 M parameters",
            companions={"draft": "nano-draft", "guide": "nano-ar", "head/mrp": "nano-mrp"},
            settings={"mrp": {"tau": 0.7}},  # the least that lost nothing to static on 120 dev items
            **_NANO,
        ),
        Preset("nano-ar", "nano/nano-ar", "qwen3", "shipped autoregressive parent of nano", **_NANO),
        Preset("nano-draft", "nano/nano-draft", "sdar", "shipped small draft of nano", **_NANO),
        Preset(
            "nano-llada",
            "nano/nano-llada",
            "llada",
            "shipped full-attention sibling of nano, LLaDA layout",
            companions={"guide": "nano-ar", "head/adjust": "nano-adjust", "head/learned_policy": "nano-policy"},
            **_NANO,
        ),
        Preset("nano-mrp", "nano/nano-mrp", "mrp", "shipped MRP module, a --head of nano", **_NANO),
        Preset("nano-mrp-naive", "nano/nano-mrp-naive", "mrp", "the same without residuals, for mrp.mix=none", **_NANO),
        Preset(
            "nano-mrp-remask", "nano/nano-mrp-remask", "mrp", "nano-mrp, trained at revealed positions too", **_NANO
        ),
        Preset("nano-adjust", "nano/nano-adjust", "adjust", "shipped ADJUST sampler, a --head of nano-llada", **_NANO),
        Preset(
            "nano-policy", "nano/nano-policy", "policy", "shipped unmasking policy, a --head of nano-llada", **_NANO
        ),
        Preset(
            "nano-rcd",
            "nano/nano-rcd",
            "sdar",
            "nano, trained on with residuals for --method rcd",
            companions={"reference": "nano-rcd-ref"},
            **_NANO,
        ),
        Preset("nano-rcd-ref", "nano/nano-rcd-ref", "sdar", "shipped light reference of nano-rcd's residuals", **_NANO),
        Preset("nano-seqd", "nano/nano-seqd", "sdar", "nano, trained on as long without residuals", **_NANO),
        Preset("sdar-1.7b", "JetLM/SDAR-1.7B-Chat", description="SDAR 1.7B chat, block 4", **_SDAR),
        Preset(
            "sdar-4b",
            "JetLM/SDAR-4B-Chat",
            description="SDAR 4B chat, block 4",
            companions={"draft": "sdar-1.7b"},
            **_SDAR,
        ),
        Preset(
            "sdar-8b",
            "JetLM/SDAR-8B-Chat",
            description="SDAR 8B chat, block 4",
            companions={"draft": "sdar-1.7b"},
            **_SDAR,
        ),
        *(
            Preset(
                f"sdar-{size}-mrp",
                f"heavyball/sdar-{size}-mrp-3lyr",
                description=f"SDAR {size.upper()}, block 16, with its MRP module",
                companions={"head": f"sdar-{size}-mrp"},
                settings={"mrp": {"tau": 0.8}},
                **{**_SDAR, "block_length": 16},
            )
            for size in ("1.7b", "4b", "8b")
        ),
        Preset(
            "llada-8b-base",
            "GSAI-ML/LLaDA-8B-Base",
            description="LLaDA 8B base, the answer as one block",
            gen_length=dict.fromkeys(_LONG, 256),
            whole_answer=True,
            **_LLADA,
        ),
        Preset(
            "llada-8b-instruct",
            "GSAI-ML/LLaDA-8B-Instruct",
            description="LLaDA 8B instruct, the answer as one block (--block-length 32: semi-autoregressive)",
            gen_length={"gsm8k": 512, "math500": 512, "humaneval": 512, "mbpp": 256},
            whole_answer=True,
            eos={**_LAST, "humaneval": "never"},
            chat_template=True,
            **_LLADA,
        ),
        Preset(
            "llada-1.5",
            "GSAI-ML/LLaDA-1.5",
            description="LLaDA 1.5 (preference optimised), semi-autoregressive",
            gen_length={"gsm8k": 256, "math500": 1024, "humaneval": 512, "mbpp": 512},
            blocks={"gsm8k": 16, "math500": 128, "humaneval": 32, "mbpp": 32},
            eos={**_LAST, "humaneval": "last"},
            chat_template=True,
            **_LLADA,
        ),
        Preset(
            "dream-7b-base",
            "Dream-org/Dream-v0-Base-7B",
            description="Dream 7B base, entropy order over the whole answer",
            gen_length={"gsm8k": 256, "math500": 512, "humaneval": 512, "mbpp": 512},
            **_DREAM,
        ),
        Preset(
            "dream-7b-instruct",
            "Dream-org/Dream-v0-Instruct-7B",
            description="Dream 7B instruct, entropy order over the whole answer",
            gen_length={"gsm8k": 256, "math500": 512, "humaneval": 768, "mbpp": 1024},
            chat_template=True,
            **_DREAM,
        ),
        Preset(
            "diffucoder",
            "apple/DiffuCoder-7B-Instruct",
            description="DiffuCoder 7B instruct: a Dream-layout model for code",
            gen_length={"humaneval": 256, "mbpp": 256},
            chat_template=True,
            **_DREAM,
        ),
        Preset("qwen3-8b", "Qwen/Qwen3-8B", "qwen3", "autoregressive Qwen3 8B", 1, _LONG, True),
        Preset("qwen2.5-1.5b-instruct", "Qwen/Qwen2.5-1.5B-Instruct", "qwen2", "autoregressive guide", 1, _LONG, True),
    )
}


def default_model() -> str:
    """``DLMBENCH_MODEL``, or the shipped `nano`."""
    return os.environ.get("DLMBENCH_MODEL") or "nano"


def resolve(name: str) -> Preset:
    """The preset, local checkpoint folder or hub name (owner/model or owner/model@revision) that `name` means.

    Raises RequestError for a folder without config.json, a shipped preset without its weights, and for a name that is
    none of the three.
    """
    if name in PRESETS:
        if PRESETS[name].absent:
            raise RequestError(f"Model {name} is {ABSENT}.")
        return PRESETS[name]
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not any(path.glob("*.safetensors")):  # heads may lack one
            raise RequestError(f"Model folder {name!r} has no config.json; give the folder of a checkpoint.")
        return Preset(path.resolve().name, str(path), None, "local checkpoint folder")
    place, _, revision = name.partition("@")
    if place.count("/") == 1 and not place.startswith((".", "/", "~")):
        known = next((p for p in PRESETS.values() if p.source == place), None)
        preset = known or Preset(name, place, None, "checkpoint on the hub")
        return replace(preset, name=name, revision=revision or preset.revision)
    near = difflib.get_close_matches(name, PRESETS, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise RequestError(
        f"Unknown model {name!r}: {hint}Give a preset ({', '.join(PRESETS)}), a checkpoint folder, "
        "or a hub name owner/model[@revision]."
    )
