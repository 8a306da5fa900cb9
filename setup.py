"""Builds the native library c2d_kernels/_native.so; everything else is in pyproject.toml.

The library uses the stable ABI of libtorch and no symbol of Python, hence one wheel
(py3-none-<platform>) for every CPython and every torch from 2.10 on. What decides how it is built:

- a C++ compiler: the command in CXX, else c++, g++ or clang++ on PATH. With none of them the
  package installs as pure Python. A compiler that fails is an error, never a silent pure install.
- C2D_BUILD_NATIVE=0 leaves the library out, 1 makes a missing compiler an error, auto (the default)
  takes what is there.
- nvcc: in CUDA_HOME (or CUDA_PATH), else on PATH, else in /usr/local/cuda. C2D_BUILD_CUDA=0 leaves
  the CUDA sources out, 1 makes a missing nvcc an error, auto (the default) takes what is there.
  No GPU is needed, and the torch present may be a CPU build.
- TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX": the GPU architectures.
- C2D_SANITIZE, such as address,undefined: -fsanitize of the C++ (csrc/sanitize.py runs the tests).

Sources are found by their names, so that an operator needs no line here. In csrc's folders, one for
each operator and common/, what ends in

- bf16_kernel.cpp is compiled once for each instruction set that multiplies bfloat16 (BF16_ISAS),
- kernel.cpp, otherwise, once for each instruction set (ISAS), both without torch's headers,
- .cpp, otherwise (host.cpp, backward_host.cpp), once: it registers what it defines with torch,
- .cu is compiled by nvcc, where there is one.

ninja is used when it is there; without it the same commands run in a few threads.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:
        raise SystemExit(
            "c2d-isr: this setuptools makes no wheels: pip install 'setuptools>=70.1', or wheel"
        ) from None

ROOT = Path(__file__).resolve().parent
BUILD = Path("build/native")  # relative: commands run in ROOT, and no path of this machine is kept
OLDEST_TORCH = (2, 10)
OLDEST_NVCC = (12, 0)  # the first with C++20

CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
TARGET = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"

# Instruction sets of the kernels, each compiled into its own namespace; chosen at run time.
ISAS = {"baseline": []}
BF16_ISAS = {}  # as far as the compiler knows them
if platform.machine() in ("x86_64", "AMD64"):
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = [
        *("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        "-mprefer-vector-width=512",
    ]
    BF16_ISAS["avx512bf16"] = [*ISAS["avx512"], "-mavx512bf16"]

# One architecture for each binary-compatible family that shared memory or tensor cores tell apart;
# the PTX of the last one runs on GPUs to come.
DEFAULT_CUDA_ARCHS = ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0"]
# Families that TORCH_CUDA_ARCH_LIST may name, as torch's own builds take them.
CUDA_FAMILIES = {
    "Pascal": ["6.0", "6.1"],
    "Volta": ["7.0"],
    "Turing": ["7.5"],
    "Ampere": ["8.0", "8.6"],
    "Ada": ["8.9"],
    "Hopper": ["9.0"],
    "Blackwell": ["10.0", "12.0"],
}


def fail(sentence: str) -> None:
    """End the build with one sentence."""
    raise SystemExit(f"c2d-isr: {sentence}")


def say(sentence: str) -> None:
    """Print one line; pip shows it with -v."""
    print(f"c2d-isr: {sentence}", flush=True)


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command, or None where there is none."""
    asked = os.environ.get("CXX", "").strip()
    if asked:
        try:
            command = shlex.split(asked)
        except ValueError as error:
            fail(f"CXX={asked} is not a command: {str(error).lower()}")
        if shutil.which(command[0]) is None:
            fail(f"CXX={asked} is not a command here; unset CXX or name a C++20 compiler")
        return command
    found = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    return [found] if found else None


