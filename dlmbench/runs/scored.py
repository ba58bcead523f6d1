"""The task that a finished run was asked, to judge its answers once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmbench.errors import RequestError
from dlmbench.runs.record import Manifest
from dlmbench.tasks import load_task

if TYPE_CHECKING:
    from dlmbench.engine.text import Tokenizer
    from dlmbench.tasks.task import Task


def task_of(manifest: Manifest, data_dir: str | None = None, model: str | None = None) -> Task:
    """The task of a run, with the same data; `model` says where its checkpoint is, for chat prompts.

    Raises RequestError when the data or the chat prompts are others.
    """
    facts, spec = manifest.task, manifest.spec
    tokenizer = _tokenizer(model or spec.model) if facts.chat_template else None
    task = load_task(
        facts.name,
        data_dir=data_dir,
        num_fewshot=facts.num_fewshot,
        tokenizer=tokenizer,
        chat_template=facts.chat_template,
        gen_length=manifest.gen_length,
        protocol=spec.protocol,
    )
    if task.content_hash != facts.content_hash:
        raise RequestError(
            f"The data of {facts.name} ({task.content_hash}) are not those of the run ({facts.content_hash}); give the "
            "same ones with --data-dir."
        )
    if facts.chat_template and task.prompt_hash(spec.split, spec.limit) != manifest.prompts:
        raise RequestError(f"The chat prompts of {spec.model} are others than in the run; give its --model.")
    return task


class Tasks:
    """Tasks of runs, each loaded once."""

    def __init__(self, data_dir: str | None = None, model: str | None = None):
        self.data_dir, self.model = data_dir, model
        self._known: dict[str, Task] = {}

    def of(self, manifest: Manifest) -> Task:
        """As `task_of`."""
        facts = manifest.task
        asked = (facts.content_hash, manifest.spec.protocol, facts.num_fewshot, facts.chat_template)
        name = " ".join(map(str, (facts.name, *asked, manifest.gen_length, manifest.prompts)))
        if name not in self._known:
            self._known[name] = task_of(manifest, self.data_dir, self.model)
        return self._known[name]


def _tokenizer(model: str) -> Tokenizer:
    from dlmbench.engine import tokenizer_of

    try:
        return tokenizer_of(model)
    except RequestError as error:
        raise RequestError(
            f"The run used the chat template of {model!r}, which is not found: give the checkpoint with --model."
        ) from error
