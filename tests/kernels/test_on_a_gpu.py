"""Every operator and network on a GPU against float64 on the CPU: the first minute there.

The bounds are wide, since what is looked for is a kernel that does not run or computes something
else; the operators' own tests hold each kernel to the numerics rule.
"""

import pytest
import torch
from torch import Tensor, nn

import c2d_kernels
from c2d_models import create
from tests.kernels.cases import SMALL
from tests.kernels.rows import Case, in_float64
from tests.kernels.triton_checks import on_gpu

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.4}  # few numbers: 0.328 of an H200's was rounding
DTYPES = pytest.mark.parametrize("dtype", list(BOUNDS), ids=["float32", "bfloat16"])
NETWORKS = ["swinir_l_tiny", "hiet_swinir_tiny", "hiet_srformer_tiny", "hit_sir_tiny"]


def distance(got: Tensor, exact: Tensor) -> float:
    """The norm of the difference over the norm."""
    assert torch.isfinite(got).all()
    return ((got.cpu().double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def photograph(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def ramp(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape).to(x.device)


def with_gradients(case: Case, tensors: dict[str, Tensor]) -> list[Tensor]:
    leaves = {
        name: x.detach().requires_grad_(name not in case.fixed and x.is_floating_point())
        for name, x in tensors.items()
    }
    outputs = case.outputs(leaves)
    total = sum((x.double() * ramp(x)).sum() for x in outputs)
    wanted = [x for x in leaves.values() if x.requires_grad]
    return [*(x.detach() for x in outputs), *torch.autograd.grad(total, wanted)]


@DTYPES
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@on_gpu
def test_smoke(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    there = {name: x.cuda() for name, x in tensors.items()}
    found = with_gradients(case, there)
    with c2d_kernels.backend("reference"):
        exact = with_gradients(case, in_float64(tensors))
    for got, want in zip(found, exact, strict=True):
        assert distance(got, want) < BOUNDS[dtype]


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions round float32 to TF32 unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", [4, None], ids=["x4", "continuous"])
@on_gpu
def test_smoke_of_networks(name: str, scale: int | None) -> None:
    net = create(name, scale).eval()
    for parameter_name, parameter in net.named_parameters():
        if parameter_name.endswith(("upsample.0.weight", "fc2.weight")):
            nn.init.normal_(parameter, std=0.05)
    image = photograph(33, 40)
    arguments = {} if scale else {"size": (70, 90)}
    with torch.no_grad():
        with c2d_kernels.backend("reference"):
            exact = net.double()(image.double(), **arguments)
        net = net.float().cuda()
        assert distance(net(image.cuda(), **arguments), exact) < 1e-4
        with torch.autocast("cuda", torch.bfloat16):
            assert distance(net(image.cuda(), **arguments), exact) < 5e-2
        assert distance(net.prepare()(image.cuda(), **arguments), exact) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
@on_gpu
def test_a_cuda_graph_holds_a_network(name: str) -> None:
    net = create(name, 4).eval().cuda().prepare()
    image = photograph(32, 48).cuda()
    side = torch.cuda.Stream()
    with torch.no_grad():
        with torch.cuda.stream(side):
            expected = net(image)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = net(image)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)
