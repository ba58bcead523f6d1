"""Tasks: what a model is asked and how its answer is scored, all of them lm-eval tasks.

A task is a folder here with an lm-eval YAML file and, where it needs code, a ``functions.py`` beside it. A file may
start from one that lm-eval installs (``extends: gsm8k/gsm8k.yaml``), so that prompts, few-shot examples, stop strings
and extraction are lm-eval's own; what dlmbench adds stands in the ``metadata:`` block::

    version       of the task, part of the run's record
    description   one line for ``dlmbench list tasks``
    items, needs  for the same list: how many items, what must be there to load them
    primary       "metric,filter" that becomes `accuracy`
    gen_length    most tokens generated an item, unless --gen-length or the model's preset says otherwise
    key           field of the data that names an item (default: its index)
    fields        fields that a local file must have
    chat          lm-eval file to extend instead when a chat template is used, and other keys to replace then
                  (of the metadata too)
    zero_shot_chat  keys to replace when there are no examples either
    variants      other names, ``task/variant``, with the metadata that differs
    problem       function(doc) -> dlmbench.scoring.Problem: marks a task whose answers are programs
    program       function(doc, answer) -> the whole text to run, for the same tasks
    unparsed      function(doc, text) -> bool, where the primary filter cannot tell that no answer was found
    answers       function(doc) -> texts of all right answers, where they are few enough to be listed (--model oracle)
    from_local    function(row, metadata) -> record, for tasks whose own records differ from those of local files

A file may ``include`` another one beside it; its metadata lies on top of that file's.

Other keys are kept as they are (`Task.metadata`) for the methods that want to know something about a task.

Other packages bring tasks by the entry point group ``dlmbench.tasks`` or a plugin file: ``TASKS.register("mine",
Path("mine.yaml"))``. Any other name is looked up among lm-eval's own generate_until tasks.

    task = load_task("nano-gsm")
    for item in task.items("test", limit=3):
        print(item.prompt, task.score(item, "1+1=2\\n#### 2"))

Importing this package imports no lm_eval; `load_task` does, and loads the datasets library for data of the hub only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlmbench.tasks.base import Item
from dlmbench.tasks.task_files import catalogue

if TYPE_CHECKING:
    from dlmbench.tasks.task import Task

__all__ = ["Item", "catalogue", "load_task"]


def load_task(name: str, **options: Any) -> Task:
    """The task called `name`; see `dlmbench.tasks.loading.load_task` for the options."""
    from dlmbench.tasks import loading

    return loading.load_task(name, **options)
