"""The report: its tables, growth exponents, comparison of two runs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import readme, report

MACHINE = {
    "processor": "Some CPU",
    "isa": "AVX2",
    "threads": 2,
    "cores": 4,
    "pinned_to": [0, 1],
    "system": "Linux x86_64",
    "python": "3.11.0",
    "torch": "2.13.0",
    "date": "2026-01-02T03:04:05+00:00",
    "product_float32_GFLOP_s": 200.0,
    "product_bfloat16_GFLOP_s": 400.0,
    "copy_GB_s": 40.0,
    "others_share": 0.01,
}


def row(subject="swinir_l", backend="auto", ratio=4.0, **changes):
    """One race; its quartiles are 5 % to each side."""
    return {
        "subject": subject,
        "shape": "320x180 to 1280x720",
        "dtype": "float32",
        "direction": "forward",
        "backend": backend,
        "median_ms": 2000 / ratio,
        "ratio": ratio,
        "ratio_q1": 0.95 * ratio,
        "ratio_q3": 1.05 * ratio,
        "GFLOP_s": 100.0,
        "GB_s": 10.0,
        "share": 0.5,
        "peak_MiB": 3.0,
        "error": 1e-7,
        "bound": 1e-6,
    } | changes


def stored(path: Path, rows: list[dict], **changes) -> Path:
    run = {
        "machine_info": MACHINE,
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "size": "full",
        "refused": {},
        "absent": {"mamba_ssm (selective_scan)": "it is not installed"},
        "benchmarks": [{"extra_info": each} for each in rows],
    } | changes
    path.write_text(json.dumps(run))
    return path


@pytest.fixture
def results(tmp_path):
    growth = [
        {"kind": "growth", "network": "n", "side": side, "median_ms": ms, "peak_MiB": side**2 / 64}
        for side, ms in ((64, 90.0), (256, 100.0), (512, 400.0), (1024, 1600.0))
    ]
    rows = [row(backend="reference", ratio=1.0), row(), row(backend="ONNX Runtime", ratio=2.0)]
    return report.Results(stored(tmp_path / "some-cpu.json", rows + growth))


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_exponent_is_the_slope_between_logarithms(power):
    points = [(size, 3 * size**power) for size in (10, 100, 1000)]
    assert report.exponent(points) == pytest.approx(power)
    assert report.exponent(points[:1]) is None


def test_small_images_do_not_count_for_the_exponent(results):
    time, *_ = (line for line in report.growth_table(results) if line.startswith("| n "))
    assert time == "| n | 0.09 | 0.1 | 0.4 | 1.6 | 1.00 |"


def test_readme_says_how_many_times_as_long_the_others_take(results):
    """The reference takes 4 times our time, ONNX Runtime, twice as fast as it, 2 times."""
    table = readme.speed_table(results)
    assert "| `swinir_l` | 320x180 to 1280x720 | 0.50 s | 4.0 | - | 2.0 | - |" in table


def test_document_names_machine_commit_and_what_is_absent(results):
    text = report.document([results])
    for part in (
        *("Some CPU; 2 threads of 4 cores", "commit 0123456789ab, 2026-01-02", "200 GFLOP/s"),
        *("absent: mamba_ssm (selective_scan): it is not installed", "| `hit_sir` | 4 | 791,540 |"),
        *("Not measured on a GPU yet", "| 500 | 4.00 | 3.80-4.20 |"),
    ):
        assert part in text


def test_every_plot_is_drawn(results, tmp_path):
    plots = pytest.importorskip("bench.plots", reason="matplotlib is not installed")
    for kind in report.plots_of(results):
        plots.draw(kind, results, tmp_path / f"{kind}.png")
        assert (tmp_path / f"{kind}.png").read_bytes()[:4] == b"\x89PNG"


def test_slower_by_more_than_the_noise_is_named(results, tmp_path, capsys):
    old = tmp_path / "some-cpu.json"
    within = stored(tmp_path / "within.json", [row(backend="reference", ratio=1.0), row(ratio=3.7)])
    slower = stored(tmp_path / "slower.json", [row(backend="reference", ratio=1.0), row(ratio=3.0)])
    assert report.main([str(slower), "--against", str(within)]) == 1
    said = capsys.readouterr().out
    assert said.startswith(
        "slower by 19%: swinir_l 320x180 to 1280x720 float32 forward auto: 3.70x"
    )
    assert report.main([str(within), "--against", str(slower)]) == 0
    assert capsys.readouterr().out == "nothing is slower than the noise explains.\n"
    assert report.main([str(within), "--against", str(old)]) == 1
    said = capsys.readouterr().out
    assert "slower" not in said and "no longer timed: swinir_l" in said


def test_readme_keeps_everything_outside_the_marks():
    begin, end = "<!-- networks: begin -->", "<!-- networks: end -->"
    text = readme.filled(f"before\n{begin}\nold\n{end}\nafter\n", "networks", ["| new |"])
    assert text == f"before\n{begin}\n| new |\n{end}\nafter\n"
    with pytest.raises(ValueError, match="no place for a table"):
        readme.filled("no marks\n", "networks", ["| new |"])


def test_scores_are_those_that_were_stored(tmp_path):
    entry = {"model": "net", "params": 12345, "dataset": "Set14", "scale": 4.0, "psnr_y": 27.814}
    bicubic = entry | {"model": "bicubic", "params": 0, "psnr_y": 26.0}
    other = entry | {"dataset": "Set5", "scale": 2.0, "psnr_y": 37.0349}
    (tmp_path / "a.json").write_text(json.dumps([bicubic, entry, other]))
    assert readme.scores_table(tmp_path) == [
        "| shipped | parameters | Set5 x2 | Set14 x4 |",
        "| --- | ---: | ---: | ---: |",
        "| bicubic |  |  | 26.00 |",
        "| `net` | 12,345 | 37.03 | 27.81 |",
    ]


@pytest.mark.parametrize("content", [None, "{", "{}"], ids=["missing", "not JSON", "other JSON"])
def test_unreadable_results_are_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert report.main([str(path)]) == 2
    assert "a file of results cannot be read" in capsys.readouterr().err
