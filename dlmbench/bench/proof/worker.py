"""The process that runs stages one after another, as the supervisor asks: ``python -m dlmbench.bench.proof.worker``.

It reads one JSON line a stage and answers with one when the stage has ended; what the stage knows meanwhile is in its
record. It ends when the supervisor does, also in the middle of a stage, and after a stage that raised, because what a
device has begun cannot always be undone.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import queue
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import dlmbench
from dlmbench.bench.proof.stage import RUNNING, SIZES, STAGES, ProofCircumstances, StageTrial, perform
from dlmbench.errors import DlmbenchError
from dlmbench.request.resolved import Machine
from dlmbench.runs.environment import commit, cpu_model, versions
from dlmbench.runs.folder import write_lines

PACKAGES = ("torch", "transformers", "triton", "numpy")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed goes to the log
    asked = json.loads(sys.stdin.readline())
    requests = _listen(sys.stdin)
    import torch

    try:
        device, sizes = torch.device(Machine().device(asked["device"])), SIZES[asked["shapes"]]
    except DlmbenchError as error:
        return _say(answers, {"refused": str(error)})
    if device.type == "cuda":
        torch.cuda.set_device(device if device.index is not None else 0)
    _say(answers, circumstances(str(device), sizes.name))
    while True:
        request = requests.get()
        file = Path(request["file"])
        stage = next(stage for stage in STAGES if stage.name == request["stage"])

        def publish(trial: StageTrial, name: str = stage.name, file: Path = file) -> None:
            write_lines(file, [trial.record(name, RUNNING)])

        trial = StageTrial(device, sizes, request["seconds"], request["earlier"], publish)
        record, raised = perform(stage, trial)
        write_lines(file, [record])
        _say(answers, {"ended": stage.name, "raised": raised})
        if raised:
            return
        del trial
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _listen(lines: TextIO) -> queue.SimpleQueue:
    """Requests as they come; the end of the lines is the end of the supervisor and of this process."""
    requests: queue.SimpleQueue = queue.SimpleQueue()

    def read() -> None:
        for line in lines:
            requests.put(json.loads(line))
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return requests


def _say(answers: TextIO, answer: Mapping[str, object]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def circumstances(device: str, shapes: str) -> ProofCircumstances:
    """What a result depends on: results of others are measured again."""
    import torch

    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else cpu_model(),
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "versions": versions(PACKAGES),
        "threads": torch.get_num_threads(),
        "shapes": shapes,
        "commit": commit(),
        "source": source_hash(),
    }


def source_hash() -> str:
    """Of all modules of the package: a copy without a history has no commit, and a change may not be committed."""
    package = Path(dlmbench.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()[:10]


def _driver() -> str | None:
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", file.read_text()) if file.is_file() else None
    return found and found.group()


if __name__ == "__main__":
    main()
