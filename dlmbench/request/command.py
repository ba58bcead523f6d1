"""The command that asks for a run, from its spec."""

from __future__ import annotations

import dataclasses
import json
import shlex

from dlmbench.files import Json
from dlmbench.request.run_spec import OPTIONS, RunSpec

_LEFT_OUT = ("against", "out", "data_dir", "device", "server", "settings")  # of a place, or not of this one run


def command(spec: RunSpec) -> str:
    """``dlmbench run ...`` with every option that is not at its default. Folders are names alone, as in a manifest;
    who runs it gives his own places."""
    words = ["dlmbench", "run"]
    defaults = {one.name: one.default for one in dataclasses.fields(RunSpec)}
    for name in OPTIONS:
        value = getattr(spec, name)
        if name in _LEFT_OUT or value is None or value == defaults[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, _text(value)]
    for owner, options in spec.settings.items():
        for name, one in options.items():
            words += ["--set", f"{owner}.{name}={_text(one)}"]
    return shlex.join(words)


def _text(value: Json | tuple) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool | None | list | dict):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
