"""The first minutes on a GPU, rung by rung: `make gpu`, or `python -m bench.ladder`.

    machine    the GPU, its driver, and what of this package can run on it
    smoke      every operator forward and backward once, networks, graph captures
    memory     the smoke test of the CUDA and Triton kernels under compute-sanitizer
    tests      all tests marked gpu, side by side
    replays    the operators' full-size rows as graph replays, beside the least time possible
    networks   the same for networks
    suite      pytest bench --benchmark --results --device cuda

Each rung is a process of its own with a time limit, and leaves a log (and tests a JUnit file,
replays JSON lines) in the folder as it goes: what was found before a crash or a limit is kept.
The rungs after one that failed run all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short")


@dataclass(frozen=True)
class Rung:
    """Arguments of Python for one step, with FOLDER where its files go, and its limit."""

    arguments: tuple[str, ...]
    seconds: int
    under: tuple[str, ...] = ()  # a program that runs Python and must be on PATH


def workers() -> int:
    """Processes that share one GPU: compiling kernels keeps the processor busy, not the GPU."""
    return max(1, min(14, (os.cpu_count() or 2) - 2))


RUNGS = {
    "machine": Rung(("-m", "c2d_kernels"), 120),
    "smoke": Rung(
        (*PYTEST, "tests/kernels", "-m", "gpu", "-k", "smoke or graph", "-n", str(workers())), 300
    ),
    "memory": Rung(
        (*PYTEST, "tests/kernels", "-m", "gpu", "-k", "test_smoke and bfloat16"),
        300,
        ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"),
    ),
    "tests": Rung(
        (
            *PYTEST,
            "tests/kernels",
            "-m",
            "gpu",
            "-n",
            str(workers()),
            "--junitxml=FOLDER/tests.xml",
        ),
        900,
    ),
    "replays": Rung(("-m", "bench.replays", "--into", "FOLDER/replays.jsonl"), 900),
    "networks": Rung(("-m", "bench.replays", "--networks", "--into", "FOLDER/networks.jsonl"), 900),
    "suite": Rung((*PYTEST, "bench", "--benchmark", "--results", "--device", "cuda"), 4 * 3600),
}


def climb(names: Sequence[str], folder: Path, limits: dict[str, int]) -> bool:
    """Run the rungs; True if every one ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    well = True
    for name in names:
        rung = RUNGS[name]
        result = run(name, rung, folder, limits.get(name, rung.seconds))
        with (folder / "ladder.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{name}: {result['ended']}, {result['seconds']:.0f} s", flush=True)
        well &= result["ended"] == "well"
    return well


def run(name: str, rung: Rung, folder: Path, limit: int) -> dict[str, object]:
    """One rung in a process group of its own, ended at the limit."""
    if rung.under and shutil.which(rung.under[0]) is None:
        return {"rung": name, "ended": f"not run: no {rung.under[0]} on PATH", "seconds": 0.0}
    arguments = [part.replace("FOLDER", str(folder)) for part in rung.arguments]
    began = time.monotonic()
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*rung.under, sys.executable, *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            ended = "well" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"stopped after {limit} s"
    return {"rung": name, "ended": ended, "seconds": time.monotonic() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=ROOT / "out" / "gpu", help="folder of results")
    parser.add_argument(
        "--rungs", default=",".join(RUNGS), help="comma-separated; RUNG:SECONDS sets its limit"
    )
    arguments = parser.parse_args()
    limits, names = {}, []
    for text in arguments.rungs.split(","):
        name, _, seconds = text.partition(":")
        if name not in RUNGS:
            parser.error(f"{name} is not a rung; the rungs are {', '.join(RUNGS)}")
        names.append(name)
        if seconds:
            limits[name] = int(seconds)
    sys.exit(0 if climb(names, arguments.into.resolve(), limits) else 1)


if __name__ == "__main__":
    main()
