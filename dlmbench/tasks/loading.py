"""From a name to a `Task`: find the task file, fill in the data, build lm-eval's ConfigurableTask.

lm-eval's own index takes many seconds to build and is built only for a name that dlmbench has no file for.
Files that lm-eval marks as unsafe (their helpers run generated code in this process, one of them on import) never get
their functions resolved: dlmbench's own files replace them, and other such tasks are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmbench.errors import RequestError, UnknownName
from dlmbench.tasks import data, protocols, readings, task_files
from dlmbench.tasks.harness import LM_EVAL, ConfigurableTask, TaskManager, load_yaml
from dlmbench.tasks.task import FEWSHOT_SEED, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Config = dict[str, Any]  # an lm-eval task file; keys and values are lm-eval's
_EXAMPLES = ("fewshot", "training", "validation")  # splits that lm-eval takes examples from, in its order


def load_task(
    name: str,
    *,
    data_dir: str | None = None,
    num_fewshot: int | None = None,
    gen_length: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template: bool = False,
    fewshot_seed: int = FEWSHOT_SEED,
    protocol: str = protocols.DEFAULT,
) -> Task:
    """The task called `name`, with its data.

    Args:
        name: a task of ``catalogue()``, of the registry, or any generate_until task of lm-eval.
        data_dir: folder with ``<split>.jsonl`` files (or with a subfolder called like the task that has them), instead
            of the hub or of what dlmbench ships. A folder that has subfolders of other tasks only says nothing about
            a task that ships its data.
        num_fewshot: worked examples before each question; None is the task's own number.
        gen_length: most tokens generated an item; None is the task's own number.
        tokenizer: a transformers tokenizer, needed for its chat template only.
        chat_template: wrap prompts as a conversation, the examples as earlier turns.
        fewshot_seed: seed of the draw of examples; the default is lm-eval's.
        protocol: how the task is asked and read (`dlmbench.tasks.protocols`); its chat markup is `chat_template`'s.

    Raises:
        RequestError: unknown name, a protocol that does not ask the task, data that cannot be had (with the remedies),
            examples without a split to take them from, a task that is not a generate_until task or scores nothing item
            by item, a tokenizer without template.
    """
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise RequestError(f"Task {name} cannot use a chat template, this tokenizer has none; use --no-chat-template.")
    if num_fewshot is not None and num_fewshot < 0:
        raise RequestError(f"--num-fewshot is {num_fewshot}; it counts worked examples and cannot be negative.")
    file = task_files.find(name)
    protocols.asked(protocol, file.name if file else name)
    if file:
        lm_task = _from_file(file, data_dir, num_fewshot, chat_template, protocol)
    else:
        lm_task = _from_lm_eval(name, data_dir, num_fewshot)
    return Task(
        file.name if file else name,
        lm_task,
        gen_length=gen_length,
        tokenizer=tokenizer if chat_template else None,
        fewshot_seed=fewshot_seed,
    )


class GivenDataTask(ConfigurableTask):
    """lm-eval's task over a data set that is there already."""

    def __init__(self, config: Config, dataset: data.Splits):
        self._given = dataset
        super().__init__(config=config)

    def download(self, dataset_kwargs: Mapping[str, object] | None = None, **kwargs: object) -> None:
        self.dataset = self._given


def _from_file(
    file: task_files.TaskFile, data_dir: str | None, num_fewshot: int | None, chat: bool, protocol: str
) -> ConfigurableTask:
    config = _read_file(file, num_fewshot, chat, protocol)
    dataset = _selected(_data_of(config, file.name, data_dir), config, protocols.asked(protocol, file.name))
    return _build(file.name, config, dataset, num_fewshot)


