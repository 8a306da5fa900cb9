"""Work shared out over Ray actors, on one machine or on the nodes of a cluster.

Each worker builds what it works with once, a loaded network for example, and then takes one task
after the other; none is handed out before a worker is free for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import torch

from .errors import ClusterError
from .version import version

LOCAL = "local"
"""The address of a cluster that lives as long as the run, on this machine."""
TRIES = 3
"""How often a task is begun whose worker dies."""
_CPUS = 4  # of a worker by default, if a node has that many
_POLL = 0.5  # seconds between two looks at the workers' progress
_KNOCK = 10.0  # seconds in which a cluster must accept a connection
_PATIENCE = 300.0  # seconds without any worker before the run gives up
_GRACE = 20.0  # seconds that interrupted workers have to tidy up

T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[float], None]
"""Told the fraction that is done, in [0, 1]."""
Work = Callable[[Any, Progress], Any]
"""Does one task."""


@dataclass(frozen=True)
class Workers:
    """The workers to ask Ray for.

    Attributes:
        address: of the cluster: "local", "auto" (the one that runs on this machine), "host:port" or
            "ray://host:port".
        count: how many workers; None: as many as the cluster has room for.
        cpus: CPUs, and threads, of each; None: 4, or those of the smallest node if it has fewer; 1
            beside a GPU.
        gpus: GPUs of each, which may be a fraction; None: 1 where the cluster has any, else 0.
    """

    address: str = LOCAL
    count: int | None = None
    cpus: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("workers", self.count), ("CPUs of a worker", self.cpus)):
            if value is not None and value < 1:
                raise ClusterError(f"the {name} are {value}; there must be 1 or more.")
        if self.gpus is not None and not self.gpus >= 0:
            raise ClusterError(f"the GPUs of a worker are {self.gpus:g}; give 0 or more.")


@dataclass
class Task(Generic[T]):
    """One piece of work.

    Attributes:
        item: what the worker is given.
        weight: how long it takes, in any unit; the heaviest tasks go first.
        deaths: of workers that had begun it.
    """

    item: T
    weight: float = 1.0
    deaths: int = 0


class WorkerDied(Exception):
    """A task's worker died TRIES times."""


@dataclass
class _Handle:
    """A worker as the driver sees it: what it is doing, and the answer that is awaited."""

    actor: Any
    awaited: Any
    task: Task[Any] | None = None
    asked: Any = None  # the pending request for its progress


