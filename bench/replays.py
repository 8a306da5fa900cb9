"""Operators and networks on a GPU as CUDA graphs: what the kernels take, without the launches.

    python -m bench.replays [--networks] [--only TEXT] [--minutes M] [--into FILE.jsonl]

For each workload and contender: the time called as anyone would (`eager`), the time of a replay of
its captured graph, and beside them the least time that this GPU's ceilings, measured first, allow.
A row is written as soon as it is known. What cannot be captured says why and keeps its eager time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import torch

import c2d_kernels
from bench import machine
from bench.comparison import Work, first_line
from bench.contenders import Contender
from bench.correctness import Outputs
from bench.timing import clocked
from bench.workloads import Workload

ROUNDS = 20
SECONDS_A_ROW = 0.4  # of each of the two times
LONG_SCAN = 4096  # tokens that the reference, a loop over them, is not made to walk
COMPILERS = ("torch.compile", "max-autotune", "auto, torch.compile", "FlexAttention")
NETWORKS = ("swinir_l", "hiet_swinir", "hiet_srformer", "hiet_mambairv2", "hit_sir", "mambairv2")


def races(networks: bool) -> Iterator[tuple[Workload, Contender]]:
    """Every full-size workload of the benchmarks with each of its contenders that runs here."""
    files = (Path(__file__).parent / "operators").glob("test_*.py")
    names = [f"networks.test_{name}" for name in NETWORKS]
    for module in names if networks else [f"operators.{file.stem}" for file in sorted(files)]:
        for test in vars(import_module(f"bench.{module}")).values():
            for marker in getattr(test, "pytestmark", ()):
                if marker.name != "race":
                    continue
                for workload in marker.kwargs["workloads"]:
                    for contender in marker.kwargs["contenders"]:
                        if wanted(workload, contender):
                            yield workload, contender


def wanted(workload: Workload, contender: Contender) -> bool:
    """Full size, one picture, no compiler; no reference of a long scan."""
    scan = workload.subject == "selective_scan" or getattr(workload, "scans", False)
    return (
        workload.size == "full"
        and " B8" not in workload.shape
        and contender.name not in COMPILERS
        and not (scan and contender.backend == "reference")
        and contender.absent(workload) is None
    )


def measured(workload: Workload, contender: Contender) -> dict[str, object]:
    """One row: eager and replayed milliseconds, launches, and the floor."""
    job = workload.job(build=contender.build)

    def call() -> Outputs:
        with c2d_kernels.backend(contender.backend):
            return job.run()

    start = time.perf_counter()
    outputs = call()
    torch.cuda.synchronize()
    row: dict[str, object] = {"first_call_s": time.perf_counter() - start}
    least = Work(workload.flops(), workload.least_traffic(outputs))
    row["eager_ms"] = 1e3 * median_seconds(call)
    row["launches"] = launches(call)
    try:
        row["replay_ms"] = 1e3 * median_seconds(captured(call))
    except RuntimeError as error:
        torch.cuda.synchronize()
        row["not_captured"] = first_line(error)
    fastest = row.get("replay_ms", row["eager_ms"])
    row |= least.achieved(fastest, workload.dtype_name)
    row["floor_ms"] = fastest * row["share"]
    return row


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph, captured after a warm-up on a stream of its own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> None:
        graph.replay()

    replay.kept = kept  # the graph writes to these
    replay()
    return replay


def median_seconds(call: Callable[[], object]) -> float:
    """Times of up to ROUNDS runs by GPU events, the second-level cache emptied before each."""
    first = clocked(call)[0]
    rounds = max(3, min(ROUNDS, int(SECONDS_A_ROW / max(first, 1e-6))))
    return statistics.median(clocked(call)[0] for _ in range(rounds))


def launches(call: Callable[[], object]) -> int:
    """Kernels, copies and fills that one call sends to the GPU."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return sum(
        event.count
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", action="store_true", help="networks, not operators")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no row after these")
    parser.add_argument("--into", type=Path, help="append a line of JSON a row")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "bench.replays: torch sees no CUDA device here\n")
    machine.use("cuda")
    began = time.monotonic()

    def put(row: dict[str, object]) -> None:
        if arguments.into is not None:
            with arguments.into.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    here = machine.describe() | machine.ceilings()
    put({"machine": here})
    print({name: value for name, value in here.items() if "_s" in name or name == "gpu"})
    found = list(races(arguments.networks))
    found.sort(key=lambda race: (race[0].backward, not race[1].ours))  # time may run out
    for workload, contender in found:
        name = f"{workload.subject} {workload.label} {contender.name}"
        if arguments.only not in name:
            continue
        if time.monotonic() - began > 60 * arguments.minutes:
            print(f"{name}: no time left")
            continue
        try:
            row = measured(workload, contender)
        except Exception as error:
            row = {"failed": first_line(error)}
        put({"row": name, **row})
        print(f"{name}: {told(row)}", flush=True)


def told(row: dict[str, object]) -> str:
    """A row in a line."""
    if "failed" in row:
        return f"FAILED {row['failed']}"
    replay = f"{row['replay_ms']:.4g}" if "replay_ms" in row else row["not_captured"]
    return (
        f"eager {row['eager_ms']:.4g} ms, replay {replay} ms, floor {row['floor_ms']:.3g}, "
        f"{row['launches']} launches"
    )


if __name__ == "__main__":
    main()
