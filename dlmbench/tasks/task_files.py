"""Where the task files are and what they say about themselves, read without lm-eval.

Functions that a file names (``!function``) stay text here; `dlmbench.tasks.loading` resolves them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dlmbench.errors import RequestError
from dlmbench.registry import TASKS

FOLDER = Path(__file__).parent
Metadata = Mapping[str, Any]  # keys: see the head of `dlmbench.tasks`; a file may have others


KNOWN = {  # of the metadata; methods may read others
    "answer", "answers", "chat", "description", "fields", "from_local", "gen_length", "items", "key", "kind", "needs",
    "one_turn", "primary", "problem", "program", "template", "tier", "unparsed", "variants", "version",
    "zero_shot_chat",
}  # fmt: skip


class CatalogueRow(NamedTuple):
    """One line of ``dlmbench list tasks``."""

    name: str
    description: str
    items: int
    needs: str


class TaskFile(NamedTuple):
    """A task file that dlmbench knows, and the variant of it that was asked for."""

    name: str  # with the variant: "nano-gsm/easy"
    path: Path
    metadata: Metadata  # of the file, with the variant's values in place


def catalogue() -> list[CatalogueRow]:
    """Every task with a file of its own, variants included; lm-eval's other tasks are not listed."""
    rows = []
    for name, path in sorted(_paths().items()):
        metadata = _metadata(path)
        for variant in ("", *metadata.get("variants", {})):
            file = _file(name, variant, path)
            rows.append(CatalogueRow(file.name, *(file.metadata.get(k, "") for k in CatalogueRow._fields[1:])))
    return rows


def find(name: str) -> TaskFile | None:
    """The file of the task called `name` or ``name/variant``; None for a name that only lm-eval may know.

    Raises RequestError for a variant that the task does not have.
    """
    base, _, variant = name.partition("/")
    path = _paths().get(base)
    if path is None:
        return None
    variants = _metadata(path).get("variants", {})
    if variant == _metadata(path).get("tier"):  # the default tier by its own name
        variant = ""
    if variant and variant not in variants:
        known = ", ".join(f"{base}/{v}" for v in variants) or "no variants"
        raise RequestError(f"Task {base} has no variant {variant!r}: it has {known}.")
    return _file(base, variant, path)


def near(name: str, others: list[str] | None = None) -> str:
    """A sentence with the names closest to `name`, or with all shipped ones."""
    known = [row.name for row in catalogue()]
    close = difflib.get_close_matches(name, {*known, *(others or [])}, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."


def _file(base: str, variant: str, path: Path) -> TaskFile:
    metadata = dict(_metadata(path))
    variants = metadata.pop("variants", {})
    return TaskFile(f"{base}/{variant}" if variant else base, path, {**metadata, **variants.get(variant, {})})


def _paths() -> dict[str, Path]:
    shipped = {path.stem: path for path in FOLDER.glob("*/*.yaml")}
    added = {name: Path(TASKS.get(name)) for name in TASKS.names()}
    for name in shipped.keys() & added.keys():
        raise RequestError(f"Task {name} is shipped with dlmbench; register {added[name].name} under another name.")
    return {**shipped, **added}


@cache
def _metadata(path: Path) -> Metadata:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's where it is built in
        """Keeps ``!function`` references as text."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise RequestError(f"Task file {path.name} cannot be read ({error.strerror}); register another one.") from error
    own = content.get("metadata") or {}
    for key in own.keys() - KNOWN:
        if close := difflib.get_close_matches(key, KNOWN, n=1, cutoff=0.85):
            raise RequestError(f"Task file {path.name}: nothing reads metadata {key!r}; did you mean {close[0]}?")
    return {**_metadata(path.parent / content["include"]), **own} if "include" in content else own