def _read_file(file: task_files.TaskFile, num_fewshot: int | None, chat: bool, protocol: str) -> Config:
    """The lm-eval configuration that a task file stands for, functions resolved."""
    own = deepcopy(load_yaml(file.path, resolve_func=True))
    metadata = _metadata(file.path)
    metadata |= metadata.pop("variants", {}).get(file.name.partition("/")[2], {})
    own |= metadata.pop("config", {})
    replaced, without_examples = metadata.pop("chat", {}), metadata.pop("zero_shot_chat", {})
    if asked := protocols.asked(protocol, file.name):
        own, replaced, without_examples = _as_published(own, metadata, asked, protocol), {}, {}
    if chat:
        metadata |= replaced.pop("metadata", {})
        own |= replaced
    base = own.pop("extends", None)
    below = _lm_eval_file(file.name, LM_EVAL / base) if base else {}
    config = {**below, **own, "task": file.name, "metadata": metadata}
    if chat and not _shots(config, num_fewshot):
        config |= without_examples
    for key in ("tag", "group", "task_list", "include"):
        config.pop(key, None)
    return config


def _as_published(own: Config, metadata: Config, asked: protocols.AskedTask, name: str) -> Config:
    """A task's own configuration, asked and read by a protocol; its metadata are changed too."""
    protocol = protocols.PROTOCOLS[name]
    changes, more, theirs = readings.replaced(asked.reading, {**own, "metadata": metadata})
    version = f"{metadata.get('version')}+{protocol.version}"
    metadata |= {**more, "version": version, "one_turn": protocol.one_turn, "template": protocol.template}
    if asked.gen_length:
        metadata["gen_length"] = asked.gen_length
    kept = {key: value for key, value in own.items() if key not in ("doc_to_text", *theirs)}
    return {**kept, "extends": asked.base, "num_fewshot": asked.shots, **asked.config, **changes}


def _selected(
    dataset: Mapping[str, Any], config: Mapping[str, Any], asked: protocols.AskedTask | None
) -> Mapping[str, Any]:
    """The data with those test items that a protocol takes, in its order."""
    split = str(config.get("test_split"))
    if asked is None or asked.first is None or split not in dataset:
        return dataset
    rows = dataset[split]
    if asked.shuffled is not None:
        rows = rows.shuffle(seed=asked.shuffled)
    return {**dataset, split: data.Records(rows[number] for number in range(min(asked.first, len(rows))))}


def _metadata(path: Path) -> Config:
    """A file's metadata, functions resolved, on top of that of the file it includes."""
    own = deepcopy(load_yaml(path, resolve_func=True, recursive=False))
    below = _metadata(path.parent / own["include"]) if "include" in own else {}
    return below | (own.get("metadata") or {})


def _lm_eval_file(name: str, path: Path) -> Config:
    """One of lm-eval's own files, found by path. Functions of unsafe tasks stay unresolved text."""
    try:
        config = load_yaml(path, resolve_func=False)
        return deepcopy(config if config.get("unsafe_code") else load_yaml(path, resolve_func=True))
    except (ImportError, AssertionError) as error:  # a missing package, or one of another version than lm-eval wants
        if "lm-eval[math]" in str(error):
            raise RequestError(
                f"Task {name} needs math_verify, sympy and antlr4 to compare answers, and they are not installed; "
                "run pip install 'dlmbench[math]'."
            ) from error
        raise RequestError(f"Task {name} of lm-eval needs a package that is missing: {error}.") from error
    except OSError as error:
        raise RequestError(
            f"Task {name} needs {path.name} of lm-eval, which the installed one lacks; install lm-eval 0.4.13 or later."
        ) from error


def _data_of(config: Config, name: str, data_dir: str | None) -> data.Splits:
    """The user's folder, else packaged data, else the hub."""
    metadata = config["metadata"]
    if (own := config.get("custom_dataset")) and (not data_dir or data.is_of_others(name, data_dir)):
        return own(**metadata, **(config.get("dataset_kwargs") or {}))
    if own and not metadata.get("fields"):
        raise RequestError(
            f"Task {name} brings its own items and reads none from {data_dir!r}; leave out --data-dir, or give a "
            "folder whose subfolders are called like the tasks they are for."
        )
    splits = _splits(config)
    files = ", ".join(f"{split}.jsonl" for split in splits)
    if data_dir:
        rows = data.local(name, data_dir, splits, metadata.get("fields", ()))
        change = metadata.get("from_local")
        if change:
            return {split: found.map(lambda row: change(row, metadata)) for split, found in rows.items()}
        return rows
    options = config.get("dataset_kwargs") or {}
    return data.from_hub(name, config["dataset_path"], config.get("dataset_name"), files, options)


