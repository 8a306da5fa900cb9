"""`pytest bench --benchmark` as typed, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import machine, summary
from bench.comparison import Ledger

ROOT = Path(__file__).resolve().parent.parent
ONE_ROW = "test_channel_correlation and w32 and float32-forward-reference"


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    # The process is not a worker, even where pytest-xdist runs this test in one.
    env = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=env | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_benchmark_times_and_ends_with_the_table(tmp_path: Path) -> None:
    stored = tmp_path / "run.json"
    done = run_pytest(
        "bench", "--benchmark", "--quick", "-k", ONE_ROW, f"--benchmark-json={stored}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout[done.stdout.index("= benchmarks =") :]
    (row,) = [line for line in table.splitlines() if line.startswith("channel_correlation ")]
    *_, backend, median, ratio, _, gflops, _, share, _ = re.split(r"\s{2,}", row)
    assert backend == "reference"
    assert float(median) > 0 and float(gflops) > 0
    assert ratio.endswith("x") and share.endswith("%")
    run = json.loads(stored.read_text())
    assert run["machine_info"]["threads"] == torch.get_num_threads()
    assert run["machine_info"]["torch"] == torch.__version__
    assert run["machine_info"]["processor"]
    assert set(run["commit_info"]) == {"id", "dirty"}
    (entry,) = run["benchmarks"]
    assert entry["group"] == "channel_correlation 96x80_w32-float32-forward"
    assert entry["extra_info"]["ratio"] > 0
    assert entry["stats"]["median"] * 1e3 == pytest.approx(entry["extra_info"]["median_ms"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["--results"], "add --benchmark", id="results-without-times"),
        pytest.param(
            ["--device", "cuda"],
            "needs a CUDA device, and torch sees none",
            id="no-gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_refusals(arguments: list[str], sentence: str) -> None:
    done = run_pytest("bench", *arguments, "--collect-only", "-q")
    assert done.returncode == 4
    assert sentence in done.stderr


@pytest.mark.parametrize("part", ["operators", "networks"])
def test_parts(part: str) -> None:
    done = run_pytest("bench", f"--{part}", "--collect-only", "-q")
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    assert tests and all(line.startswith(f"bench/{part}/") for line in tests)


def test_summary_names_what_is_refused_absent_and_busy() -> None:
    ledger = Ledger(
        absent={"not installed": {"a": {"x": 2, "y": 1}, "b": {"x": 1}}},
        refused={"c on x": "c is wrong"},
    )
    text = "\n".join(summary.lines(ledger, machine.describe(), others=0.5))
    assert "absent: a from 2 rows of x, 1 of y; b from 1 row of x: not installed" in text
    assert "REFUSED, not timed: c is wrong" in text
    assert "50% of this machine during the run: do not quote the milliseconds" in text
    assert f"threads {torch.get_num_threads()}" in text


def test_results_are_named_by_device() -> None:
    slug = machine.device_slug()
    assert slug == slug.lower().strip("-")
    assert slug.endswith(f"-{torch.get_num_threads()}-threads")
