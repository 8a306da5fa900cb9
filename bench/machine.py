"""The machine behind a number: processor, threads, versions, commit, and who else was busy."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")

ROOT = Path(__file__).resolve().parent.parent
CEILING_SECONDS = 1.0  # all runs for one ceiling
LONG_ENOUGH_SECONDS = 0.05
COPIED_BYTES = {"cpu": 2**27, "cuda": 2**30}  # well beyond any cache
SMALLEST_SIDE, LARGEST_SIDE = 64, 8192
_device = torch.device("cpu")


def use(name: str) -> None:
    """Run everything on this device from now on, "cpu" or "cuda", float32 as float32 there."""
    global _device
    if name == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    _device = torch.device(name)


def device() -> torch.device:
    """Where the benchmarks run."""
    return _device


def processor_name() -> str:
    """The processor's name; family and model are added, since virtual machines shorten the name."""
    try:
        listing = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", listing.split("\n\n")[0], re.MULTILINE))
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']} model {fields['model']})"
    return name


def describe() -> dict[str, object]:
    """Everything about this machine and this software that a reader needs to judge a number."""
    import c2d_kernels

    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "device": _device.type,
        **(_gpu() if _device.type == "cuda" else {}),
        "processor": processor_name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "pinned_to": affinity,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "c2d_kernels": str(c2d_kernels.info()),
        "date": now(),
    }


def _gpu() -> dict[str, object]:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
        driver = answer.stdout.strip().splitlines()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        driver = "unknown"
    triton = importlib.import_module("triton") if importlib.util.find_spec("triton") else None
    return {
        "gpu": torch.cuda.get_device_name(_device),
        "driver": driver,
        "cuda": torch.version.cuda,
        "triton": triton.__version__ if triton else "not installed",
    }


def ceilings() -> dict[str, float]:
    """This machine's best here and now: rows are measured against these."""
    return {
        "copy_GB_s": copy_bandwidth() / 1e9,
        **{
            f"product_{name}_GFLOP_s": product_speed(name) / 1e9 for name in ("float32", "bfloat16")
        },
    }


@cache
def copy_bandwidth() -> float:
    """Bytes a second that a copy reads and writes together: the median of nine, out of cache."""
    source = torch.rand(COPIED_BYTES[_device.type] // 4, device=_device)
    target = torch.empty_like(source)
    target.copy_(source)  # maps the pages
    runs = repeated(lambda: _seconds(lambda: target.copy_(source)), 9, CEILING_SECONDS)
    return 2 * source.numel() * source.element_size() / statistics.median(runs)


@cache
def product_speed(dtype: str) -> float:
    """Operations a second of torch's matrix product at its best."""

    def seconds(side: int) -> float:
        a = torch.randn(side, side, device=_device).to(getattr(torch, dtype))
        return _seconds(lambda: a @ a)

    return fastest_product(seconds)


def fastest_product(seconds: Callable[[int], float]) -> float:
    """Operations a second of the quickest square product; `seconds(side)` runs one.

    The side grows until a run takes long enough to be measured well. A type without a fast path is
    a hundred times as slow as its neighbour, so the largest side is found, not given, and none is
    run that would not fit the ceiling's time.
    """
    side, best, left = SMALLEST_SIDE, 0.0, CEILING_SECONDS
    left -= seconds(side)  # starts threads and libraries
    while True:
        runs = repeated(lambda side=side: seconds(side), 5, left)
        left -= sum(runs)
        best = max(best, 2 * side**3 / min(runs))
        enough = min(runs) >= LONG_ENOUGH_SECONDS or side == LARGEST_SIDE
        if enough or 8 * min(runs) > left:
            return best
        side *= 2


def repeated(run: Callable[[], float], most: int, seconds: float) -> list[float]:
    """The times of up to `most` runs, of which all but the first fit `seconds`."""
    runs = [run()]
    while len(runs) < most and sum(runs) + min(runs) <= seconds:
        runs.append(run())
    return runs


def _seconds(call: Callable[[], object]) -> float:
    if _device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def peak_memory(call: Callable[[], Result]) -> tuple[int | None, Result]:
    """Bytes by which the process (on a GPU: torch's tensors) grew at most during the call.

    Linux or CUDA; else None.
    """
    if _device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        return torch.cuda.max_memory_allocated() - before, result
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
        before = _status("VmRSS")
    except (OSError, AttributeError):
        return None, call()
    result = call()
    return max(0, _status("VmHWM") - before), result


def _status(field: str) -> int:
    """A line of this process's status, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[1])


def device_slug() -> str:
    """A file name for this machine's results, e.g. `amd-epyc-family-25-model-17-2-threads`."""
    name = f"{processor_name()} {torch.get_num_threads()} threads"
    if _device.type == "cuda":
        name = torch.cuda.get_device_name(_device)
    name = re.sub(r"\((?:R|TM|tm|r)\)|\bCPU\b|@.*?GHz", " ", name)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> dict[str, object]:
    """The commit of the checkout and whether files differ from it; `unknown` outside of git."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20
        )
        return answer.stdout.strip() if answer.returncode == 0 else ""

    try:
        return {
            "id": git("rev-parse", "HEAD") or "unknown",
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.TimeoutExpired):
        return {"id": "unknown", "dirty": True}


def now() -> str:
    """The date in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Load:
    """Processor seconds used since boot by everybody, by this process, and available to all."""

    everybody: float
    ours: float
    available: float

    @classmethod
    def read(cls) -> Load | None:
        """Linux only; None elsewhere."""
        try:
            ticks = [
                int(x)
                for x in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]
            ]
        except (OSError, ValueError, IndexError):
            return None
        seconds = [tick / os.sysconf("SC_CLK_TCK") for tick in ticks]
        idle = seconds[3] + seconds[4]  # idle and iowait
        processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        usage = [resource.getrusage(who) for who in processes]
        ours = sum(part.ru_utime + part.ru_stime for part in usage)
        return cls(sum(seconds) - idle, ours, sum(seconds))

    def others_share_until(self, later: Load) -> float:
        """The share of the machine that other processes (or the host) took from here to `later`."""
        others = (later.everybody - self.everybody) - (later.ours - self.ours)
        return max(0.0, others / max(later.available - self.available, 1e-9))