def _splits(config: Config) -> list[str]:
    """Names of the splits that a configuration uses, test first."""
    names = [config.get(f"{kind}_split") for kind in ("test", "validation", "fewshot", "training")]
    return list(dict.fromkeys(name for name in names if name))


def _build(name: str, config: Config, dataset: data.Splits, num_fewshot: int | None) -> ConfigurableTask:
    """lm-eval's task object. A split that is not there is taken out, unless something was asked of it."""
    shots = _shots(config, num_fewshot)
    if (config.get("repeats") or 1) > 1:
        raise RequestError(
            f"Task {name} scores {config['repeats']} answers an item together and dlmbench makes one; take a task that "
            "wants one, as gsm8k_cot_zeroshot does."
        )
    _check_splits(name, config, dataset, shots)
    for kind in ("validation", "fewshot", "training"):
        if config.get(f"{kind}_split") not in dataset:
            config[f"{kind}_split"] = None
    config["num_fewshot"] = shots
    return GivenDataTask(config, dataset)


def _shots(config: Config, num_fewshot: int | None) -> int:
    """Worked examples before each question: what was asked for, else the task's own number."""
    return config.get("num_fewshot") or 0 if num_fewshot is None else num_fewshot


def _check_splits(name: str, config: Config, dataset: data.Splits, shots: int) -> None:
    tested = config.get("test_split") or config.get("validation_split")
    if tested not in dataset:
        raise RequestError(f"Task {name} has no {tested}.jsonl in the data folder; its items are read from there.")
    if not shots or (config.get("fewshot_config") or {}).get("samples"):
        return
    source = next((config[f"{kind}_split"] for kind in _EXAMPLES if config.get(f"{kind}_split")), None)
    if source is None:
        raise RequestError(f"Task {name} has no split to take {shots} examples from; use --num-fewshot 0.")
    if source not in dataset:
        raise RequestError(
            f"Task {name} with {shots} examples needs {source}.jsonl beside {tested}.jsonl in the data folder; "
            "add it, or use --num-fewshot 0."
        )
    if len(dataset[source]) < shots:
        found = len(dataset[source])
        raise RequestError(f"Task {name} asks for {shots} examples, but its {source} split has only {found} items.")


def _from_lm_eval(name: str, data_dir: str | None, num_fewshot: int | None) -> ConfigurableTask:
    """A generate_until task that only lm-eval knows."""
    manager = _manager(name)
    if name not in manager.all_subtasks:
        raise UnknownName(_unknown(name, manager))
    path = manager.task_index[name].yaml_path
    config = load_yaml(path, resolve_func=False) if path else {}
    if config.get("unsafe_code"):
        raise RequestError(
            f"Task {name} of lm-eval runs generated code in this process, which dlmbench does not do; "
            "humaneval, mbpp and nano-code are scored in the sandbox."
        )
    if config.get("output_type", "generate_until") != "generate_until":
        kind = config["output_type"]
        raise RequestError(f"Task {name} is a {kind} task; dlmbench decodes text, take a generate_until task.")
    if "class" in config or not path:
        raise RequestError(f"Task {name} of lm-eval is a Python class; dlmbench reads tasks written as files only.")
    config = _lm_eval_file(name, path)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    config["metadata"] = {**(config.get("metadata") or {})}
    config["task"] = name
    if config.get("custom_dataset"):
        with data.hub(name, "data that its own loader fetches", "not possible for this task"):
            dataset = _data_of(config, name, data_dir)
    else:
        dataset = _data_of(config, name, data_dir)
    return _build(name, config, dataset, num_fewshot)


def _manager(name: str) -> TaskManager:
    """lm-eval's index: of one folder when a file there is called like the task, else of everything."""
    for path in LM_EVAL.rglob(f"{name}.yaml"):
        manager = TaskManager(include_path=str(path.parent), include_defaults=False)
        if name in manager.all_subtasks:
            return manager
    return TaskManager()


def _unknown(name: str, manager: TaskManager) -> str:
    if name in manager.all_tasks:
        return f"{name} is a group of lm-eval tasks; give one of its tasks by name."
    return f"Unknown task {name!r}: {task_files.near(name, manager.all_subtasks)}"
