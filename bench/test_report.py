"""The report: its tables, growth exponents, comparison of two runs, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from bench import readme, report, scores
from c2d_models import create
from c2d_models.evaluation.scoring import evaluate
from c2d_models.networks import checkpoint
from c2d_models.pretrained import loading

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
        "absent": {"it is not installed": {"mamba_ssm": {"selective_scan": 3}}},
        "left_out": [{"row": "auto on hit_sir", "seconds": 91.25, "reason": "it took too long"}],
        "slowest": {"auto on hit_sir": 91.25, "reference on n": 7.0},
        "benchmarks": [{"extra_info": each} for each in rows],
    } | changes
    path.write_text(json.dumps(run), encoding="utf-8")
    return path


@pytest.fixture
def results(tmp_path):
    growth = [
        {
            "kind": "growth",
            "network": "n",
            "side": side,
            "median_ms": ms,
            "user_s": ms / 500,
            "peak_MiB": side**2 / 64,
        }
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
    time, busy, _ = (line for line in report.growth_table(results) if line.startswith("| n "))
    assert time == "| n | 0.09 | 0.1 | 0.4 | 1.6 | 1.00 |"
    assert busy == "| n | 0.18 | 0.2 | 0.8 | 3.2 | 1.00 |"


def test_readme_says_how_many_times_as_long_the_others_take(results):
    """The reference takes 4 times our time, ONNX Runtime, twice as fast as it, 2 times."""
    table = readme.speed_table(results)
    assert "| `swinir_l` | 320x180 to 1280x720 | 0.50 s | 4.0 | - | 2.0 | - |" in table


def test_document_names_machine_commit_and_what_is_absent(results):
    text = report.document([results])
    for part in (
        *("Some CPU; 2 threads of 4 cores", "commit 0123456789ab, 2026-01-02", "200 GFLOP/s"),
        "absent: mamba_ssm from 3 rows of selective_scan: it is not installed",
        "- left out after 91.2 s: auto on hit_sir: it took too long",
        "\nSlowest rows, with their checks: 91.2 s auto on hit_sir; 7.0 s reference on n.\n",
        "| `hit_sir` | 4 | 791,540 |",
        *("not in this run, which was stopped or narrowed: ", ", srformer_l, mambairv2_l, "),
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


def stored_scores(weights, digest, *rows):
    weights.write_bytes(b"weights")
    keys = ("model", "params", "dataset", "scale", "psnr_y")
    results = [dict(zip(keys, row, strict=True)) for row in rows]
    content = {"weights_sha256": digest, "results": results}
    weights.with_suffix(".scores.json").write_text(json.dumps(content))


def test_scores_are_those_that_were_stored(tmp_path):
    digest = hashlib.sha256(b"weights").hexdigest()
    stored_scores(
        tmp_path / "net.safetensors",
        digest,
        ("bicubic", 0, "Set14", 4.0, 26.0),
        ("net", 12345, "Set14", 4.0, 27.814),
        ("net", 12345, "Set5", 2.0, 37.0349),
        ("net", 12345, "Urban100", 2.5, 30.0),
    )
    stored_scores(tmp_path / "old.safetensors", "of others", ("old", 1, "Set5", 2.0, 99.0))
    assert readme.scores_table(tmp_path) == [
        "| shipped | parameters | Set5 x2 | Set14 x4 | Urban100 x2.5 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| bicubic |  |  | 26.00 |  |",
        "| `net` | 12,345 | 37.03 | 27.81 | 30.00 |",
    ]


def test_the_readme_shows_the_scores_of_what_is_shipped():
    text = (report.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.filled(text, "scores", readme.scores_table()) == text, "make scores BENCHMARKS="


def test_the_document_shows_every_network():
    text = (report.ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    assert readme.filled(text, "networks", readme.networks_table()) == text, (
        "python -m bench.readme"
    )


def test_scoring_writes_beside_the_weights_and_into_the_readme(tmp_path, monkeypatch, capsys):
    photo = report.ROOT / "examples" / "photo.png"
    (tmp_path / "Set5").mkdir()
    (tmp_path / "Set5" / "photo.png").write_bytes(photo.read_bytes())
    weights = tmp_path / "weights"
    weights.mkdir()
    config = {"depths": [1], "dim": 8, "num_heads": 2}
    checkpoint.save(create("swinir_l_tiny", 3, config=config), weights / "small.safetensors")
    monkeypatch.setattr(loading, "WEIGHTS", weights)
    (tmp_path / "R.md").write_text("<!-- scores: begin -->\nold\n<!-- scores: end -->\n")
    assert scores.main([str(tmp_path / "Set5"), "--readme", str(tmp_path / "R.md")]) == 0
    stored = (weights / "small.scores.json").read_text()
    assert str(tmp_path) not in stored and "photo" not in stored
    rows = json.loads(stored)["results"]
    assert [(row["model"], row["dataset"], row["scale"]) for row in rows] == [
        ("bicubic", "Set5", 3.0),
        ("small", "Set5", 3.0),
    ]
    expected = evaluate(None, tmp_path / "Set5", 3).psnr_y
    assert rows[0]["psnr_y"] == expected
    lines = (tmp_path / "R.md").read_text().splitlines()
    assert lines[1] == "| shipped | parameters | Set5 x3 |" and lines[-1] == "<!-- scores: end -->"
    assert lines[3] == f"| bicubic |  | {expected:.2f} |"
    capsys.readouterr()
    assert scores.main([str(tmp_path / "none"), "--readme", str(tmp_path / "R.md")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "R.md").read_text().splitlines() == lines


def test_results_from_before_rows_had_budgets_are_read(tmp_path):
    path = stored(tmp_path / "old.json", [row()])
    run = json.loads(path.read_text())
    del run["left_out"], run["slowest"]
    path.write_text(json.dumps(run))
    text = report.document([report.Results(path)])
    assert "left out after" not in text and "Slowest" not in text


@pytest.mark.parametrize("content", [None, "{", "{}"], ids=["missing", "not JSON", "other JSON"])
def test_unreadable_results_are_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert report.main([str(path)]) == 2
    assert "a file of results cannot be read" in capsys.readouterr().err
