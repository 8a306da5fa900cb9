"""Work done a little ahead of this thread, or behind it, in threads of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

_WAITING = 4  # items between two threads

T = TypeVar("T")


class _End:
    """Closes a queue, perhaps with the exception that ended the work before it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class WorkerThreads:
    """Threads that work beside this one and end with the block; a context manager.

    What they use may be closed after the block, however it ended: an exception, even one that a
    signal raises while a thread starts, stops them and waits for them.

    Attributes:
        stop: set once the threads are to end.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> WorkerThreads:
        return self

    def __exit__(self, *exception: object) -> None:
        interruption: BaseException | None = None
        self.stop.set()
        while any(thread.is_alive() for thread in self._threads):
            try:
                for thread in self._threads:
                    thread.join()
            except (KeyboardInterrupt, SystemExit) as another:
                interruption = another
        if interruption is not None:
            raise interruption

    def ahead(self, items: Iterator[T]) -> Iterator[T]:
        """The same items, made by a thread a little ahead."""
        waiting: queue.Queue[Any] = queue.Queue(_WAITING)

        def work() -> None:
            try:
                for item in items:
                    self.put(waiting, item)
                self.put(waiting, _End())
            except BaseException as error:
                self.put(waiting, _End(error))

        self.start(work, "c2d-decode")
        while not isinstance(item := self.get(waiting), _End):
            yield item
        if item.error is not None:
            raise item.error

    def behind(self, take: Callable[[T], None]) -> Consumer[T]:
        """A thread that hands each item it is sent to `take`."""
        return Consumer(self, take)

    def start(self, work: Callable[[], None], name: str) -> threading.Thread:
        """A thread that begins when it is in the list of those to wait for.

        An interruption while it starts leaves a thread that sees the request to stop, and ends.
        """
        listed = threading.Event()

        def begin() -> None:
            while not self.stop.is_set():
                if listed.wait(0.1):
                    return work()

        thread = threading.Thread(target=begin, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
        listed.set()
        return thread

    def put(self, waiting: queue.Queue[Any], item: Any) -> None:
        """Wait for room in a queue, unless the threads are to stop."""
        while not self.stop.is_set():
            try:
                return waiting.put(item, timeout=0.1)
            except queue.Full:
                continue

    def get(self, waiting: queue.Queue[Any]) -> Any:
        """Wait for an item; an _End once the threads are to stop."""
        while not self.stop.is_set():
            try:
                return waiting.get(timeout=0.1)
            except queue.Empty:
                continue
        return _End()


class Consumer(Generic[T]):
    """A thread that takes items; what goes wrong in it is raised by the next call here."""

    def __init__(self, threads: WorkerThreads, take: Callable[[T], None]) -> None:
        waiting: queue.Queue[Any] = queue.Queue(_WAITING)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while not isinstance(item := threads.get(waiting), _End):
                    take(item)
            except BaseException as error:
                failures.append(error)
                threads.stop.set()

        self._threads, self._waiting, self._failures = threads, waiting, failures
        self._thread = threads.start(work, "c2d-encode")

    def send(self, item: T) -> None:
        """Hand an item over, waiting while too many are on their way."""
        self._threads.put(self._waiting, item)
        self._raise()

    def finish(self) -> None:
        """Wait until all are taken."""
        self._threads.put(self._waiting, _End())
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._failures:
            raise self._failures[0]
