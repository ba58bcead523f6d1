"""lm-eval, as far as runs need it; other modules take it from here.

Its task class imports the datasets library, and that pandas and pyarrow: a second or more of every start, for tables
that tasks with data of their own never make. Such packages are only looked up here, and loaded by the first use of one
of their names, wherever that is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from pathlib import Path
from types import ModuleType

import torch  # noqa: F401 - before lm-eval: while it is imported it looks at all modules, which would load them


@contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Packages of these names that are imported inside for the first time are loaded when they are used."""
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    def __init__(self, names: Sequence[str]):
        self.names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self.names else None
        if spec and spec.loader:
            spec.loader = LazyLoader(spec.loader)
        return spec


with deferred("datasets", "requests"):
    import lm_eval.tasks
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

LM_EVAL = Path(lm_eval.tasks.__file__).parent

__all__ = ["LM_EVAL", "ConfigurableTask", "Instance", "TaskManager", "load_yaml"]
