"""Work done a little ahead of this thread, or behind it, in threads of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

_WAITING = 4  # items between two threads

T = TypeVar("T")


class _End:
    """Closes a queue, perhaps with the exception that ended the work before it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


@contextmanager
def ahead(items: Iterator[T], stop: threading.Event) -> Iterator[Iterator[T]]:
    """What `items` gives, made by a thread a little ahead."""
    waiting: queue.Queue[Any] = queue.Queue(_WAITING)

    def work() -> None:
        try:
            for item in items:
                _put(waiting, item, stop)
            _put(waiting, _End(), stop)
        except BaseException as error:
            _put(waiting, _End(error), stop)

    def received() -> Iterator[T]:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    with _running(work, "c2d-decode", stop):
        yield received()


@contextmanager
def behind(take: Callable[[Any], None], stop: threading.Event) -> Iterator[Callable[[Any], None]]:
    """A function that hands an item to `take` in a thread; what goes wrong there is raised here."""
    waiting: queue.Queue[Any] = queue.Queue(_WAITING)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not isinstance(item := _get(waiting, stop), _End):
                take(item)
        except BaseException as error:
            failures.append(error)
            stop.set()

    def send(item: Any) -> None:
        _put(waiting, item, stop)
        if failures:
            raise failures[0]

    with _running(work, "c2d-encode", stop) as thread:
        yield send
        _put(waiting, _End(), stop)
        thread.join()
        if failures:
            raise failures[0]


@contextmanager
def _running(
    work: Callable[[], None], name: str, stop: threading.Event
) -> Iterator[threading.Thread]:
    """A thread for the time of the block; an exception in the block stops it."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield thread
    except BaseException:
        stop.set()
        raise
    finally:
        thread.join()


def _put(waiting: queue.Queue[Any], item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return waiting.put(item, timeout=0.1)
        except queue.Full:
            continue


def _get(waiting: queue.Queue[Any], stop: threading.Event) -> Any:
    while not stop.is_set():
        try:
            return waiting.get(timeout=0.1)
        except queue.Empty:
            continue
    return _End()
