"""The training loop: one process a core, a gradient sum a step, a checkpoint that can be killed at any moment.

Two single-threaded workers beat one worker with two threads: nothing waits inside a step, so a busy machine slows
training instead of stalling it. Each worker draws its own data and computes the same update from the summed gradients.

Left on disk in the output folder: `checkpoint.pt` (master weights, optimiser, data positions), `log.jsonl`, and
`weights/` (the current bf16 export in the official layout).
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from dlmbench.backbone import (
    BackboneConfig,
    Transformer,
    load_checkpoint,
    load_tokenizer,
    save_checkpoint,
    weights_hash,
)
from dlmbench.backbone.configuration import read_config
from dlmbench.backbone.loading import checkpoint_folder
from dlmbench.errors import DlmbenchError, RequestError, RunError
from dlmbench.models.presets import PRESETS, resolve
from dlmbench.tasks.nano.mix import stream
from dlmbench.training import autoregressive, block_diffusion
from dlmbench.training.data import Batch, ColumnBatches, Draw, Example, LaidExample, Layout, map_tensors
from dlmbench.training.evaluate import decode, decode_causal, dev_accuracy
from dlmbench.training.fold import fold_qk_norm
from dlmbench.training.optim import Optimizer
from dlmbench.training.recipe import STARTS, Recipe, beside
from dlmbench.training.step import batch_loss

Model = TypeVar("Model", bound=nn.Module)
PAD, END, MASK, SEPARATOR = 0, 1, 2, 3
FAMILIES = {"autoregressive": ("qwen3", "causal"), "full_diffusion": ("llada", "full")}  # others: SDAR's
WORKERS = {  # other objectives: the plain one below
    "full_diffusion": ("dlmbench.training.full_diffusion", "FullDiffusionWorker"),
    "mrp": ("dlmbench.training.mrp", "MRPWorker"),
    "rcd": ("dlmbench.training.rcd", "RCDWorker"),
    "adjust": ("dlmbench.training.adjust", "AdjustWorker"),
    "learned_policy": ("dlmbench.training.learned_policy", "PolicyWorker"),
}
REPORT_EVERY = 50  # steps between log lines
EVALUATED = 8  # block length of the decoding that evaluates a backbone, and its own from then on
ERROR = "error"  # file in which a worker leaves an error of ours
UNIMPORTANT = {"name", "description", "steps", "save_every", "evaluate_every", "evaluate_items", "compile"}
# Large tensors come and go every step: keep their memory in the process, on huge pages (measured: 10 % faster).
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}" for name in ("hugetlb=1", "mmap_max=0", "trim_threshold=100000000000", "top_pad=200000000")
)


def train(recipe: Recipe, out: Path, resume: bool = False, minutes: float | None = None) -> None:
    """Run a recipe to its last step, or for `minutes`; `resume` continues from the checkpoint in `out`.

    Models that the recipe names and no preset has are looked for among the runs beside `out`. Raises what a worker
    does, and RunError where one ends otherwise.
    """
    recipe = _here(recipe, out)
    _worker(recipe.objective).check(recipe)
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GLIBC_TUNABLES", ALLOCATOR)  # read by the workers when they start
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(_enter, (recipe, out, resume, minutes, Path(folder)), nprocs=recipe.workers)
        except mp.ProcessRaisedException as error:
            if (said := Path(folder) / ERROR).is_file():
                raise pickle.loads(said.read_bytes()) from None
            raise RunError(f"A training process ended: {str(error).strip().splitlines()[-1]}.") from error


def finished(recipe: Recipe, out: Path) -> bool:
    """Has the run in `out` reached the recipe's last step? Raises RequestError where it was begun as another one."""
    checkpoint = out / "checkpoint.pt"
    if not checkpoint.is_file():
        return False
    state = torch.load(checkpoint, mmap=True)
    ours = deciding(_here(recipe, out))
    theirs = state.get("deciding", ours)
    if changed := [name for name in ours if theirs.get(name) != ours[name]]:
        raise RequestError(
            f"{str(out)!r} was begun by another recipe, with other {', '.join(changed)}: go on with that one, or "
            "choose another --out."
        )
    return state["step"] >= recipe.steps


def deciding(recipe: Recipe) -> dict[str, object]:
    """What decides the weights but for the number of steps, as plain values; models by the hashes of their weights."""
    start, reference, module = recipe.warm_start, recipe.reference, recipe.mrp.start
    found = json.loads(json.dumps(asdict(recipe)))
    if start:
        found["warm_start"]["model"] = weights_hash(folder_of(start.model))
    if reference:
        found["reference"] = weights_hash(folder_of(reference))
    if recipe.objective == "mrp" and module not in STARTS:
        found["mrp"]["start"] = weights_hash(Path(recipe.mrp.module_folder))
    return {name: value for name, value in found.items() if name not in UNIMPORTANT}


