"""Is it right on this device: golden cases, recorded steps, host reads, memory, and what half precision changes."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

import dlmbench
from dlmbench.backbone.loading import load_checkpoint
from dlmbench.backbone.network import Network
from dlmbench.bench.proof.prompts import nano_requests
from dlmbench.bench.proof.stage import StageTrial
from dlmbench.decoders import testing
from dlmbench.decoders.threshold import Threshold, ThresholdConfig
from dlmbench.engine import Engine, Request, build
from dlmbench.engine.graphs import first_line
from dlmbench.errors import RunError
from dlmbench.models.presets import PRESETS
from dlmbench.registry import DECODERS
from dlmbench.request import RunSpec
from dlmbench.verify.cases import SKIPPED, cases_of, run_case
from dlmbench.verify.identity import ITEMS
from dlmbench.verify.tape import HostReads, Tape

GOLDEN = Path(dlmbench.__file__).parents[1] / "tests" / "golden"
LOSSLESS = {  # methods that give the tokens of `static` in float32
    "static": ("static", {}),
    "simsd replicated": ("simsd", {"verify": "replicated"}),
    "mrp speculative": ("mrp", {"mode": "speculative"}),
}


# --- golden cases ---------------------------------------------------------------------------------------------------


def golden(trial: StageTrial, folder: Path = GOLDEN) -> None:
    """Golden cases in float32: two of every area, then others, an area after the other, while there is time."""
    areas = {area.name: _spread(area) for area in sorted(p.parent for p in folder.glob("*/README.md"))}
    if not areas:
        raise RunError(f"No golden cases in {folder.name!r}: run the proof from a copy of the repository.")
    counts, slowest = {"passed": 0, "failed": 0}, 1.0
    every = sum(map(len, areas.values()))
    for number, name, case in _in_turn(areas):
        if number >= (trial.sizes.golden or 2) and (trial.sizes.golden or trial.left < 2 * slowest):
            break
        before = trial.left
        outcome = run_case(case, str(trial.device))
        slowest = max(slowest, before - trial.left)
        counts[outcome.status] += 1
        if outcome.status == "failed":
            trial.fault(f"golden case {name}/{outcome.case}: {outcome.detail}")
        trial.keep(f"{counts['passed']} of {every} cases pass in {len(areas)} areas, {counts['failed']} fail",
                   **counts, areas=len(areas), cases=every)  # fmt: skip


def _spread(area: Path) -> list:
    """An area's cases that run a network, one from the middle in the second place: neighbours are of one kind."""
    cases = [case for case in cases_of(area) if "weights" in case.raw and case.raw["id"] not in SKIPPED]
    middle = len(cases) // 2
    return cases[:1] + cases[middle : middle + 1] * (middle > 0) + cases[1:middle] + cases[middle + 1 :]


def _in_turn(areas: dict[str, list]) -> Iterator[tuple]:
    for number in range(max(map(len, areas.values()))):
        for name, cases in areas.items():
            if number < len(cases):
                yield number, name, cases[number]


# --- recorded steps, host reads, memory -----------------------------------------------------------------------------


def recorded(
    trial: StageTrial,
    *,
    recording: Callable | None = None,
    spend: Callable[[StageTrial], None] | None = None,
    run_out: Callable[[torch.device], None] | None = None,
    names: tuple[str, ...] | None = None,
) -> None:
    """Memory returns to where it was, running out of it halves the batch, no step waits for the device, and recorded
    steps leave what plain ones leave, for every decoder on every kind of attention that it has.

    What is tried can be given: the `recording` to use, what to `spend` memory on, how to `run_out` of it, which
    decoders.
    """
    _memory_returns(trial, spend or _generate_some)
    _memory_ends(trial, run_out or _run_out)
    names = tuple(DECODERS.names()) if names is None else names
    cases = [(name, kind) for name in names for kind in DECODERS.get(name).attention]
    done: list[str] = []
    plainly: list[str] = []
    slowest = 1.0
    for name, kind in cases:
        if trial.left < 2 * slowest:
            break
        before, was_recorded = trial.left, False
        try:
            was_recorded = _recorded_equals_plain(trial, name, kind, recording)
        except Exception as error:
            trial.fault(f"{name}, {kind}: {type(error).__name__}: {first_line(error)}")
            if trial.device.type == "cuda":
                torch.cuda.synchronize(trial.device)  # raises where the device is of no more use to others
        slowest = max(slowest, before - trial.left)
        (done if was_recorded else plainly).append(f"{name}, {kind}")
        trial.keep(
            f"{len(done)} decoders recorded, {len(plainly)} not, of {len(cases)}; {_memory(trial)}",
            recorded=done, not_recorded=plainly, left_out=[f"{n}, {k}" for n, k in cases[len(done) + len(plainly) :]],
        )  # fmt: skip


