"""Many runs: `SweepSpec` from a recipe or from flags, with lists and ranges expanded and baselines added."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlmbench.errors import RequestError
from dlmbench.request.key import same_request
from dlmbench.request.resolved import Machine, ResolvedRun, with_baselines
from dlmbench.request.run_spec import HELPERS, OPTIONS, RunSpec
from dlmbench.request.shared import OWNERS
from dlmbench.request.suite import Suite
from dlmbench.request.values import parse_assignments, parse_values

_RECIPE_KEYS = ("name", "description", "tasks", "methods", "tune_on", "suite")


@dataclass(frozen=True)
class SweepSpec:
    """A list of runs and what to do with them."""

    name: str
    runs: tuple[RunSpec, ...]
    out: str = "runs"
    tune_on: str | None = None  # "dev": each method's setting is chosen there, and reported on test
    description: str = ""
    suite: Suite | None = None  # what a frozen sweep holds to

    def __post_init__(self) -> None:
        if not self.runs:
            raise RequestError(f"Sweep {self.name!r} has no runs; name at least one method and one task.")
        if self.tune_on not in (None, "dev"):
            raise RequestError(f"tune_on is {self.tune_on!r}; settings are chosen on dev or not at all.")
        if self.tune_on in {spec.split for spec in self.runs}:
            raise RequestError("Settings chosen on dev cannot be reported on dev: leave --split or --tune-on out.")

    @classmethod
    def from_recipe(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> SweepSpec:
        """Read a recipe file; `overrides` (flags) win over everything in it.

        A recipe has ``tasks`` and ``methods``, lists of names or of mappings with any option of ``run`` (and ``set``);
        every other key is an option for all runs. Values may be lists or ranges.
        """
        record = read_recipe(path)
        given = dict(overrides or {})
        return _sweep(record, given, default_name=Path(path).stem)

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> SweepSpec:
        """The same from flags: ``method``, ``task``, ``set`` and any option, as lists or ranges."""
        given = dict(flags)
        record = {
            "tasks": parse_values(given.pop("task", None) or []),
            "methods": parse_values(given.pop("method", None) or []),
        }
        for needed, flag in (("tasks", "--task"), ("methods", "--method")):
            if not record[needed]:
                raise RequestError(
                    f"A sweep needs {flag} or a recipe file; for example "
                    "dlmbench sweep --method static,threshold --task nano-gsm."
                )
        return _sweep(record, given, default_name="sweep")

    def resolve(self, machine: Machine | None = None) -> tuple[list[ResolvedRun], list[str]]:
        """Every run and the baselines that are not among them, resolved, with the notes for the user.

        Duplicates are dropped: a method without a threshold runs once.
        """
        unique: dict[str, ResolvedRun] = {}
        for spec in with_baselines(self.runs):
            run = spec.resolve(machine)
            unique.setdefault(same_request(run), run)
        if self.suite:
            self.suite.check_grid(list(unique.values()))
        notes = [note for run in unique.values() for note in run.notes]
        return list(unique.values()), list(dict.fromkeys(notes))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A recipe file as a mapping. Raises RequestError when it is missing or no mapping."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise RequestError(f"Recipe {str(path)!r} does not exist; dlmbench list recipes shows those that do.")
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"Recipe {path.name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(record, dict):
        raise RequestError(f"Recipe {path.name} must be a mapping of options.")
    return record


def _sweep(record: Mapping[str, Any], given: dict[str, Any], default_name: str) -> SweepSpec:
    if not record.get("tasks") or not record.get("methods"):
        raise RequestError(f"Recipe {default_name} needs tasks and methods; dlmbench show reproduce is an example.")
    tune_on = given.pop("tune_on", None) or record.get("tune_on")
    given = {name: value for name, value in given.items() if value is not None}
    _refuse_unknown(given)
    common = {name: value for name, value in record.items() if name not in _RECIPE_KEYS}
    tasks = _chosen(record["tasks"], "task", given.pop("task", None))
    methods = _chosen(record["methods"], "method", given.pop("method", None))
    _refuse_strangers(given.get("set"), [entry["method"] for entry in methods])
    runs: list[RunSpec] = []
    for task, method in itertools.product(tasks, methods):
        runs.extend(_expand(common, task, method, given))
    name = str(record.get("name", default_name))
    return SweepSpec(
        name,
        tuple(runs),
        runs[0].out if runs else "runs",
        tune_on,
        str(record.get("description", "")),
        Suite.of(name, record["suite"]) if "suite" in record else None,
    )


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in (*OPTIONS, "set"):
            raise RequestError(_unknown_key(name))


def _refuse_strangers(assignments: Sequence[str] | None, methods: list[str]) -> None:
    for owner in parse_assignments(assignments or ()):
        if owner not in (*methods, *OWNERS):
            raise RequestError(
                f"--set names {owner}, which is not a method of this sweep ({', '.join(methods)}); add it to --method."
            )


def _unknown_key(name: str) -> str:
    known = (*OPTIONS, "set", *_RECIPE_KEYS)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Unknown option {name!r}: " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}.")


def _chosen(entries: Any, key: str, wanted: Any) -> list[dict[str, Any]]:
    """Entries of a recipe's list as mappings; a flag of the same name keeps those it lists."""
    result = []
    for entry in entries if isinstance(entries, list) else [entries]:
        mapping = dict(entry) if isinstance(entry, Mapping) else {key: entry}
        if key not in mapping:
            raise RequestError(f"An entry of {key}s has no {key}: {mapping!r}.")
        result.append(mapping)
    if wanted is None:
        return result
    names = parse_values(wanted)
    missing = [name for name in names if name not in [entry[key] for entry in result]]
    if missing:
        raise RequestError(f"The recipe has no {key} {missing[0]!r}; it has {', '.join(e[key] for e in result)}.")
    return [entry for entry in result if entry[key] in names]


