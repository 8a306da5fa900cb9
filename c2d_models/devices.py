"""Which device computes, and how much memory it has left."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from .errors import DeviceError


def choose_device(device: str | torch.device) -> torch.device:
    """The device asked for, if it is there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise DeviceError(f"device is {device}; use auto, cpu or cuda.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device is {device}, but torch finds no such GPU here; use cpu or auto.")
    return chosen


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory (of any device) ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    signs = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def memory_budget(device: torch.device) -> int:
    """Bytes that tiles may use: half of what is free, and on a CPU at most 1.25 GiB.

    That is a side of 384 for HiET-SwinIR: larger tiles save little, and the machine stays usable.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return min(available_memory() // 2, 5 * 2**28)


def available_memory() -> int:
    """Bytes of main memory that this process can still take, container limits included."""
    known: list[int] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        known.extend(
            int(line.split()[1]) * 1024
            for line in _text("/proc/meminfo").splitlines()
            if line.startswith("MemAvailable:")
        )
    groups = (
        (
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory.current",
            "/sys/fs/cgroup/memory.stat",
        ),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
            "/sys/fs/cgroup/memory/memory.stat",
        ),
    )
    for limit, usage, stat in groups:
        with contextlib.suppress(OSError, ValueError):
            free = int(_text(limit)) - int(_text(usage))
            # Cached files count as used, but make room when it is needed.
            fields = dict(line.split() for line in _text(stat).splitlines())
            known.append(max(free + int(fields.get("inactive_file", 0)), 0))
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            pages = int(_text("/proc/self/statm").split()[0])
            known.append(max(most - pages * os.sysconf("SC_PAGE_SIZE"), 0))
    if not known:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return min(known, default=2**31)


def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")
