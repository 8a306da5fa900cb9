"""The command line: exit codes, one sentence for each mistake, what a run over a folder says."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import c2d_kernels
from c2d_models import create
from c2d_models.cli import main
from c2d_models.evaluation import results as scores
from c2d_models.evaluation import run as evaluation
from c2d_models.images import image_file
from c2d_models.networks import checkpoint
from c2d_models.pretrained import loading
from c2d_models.training import trainer as training
from c2d_models.upscaling import half_precision

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny checkpoints with random weights: x2.safetensors and any.safetensors."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, scale in (("x2", 2), ("any", None)):
        net = create("swinir_l_tiny", scale, config={"depths": [1], "dim": 8, "num_heads": 2})
        checkpoint.save(net, folder / f"{name}.safetensors", {"steps": 7})
    (folder / "noise.safetensors").write_bytes(b"\1" * 99)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models):
    """A folder to work in: photo.png (10x8), deep.png (16 bit, alpha), broken.png, text.txt."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("photo.png")
    deep = pixels.astype(np.uint16) * 257
    image_file.write("deep.png", image_file.ImageData(deep, deep[..., 0]))
    Path("broken.png").write_bytes(Path("photo.png").read_bytes()[:120])
    Path("text.txt").write_text("x", encoding="utf-8")
    for name in ("x2", "any", "noise"):
        os.symlink(models / f"{name}.safetensors", f"{name}.safetensors")
    return tmp_path


def run(command, capsys):
    """Exit code, what was printed, and what was complained."""
    code = main(command.split())
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize(
    ("options", "size"),
    [
        pytest.param("--model x2.safetensors", "20x16", id="discrete, its own scale"),
        pytest.param("--model any.safetensors", "40x32", id="continuous, 4 by default"),
        pytest.param("--model any.safetensors --scale 2.7", "27x22", id="scale"),
        pytest.param("--model any.safetensors --size 33x9 --stretch", "33x9", id="size"),
        pytest.param("--model any.safetensors --size 33x", "33x26", id="width"),
        pytest.param("--model any.safetensors --fit 999x16", "20x16", id="fit"),
        pytest.param("--model any.safetensors --long-side 35", "35x28", id="long side"),
        pytest.param("--model any.safetensors --scale 5.5", "55x44", id="two passes"),
        pytest.param("--model x2.safetensors --scale 8", "80x64", id="three passes"),
        pytest.param("--model x2.safetensors --tile 0 --device cpu", "20x16", id="tile and device"),
    ],
)
def test_upscale_one_photo(here, capsys, options, size):
    code, out, err = run(f"upscale photo.png -o out.png {options}", capsys)
    assert (code, err) == (0, "")
    assert f"photo.png -> out.png  {size}" in out
    assert "x".join(map(str, Image.open("out.png").size)) == size


def test_a_lossy_file_has_a_model_of_its_own(here, capsys):
    Image.open("photo.png").convert("RGB").save("photo.jpg", quality=60)
    code, out, err = run("upscale photo.png photo.jpg -o out/ --scale 2", capsys)
    assert (code, err) == (0, "")
    first, second, _ = out.splitlines()
    assert first.startswith("photo.png") and "by hiet_swinir_continuous (lossless input)" in first
    assert second.startswith("photo.jpg") and "by hiet_swinir_photo (lossy input)" in second
    code, out, _ = run("upscale photo.jpg -o asked.png --scale 2 --model tiny", capsys)
    assert "by hiet_swinir_tiny_continuous (lossy input)" in out
    code, out, _ = run("upscale photo.jpg -o named.png --model any.safetensors", capsys)
    assert "by" not in out


