"""`pytest bench --benchmark [--quick] [--results]`: the options, the parameters, the last table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bench import machine, summary
from bench.budget import Budget, OverBudget
from bench.comparison import Ledger, compare

RESULTS = Path(__file__).parent / "results"
PARTS = ("operators", "networks", "end_to_end")
LEDGER = pytest.StashKey[Ledger]()
LOAD = pytest.StashKey["machine.Load | None"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "benchmarks of c2d_kernels and c2d_models")
    group.addoption(
        "--benchmark",
        action="store_true",
        default=False,
        help="Time the benchmarks; without it each body runs once, as a test, at quick sizes.",
    )
    group.addoption(
        "--quick",
        action="store_true",
        default=False,
        help="With --benchmark: small shapes and short runs (what CI runs).",
    )
    group.addoption(
        "--results",
        action="store_true",
        default=False,
        help="With --benchmark: write bench/results/<device>.json (<device>-quick.json).",
    )
    for part in PARTS:
        group.addoption(
            f"--{part.replace('_', '-')}",
            action="store_true",
            default=False,
            help=f"Only bench/{part}; these options add up.",
        )
    group.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="Where to run (default: cpu)."
    )


def timed(config: pytest.Config) -> bool:
    return bool(config.getoption("--benchmark", default=False))


def size(config: pytest.Config) -> str:
    return "full" if timed(config) and not config.getoption("--quick") else "quick"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sides(by_size): the sides of images, quick and full.")
    config.addinivalue_line("markers", "race(workloads, contenders): the rows a benchmark fills.")
    device = config.getoption("--device", default="cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda needs a CUDA device, and torch sees none.")
    machine.use(device)
    config.stash[LEDGER] = Ledger()
    config.stash[LOAD] = machine.Load.read()
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("bench needs pytest-benchmark: pip install 'c2d-isr[bench]'.")
    if not timed(config):
        if config.getoption("--results", default=False):
            raise pytest.UsageError("--results stores measured times: add --benchmark.")
        config.option.benchmark_disable = True
        return
    if config.getoption("numprocesses", default=None):
        raise pytest.UsageError("--benchmark measures one thing at a time: run it without -n.")
    config.option.benchmark_quiet = True  # its table has no ratios; ours follows below
    if config.getoption("--results"):
        RESULTS.mkdir(exist_ok=True)
        config.option.benchmark_json = results_file(config)


def results_file(config: pytest.Config) -> Path:
    suffix = "-quick" if size(config) == "quick" else ""
    return RESULTS / f"{machine.device_slug()}{suffix}.json"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the parts asked for; where time is taken, not the tests of the suite itself."""
    parts = [part for part in PARTS if config.getoption(f"--{part}", default=False)]
    if not parts and not timed(config):
        return
    folders = [RESULTS.parent / part for part in parts or PARTS]
    wanted = [item for item in items if any(folder in item.path.parents for folder in folders)]
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = wanted


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = size(metafunc.config)
    sides = metafunc.definition.get_closest_marker("sides")
    if sides is not None:
        metafunc.parametrize("side", sides.args[0][wanted])
    marker = metafunc.definition.get_closest_marker("race")
    if marker is None:
        return
    rows = [
        pytest.param(workload, contender, id=f"{workload.label}-{contender.name}")
        for workload in marker.kwargs["workloads"]
        for contender in marker.kwargs["contenders"]
        if workload.size == wanted and not (contender.full_only and wanted == "quick")
    ]
    metafunc.parametrize(("workload", "contender"), rows)


@pytest.fixture
def fill_row(request: pytest.FixtureRequest, benchmark):
    """`fill_row(workload, contender)`: skip what is absent or takes too long, refuse what is wrong,
    time the rest.
    """
    ledger = request.config.stash[LEDGER]

    def fill(workload, contender) -> None:
        reason = contender.absent(workload)
        if reason:
            ledger.leave_out(contender, workload, reason)
            pytest.skip(f"{contender.name} is absent: {reason}")
        try:
            compare(workload, contender, benchmark, ledger)
        except OverBudget as error:
            pytest.skip(f"left out: {error}")
        except Exception as error:
            if contender.ours:
                raise
            pytest.xfail(f"{contender.name} is refused: {error}")

    return fill


@pytest.fixture
def bench_size(pytestconfig: pytest.Config) -> str:
    """ "quick" or "full"."""
    return size(pytestconfig)


@pytest.fixture
def budget_of(request: pytest.FixtureRequest):
    """`with budget_of(row, seconds) as budget`: rows of other tables; skips what is left out."""

    @contextmanager
    def budgeted(row: str, seconds: float) -> Iterator[Budget]:
        try:
            with request.config.stash[LEDGER].row(row, seconds) as budget:
                yield budget
        except OverBudget as error:
            pytest.skip(f"left out: {error}")

    return budgeted


@pytest.fixture
def others(request: pytest.FixtureRequest):
    """`others(kind)`: the rows entered so far into that table."""
    return lambda kind: request.config.stash[LEDGER].others.get(kind, [])


@pytest.fixture
def enter(request: pytest.FixtureRequest):
    """`enter(kind, benchmark, **row)`: a row of another table than the races'."""

    def put(kind: str, benchmark, **row: object) -> None:
        benchmark.extra_info.update({"kind": kind, **row})
        request.config.stash[LEDGER].others.setdefault(kind, []).append(row)

    return put


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session):
    """An interrupted run stores what it has: not the benchmark that it was interrupted in."""
    for benchmark in session.config._benchmarksession.benchmarks:
        if not benchmark.stats.data:
            benchmark.fixture.has_error = True
    yield  # a wrapper like the plugin's own, which stores the rows


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, object]:
    """In place of the plugin's: it names the host, and not the threads or torch."""
    return machine.describe()


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, object]:
    return machine.commit()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict) -> None:
    """Keep what a reader can use: statistics, our row, and what was not timed, and why."""
    ledger = config.stash[LEDGER]
    output_json["machine_info"]["others_share"] = others_share(config)
    output_json["machine_info"] |= machine.ceilings()
    output_json |= {"size": size(config), "refused": ledger.refused, "absent": ledger.absent}
    output_json["left_out"] = [asdict(row) for row in ledger.left_out]
    output_json["slowest"] = dict(ledger.slowest())
    for entry in output_json["benchmarks"]:
        for unreadable in ("params", "param", "options"):
            entry.pop(unreadable, None)
        entry["stats"].pop("data", None)


def others_share(config: pytest.Config) -> float | None:
    before, after = config.stash[LOAD], machine.Load.read()
    return before.others_share_until(after) if before and after else None


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter, config: pytest.Config):
    yield  # failures, skips and the short summary first: the table is the last word
    if not timed(config):
        return
    ledger = config.stash[LEDGER]
    terminalreporter.section("benchmarks")
    here = machine.describe() | (machine.ceilings() if ledger.rows else {})
    for line in summary.lines(ledger, here, others_share(config)):
        terminalreporter.write_line(line)
    if config.getoption("--results") and ledger.rows:
        terminalreporter.write_line(f"written: {results_file(config)}")
