"""What cannot work, refused with the reason and the remedy before a weight is loaded: attention, caches, helpers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmbench.companions import check_companion
from dlmbench.errors import RequestError
from dlmbench.files import read_json
from dlmbench.presets import PRESETS, Preset, config_of, resolve
from dlmbench.request.shared import Axes

if TYPE_CHECKING:
    from dlmbench.request.run_spec import RunSpec

ATTENTION = {  # family -> attention type, the word a decoder declares
    "sdar": "block_causal",
    "qwen3": "causal",
    "qwen2": "causal",
    "llama": "causal",
    "llada": "full",
    "dream": "full",
}


def attention_of(model: str) -> str | None:
    """Attention type of a model's family, None when only its checkpoint can tell (a hub name)."""
    return attention_type(resolve(model))


def attention_type(preset: Preset) -> str | None:
    """The same of a preset."""
    return ATTENTION.get(family_of(preset) or "")


def family_of(preset: Preset) -> str | None:
    """Its family, from the checkpoint's config.json where the preset does not say; None when neither is here."""
    if preset.family:
        return preset.family
    folder = Path(preset.location).expanduser()
    config = read_json(folder / "config.json")
    if config is None and folder.is_dir():
        raise RequestError(f"Model folder {str(folder)!r} has no config.json; give the folder of a checkpoint.")
    return str(config.get("model_type")).lower() if config else None


def notes_on(preset: Preset, spec: RunSpec) -> list[str]:
    """What is to be said about a model that is no preset: whose settings it takes, or what is not known of it."""
    if preset.like:
        return [f"{preset.name} takes the settings of the preset {preset.like}; --like NAME chooses another, or none."]
    notes = []
    if preset.family is None:
        folder = Path(preset.location).expanduser()
        if spec.block_length is None and attention_type(preset) != "causal" and not config_of(preset).get("block_size"):
            notes.append(f"block length {preset.block_length} assumed for {preset.name}; give --block-length.")
        if spec.chat_template is None and has_chat_template(folder):
            notes.append(f"{preset.name} has a chat template, which is not used: --chat-template uses it.")
    return notes


def has_chat_template(folder: Path) -> bool:
    """Does a local checkpoint's tokenizer come with a chat template?"""
    if (folder / "chat_template.jinja").is_file():
        return True
    file = folder / "tokenizer_config.json"
    return file.is_file() and '"chat_template"' in file.read_text(encoding="utf-8", errors="replace")


def answer_of(task: str) -> Mapping[str, Any] | None:
    """A task's answer marker: {"text", "position", "window"}, positions counted from the prompt's end."""
    from dlmbench.tasks import task_files

    file = task_files.find(task)
    return file.metadata.get("answer") if file else None


def check_shared(spec: RunSpec, preset: Preset, decoder: Any, shared: Axes) -> Mapping[str, Any] | None:
    """Refuse options of cache and sampling that cannot act; returns the marker that is to be written in advance."""
    full = attention_type(preset) in ("full", None)
    idle = [name for name in shared.chosen() if name not in ("sampling.constraint", "sampling.filtered")]
    if idle and not full:
        raise RequestError(f"{idle[0]} is for bidirectional models and {spec.model} is none: leave it out.")
    freezing = ("freecache",)
    policies = {"cache.refresh_every": ("prefix", "dual"), "cache.freeze": freezing, "cache.window": freezing}
    for name in shared.chosen():
        if name in policies and spec.cache not in policies[name]:
            raise RequestError(f"{name} belongs to --cache {' or '.join(policies[name])}, this run has {spec.cache}.")
    if shared.sampling.guidance and not decoder.guidable:
        raise RequestError(f"Method {spec.method} does not work with guidance: leave sampling.guidance out.")
    if not shared.sampling.constraint:
        return None
    answer = answer_of(spec.task)
    if answer is None:
        raise RequestError(f"Task {spec.task} names no answer marker: leave sampling.constraint out.")
    budget = spec.gen_length or preset.gen_length.get(spec.task.partition("/")[0])
    if budget is not None and budget <= answer["window"]:
        raise RequestError(
            f"The answer marker of {spec.task} stands at position {answer['position']} and {budget} tokens are too few "
            f"for it: --gen-length must be above {answer['window']}."
        )
    return answer