@pytest.mark.parametrize(
    ("dtype", "measured", "warning"),
    [
        ("bfloat16", 1.2, ""),
        (
            "bfloat16",
            3.21,
            "c2d: float32 is faster on this processor: bfloat16 took 3.2 times as long on a small "
            "tile.\n",
        ),
        ("float16", 90.0, "float16 took 90.0 times as long"),
        ("float32", None, ""),
    ],
)
def test_a_slower_dtype_is_warned_of_once(here, capsys, monkeypatch, dtype, measured, warning):
    asked = []
    monkeypatch.setattr(half_precision, "slowdown", lambda *a: asked.append(a[1]) or measured)
    Path("other.png").write_bytes(Path("photo.png").read_bytes())
    command = "upscale photo.png other.png -o out/ --model x2.safetensors --device cpu"
    code, out, err = run(f"{command} --dtype {dtype}", capsys)
    assert code == 0 and "2 written" in out
    assert err == warning if not warning or warning.startswith("c2d") else warning in err
    assert asked == ([] if measured is None else [getattr(torch, dtype)])


@pytest.mark.parametrize("scale", [2, None])
@pytest.mark.parametrize(
    ("factor", "pace", "sides"),
    [
        pytest.param(2.5, 1e-5, [16, 16, 64, 64], id="once"),
        pytest.param(2.5, 2e-6, [16, 16, *[64, 64] * 2], id="short runs again"),
        pytest.param(50.0, 1e-5, [16, 16], id="hopeless on a small patch"),
    ],
)
def test_slowdown_is_measured_on_the_network(monkeypatch, scale, factor, pace, sides):
    """A network that needs `pace` seconds a pixel on our clock, `factor` times that in half."""
    clock, seen, threads, before = [0.0], [], set(), torch.get_num_threads()
    monkeypatch.setattr(half_precision.time, half_precision.CLOCK, lambda: clock[0])

    class Slow(torch.nn.Module):
        def forward(self, x, size=None):
            half = torch.is_autocast_enabled("cpu")
            threads.add(torch.get_num_threads())
            seen.append(x.shape[-1])
            clock[0] += x[0, 0].numel() * pace * (factor if half else 1)
            assert size == (None if scale else (3 * x.shape[-1],) * 2)
            return x

    net = Slow()
    net.scale = scale
    assert half_precision.slowdown(net, torch.bfloat16, 3.0) == pytest.approx(factor)
    assert seen == sides
    assert threads == {1} and torch.get_num_threads() == before


def test_a_network_that_restores_keeps_the_size_and_says_so(here, capsys):
    config = {"dim": 8, "num_heads": 2, "depths": [2], "upsampler": "", "in_channels": 1}
    checkpoint.save(create("swinir_l", 1, config=config), "restore.safetensors")
    command = "upscale photo.png --model restore.safetensors"
    code, _, err = run(f"{command} -o same.png", capsys)
    assert (code, err) == (0, "c2d: restore.safetensors restores pictures: they keep their size.\n")
    assert Image.open("same.png").size == Image.open("photo.png").size
    code, _, err = run(f"{command} -o more.png --scale 2", capsys)
    assert code == 2
    assert "restores pictures at their size: leave out the scale and the size" in err


