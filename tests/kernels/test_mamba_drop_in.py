"""install_as_mamba_ssm: third-party code finds what it imports, and gets the right numbers."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels.drop_in import functions

# As networks outside of this project have it: four directions over an image, grouped B and C.
THIRD_PARTY = """
import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref


def four_directions(x, delta, A_logs, Bs, Cs, Ds, bias, scan=selective_scan_fn):
    batch, channels, height, width = x.shape
    rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
    xs = torch.stack([rows, columns], dim=1)
    xs = torch.cat([xs, xs.flip(-1)], dim=1).view(batch, -1, height * width)
    out = scan(
        xs, delta, -torch.exp(A_logs), Bs, Cs, Ds, z=None, delta_bias=bias, delta_softplus=True,
        return_last_state=False,
    ).view(batch, 4, channels, -1)
    back = out[:, 2:].flip(-1)
    turned = (out[:, 1] + back[:, 1]).view(batch, channels, width, height)
    return (out[:, 0] + back[:, 0]).view(x.shape) + turned.transpose(2, 3)
"""


def third_party() -> ModuleType:
    module = ModuleType("third_party")
    exec(compile(THIRD_PARTY, "third_party.py", "exec"), module.__dict__)
    return module


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": draw(2, 3, 5, 7),
        "delta": draw(2, 12, 35),
        "A_logs": draw(12, 4),
        "Bs": draw(2, 4, 4, 35),
        "Cs": draw(2, 4, 4, 35),
        "Ds": draw(12),
        "bias": draw(12),
    }


def written_out(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state) -> Tensor:
    """The scan for grouped B and C, one number at a time over groups and steps."""
    delta = torch.log1p(torch.exp(delta + delta_bias[:, None]))
    out = torch.empty_like(u)
    of_a_group = u.shape[1] // B.shape[1]
    for image in range(u.shape[0]):
        for channel in range(u.shape[1]):
            h = torch.zeros(A.shape[1], dtype=u.dtype)
            group = channel // of_a_group
            for t in range(u.shape[2]):
                step = delta[image, channel, t]
                h = torch.exp(step * A[channel]) * h
                h = h + step * u[image, channel, t] * B[image, group, :, t]
                out[image, channel, t] = (C[image, group, :, t] * h).sum()
    return out + D[:, None] * u


def test_third_party_code_runs_and_is_right(clean, absent) -> None:
    c2d_kernels.install_as_mamba_ssm()
    module, arguments = third_party(), inputs()
    expected = module.four_directions(**arguments, scan=written_out)
    for scan in (module.selective_scan_fn, module.selective_scan_ref):
        actual = module.four_directions(**arguments, scan=scan)
        assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_gradients_flow_through_third_party_code(clean, absent) -> None:
    c2d_kernels.install_as_mamba_ssm()
    module = third_party()
    gradients = []
    for scan in (module.selective_scan_fn, module.selective_scan_ref):
        arguments = {name: x.requires_grad_() for name, x in inputs().items()}
        loss = module.four_directions(**arguments, scan=scan).square().sum()
        gradients.append(torch.autograd.grad(loss, list(arguments.values())))
    for actual, expected in zip(*gradients, strict=True):
        assert (actual - expected).abs().max() <= 1e-11 * expected.abs().max()


def test_the_reference_leaves_the_backend_alone(clean, absent) -> None:
    c2d_kernels.install_as_mamba_ssm()
    module = third_party()
    with c2d_kernels.backend("torch"):
        module.four_directions(**inputs(), scan=module.selective_scan_ref)
        assert c2d_kernels.dispatch.requested() == "torch"


def test_modules_look_like_a_package(clean, absent) -> None:
    c2d_kernels.install_as_mamba_ssm()
    c2d_kernels.install_as_mamba_ssm()  # again: nothing happens
    import mamba_ssm
    import mamba_ssm.ops.selective_scan_interface as interface

    assert mamba_ssm.ops.selective_scan_interface is interface
    assert interface.selective_scan_fn is mamba_ssm.selective_scan_fn is functions.selective_scan_fn
    assert importlib.util.find_spec("mamba_ssm").name == "mamba_ssm"
    assert importlib.util.find_spec("mamba_ssm.ops.selective_scan_interface") is not None


@pytest.mark.parametrize(
    "statement",
    [
        "from mamba_ssm import Mamba2",
        "from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn_no_out_proj",
        "import mamba_ssm.modules.mamba2",
        "from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined",
        "from causal_conv1d import causal_conv1d_varlen",
        "import selective_scan_cuda_oflex",
        "import selective_scan_cuda_core",
    ],
)
def test_what_is_missing_is_explained(statement: str, clean, absent) -> None:
    c2d_kernels.install_as_mamba_ssm()
    with pytest.raises(ImportError, match=r"is not here: c2d_kernels stands in for .* and offers"):
        exec(statement)


def test_a_module_can_be_looked_into(clean, absent) -> None:
    c2d_kernels.install_as_mamba_ssm()
    import mamba_ssm

    assert not hasattr(mamba_ssm, "__wrapped__")
    assert inspect.getmodule(mamba_ssm.Mamba).__name__ == "c2d_kernels.drop_in.mamba"
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        import no_such_module  # noqa: F401


def test_an_installed_causal_conv1d_stays(clean, absent) -> None:
    real = sys.modules["causal_conv1d"] = ModuleType("causal_conv1d")
    c2d_kernels.install_as_mamba_ssm()
    assert sys.modules["causal_conv1d"] is real


def test_the_real_package_is_not_pushed_aside(clean) -> None:
    sys.modules.pop("mamba_ssm", None)
    real = ModuleType("mamba_ssm")
    real.selective_scan_fn = None
    sys.modules["mamba_ssm"] = real
    with pytest.raises(
        c2d_kernels.BackendError, match=r"mamba_ssm itself is installed here: uninstall it, or"
    ):
        c2d_kernels.install_as_mamba_ssm()
    assert sys.modules["mamba_ssm"] is real
    c2d_kernels.install_as_mamba_ssm(force=True)
    assert sys.modules["mamba_ssm"] is not real
    module = third_party()
    assert module.selective_scan_fn is functions.selective_scan_fn


def test_complex_A_is_refused() -> None:
    u = torch.zeros(1, 2, 3)
    with pytest.raises(TypeError, match=r"A must be float32, .*got complex64"):
        c2d_kernels.selective_scan(u, u, torch.zeros(2, 4, dtype=torch.complex64), u, u)
