"""`dlmbench show NAME`: everything about one model, method, task or recipe."""

from __future__ import annotations

import dataclasses
from typing import Annotated, TypeAlias

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout
from dlmbench.cli.list import first_sentence
from dlmbench.cli.sweep import find_recipe, recipe_files
from dlmbench.errors import RequestError
from dlmbench.models.descriptors import asked_for, described
from dlmbench.models.presets import ABSENT, PRESETS, STATUS, Preset, resolve
from dlmbench.registry import DECODERS, load_plugin
from dlmbench.request import SweepSpec, read_recipe
from dlmbench.request.resolved import Anywhere
from dlmbench.request.shared import POLICIES, CacheOptions
from dlmbench.tasks import catalogue

Facts: TypeAlias = dict[str, object]  # name -> fact, or a list of mappings, which is shown as a table


def show(
    name: Annotated[str, typer.Argument(help="A method, model, task or recipe.", show_default=False)],
    plugin: flags.Plugin = None,
    json: flags.Json = False,
) -> None:
    """Show a method's options, a model's settings, a task, or a recipe's plan."""
    if plugin:
        load_plugin(plugin)
    for look in (_method, _model, _task, _recipe, _cache):
        record = look(name)
        if record is not None:
            print_json(record) if json else _print(record)
            return
    raise RequestError(
        f"Nothing is called {name!r}{_near(name)}; dlmbench list methods, models, tasks or recipes shows what there is."
    )


def _near(name: str) -> str:
    import difflib

    known = [*DECODERS.names(), *PRESETS, *(row.name for row in catalogue()), *(path.stem for path in recipe_files())]
    close = difflib.get_close_matches(name, known, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _method(name: str) -> Facts | None:
    if name not in DECODERS:
        return None
    decoder = DECODERS.get(name)
    rows = [
        {
            "option": field.name,
            "default": _default(field),
            "type": getattr(field.type, "__name__", str(field.type)),
            "threshold": "--threshold" if field.metadata.get("threshold") else "",
            "meaning": _meaning(field),
        }
        for field in dataclasses.fields(decoder.Config)
    ]
    return {
        "method": name,
        "version": decoder.version,
        "what it does": first_sentence(decoder),
        "evidence": str(decoder.evidence),
        "attention": ", ".join(decoder.attention),
        "cache policies": ", ".join(decoder.caches) if "full" in decoder.attention else "exact, none to choose",
        "networks": ", ".join(decoder.roles),
        "equal to": "; ".join(getattr(decoder, "equalities", ())) or "nothing declared",
        "options": rows,
    }


def _cache(name: str) -> Facts | None:
    if name not in POLICIES:
        return None
    recomputed, approximated = POLICIES[name]
    rows = [
        {
            "option": f"cache.{f.name}",
            "default": f.default,
            "type": str(f.type),
            "threshold": "",
            "meaning": _meaning(f),
        }
        for f in dataclasses.fields(CacheOptions)
    ]
    return {"cache policy": name, "recomputed": recomputed, "approximated": approximated, "options": rows}


def _default(field: dataclasses.Field) -> object:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else "required"


def _meaning(field: dataclasses.Field) -> str:
    choices = field.metadata.get("choices")
    return field.metadata.get("help", "") + (f" ({', '.join(choices)})" if choices else "")


def _model(name: str) -> Facts | None:
    from pathlib import Path

    if name not in PRESETS and not Path(name).expanduser().is_dir():
        return None
    preset = PRESETS.get(name) or resolve(name)
    settings = {"settings of": preset.like or "none: no preset is known for it"} if name not in PRESETS else {}
    local = preset.shipped or Path(preset.location).is_dir()
    place = "local folder" if name not in PRESETS else ABSENT if preset.absent else "shipped with the package"
    return {
        "model": preset.name,
        "what it is": preset.description,
        **settings,
        "family": preset.family or "from config.json",
        "status": f"{preset.status}: {STATUS[preset.status]}",
        "where": place if local else f"hub, {preset.source}",
        "revision": preset.revision or ("-" if local else "newest"),
        "block length": _blocks(preset),
        "chat template": "yes" if preset.chat_template else "no",
        "most tokens": ", ".join(f"{task} {n}" for task, n in preset.gen_length.items()) or "by task",
        "EOS": ", ".join(f"{task} {switch} (fixed schedules)" for task, switch in preset.eos.items()) or "free",
        "companions": ", ".join(f"{role} {model}" for role, model in preset.companions.items()) or "none",
        "method settings": "; ".join(
            f"{method} {', '.join(f'{k}={v}' for k, v in values.items())}" for method, values in preset.settings.items()
        )
        or "defaults",
        "trained for": ", ".join(preset.tasks) or "general use",
        "descriptor": _descriptor(preset),
    }


def _descriptor(preset: Preset) -> list[Facts]:
    """How the model is used, each value with who says it, and what is asked for."""
    settled = described(preset)
    known = [(name, value, settled.sources[name]) for name, value in settled.descriptor.said().items()]
    asked = [(name, "not known", f"asked for: {place}") for name, place in asked_for(preset).items()]
    return [{"field": name, "value": value, "who says it": source} for name, value, source in (*known, *asked)]


def _blocks(preset: Preset) -> str:
    if preset.whole_answer:
        return "the whole answer"
    if preset.block_length is None:
        return "not known: --block-length"
    by_task = [f"{task} {n}" for task, n in preset.blocks.items()]
    return ", ".join([*by_task, f"others {preset.block_length}"] if by_task else [str(preset.block_length)])


def _task(name: str) -> Facts | None:
    row = next((row for row in catalogue() if row.name == name), None)
    return row and {"task": row.name, "what it asks": row.description, "items": row.items, "needs": row.needs}


def _recipe(name: str) -> Facts | None:
    path = find_recipe(name)
    if not path.is_file():
        return None
    record = read_recipe(path)
    if "methods" not in record:
        return {
            "recipe": path.stem,
            "verb": f"dlmbench train {path.parent.name}/{path.name}",
            "what it does": record.get("description", ""),
            "settings": [{"setting": key, "value": value} for key, value in record.items() if key != "description"],
        }
    runs, _ = SweepSpec.from_recipe(path).resolve(Anywhere())
    rows = [
        {
            "task": run.spec.task,
            "model": run.spec.model,
            "method": run.label,
            "items": run.spec.limit or "all",
            "batch": run.spec.batch_size,
        }
        for run in runs
    ]
    return {
        "recipe": path.stem,
        "verb": f"dlmbench sweep {path.parent.name}/{path.name}",
        "what it does": record.get("description", ""),
        "into": runs[0].spec.out,
        "cells": rows,
    }


def _print(record: Facts) -> None:
    """Facts as lines, lists of mappings as tables."""
    from rich.table import Table

    console = stdout()
    facts = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for key, value in record.items():
        if not isinstance(value, list):
            facts.add_row(key, str(value))
    console.print(facts)
    for rows in (value for value in record.values() if isinstance(value, list) and value):
        table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
        for column in rows[0]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        console.print()
        console.print(table)