def test_16_bits_and_alpha_survive(here, capsys):
    assert run("upscale deep.png -o out.png --model any.safetensors", capsys)[0] == 0
    out = image_file.read("out.png")
    assert out.bit_depth == 16 and out.pixels.shape == (32, 40, 3) and out.alpha.shape == (32, 40)
    assert np.unique(out.pixels % 257).size > 20, "8-bit values spread over 16 bits"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("upscale none.png -o o.png --model x2.safetensors", "none.png does not exist"),
        (
            "upscale broken.png -o o.png --model x2.safetensors",
            "broken.png is truncated or damaged",
        ),
        ("upscale text.txt -o o.png --model x2.safetensors", "text.txt is not a PNG"),
        ("upscale photo.png -o photo.png --model x2.safetensors --overwrite", "never overwritten"),
        ("upscale photo.png -o o.bmp", "o.bmp ends in .bmp"),
        ("upscale photo.png -o text.txt/o.png", "text.txt is a file"),
        ("upscale photo.png -o o.png --scale 17", "scale is 17; it must be from 1 to 16"),
        ("upscale photo.png -o o.png --scale 0.9", "scale is 0.9"),
        ("upscale photo.png -o o.png --scale two", "--scale"),
        ("upscale photo.png -o o.png --size 20", "size is 20; write width x height"),
        ("upscale photo.png -o o.png --fit 20x", "fit is 20x; write width x height"),
        ("upscale photo.png -o o.png --size 20x16 --scale 2", "choose one"),
        ("upscale photo.png -o o.png --size 170x136 --model any.safetensors", "height 136 from 8"),
        ("upscale photo.png -o o.png --size 30x10 --model any.safetensors", "would distort"),
        ("upscale photo.png -o o.png --long-side 5 --model any.safetensors", "height 4 from 8"),
        ("upscale photo.png -o o.png --scale 3 --model x2.safetensors", "enlarges by 2 only"),
        ("upscale photo.png -o o.png --model none", "no model or file 'none'"),
        ("upscale photo.png -o o.png --model text.txt", "text.txt"),
        ("upscale photo.png -o o.png --model noise.safetensors", "noise.safetensors"),
        ("upscale photo.png -o o.png --quality 0 --model x2.safetensors", "quality is 0"),
        ("upscale photo.png -o o.png --tile x --model x2.safetensors", "tile is x"),
        ("upscale photo.png -o o.png --tile 8 --model x2.safetensors", "at least 64"),
        ("upscale photo.png -o o.png --dtype int8 --model x2.safetensors", "dtype is int8"),
        ("upscale photo.png -o o.png --device tpu --model x2.safetensors", "device is tpu"),
        ("upscale photo.png -o o.png --format bmp --model x2.safetensors", "format is bmp"),
        ("upscale photo.png -o o.png --metadata some", "metadata is some"),
        ("upscale photo.png -o o.png --max-pixels 0", "max-pixels is 0"),
        (
            "upscale photo.png -o o.png --max-pixels 79 --model x2.safetensors",
            "photo.png is too large",
        ),
        ("upscale photo.png", "no output is given"),
        ("upscale . -o o.png", "o.png names one picture, but the input is the folder ."),
        ("upscale", "Missing argument"),
        ("upscale photo.png -o o.png --bogus", "No such option"),
        ("enlarge photo.png", "No such command"),
        ("eval none", "none does not exist"),
        ("eval . --device tpu", "device is tpu"),
        ("train none.yaml", "none.yaml"),
        ("models none", "no model or file 'none'"),
    ],
    ids=lambda value: value if " -o" not in value else value.replace("upscale ", ""),
)
def test_mistakes_get_one_sentence_and_exit_code_2(here, capsys, command, sentence):
    before = sorted(here.rglob("*"))
    code, out, err = run(command, capsys)
    assert code == 2 and out == ""
    assert sentence in err and err.startswith("c2d: ") and err.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_a_folder_goes_on_past_a_broken_file(here, capsys):
    (here / "deep").mkdir()
    (here / "deep.png").rename("deep/deep.png")
    code, out, err = run("upscale . -o out --model x2.safetensors", capsys)
    assert code == 2
    assert "broken.png is truncated or damaged" in err
    assert out.splitlines()[-1] == "2 written, 0 skipped, 1 failed: broken.png"
    written = sorted(str(p.relative_to(here)) for p in (here / "out").rglob("*") if p.is_file())
    assert written == ["out/deep/deep.png", "out/photo.png"]


def test_existing_outputs_are_skipped_and_counted(here, capsys):
    command = "upscale photo.png deep.png -o out --model x2.safetensors"
    assert "2 written, 0 skipped" in run(command, capsys)[1]
    stamp = Path("out/photo.png").stat().st_mtime_ns
    code, out, _ = run(command, capsys)
    assert code == 0 and "0 written, 2 skipped, 0 failed" in out
    assert "out/photo.png exists, skipped" in out
    assert Path("out/photo.png").stat().st_mtime_ns == stamp
    assert "2 written, 0 skipped" in run(f"{command} --overwrite", capsys)[1]
    assert Path("out/photo.png").stat().st_mtime_ns != stamp


