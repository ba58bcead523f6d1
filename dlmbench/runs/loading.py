"""What runs need that is heavy to import, torch and lm-eval: `dlmbench.runs.runner.installed` imports it when the first
of it is needed."""

from __future__ import annotations

from dlmbench.backbone.loading import checkpoint_folder, tokenizer_folder
from dlmbench.engine import build, network_hashes
from dlmbench.engine.build import tokenizer_alone, tokenizer_of
from dlmbench.files import files_hash, tokenizer_files
from dlmbench.request import ResolvedRun
from dlmbench.request.served import ServedRun
from dlmbench.tasks.loading import load_task
from dlmbench.tasks.task import Task

__all__ = ["build", "load", "network_hashes", "tokenizer_hash"]


def load(run: ResolvedRun) -> Task:
    """The task as the run asks it."""
    tokenizer = tokenizer_alone if isinstance(run, ServedRun) else tokenizer_of
    return load_task(
        run.spec.task,
        data_dir=run.spec.data_dir,
        num_fewshot=run.spec.num_fewshot,
        gen_length=run.gen_length,
        tokenizer=tokenizer(run.preset) if run.chat_template else None,
        chat_template=run.chat_template,
        protocol=run.spec.protocol,
    )


def tokenizer_hash(run: ResolvedRun) -> str:
    """Of the tokenizer's files."""
    place = tokenizer_folder if isinstance(run, ServedRun) else checkpoint_folder
    return files_hash(tokenizer_files(place(run.preset.tokenizer_location, run.preset.revision)))
