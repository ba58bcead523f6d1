"""Many runs: `SweepSpec` from a recipe or from flags, with lists and ranges expanded and baselines added."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dlmbench.errors import RequestError
from dlmbench.files import Json, yaml_mapping
from dlmbench.request.key import same_request
from dlmbench.request.resolved import Machine, ResolvedRun, with_baselines
from dlmbench.request.run_spec import HELPERS, OPTIONS, RunSpec
from dlmbench.request.shared import OWNERS
from dlmbench.request.suite import Suite
from dlmbench.request.values import assigned, number, optional, parse_values

_RECIPE_KEYS = ("name", "description", "tasks", "methods", "tune_on", "dev_limit", "suite")


@dataclass(frozen=True)
class SweepSpec:
    """A list of runs and what to do with them."""

    name: str
    runs: tuple[RunSpec, ...]
    out: str = "runs"
    tune_on: str | None = None  # "dev": each method's setting is chosen there, and reported on test
    description: str = ""
    dev_limit: int | None = None  # items of a trial on dev; None: as many as are reported on
    reported: tuple[RunSpec, ...] = ()  # of the runs: those of entries with ``report: all``, whatever dev says
    suite: Suite | None = None  # what a frozen sweep holds to

    def __post_init__(self) -> None:
        if not self.runs:
            raise RequestError(f"Sweep {self.name!r} has no runs; name at least one method and one task.")
        if self.tune_on not in (None, "dev"):
            raise RequestError(f"tune_on is {self.tune_on!r}; settings are chosen on dev or not at all.")
        if not self.tune_on and (self.dev_limit is not None or self.reported):
            raise RequestError("dev_limit and report belong to settings chosen on dev: add tune_on: dev.")
        if self.tune_on in {spec.split for spec in self.runs}:
            raise RequestError("Settings chosen on dev cannot be reported on dev: leave --split or --tune-on out.")

    @classmethod
    def from_recipe(cls, path: str | Path, overrides: Mapping[str, Json] | None = None) -> SweepSpec:
        """Read a recipe file; `overrides` (flags) win over everything in it.

        A recipe has ``tasks`` and ``methods``, lists of names or of mappings with any option of ``run`` (and ``set``);
        every other key is an option for all runs. Values may be lists or ranges. A method's ``task`` is one of the
        tasks: it is not run on the others.
        """
        record = read_recipe(path)
        given = dict(overrides or {})
        return _sweep(record, given, default_name=Path(path).stem)

    @classmethod
    def from_flags(cls, flags: Mapping[str, Json]) -> SweepSpec:
        """The same from flags: ``method``, ``task``, ``set`` and any option, as lists or ranges."""
        given = dict(flags)
        record: dict[str, Json] = {
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
        reported = {id(spec) for spec in self.reported}
        for spec in with_baselines(self.runs):
            run = spec.resolve(machine)
            first = unique.setdefault(same_request(run), run)
            if id(spec) in reported:
                unique[same_request(run)] = replace(first, reported=True)
        if self.suite:
            self.suite.check_grid(list(unique.values()))
        notes = [note for run in unique.values() for note in run.notes]
        return list(unique.values()), list(dict.fromkeys(notes))


def read_recipe(path: str | Path) -> dict[str, Json]:
    """A recipe file as a mapping. Raises RequestError when it is missing or no mapping."""
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"Recipe {str(path)!r} does not exist; dlmbench list recipes shows those that do.")
    return yaml_mapping(path, "Recipe")


def _sweep(record: Mapping[str, Json], given: dict[str, Json], default_name: str) -> SweepSpec:
    if not record.get("tasks") or not record.get("methods"):
        raise RequestError(f"Recipe {default_name} needs tasks and methods; dlmbench show reproduce is an example.")
    tune_on = given.pop("tune_on", None) or record.get("tune_on") or None
    dev_limit = optional(number(int, 1))(given.pop("dev_limit", None) or record.get("dev_limit"), "dev_limit")
    given = {name: value for name, value in given.items() if value is not None}
    _refuse_unknown(given)
    common = {name: value for name, value in record.items() if name not in _RECIPE_KEYS}
    given_task = given.pop("task", None)
    tasks = _chosen(record["tasks"], "task", given_task)
    methods = _chosen(record["methods"], "method", given.pop("method", None))
    _refuse_strangers(assigned(given.get("set")), methods, "add it to --method")
    for layer in (record, *tasks, *methods):
        if isinstance(settings := layer.get("set"), Mapping):
            owners = [str(name).rpartition(".")[0] for name in settings if "." in str(name)]
            _refuse_strangers(owners, _chosen(record["methods"], "method", None), "give it an entry of methods")
    runs: list[RunSpec] = []
    reported: list[RunSpec] = []
    known = {str(task["task"]) for task in tasks}
    for task, method in itertools.product(tasks, methods):
        if method.get("task", task["task"]) != task["task"]:  # an entry with a task runs on that one alone
            if not given_task and method["task"] not in known:
                raise RequestError(
                    f"Recipe {default_name} has no task {method['task']!r}; its tasks are {', '.join(known)}."
                )
            continue
        expanded = list(_expand(common, task, {name: one for name, one in method.items() if name != "report"}, given))
        runs += expanded
        reported += expanded if _reports_all(method) else []
    name = str(record.get("name", default_name))
    return SweepSpec(
        name,
        tuple(runs),
        runs[0].out if runs else "runs",
        None if tune_on is None else str(tune_on),
        str(record.get("description", "")),
        dev_limit,
        tuple(reported),
        Suite.of(name, record["suite"]) if "suite" in record else None,
    )


def _reports_all(method: Mapping[str, Json]) -> bool:
    """Are all settings of an entry reported, and not only the chosen one? Raises RequestError for another value."""
    if method.get("report", "all") != "all":
        raise RequestError(f"report of {method['method']} is {method['report']!r}; it takes all, or is left out.")
    return "report" in method


def _refuse_unknown(given: Mapping[str, Json]) -> None:
    for name in given:
        if name not in (*OPTIONS, "set"):
            raise RequestError(_unknown_key(name))


def _refuse_strangers(owners: Iterable[str], entries: Iterable[Mapping[str, Json]], remedy: str) -> None:
    """Options of a method that is not there would be dropped."""
    methods = [str(entry["method"]) for entry in entries]
    for owner in owners:
        if owner not in (*methods, *OWNERS):
            there = ", ".join(dict.fromkeys(methods))
            raise RequestError(f"set names {owner}, which is not a method of this sweep ({there}); {remedy}.")


def _unknown_key(name: str) -> str:
    known = (*OPTIONS, "set", *_RECIPE_KEYS)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Unknown option {name!r}: " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}.")


def _chosen(entries: Json, key: str, wanted: Json) -> list[dict[str, Json]]:
    """Entries of a recipe's list as mappings; a flag of the same name keeps those it lists."""
    result: list[dict[str, Json]] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        mapping: dict[str, Json] = entry if isinstance(entry, dict) else {key: entry}
        if key not in mapping:
            raise RequestError(f"An entry of {key}s has no {key}: {mapping!r}.")
        result.append(mapping)
    if wanted is None:
        return result
    names = parse_values(wanted)
    missing = [name for name in names if name not in [entry[key] for entry in result]]
    if missing:
        there = ", ".join(str(entry[key]) for entry in result)
        raise RequestError(f"The recipe has no {key} {missing[0]!r}; it has {there}.")
    return [entry for entry in result if entry[key] in names]


