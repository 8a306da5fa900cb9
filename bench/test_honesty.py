"""Benchmarks refuse what they must, and the stopwatch and its arithmetic are fair."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bench import comparison, summary
from bench.budget import RACE_SECONDS
from bench.comparison import Ledger, compare
from bench.contenders import AUTO, COMPILED, REFERENCE, Contender, peer
from bench.correctness import RoundEveryOperation, Truth, WrongResult, worst_error
from bench.machine import Load
from bench.networks import workloads as networks
from bench.operators import races, test_channel_correlation
from bench.timing import Pairs, race, rounds_for
from bench.workloads import Workload, table


@pytest.fixture(autouse=True)
def short_races(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SECONDS_A_ROW", {"quick": 0.01})
    monkeypatch.setitem(RACE_SECONDS, "quick", 600.0)  # enough on a busy machine


class Stopwatch:
    """pytest-benchmark's fixture as far as `race` uses it, always enabled, counting its rounds."""

    disabled = False
    has_error = False

    def __init__(self) -> None:
        self.rounds = 0
        self.extra_info: dict[str, object] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, call, setup, rounds, iterations):
        for _ in range(rounds):
            setup()
            call()
            self.rounds += 1
            self.stats.stats.data.append(1.0)


def quick(workloads: list[Workload]) -> list[Workload]:
    """Those of a quick run."""
    return [workload for workload in workloads if workload.size == "quick"]


OPERATORS = [
    pytest.param(workload, id=f"{workload.subject}-{workload.label}")
    for workloads in races().values()
    for workload in quick(workloads)[-2:]  # one shape in both directions, or both dtypes
]
NETWORKS = [
    pytest.param(workload, id=f"{workload.subject}-{workload.label}")
    for workload in quick(networks.workloads("hiet_swinir_tiny", "hiet_swinir_tiny"))
]


def scaled(factor: float):
    """A build that multiplies the right output by `factor`."""

    def build(workload, tensors):
        return lambda tensors: workload.function(tensors) * factor

    return build


@pytest.mark.parametrize("workload", OPERATORS + NETWORKS)
def test_scaled_output_is_refused_and_not_timed(workload: Workload) -> None:
    factor = 1.001 if workload.dtype == torch.float32 else 1.3
    stopwatch, ledger = Stopwatch(), Ledger()
    with pytest.raises(WrongResult, match=r"refused and not timed: (output|gradient)"):
        compare(workload, Contender("broken", build=scaled(factor)), stopwatch, ledger)
    assert stopwatch.rounds == 0
    assert stopwatch.has_error
    assert not ledger.rows
    assert len(ledger.refused) == 1


def correlation(dtype: torch.dtype = torch.float32, backward: bool = False) -> Workload:
    """A small workload to break in many ways."""
    shapes = {"quick": {"16x16 w8": {"height": 16, "width": 16, "window": 8}}}
    direction = "forward+backward" if backward else "forward"
    make = test_channel_correlation.channel_correlation
    (workload,) = table("channel_correlation", shapes, make, (dtype,), (direction,))
    return workload


def wrong_gradient(workload, tensors):
    def function(tensors: dict[str, Tensor]) -> Tensor:
        out = workload.function(tensors)
        out.register_hook(lambda gradient: gradient * 1.001)
        return out

    return function


def not_a_number(workload, tensors):
    def function(tensors: dict[str, Tensor]) -> Tensor:
        out = workload.function(tensors)
        out.view(-1)[-1] = math.nan
        return out

    return function


def another_shape(workload, tensors):
    return lambda tensors: workload.function(tensors)[:, 1:]


@pytest.mark.parametrize(
    ("build", "backward", "sentence"),
    [
        pytest.param(wrong_gradient, True, "gradient of [qv] differs", id="scaled-gradient"),
        pytest.param(not_a_number, False, "differs .* by inf", id="one-nan"),
        pytest.param(another_shape, False, "got shape", id="shape"),
    ],
)
def test_wrong_results_are_refused(build, backward: bool, sentence: str) -> None:
    stopwatch = Stopwatch()
    with pytest.raises(WrongResult, match=sentence):
        compare(correlation(backward=backward), peer("broken", build), stopwatch, Ledger())
    assert stopwatch.rounds == 0


