"""Backends: what auto takes, what a name demands, what the process says about itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import c2d_kernels
from c2d_kernels import BackendError, dispatch, native
from c2d_kernels.dispatch import Kernel
from c2d_kernels.operators import operators
from tests.kernels.cases import CASES

CHANNEL = CASES["channel"]
ROOT = Path(__file__).resolve().parents[2]


def kernel(name: str, value: float, refusal: str | None = None) -> Kernel:
    """A kernel of channel_correlation that fills the output with a value, to see who ran."""
    return Kernel(
        CHANNEL.operator, name, lambda *args: refusal, lambda q, *_: torch.full_like(q, value)
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter, since C2D_BACKEND is read when the package is imported."""
    kept = {k: v for k, v in os.environ.items() if k not in ("C2D_BACKEND", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Kernel]]:
    table: dict[str, list[Kernel]] = {}
    monkeypatch.setattr(dispatch, "_kernels", table)
    return table


def test_auto_takes_the_first_that_can_run(kernels) -> None:
    for name, value, refusal in (("cpu", 3.0, None), ("triton", 2.0, None), ("cuda", 1.0, "no")):
        dispatch.register(kernel(name, value, refusal))
    assert [k.backend for k in dispatch.kernels(CHANNEL.operator)] == ["cuda", "triton", "cpu"]
    assert CHANNEL.call(CHANNEL.tensors()).unique().tolist() == [2.0]


@pytest.mark.parametrize(("name", "value"), [("cpu", 3.0), ("triton", 2.0)])
def test_a_name_takes_its_kernel(kernels, name: str, value: float) -> None:
    dispatch.register(kernel("cpu", 3.0))
    dispatch.register(kernel("triton", 2.0))
    with c2d_kernels.backend(name):
        assert CHANNEL.call(CHANNEL.tensors()).unique().tolist() == [value]
        assert dispatch.requested() == name
    assert dispatch.requested() == "auto"


def test_auto_never_raises(kernels) -> None:
    dispatch.register(kernel("cuda", 1.0, "no GPU"))
    with c2d_kernels.backend("reference"):
        expected = CHANNEL.call(CHANNEL.tensors())
    assert torch.equal(CHANNEL.call(CHANNEL.tensors()), expected)


def test_the_op_itself_falls_back_to_the_reference(kernels) -> None:
    q, v = CHANNEL.tensors().values()
    expected = CHANNEL.call(CHANNEL.tensors())
    assert torch.equal(torch.ops.c2d.channel_correlation(q, v, 4, 3), expected)


def test_a_name_that_cannot_run_says_why(kernels) -> None:
    dispatch.register(kernel("cuda", 1.0, "its tensors are on the CPU"))
    reason = (
        "channel_correlation cannot run on the backend 'cuda': its tensors are on the CPU; "
        'ask for backend("auto") to take one that can.'
    )
    with c2d_kernels.backend("cuda"), pytest.raises(BackendError) as caught:
        CHANNEL.call(CHANNEL.tensors())
    assert str(caught.value) == reason


def test_a_name_without_a_kernel_says_so(kernels) -> None:
    with c2d_kernels.backend("triton"):
        with pytest.raises(BackendError, match="'triton': this build has no triton kernel for it;"):
            CHANNEL.call(CHANNEL.tensors())


def test_a_kernel_without_a_backward_differentiates_the_reference(kernels) -> None:
    tensors = {n: x.requires_grad_() for n, x in CHANNEL.tensors().items()}
    expected = torch.autograd.grad(CHANNEL.call(tensors).sum(), list(tensors.values()))
    dispatch.register(kernel("cpu", 3.0))
    actual = torch.autograd.grad(CHANNEL.call(tensors).sum(), list(tensors.values()))
    for got, want in zip(actual, expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-12)


def test_auto_leaves_gradients_to_the_reference_without_a_backward(kernels) -> None:
    """The kernel's forward would be wasted: the backward runs the reference again."""
    dispatch.register(kernel("cpu", 3.0))
    tensors = {n: x.requires_grad_() for n, x in CHANNEL.tensors().items()}
    assert CHANNEL.call(tensors).unique().numel() > 1
    with torch.no_grad():
        assert CHANNEL.call(tensors).unique().tolist() == [3.0]
    with c2d_kernels.backend("cpu"):
        assert CHANNEL.call(tensors).unique().tolist() == [3.0]


def test_a_library_without_an_operator_leaves_it_to_the_reference(kernels) -> None:
    """One of another version, which was not built again."""
    if native.missing is not None:
        pytest.skip(native.missing)
    dispatch.register(replace(kernel("cpu", 3.0), native_ops=("no_such_operator",)))
    assert CHANNEL.call(CHANNEL.tensors()).unique().numel() > 1
    with c2d_kernels.backend("cpu"), pytest.raises(BackendError, match="no no_such_operator: rebu"):
        CHANNEL.call(CHANNEL.tensors())


def test_blocks_nest_and_leave_by_exceptions() -> None:
    with c2d_kernels.backend("reference"):
        with pytest.raises(KeyError):
            with c2d_kernels.backend("cpu"):
                raise KeyError
        assert dispatch.requested() == "reference"
    assert dispatch.requested() == "auto"


def test_only_some_backends_decode_tiles() -> None:
    with c2d_kernels.backend("cuda"), pytest.raises(BackendError, match="only the Triton and CPU"):
        dispatch_query_moments()
    if native.missing is None:
        with c2d_kernels.backend("cpu"):
            assert dispatch_query_moments().shape == (1, 2, 2, 2)
            with pytest.raises(BackendError, match="decodes tiles without gradients only"):
                dispatch_query_moments(requires_grad=True)