def folder_of(name: str) -> Path:
    """Where the checkpoint of a preset, folder or hub name lies, fetched where need be."""
    preset = resolve(name)
    return checkpoint_folder(preset.location, preset.revision)


def _here(recipe: Recipe, out: Path) -> Recipe:
    """The recipe as it is run in `out`, on this machine."""
    recipe = beside(recipe, out.parent)
    if not torch.cuda.is_available():
        return recipe
    return replace(recipe, columns=recipe.columns * recipe.workers, workers=1)  # one process feeds the device


def _enter(rank: int, recipe: Recipe, out: Path, resume: bool, minutes: float | None, meeting: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting / 'meeting'}", rank=rank, world_size=recipe.workers)
    tokenizer = load_tokenizer(PRESETS["nano2"].tokenizer_location)
    worker = _worker(recipe.objective)
    try:
        worker(recipe, out, example_stream(recipe.mixture, tokenizer), tokenizer, rank).run(resume, minutes)
    except DlmbenchError as error:  # processes hand on a traceback alone
        (meeting / ERROR).write_bytes(pickle.dumps(error))
        raise
    dist.destroy_process_group()


def _worker(objective: str) -> type[TrainingWorker]:
    """The class that trains for an objective; only its own module is imported."""
    module, name = WORKERS.get(objective, (__name__, "PlainWorker"))
    return getattr(import_module(module), name)


def example_stream(mixture: dict[str, float], tokenizer) -> Draw:
    """Training examples of the nano tasks as token ids; never an instance that is held out."""

    def draw(seed: tuple[int, ...]):
        problems = stream(mixture, int(np.random.SeedSequence(seed).generate_state(1)[0]))
        while True:  # tokenised some hundreds at a time: one by one costs ten times more
            some = list(islice(problems, 256))
            texts = [problem[part] for problem in some for part in ("prompt", "target")]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            for problem, prompt, target in zip(some, ids[::2], ids[1::2], strict=True):
                yield Example(tuple(prompt), tuple(target), problem["source"])

    return draw


class BatchStream(Protocol):
    """Endless batches of dataclasses with tensors and their `columns`; `position` is that of the next one."""

    position: tuple[int, int]

    def __iter__(self) -> Iterator: ...


