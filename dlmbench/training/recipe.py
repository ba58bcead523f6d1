"""A training recipe: one YAML file, read into a frozen dataclass and checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from dlmbench.errors import RequestError

OBJECTIVES = ("autoregressive", "block_diffusion")


@dataclass(frozen=True)
class Shape:
    """Size of the network; heads are not grouped, embeddings are tied."""

    layers: int = 12
    hidden: int = 128
    heads: int = 4
    intermediate: int = 384
    vocabulary: int = 1024
    max_positions: int = 4096  # few-shot prompts of public tasks are far longer than what is trained


@dataclass(frozen=True)
class WarmStart:
    """Where the weights start: a preset or checkpoint folder, and which of its layers are kept (default: all)."""

    model: str
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Recipe:
    """One stage of training.

    `columns` is the number of token columns a worker processes per step, padding included; `steps` fixes the
    learning-rate schedule: linear warm-up, constant, then a linear fall over the last `decay` of the run.
    """

    name: str
    objective: str
    mixture: dict[str, float]  # share of examples by source, as `dlmbench.tasks.nano.stream` names them
    steps: int
    shape: Shape = field(default_factory=Shape)
    warm_start: WarmStart | None = None
    block_lengths: tuple[int, ...] = (4, 8, 16)
    columns: int = 4096
    workers: int = 2
    seed: int = 0
    prompt_weight: float = 0.1  # autoregressive only: loss weight of prompt tokens relative to target tokens
    matrix_lr: float = 0.02
    vector_lr: float = 3e-3
    warmup: int = 100
    decay: float = 0.4
    final_lr: float = 0.02  # the learning rate at the last step, as a share of the constant one
    clip: float = 1.0
    save_every: int = 250
    evaluate_every: int = 500
    evaluate_items: int = 64
    compile: bool = True
    bfloat16: bool | None = None  # activations and gradients in bfloat16; None: where the processor has it in hardware

    def learning_rate(self, step: int) -> float:
        """Share of the constant learning rate at a step in 0 .. steps-1."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return max(self.final_lr, min(1.0, left))


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises RequestError naming the field and its value."""
    if not path.is_file():
        raise RequestError(f"Recipe {str(path)!r} does not exist; `dlmbench list recipes` shows the shipped ones.")
    raw = yaml.safe_load(path.read_text())
    if not isinstance(raw, dict):
        raise RequestError(f"Recipe {path.name} is not a mapping of fields to values.")
    known = {f.name for f in fields(Recipe)}
    required = {"name", "objective", "mixture", "steps"}
    if wrong := sorted(set(raw) - known) or sorted(required - set(raw)):
        kind = "unknown" if set(raw) - known else "missing"
        raise RequestError(
            f"Recipe {path.name} has {kind} field(s) {', '.join(wrong)}; known are {', '.join(sorted(known))}."
        )
    if raw["objective"] not in OBJECTIVES:
        raise RequestError(f"Recipe {path.name}: objective {raw['objective']!r} is not one of {', '.join(OBJECTIVES)}.")
    raw["shape"] = Shape(**raw.get("shape") or {})
    if start := raw.get("warm_start"):
        layers = start.get("layers")
        raw["warm_start"] = WarmStart(start["model"], tuple(layers) if layers else None)
    if "block_lengths" in raw:
        raw["block_lengths"] = tuple(raw["block_lengths"])
    return Recipe(**raw)
