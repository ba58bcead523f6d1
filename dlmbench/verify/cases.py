"""Finding golden cases, running them through their adapters, and reporting what differed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dlmbench.backbone.descriptor import Descriptor, Told
from dlmbench.engine.request import Generation, TracedStep
from dlmbench.errors import DlmbenchError, RequestError

ADAPTERS = {  # method of a case -> module with check(case) and check_forward(file)
    "sdar_low_confidence_static": "dlmbench.verify.sdar",
    "sdar_low_confidence_dynamic": "dlmbench.verify.sdar",
    "sdar_sequential": "dlmbench.verify.sdar",
    "sdar_entropy_bounded": "dlmbench.verify.sdar",
    "llada2_generate": "dlmbench.verify.llada2",
    "llada2_edit": "dlmbench.verify.llada2",
    "llada2_joint_threshold": "dlmbench.verify.llada2",
    "mrp_static_baseline": "dlmbench.verify.mrp",
    "mrp_dynamic_baseline": "dlmbench.verify.mrp",
    "mrp_speculative": "dlmbench.verify.mrp",
    "mrp_direct": "dlmbench.verify.mrp",
    "mrp_residual_remask": "dlmbench.verify.mrp",
    "mrp_tau_remask": "dlmbench.verify.mrp",
    "forward": "dlmbench.verify.rows",
    "llada_generate": "dlmbench.verify.llada",
    "dream_diffusion_generate": "dlmbench.verify.dream",
    "fastdllm": "dlmbench.verify.fastdllm",
    "fastdllm_dream": "dlmbench.verify.fastdllm",
    "prophet": "dlmbench.verify.prophet",
    "freecache": "dlmbench.verify.freecache",
    "adjust": "dlmbench.verify.adjust",
    "adjust_sampler_forward": "dlmbench.verify.adjust",
    "adjust_training_loss": "dlmbench.verify.adjust",
    "learned_policy": "dlmbench.verify.learned_policy",
    "policy_forward": "dlmbench.verify.learned_policy",
    "action_log_likelihood": "dlmbench.verify.learned_policy",
    "reward": "dlmbench.verify.learned_policy",
    "low_confidence": "dlmbench.verify.learned_policy",
    "fastdllm(thres)": "dlmbench.verify.learned_policy",
    "rcd": "dlmbench.verify.rcd",
    "rcd_training_loss": "dlmbench.verify.rcd",
    "simsd": "dlmbench.verify.simsd",
    "simsd_mask": "dlmbench.verify.simsd",
    "simsd_acceptance": "dlmbench.verify.simsd",
    "a2d_mdlm": "dlmbench.verify.a2d",
    "a2d_bd3lm": "dlmbench.verify.a2d",
    "a2d_bd3lm_v0": "dlmbench.verify.a2d",
    "a2d_bd3lm_grid0": "dlmbench.verify.a2d",
    "a2d_quota": "dlmbench.verify.a2d",
    "illada_var_generate": "dlmbench.verify.illada",
    "dreamreasoner": "dlmbench.verify.sdar",
    "fastdllm2": "dlmbench.verify.fastdllm2",
    "fastdllm2_stop_early": "dlmbench.verify.fastdllm2",
    "guided": "dlmbench.verify.guided",
    "guided_match_rules": "dlmbench.verify.guided",
    "oracle": "dlmbench.verify.oracle",
    "dkv": "dlmbench.verify.dkv",
    "multiblock": "dlmbench.verify.multiblock",
    "multiblock_d2f": "dlmbench.verify.multiblock",
    "lopa": "dlmbench.verify.lopa",
    "remdm_loop": "dlmbench.verify.remasking",
    "rcr": "dlmbench.verify.remasking",
    "saber": "dlmbench.verify.remasking",
    "hierarchy": "dlmbench.verify.selectors",
    "credit": "dlmbench.verify.selectors",
    "frechet": "dlmbench.verify.selectors",
    "entropy_gate": "dlmbench.verify.selectors",
    "sched": "dlmbench.verify.sched",
    "pcsampler": "dlmbench.verify.selectors",
    "adablock": "dlmbench.verify.adablock",
    "daedal": "dlmbench.verify.daedal",
}
Fixture = dict[str, Any]  # JSON of a golden case; every area has its own fields
Numbers = torch.Tensor | float | Sequence
_RANDOM_ORDER = "needs one library's global random order"
SKIPPED: dict[str, str] = {  # case id -> reason; the list is fixed, adapters cannot add to it
    "ll-06-random-seeded": _RANDOM_ORDER,
    "ll-13-temperature-seeded": _RANDOM_ORDER,
    "dr-09-origin-seeded": _RANDOM_ORDER,
    "u04_ds2_prompt_blocks_follow_ds": "a fault of the official code: prompt blocks as wide as the number of steps",
    "u05_early_stop_mispaired": "a fault of the official code: every mask sees its own token after an early stop",
    "step_map_order_drops_accepted": "called a bug by its authors: verification in reveal order",
}
UNITS = {  # files of many small cases: the list that holds them -> method of each
    "masks": "simsd_mask",
    "cases": "simsd_acceptance",
    "quotas": "a2d_quota",
}


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
    raw: Fixture

    @property
    def params(self) -> Fixture:
        return self.raw["params"]

    @property
    def expected(self) -> Fixture:
        return self.raw["expected"]

    def weights(self, field: str = "weights") -> Path:
        return self.folder / self.raw[field]

    def told(self, attention: str | None = None) -> Told:
        """What the case says of its weights and their files need not."""
        mask = self.params.get("mask_id", self.params.get("mask_token_id"))
        return Told(Descriptor(attention=attention, mask_id=mask))

    def know(self, fields: set[str], params: set[str], expected: set[str]) -> None:
        """Fail on any field that the adapter has not been taught."""
        for name, there, known in (
            ("", self.raw, fields),
            ("params.", self.params, params),
            ("expected.", self.expected, expected),
        ):
            for stranger in sorted(set(there) - known):
                raise Mismatch(f"unknown field {name}{stranger}")


def traced(run: Generation) -> list[TracedStep]:
    """The steps of a generation that was made with ``trace=True``."""
    assert run.trace is not None
    return run.trace


def equal(what: str, ours: object, expected: object) -> None:
    """Raise Mismatch, naming the first difference, unless the two are equal."""
    if ours == expected:
        return
    if isinstance(ours, list) and isinstance(expected, list):
        for i, (a, b) in enumerate(zip(ours, expected)):
            if a != b:
                raise Mismatch(f"{what}[{i}] is {a}, expected {b}")
        raise Mismatch(f"{what} has {len(ours)} entries, expected {len(expected)}")
    raise Mismatch(f"{what} is {ours}, expected {expected}")


def close(what: str, ours: Numbers, expected: Numbers, tolerance: float) -> None:
    """Raise Mismatch, naming the largest difference, unless two arrays of numbers agree within `tolerance`."""
    left = torch.as_tensor(ours).double()
    right = torch.as_tensor(expected, dtype=torch.float64)
    if left.shape != right.shape:
        raise Mismatch(f"{what} has shape {tuple(left.shape)}, expected {tuple(right.shape)}")
    gap = (left - right).abs().max().item() if left.numel() else 0.0
    if not gap <= tolerance:
        raise Mismatch(f"{what} differs by {gap:.2e}, allowed {tolerance:.0e}")


def know_equation(case: Case, inputs: set[str], expected: set[str], fields: Set[str] = frozenset()) -> None:
    """Fail on any field of an equation fixture that the adapter has not been taught; `fields` beyond the usual ones."""
    usual = {"id", "kind", "method", "source", "note", "inputs", "expected", "tolerance"}
    holders = (("", case.raw, usual | fields), ("inputs.", case.raw.get("inputs", {}), inputs))
    for name, there, known in (*holders, ("expected.", case.raw.get("expected", {}), expected)):
        for stranger in sorted(set(there) - known) if isinstance(there, dict) else ():
            raise Mismatch(f"unknown field {name}{stranger}")


def run_folder(folder: str | Path, device: str = "cpu") -> Iterator[Outcome]:
    """Run every case of a folder, its networks on `device`; fixtures of equations stay where they are.

    Raises RequestError when the folder holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"Golden folder {str(folder)!r} does not exist; give a folder with case files (*.json).")
    cases, forwards = sorted(folder.glob("*.json")), sorted(folder.glob("forward_*.safetensors"))
    areas = [area for area in sorted(folder.iterdir()) if area.is_dir() and list(area.glob("*.json"))]
    if not cases and not forwards and areas:  # a folder of areas
        for area in areas:
            yield from run_folder(area, device)
        return
    if not cases and not forwards:
        raise RequestError(f"Golden folder {str(folder)!r} holds no case files (*.json).")
    for file in forwards:
        yield _outcome(file.stem, "official", _forward_check(file))
    for case in cases_of(folder):
        yield run_case(case, device)


