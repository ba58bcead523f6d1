"""A training recipe: one YAML file, read into a frozen dataclass and checked before anything heavy is loaded."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path

from dlmbench.errors import RequestError
from dlmbench.files import yaml_mapping
from dlmbench.models.presets import PRESETS
from dlmbench.request.values import convert
from dlmbench.tasks.nano.mix import stream

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = typing.TypeVar("T", bound="DataclassInstance")

OBJECTIVES = ("autoregressive", "block_diffusion", "full_diffusion", "mrp", "rcd", "adjust", "learned_policy")
STARTS = ("layers", "random", "authors")  # of an MRP module
REVEALS = ("gt", "gt_random", "model")
HEADS = {"mrp": "an MRP module", "adjust": "an ADJUST sampler", "learned_policy": "an unmasking policy"}


@dataclass(frozen=True)
class Shape:
    """Size of the network; heads are not grouped, embeddings are tied."""

    layers: int = 12
    hidden: int = 128
    heads: int = 4
    intermediate: int = 384
    vocabulary: int = 1024
    max_positions: int = 4096  # few-shot prompts of public tasks are far longer than what is trained

    def __post_init__(self):
        if wrong := [f.name for f in fields(self) if getattr(self, f.name) < 1]:
            raise RequestError(f"shape.{wrong[0]} is {getattr(self, wrong[0])}; it is at least 1.")
        if self.hidden % (2 * self.heads):
            raise RequestError(
                f"shape.hidden is {self.hidden}; {self.heads} heads need a multiple of {2 * self.heads}."
            )


@dataclass(frozen=True)
class WarmStart:
    """Where the weights start: a preset, a checkpoint folder or another recipe's run beside this one (`beside`), and
    which of its layers are kept (default: all)."""

    model: str
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class MRPPlan:
    """How an MRP module is trained beside the frozen backbone that `warm_start` names (MRP's training objective).

    start: ``layers`` (the backbone's last ones), ``random``, ``authors``, or a trained module, preset or folder, to go
    on from. reveal: ``gt`` shows `counts[0]` true tokens of every block, ``gt_random`` a number drawn from `counts`,
    ``model`` the backbone's own choices above a threshold drawn from `thresholds` (what remasking meets). unrolled:
    reveals in a row, each with its pass. leave_one_out: weight of the loss at revealed positions, whose teacher is the
    backbone with that one position masked again.
    residual: the module moves the logits (True) or replaces them. gain: the last norm at the start of a module that
    moves them.
    """

    layers: int = 3
    start: str = "layers"
    gain: float = 0.1
    reveal: str = "gt"
    counts: tuple[int, ...] = (1,)
    thresholds: tuple[float, float] = (0.5, 0.95)
    unrolled: int = 1
    leave_one_out: float = 0.0
    residual: bool = True

    def __post_init__(self):
        if self.reveal not in REVEALS:
            raise RequestError(f"mrp.reveal is {self.reveal!r}; it takes one of {', '.join(REVEALS)}.")
        if self.layers < 1 or self.unrolled < 1 or not self.counts or min(self.counts) < 1 or self.leave_one_out < 0:
            raise RequestError("mrp.layers, unrolled and counts are at least 1, and leave_one_out is not negative.")
        if self.gain <= 0:
            raise RequestError(f"mrp.gain is {self.gain}; it is above 0, or the layers have no gradient at first.")
        if self.leave_one_out and not self.residual:
            raise RequestError("mrp.leave_one_out needs residual: true; a replaced distribution has no old logits.")

    @property
    def module_folder(self) -> str:
        """Where the module to go on from lies. Raises RequestError where `start` names none."""
        folder = PRESETS[self.start].location if self.start in PRESETS else self.start
        if not Path(folder).is_dir():
            raise RequestError(
                f"mrp.start is {self.start!r}; it takes one of {', '.join(STARTS)}, or a trained module: a preset or "
                "a folder."
            )
        return folder


@dataclass(frozen=True)
class AdjustPlan:
    """How ADJUST's sampler is trained beside the frozen backbone that `warm_start` names.

    unrolled: most calls of the sampler after one state of the backbone; single: first steps, which take one call.
    gain: the last norm at the start (the authors': 1). temperature: of the backbone's trajectories. trajectories: how
    many a worker keeps at a time; windows: steps taken on them before they are replaced. quiet: weight, in nats, of a
    window in which doing nothing costs nothing; the others weigh what it costs in them on top.
    """

    unrolled: int = 3
    single: int = 500
    gain: float = 0.1
    temperature: float = 1.0
    trajectories: int = 320
    windows: int = 256
    quiet: float = 0.05

    def __post_init__(self):
        if min(self.unrolled, self.trajectories, self.windows) < 1 or min(self.single, self.temperature) < 0:
            raise RequestError(
                "adjust.unrolled, trajectories and windows are at least 1, single and temperature not negative."
            )
        if self.gain <= 0 or self.quiet <= 0:
            raise RequestError(
                f"adjust.gain is {self.gain} and adjust.quiet {self.quiet}; both are above 0: without a gain the layer "
                "has no gradient, without quiet there may be no window to draw."
            )


@dataclass(frozen=True)
class PolicyPlan:
    """How an unmasking policy is trained beside the frozen backbone that `warm_start` names.

    rollouts: of each prompt; updates: gradients taken on them; alpha: weight of speed in the reward; clip: how far the
    ratio of a step's action counts; bias: output bias at the start; hidden, intermediate: size of the network.
    """

    rollouts: int = 8
    updates: int = 2
    alpha: float = 1.0
    clip: float = 0.5
    bias: float = -2.0
    hidden: int = 128
    intermediate: int = 512

    def __post_init__(self):
        if self.rollouts < 2 or self.updates < 1 or self.alpha < 0 or not 0 < self.clip < 1:
            raise RequestError(
                "learned_policy.rollouts is at least 2, updates at least 1, alpha not negative, clip between 0 and 1."
            )
        if self.hidden % 4 or self.hidden < 4 or self.intermediate < 1:
            raise RequestError(f"learned_policy.hidden is {self.hidden}; two heads need a multiple of 4.")


@dataclass(frozen=True)
class Recipe:
    """One stage of training.

    `columns` is the number of token columns a worker processes per step, padding included; `steps` fixes the
    learning-rate schedule: linear warm-up, constant, then a linear fall over the last `decay` of the run.
    """

    name: str
    objective: str
    mixture: dict[str, float]  # share of examples by source, as `dlmbench.tasks.nano.mix.stream` names them
    steps: int
    description: str = ""
    shape: Shape = field(default_factory=Shape)
    warm_start: WarmStart | None = None
    block_lengths: tuple[int, ...] = (4, 8, 16)
    columns: int = 4096
    workers: int = 2
    seed: int = 0
    mrp: MRPPlan = field(default_factory=MRPPlan)  # mrp only
    adjust: AdjustPlan = field(default_factory=AdjustPlan)  # adjust only
    learned_policy: PolicyPlan = field(default_factory=PolicyPlan)  # learned_policy only
    reference: str | None = None  # rcd only: the frozen network whose predictions become residuals
    ordered: float = 0.0  # block_diffusion only: share of the rows whose blocks are masked from the right
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

    def __post_init__(self):
        least = dict.fromkeys(("steps", "columns", "workers", "save_every", "evaluate_every"), 1)
        least |= dict.fromkeys(("seed", "warmup", "decay", "final_lr", "prompt_weight", "evaluate_items"), 0)
        if wrong := [name for name, low in least.items() if getattr(self, name) < low]:
            value = getattr(self, wrong[0])
            raise RequestError(f"Recipe {self.name}: {wrong[0]} is {value}; it is at least {least[wrong[0]]}.")
        if wrong := [name for name in ("matrix_lr", "vector_lr", "clip") if getattr(self, name) <= 0]:
            raise RequestError(f"Recipe {self.name}: {wrong[0]} is {getattr(self, wrong[0])}; it is above 0.")
        if not self.block_lengths or min(self.block_lengths) < 1:
            raise RequestError(f"Recipe {self.name}: block_lengths is {list(self.block_lengths)}; name one or more.")

    @property
    def backbone(self) -> str:
        """The frozen network that a head is trained beside. Raises RequestError where `warm_start` names none."""
        if self.warm_start is None:
            raise RequestError(f"Recipe {self.name} names no backbone: add warm_start.model.")
        return self.warm_start.model

    def learning_rate(self, step: int) -> float:
        """Share of the constant learning rate at a step in 0 .. steps-1."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return max(self.final_lr, min(1.0, left))


def beside(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the weights of runs in `folder` for those models that it names and no preset has."""

    def place(name: str) -> str:
        weights = folder / name / "weights"
        known = name in PRESETS and not PRESETS[name].absent
        return str(weights) if not known and (weights / "config.json").is_file() else name

    start, reference = recipe.warm_start, recipe.reference
    return replace(
        recipe,
        warm_start=start and replace(start, model=place(start.model)),
        reference=reference and place(reference),
        mrp=replace(recipe.mrp, start=place(recipe.mrp.start)),
    )


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises RequestError naming the field and its value."""
    if not path.is_file():
        raise RequestError(f"Recipe {str(path)!r} does not exist; `dlmbench list recipes` shows the shipped ones.")
    recipe = _read(Recipe, yaml_mapping(path, "Recipe"), f"Recipe {path.name}")
    if recipe.objective not in OBJECTIVES:
        raise RequestError(f"Recipe {path.name}: objective {recipe.objective!r} is not one of {', '.join(OBJECTIVES)}.")
    stream(recipe.mixture, recipe.seed)  # says what it cannot draw from
    if recipe.objective in HEADS and not recipe.warm_start:
        kind = HEADS[recipe.objective]
        raise RequestError(f"Recipe {path.name} trains {kind} but names no backbone: add warm_start.model.")
    if (recipe.objective == "rcd") != bool(recipe.reference):
        raise RequestError(
            f"Recipe {path.name}: objective rcd and the field reference, a frozen model of the same vocabulary, belong "
            "together; give both or neither."
        )
    if not 0 <= recipe.ordered <= 1 or recipe.ordered and recipe.objective != "block_diffusion":
        raise RequestError(
            f"Recipe {path.name}: ordered is {recipe.ordered}; it is a share between 0 and 1, of block_diffusion alone."
        )
    return recipe


def _read(kind: type[T], values: object, where: str) -> T:
    """A dataclass from what was written of its fields, those of dataclasses within it too."""
    if not isinstance(values, Mapping):
        raise RequestError(f"{where} is {values!r}; it has fields of its own, each with a value.")
    hints = typing.get_type_hints(kind)
    if wrong := sorted(set(map(str, values)) - hints.keys()):
        raise RequestError(f"{where} has no field {', '.join(wrong)}; known are {', '.join(sorted(hints))}.")
    found = {name: _value(value, hints[name], f"{where}: {name}") for name, value in values.items()}
    if missing := [f.name for f in fields(kind) if f.default is f.default_factory is MISSING and f.name not in found]:
        raise RequestError(f"{where} has no {', '.join(missing)}.")
    return kind(**found)


def _value(value: object, hint: object, where: str) -> object:
    inner = [one for one in (typing.get_args(hint) or (hint,)) if isinstance(one, type) and is_dataclass(one)]
    if inner:  # left empty it is as its default
        return None if value is None and type(None) in typing.get_args(hint) else _read(inner[0], value or {}, where)
    if typing.get_origin(hint) is not dict:
        return convert(value, hint, where)
    if not isinstance(value, Mapping):
        raise RequestError(f"{where} is {value!r}; it maps names to numbers.")
    return {str(name): convert(share, float, f"{where}.{name}") for name, share in value.items()}
