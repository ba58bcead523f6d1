"""What cannot work, refused with the reason and the remedy before a weight is loaded: attention, caches, helpers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlmbench.errors import RequestError
from dlmbench.models.compatibility import attention_type
from dlmbench.models.presets import PRESETS, Preset, config_of, resolve
from dlmbench.request.shared import SharedOptions
from dlmbench.tasks import protocols, task_files

if TYPE_CHECKING:
    from dlmbench.backbone.config import BackboneConfig
    from dlmbench.backbone.descriptor import Descriptor
    from dlmbench.decoders.base import Decoder, Marker, Options
    from dlmbench.request.run_spec import RunSpec

USUAL_BLOCK = 4  # of full attention, where block length is a choice and nobody makes it


def notes_on(preset: Preset, spec: RunSpec) -> list[str]:
    """What is to be said about a model that is no preset: whose settings it takes, or what is not known of it."""
    if preset.like:
        return [f"{preset.name} takes the settings of the preset {preset.like}; --like NAME chooses another, or none."]
    notes = []
    if preset.family is None:
        folder = Path(preset.location).expanduser()
        if spec.block_length is None and attention_type(preset) == "full" and not preset.block_length:
            notes.append(f"block length {USUAL_BLOCK} assumed for {preset.name}; give --block-length.")
        if spec.chat_template is None and has_chat_template(folder):
            notes.append(f"{preset.name} has a chat template, which is not used: --chat-template uses it.")
    return notes


def has_chat_template(folder: Path) -> bool:
    """Does a local checkpoint's tokenizer come with a chat template?"""
    if (folder / "chat_template.jinja").is_file():
        return True
    file = folder / "tokenizer_config.json"
    return file.is_file() and '"chat_template"' in file.read_text(encoding="utf-8", errors="replace")


def check_protocol(spec: RunSpec) -> None:
    """Refuse a protocol that does not ask the task, and options that would make another protocol of it."""
    asked = protocols.asked(spec.protocol, spec.task)
    if asked is None:
        return
    protocol = protocols.PROTOCOLS[spec.protocol]
    for flag, given, own in (
        ("--num-fewshot", spec.num_fewshot, asked.shots),
        ("--chat-template", spec.chat_template, protocol.chat),
        ("--bos", spec.bos, protocol.bos),
    ):
        if None not in (given, own) and given != own:
            raise RequestError(
                f"Protocol {spec.protocol} settles {flag} ({own} on {spec.task}), and it is given as {given}: leave "
                "one of them out."
            )


def protocol_notes(spec: RunSpec) -> list[str]:
    """What is other than published in a run by a protocol, and the sampler that it was published with."""
    asked = protocols.asked(spec.protocol, spec.task)
    if asked is None:
        return []
    published = protocols.PROTOCOLS[spec.protocol].published
    sampler = [f"{spec.protocol} was published with this sampler, which is yours to choose: {published}."]
    other = [f"{spec.protocol} on {spec.task} is the nearest to the published one; {asked.other}."]
    return (other if asked.other else []) + (sampler if published else [])


def gen_length_of(spec: RunSpec, preset: Preset) -> int | None:
    """Most generated tokens an item: by flag, protocol, else preset; None leaves it to the task."""
    asked = protocols.asked(spec.protocol, spec.task)
    return spec.gen_length or (asked and asked.gen_length) or preset.gen_length.get(spec.task.partition("/")[0])


def answer_of(task: str) -> Marker | None:
    """A task's answer marker, positions counted from the prompt's end."""
    file = task_files.find(task)
    return file.metadata.get("answer") if file else None


