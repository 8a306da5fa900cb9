"""Fixtures of every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import pyvips


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist share the cores, before any of them imports torch."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, for children too: a run in a shell's background is started deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six small synthetic photographs: smooth colour waves with edges."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:112, 0:120] / 16.0
    for index in range(6):
        waves = [
            np.sin(x * (1 + index / 3) + channel) + np.sign(np.sin(y + index))
            for channel in range(3)
        ]
        pixels = np.clip(np.stack(waves, -1) * 60 + 128, 0, 255).astype(np.uint8)
        pyvips.Image.new_from_array(pixels).write_to_file(str(folder / f"wave{index}.png"))
    return folder