def compiles(compiler: list[str], flags: list[str]) -> bool:
    """Whether the compiler knows these flags."""
    command = [*compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def known_bf16_isas(compiler: list[str]) -> dict[str, list[str]]:
    """BF16_ISAS as far as the compiler knows them."""
    return {isa: flags for isa, flags in BF16_ISAS.items() if compiles(compiler, flags)}


def find_torch() -> Path:
    """The folder of torch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        fail(
            "the native library needs the headers of torch >= 2.10: install torch first, or leave "
            "out --no-build-isolation"
        )
    folder = Path(spec.origin).parent
    text = (folder / "version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__ = '(\d+)\.(\d+)", text)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_TORCH:
        fail(f"torch >= 2.10 is needed, but {folder} holds {found[0] if found else 'another'}")
    return folder


def find_nvcc() -> tuple[str | None, str]:
    """nvcc's path, or None and why there are no CUDA kernels."""
    asked = os.environ.get("C2D_BUILD_CUDA", "auto").strip().lower() or "auto"
    if asked not in ("0", "1", "auto"):
        fail(f"C2D_BUILD_CUDA is {asked!r}; choose 0, 1 or auto")
    if asked == "0":
        return None, "C2D_BUILD_CUDA=0"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [
        *(f"{home}/bin/nvcc" for home in homes if home),
        "nvcc",
        "/usr/local/cuda/bin/nvcc",
    ]
    path = next(filter(None, map(shutil.which, candidates)), None)
    reason = "no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"
    if path is not None:
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"release (\d+)\.(\d+)", text)
        if found and (int(found[1]), int(found[2])) >= OLDEST_NVCC:
            return path, f"nvcc {found[1]}.{found[2]}"
        reason = f"{path} is older than 12.0, the first nvcc with C++20"
    if asked == "1":
        fail(f"C2D_BUILD_CUDA=1, but {reason}")
    return None, reason


def cuda_archs(nvcc: str) -> list[str]:
    """The device code to make: names such as sm_90, and compute_90 for PTX."""
    asked = re.split(r"[\s;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;,"))
    text = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    known = set(text.split())
    if asked == [""]:
        asked = [arch for arch in DEFAULT_CUDA_ARCHS if f"sm_{arch.replace('.', '')}" in known]
        asked[-1] += "+PTX"
    codes: list[str] = []
    for name in asked:
        family, plus, _ = name.partition("+")
        *others, last = CUDA_FAMILIES.get(family.capitalize(), [family])
        for arch in [*others, last + plus + ("PTX" if plus else "")]:
            found = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", arch)
            if found is None:
                fail(
                    f"TORCH_CUDA_ARCH_LIST holds {name!r}; write numbers, such as 8.0;9.0+PTX, or "
                    f"names: {', '.join(CUDA_FAMILIES)}"
                )
            number = found[1] + found[2] + found[3]
            if known and f"sm_{number}" not in known:
                say(f"TORCH_CUDA_ARCH_LIST: {arch} is left out, which this nvcc does not make")
                continue
            codes += [f"sm_{number}"] + ([f"compute_{number}"] if found[4] else [])
    if not codes:
        fail("TORCH_CUDA_ARCH_LIST leaves nothing that this nvcc makes; unset or change it")
    return list(dict.fromkeys(codes))


