"""The selective scan's fast paths: lengths, forms of B and C, layouts, extremes, every gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels import native, selective_scan

Tensors = dict[str, Tensor | None]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
FEATURES = {"u", "delta", "B", "C", "z"}  # the rest stay float32 beside half precision


@pytest.fixture(params=["cpu", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and native.missing is not None:
        pytest.skip(native.missing)
    return request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's threads; as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def draw(
    batch: int = 1,
    channels: int = 5,
    states: int = 3,
    length: int = 20,
    B: str = "shared",
    C: str = "shared",
    without: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Tensors:
    """Inputs of Mamba's kind; B and C "constant", "shared", or the number of groups."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def mixing(form: str) -> Tensor:
        if form == "constant":
            return normal(channels, states)
        groups = () if form == "shared" else (int(form),)
        return normal(batch, *groups, states, length)

    tensors: Tensors = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -normal(channels, states).exp(),
        "B": mixing(B),
        "C": mixing(C),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }
    wide = torch.promote_types(dtype, torch.float32)
    for name in NAMES:
        tensors[name] = tensors[name].to(dtype if name in FEATURES else wide)
    return {name: None if name in without else tensors[name] for name in NAMES}


def run(tensors: Tensors, backend: str, softplus: bool = True) -> dict[str, Tensor]:
    """y, the last state, and the gradients of a fixed weighted sum of both."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items() if x is not None}
    with c2d_kernels.backend(backend):
        y, last = selective_scan(**leaves, delta_softplus=softplus, return_last_state=True)
        generator = torch.Generator().manual_seed(9)
        loss = sum(
            (out.double() * torch.randn(out.shape, generator=generator).double()).sum()
            for out in (y, last)
        )
        gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y.detach(), "last": last.detach(), **dict(zip(leaves, gradients, strict=True))}


def error(actual: Tensor, exact: Tensor) -> float:
    if exact.numel() == 0:
        return 0.0
    return float((actual.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-300))


def check(tensors: Tensors, backend: str, softplus: bool = True, bound: float = 1e-12) -> None:
    expected = run(tensors, "reference", softplus)
    actual = run(tensors, backend, softplus)
    assert actual.keys() == expected.keys()
    for name, exact in expected.items():
        assert actual[name].shape == exact.shape and actual[name].dtype == exact.dtype, name
        assert error(actual[name], exact) <= bound, name


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 129, 1134])
def test_lengths(backend: str, length: int) -> None:
    check(draw(length=length), backend)


@pytest.mark.parametrize("channels", [1, 4, 16, 47, 48])
def test_channels(backend: str, channels: int) -> None:
    check(draw(batch=2, channels=channels, states=8, length=33), backend)


@pytest.mark.parametrize("states", [1, 2, 8, 9, 16, 17, 256])
def test_states(backend: str, states: int) -> None:
    check(draw(channels=3, states=states, length=18), backend)


FORMS = ["constant", "shared", "2", "3", "6"]


@pytest.mark.parametrize(("B", "C"), [*itertools.product(FORMS, FORMS)])
def test_forms_of_B_and_C(backend: str, B: str, C: str) -> None:
    check(draw(batch=2, channels=6, length=19, B=B, C=C), backend)


def test_many_blocks_share_sums(backend: str) -> None:
    """More blocks of channels in a group than sums are kept apart for (C++: kMostSets)."""
    check(draw(channels=16 * 8 + 5, states=2, length=9), backend)


@pytest.mark.parametrize("softplus", [True, False], ids=["softplus", "plain"])
@pytest.mark.parametrize("without", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_optional_arguments(backend: str, without: tuple[str, ...], softplus: bool) -> None:
    tensors = draw(without=without)
    if not softplus:
        tensors["delta"] = tensors["delta"].abs() / 2
    check(tensors, backend, softplus)


def test_empty_batch(backend: str) -> None:
    found = run(draw(batch=0), backend)
    assert found["y"].shape == found["u"].shape == (0, 5, 20)
    assert all(found[name].eq(0).all() for name in ("A", "D", "delta_bias"))


def test_empty_sequence(backend: str) -> None:
    u, delta = torch.zeros(2, 2, 5, 0).unbind()
    u.requires_grad_()
    B = torch.zeros(2, 3, 0)
    with c2d_kernels.backend(backend):
        y, last = selective_scan(u, delta, -torch.ones(5, 3), B, B, return_last_state=True)
    assert y.shape == (2, 5, 0)
    assert torch.equal(last, torch.zeros(2, 5, 3))
    (gradient,) = torch.autograd.grad(y.sum(), u)
    assert gradient.shape == u.shape


def test_a_state_that_forgets_at_once(backend: str) -> None:
    """A = -inf: only the present step is seen. The length is not a multiple of a chunk."""
    u, B, C = torch.randn(1, 3, 67), torch.randn(1, 4, 67), torch.randn(1, 4, 67)
    delta = torch.rand(1, 3, 67) + 0.1
    u.requires_grad_()
    with c2d_kernels.backend(backend):
        y = selective_scan(u, delta, torch.full((3, 4), -torch.inf), B, C)
    slope = delta * (B * C).sum(1, keepdim=True)
    torch.testing.assert_close(y, slope * u)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), u)[0], slope)


def channels_last(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def slice_of_more(x: Tensor) -> Tensor:
    return torch.cat([x + 7, x, x - 7], dim=1)[:, x.shape[1] : 2 * x.shape[1]]


def every_second_step(x: Tensor) -> Tensor:
    return torch.stack([x, x + 7], dim=-1).flatten(-2)[..., ::2]


LAYOUTS = {
    "channels-last": channels_last,
    "slices": slice_of_more,
    "slices-channels-last": lambda x: channels_last(slice_of_more(x)),
    "every-second-step": every_second_step,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(backend: str, layout: Callable[[Tensor], Tensor]) -> None:
    tensors = draw(batch=2, channels=48, states=8, length=37)
    expected = run(tensors, "reference")
    moved = {name: layout(x) if x.dim() == 3 else x for name, x in tensors.items()}
    actual = run(moved, backend)
    assert actual["y"].stride() == torch.empty_like(moved["u"]).stride()
    for name, exact in expected.items():
        assert error(actual[name], exact) <= 1e-12, name


def test_expanded_gradients(backend: str) -> None:
    """y.sum() gives a gradient without strides."""
    tensors = {name: x.requires_grad_() for name, x in draw().items()}
    found = []
    for name in (backend, "reference"):
        with c2d_kernels.backend(name):
            loss = selective_scan(**tensors, delta_softplus=True).sum()
        found.append(torch.autograd.grad(loss, list(tensors.values())))
    for actual, expected in zip(*found, strict=True):
        assert error(actual, expected) <= 1e-12


def test_the_gradient_of_the_last_state_alone(backend: str) -> None:
    tensors = draw(channels=18, length=70)
    found = []
    for name in (backend, "reference"):
        leaves = {key: x.detach().requires_grad_() for key, x in tensors.items()}
        with c2d_kernels.backend(name):
            _, last = selective_scan(**leaves, delta_softplus=True, return_last_state=True)
        loss, inputs = last.square().sum(), list(leaves.values())
        found.append(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
    for actual, expected in zip(*found, strict=True):
        assert error(actual, expected) <= 1e-12


def test_only_some_gradients(backend: str) -> None:
    tensors = draw()
    with c2d_kernels.backend(backend):
        tensors["delta"].requires_grad_()
        selective_scan(**tensors, delta_softplus=True).sum().backward()
    assert tensors["delta"].grad is not None and tensors["u"].grad is None


EXTREMES = {"huge": 1e4, "none": -1e4, "above-threshold": 20.5, "below-threshold": 19.5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("value", EXTREMES.values(), ids=EXTREMES)
def test_extreme_delta(backend: str, value: float, dtype: torch.dtype) -> None:
    """exp(delta A) underflows to 0 and that is right; nothing overflows or is not a number."""
    tensors = draw(length=70, dtype=dtype, without=("delta_bias",))
    tensors["delta"] = torch.full_like(tensors["delta"], value)
    actual = run(tensors, backend)
    exact = run({n: None if x is None else x.double() for n, x in tensors.items()}, "reference")
    for name, x in actual.items():
        assert torch.isfinite(x).all(), name
        assert error(x, exact[name]) <= (1e-12 if dtype == torch.float64 else 1e-5), name
    if value == -1e4:
        assert actual["last"].eq(0).all()


def test_growing_states(backend: str) -> None:
    """A may be positive: the states grow, and no product that passes the end is formed."""
    tensors = draw(length=300, without=("delta_bias",))
    tensors["A"] = tensors["A"].abs() * 0.02
    check(tensors, backend, bound=1e-11)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_numerics_rule(backend: str, dtype: torch.dtype) -> None:
    """At most twice the error of the reference in that precision, plus one ulp."""
    tensors = draw(batch=2, channels=48, states=8, length=600, dtype=dtype)
    exact = run({name: x.double() for name, x in tensors.items()}, "reference")
    plain, actual = run(tensors, "reference"), run(tensors, backend)
    for name, truth in exact.items():
        assert actual[name].dtype == plain[name].dtype
        ulp = torch.finfo(actual[name].dtype).eps
        assert error(actual[name], truth) <= 2 * error(plain[name], truth) + ulp, name


@pytest.mark.slow
def test_a_whole_image(backend: str) -> None:
    """57,600 steps against a loop in NumPy, which shares nothing with the reference."""
    tensors = draw(channels=3, states=2, length=57_600, without=("z", "delta_bias"))
    u, delta, A, B, C, D = (tensors[name].numpy() for name in ("u", "delta", "A", "B", "C", "D"))
    delta = np.log1p(np.exp(delta[0]))
    h, expected = np.zeros_like(A), np.empty_like(delta)
    for t in range(57_600):
        step = delta[:, t, None]
        h = np.exp(step * A) * h + step * u[0, :, t, None] * B[0, :, t]
        expected[:, t] = h @ C[0, :, t] + D * u[0, :, t]
    with c2d_kernels.backend(backend):
        y, last = selective_scan(**tensors, delta_softplus=True, return_last_state=True)
    assert error(y[0], torch.from_numpy(expected)) <= 1e-12
    assert error(last[0], torch.from_numpy(h)) <= 1e-12


@pytest.mark.parametrize("count", [1, 2, 16])
def test_repeatable_for_any_threads(
    backend: str, count: int, threads: Callable[[int], None]
) -> None:
    """Bitwise; with 16 threads for 2 blocks the native kernel cuts the sequence into segments."""
    tensors = draw(channels=20, states=8, length=9000, dtype=torch.float32, without=("z",))
    exact = run({n: None if x is None else x.double() for n, x in tensors.items()}, "torch")
    threads(count)
    first, second = run(tensors, backend), run(tensors, backend)
    for name, x in first.items():
        assert torch.equal(x, second[name]), name
        assert error(x, exact[name]) <= 2e-5, name


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "found-again"])
@pytest.mark.parametrize("count", [1, 16])
def test_the_backward_needs_no_states(
    kept: bool, count: int, threads: Callable[[int], None]
) -> None:
    """The native backward finds the states again where the forward was somebody else's."""
    if native.missing is not None:
        pytest.skip(native.missing)
    threads(count)
    tensors = {name: x.requires_grad_() for name, x in draw(channels=18, length=5000).items()}
    with c2d_kernels.backend("cpu" if kept else "torch"):
        y = selective_scan(**tensors, delta_softplus=True)
    with c2d_kernels.backend("cpu"):
        actual = torch.autograd.grad(y.square().sum(), list(tensors.values()))
    with c2d_kernels.backend("torch"):
        y = selective_scan(**tensors, delta_softplus=True)
        expected = torch.autograd.grad(y.square().sum(), list(tensors.values()))
    for found, exact in zip(actual, expected, strict=True):
        assert error(found, exact) <= 1e-12


def test_the_native_op_refuses_what_does_not_fit() -> None:
    """A direct caller gets an error, not a read out of bounds."""
    if native.missing is not None:
        pytest.skip(native.missing)
    op = torch.ops.c2d_native.selective_scan.default
    good = [*draw().values()]
    wrong = {
        "delta has size 19": (1, good[1][..., 1:]),
        r"A must be \(D, N\)": (2, good[2][1:]),
        "B must be": (3, good[3][:, :1]),
        "z must have the dimensions and type of u": (6, good[6].float()),
    }
    for sentence, (place, tensor) in wrong.items():
        arguments = [*good[:place], tensor, *good[place + 1 :]]
        with pytest.raises(RuntimeError, match=sentence):
            op(*arguments, True, False)
