"""Threads beside the caller's end with its block, however that ends."""

import threading
import time

import pytest

from c2d_models.upscaling.pipeline import WorkerThreads


def endless(done):
    while True:
        done.append(time.monotonic())
        yield len(done)
        time.sleep(0.001)


def pass_on(items, take):
    with WorkerThreads() as threads:
        behind = threads.behind(take)
        for item in threads.ahead(items):
            behind.send(item)
        behind.finish()


def test_an_interruption_while_a_thread_starts_leaves_none(monkeypatch):
    start = threading.Thread.start
    done: list[float] = []

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), WorkerThreads() as threads:
        next(threads.ahead(endless(done)))
    time.sleep(0.05)
    assert done == []


def test_interruptions_while_it_waits_for_a_thread(monkeypatch):
    join = threading.Thread.join
    interruptions = [KeyboardInterrupt("first"), KeyboardInterrupt("second")]

    def interrupted(thread, timeout=None):
        if interruptions:
            raise interruptions.pop(0)
        join(thread, timeout)

    ended = threading.Event()

    def slow():
        try:
            yield 1
            time.sleep(0.2)
        finally:
            ended.set()
        yield 2

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt, match="second"), WorkerThreads() as threads:
        next(threads.ahead(slow()))
    assert ended.is_set()


def test_the_order_is_kept_both_ways():
    taken: list[int] = []
    pass_on(iter(range(100)), taken.append)
    assert taken == list(range(100))


def test_a_failure_behind_ends_the_wait_ahead():
    """The encoder fails while this thread waits for a decoder that has nothing to give."""
    failed = threading.Event()

    def items():
        yield 1
        failed.wait(10)

    def take(item):
        failed.set()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        pass_on(items(), take)