def check_shared(spec: RunSpec, preset: Preset, decoder: type[Decoder], shared: SharedOptions) -> Marker | None:
    """Refuse options of cache, sampling and oracle that cannot act; returns the marker to be written in advance."""
    _check_oracle(spec, preset, shared)
    full = attention_type(preset) in ("full", None)
    anywhere = ("sampling.constraint", "sampling.filtered", "oracle.")
    idle = [name for name in shared.chosen() if not name.startswith(anywhere)]
    if idle and not full:
        raise RequestError(f"{idle[0]} is for bidirectional models and {spec.model} is none: leave it out.")
    freezing = ("freecache",)
    policies: dict[str, tuple[str, ...]] = {"cache.refresh_every": ("prefix", "dual"), "cache.reload_every": ("dkv",)}
    policies |= {"cache.freeze": freezing, "cache.window": freezing}
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
    budget = gen_length_of(spec, preset)
    if budget is not None and budget <= answer["window"]:
        raise RequestError(
            f"The answer marker of {spec.task} stands at position {answer['position']} and {budget} tokens are too few "
            f"for it: --gen-length must be above {answer['window']}."
        )
    return answer


def _check_oracle(spec: RunSpec, preset: Preset, shared: SharedOptions) -> None:
    """Refuse an oracle's options on a model with weights, and on an oracle what is done to weights, keys and values."""
    chosen = [name for name in shared.chosen() if name.startswith("oracle.")]
    if preset.family != "oracle":
        if chosen:
            raise RequestError(f"{chosen[0]} is for --model oracle and {spec.model} has weights: leave it out.")
        return
    if spec.cache != "none":
        raise RequestError(
            f"Cache policy {spec.cache} keeps keys and values, {spec.model} has none: leave --cache out."
        )
    if shared.sampling.guidance:
        raise RequestError(f"Guidance needs a model that reads its prompt, and {spec.model} is none: leave it out.")
    file = task_files.find(spec.task)
    if file and "answers" not in file.metadata:
        raise RequestError(
            f"Task {spec.task} does not list its right answers, which --model {spec.model} is made of: take a stress "
            "task (stress-shuffle), nano-gsm-orders, or another --model."
        )


def check_attention(spec: RunSpec, preset: Preset, decoder: type[Decoder], attention: str | None) -> None:
    """Refuse a method whose attention is not the model's (None: not known yet)."""
    if attention is None or attention in decoder.attention:
        return
    if attention == "causal":
        remedy = "use --method ar, or a diffusion model such as nano2"
        raise RequestError(f"Method {spec.method} fills masks and {spec.model} is autoregressive: {remedy}.")
    if decoder.attention == ("causal",):
        parent = preset.companions.get("guide")
        causal = parent if parent in PRESETS and attention_type(PRESETS[parent]) == "causal" else "nano2-ar"
        raise RequestError(
            f"Method {spec.method} reads left to right and {spec.model} is a diffusion model: use --model {causal}."
        )
    raise RequestError(
        f"Method {spec.method} works with {' or '.join(decoder.attention)} attention and {spec.model} "
        f"has {attention}: choose another --model or --method."
    )


def check_block_length(spec: RunSpec, preset: Preset, config: Descriptor | BackboneConfig) -> None:
    """Refuse a model that attends by blocks whose length nobody says."""
    if config.attention == "block_causal" and not (spec.block_length or preset.block_length):
        known = f" ({config.block_length} by its config.json)" if config.block_length else ""
        raise RequestError(f"{preset.name} attends by blocks: give their length with --block-length{known}.")


def check_cache(spec: RunSpec, preset: Preset, decoder: type[Decoder], attention: str | None) -> None:
    """Refuse a cache policy that does nothing here, or that hides what the method needs."""
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


def check_sampling(spec: RunSpec, decoder: type[Decoder], config: Options) -> None:
    """Refuse sampling that the method has no rule for."""
    from dlmbench.decoders.predict import Sampling

    objection = decoder.objection(config, Sampling(spec.temperature, spec.top_k, spec.top_p))
    if objection:
        raise RequestError(objection)


def companion_of(spec: RunSpec, preset: Preset, role: str, given: str | None) -> str:
    """The model that plays a role: the one that was given, or the preset's."""
    usual = preset.companions.get(f"{role}/{spec.method}") or preset.companions.get(role)
    given = given or usual
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


def _holds_head(preset: Preset) -> bool:
    """Is this a local checkpoint with a module inside (the authors' MRP layout)?"""
    return bool(config_of(preset).get("num_nextn_predict_layers"))
