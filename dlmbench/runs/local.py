"""Runs cells here, one after another, and leaves finished run folders behind.

A cell: the task's items, the key, the folder of that key; if it is finished nothing happens, else the missing items are
generated and scored as they come, then a pass over a stated subset measures speed with natural stop, forwards get their
measured price, and the aggregates are written. Tasks and engines are built only when a cell needs them, and reused by
the cells that share them.

Where engines and tasks come from can be replaced (`Source`): tests run whole sweeps on a toy engine. Left out:
parallel cells, which would disturb each other's clocks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from dlmbench.errors import RunError
from dlmbench.files import file_dtype, files_hash, tell, tokenizer_files
from dlmbench.request import Checked, RunSpec, canonical, digest, identity, options
from dlmbench.runs import RunFolder, prompt_hash
from dlmbench.runs.aggregate import aggregate
from dlmbench.runs.environment import environment
from dlmbench.runs.folder import Writer, find_by_key
from dlmbench.runs.prices import Prices
from dlmbench.runs.prompts import keep_prompts
from dlmbench.runs.recording import TRACED, trace_records
from dlmbench.stats import spread
from dlmbench.threads import THREADS

SPEED_REPEATS = 3
SPEED_ROUNDS = 2  # the speed pass takes so many items for each slot of the batch ...
SPEED_LEAST = 8  # ... and at least this many
MECHANISM_ONLY = "mechanism only: the ranking of nano models by tokens/s is no advice for large ones"


class Progress(Protocol):
    """What an executor tells while it works; all calls are optional to act on."""

    def begin(self, label: str, done: int, total: int) -> None:
        """A cell starts with `done` of its `total` items in the store."""

    def advance(self) -> None:
        """One more item is in the store."""

    def stage(self, text: str) -> None:
        """The items are there; something else is being done for this cell."""

    def end(self) -> None:
        """The cell is finished."""


class Silent:
    """No progress at all."""

    def begin(self, label: str, done: int, total: int) -> None: ...

    def advance(self) -> None: ...

    def stage(self, text: str) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Source:
    """Where engines, tasks and hashes come from."""

    build: Callable[[Checked], Any]  # resolved cell -> Engine
    load: Callable[[Checked], Any]  # cell -> Task
    weights: Callable[[Checked], dict[str, str]]  # cell -> role -> hash
    tokenizer: Callable[[Checked], str]  # cell -> hash of the tokenizer's files


def installed() -> Source:
    """The real thing: torch and lm-eval are imported when it is first used."""
    return Source(_build, _load_task, _weights, _tokenizer_hash)


def run_cells(specs: Iterable[RunSpec], local: Local | None = None) -> list[Path]:
    """Check all specs, then run or resume each; their folders, in the same order.

    Raises RequestError before anything is loaded when one of them cannot work.
    """
    cells = [spec.check() for spec in specs]
    return [folder.path for folder in (local or Local()).run(cells)]


class Local:
    """The local executor. One instance keeps models and tasks loaded between its cells.

    Args:
        traces: items of each run whose steps are recorded; a finished run that has fewer gets the others.
    """

    def __init__(self, source: Source | None = None, progress: Progress | None = None, traces: int = TRACED):
        self.source = source or installed()
        self.progress = progress or Silent()
        self.traces = traces
        self._tasks: dict[str, Any] = {}
        self.prices, self._priced = Prices(), set()  # the roots whose runs' prices are known

    def run(self, cells: Iterable[Checked]) -> list[RunFolder]:
        """Run or resume every cell; the finished folders, in the order of the cells.

        A cell that fails, because memory ends or another process writes its folder, does not stop the others: one
        RunError at the end names all that failed. Raises RequestError, before the first cell runs, for a device that is
        not here.
        """
        cells = [self.here(cell) for cell in cells]
        if len(cells) == 1:
            return [self.run_cell(cells[0])]
        folders, failures = [], []
        for cell in cells:
            try:
                folders.append(self.run_cell(cell))
            except RunError as error:
                failures.append(f"{cell.label} on {cell.spec.task} with {cell.preset.name}: {error}")
                tell(f"failed  {failures[-1]}")
        if failures:
            kept = f"the other {len(folders)} are finished and kept" if folders else "none is finished"
            raise RunError(
                f"{len(failures)} of {len(cells)} runs failed, {kept}; the same command tries again. "
                f"{' '.join(failures)}"
            )
        return folders

    def run_cell(self, cell: Checked) -> RunFolder:
        """Run or resume one cell; nothing happens when it is finished."""
        job = self.job(self.here(cell))
        if job.folder.finished and self.traced(job):
            return job.folder
        with job.folder.writing() as writer:
            if not job.folder.finished:  # another process may have finished it meanwhile
                self._work(job, writer)
            elif not self.traced(job):
                self._trace(job, self.source.build(job.cell), writer)
        return job.folder

    def plan(self, cell: Checked) -> tuple[RunFolder, int, int]:
        """(folder, items in the store, items altogether) of a cell, without running anything."""
        job = self.job(self.here(cell))
        return job.folder, len(job.folder.samples()), len(job.items)

    def here(self, cell: Checked) -> Checked:
        """The cell with ``auto`` replaced by what this machine offers. On a GPU as many rows as its whole memory holds,
        so that the same command finds the same runs; those that do not fit after all are halved by the engine."""
        spec = cell.spec.resolved()
        if cell.spec.batch_size == "auto" and spec.device.startswith("cuda"):
            import torch

            from dlmbench.runs.preflight import fitting_batch

            room = torch.cuda.mem_get_info(spec.device)[1]
            spec = replace(spec, batch_size=fitting_batch(replace(cell, spec=spec), self._task(cell), room))
        return replace(cell, spec=spec)

    # --- one cell ---------------------------------------------------------------------------------------------------

    def job(self, cell: Checked) -> Job:
        """Find out which run a resolved cell is. Loads the task and hashes the weights; loads no model."""
        spec = cell.spec
        task = self._task(cell)
        items = task.items(spec.split, spec.limit)
        weights = self.source.weights(cell)
        prompts = task.prompt_hash(spec.split, spec.limit)
        limits = {"gen_length": task.max_tokens, "stop": list(task.stop)}
        content = {
            "task_version": task.version,
            "content_hash": task.content_hash,
            "tokenizer": self.source.tokenizer(cell),
        }
        record = identity(cell, weights, prompts, limits, content)
        key = digest(record)
        folder = find_by_key(spec.out, key) or RunFolder.at(spec.out, spec.task, spec.method, key)
        return Job(cell, task, items, record, key, folder)

    def _work(self, job: Job, writer: Writer) -> None:
        """Everything from the first missing item to the aggregates."""
        done = {sample["key"] for sample in job.folder.samples()}
        manifest = with_history(job.manifest(here(job.cell)), job.folder.manifest(), len(done))
        writer.manifest(manifest)
        self.progress.begin(job.cell.label, len(done), len(job.items))
        engine = self.source.build(job.cell)
        if len(done) < len(job.items):
            self._generate(job, engine, writer, done)
        samples = job.folder.samples()
        if {sample["key"] for sample in samples} != {item.key for item in job.items}:
            raise RunError(f"{job.folder.name} does not hold the items it should; remove the folder and run again.")
        self.progress.stage("timing")
        speed = self.speed(job, engine, samples)
        calibration = self.calibration(job, engine, samples)
        if speed["threads"]:  # pricing may have changed them since
            manifest["environment"]["threads"] = speed["threads"]
        writer.manifest({**manifest, "model": model_record(job, engine), "calibration": calibration})
        self._trace(job, engine, writer)
        writer.metrics({**aggregate(samples, calibration["prices"]), "speed": speed})
        self.progress.end()

    def _generate(self, job: Job, engine: Any, writer: Writer, done: set[str]) -> None:
        def keep(item: Any, generation: Any, scores: dict[str, Any]) -> None:
            writer.sample(sample_record(item, generation, scores))
            self.progress.advance()

        from dlmbench.tasks.lm import evaluate

        evaluate(job.task, engine, job.items, on_item=keep, done=done, seed=job.cell.spec.seed)

    def speed(self, job: Job, engine: Any, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Natural-stop speed over the first items: a warm-up, then repeats; nothing is scored or stored."""
        batch = job.cell.spec.batch_size
        subset = job.items[: max(SPEED_LEAST, SPEED_ROUNDS * batch)]
        requests = requests_of(job, engine, subset)
        engine.generate(requests[:batch])
        stored = {sample["key"]: sample["ids"] for sample in samples}
        rates: dict[str, list[float]] = {"tps_decode": [], "tps_end_to_end": []}
        same, steady = 0, True
        for _ in range(SPEED_REPEATS):
            generations, kept = _steadily(lambda: engine.generate(requests), engine)
            steady = steady and kept
            tokens = sum(generation.tokens for generation in generations)
            rates["tps_decode"].append(tokens / engine.timing.decode)
            rates["tps_end_to_end"].append(tokens / engine.timing.total)
            same = sum(list(generation.ids) == stored[generation.key] for generation in generations)
        record: dict[str, Any] = {
            "items": len(subset),
            "repeats": SPEED_REPEATS,
            "same_ids": same,
            "threads": THREADS.number if job.cell.spec.device == "cpu" else None,
            "steady": steady,
            "label": MECHANISM_ONLY if job.cell.preset.source.startswith("nano/") else None,
        }
        for name, values in rates.items():
            record[name], record[f"{name}_low"], record[f"{name}_high"] = spread(values)
        return record

    def traced(self, job: Job) -> bool:
        """Are as many items recorded as are wanted?"""
        return len(job.folder.traces()) >= min(self.traces, len(job.items))

    def _trace(self, job: Job, engine: Any, writer: Writer) -> None:
        """What readers of a report ask for beyond scores: the prompts, and the steps of the first items."""
        self.progress.stage("recording")
        job.keep_prompts()
        if not self.traced(job):
            writer.traces(self.record(job, engine, job.folder.samples()))

    def record(self, job: Job, engine: Any, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The steps of the first items."""
        stored = {sample["key"]: sample["ids"] for sample in samples}
        return trace_records(engine, requests_of(job, engine, job.items[: self.traces]), stored)

    # --- prices -----------------------------------------------------------------------------------------------------

    def calibration(self, job: Job, engine: Any, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Prices of every forward in `samples`: those that a run on the same weights and machine has measured already,
        so that rows of a sweep are comparable, and new measurements for the others."""
        circumstances, root = job.circumstances(), job.folder.path.parent
        if root not in self._priced:
            self.prices.read(root)
            self._priced.add(root)
        needed = {width for sample in samples for width in sample["widths"]}
        if new := needed - self.prices.of(circumstances).keys():
            self._meet(job, engine, samples, new)
            self.prices.add(circumstances, engine.calibrate())
        return self.prices.record(circumstances, needed)

    def _meet(self, job: Job, engine: Any, samples: Sequence[dict[str, Any]], needed: set[str]) -> None:
        """Make items again whose forwards this engine has not computed: their samples are from an earlier process."""
        missing, keys = needed - {str(key) for key in engine.shapes}, []
        for sample in samples:
            if missing & sample["widths"].keys():
                missing -= sample["widths"].keys()
                keys.append(sample["key"])
        if keys:
            engine.generate(requests_of(job, engine, [item for item in job.items if item.key in keys]))

    # --- loading, once ----------------------------------------------------------------------------------------------

    def _task(self, cell: Checked) -> Any:
        spec = cell.spec
        name = canonical(
            [
                spec.task,
                spec.data_dir,
                spec.num_fewshot,
                cell.gen_length,
                cell.chat_template,
                spec.model if cell.chat_template else None,
            ]
        )
        if name not in self._tasks:
            self._tasks[name] = self.source.load(cell)
        return self._tasks[name]


@dataclass(frozen=True)
class Job:
    """One cell, resolved: what will be run and where it is kept."""

    cell: Checked
    task: Any
    items: list[Any]
    identity: dict[str, Any]
    key: str
    folder: RunFolder

    def manifest(self, environment: dict[str, Any]) -> dict[str, Any]:
        """Everything known before the first forward. `environment`: that of the process which makes it."""
        cell, task = self.cell, self.task
        dial = options.dial(cell.config)
        return {
            "key": self.key,
            "label": cell.label,
            "knob": getattr(cell.config, dial) if dial else None,
            "knob_unit": options.knob_unit(type(cell.config)) if dial else "",
            "parameters": cell.parameters,
            "method_version": cell.version,
            "spec": cell.spec.portable(),
            "task": {
                "name": task.name,
                "version": task.version,
                "content_hash": task.content_hash,
                "num_fewshot": task.num_fewshot,
                "chat_template": task.chat_template,
                "items": len(self.items),
            },
            "block_length": cell.block_length,
            "gen_length": task.max_tokens,
            "weights": self.identity["weights"],
            "prompts": self.identity["prompts"],
            "identity": self.identity,
            "environment": environment,
        }

    def keep_prompts(self) -> None:
        """Keep the questions beside the run folders."""
        records = ({"key": i.key, "prompt": i.prompt, "target": self.task.target(i)} for i in self.items)
        keep_prompts(self.folder, self.identity["prompts"], records)

    def circumstances(self) -> dict[str, Any]:
        """What a price depends on, beside the forward itself."""
        machine = here(self.cell)
        return {
            "weights": self.identity["weights"],
            "batch_size": self.cell.spec.batch_size,
            "dtype": self.cell.spec.dtype,
            "block_length": self.cell.block_length,
            "task": self.task.name,
            "device": machine["device"],
            "threads": machine["threads"],
            "torch": machine["versions"]["torch"],
        }


def here(cell: Checked) -> dict[str, Any]:
    """The environment of this process, on the cell's device."""
    return environment(cell.spec.device)


def with_history(manifest: dict[str, Any], before: dict[str, Any], done: int) -> dict[str, Any]:
    """The manifest of a run that goes on with `done` samples: other environments that made some of them are kept.

    "environment" is that of the process which measures speed and prices; "environments" is there when several took
    part, in order, each with the number of samples that stood there before it.
    """
    if not before:
        return manifest
    known = before.get("environments") or [{**before["environment"], "samples_before": 0}]
    now = json.loads(json.dumps(manifest["environment"]))
    if _without_threads(now) != _without_threads(known[-1]):
        known = [*known, {**now, "samples_before": done}]
    return {**manifest, "environments": known} if len(known) > 1 else manifest


def _without_threads(environment: dict[str, Any]) -> dict[str, Any]:
    """What decides whether two parts of a run were made under the same circumstances; threads concern speed alone."""
    return {name: value for name, value in environment.items() if name not in ("samples_before", "threads")}


def _steadily(measure: Callable[[], Any], engine: Any) -> tuple[Any, bool]:
    """What `measure` returns, measured again where the number of threads changed meanwhile; and was it kept?"""
    watch = getattr(engine, "watch", None)
    return watch.steady(measure) if watch else (measure(), True)


def sample_record(item: Any, generation: Any, scores: dict[str, Any]) -> dict[str, Any]:
    """One line of samples.jsonl."""
    return {
        "key": item.key,
        "prompt_hash": prompt_hash(item.prompt),
        "ids": list(generation.ids),
        "text": generation.text,
        "scores": dict(scores),
        "counts": generation.counts,
        "widths": {str(key): calls for key, calls in generation.forward_counts.items()},
        "tokens": generation.tokens,
        "seconds": round(generation.seconds, 6),
        "stop_reason": generation.stop_reason,
        "guards": generation.guards,
        "proposed": generation.proposed,
        "accepted": list(generation.accepted),
    }


def portable(record: Any) -> Any:
    """A description without places: strings that are absolute paths become their last component."""
    if isinstance(record, dict):
        return {str(name): portable(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [portable(value) for value in record]
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return portable(dataclasses.asdict(record))
    if isinstance(record, Path) or (isinstance(record, str) and record.startswith(("/", "~"))):
        return Path(record).name
    return record if isinstance(record, str | int | float | bool) or record is None else str(record)


def model_record(job: Job, engine: Any) -> dict[str, Any]:
    """What was loaded, as the manifest keeps it."""
    from dlmbench.backbone.loading import checkpoint_folder

    folder = checkpoint_folder(job.cell.preset.location, job.cell.preset.revision)
    threads = {"threads": f"{THREADS.number}: {THREADS.why}"} if job.cell.spec.device == "cpu" else {}
    described = {**portable(engine.describe()), "weights": job.identity["weights"]}
    return {**described, **threads, "file_dtype": file_dtype(folder)}


def requests_of(job: Job, engine: Any, items: Sequence[Any]) -> list[Any]:
    """The engine's requests of some items, exactly as scoring makes them."""
    from dlmbench.tasks.lm import EngineLM

    maker = EngineLM(engine, chat_template=job.task.chat_template, seed=job.cell.spec.seed)
    return [maker.request(item.key, item.prompt, item.stop, item.max_tokens) for item in items]


# --- the real source ------------------------------------------------------------------------------------------------


def _build(cell: Checked) -> Any:
    from dlmbench.engine import build

    return build(cell.spec)


def _weights(cell: Checked) -> dict[str, str]:
    from dlmbench.engine import network_hashes

    return network_hashes(cell)


def _tokenizer_hash(cell: Checked) -> str:
    from dlmbench.backbone.loading import checkpoint_folder

    folder = checkpoint_folder(cell.preset.tokenizer_location, cell.preset.revision)
    return files_hash(tokenizer_files(folder))


def _load_task(cell: Checked) -> Any:
    from dlmbench.tasks import load_task

    tokenizer = None
    if cell.chat_template:
        from dlmbench.engine import tokenizer_of

        tokenizer = tokenizer_of(cell.spec.model)
    spec = cell.spec
    return load_task(
        spec.task,
        data_dir=spec.data_dir,
        num_fewshot=spec.num_fewshot,
        gen_length=cell.gen_length,
        tokenizer=tokenizer,
        chat_template=cell.chat_template,
    )
