"""What every runner shares: the `Run` it works on, where engines and tasks come from, and what it tells meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dlmbench.errors import RunError
from dlmbench.files import file_dtype, tell
from dlmbench.request import ResolvedRun, canonical, digest, identity
from dlmbench.request.resolved import Machine
from dlmbench.request.served import ServedRun
from dlmbench.runs.environment import environment
from dlmbench.runs.folder import Index, RunFolder, prompt_hash
from dlmbench.runs.preflight import fitting_batch
from dlmbench.runs.prompts import keep_prompts
from dlmbench.runs.record import Circumstances, Environment, Json, Manifest, Sample, TaskFacts, Work
from dlmbench.threads import THREADS

if TYPE_CHECKING:
    from dlmbench.engine import Engine, Generation, Request
    from dlmbench.tasks.base import Item
    from dlmbench.tasks.evaluate import Scores
    from dlmbench.tasks.task import Task


class Runner(Protocol):
    """Who makes runs: `dlmbench.runs.local.LocalRunner` here, `dlmbench.runs.ray.RayRunner` on many machines,
    `dlmbench.runs.served.ServedRunner` on a server."""

    def run(self, runs: Iterable[ResolvedRun]) -> list[RunFolder]:
        """Make, resume or find finished every run; the folders, in the order of the runs."""


class Progress(Protocol):
    """What a runner tells while it works; all calls are optional to act on."""

    def begin(self, label: str, done: int, total: int) -> None:
        """A run starts with `done` of its `total` items in the store."""

    def advance(self) -> None:
        """One more item is in the store."""

    def stage(self, text: str) -> None:
        """The items are there; something else is being done for this run."""

    def end(self) -> None:
        """The run is finished."""

    def kept(self) -> None:
        """A run was finished before."""


class NoProgress:
    """Says nothing."""

    def begin(self, label: str, done: int, total: int) -> None: ...

    def advance(self) -> None: ...

    def stage(self, text: str) -> None: ...

    def end(self) -> None: ...

    def kept(self) -> None: ...


def run_each(runs: Sequence[ResolvedRun], make: Callable[[ResolvedRun], RunFolder]) -> list[RunFolder]:
    """Make every run; the finished folders, in their order.

    One that fails, because memory ends or another process writes its folder, does not stop the others: one RunError at
    the end names all that failed.
    """
    if len(runs) == 1:
        return [make(runs[0])]
    folders: list[RunFolder] = []
    failures: list[str] = []
    for run in runs:
        try:
            folders.append(make(run))
        except RunError as error:
            failures.append(f"{run.label} on {run.spec.task} with {run.preset.name}: {error}")
            tell(f"failed  {failures[-1]}")
    if failures:
        kept = f"the other {len(folders)} are finished and kept" if folders else "none is finished"
        raise RunError(
            f"{len(failures)} of {len(runs)} runs failed, {kept}; the same command tries again. {' '.join(failures)}"
        )
    return folders


@dataclass(frozen=True)
class Run:
    """A resolved run with its items, its identity and the folder where it is kept."""

    resolved: ResolvedRun
    task: Task
    items: Sequence[Item]
    identity: dict[str, Json]
    key: str
    folder: RunFolder

    @property
    def title(self) -> str:
        """``nano-gsm, nano: threshold 0.9``."""
        return f"{self.task.name}, {self.resolved.model_label}: {self.resolved.label}"

    @property
    def weights(self) -> dict[str, str]:
        """role -> hash of its weights and configuration."""
        return self.identity["weights"]  # type: ignore[return-value]

    @property
    def missing(self) -> list[Item]:
        """Items that are not in the store."""
        done = {sample.key for sample in self.folder.samples}
        return [item for item in self.items if item.key not in done]

    def manifest(self, environment: Environment) -> Manifest:
        """Everything known before the first forward. `environment`: that of the process which makes it."""
        run, task = self.resolved, self.task
        server = run.facts if isinstance(run, ServedRun) else None
        return Manifest(
            key=self.key,
            label=run.label,
            threshold=run.threshold,
            threshold_unit=run.threshold_unit,
            parameters=run.parameters,
            method_version=run.version,
            spec=run.settled,
            task=TaskFacts(
                task.name, task.version, task.content_hash, task.num_fewshot, task.chat_template, len(self.items)
            ),
            block_length=run.block_length or None,
            gen_length=task.max_tokens,
            weights=self.weights,
            prompts=str(self.identity["prompts"]),
            identity=self.identity,
            environment=environment,
            server=server,
        )

    def keep_prompts(self) -> None:
        """Keep the questions beside the run folders."""
        records: list[Json] = [{"key": i.key, "prompt": i.prompt, "target": self.task.target(i)} for i in self.items]
        keep_prompts(self.folder, str(self.identity["prompts"]), records)

    def environment(self) -> Environment:
        """That of this process, on the run's device."""
        return environment(self.resolved.device)

    def circumstances(self) -> Circumstances:
        """What a price depends on, beside the forward itself."""
        here = self.environment()
        return Circumstances(
            weights=self.weights,
            batch_size=self.resolved.batch_size,
            dtype=self.resolved.dtype,
            block_length=self.resolved.block_length,
            task=self.task.name,
            device=here.device,
            threads=here.threads,
            torch=here.versions["torch"],
        )

    def requests(self, engine: Engine, items: Sequence[Item]) -> list[Request]:
        """The engine's requests of some items, exactly as scoring makes them."""
        return self.task.requests(engine, items, self.resolved.spec.seed)

    def described(self, engine: Engine) -> dict[str, Json]:
        """What was loaded, as the manifest keeps it."""
        from dlmbench.backbone.loading import checkpoint_folder

        preset = self.resolved.preset
        folder = checkpoint_folder(preset.location, preset.revision)
        threads: dict[str, Json] = {}
        if self.resolved.device == "cpu":
            threads = {"threads": f"{THREADS.number}: {THREADS.why}"}
        return {**without_places(engine.describe()), "weights": self.identity["weights"], **threads,
                "file_dtype": file_dtype(folder)}  # fmt: skip