def _expand(
    common: Mapping[str, Any], task: Mapping[str, Any], method: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterable[RunSpec]:
    """All combinations of the lists and ranges in the merged options; later mappings win."""
    merged: dict[str, Any] = {}
    axes: dict[tuple[str, str], list[Any]] = {}  # (owner, option) -> values; owner "" is an option of the run itself
    for layer in (common, task, method, given):
        for name, value in layer.items():
            if name == "set":
                axes.update(_set_axes(value, method["method"]))
            elif name not in OPTIONS:
                raise RequestError(_unknown_key(name))
            else:
                merged[name] = value
    for name, value in merged.items():
        if OPTIONS[name].many and value is not None:
            axes[("", name)] = [value] if _is_folder(name, value) else parse_values(value)
    single = {name: value for name, value in merged.items() if not OPTIONS[name].many}
    # a value that stands alone needs no axis; the product runs over methods' options last, so they vary fastest
    ordered = sorted(axes, key=lambda axis: (axis[0] != "", axis[1] == "threshold"))
    for combination in itertools.product(*(axes[axis] for axis in ordered)):
        plain = dict(single)
        settings: dict[str, dict[str, Any]] = {}
        for (owner, name), value in zip(ordered, combination):
            if owner:
                settings.setdefault(owner, {})[name] = value
            else:
                plain[name] = value
        yield RunSpec(**{**plain, "settings": settings})


def _is_folder(name: str, value: Any) -> bool:
    """One model whose folder has a comma in its name, which would be taken for a list?"""
    return name in ("model", *HELPERS) and isinstance(value, str) and Path(value).expanduser().is_dir()


def _set_axes(value: Any, method: str) -> dict[tuple[str, str], list[Any]]:
    """``set`` of a recipe ({option: values} of the entry's method, or {method.option: values}), or of flags."""
    if not isinstance(value, Mapping):
        value = {
            f"{owner}.{name}": one for owner, inner in parse_assignments(value).items() for name, one in inner.items()
        }
    found = {}
    for name, values in value.items():
        owner, dot, option = str(name).rpartition(".")
        if not dot or owner == method or owner in OWNERS:  # other methods' options belong to their own entries
            found[(owner if dot else method, option if dot else str(name))] = parse_values(values)
    return found
