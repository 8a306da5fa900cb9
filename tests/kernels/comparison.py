"""Gradients of a case, and how far tensors are apart."""

from __future__ import annotations

import torch
from torch import Tensor

import c2d_kernels
from tests.kernels.rows import Case, Tensors


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Error relative to the largest exact number."""
    if exact.numel() == 0:
        return 0.0
    scale = exact.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return ((actual.double() - exact).abs().max() / scale).item()


def gradients(case: Case, tensors: Tensors, backend: str, names: tuple = ()) -> dict[str, Tensor]:
    """Gradients of a fixed weighted sum of the result by the tensors of these names, or all."""
    names = names or tuple(tensors)
    tensors = {name: x.detach().requires_grad_(name in names) for name, x in tensors.items()}
    with c2d_kernels.backend(backend):
        out = case.call(tensors)
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
        found = torch.autograd.grad((out * weight).sum(), [tensors[name] for name in names])
    return dict(zip(names, found, strict=True))