class TrainingWorker(Generic[Model]):
    """One process of a training run; worker 0 also logs, evaluates and saves.

    `Model` is what is trained. An objective says what its networks, loss, export and evaluation are.
    """

    def __init__(self, recipe: Recipe, out: Path, draw: Draw, tokenizer=None, rank: int = 0):
        self.recipe, self.out, self.rank, self.tokenizer = recipe, out, rank, tokenizer
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if _use_bfloat16(recipe.bfloat16) else torch.float32
        self.deciding = deciding(recipe)
        self.batches = self.data(draw)
        self.master, self.network = self.networks()
        self.optimizer = Optimizer(self.master, recipe.matrix_lr, recipe.vector_lr, recipe.clip)
        self.step, self.columns, self.seconds = 0, 0, 0.0
        self.notes: list[dict[str, float]] = []  # measures of the batches since the last log line
        self._copy_weights()

    @staticmethod
    def check(recipe: Recipe) -> None:
        """Refuse a recipe that cannot be run here, before a process is started."""

    def data(self, draw: Draw) -> BatchStream:
        """What to train on."""
        recipe = self.recipe
        lengths = (1,) if recipe.objective == "autoregressive" else recipe.block_lengths
        return ColumnBatches(draw, self.layout(), lengths, recipe.columns, recipe.seed, self.rank)

    def layout(self) -> Layout[LaidExample]:
        return _layout(self.recipe)

    def networks(self) -> tuple[Model, Model]:
        """The float32 master copy of what is trained, and the copy in the step's dtype."""
        raise NotImplementedError

    def loss(self, batch) -> Tensor:
        """Loss of one batch, a scalar to descend."""
        raise NotImplementedError

    def export(self) -> None:
        """Write what was trained to the folder `weights`."""
        raise NotImplementedError

    def evaluate(self) -> None:
        """Log what the weights are worth on dev items, by worker 0."""
        raise NotImplementedError

    def measured(self) -> dict[str, float]:
        """Means of the `notes` since it was last asked for; a batch without a measure counts as zero."""
        notes, self.notes = self.notes, []
        names = dict.fromkeys(name for note in notes for name in note)
        return {name: sum(note.get(name, 0.0) for note in notes) / len(notes) for name in names}

    def budget(self, **plan) -> dict:
        """What made the weights, for the config file of a head."""
        return {
            "recipe": self.recipe.name, "steps": self.step, "columns": self.columns, "seconds": round(self.seconds),
            **plan, "block_lengths": list(self.recipe.block_lengths),
        }  # fmt: skip

    def run(self, resume: bool = False, minutes: float | None = None) -> None:
        if resume:
            self.load()
        start, before, losses = time.monotonic(), self.seconds, []
        tick, tick_columns, stop = start, self.columns, False
        batches = iter(self.batches)
        while not stop and self.step < self.recipe.steps:  # a batch that nobody takes may be dear to make
            batch = next(batches)
            late = minutes is not None and time.monotonic() - start > 60 * minutes
            loss, norm, columns, stop = self.update(batch, late)
            self.step += 1
            self.columns += columns
            losses.append(loss)
            self.seconds = before + time.monotonic() - start
            if self.step % REPORT_EVERY == 0:
                now = time.monotonic()
                speed = (self.columns - tick_columns) / (now - tick)
                facts = {"loss": sum(losses) / len(losses), **self.measured()}
                self.log(step=self.step, **facts, norm=norm, columns_per_second=round(speed))
                tick, tick_columns, losses = now, self.columns, []
            last = stop or self.step == self.recipe.steps
            if self.step % self.recipe.save_every == 0 and not last:
                self.save()
            if self.step % self.recipe.evaluate_every == 0 or last:
                self.evaluate()
        self.save()

    def update(self, batch, late: bool) -> tuple[float, float, int, bool]:
        """One optimiser step on all workers' batches -> mean loss, gradient norm, columns, is any worker late."""
        batch = map_tensors(lambda tensor: tensor.to(self.device), batch)
        loss = self.loss(batch)
        loss.backward()
        named = dict(self.network.named_parameters())
        facts = torch.tensor([loss.item(), batch.columns, float(late)], device=self.device)
        gradient = [p.grad.flatten().float() for p in named.values() if p.grad is not None]  # all have one
        flat = torch.cat([*gradient, facts])
        if self.recipe.workers > 1:
            dist.all_reduce(flat)
        loss_sum, columns, late_workers = flat[-3:].tolist()
        flat /= self.recipe.workers
        pieces = flat[:-3].split([p.numel() for p in named.values()])
        gradients = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        norm = self.optimizer.step(gradients, self.recipe.learning_rate(self.step), self.dtype)
        self._copy_weights()
        return loss_sum / self.recipe.workers, norm, int(columns), late_workers > 0

    @torch.no_grad()
    def _copy_weights(self) -> None:
        for ours, theirs in zip(self.network.parameters(), self.master.parameters(), strict=True):
            ours.copy_(theirs)
            ours.grad = None

    def save(self) -> None:
        """bf16 export and checkpoint by worker 0; the old checkpoint stays until all else is whole."""
        positions: list[tuple[int, int] | None] = [self.batches.position]
        if self.recipe.workers > 1:
            positions = [None] * self.recipe.workers
            dist.all_gather_object(positions, self.batches.position)
        if self.rank:
            return
        state = {
            "step": self.step,
            "columns": self.columns,
            "seconds": self.seconds,
            "positions": positions,
            "deciding": self.deciding,
            "weights": self.master.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.export()
        torch.save(state, self.out / "checkpoint.tmp")
        os.replace(self.out / "checkpoint.tmp", self.out / "checkpoint.pt")

    def load(self) -> None:
        state = torch.load(self.out / "checkpoint.pt", map_location=self.device)
        self.master.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.columns, self.seconds = state["step"], state["columns"], state["seconds"]
        self.batches.position = tuple(state["positions"][self.rank])
        self._copy_weights()

    def log(self, **facts) -> None:
        if self.rank:
            return
        rate = self.recipe.learning_rate(self.step)
        facts |= {"learning_rate": round(rate, 4), "columns": self.columns, "seconds": round(self.seconds, 1)}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\n")
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
        print(f"{self.recipe.name}  {text}", file=sys.stderr, flush=True)


class PlainWorker(TrainingWorker[Transformer]):
    """Trains a backbone to predict what is masked, or the next token."""

    @staticmethod
    def check(recipe: Recipe) -> None:
        if recipe.warm_start:
            check_start(recipe, read_config(folder_of(recipe.warm_start.model))[0])

    def networks(self) -> tuple[Transformer, Transformer]:
        assert isinstance(self.batches, ColumnBatches)
        master = initial_weights(self.recipe, self.batches.sample).to(self.device).requires_grad_(True).train()
        return master, Transformer(master.config).to(self.device, self.dtype)

    def loss(self, batch: Batch) -> Tensor:
        return batch_loss(self.network, batch, self.recipe.compile)

    def export(self) -> None:
        """The weights with the tokenizer, so that ``--model`` takes the folder."""
        save_checkpoint(self.master, self.out / "weights")
        if self.tokenizer:
            self.tokenizer.save_pretrained(str(self.out / "weights"))

    def decode(self, network: Transformer, source: str, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Ids after each prompt of dev items of a source."""
        if self.recipe.objective == "autoregressive":
            return decode_causal(network, prompts, 96)
        return decode(network, prompts, EVALUATED, 96, threshold=0.9)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Accuracy on the first dev items of each source's task; the other workers wait at their next gradient sum."""
        if self.rank or not self.recipe.evaluate_items:
            return
        network = self.master.eval()

        def answer(source: str, prompts: list[str]) -> list[str]:
            ids = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
            return self.tokenizer.batch_decode(self.decode(network, source, ids), skip_special_tokens=True)

        count = self.recipe.evaluate_items
        scores = {source: dev_accuracy(source, count, partial(answer, source)) for source in self.recipe.mixture}
        self.master.train()
        self.log(step=self.step, accuracy=scores)


def initial_weights(recipe: Recipe, sample: Callable[[], Batch] | None = None) -> Transformer:
    """Float32 weights a recipe starts from: random, or a warm start with the layers it names.

    `sample` gives a training batch, on which the q/k norm of a source is measured that the trained network lacks.
    """
    config = network_config(recipe)
    if not recipe.warm_start:
        return Transformer(config).init_weights(recipe.seed)
    source = load_checkpoint(folder_of(recipe.warm_start.model))
    check_start(recipe, source.config)
    theirs = source.config  # what no weight holds
    config = replace(
        config, rope_theta=theirs.rope_theta, rope_scaling=theirs.rope_scaling, rms_norm_eps=theirs.rms_norm_eps
    )
    model = Transformer(config).init_weights(recipe.seed)
    full = source.state_dict()
    if source.config.qk_norm and not config.qk_norm:
        assert sample is not None
        full = fold_qk_norm(source, sample())
    state = {k: v for k, v in full.items() if not k.startswith("layers.")}
    for ours, kept in enumerate(_kept(recipe, source.config)):
        layer = {k: v for k, v in full.items() if k.startswith(f"layers.{kept}.")}
        state |= {k.replace(f".{kept}.", f".{ours}.", 1): v for k, v in layer.items()}
    model.load_state_dict(state)
    return model


def network_config(recipe: Recipe) -> BackboneConfig:
    """The network that a recipe trains from nothing."""
    shape = recipe.shape
    family, attention = FAMILIES.get(recipe.objective, ("sdar", "block_causal"))
    return BackboneConfig(
        family=family,
        attention=attention,
        shift=int(attention == "causal"),
        qk_norm=family != "llada",
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        intermediate_size=shape.intermediate,
        tie_embeddings=True,
        mask_id=MASK,
        eos_ids=(END,),
        pad_id=PAD,
        max_positions=shape.max_positions,
        block_length=None if attention == "causal" else EVALUATED,
    )


def check_start(recipe: Recipe, source: BackboneConfig) -> None:
    """Refuse weights that do not fit the network of the recipe."""
    config, kept = network_config(recipe), _kept(recipe, source)
    same = ["vocab_size", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "tie_embeddings"]
    same += [] if source.mask_id is None else ["mask_id"]
    ours, theirs = ({name: getattr(one, name) for name in same} for one in (config, source))
    ours["num_layers"], theirs["num_layers"] = config.num_layers, len(kept)
    assert recipe.warm_start is not None
    if wrong := next((name for name in ours if ours[name] != theirs[name]), None):
        raise RequestError(
            f"Recipe {recipe.name} starts from {recipe.warm_start.model}, whose {wrong} is {theirs[wrong]}; its own is "
            f"{ours[wrong]}: change shape, or warm_start."
        )
    if max(kept) >= source.num_layers or min(kept) < 0:
        raise RequestError(
            f"Recipe {recipe.name}: warm_start.layers is {list(kept)}; {recipe.warm_start.model} has layers 0 to "
            f"{source.num_layers - 1}."
        )


def _kept(recipe: Recipe, source: BackboneConfig) -> tuple[int, ...]:
    """The layers of the source that a warm start keeps."""
    return recipe.warm_start and recipe.warm_start.layers or tuple(range(source.num_layers))


def _layout(recipe: Recipe) -> Layout[LaidExample]:
    if recipe.objective == "autoregressive":
        return lambda example, block_length, noise: autoregressive.layout(example, END, recipe.prompt_weight)
    return lambda example, block_length, noise: block_diffusion.layout(
        example, block_length, noise, MASK, END, recipe.ordered
    )


def _use_bfloat16(wish: bool | None) -> bool:
    """Bfloat16 products are slower than float32 on a processor without instructions for them."""
    if wish is not None:
        return wish
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
