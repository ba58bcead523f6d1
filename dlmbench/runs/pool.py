"""Workers on a Ray cluster: as many as it has room for, each with what it needs, replaced when they are lost.

A worker is an actor that keeps its models loaded: one CPU and no GPU for a run on the CPU, one GPU for a run on CUDA.
Only workers that have reported where they are get work, so nothing waits for a machine that is gone. Nodes that join
are used as soon as there is work for them.

Left out: runs that need several GPUs, and shipping code or weights to the nodes: dlmbench and the files that a run
reads must be there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from typing import Any, TypedDict

from dlmbench.errors import RequestError, RunError
from dlmbench.runs.worker import Shard, Worker

NEEDS = {"cpu": {"num_cpus": 1, "num_gpus": 0}, "cuda": {"num_cpus": 0, "num_gpus": 1}}
_COUNTED = {"cpu": "CPU", "cuda": "GPU"}
_STORE_BYTES = 256 << 20  # of a local cluster's object store; samples are small
_STILLBORN = 3  # workers in a row that did not come up, after which the reason is told
_KNOCK = 5.0  # seconds for a cluster to answer at all
_PATIENCE = 30.0  # seconds without any room for work before giving up


class Node(TypedDict):
    """What Ray tells of a machine."""

    Alive: bool
    NodeID: str
    Resources: dict[str, float]


class Lost:
    """The answer of a worker that is gone."""


@dataclass(eq=False)
class WorkerSlot:
    """A worker and what it is doing."""

    actor: Any
    kind: str
    node: str | None = None  # None until it has reported
    cpus: int = 1  # of its node
    shard: Shard | None = None
    pending: Any = None  # reference to the answer that it owes

    @property
    def free(self) -> bool:
        return self.node is not None and self.shard is None


def require_ray() -> None:
    """Raises RequestError when Ray is not installed. Imports nothing."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise RequestError("--executor ray needs Ray, which is not installed: run pip install 'dlmbench[cluster]'.")


class Pool:
    """Connects to the cluster at `address`, or starts one on this machine; use as a context manager.

    Raises RequestError when Ray is not installed or no cluster answers.
    """

    def __init__(self, address: str | None = None):
        require_ray()
        self.address = address
        self.slots: list[WorkerSlot] = []
        self._stillborn = 0
        self._hopeful: dict[str, float] = {}  # kind -> when there was last room for it

    def __enter__(self) -> Pool:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences its notice
        import ray

        self.ray = ray
        given = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if self.address:
                _knock(self.address)
                ray.init(address=self.address, **given)
            else:
                ray.init(address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **given)
        except (OSError, ValueError, RuntimeError) as error:
            raise RequestError(
                f"No Ray cluster answers at {self.address} ({_short(error)}): start one with ray start --head, or "
                "leave --address out."
                if self.address
                else f"Ray does not start on this machine ({_short(error)}); try ray start --head to see why."
            ) from error
        return self

    def __exit__(self, *_: Any) -> None:
        for slot in self.slots:
            self._dismiss(slot)
        self.ray.shutdown()

    # --- what there is ---

    def capacity(self, kind: str) -> int:
        """Workers of this kind that the cluster has room for, work of others aside."""
        return sum(int(node["Resources"].get(_COUNTED[kind], 0)) for node in self._nodes())

    def _nodes(self) -> list[Node]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def staff(self, kind: str, wanted: int) -> None:
        """See to it that up to `wanted` workers of a kind are there or on their way.

        Raises RunError when there has been no room for a single one for a while.
        """
        room = self.capacity(kind)
        slots = [slot for slot in self.slots if slot.kind == kind]
        if room or slots:
            self._hopeful[kind] = time.monotonic()
        elif time.monotonic() - self._hopeful.setdefault(kind, time.monotonic()) > _PATIENCE:
            raise RunError(
                f"The cluster has no {_COUNTED[kind]} left. Nothing that was finished is lost; the same command goes "
                "on from here."
            )
        actor = self.ray.remote(_Actor)
        for _ in range(min(room, wanted) - len(slots)):
            slot = WorkerSlot(actor.options(max_restarts=0, **NEEDS[kind]).remote(), kind)
            slot.pending = slot.actor.node.remote()
            self.slots.append(slot)

    # --- work ---

    def give(self, slot: WorkerSlot, shard: Shard) -> None:
        """Let a free worker do a shard."""
        slot.shard, slot.pending = shard, slot.actor.work.remote(shard)

    def wait(self, seconds: float = 1.0) -> list[tuple[Shard, Any]]:
        """Answers that have come in, after at most `seconds`: the shard, and what the worker returned or `Lost`.

        Raises what a worker raised.
        """
        pending = {slot.pending: slot for slot in self.slots if slot.pending is not None}
        if not pending:
            time.sleep(seconds)
            return []
        ready, _ = self.ray.wait(list(pending), num_returns=1, timeout=seconds)
        answers = [self._answer(pending[reference]) for reference in ready]
        return [answer for answer in answers if answer]

    def _answer(self, slot: WorkerSlot) -> tuple[Shard, Any] | None:
        shard, reference = slot.shard, slot.pending
        slot.shard = slot.pending = None
        try:
            value = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayError as error:  # the process, its node, or what it had computed is gone
            self._dismiss(slot)
            self.slots.remove(slot)
            if shard is None:
                self._count_stillborn(error)
                return None
            return shard, Lost()
        if shard is None:
            slot.node, self._stillborn = value, 0
            slot.cpus = next((int(n["Resources"].get("CPU", 1)) for n in self._nodes() if n["NodeID"] == value), 1)
            return None
        return shard, value

    def _count_stillborn(self, error: Exception) -> None:
        self._stillborn += 1
        if self._stillborn >= _STILLBORN:
            raise RunError(
                f"No worker comes up on the cluster ({_short(error)}); every node needs the same dlmbench, Python and "
                "Ray."
            ) from error

    def _dismiss(self, slot: WorkerSlot) -> None:
        with contextlib.suppress(Exception):  # it may be gone, and the cluster too
            self.ray.kill(slot.actor)


class _Actor(Worker):
    """A worker that knows where it is."""

    def node(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()


def _knock(address: str) -> None:
    """Raises OSError when nobody listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK).close()


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:160]}" if lines else type(error).__name__