def _expand(
    common: Mapping[str, Json], task: Mapping[str, Json], method: Mapping[str, Json], given: Mapping[str, Json]
) -> Iterable[RunSpec]:
    """All combinations of the lists and ranges in the merged options; later mappings win."""
    merged: dict[str, Json] = {}
    axes: dict[tuple[str, str], list[Json]] = {}  # (owner, option) -> values; owner "" is an option of the run itself
    for layer in (common, task, method, given):
        for name, value in layer.items():
            if name == "set":
                axes.update(_set_axes(value, str(method["method"])))
            elif name == "settings":
                raise RequestError("Options of methods are given as set: {option: value}, and not as settings.")
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
        settings: dict[str, dict[str, Json]] = {}
        for (owner, name), value in zip(ordered, combination):
            if owner:
                settings.setdefault(owner, {})[name] = value
            else:
                plain[name] = value
        yield RunSpec.written({**plain, "settings": settings})


def _is_folder(name: str, value: Json) -> bool:
    """One model whose folder has a comma in its name, which would be taken for a list?"""
    return name in ("model", *HELPERS) and isinstance(value, str) and Path(value).expanduser().is_dir()


def _set_axes(value: Json, method: str) -> dict[tuple[str, str], list[Json]]:
    """``set`` of a recipe ({option: values} of the entry's method, or {method.option: values}), or of flags."""
    if not isinstance(value, Mapping):
        value = {f"{owner}.{name}": one for owner, inner in assigned(value).items() for name, one in inner.items()}
    found = {}
    for name, values in value.items():
        owner, dot, option = str(name).rpartition(".")
        if not dot or owner == method or owner in OWNERS:  # other methods' options belong to their own entries
            found[(owner if dot else method, option if dot else str(name))] = parse_values(values)
    return found