def test_format_and_quality_reach_the_file(here, capsys):
    for quality in (20, 95):
        options = f"--format jpg --quality {quality} --model x2.safetensors"
        assert run(f"upscale photo.png -o {quality} {options}", capsys)[0] == 0
    assert Image.open("20/photo.jpg").format == "JPEG"
    assert Path("20/photo.jpg").stat().st_size < Path("95/photo.jpg").stat().st_size


BUGS = [
    ("upscale photo.png -o o.png --model x2.safetensors", image_file, "read"),
    ("upscale photo.png -o o.png --model x2.safetensors", loading, "load"),
    ("eval . --model x2.safetensors", evaluation, "run"),
    ("train config.yaml", training, "load_config"),
    ("models", loading, "list_models"),
    ("info", c2d_kernels, "info"),
]


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(lambda *a, **k: np.zeros(2).reshape(3), id="ValueError of a library"),
        pytest.param(lambda *a, **k: torch.zeros(2) @ torch.zeros(3), id="RuntimeError of torch"),
        pytest.param(lambda *a, **k: {}["lost"], id="KeyError"),
    ],
)
@pytest.mark.parametrize(("command", "place", "name"), BUGS, ids=lambda value: str(value)[:12])
def test_a_bug_shows_its_traceback_and_exits_by_1(
    here, monkeypatch, capsys, command, place, name, bug
):
    monkeypatch.setattr(place, name, bug)
    code, _, err = run(command, capsys)
    assert code == 1
    assert "Traceback (most recent call last)" in err and "in <lambda>" in err
    assert err.endswith("c2d: this is a bug in c2d-isr: please report it with the lines above.\n")


def test_a_bug_in_one_file_of_a_batch_goes_to_a_log(here, monkeypatch, capsys):
    read = image_file.read

    def broken(path, **options):
        return {}["lost"] if Path(path).name == "deep.png" else read(path, **options)

    monkeypatch.setattr(image_file, "read", broken)
    code, out, err = run("upscale photo.png deep.png -o out --model x2.safetensors", capsys)
    assert code == 1
    assert out.splitlines()[-1] == "1 written, 0 skipped, 1 failed: deep.png"
    assert err.startswith("c2d: deep.png met a bug (KeyError: 'lost').\n")
    log = Path(err.split("please report it with the file ")[1].strip().removesuffix("."))
    text = log.read_text(encoding="utf-8")
    log.unlink()
    assert text.startswith("deep.png\nTraceback") and "KeyError: 'lost'" in text


def test_memory_that_ran_out_is_a_sentence(here, monkeypatch, capsys):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(evaluation, "run", full)
    code, _, err = run("eval . --model x2.safetensors", capsys)
    assert code == 2 and err.startswith("c2d: memory ran out: ") and err.count("\n") == 1


def test_a_backend_that_cannot_run_is_a_sentence(here, capsys):
    with c2d_kernels.backend("triton"):
        code, _, err = run("upscale photo.png -o o.png --model x2.safetensors", capsys)
    assert code == 2 and "cannot run on the backend 'triton'" in err and err.count("\n") == 1


