"""The selective scan's CUDA kernels: emulated on the CPU, and on a GPU where there is one.

The emulation compiles the kernels' own sources (see tests/cuda_emulation); the same table runs
through the public function on a GPU.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import native, selective_scan
from c2d_kernels.ops.selective_scan import cuda
from tests import cuda_emulation
from tests.kernels.selective_scan.test_selective_scan import LAYOUTS, Tensors, draw, error

CSRC = Path(__file__).resolve().parents[3] / "csrc" / "selective_scan"
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

SHAPES = {
    **{f"L{n}": {"length": n} for n in (1, 2, 63, 64, 65, 129, 1134)},
    **{f"D{n}": {"channels": n, "length": 70} for n in (1, 4, 47, 48, 50)},
    **{f"N{n}": {"states": n, "channels": 3, "length": 70} for n in (1, 3, 8, 16, 17, 40)},
    "batch": {"batch": 2, "channels": 20, "length": 140},
    "constant": {"B": "constant", "C": "constant", "length": 130},
    "constant-B": {"B": "constant", "length": 130},
    "constant-C": {"C": "constant", "length": 130, "states": 17},
    "groups": {"channels": 40, "B": "2", "C": "2", "batch": 2, "length": 70},
    "other-groups": {"channels": 36, "B": "2", "C": "3", "length": 70},
    "shared-and-groups": {"channels": 6, "C": "6", "length": 70},
    "plain": {"without": ("D", "z", "delta_bias"), "length": 70},
    "no-gate": {"without": ("z",), "states": 17, "length": 70},
    "many-chunks": {"channels": 2, "states": 2, "length": 64 * 150 + 3},
}


def single(tensors: Tensors, dtype: torch.dtype = torch.float32) -> Tensors:
    """As the kernel takes them: sequences in dtype, the rest in float32."""
    cast = {}
    for name, x in tensors.items():
        sequence = x is not None and x.dim() > 2
        cast[name] = None if x is None else x.to(dtype if sequence else torch.float32)
    return cast


def cotangents(tensors: Tensors) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    u, A = tensors["u"], tensors["A"]
    last = (*u.shape[:2], A.shape[1])
    return tuple(torch.randn(s, generator=generator).double() for s in (tuple(u.shape), last))


def emulate(tensors: Tensors, softplus: bool) -> dict[str, Tensor]:
    """y, the last state, and the gradients that run() takes, by the emulated kernels."""
    arguments = list(tensors.values())
    y, last = cuda_emulation.selective_scan(*arguments, softplus)
    dy, dlast = cotangents(tensors)
    found = cuda_emulation.selective_scan_backward(
        dy.to(y.dtype), dlast.float(), *arguments, softplus
    )
    return {"y": y, "last": last, **found}


def differentiate(tensors: Tensors, softplus: bool) -> dict[str, Tensor]:
    """The same by the public function, under the backend in force."""
    leaves = {n: x.detach().requires_grad_() for n, x in tensors.items() if x is not None}
    y, last = selective_scan(**leaves, delta_softplus=softplus, return_last_state=True)
    gradients = torch.autograd.grad(
        (y, last),
        list(leaves.values()),
        tuple(g.to(out) for g, out in zip(cotangents(tensors), (y, last), strict=True)),
    )
    return {"y": y.detach(), "last": last.detach(), **dict(zip(leaves, gradients, strict=True))}


GPU_ULPS = 8  # ex2.approx may be two ulps off at every step, and a state remembers some steps


def judge(
    tensors: Tensors, actual: dict[str, Tensor], softplus: bool = True, ulps: int = 2
) -> None:
    """By the numerics rule: twice the reference's error in that precision, plus some ulps."""
    wide = {name: None if x is None else x.double() for name, x in tensors.items()}
    with c2d_kernels.backend("reference"):
        exact, plain = differentiate(wide, softplus), differentiate(tensors, softplus)
    for name, truth in exact.items():
        ulp = torch.finfo(plain[name].dtype).eps
        found = actual[name].cpu()
        assert torch.isfinite(found).all(), name
        # Sums over all steps are made in another order; both orders' errors are chance.
        slack = 4 if name in ("A", "D", "delta_bias") or truth.dim() == 2 else 2
        assert error(found, truth) <= slack * error(plain[name], truth) + ulps * ulp, name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_emulated(shape: dict) -> None:
    tensors = single(draw(**shape))
    judge(tensors, emulate(tensors, True))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_emulated_layouts(layout, dtype: torch.dtype) -> None:
    tensors = single(draw(batch=2, channels=20, states=8, length=150), dtype)
    moved = {name: layout(x) if x.dim() == 3 else x for name, x in tensors.items()}
    judge(moved, emulate(moved, True))