@dataclass
class RayPool:
    """A connection to Ray and the workers that run there; a context manager.

    Attributes:
        workers: what was asked for.
        may_use_gpus: whether workers may take GPUs.
        count: how many workers there are; known inside the block, as `cpus` and `gpus_each` are.
    """

    workers: Workers
    may_use_gpus: bool = True
    count: int = 0
    cpus: int = 0
    gpus_each: float = 0.0
    _handles: list[_Handle] = field(default_factory=list)

    def __enter__(self) -> RayPool:
        self._ray = _import_ray()
        self._connect()
        try:
            self._measure()
        except BaseException:
            self._ray.shutdown()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._stop()
        finally:
            self._ray.shutdown()

    def run(
        self,
        build: Callable[[], Work],
        tasks: Iterable[Task[T]],
        progress: Callable[[T, float], None] = lambda item, fraction: None,
    ) -> Iterator[tuple[T, Any]]:
        """Do the tasks, the heaviest first; gives (item, result) as they are finished.

        A task whose worker dies is begun again by another one; after TRIES deaths its result is a
        `WorkerDied`.

        Args:
            build: called by each worker once; what it returns does the tasks. It travels by pickle.
            tasks: whose items travel by pickle too.
            progress: told an item and the fraction of it that is done.

        Raises:
            ClusterError: workers do not start, or do not see this folder or run another version.
            Exception: whatever `build` or a task raises.
        """
        ray = self._ray
        self._stop()  # the workers of a run before
        waiting = deque(sorted(tasks, key=lambda task: task.weight, reverse=True))
        self._handles = [self._start(build) for _ in range(min(self.count, len(waiting)))]
        idle: list[_Handle] = []
        stillborn, seen = 0, time.monotonic()
        while waiting or any(handle.task for handle in self._handles):
            while waiting and idle:
                self._give(idle.pop(), waiting.popleft())
            by_answer = {handle.awaited: handle for handle in self._handles if handle.awaited}
            done, _ = ray.wait(list(by_answer), num_returns=1, timeout=_POLL)
            if any(handle.task for handle in self._handles):
                seen = time.monotonic()
            elif not done and time.monotonic() - seen > _PATIENCE:
                raise ClusterError(
                    f"no worker has started in {_PATIENCE / 60:g} minutes: is the cluster busy?"
                )
            for answer in done:
                handle, seen = by_answer[answer], time.monotonic()
                task = handle.task
                try:
                    result = ray.get(answer)
                except ray.exceptions.RayActorError as death:
                    self._handles.remove(handle)
                    stillborn = 0 if task else stillborn + 1
                    if stillborn >= TRIES:
                        raise ClusterError(f"workers die on start-up: {death}") from None
                    self._handles.append(self._start(build))
                    if task is None:
                        continue
                    task.deaths += 1
                    if task.deaths < TRIES:
                        waiting.appendleft(task)
                    else:
                        yield task.item, WorkerDied()
                except ray.exceptions.RayTaskError as failure:
                    raise failure.cause from None
                else:
                    handle.awaited, handle.task = None, None
                    idle.append(handle)
                    if task is not None:
                        yield task.item, result
            self._ask_progress(progress)

    def _connect(self) -> None:
        # No usage reports; what workers print stays in Ray's logs.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = self.workers.address
        if address not in (LOCAL, "auto") and (why := _unreachable(address)):
            raise ClusterError(f"Ray's cluster at {address} does not answer: {why}.")
        local = {"include_dashboard": False, "object_store_memory": 10**8}
        try:
            self._ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(local if address == LOCAL else {}),
            )
        except Exception as error:  # Ray has no class of its own for it
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ClusterError(f"Ray's cluster at {address} does not answer: {reason}") from error

    def _measure(self) -> None:
        """Fix the workers' number and size by what the nodes have."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wanted = self.workers
        has_gpus = self.may_use_gpus and any(node.get("GPU", 0) for node in nodes)
        self.gpus_each = wanted.gpus if wanted.gpus is not None else float(has_gpus)
        if self.gpus_each and not self.may_use_gpus:
            raise ClusterError("GPUs are asked for, but the device is cpu; choose one.")
        smallest = min(int(node.get("CPU", 0)) or _CPUS for node in nodes)
        self.cpus = wanted.cpus or (1 if self.gpus_each else min(_CPUS, smallest))
        room = sum(self._room(node) for node in nodes)
        self.count = wanted.count or room
        if not 1 <= self.count <= room:
            each = f"{self.cpus} CPUs" + (f" and {self.gpus_each:g} GPUs" if self.gpus_each else "")
            raise ClusterError(
                f"the cluster has room for {room} workers of {each}, not for "
                f"{wanted.count or 'any'}."
            )

    def _room(self, node: dict[str, float]) -> int:
        """How many workers a node takes."""
        room = int(node.get("CPU", 0) // self.cpus)
        if not self.gpus_each:
            return room
        have = node.get("GPU", 0.0)
        each = self.gpus_each
        return min(room, int(have) * int(1 / each) if each < 1 else int(have // each))

    def _start(self, build: Callable[[], Work]) -> _Handle:
        actor = (
            self._ray.remote(_Worker)
            .options(num_cpus=self.cpus, num_gpus=self.gpus_each, max_concurrency=2)
            .remote(build, os.getcwd(), self.cpus, version())
        )
        return _Handle(actor, actor.prepare.remote())

    def _give(self, handle: _Handle, task: Task[Any]) -> None:
        handle.task, handle.asked = task, None
        handle.awaited = handle.actor.do.remote(task.item)

    def _ask_progress(self, progress: Callable[[T, float], None]) -> None:
        """Pass on what busy workers have answered, and ask again."""
        for handle in self._handles:
            if handle.task is None:
                continue
            if handle.asked is not None:
                if not self._ray.wait([handle.asked], timeout=0)[0]:
                    continue
                with contextlib.suppress(self._ray.exceptions.RayError):
                    progress(handle.task.item, self._ray.get(handle.asked))
            handle.asked = handle.actor.fraction.remote()

    def _stop(self) -> None:
        """End the workers; those that are busy, after an interruption, tidy up first."""
        busy = [handle for handle in self._handles if handle.task]
        for handle in busy:
            handle.actor.stop.remote()
        if busy:
            self._ray.wait(
                [handle.awaited for handle in busy], num_returns=len(busy), timeout=_GRACE
            )
        for handle in self._handles:
            self._ray.kill(handle.actor)
        self._handles = []


class _Stopped(BaseException):
    """Unwinds a task that is to end; not an Exception, which tasks may catch."""


class _Worker:
    """The actor: one thread does tasks while another answers how far it is."""

    def __init__(self, build: Callable[[], Work], folder: str, threads: int, wanted: str) -> None:
        self._build, self._folder, self._threads = build, folder, threads
        self._wanted = wanted
        self._fraction, self._stopped = 0.0, False

    def prepare(self) -> None:
        """Build what does the tasks.

        Raises ClusterError on a node that lacks the driver's folder or has another version.
        """
        node = os.uname().nodename if hasattr(os, "uname") else "a node"
        if version() != self._wanted:
            raise ClusterError(
                f"{node} has c2d-isr {version()}, but this run is of {self._wanted}: install "
                "the same version on every node."
            )
        try:
            os.chdir(self._folder)
        except OSError:
            raise ClusterError(
                f"{node} has no folder {self._folder}: run from, and name, folders that all "
                "nodes share."
            ) from None
        torch.set_num_threads(self._threads)
        self._work = self._build()

    def do(self, item: Any) -> Any:
        """Do one task; None if it was told to stop meanwhile."""
        torch.set_num_threads(self._threads)  # for this thread
        self._fraction = 0.0
        try:
            return self._work(item, self._note)
        except _Stopped:
            return None

    def fraction(self) -> float:
        """How much of the task is done."""
        return self._fraction

    def stop(self) -> None:
        """End the task at its next step."""
        self._stopped = True

    def _note(self, fraction: float) -> None:
        if self._stopped:
            raise _Stopped
        self._fraction = fraction


def _unreachable(address: str) -> str | None:
    """The reason why nothing listens at "host:port" or "ray://host:port"; Ray itself would wait."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 6379), _KNOCK):
            return None
    except (OSError, ValueError) as error:  # a ValueError: a port that is not a number
        return getattr(error, "strerror", None) or str(error)


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise ClusterError(
            "Ray is not installed: pip install 'c2d-isr[ray]', or pip install ray."
        ) from None
    return ray