def test_a_mistake_is_a_sentence_under_python_m_too(here):
    """As the README starts it by torchrun."""
    command = [sys.executable, "-m", "c2d_models.cli", "eval", ".", "--crop", "1,2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("c2d: crop is 1,2; write") and done.stderr.count("\n") == 1


def test_a_question_ends_without_a_full_stop(here, capsys):
    (here / "config.yaml").write_text("stpes: 3")
    code, _, err = run("train config.yaml", capsys)
    assert code == 2
    assert err == "c2d: config.yaml: unknown key 'stpes'; did you mean 'steps'?\n"


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["Ctrl-C", "SIGTERM", "a closed terminal"],
)
def test_an_interrupted_run_leaves_nothing(here, number, code):
    Image.fromarray(np.zeros((4000, 4000, 3), np.uint8)).save("large.png")  # takes a minute
    command = "upscale large.png -o out/large.png --model any.safetensors --tile 64"
    process = subprocess.Popen(
        [sys.executable, "-m", "c2d_models.cli", *command.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(here.glob("out/.*.raw")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == code, complaint
    assert complaint == ("c2d: interrupted.\n" if number == signal.SIGINT else "")
    assert list((here / "out").iterdir()) == []


def command_line(*arguments, **options):
    """`c2d` in a process of its own."""
    command = [sys.executable, "-m", "c2d_models.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(command, env=environment, capture_output=True, timeout=120, **options)


def test_standard_input_and_output(here):
    png = Path("photo.png").read_bytes()
    done = command_line("upscale", "-", "-o", "-", "--model", "x2.safetensors", input=png)
    assert done.returncode == 0 and b"standard input -> standard output  20x16" in done.stderr
    assert Image.open(io.BytesIO(done.stdout)).size == (20, 16)
    done = command_line("upscale", "-", "-o", "o.jpg", "--model", "x2.safetensors", input=png)
    assert done.returncode == 0 and Image.open("o.jpg").size == (20, 16)
    done = command_line("upscale", "-", "-o", "-", "--model", "x2.safetensors", input=b"text")
    assert (done.returncode, done.stdout) == (2, b"") and b"standard input is not" in done.stderr


def test_names_that_a_console_cannot_show(here):
    """Not UTF-8, and not in the console's encoding: the run goes on and shows them as escapes."""
    os.mkdir("in")
    for name in (b"in/\xff\xe9.png", "in/\u65e5\u672c.png".encode(), b"in/plain.png"):
        Path(os.fsdecode(name)).write_bytes(Path("photo.png").read_bytes())
    Path(os.fsdecode(b"in/\xfe.png")).write_bytes(b"no picture")
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}
    done = command_line("upscale", "in", "-o", "out", "--model", "x2.safetensors", env=ascii_only)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"in/plain.png -> out/plain.png  20x16" in done.stdout
    assert b"3 written, 0 skipped, 1 failed: in/\\udcfe.png" in done.stdout
    assert sorted(os.listdir(b"out")) == [
        b"plain.png",
        "\u65e5\u672c.png".encode(),
        b"\xff\xe9.png",
    ]


def test_a_missing_input_is_missing_even_if_its_output_is_there(here, capsys):
    Path("o.png").write_bytes(b"")
    code, _, err = run("upscale gone.png -o o.png --model x2.safetensors", capsys)
    assert code == 2 and err == "c2d: gone.png does not exist.\n"


def test_an_empty_variable_is_no_folder(here, capsys):
    assert main(["upscale", "", "-o", "out"]) == 2
    assert "a path is empty" in capsys.readouterr().err and not Path("out").exists()


def test_notes_name_their_file(here, capsys, monkeypatch):
    read = image_file.read

    def noting(path, **options):
        image = read(path, **options)
        image.notes.append("page 1 of 3 is read")
        return image

    monkeypatch.setattr(image_file, "read", noting)
    code, _, err = run("upscale photo.png -o o.png --model x2.safetensors", capsys)
    assert code == 0 and err == "c2d: photo.png: page 1 of 3 is read.\n"


def test_what_is_not_read_is_in_the_summary(here, capsys):
    os.mkdir("in")
    for name in ("a.png", "b.svg", "c.psd"):
        Path("in", name).write_bytes(Path("photo.png").read_bytes())
    code, out, err = run("upscale in -o out --model x2.safetensors", capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "1 written, 0 skipped, 0 failed; 2 not read: in/b.svg, in/c.psd"


def test_bare_c2d_is_help(capsys):
    for arguments in ([], ["-h"], ["--help"]):
        assert main(arguments) == 0
        printed = capsys.readouterr()
        assert "upscale" in printed.out and printed.err == ""


def test_help_and_version_do_not_wait_for_torch():
    code = (
        "import sys; from c2d_models.cli import main\n"
        "codes = main(['--version']), main(['--help'])\n"
        "print(codes, 'torch' in sys.modules, 'pyvips' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.startswith("c2d ") and out.endswith("(0, 0) False False\n")
    assert all(command in out for command in ("upscale", "eval", "train", "models", "info"))


def test_train_and_eval_pass_their_arguments_on(monkeypatch, capsys):
    calls = []

    def remember(*args, **options):
        calls.append((*args, *(options[key] for key in ("scales", "output", "ensemble"))))

    monkeypatch.setattr(training, "run", lambda *args: calls.append(args))
    monkeypatch.setattr(evaluation, "run", remember)
    assert main(["train", "a.yaml", "--resume", "--set", "lr=1", "--set", "steps=2"]) == 0
    assert (
        main(
            [
                "eval",
                "Set5",
                "--model",
                "m",
                "--model",
                "n",
                "--scale",
                "2",
                "--scale",
                "2.5",
                "-o",
                "s.json",
            ]
        )
        == 0
    )
    assert calls == [
        (Path("a.yaml"), ["lr=1", "steps=2"], True),
        (["m", "n"], ["Set5"], [2.0, 2.5], "s.json", False),
    ]


def test_models_lists_what_is_shipped(monkeypatch, capsys, models, tmp_path):
    monkeypatch.setattr(loading, "WEIGHTS", models)
    (models / "noise.safetensors").unlink()
    code, out, _ = run("models", capsys)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if "any" in line or "x2" in line]
    assert "1 to 4" in out and len(rows) == 2
    assert '"steps": 7' in run("models any", capsys)[1]
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    assert run("models", capsys)[0] == 2


def test_every_shipped_model_says_what_it_is_for():
    assert set(loading.PURPOSES) == {info.name for info in loading.list_models()}


def test_models_shows_what_was_measured(monkeypatch, capsys, tmp_path):
    config = {"depths": [1], "dim": 8, "num_heads": 2}
    for name, scale in (("any", None), ("x2", 2), ("unscored", 4)):
        checkpoint.save(
            create("swinir_l_tiny", scale, config=config), tmp_path / f"{name}.safetensors"
        )

    def score(model, dataset, scale, *psnr):
        images = tuple(scores.ImageScore(f"{i}", value, 0.9, 1.0) for i, value in enumerate(psnr))
        return scores.Result(
            model, 7, 0.1, dataset, scale, "papers", 2, "files", False, "cpu", images
        )

    scores.keep(
        [
            score("bicubic", "Set5", 2.0, 30.0, 33.5),
            score("any", "Set14", 2.0, 31.25),
            score("any", "Set5", 3.0, 29.5, 30.0),
        ],
        tmp_path / "any.safetensors",
    )
    scores.keep([score("x2", "Set5", 2.0, 99.0)], tmp_path / "x2.safetensors")
    checkpoint.save(create("swinir_l_tiny", 2, config=config), tmp_path / "x2.safetensors")
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    code, out, _ = run("models", capsys)
    size = f"{(tmp_path / 'any.safetensors').stat().st_size / 1e6:.1f}"
    params = f"{loading.list_models()[0].params:,}"
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["name", "scale", "parameters", "file", "at", "Set5", "Set14"] in rows
    assert ["any", "1", "to", "4", params, size, "MB", "x2", "31.25"] in rows
    assert ["x3", "29.75"] in rows and ["bicubic", "x2", "31.75"] in rows
    assert any(row[:1] == ["unscored"] and row[-1] == "MB" for row in rows)
    assert any(row[:1] == ["x2"] and row[-1] == "MB" for row in rows), "scores of other weights"
    assert max(map(len, out.splitlines())) <= 80


def test_info_names_operators(capsys):
    code, out, _ = run("info", capsys)
    assert code == 0 and "libvips" in out and "channel_correlation" in out
