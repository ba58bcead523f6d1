"""One generic, lazy registry for decoders, backbone families and tasks.

Register an object, or only the place where it lives::

    DECODERS.register("threshold", Threshold)
    DECODERS.register_lazy("static", "dlmbench.decoders.static:Static")

Look it up; a lazy target is imported on first use::

    DECODERS.get("static")

Third parties add theirs through an entry point group (``dlmbench.decoders``) or a file given with ``--plugin``
(`load_plugin`), which registers by calling ``register`` when it is executed.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar

from dlmbench.errors import RequestError

if TYPE_CHECKING:
    from dlmbench.backbone.families import Family
    from dlmbench.decoders.base import Decoder

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to objects, resolved lazily; unknown names answer with near matches."""

    def __init__(self, kind: str, group: str):
        self.kind = kind
        self.group = group
        self._targets: dict[str, T | str] = {}  # a text is the place of a lazy one
        self._entry_points_read = False

    def register(self, name: str, target: T | str) -> T | str:
        """Bind `name` to an object. Raises RequestError when another object has the name already."""
        there = self._targets.get(name)
        if there is not None and not _same(there, target):
            raise RequestError(f"{self.kind} {name!r} exists already ({there!r}); give {target!r} another name.")
        self._targets[name] = target
        return target

    def register_lazy(self, name: str, place: str) -> None:
        """Bind `name` to ``"module:attribute"``, imported when it is first asked for."""
        self.register(name, place)

    def names(self) -> list[str]:
        self._read_entry_points()
        return sorted(self._targets)

    def __contains__(self, name: object) -> bool:
        self._read_entry_points()
        return name in self._targets

    def get(self, name: str) -> T:
        """The object called `name`. Raises RequestError with near matches when there is none."""
        self._read_entry_points()
        if name not in self._targets:
            near = difflib.get_close_matches(name, self._targets, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise RequestError(f"Unknown {self.kind} {name!r}: {hint}known are {', '.join(self.names())}.")
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            found: T = getattr(importlib.import_module(module), attribute)
            self._targets[name] = found
            return found
        return target

    def _read_entry_points(self) -> None:
        """Add the packages' entry points once; a failing package is a warning that names it."""
        if self._entry_points_read:
            return
        self._entry_points_read = True
        from importlib.metadata import entry_points  # slow, and not needed before a name is looked up

        for point in entry_points(group=self.group):
            try:
                self.register(point.name, point.value)
            except RequestError as error:
                warnings.warn(f"entry point {point.value} of {self.group} was left out: {error}", stacklevel=2)


def _same(there: object, offered: object) -> bool:
    """Re-registering the same thing (a plugin file executed twice) is no collision."""
    if there is offered or there == offered:
        return True
    names = [getattr(x, "__qualname__", None) for x in (there, offered)]
    files = [getattr(sys.modules.get(getattr(x, "__module__", "")), "__file__", None) for x in (there, offered)]
    return names[0] is not None and names[0] == names[1] and files[0] is not None and files[0] == files[1]


def load_plugin(path: str | Path) -> ModuleType:
    """Execute a plugin file, which registers what it brings; the module is returned.

    Raises RequestError when the file is missing or fails to import.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"Plugin file {str(path)!r} does not exist; --plugin takes the path of a Python file.")
    name = f"dlmbench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RequestError(f"Plugin {path.name} is no Python file by its name; --plugin takes one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"Plugin {path.name} failed to import: {type(error).__name__}: {error}.") from error
    return module


DECODERS: Registry[type[Decoder]] = Registry("method", "dlmbench.decoders")
BACKBONES: Registry[Family] = Registry("backbone family", "dlmbench.backbones")
TASKS: Registry[Path] = Registry("task", "dlmbench.tasks")

GROUPS = {  # what decoders are listed under; each names one in `Decoder.group`
    "selectors": "which masks a forward reveals, from its distributions",
    "early commit": "when to fill all that is left at once",
    "remasking": "what was filled is taken back or rewritten",
    "speculation": "a second network drafts or checks",
    "trained": "a module, or weights, trained for the method",
    "caches": "which keys and values are computed again",
    "length": "how long blocks and answers are",
    "others": "decoders from outside that name no group",
}
_DECODERS = {  # method -> class, in the module of the method's name
    "adablock": "AdaBlock",
    "adjust": "Adjust",
    "ar": "AR",
    "credit": "Credit",
    "d2f": "D2F",
    "daedal": "Daedal",
    "edit": "Edit",
    "entropy": "Entropy",
    "fastdllm2": "FastDLLM2",
    "frechet": "Frechet",
    "guided": "Guided",
    "hierarchy": "Hierarchy",
    "klass": "Klass",
    "learned_policy": "LearnedPolicy",
    "lopa": "LoPA",
    "mrp": "MRP",
    "multiblock": "Multiblock",
    "pcsampler": "PCSampler",
    "prophet": "Prophet",
    "rcd": "RCD",
    "rcr": "RCR",
    "remdm_loop": "RemdmLoop",
    "saber": "Saber",
    "sched": "Sched",
    "sequential": "Sequential",
    "simsd": "SimSD",
    "static": "Static",
    "threshold": "Threshold",
    "wino": "Wino",
}
for _name, _class in _DECODERS.items():
    DECODERS.register_lazy(_name, f"dlmbench.decoders.{_name}:{_class}")
for _name in (
    "qwen3", "qwen2", "llama", "sdar", "llada", "dream", "dreamreasoner", "illada", "stable-diffcoder",
    "efficient-dlm", "fastdllm2",
    "a2d-qwen3", "a2d-qwen2", "a2d-llama",
):  # fmt: skip
    BACKBONES.register_lazy(_name, f"dlmbench.backbone.families:{_name.upper().replace('-', '_')}")
BACKBONES.register_lazy("oracle", "dlmbench.oracle.family:ORACLE")
for _name in ("llada2", "lladamoe", "sdarmoe"):
    BACKBONES.register_lazy(_name, f"dlmbench.backbone.sparse_families:{_name.upper()}")