def _memory(trial: StageTrial) -> str:
    return f"{trial.figures['memory_kept_bytes'] / 2**20:.1f} MiB kept, batch halved to {trial.figures['halved_to']}"


def _recorded_equals_plain(trial: StageTrial, name: str, kind: str, recording: Callable | None) -> bool:
    """Compare a decoder's runs on tiny networks; was it recorded at all?"""
    label = f"{name}, {kind}"
    requests = [replace(r, max_tokens=min(r.max_tokens, trial.sizes.tokens)) for r in testing.random_requests(3)]
    requests = requests[: trial.sizes.requests]
    plain_engine = _tiny(trial, name, kind, graphs=False)
    plain = plain_engine.generate(requests)
    if plain_engine.lag:
        try:
            _strictly(plain_engine, trial.device)
            plain_engine.generate(requests)
        except RuntimeError as error:
            trial.fault(f"a step of {label} waits for the device: {first_line(error)}")
    engine = _tiny(trial, name, kind, graphs=recording or (None if trial.device.type == "cuda" else Tape))
    replayed = engine.generate(requests)
    if engine.graphs and engine.graphs.refused:
        trial.fault(f"steps of {label} are not recorded: {engine.graphs.refused}")
    for a, b in zip(plain, replayed):
        if a.raw_ids != b.raw_ids or a.counts != b.counts:
            what = "other ids" if a.raw_ids != b.raw_ids else "other counts"
            trial.fault(f"recorded steps of {label} give {what} than plain ones ({a.key})")
            break
    return bool(engine.graphs and engine.graphs.steps)


def _tiny(trial: StageTrial, name: str, kind: str, graphs) -> Engine:
    """On a CPU as late with its flags as on a GPU, where nothing depends on them."""
    decoder = DECODERS.get(name)()
    networks = testing.tiny_networks(decoder, kind, trial.device)
    may_be_late = decoder.bind(networks, networks["target"].block_length).lag != 0
    late = trial.device.type == "cpu" and may_be_late and not any(net.reads_host for net in networks.values())
    return Engine(networks, decoder, batch_size=3, graphs=graphs, lag=1 if late else None)


def _strictly(engine: Engine, device: torch.device) -> None:
    """From now on every step of `engine` raises where it would wait for the device."""
    launch = engine.step.launch

    def strict(*bounds):
        with _no_waiting(device):
            return launch(*bounds)

    engine.step.launch = strict  # type: ignore[method-assign]  # of this engine alone


def _no_waiting(device: torch.device) -> AbstractContextManager:
    return _sync_is_an_error() if device.type == "cuda" else HostReads()


@contextmanager
def _sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _nano(trial: StageTrial, batch: int, **options) -> Engine:
    model = load_checkpoint(PRESETS["nano2"].location, str(trial.device), torch.float32)
    return Engine({"target": Network("target", model, 8)}, Threshold(ThresholdConfig(0.9)), batch_size=batch, **options)


def _some_requests(trial: StageTrial) -> list[Request]:
    return nano_requests(min(8, trial.sizes.generations), trial.sizes.tokens)[0]


def _generate_some(trial: StageTrial) -> None:
    _nano(trial, 16).generate(_some_requests(trial))


