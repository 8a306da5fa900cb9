"""The build and its wheels: the library's symbols, the wheel's tag, the sdist's content, failures.

The commands run in a copy of the tree in a temporary folder, without network; nothing is installed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from c2d_kernels import build_stamp, native

ROOT = Path(__file__).resolve().parent.parent
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "Makefile")
LIBRARY = ROOT / "c2d_kernels" / "_native.so"

HAS_COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))
needs_library = pytest.mark.skipif(
    not LIBRARY.is_file(), reason="no c2d_kernels/_native.so: pip install --no-build-isolation -e ."
)
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler on PATH")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the library is made on Linux")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build reads."""
    pytest.importorskip("setuptools", minversion="65", reason="building needs setuptools")
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build.json", "_build")
    for folder in ("csrc", "c2d_kernels", "c2d_models", "tests", "bench"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    (copy / ".ci").mkdir()
    for name in (*FILES, ".ci/run"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def run_setup(tree: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python setup.py COMMAND` in the tree, the environment changed ("" removes)."""
    variables = {**os.environ, "C2D_BUILD_CUDA": "0", **environment}
    variables = {name: value for name, value in variables.items() if value}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=tree,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def undefined_symbols(library: Path) -> list[str]:
    """Names that the library takes from others, without their versions."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm (binutils) on PATH")
    listing = subprocess.run(
        [nm, "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    )
    return [line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()]


@needs_library
@pytest.mark.parametrize(
    ("forbidden", "why"),
    [
        pytest.param(r"_?Py[A-Z_]", "ties the library to one Python", id="python"),
        pytest.param(
            r"_ZN?K?(2at|3c10|5torch)", "is libtorch's unstable C++ ABI", id="libtorch-cpp"
        ),
        pytest.param(r"(GOMP_|omp_)", "brings a second OpenMP", id="openmp"),
        pytest.param(r"cu[A-Z]|cuda[A-Z]", "needs CUDA at load time", id="cuda"),
    ],
)
def test_library_takes_no_symbol(forbidden: str, why: str) -> None:
    found = [name for name in undefined_symbols(LIBRARY) if re.match(forbidden, name)]
    assert not found, f"{why}: {found}"


@needs_library
def test_library_takes_the_stable_abi() -> None:
    names = undefined_symbols(LIBRARY)
    assert "torch_library_impl" in names  # registers kernels with the version they target
    assert any(name.startswith("aoti_torch_") for name in names)


@needs_linux
@pytest.mark.parametrize(
    ("variables", "why"),
    [
        pytest.param(
            {"PATH": "/nowhere", "CXX": ""},
            "no C++ compiler was found (CXX, c++, g++, clang++)",
            id="no compiler",
        ),
        pytest.param({"C2D_BUILD_NATIVE": "0"}, "C2D_BUILD_NATIVE=0", id="asked for"),
    ],
)
def test_the_wheel_is_pure(tree: Path, tmp_path: Path, variables: dict, why: str) -> None:
    done = run_setup(tree, "bdist_wheel", "-d", str(tmp_path), **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("c2d-isr:")]
    assert said == [f"c2d-isr: pure Python: {why}"]
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    packages = {name.split("/")[0] for name in wheel_names(wheel)}
    assert {name for name in packages if not name.endswith(".dist-info")} == {
        "c2d_kernels",
        "c2d_models",
    }
    assert {"c2d_kernels/_build.json", "c2d_kernels/py.typed"} <= set(wheel_names(wheel))
    for weights in (ROOT / "c2d_models" / "weights").glob("*.safetensors"):
        for ending in (".safetensors", ".json", ".scores.json"):
            assert f"c2d_models/weights/{weights.stem}{ending}" in wheel_names(wheel)
    assert "c2d_kernels/_native.so" not in wheel_names(wheel)


@needs_linux
@needs_compiler
def test_native_wheel_suits_every_python(tree: Path, tmp_path: Path) -> None:
    for source in tree.glob("csrc/*/*.cpp"):
        source.write_text("", encoding="utf-8")  # the tag is at stake, not the kernels
    done = run_setup(tree, "bdist_wheel", "-d", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert re.search(r"-py3-none-linux_\w+\.whl$", wheel.name)
    assert "c2d_kernels/_native.so" in wheel_names(wheel)


@needs_linux
@needs_compiler
@pytest.mark.parametrize("knows", [True, False], ids=["new-compiler", "old-compiler"])
def test_a_compiler_without_avx512_bf16_builds_the_rest(
    tree: Path, tmp_path: Path, knows: bool
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip(f"AVX-512 is not of {platform.machine()}")
    for source in tree.glob("csrc/*/*.cpp"):
        source.write_text("", encoding="utf-8")
    compiler = tmp_path / "c++"
    refusal = "" if knows else "case $* in *avx512bf16*) exit 1;; esac\n"
    real = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    compiler.write_text(f'#!/bin/sh\n{refusal}exec {real} "$@"\n', encoding="utf-8")
    compiler.chmod(0o755)
    done = run_setup(tree, "build", CXX=str(compiler))
    assert done.returncode == 0, done.stdout + done.stderr
    objects = {path.name for path in (tree / "build/native/csrc/window_layer").glob("*.o")}
    always = {"host.o", "kernel.baseline.o", "kernel.avx2.o", "kernel.avx512.o"}
    assert objects == always | ({"bf16_kernel.avx512bf16.o"} if knows else set())


@needs_linux
@needs_compiler
@pytest.mark.parametrize("with_ninja", [True, False], ids=["ninja", "threads"])
def test_compile_error_fails_the_build(tree: Path, tmp_path: Path, with_ninja: bool) -> None:
    for source in tree.glob("csrc/*/*.cpp"):
        source.write_text("", encoding="utf-8")
    (tree / "csrc/common/isa.cpp").write_text("#error broken on purpose\n", encoding="utf-8")
    environment = {}
    if with_ninja:
        if shutil.which("ninja") is None:
            pytest.skip("no ninja on PATH")
    else:
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "c++").symlink_to(shutil.which("c++") or shutil.which("g++"))
        for tool in filter(shutil.which, ("as", "ld")):
            (tools / tool).symlink_to(shutil.which(tool))
        # a module of that name hides the ninja package
        (tree / "ninja.py").write_text(f"BIN_DIR = {str(tools)!r}\n", encoding="utf-8")
        environment = {"PATH": str(tools), "PYTHONPATH": str(tree), "CXX": ""}
    done = run_setup(tree, "bdist_wheel", "-d", str(tmp_path), **environment)
    assert done.returncode != 0
    assert "broken on purpose" in done.stdout + done.stderr
    assert "did not compile; the compiler's message is above" in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.whl"))


@needs_linux
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        pytest.param({"CXX": "no-such-c++"}, "CXX=no-such-c++ is not a command here", id="CXX"),
        pytest.param(
            {"CXX": 'g++ -DX="'}, "is not a command: no closing quotation", id="CXX-quote"
        ),
        pytest.param(
            {"C2D_BUILD_CUDA": "yes"},
            "C2D_BUILD_CUDA is 'yes'; choose 0, 1 or auto",
            id="C2D_BUILD_CUDA",
            marks=needs_compiler,
        ),
        pytest.param(
            {"C2D_BUILD_NATIVE": "no"},
            "C2D_BUILD_NATIVE is 'no'; choose 0, 1 or auto",
            id="C2D_BUILD_NATIVE",
        ),
        pytest.param(
            {"C2D_BUILD_NATIVE": "1", "PATH": "/nowhere", "CXX": ""},
            "C2D_BUILD_NATIVE=1, but no C++ compiler was found",
            id="C2D_BUILD_NATIVE, no compiler",
        ),
    ],
)
def test_refusals(tree: Path, environment: dict[str, str], sentence: str) -> None:
    done = run_setup(tree, "build", **environment)
    assert done.returncode != 0
    assert sentence in done.stderr


NVCC = """#!/bin/sh
echo "sm_75\nsm_80\nsm_86\nsm_90\nsm_100\nsm_120"
"""


@needs_linux
@pytest.mark.parametrize(
    ("asked", "codes", "said"),
    [
        ("8.0;9.0+PTX", ["sm_80", "sm_90", "compute_90"], ""),
        ("Ampere", ["sm_80", "sm_86"], ""),
        ("turing, Ampere+PTX", ["sm_75", "sm_80", "sm_86", "compute_86"], ""),
        ("7.0 8.6", ["sm_86"], "7.0 is left out, which this nvcc does not make"),
        ("", ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"], ""),
    ],
    ids=["numbers", "family", "families-with-PTX", "dropped", "default"],
)
def test_cuda_architectures(
    asked: str, codes: list[str], said: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    """With a stand-in that lists what an nvcc makes."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(NVCC, encoding="utf-8")
    nvcc.chmod(0o755)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert setup_functions()["cuda_archs"](str(nvcc)) == codes
    assert said in capsys.readouterr().out


@needs_linux
@pytest.mark.parametrize(
    ("asked", "sentence"),
    [("3.5", "leaves nothing that this nvcc makes"), ("Ampère", "write numbers, such as")],
)
def test_cuda_architectures_that_are_refused(
    asked: str, sentence: str, tmp_path: Path, monkeypatch
) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(NVCC, encoding="utf-8")
    nvcc.chmod(0o755)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(SystemExit, match=sentence):
        setup_functions()["cuda_archs"](str(nvcc))


def setup_functions() -> dict[str, Any]:
    """The names that setup.py defines."""
    pytest.importorskip("setuptools", minversion="65", reason="building needs setuptools")
    return runpy.run_path(str(ROOT / "setup.py"), run_name="read")


def test_a_library_of_other_sources_says_so(tmp_path: Path, monkeypatch) -> None:
    package, sources = tmp_path / "c2d_kernels", tmp_path / "csrc"
    package.mkdir()
    (sources / "scan").mkdir(parents=True)
    (sources / "scan" / "kernel.cpp").write_text("int x;", encoding="utf-8")
    about = json.dumps({"note": "by hand", "sources": build_stamp.of_sources(sources)})
    (package / "_build.json").write_text(about, encoding="utf-8")
    monkeypatch.setattr(native, "PATH", package / "_native.so")
    monkeypatch.setattr(native, "missing", None)
    assert native._outdated() is None
    (sources / "README").write_text("no source", encoding="utf-8")
    assert native._outdated() is None
    (sources / "scan" / "kernel.cpp").write_text("int y;", encoding="utf-8")
    assert "built from other sources than csrc now holds: rebuild it" in native._outdated()
    shutil.rmtree(sources)  # an installed wheel
    assert native._outdated() is None


def test_sdist_holds_all_sources(tree: Path, tmp_path: Path) -> None:
    done = run_setup(tree, "sdist", "-d", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        shipped = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    wanted = {
        str(path.relative_to(tree))
        for folder in ("csrc", "c2d_kernels", "c2d_models", "tests", "bench")
        for path in (tree / folder).rglob("*")
        if path.is_file() and path.suffix in {".py", ".cpp", ".cu", ".h", ".npz", ".safetensors"}
    }
    wanted |= {f"c2d_models/weights/{path.name}" for path in tree.glob("c2d_models/weights/*.json")}
    wanted |= {".ci/run", *FILES}
    assert not wanted - shipped
    assert not [name for name in shipped if name.endswith((".so", "_build.json"))]


def wheel_names(wheel: Path) -> list[str]:
    """The files in a wheel."""
    with ZipFile(wheel) as opened:
        return opened.namelist()