def with_history(manifest: Manifest, before: Manifest | None, done: int) -> Manifest:
    """The manifest of a run that goes on with `done` samples: other environments that made some of them are kept.

    "environment" is that of the process which measures speed and prices; "environments" is there when several took
    part, in order, each with the number of samples that stood there before it.
    """
    if before is None:
        return manifest
    known = before.environments or [replace(before.environment, samples_before=0)]
    if manifest.environment != known[-1]:
        known = [*known, replace(manifest.environment, samples_before=done)]
    return replace(manifest, environments=known) if len(known) > 1 else manifest


def sample_of(item: Item, generation: Generation, scores: Scores) -> Sample:
    """What is kept of an item."""
    return Sample(
        key=item.key,
        prompt_hash=prompt_hash(item.prompt),
        ids=list(generation.ids),
        text=generation.text,
        scores=dict(scores),
        counts={role: {kind: work_of(one) for kind, one in kinds.items()} for role, kinds in generation.counts.items()},
        forwards=dict(generation.forward_counts),
        tokens=generation.tokens,
        seconds=round(generation.seconds, 6),
        stop_reason=generation.stop_reason,
        fallbacks=generation.fallbacks,
        proposed=generation.proposed,
        accepted=list(generation.accepted),
    )


def work_of(counted: Mapping[str, float]) -> Work:
    """One role's forwards of one kind, as the engine counted them."""
    calls, queries, keys = (int(counted[name]) for name in ("calls", "query_tokens", "key_tokens"))
    return Work(calls, queries, keys, counted["flops"])


def without_places(record: object) -> dict[str, Json]:
    """A description without places: strings that are absolute paths become their last component."""
    found = _without_places(record)
    return found if isinstance(found, dict) else {"description": found}


def _without_places(record: object) -> Json:
    if isinstance(record, dict):
        return {str(name): _without_places(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [_without_places(value) for value in record]
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return _without_places(dataclasses.asdict(record))
    if isinstance(record, Path) or (isinstance(record, str) and record.startswith(("/", "~"))):
        return Path(record).name
    return record if isinstance(record, str | int | float | bool) or record is None else str(record)


# --- where engines and tasks come from ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaders:
    """Where engines, tasks and hashes come from; tests run whole sweeps on a toy engine."""

    build: Callable[[ResolvedRun], Engine]
    load: Callable[[ResolvedRun], Task]
    weights: Callable[[ResolvedRun], dict[str, str]]  # role -> hash
    tokenizer: Callable[[ResolvedRun], str]  # hash of its files


def installed() -> Loaders:
    """The real thing. What is heavy to import, torch and lm-eval, comes with it and not before."""
    from dlmbench.runs import loading

    return Loaders(loading.build, loading.load, loading.network_hashes, loading.tokenizer_hash)


class Catalog:
    """Finds out which run a resolved one is: its task, its items, its key and its folder. Each task is loaded once and
    each root's folders are read once."""

    def __init__(self, loaders: Loaders | None = None):
        self._loaders = loaders
        self._tasks: dict[str, Task] = {}
        self._roots: dict[str, Index] = {}

    @property
    def loaders(self) -> Loaders:
        """Those that were given, or the installed ones, from the first use on: a wrong request is refused before."""
        if self._loaders is None:
            self._loaders = installed()
        return self._loaders

    def run(self, resolved: ResolvedRun) -> Run:
        """Loads the task and hashes the weights; loads no model."""
        spec, task = resolved.spec, self.task(resolved)
        prompts = task.prompt_hash(spec.split, spec.limit)
        limits: dict[str, Json] = {"gen_length": task.max_tokens, "stop": list(task.stop)}
        content: dict[str, Json] = {
            "task_version": task.version,
            "content_hash": task.content_hash,
            "tokenizer": self.loaders.tokenizer(resolved),
        }
        if isinstance(resolved, ServedRun):
            record = resolved.key_record(prompts, limits, content)
        else:
            record = identity(resolved, self.loaders.weights(resolved), prompts, limits, content)
        key = digest(record)
        folder = self.index(spec.out).at(spec.task, spec.method, key)
        return Run(resolved, task, task.items(spec.split, spec.limit), record, key, folder)

    def task(self, resolved: ResolvedRun) -> Task:
        spec, chat = resolved.spec, resolved.chat_template
        asked = [spec.task, spec.protocol, spec.data_dir, spec.num_fewshot, resolved.gen_length]
        name = canonical([*asked, chat, spec.model if chat else None])
        if name not in self._tasks:
            self._tasks[name] = self.loaders.load(resolved)
        return self._tasks[name]

    def index(self, root: str) -> Index:
        if root not in self._roots:
            self._roots[root] = Index(root)
        return self._roots[root]


class FittingMachine(Machine):
    """The machine at hand, which on a GPU decodes as many rows together as its whole memory holds, so that the same
    command finds the same runs; those that do not fit after all are halved by the engine."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog

    def batch_size(self, run: ResolvedRun) -> int:
        if not run.device.startswith("cuda"):
            return super().batch_size(run)
        import torch

        return fitting_batch(run, self.catalog.task(run), torch.cuda.mem_get_info(run.device)[1])