@pytest.mark.parametrize("value", [1e4, -1e4, 20.5])
def test_emulated_extreme_delta(value: float) -> None:
    tensors = single(draw(length=130, without=("delta_bias",)))
    tensors["delta"] = torch.full_like(tensors["delta"], value)
    actual = emulate(tensors, True)
    assert all(torch.isfinite(x).all() for x in actual.values())
    wide = {name: None if x is None else x.double() for name, x in tensors.items()}
    with c2d_kernels.backend("reference"):
        exact = differentiate(wide, True)
    for name, truth in exact.items():
        assert error(actual[name], truth) <= 1e-5, name


def test_emulated_without_softplus() -> None:
    tensors = single(draw(length=130))
    tensors["delta"] = tensors["delta"].abs() / 4
    tensors["delta_bias"] = tensors["delta_bias"].abs() / 4
    judge(tensors, emulate(tensors, False), softplus=False)


def test_emulated_runs_agree_bitwise() -> None:
    """Blocks and threads run in another order each time."""
    tensors = single(draw(channels=40, states=8, length=300))
    first, second = emulate(tensors, True), emulate(tensors, True)
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


@pytest.mark.parametrize("kind", ["warp", "block"])
def test_the_emulator_sees_threads_part(kind: str) -> None:
    with pytest.raises(RuntimeError, match="threads part at the barrier"):
        getattr(cuda_emulation.emulated(), f"parting_{kind}")()