def check_attention(spec: RunSpec, preset: Preset, decoder: Any) -> None:
    """Refuse a method whose attention is not the model's."""
    attention = attention_type(preset)
    if attention is None or attention in decoder.attention:
        return
    if attention == "causal":
        remedy = "use --method ar, or a diffusion model such as nano"
        raise RequestError(f"Method {spec.method} fills masks and {spec.model} is autoregressive: {remedy}.")
    if decoder.attention == ("causal",):
        parent = preset.companions.get("guide")
        causal = parent if parent in PRESETS and ATTENTION.get(PRESETS[parent].family or "") == "causal" else "nano-ar"
        raise RequestError(
            f"Method {spec.method} reads left to right and {spec.model} is a diffusion model: use --model {causal}."
        )
    raise RequestError(
        f"Method {spec.method} works with {' or '.join(decoder.attention)} attention and {spec.model} "
        f"has {attention}: choose another --model or --method."
    )


def check_cache(spec: RunSpec, preset: Preset, decoder: Any) -> None:
    """Refuse a cache policy that does nothing here, or that hides what the method needs."""
    attention = attention_type(preset)
    if spec.cache != "none" and attention in ("block_causal", "causal"):
        kind = "block-causal" if attention == "block_causal" else "autoregressive"
        raise RequestError(
            f"Cache policy {spec.cache} approximates bidirectional attention and {spec.model} is "
            f"{kind}, whose cache is exact already: leave --cache out."
        )
    if attention == "full" and spec.cache not in decoder.caches:
        raise RequestError(
            f"Method {spec.method} does not work with cache policy {spec.cache}, which hides positions that it needs: "
            f"use --cache {' or '.join(decoder.caches)}."
        )


def check_sampling(spec: RunSpec, decoder: Any, config: Any) -> None:
    """Refuse sampling that the method has no rule for."""
    from dlmbench.decoders.predict import Sampling

    objection = decoder.objection(config, Sampling(spec.temperature, spec.top_k, spec.top_p))
    if objection:
        raise RequestError(objection)


def companion_of(spec: RunSpec, preset: Preset, role: str) -> str:
    """The model that plays a role: given, or the preset's."""
    usual = preset.companions.get(f"{role}/{spec.method}") or preset.companions.get(role)
    given = getattr(spec, role, None) or usual
    if role == "head":
        given = given or (spec.model if _holds_head(preset) else None)
        if given is None:
            raise RequestError(
                f"Method {spec.method} needs a trained head and {spec.model} has none: give its folder with --head "
                f"(docs/methods/{spec.method}.md names the recipe that trains one)."
            )
        resolve(given)
    if given is None:
        raise RequestError(f"Method {spec.method} needs a {role} model and {spec.model} names none: give --{role}.")
    return given


def check_helper(role: str, target: Preset, helper: Preset) -> None:
    """A draft attends like its target, a guide reads left to right, and both share the target's tokens."""
    if role == "head":  # judged with its tensors; it may lack a config.json
        return
    ours, theirs = (attention_type(preset) for preset in (target, helper))
    wanted = {"draft": ours, "reference": ours, "guide": "causal"}.get(role)
    if wanted and theirs and theirs != wanted:
        raise RequestError(
            f"The {role} {helper.name} has {theirs} attention and {wanted} is needed: give another --{role}."
        )
    check_companion(role, target, helper)


def _holds_head(preset: Preset) -> bool:
    """Is this a local checkpoint with a module inside (the authors' MRP layout)?"""
    return bool(config_of(preset).get("num_nextn_predict_layers"))