def dispatch_query_moments(requires_grad: bool = False) -> torch.Tensor:
    shapes = c2d_kernels.coordinate_query_weight_shapes(4, levels=2, heads=2)
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return c2d_kernels.coordinate_query_moments(
        torch.zeros(1, 2, 2, 4, requires_grad=requires_grad),
        weights,
        levels=2,
        heads=2,
        size=(3, 3),
    )


def test_a_bad_name_lists_the_choices() -> None:
    sentence = "got 'cudnn', but a backend is one of auto, cuda, triton, cpu, torch, reference."
    with pytest.raises(ValueError, match=f"^{re.escape(f'backend() {sentence}')}$"):
        with c2d_kernels.backend("cudnn"):
            pass


CALL = """
import torch, c2d_kernels
x = torch.ones(1, 2, 2, 1)
print(c2d_kernels.info().requested)
print(c2d_kernels.channel_correlation(x, x, window_size=2).sum().item())
"""
REFUSED = "c2d_kernels.dispatch.BackendError"


@pytest.mark.parametrize(
    ("value", "out", "error"),
    [
        ("reference", "reference\n4.0\n", ""),
        ("", "auto\n4.0\n", ""),
        ("triton", "triton\n", f"{REFUSED}: channel_correlation cannot run on the backend 'tri"),
        ("gpu", "gpu\n", "ValueError: C2D_BACKEND got 'gpu', but a backend is one of auto, cuda, "),
    ],
    ids=["reference", "unset", "cannot-run", "bad-name"],
)
def test_environment_variable(value: str, out: str, error: str) -> None:
    done = python(CALL, C2D_BACKEND=value)
    assert done.stdout == out
    last = done.stderr.strip().splitlines()[-1] if error else ""
    assert last.startswith(error)


def test_import_brings_in_nothing_but_torch() -> None:
    # torch.utils.flop_counter, where FLOP formulas are registered, is torch's own but not loaded by
    # `import torch`; it looks for triton.
    listing = "import sys; print('\\n'.join(sorted({m.split('.')[0] for m in sys.modules})))"
    torch_alone = python(f"import torch, torch.utils.flop_counter\n{listing}")
    ours = python(f"import c2d_kernels\n{listing}")
    assert ours.returncode == torch_alone.returncode == 0
    extra = set(ours.stdout.split()) - set(torch_alone.stdout.split())
    assert extra - set(sys.stdlib_module_names) == {"c2d_kernels"}


def test_import_compiles_no_triton() -> None:
    listing = "import sys, c2d_kernels; print(*sys.modules, sep='\\n')"
    ours = [name for name in python(listing).stdout.split() if name.startswith("c2d_kernels.ops.")]
    assert "c2d_kernels.ops.window_attention.triton" in ours
    assert not [name for name in ours if name.endswith("_kernels")]


BROKEN = """
import torch
def fail(path):
    raise OSError("undefined symbol: aoti_torch_gone\\nmore")
torch.ops.load_library = fail
from pathlib import Path
exists, Path.exists = Path.exists, lambda self: self.name == "_native.so" or exists(self)
import c2d_kernels
print(c2d_kernels.info().native)
x = torch.ones(1, 2, 2, 1)
print(c2d_kernels.channel_correlation(x, x, window_size=2).sum().item())
with c2d_kernels.backend("cpu"):
    c2d_kernels.channel_correlation(x, x, window_size=2)
"""


def test_a_library_that_does_not_load_is_a_reason() -> None:
    done = python(BROKEN)
    reason = "the native library _native.so did not load: undefined symbol: aoti_torch_gone"
    assert done.stdout == f"{reason}\n4.0\n"
    assert f"cannot run on the backend 'cpu': {reason}" in done.stderr


def test_info_names_every_operator_and_its_backend() -> None:
    info = c2d_kernels.info()
    here = {choice.operator: choice for choice in info.choices if choice.device == "cpu"}
    assert set(here) == set(operators)
    expected = "reference" if native.missing else "cpu"
    assert here["channel_correlation"].backend == expected
    assert here["spatial_correlation"].backend == expected
    assert {"cuda", "triton"} <= set(here["spatial_correlation"].refusals)
    text = str(info)
    assert torch.__version__ in text and info.native in text
    assert all(name in text for name in operators)


def test_module_prints_info() -> None:
    done = python("import runpy; runpy.run_module('c2d_kernels', run_name='__main__')")
    assert done.returncode == 0
    assert done.stdout == f"{c2d_kernels.info()}\n"


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
def test_native_runs_on_cpu_tensors_only() -> None:
    (cpu,) = (k for k in dispatch.kernels("channel_correlation") if k.backend == "cpu")
    x = torch.zeros(1, 2, 2, 1, device="meta")
    assert cpu.can_run(x, x, 2, 2) == "it runs on CPU tensors, and these are on meta"
    assert cpu.can_run(x.to("cpu", copy=True) if x.is_cpu else torch.zeros(1), x, 2, 2) is None


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        (
            '{"native": false, "note": "pure Python: no C++ compiler"}',
            "pure Python: no C++ compiler",
        ),
        ("half a file", "pip install . builds it"),
        (None, "pip install . builds it"),
    ],
    ids=["noted", "broken note", "no note"],
)
def test_a_missing_library_gives_the_build_s_reason(tmp_path, monkeypatch, note, reason):
    monkeypatch.setattr(native, "PATH", tmp_path / "_native.so")
    if note is not None:
        (tmp_path / "_build.json").write_text(note, encoding="utf-8")
    assert native._load().startswith("the native library was not built: ")
    assert native._load().endswith(reason)