def sanitizers() -> list[str]:
    """The flags by which C++ is compiled, and linked, to watch itself."""
    asked = os.environ.get("C2D_SANITIZE", "").strip()
    if not asked:
        return []
    return [f"-fsanitize={asked}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]


def sources(suffix: str) -> list[Path]:
    """The files in csrc of this suffix, from the root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / "csrc").rglob(f"*{suffix}"))


def cpp_flags(source: Path, torch: Path, cuda: bool, bf16_isas: dict) -> dict[str, list[str]]:
    """The compiler's flags for a .cpp by what it is compiled for: instruction sets, or "" alone."""
    watch = sanitizers()
    if not source.name.endswith("kernel.cpp"):
        defines = [TARGET, *(["-DC2D_WITH_CUDA"] if cuda else [])]
        defines += [f"-DC2D_WITH_{isa.upper()}" for isa in bf16_isas]
        return {"": [*CXX_FLAGS, *watch, *defines, "-isystem", str(torch / "include")]}
    isas = bf16_isas if source.name.endswith("bf16_kernel.cpp") else ISAS
    return {
        isa: [*CXX_FLAGS, *watch, *flags, f"-DC2D_ISA={isa}", "-ffp-contract=fast"]
        for isa, flags in isas.items()
    }


def cuda_flags(torch: Path, compiler: list[str], codes: list[str]) -> list[str]:
    """nvcc's flags for a .cu and the device code that cuda_archs names."""
    host = ["-ccbin", compiler[-1], "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    gencode = [f"-gencode=arch=compute_{code.split('_')[1]},code={code}" for code in codes]
    defines = [f'-DC2D_CUDA_ARCHS="{" ".join(codes)}"', "-DUSE_CUDA", TARGET]
    includes = ["-isystem", str(torch / "include")]
    return ["-std=c++20", "-O3", "--threads=2", *host, *gencode, *defines, *includes]


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of the build: what it makes, from what, how.

    compiler: of a step that compiles, its command as far as the flags: no source and no outputs.
    """

    output: Path
    inputs: list[Path]
    command: list[str]
    depfile: Path | None = None
    compiler: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The build on this machine: its steps, the last of which links, and a line about it."""

    native: bool
    note: str
    steps: list[Step] = dataclasses.field(default_factory=list)


@functools.cache
def make_plan(torch: Path | None = None) -> Plan:
    """Look at this machine and decide, once; torch: a folder as find_torch's, instead of that."""
    if sys.platform != "linux":
        return Plan(False, f"pure Python: the native library is made on Linux, not {sys.platform}")
    asked = os.environ.get("C2D_BUILD_NATIVE", "auto").strip().lower() or "auto"
    if asked not in ("0", "1", "auto"):
        fail(f"C2D_BUILD_NATIVE is {asked!r}; choose 0, 1 or auto")
    if asked == "0":
        return Plan(False, "pure Python: C2D_BUILD_NATIVE=0")
    compiler = find_compiler()
    if compiler is None and asked == "1":
        fail("C2D_BUILD_NATIVE=1, but no C++ compiler was found (CXX, c++, g++, clang++)")
    if compiler is None:
        return Plan(False, "pure Python: no C++ compiler was found (CXX, c++, g++, clang++)")
    torch = torch or find_torch()
    nvcc, cuda_note = find_nvcc()
    steps = []

    def compile_step(source: Path, command: list[str], name: str) -> None:
        output = BUILD / source.with_suffix(f".{name}.o" if name else ".o")
        depfile = output.with_suffix(".d")
        written = ["-MD", "-MF", str(depfile), "-c", str(source), "-o", str(output)]
        steps.append(Step(output, [source], [*command, *written], depfile, command))

    bf16_isas = known_bf16_isas(compiler)
    for source in sources(".cpp"):
        for isa, flags in cpp_flags(source, torch, nvcc is not None, bf16_isas).items():
            compile_step(source, [*compiler, *flags], isa)

    # libtorch stays needed though no symbol may be taken from it: the CUDA kernels' weak symbols
    # are found through it where torch has CUDA. --no-undefined: a symbol that is neither torch's
    # nor the system's (one of Python, say) stops the build here.
    linker_flags = ["--no-as-needed", "--no-undefined", "--exclude-libs,ALL", "--gc-sections"]
    libraries = [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu"]
    if watch := sanitizers():  # their runtime is the process's: the tests preload it
        linker_flags.remove("--no-undefined")
        libraries += watch
    if nvcc:
        codes = cuda_archs(nvcc)
        report = [sys.executable, "csrc/nvcc_report.py"]  # registers and spills, readable
        for source in sources(".cu"):
            compile_step(source, [*report, nvcc, *cuda_flags(torch, compiler, codes)], "cuda")
        cuda_note += " for " + " ".join(codes)
        link = [nvcc, "-shared", "-cudart=static", "-ccbin", compiler[-1]]
        link += [f"-Xlinker={flag}" for flag in linker_flags]
    else:
        cuda_note = f"no CUDA ({cuda_note})"
        link = [*compiler, "-shared", *(f"-Wl,{flag}" for flag in linker_flags)]

    objects = [step.output for step in steps]
    library = BUILD / "_native.so"
    link += [*map(str, objects), "-o", str(library), *libraries]
    steps.append(Step(library, objects, link))
    return Plan(True, f"native library by {shlex.join(compiler)}, {cuda_note}", steps)


def find_ninja() -> str | None:
    """ninja's path: on PATH, or in the Python package of that name."""
    on_path = shutil.which("ninja")
    if on_path is None and importlib.util.find_spec("ninja") is not None:
        import ninja

        on_path = shutil.which("ninja", path=ninja.BIN_DIR)
    return on_path


def run_with_ninja(ninja: str, steps: list[Step]) -> None:
    """Write build.ninja and run it: only what changed, in parallel."""

    def escape(text: object) -> str:
        return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    lines = [f"builddir = {BUILD}", "rule step", "  command = $cmd", "  description = $out"]
    lines += ["rule step_with_headers", "  command = $cmd", "  description = $out"]
    lines += ["  depfile = $depfile", "  deps = gcc"]
    for step in steps:
        rule = "step_with_headers" if step.depfile else "step"
        lines.append(f"build {escape(step.output)}: {rule} {' '.join(map(escape, step.inputs))}")
        lines.append(f"  cmd = {shlex.join(step.command).replace('$', '$$')}")
        if step.depfile:
            lines.append(f"  depfile = {step.depfile}")
    script = ROOT / BUILD / "build.ninja"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if subprocess.run([ninja, "-f", str(BUILD / "build.ninja")], cwd=ROOT).returncode != 0:
        fail("the native library did not compile; the compiler's message is above")


def run_without_ninja(steps: list[Step]) -> None:
    """Run every compile step in a few threads, then link."""

    def run(step: Step) -> None:
        say(f"making {step.output}")
        done = subprocess.run(
            step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.stdout.strip():
            print(done.stdout, flush=True)
        if done.returncode != 0:
            fail(f"{step.output} did not compile; the compiler's message is above")

    *compile_steps, link = steps
    for step in steps:
        (ROOT / step.output).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, compile_steps))
    run(link)


class BuildNative(Command):
    """A part of `build`: the shared library and _build.json, a note on how it came to be."""

    description = "compile csrc into c2d_kernels/_native.so"
    user_options: list[tuple[str, str | None, str]] = []  # noqa: RUF012 - distutils wants a list

    def initialize_options(self) -> None:
        self.build_lib = None
        self.editable_mode = False  # setuptools sets it for `pip install -e`

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def package_folder(self) -> Path:
        return (ROOT if self.editable_mode else Path(self.build_lib)) / "c2d_kernels"

    def get_outputs(self) -> list[str]:
        names = ["_build.json", *(["_native.so"] if make_plan().native else [])]
        return [str(self.package_folder() / name) for name in names]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in lists csrc

    def run(self) -> None:
        plan = make_plan()
        say(plan.note)
        folder = self.package_folder()
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / "_native.so"
        library.unlink(missing_ok=True)  # never overwritten in place: it may be loaded
        if plan.native:
            (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
            ninja = find_ninja()
            if ninja:
                run_with_ninja(ninja, plan.steps)
            else:
                run_without_ninja(plan.steps)
            shutil.copy(ROOT / plan.steps[-1].output, library)
        stamp = runpy.run_path(str(ROOT / "c2d_kernels" / "build_stamp.py"))["of_sources"]
        about = {"native": plan.native, "note": plan.note, "sources": stamp(ROOT / "csrc")}
        (folder / "_build.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


class Build(build):
    """`build` with the native library as its last part."""

    sub_commands = (*build.sub_commands, ("build_native", None))


class PlatformDistribution(Distribution):
    """Says that the wheel belongs to a platform when there is a library in it."""

    def has_ext_modules(self) -> bool:
        return make_plan().native


class BdistWheel(bdist_wheel):
    """The wheel's tag: any Python 3, no Python ABI, this platform where there is a library."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


if __name__ == "__main__":  # not where these functions are imported
    setup(
        license="Apache-2.0",
        distclass=PlatformDistribution,
        cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": BdistWheel},
    )
