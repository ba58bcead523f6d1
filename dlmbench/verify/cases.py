"""Finding golden cases, running them through their adapters, and reporting what differed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dlmbench.errors import DlmbenchError, RequestError

ADAPTERS = {  # method of a case -> module with check(case) and check_forward(file)
    "sdar_low_confidence_static": "dlmbench.verify.sdar",
    "sdar_low_confidence_dynamic": "dlmbench.verify.sdar",
    "sdar_sequential": "dlmbench.verify.sdar",
    "sdar_entropy_bounded": "dlmbench.verify.sdar",
    "mrp_static_baseline": "dlmbench.verify.mrp",
    "mrp_dynamic_baseline": "dlmbench.verify.mrp",
    "mrp_speculative": "dlmbench.verify.mrp",
    "mrp_direct": "dlmbench.verify.mrp",
    "mrp_residual_remask": "dlmbench.verify.mrp",
    "mrp_tau_remask": "dlmbench.verify.mrp",
}
SKIPPED: dict[str, str] = {}  # case id -> reason; the list is fixed, adapters cannot add to it


@dataclass(frozen=True)
class Outcome:
    """Result of one case. `source` says whose behaviour it holds ("official" or "reference")."""

    case: str
    source: str
    status: str  # "passed" | "failed" | "skipped"
    detail: str = ""


class Mismatch(Exception):
    """What a run gave differs from what the case holds; the message says where."""


@dataclass(frozen=True)
class Case:
    """A golden case and the folder it stands in, against which weights are resolved."""

    folder: Path
    raw: dict[str, Any]

    @property
    def params(self) -> dict[str, Any]:
        return self.raw["params"]

    @property
    def expected(self) -> dict[str, Any]:
        return self.raw["expected"]

    def weights(self, field: str = "weights") -> Path:
        return self.folder / self.raw[field]

    def know(self, fields: set[str], params: set[str], expected: set[str]) -> None:
        """Fail on any field that the adapter has not been taught."""
        for name, there, known in (
            ("", self.raw, fields),
            ("params.", self.params, params),
            ("expected.", self.expected, expected),
        ):
            for stranger in sorted(set(there) - known):
                raise Mismatch(f"unknown field {name}{stranger}")


def equal(what: str, ours: Any, expected: Any) -> None:
    """Raise Mismatch, naming the first difference, unless the two are equal."""
    if ours == expected:
        return
    if isinstance(ours, list) and isinstance(expected, list):
        for i, (a, b) in enumerate(zip(ours, expected)):
            if a != b:
                raise Mismatch(f"{what}[{i}] is {a}, expected {b}")
        raise Mismatch(f"{what} has {len(ours)} entries, expected {len(expected)}")
    raise Mismatch(f"{what} is {ours}, expected {expected}")


def run_folder(folder: str | Path) -> Iterator[Outcome]:
    """Run every case of a folder. Raises RequestError when the folder holds none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"Golden folder {str(folder)!r} does not exist; give a folder with case files (*.json).")
    cases, forwards = sorted(folder.glob("*.json")), sorted(folder.glob("forward_*.safetensors"))
    if not cases and not forwards:
        raise RequestError(f"Golden folder {str(folder)!r} holds no case files (*.json).")
    for file in forwards:
        yield _outcome(file.stem, "official", _forward_check(file))
    for file in cases:
        raw = json.loads(file.read_text())
        name = raw.get("id", file.stem)
        origin = "reference" if "reference" in str(raw.get("source", "")).lower() else "official"
        if name in SKIPPED:
            yield Outcome(name, origin, "skipped", SKIPPED[name])
            continue
        yield _outcome(name, origin, _case_check(Case(folder, raw)))


def _case_check(case: Case):
    def check() -> None:
        method = case.raw.get("method")
        if method not in ADAPTERS:
            raise Mismatch(f"no adapter knows the method {method!r}")
        importlib.import_module(ADAPTERS[method]).check(case)

    return check


def _forward_check(file: Path):
    def check() -> None:
        with safe_open(file, framework="pt") as handle:
            weights = handle.metadata().get("weights", "")
        config = json.loads((file.parent / weights / "config.json").read_text())
        area = "mrp" if config.get("num_nextn_predict_layers") else config.get("model_type")
        module = {"sdar": "dlmbench.verify.sdar", "mrp": "dlmbench.verify.mrp"}.get(area)
        if module is None:
            raise Mismatch(f"no adapter knows forwards of model type {config.get('model_type')!r}")
        importlib.import_module(module).check_forward(file)

    return check


def _outcome(name: str, source: str, check) -> Outcome:
    try:
        check()
    except (Mismatch, DlmbenchError) as error:
        return Outcome(name, source, "failed", str(error))
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:  # a broken case is a failed case
        return Outcome(name, source, "failed", f"{type(error).__name__}: {error}")
    return Outcome(name, source, "passed")