def test_right_at_first_and_wrong_while_timed_is_refused() -> None:
    calls = []

    def tiring(workload, tensors):
        def function(tensors: dict[str, Tensor]) -> Tensor:
            calls.append(None)
            return workload.function(tensors) * (1 if len(calls) == 1 else 2)

        return function

    ledger = Ledger()
    with pytest.raises(WrongResult, match="last timed run"):
        compare(correlation(), peer("tiring", tiring), Stopwatch(), ledger)
    assert not ledger.rows


def test_a_crash_is_named_and_not_stored() -> None:
    def crashing(workload, tensors):
        def function(tensors: dict[str, Tensor]) -> Tensor:
            raise RuntimeError("index out of bounds\nand a long trace")

        return function

    stopwatch, ledger = Stopwatch(), Ledger()
    with pytest.raises(RuntimeError):
        compare(correlation(), peer("crashing", crashing), stopwatch, ledger)
    (reason,) = ledger.refused.values()
    assert reason.endswith("raised RuntimeError: index out of bounds")
    assert stopwatch.has_error


def test_only_our_own_failures_turn_a_run_red() -> None:
    assert REFERENCE.ours
    assert AUTO.ours
    assert not COMPILED.ours
    assert not peer("SDPA").ours


def test_a_peer_may_be_less_exact_but_not_wrong() -> None:
    bound = 2e-7  # about the rule's for this workload
    for factor, timed in ((1 + 6 * bound, True), (1 + 60 * bound, False)):
        ledger = Ledger()
        if timed:
            compare(correlation(), peer("rough", scaled(factor)), Stopwatch(), ledger)
            (row,) = ledger.rows
            assert row["bound"] < row["error"] <= 8 * row["bound"]
            assert "rough*" in summary.cells(row)
        else:
            with pytest.raises(WrongResult):
                compare(correlation(), peer("wrong", scaled(factor)), Stopwatch(), ledger)
        ours = Contender("ours", build=scaled(factor))
        with pytest.raises(WrongResult):
            compare(correlation(), ours, Stopwatch(), Ledger())


def test_writing_to_an_input_is_refused() -> None:
    def careless(workload, tensors):
        def function(tensors: dict[str, Tensor]) -> Tensor:
            out = workload.function(tensors)
            tensors["q"].zero_()
            return out

        return function

    with pytest.raises(WrongResult):
        compare(correlation(), peer("careless", careless), Stopwatch(), Ledger())

    def tidy(workload, tensors):
        def function(tensors: dict[str, Tensor]) -> Tensor:
            tensors["q"].mul_(1)  # the figures are still reported, and the test fails
            return workload.function(tensors)

        return function

    with pytest.raises(WrongResult, match="wrote to its input q"):
        compare(correlation(), peer("tidy", tidy), Stopwatch(), Ledger())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_right_results_are_timed(dtype: torch.dtype) -> None:
    stopwatch, ledger = Stopwatch(), Ledger()
    compare(correlation(dtype, backward=True), REFERENCE, stopwatch, ledger)
    (row,) = ledger.rows
    assert row["rounds"] == stopwatch.rounds >= 3
    assert row["error"] <= row["bound"] < torch.finfo(dtype).eps ** 0.5 * 3
    assert stopwatch.extra_info == row


def test_a_formula_that_loses_half_its_digits_is_no_yardstick() -> None:
    exact, rough = {"output": (torch.ones(2).double(),)}, {"output": (torch.tensor([1.0, 1.01]),)}
    with pytest.raises(WrongResult, match="no yardstick"):
        Truth.of(lambda: exact, [lambda: rough], torch.float32)


def test_the_worst_yardstick_sets_the_bound() -> None:
    def off_by(error: float):
        return lambda: {"output": (torch.tensor([1 + error]),)}

    exact = {"output": (torch.ones(1).double(),)}
    runs = [off_by(2.0**-20), off_by(2.0**-18), off_by(0.0)]
    truth = Truth.of(lambda: exact, runs, torch.float32)
    assert truth.bounds["output"] == 2 * 2.0**-18 + 2.0**-23
    assert truth.check(off_by(2.0**-17)(), "it").error == 2.0**-17
    with pytest.raises(WrongResult, match="it is refused"):
        truth.check(off_by(2.0**-16)(), "it")