def cases_of(folder: Path) -> Iterator[Case]:
    """The cases of one area, as its files have them; forwards in files of their own are not among them."""
    for file in sorted(folder.glob("*.json")):
        for raw in _raw_cases(file):
            yield Case(folder, raw)


def run_case(case: Case, device: str = "cpu") -> Outcome:
    """Compare one case with what a run gives, or skip it if it is on the fixed list."""
    name = case.raw["id"]
    words = str(case.raw.get("source", "")).lower()
    own = ("reference", "computed with", "section ")  # from a paper's equations, not from somebody's code
    origin = "reference" if any(word in words for word in own) else "official"
    if name in SKIPPED:
        return Outcome(name, origin, "skipped", SKIPPED[name])
    return _outcome(name, origin, _case_check(case, device))


def _raw_cases(file: Path) -> Iterator[Fixture]:
    """The case of a file, or the units that a file without a method of its own lists."""
    raw = json.loads(file.read_text())
    if isinstance(raw, list):  # rows of exact values
        for row in raw:
            name = f"{row['task']}-{row['n']}-k{row['tokens_per_step']}"
            yield {"id": name, "method": "oracle", "source": "computed with fractions", **row}
        return
    listed = None if "method" in raw else next((name for name in UNITS if name in raw), None)
    if listed is None:
        yield {"id": file.stem, **raw}
        return
    for unit in raw[listed]:
        yield {"id": unit["name"], "method": UNITS[listed], "source": raw.get("source", ""), **unit}


def _case_check(case: Case, device: str):
    def check() -> None:
        method = case.raw.get("method")
        if "thres" in case.raw.get("params", {}):  # the policy's official code has a baseline of that name too
            method = f"{method}(thres)"
        if method not in ADAPTERS:
            raise Mismatch(f"no adapter knows the method {method!r}")
        importlib.import_module(ADAPTERS[method]).check(case, device)

    return check


def _forward_check(file: Path):
    def check() -> None:
        with safe_open(file, framework="pt") as handle:
            weights = handle.metadata().get("weights", "")
        config = json.loads((file.parent / weights / "config.json").read_text())
        area = "mrp" if config.get("num_nextn_predict_layers") else "sdar"
        importlib.import_module(f"dlmbench.verify.{area}").check_forward(file)

    return check


def _outcome(name: str, source: str, check) -> Outcome:
    try:
        check()
    except (Mismatch, DlmbenchError) as error:
        return Outcome(name, source, "failed", str(error))
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:  # a broken case is a failed case
        return Outcome(name, source, "failed", f"{type(error).__name__}: {error}")
    return Outcome(name, source, "passed")
