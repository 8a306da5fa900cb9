"""One row of the table: check a contender, race it against the reference, check it again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import c2d_kernels
from bench import machine
from bench.budget import RACE_SECONDS, Budget, LeftOut, OverBudget
from bench.contenders import REFERENCE, Contender
from bench.correctness import PEER_SLACK, Outputs, Truth, WrongResult
from bench.timing import LONG_PAIR_SECONDS, MOST_ROUNDS, clocked, race
from bench.workloads import Workload

SECONDS_A_ROW = {"quick": 0.15, "full": 0.7}


Absences = dict[str, dict[str, dict[str, int]]]  # reason -> contender -> subject -> rows


@dataclass
class Ledger:
    """Messages for the end of a session."""

    rows: list[dict[str, object]] = field(default_factory=list)
    others: dict[str, list[dict[str, object]]] = field(default_factory=dict)  # kind -> its rows
    absent: Absences = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # contender and workload -> reason
    left_out: list[LeftOut] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # row -> what it took, checks included
    reference_seconds: float = 0.0  # of the latest workload, once it was raced
    _latest: tuple[Workload, Truth, Work] | None = None
    _without_truth: Workload | None = None  # the latest whose truth took too long

    def leave_out(self, contender: Contender, workload: Workload, reason: str) -> None:
        """One row that is not there, and why."""
        rows = self.absent.setdefault(reason, {}).setdefault(contender.name, {})
        rows[workload.subject] = rows.get(workload.subject, 0) + 1

    @contextmanager
    def row(self, name: str, seconds: float) -> Iterator[Budget]:
        """The budget of a row, whose time is noted; OverBudget passes, noted as left out."""
        budget = Budget(seconds)
        try:
            yield budget
        except OverBudget as error:
            self.left_out.append(LeftOut(name, budget.used, str(error)))
            raise
        finally:
            self.seconds[name] = budget.used

    def slowest(self, count: int = 5) -> list[tuple[str, float]]:
        """The rows that took longest, whether they were timed in the end or not."""
        rows = sorted(self.seconds.items(), key=lambda item: item[1], reverse=True)
        return rows[:count]

    def truth_of(self, workload: Workload, budget: Budget) -> tuple[Truth, Work]:
        """The float64 outputs and bounds, and what is to be done for them.

        Kept until the next workload asks for its own; what took too long is not tried again.
        """
        if self._without_truth is workload:
            raise OverBudget("like the row before, it has nothing to be checked against")
        if self._latest is None or self._latest[0] is not workload:
            self._latest = None  # frees the old one first: full-size gradients are large
            self.reference_seconds = 0.0
            exact, plain = workload.job(exact=True), workload.yardsticks()
            kept = [job.tensors[name] for job in plain for name in workload.never_half]
            runs = [job.run for job in plain]
            try:
                with c2d_kernels.backend("reference"):
                    truth = Truth.of(exact.run, runs, workload.dtype, kept, budget)
            except OverBudget:
                self._without_truth = workload
                raise
            work = Work(workload.flops(), workload.least_traffic(truth.outputs))
            self._latest = workload, truth, work
        return self._latest[1:]


def compare(workload: Workload, contender: Contender, benchmark, ledger: Ledger) -> None:
    """Refuse a wrong contender, else time it beside the reference and enter it in the ledger.

    `benchmark` is pytest-benchmark's fixture; when it is disabled the work runs once, checked, and
    nothing is timed. Raises WrongResult before the stopwatch starts, and again if the last timed
    output is wrong or an input was written to; OverBudget where the row takes too long.
    """
    who = f"{contender.name} on {workload.subject} {workload.label}"
    seconds = RACE_SECONDS["test" if benchmark.disabled else workload.size]
    try:
        with ledger.row(who, seconds) as budget:
            _compare(workload, contender, benchmark, ledger, who, budget)
    except OverBudget:
        benchmark.has_error = True
        raise
    except Exception as error:
        wrong = isinstance(error, WrongResult)
        ledger.refused[who] = str(error) if wrong else f"{who} raised {first_line(error)}"
        benchmark.has_error = True  # keeps what was timed so far out of the stored results
        raise


@dataclass(frozen=True)
class Work:
    """The least that a workload asks of the machine."""

    flops: int
    traffic: int | None

    def achieved(self, milliseconds: float, dtype: str) -> dict[str, float | None]:
        """Rates, and the share of the speed that this run's ceilings allow.

        The least time is that of the products at the best product's speed, or of the traffic at a
        copy's: whichever is longer.
        """
        seconds = milliseconds / 1e3
        # torch's products in float16 on a CPU take minutes, and nobody wants float64's
        product = machine.product_speed("bfloat16" if "16" in dtype else "float32")
        least = self.flops / product
        rates = {"GFLOP_s": self.flops / seconds / 1e9, "GB_s": None, "times_least_traffic": None}
        if self.traffic is not None:
            least = max(least, self.traffic / machine.copy_bandwidth())
            rates["GB_s"] = self.traffic / seconds / 1e9
            rates["times_least_traffic"] = seconds * machine.copy_bandwidth() / self.traffic
        return rates | {"share": least / seconds}


def first_line(error: Exception) -> str:
    """The kind of the error and the beginning of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}"


def _compare(
    workload: Workload,
    contender: Contender,
    benchmark,
    ledger: Ledger,
    who: str,
    budget: Budget,
) -> None:
    truth, work = ledger.truth_of(workload, budget)
    budget.need(truth.formula_seconds, "a run of the reference")
    job, reference = workload.job(build=contender.build), workload.job()

    def call() -> Outputs:
        with c2d_kernels.backend(contender.backend):
            return job.run()

    def reference_call() -> Outputs:
        with c2d_kernels.backend("reference"):
            return reference.run()

    slack = 1 if contender.ours else PEER_SLACK
    with job.inputs_unchanged(who):
        if benchmark.disabled:
            truth.check(benchmark.pedantic(call), who, slack)
            return
        benchmark.group = f"{workload.subject} {workload.label}"
        start = time.perf_counter()
        peak, outputs = machine.peak_memory(call)
        first_call_seconds = time.perf_counter() - start  # a compiler's work included
        verdict = truth.check(outputs, who, slack)
        del outputs
        known = first_call_seconds
        if known > LONG_PAIR_SECONDS and contender.full_only:  # it may have compiled
            known = clocked(call)[0]
            budget.excuse(max(0.0, first_call_seconds - known))
        alone = known if contender is REFERENCE else truth.formula_seconds
        known += ledger.reference_seconds or alone
        seconds = SECONDS_A_ROW[workload.size]
        most = 1 if contender is REFERENCE and known > LONG_PAIR_SECONDS else MOST_ROUNDS
        pairs, last = race(call, reference_call, benchmark, seconds, known, most, budget)
        ledger.reference_seconds = statistics.median(pairs.reference)
        truth.check(last, f"{who} (its last timed run)", slack)
    row = {
        "subject": workload.subject,
        "shape": workload.shape,
        "dtype": workload.dtype_name,
        "direction": workload.direction,
        "backend": contender.name,
        **pairs.summary(),
        "first_call_s": first_call_seconds,
        # the compiler's own memory would be counted
        "peak_MiB": None if contender.full_only or peak is None else peak / 2**20,
        **work.achieved(pairs.summary()["median_ms"], workload.dtype_name),
        **asdict(verdict),
    }
    benchmark.extra_info.update(row)
    ledger.rows.append(row)