def test_a_lucky_number_is_no_bound_for_others() -> None:
    exact = {"map": (torch.ones(64).double(),), "bias": (torch.ones(1).double(),)}
    lucky = {"map": (torch.full((64,), 1 + 2.0**-20),), "bias": (torch.ones(1),)}
    truth = Truth.of(lambda: exact, [lambda: lucky], torch.float32)
    assert truth.bounds == {"map": 2.0**-19 + 2.0**-23, "bias": 2.0**-19 + 2.0**-23}
    exact, lucky = (
        {name: (x[0][:1].expand(64),) for name, x in each.items()} for each in (exact, lucky)
    )
    many = Truth.of(lambda: exact, [lambda: lucky], torch.float32)
    assert many.bounds["bias"] == 2.0**-23, "64 numbers are not lucky together"


def test_rounding_every_operation() -> None:
    one, little = torch.tensor([1.0]), 2.0**-8  # half an ulp of bfloat16 at 1, rounded to even
    with RoundEveryOperation(torch.bfloat16, exact=[one]):
        kept = one + little + little
        lost = torch.ones(1) + little + little
        mixed = torch.ones(1) * (one + little)
    assert kept.item() == 1 + 2 * little
    assert lost.item() == 1
    assert mixed.item() == 1


@pytest.mark.parametrize(
    ("outputs", "truths", "error"),
    [
        pytest.param([[1.0, 2.2]], [[1.0, 2.0]], 0.1, id="relative-to-the-largest"),
        pytest.param([[1.0], [5.5]], [[1.0], [5.0]], 0.1, id="worst-of-a-group"),
        pytest.param([[0.0]], [[0.0]], 0.0, id="zero-is-zero"),
        pytest.param([[1e-9]], [[0.0]], math.inf, id="something-instead-of-zero"),
        pytest.param([[1e-9], [1.0]], [[0.0], [1.0]], 1e-6, id="zero-beside-others"),
        pytest.param([[math.nan]], [[1.0]], math.inf, id="nan"),
        pytest.param([[math.inf]], [[1.0]], math.inf, id="inf"),
    ],
)
def test_worst_error(outputs, truths, error: float) -> None:
    def tensors(values) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(value, dtype=torch.float64) for value in values)

    assert worst_error("x", tensors(outputs), tensors(truths)) == pytest.approx(error)


def test_contender_and_reference_run_in_turns() -> None:
    order: list[str] = []
    stopwatch = Stopwatch()
    pairs, last = race(
        lambda: order.append("contender") or len(order),
        lambda: order.append("reference"),
        stopwatch,
        seconds=1e-3,
    )
    assert len(order) % 2 == 0
    assert order == ["reference", "contender"] * (len(order) // 2)
    assert last == len(order)
    assert len(pairs.contender) == len(pairs.reference) == stopwatch.rounds


def test_what_is_long_and_ran_before_is_not_warmed_up_again() -> None:
    calls: list[int] = []
    stopwatch = Stopwatch()
    race(lambda: calls.append(1), lambda: None, stopwatch, seconds=0.5, known=60.0)
    assert len(calls) == stopwatch.rounds == 2


@pytest.mark.parametrize(
    ("pair", "rounds"), [(1e-4, 300), (0.11, 6), (0.2, 5), (0.4, 3), (4.9, 3), (60.0, 2)]
)
def test_a_longer_pair_has_fewer_rounds(pair: float, rounds: int) -> None:
    assert rounds_for(pair, seconds=0.7) == rounds


def test_ratio_is_the_median_over_pairs() -> None:
    # the machine slows down threefold after two rounds: the pairs do not care
    pairs = Pairs(contender=[1.0, 1.0, 3.0, 3.0, 3.0], reference=[2.0, 2.0, 6.0, 6.0, 9.0])
    summary = pairs.summary()
    assert summary["ratio"] == 2
    assert (summary["ratio_q1"], summary["ratio_q3"]) == (2, 2)
    assert summary["median_ms"] == 3000
    assert summary["reference_median_ms"] == 6000


def test_share_of_other_processes() -> None:
    before = Load(everybody=100, ours=10, available=200)
    after = Load(everybody=160, ours=30, available=300)  # 60 s busy, 20 of them ours, of 100 s
    assert before.others_share_until(after) == pytest.approx(0.4)
