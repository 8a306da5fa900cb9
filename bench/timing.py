"""The stopwatch: a contender and the reference in turns, so that both meet the same machine.

On a shared machine the speed drifts by tens of percent within a minute. Two medians taken one
after the other compare two moments; pairs taken in turns compare two programs. The ratio of a row
is the median over the pairs; its quartiles say how far it can be trusted. The reference's own row
is such a race against itself: what it shows beside 1.00 is noise.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from bench import machine
from bench.budget import Budget

Result = TypeVar("Result")

WARM_UP_SECONDS = 0.05
MOST_ROUNDS = 300
FEWEST_ROUNDS = 5
GPU_CACHE_BYTES = 64 * 2**20  # no GPU of today has a larger one
LONG_PAIR_SECONDS = 2.0
FEWEST_LONG_ROUNDS = 3  # where one pair alone takes the whole budget
VERY_LONG_PAIR_SECONDS = 5.0
FEWEST_VERY_LONG_ROUNDS = 2  # so long a run averages over most of the drift by itself


@dataclass(frozen=True)
class Pairs:
    """The measurements of a race: seconds of both, round by round."""

    contender: list[float]
    reference: list[float]

    @property
    def ratios(self) -> list[float]:
        """Reference time over contender time: above 1 the contender is faster."""
        return [r / c for r, c in zip(self.reference, self.contender, strict=True)]

    def summary(self) -> dict[str, float | int]:
        """Medians and quartiles, in milliseconds where a time."""
        low, middle, high = quartiles(self.ratios)
        return {
            "median_ms": 1e3 * statistics.median(self.contender),
            "reference_median_ms": 1e3 * statistics.median(self.reference),
            "ratio": middle,
            "ratio_q1": low,
            "ratio_q3": high,
            "rounds": len(self.contender),
        }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def clocked(call: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of one call, and its result, which the caller frees when no clock runs.

    On a CPU by the host's clock: its operators are synchronous. On a GPU by events around the call,
    after a write that drives its inputs out of the second-level cache.
    """
    if machine.device().type == "cuda":
        _flush_gpu_cache()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, result
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _flush_gpu_cache() -> None:
    torch.empty(2 * GPU_CACHE_BYTES, dtype=torch.int8, device="cuda").zero_()


def race(
    call: Callable[[], Result],
    reference: Callable[[], object],
    benchmark,
    seconds: float,
    known: float = 0.0,
    most: int = MOST_ROUNDS,
    budget: Budget | None = None,
) -> tuple[Pairs, Result]:
    """Time `call` through the pytest-benchmark fixture, with one reference run before each round.

    `seconds` is the budget of all rounds together. `known` is what a pair took when both ran
    before, if they did: where that is long, there is nothing left to warm up. `most` bounds the
    rounds. Returns the pairs and the last round's result, for a second look at its correctness.
    Raises OverBudget where the fewest rounds that make a row do not fit the `budget`.
    """
    pair = known if known > LONG_PAIR_SECONDS else warm_up(call, reference)
    rounds = min(most, rounds_for(pair, seconds))
    if budget is not None:
        budget.need(rounds * pair, f"{rounds} round{'s' * (rounds > 1)} of {pair:.2g} s")
    reference_seconds: list[float] = []
    events: list[float] = []
    latest: list[Result] = []

    def before_each_round() -> None:
        latest.clear()  # both run while no earlier output holds memory, or one would be favoured
        reference_seconds.append(clocked(reference)[0])

    def on_gpu() -> None:
        taken, result = clocked(call)
        events.append(taken)
        latest.append(result)

    gpu = machine.device().type == "cuda"
    gc.collect()
    benchmark.pedantic(
        on_gpu if gpu else lambda: latest.append(call()),
        setup=before_each_round,
        rounds=rounds,
        iterations=1,
    )
    taken = events if gpu else list(benchmark.stats.stats.data)
    return Pairs(taken, reference_seconds), latest[0]


def rounds_for(pair: float, seconds: float) -> int:
    """How many rounds of a pair that takes `pair` seconds fit the budget, and how many it gets."""
    if FEWEST_ROUNDS * pair < 2 * seconds:
        fewest = FEWEST_ROUNDS
    elif pair < VERY_LONG_PAIR_SECONDS:
        fewest = FEWEST_LONG_ROUNDS
    else:
        fewest = FEWEST_VERY_LONG_ROUNDS
    return max(fewest, min(MOST_ROUNDS, int(seconds / pair)))


def warm_up(call: Callable[[], object], reference: Callable[[], object]) -> float:
    """Run pairs until the warm-up time is used, at least one; the shortest pair's seconds."""
    shortest, used = float("inf"), 0.0
    while used < WARM_UP_SECONDS:
        pair = clocked(reference)[0] + clocked(call)[0]
        shortest, used = min(shortest, pair), used + pair
    return shortest