def _memory_returns(trial: StageTrial, spend: Callable[[StageTrial], None]) -> None:
    for number in range(2):
        spend(trial)
        now = _allocated(trial.device)
        if number == 0:  # libraries keep what they allocate first
            before = now
    trial.keep(memory_kept_bytes=now - before)
    if now > before + (1 << 20):
        trial.fault(f"memory does not return to where it was: {(now - before) / 2**20:.1f} MiB stay after an engine")


def _allocated(device: torch.device) -> int:
    """Bytes that tensors hold; without a device that counts them, those of all tensors that Python knows."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(device)
    gc.collect()
    every = (one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter))
    tensors = [one for one in every if one.layout is torch.strided and not one.is_meta]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _memory_ends(trial: StageTrial, run_out: Callable[[torch.device], None]) -> None:
    """Whenever more than two rows are decoded there is not enough; ids must be those of two rows."""
    engine, requests = _nano(trial, 8, graphs=False), _some_requests(trial)
    launch = engine.step.launch

    def greedy(*bounds):
        if engine.step.canvas.rows > 2:
            run_out(trial.device)
        return launch(*bounds)

    engine.step.launch = greedy  # type: ignore[method-assign]  # of this engine alone
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            halved = engine.generate(requests)
    except Exception as error:
        trial.keep(halved_to=None)
        return trial.fault(f"running out of memory is not caught: {type(error).__name__}: {first_line(error)}")
    trial.keep(halved_to=engine.batch_size)
    if engine.batch_size != 2 or not any("Out of memory" in str(one.message) for one in told):
        trial.fault(f"running out of memory leaves a batch of {engine.batch_size} of 8; it should be halved to 2")
    if [g.ids for g in halved] != [g.ids for g in _nano(trial, 2, graphs=False).generate(requests)]:
        trial.fault("a halved batch gives other ids than a batch of that size")


def _run_out(device: torch.device) -> None:
    if device.type == "cuda":
        torch.empty(1 << 42, dtype=torch.uint8, device=device)  # 4 TiB
    raise torch.OutOfMemoryError("as if memory had ended")


# --- half precision -------------------------------------------------------------------------------------------------


def bfloat16(trial: StageTrial, decode: Callable | None = None) -> None:
    """Items that bfloat16 changes, for `static` and for two methods that give its tokens in float32; of these also the
    items on which they part from `static` in the same precision."""
    requests, _ = nano_requests(trial.sizes.compared, trial.sizes.tokens)
    ids: dict[tuple[str, str], list] = {}
    figures = {}
    for label, (method, setting) in LOSSLESS.items():
        for dtype in ("float32", "bfloat16"):
            ids[label, dtype] = (decode or _decoded)(trial, method, setting, dtype, requests)
        changed = _differ(ids[label, "float32"], ids[label, "bfloat16"])
        figures[label] = {"changed": changed}
        if changed > len(requests) / 2:
            trial.fault(f"bfloat16 changes {changed} of {len(requests)} items of {label}")
        for dtype in ("float32", "bfloat16"):
            figures[label][f"off_static_{dtype}"] = _differ(ids[label, dtype], ids["static", dtype])
        off = figures[label]["off_static_float32"]
        if off > -(-len(requests) // ITEMS):
            trial.fault(f"{label} parts from static on {off} of {len(requests)} items in float32")
        changes = ", ".join(f"{name} {row['changed']}" for name, row in figures.items())
        trial.keep(f"of {len(requests)} items bfloat16 changes: {changes}", items=len(requests), methods=figures)
    trial.keep(agreement=1 - figures["static"]["changed"] / len(requests))


def _decoded(trial: StageTrial, method: str, setting: dict, dtype: str, requests: list[Request]) -> list[list[int]]:
    spec = RunSpec(
        method=method, task="nano-gsm", model="nano2", settings={method: setting}, batch_size=min(32, len(requests)),
        device=str(trial.device), dtype=dtype,
    )  # fmt: skip
    return [generation.ids for generation in build(spec.resolve()).generate(requests)]


def _differ(ours: list, theirs: list) -> int:
    return sum(a != b for a, b in zip(ours, theirs))