RESOURCES = json.loads((CSRC / "cuda_resources.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_registers_and_spills(direction: str, arch: str, tmp_path: Path) -> None:
    """Resources of each kernel by ptxas, against the table beside the kernels."""
    source = tmp_path / "kernels.cu"
    source.write_text(
        "#include <cuda_runtime_api.h>\n"
        f'#include "{CSRC}/cuda_{direction}.cuh"\n'
        "namespace c2d::cuda { void all(Scan scan) {\n"
        f"launch_{direction}<float>(scan, nullptr); "
        f"launch_{direction}<__nv_bfloat16>(scan, nullptr); }} }}\n"
    )
    report = CSRC.parent / "nvcc_report.py"
    command = [sys.executable, str(report), "nvcc", "-std=c++20", "-O3", f"-arch={arch}", "-cubin"]
    done = subprocess.run(
        [*command, str(source), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    pattern = r"^(\S+)  (.*): (\d+) registers, (\d+) B shared, (?:(\d+) B spilled|no spills)$"
    found = re.findall(pattern, done.stdout, re.MULTILINE)
    assert {kernel for _, kernel, *_ in found} == set(RESOURCES[direction])
    for at, kernel, registers, shared, spilled in found:
        most = RESOURCES[direction][kernel]
        assert at == arch
        # Another ptxas may need a few more; a spill or a jump is what has to be seen.
        assert int(registers) <= most[arch] + 8, kernel
        assert int(shared) == most["shared"], kernel
        assert int(spilled or 0) <= most["spilled"], kernel


@pytest.fixture
def gpu_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """gpu_code(90): as if here were a GPU that runs the library's code for sm_90; 0: none of it.

    Returns what was answered, one number for each time that the library was asked.
    """
    answered: list[int] = []
    with torch.library._scoped_library("c2d_tests", "FRAGMENT") as library:
        library.define("cuda_image() -> int")  # an operator, as the library's own is
        monkeypatch.setattr(
            torch.ops.c2d_native, "cuda_image", torch.ops.c2d_tests.cuda_image, raising=False
        )
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(native, "missing", None)

        def answer(image: int) -> list[int]:
            def cuda_image() -> int:
                answered.append(image)
                return image

            library.impl("cuda_image", cuda_image, "CompositeExplicitAutograd")
            return answered

        cuda._image.cache_clear()
        torch.compiler.reset()
        yield answer
        cuda._image.cache_clear()
        torch.compiler.reset()


def fake(length: int) -> Tensors:
    tensors = single(draw(channels=8, length=length))
    return {name: torch.empty(x.shape, device="cuda") for name, x in tensors.items()}


def test_compiles_without_tracing_what_the_gpu_runs(gpu_code) -> None:
    """Fake CUDA tensors through Dynamo: no GPU is needed for that."""
    answered, graphs = gpu_code(90), []

    def keep(graph: torch.fx.GraphModule, _: object) -> Callable:
        graphs.append(graph.code)
        return graph.forward

    scan = torch.compile(selective_scan, fullgraph=True, backend=keep, dynamic=False)
    with torch._subclasses.FakeTensorMode(), c2d_kernels.backend("cuda"):
        for length in (70, 64):
            tensors = fake(length)
            y = scan(**tensors, delta_softplus=True)
            assert y.shape == tensors["u"].shape and y.device.type == "cuda"
    assert [code.count("torch.ops.c2d.selective_scan") for code in graphs] == [1, 1]
    assert answered == [90]


def test_refuses_a_gpu_that_the_library_has_no_code_for(gpu_code) -> None:
    answered = gpu_code(0)
    with torch._subclasses.FakeTensorMode():
        reasons = {cuda.kernel.can_run(*fake(length).values()) for length in (70, 64)}
    assert reasons == {
        "the native library holds no code for this GPU: see python -m c2d_kernels",
    }
    assert answered == [0]


@gpu
@needs_gpu
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_on_a_gpu(shape: dict, dtype: torch.dtype) -> None:
    tensors = single(draw(**shape), dtype)
    there = {name: None if x is None else x.cuda() for name, x in tensors.items()}
    with c2d_kernels.backend("cuda"):
        actual = {name: x.cpu() for name, x in differentiate(there, True).items()}
    judge(tensors, actual, ulps=GPU_ULPS)


@gpu
@needs_gpu
def test_layouts_on_a_gpu() -> None:
    tensors = single(draw(batch=2, channels=48, states=8, length=1000))
    for layout in LAYOUTS.values():
        moved = {name: layout(x) if x.dim() == 3 else x for name, x in tensors.items()}
        with c2d_kernels.backend("cuda"):
            actual = differentiate({name: x.cuda() for name, x in moved.items()}, True)
        judge(moved, {name: x.cpu() for name, x in actual.items()}, ulps=GPU_ULPS)


@gpu
@needs_gpu
def test_two_runs_on_a_gpu_agree_bitwise() -> None:
    tensors = {name: x.cuda() for name, x in single(draw(channels=48, length=5000)).items()}
    with c2d_kernels.backend("cuda"):
        first, second = differentiate(tensors, True), differentiate(tensors, True)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@gpu
@needs_gpu
def test_a_cuda_graph_holds_the_scan() -> None:
    tensors = {name: x.cuda() for name, x in single(draw(channels=48, length=700)).items()}

    def scan() -> Tensor:
        with torch.no_grad(), c2d_kernels.backend("cuda"):
            return selective_scan(**tensors, delta_softplus=True)

    expected = scan()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = scan()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)


@gpu
@needs_gpu
def test_compiled_on_a_gpu() -> None:
    tensors = {name: x.cuda() for name, x in single(draw(channels=48, length=700)).items()}
    scan = torch.compile(lambda **t: selective_scan(**t, delta_softplus=True), fullgraph=True)
    with torch.no_grad():
        expected = selective_scan(**tensors, delta_softplus=True)
        assert torch.equal(scan(**tensors), expected)
