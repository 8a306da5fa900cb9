"""No row holds the run: ceilings within a second, and what does not fit is left out by name."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import budget, comparison, machine, summary
from bench.budget import RACE_SECONDS, Budget, OverBudget
from bench.comparison import Ledger, compare
from bench.contenders import AUTO, REFERENCE, Contender, peer
from bench.networks.test_growth import expected
from bench.test_honesty import Stopwatch, correlation
from bench.test_options import run_pytest


@pytest.mark.parametrize(
    ("speed", "largest"),
    [
        pytest.param(lambda side: 1e7, 64, id="hardly any"),
        pytest.param(lambda side: 3.8e9 * 64 / side, 512, id="slower the larger"),
        pytest.param(lambda side: 3e11, 2048, id="a CPU"),
        pytest.param(lambda side: 1e15, 8192, id="a GPU"),
    ],
)
def test_a_ceiling_takes_a_second_whatever_the_machine(speed, largest: int) -> None:
    runs: list[tuple[int, float]] = []

    def seconds(side: int) -> float:
        runs.append((side, 2 * side**3 / speed(side)))
        return runs[-1][1]

    assert machine.fastest_product(seconds) == pytest.approx(max(speed(side) for side, _ in runs))
    assert runs[-1][0] == largest
    assert sum(taken for _, taken in runs) <= machine.CEILING_SECONDS


def test_ceilings_of_this_machine_end() -> None:
    machine.product_speed.cache_clear()
    machine.copy_bandwidth.cache_clear()
    start = time.process_time()
    assert all(value > 0 for value in machine.ceilings().values())
    assert time.process_time() - start < 10 * torch.get_num_threads()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch):
    """`hasty(seconds)` sets the budget of a row in a quick run, whose races are short."""
    monkeypatch.setattr(comparison, "SECONDS_A_ROW", {"quick": 0.01})
    return lambda seconds: monkeypatch.setitem(RACE_SECONDS, "quick", seconds)


def test_a_formula_in_half_precision_is_stopped_between_operations(monkeypatch, hasty) -> None:
    class Clock:
        """A second passes at each look."""

        now = 0.0

        def perf_counter(self) -> float:
            self.now += 1.0
            return self.now

    hasty(8.0)
    monkeypatch.setattr(budget, "time", Clock())
    workload, ledger, stopwatch = correlation(torch.bfloat16), Ledger(), Stopwatch()
    with pytest.raises(OverBudget, match="the formula in bfloat16 would go beyond the 8 s"):
        compare(workload, REFERENCE, stopwatch, ledger)
    (row,) = ledger.left_out
    assert row.row == "reference on channel_correlation 16x16_w8-bfloat16-forward"
    assert 8 < row.seconds < 12
    with pytest.raises(OverBudget, match="like the row before, it has nothing"):
        compare(workload, AUTO, stopwatch, ledger)
    assert [row.row.split()[0] for row in ledger.left_out] == ["reference", "auto"]
    assert stopwatch.rounds == 0 and stopwatch.has_error
    assert not ledger.rows and not ledger.refused


def slow(seconds: float, first: float | None = None) -> Contender:
    """The right result after a while; the first call may take another."""
    waits = iter([seconds if first is None else first])

    def build(workload, tensors):
        def function(tensors):
            time.sleep(next(waits, seconds))
            return workload.function(tensors)

        return function

    return peer("slow", build)


def test_rounds_that_do_not_fit_are_not_begun(hasty) -> None:
    workload, ledger, stopwatch = correlation(), Ledger(), Stopwatch()
    hasty(600.0)
    compare(workload, REFERENCE, Stopwatch(), ledger)
    hasty(1.0)
    start = time.perf_counter()
    with pytest.raises(OverBudget, match=r"rounds of .* s, about .* s, would go beyond the 1 s"):
        compare(workload, slow(0.4), stopwatch, ledger)
    assert stopwatch.rounds == 0 and stopwatch.has_error
    (row,) = ledger.left_out
    assert 0.8 <= row.seconds <= time.perf_counter() - start
    assert [row["backend"] for row in ledger.rows] == ["reference"]


def test_compiling_is_not_held_against_a_row(monkeypatch, hasty) -> None:
    monkeypatch.setattr(comparison, "LONG_PAIR_SECONDS", 1.0)
    workload, ledger = correlation(), Ledger()
    hasty(600.0)
    compare(workload, REFERENCE, Stopwatch(), ledger)
    hasty(2.0)
    compare(workload, replace(slow(0.0, first=2.5), full_only=True), Stopwatch(), ledger)
    assert [row["backend"] for row in ledger.rows] == ["reference", "slow"]
    assert ledger.seconds["slow on channel_correlation 16x16_w8-float32-forward"] > 2.5


def test_a_step_asks_before_it_begins() -> None:
    row = Budget(60.0)
    row.need(50.0, "ten runs")
    with pytest.raises(OverBudget) as error:
        row.need(70.0, "ten runs")
    assert str(error.value) == "ten runs, about 70 s, would go beyond the 60 s of a row"
    row.excuse(20.0)
    row.need(70.0, "ten runs")


def test_growth_is_expected_from_the_last_smaller_image() -> None:
    rows = [
        {"network": "n", "side": 256, "median_ms": 500.0},
        {"network": "n", "side": 512, "median_ms": 3000.0},
        {"network": "other", "side": 512, "median_ms": 1.0},
    ]
    assert expected(rows, "n", 1024) == 12.0
    assert expected(rows, "n", 2048) == 48.0
    assert expected(rows, "n", 256) == 0.0


def test_summary_names_what_was_left_out_and_the_slowest_rows() -> None:
    ledger = Ledger(seconds={f"row {n}": float(n) for n in range(9)})
    with pytest.raises(OverBudget), ledger.row("auto on x", 3.0) as row:
        row.need(4.0, "a run")
    text = "\n".join(summary.lines(ledger, machine.describe(), None))
    assert "left out after 0.0 s: auto on x: a run, about 4 s, would go beyond the 3 s" in text
    assert "slowest rows, with their checks: 8.0 s row 8; 7.0 s row 7; 6.0 s row 6; 5.0 s" in text
    assert "row 3" not in text


def test_a_run_ends_green_and_says_what_it_left_out(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "one_row.py").write_text(
        "from bench import comparison\n"
        "class OneRow:\n"
        "    seconds = iter([600.0])\n"
        "    def __getitem__(self, size):\n"
        "        return next(self.seconds, 0.0)\n"
        "comparison.RACE_SECONDS = OneRow()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stored = tmp_path / "run.json"
    options = ("-p", "one_row", f"--benchmark-json={stored}")
    two = "test_channel_correlation and w32 and float32 and reference"  # without, with gradients
    done = run_pytest("bench", "--benchmark", "--quick", "-k", two, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    timed = "reference on channel_correlation 96x80_w32-float32-forward"
    late = f"{timed}+backward"
    assert f" s: {late}: the formula in float32" in done.stdout
    assert re.search(rf"slowest rows, with their checks: .*[0-9] s {re.escape(late)}", done.stdout)
    run = json.loads(stored.read_text())
    assert [left["row"] for left in run["left_out"]] == [late]
    assert set(run["slowest"]) == {timed, late}
    assert len(run["benchmarks"]) == 1


def test_an_interrupted_run_stores_the_rows_before(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "ctrl_c.py").write_text(
        "from bench import timing\n"
        "warm_up, rows = timing.warm_up, []\n"
        "def interrupt(call):\n"
        "    raise KeyboardInterrupt\n"
        "def second(*calls):\n"
        "    rows.append(warm_up(*calls))\n"
        "    if len(rows) == 2:\n"
        "        timing.clocked = interrupt\n"
        "    return rows[-1]\n"
        "timing.warm_up = second\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stored = tmp_path / "run.json"
    options = ("-p", "ctrl_c", f"--benchmark-json={stored}")
    two = "test_channel_correlation and w32 and float32 and reference"  # without, with gradients
    done = run_pytest("bench", "--benchmark", "--quick", "-k", two, *options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "= benchmarks =" in done.stdout
    (entry,) = json.loads(stored.read_text())["benchmarks"]
    assert entry["group"] == "channel_correlation 96x80_w32-float32-forward"
