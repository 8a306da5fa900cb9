"""The feed-forward with a convolution: its tiles, and far tails of GELU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import c2d_kernels
from c2d_kernels import native
from tests.kernels.bfloat16_checks import needs_products
from tests.kernels.cases import CASES
from tests.kernels.comparison import gradients, relative_error

pytestmark = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))


@pytest.mark.parametrize("norm_first", [False, True], ids=["norm-last", "norm-first"])
@pytest.mark.parametrize(
    "size",
    [(40, 66, 3), (1, 130, 250), (1, 3, 4), (2, 1, 7), (1, 9, 121)],
    ids=["many-tiles", "tiles-both-ways", "small", "one-row", "wide"],
)
def test_gradients_across_tiles(size: tuple[int, int, int], norm_first: bool) -> None:
    case = CASES["conv-ffn-norm-last"]
    case = replace(
        case, shapes={**case.shapes, "x": (*size, 18)}, options={"norm_first": norm_first}
    )
    found, wanted = (gradients(case, case.tensors(), name) for name in ("cpu", "reference"))
    for name, want in wanted.items():
        assert relative_error(found[name], want) <= 1e-12, name


def test_far_tails_of_gelu() -> None:
    """Where its density is 1e-34, the slope times a small gradient is 0, not a denormal number.

    Those made a training step four times as slow.
    """
    tensors = CASES["conv-ffn-norm-last"].tensors(torch.float32)
    for name in ("fc1", "dwconv"):
        tensors[f"{name}.weight"].zero_()
        tensors[f"{name}.bias"].fill_(-12.5)
    tensors["norm.weight"].fill_(1e-8)
    found = gradients(CASES["conv-ffn-norm-last"], tensors, "cpu")
    for name in ("fc1.bias", "dwconv.bias"):
        assert (found[name] == 0).all(), name
    assert torch.isfinite(found["x"]).all()


@needs_products
def test_bfloat16_across_tiles() -> None:
    """A pixel's value is bitwise the same wherever tiles are cut, on any number of threads."""
    case = CASES["conv-ffn-norm-last"]
    tensors = {name: x.bfloat16() for name, x in case.tensors().items()}
    generator = torch.Generator().manual_seed(1)
    tensors["x"] = torch.randn(1, 80, 300, 18, generator=generator).bfloat16()
    before = torch.get_num_threads()
    with c2d_kernels.backend("cpu"):
        whole = case.call(tensors)
        try:
            torch.set_num_threads(3)
            part = case.call({**tensors, "x": tensors["x"][:, 21:70, 77:290]})
        finally:
            torch.set_num_threads(before)
    assert torch.equal(part[:, 2:-2, 2:-2], whole[:, 23:68, 79:288])
