"""The native library `_native.so`: loading it, and why it is not there when it is not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .build_stamp import of_sources

PATH = Path(__file__).with_name("_native.so")


def _built() -> dict[str, Any]:
    """The note that the build wrote beside the library."""
    try:
        return json.loads(PATH.with_name("_build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _build_note() -> str:
    """The build's own description, one line."""
    return _built().get(
        "note",
        "this is a source tree, or an install without a C++ compiler; pip install . builds it",
    )


def _outdated() -> str | None:
    """In a source tree (an editable install): that the library was built from other sources."""
    sources, built = PATH.parents[1] / "csrc", _built().get("sources")
    if missing is not None or built is None or not sources.is_dir():
        return None
    if of_sources(sources) == built:
        return None
    return (
        f"the native library {PATH.name} was built from other sources than csrc now holds: rebuild "
        "it (pip install --no-build-isolation -e .)"
    )


def _load() -> str | None:
    """Load the library; the reason if that fails, which must not keep anyone from importing us."""
    if not PATH.exists():
        return f"the native library was not built: {_build_note()}"
    try:
        torch.ops.load_library(str(PATH))
    except Exception as error:  # whatever the loader raises, it is a reason and no more
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        return f"the native library {PATH.name} did not load: {first_line}"
    return None


missing: str | None = _load()
outdated: str | None = _outdated()
"""Why the library should be built again, if it should."""
if outdated is not None:
    warnings.warn(f"{outdated}.")


def lacking(names: Sequence[str]) -> str | None:
    """Which of these operators the loaded library does not have, as a reason, or None."""
    absent = [name for name in names if not hasattr(torch.ops.c2d_native, name)]
    if missing is not None or not absent:
        return None
    return f"the native library is of another version and has no {absent[0]}: rebuild it"


bfloat16: bool = (
    missing is None
    and lacking(["bfloat16_products"]) is None
    and torch.ops.c2d_native.bfloat16_products()
)
"""Whether kernels that can multiply bfloat16 do so here; else they compute it in float32."""


def build_info() -> str:
    """The library's compilers and the instruction set in use, or the reason why it is absent."""
    if missing is not None:
        return missing
    about = lacking(["build_info"]) or torch.ops.c2d_native.build_info()
    return about if outdated is None else f"{about}; {outdated}"


def refusal(x: Tensor, *_: object) -> str | None:
    """Why a native CPU kernel cannot run on arguments that begin with `x`, or None: it can."""
    if missing is not None:
        return missing
    if x.device.type != "cpu":
        return f"it runs on CPU tensors, and these are on {x.device}"
    return None


def ready(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as a kernel that computes features of `dtype` reads it: channels side by side.

    In float32, or float64 for float64 features.
    """
    x = x.to(torch.promote_types(dtype, torch.float32))
    return x if x.stride(-1) == 1 else x.contiguous()


def bias_column(weight: Tensor, bias: Tensor) -> Tensor:
    """(out, in + 1), as kernels read a Linear: its bias is the weight of an input that is 1."""
    return torch.cat([weight, bias[:, None]], dim=1)


def multiplies_bfloat16(features: torch.dtype) -> bool:
    """Whether kernels that can multiply bfloat16 do so for such maps; else they take float32."""
    return bfloat16 and features == torch.bfloat16


def computed(x: Tensor) -> Tensor:
    """A map in the type that kernels with products of bfloat16 take: its own, or float32."""
    if multiplies_bfloat16(x.dtype):
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bfloat16_columns(matrix: Tensor) -> Tensor:
    """bias_column's matrix for products of bfloat16, which takes its columns in pairs.

    The bias is two columns, its bfloat16 and what that leaves over, so that it is not rounded to 8
    bits; a zero follows an odd number of weights.
    """
    weight, bias = matrix[:, :-1], matrix[:, -1:]
    high = bias.bfloat16()
    parts = [weight, high, bias - high, weight.new_zeros(len(weight), weight.shape[1] % 2)]
    return torch.cat([part.bfloat16() for part in parts], dim=1)


def column_after_norm(weight: Tensor, bias: Tensor, norm: Tensor, norm_bias: Tensor) -> Tensor:
    """bias_column for a Linear behind a LayerNorm, whose affine part it takes over.

    Not by torch.addmv: its sums differ with the number of threads.
    """
    return bias_column(weight * norm, bias + (weight * norm_bias).sum(1))


def gradients_before_norm(
    gradient: Tensor, norm: Tensor, norm_bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the norm's and the Linear's weights and biases from column_after_norm's."""
    of_weight, of_bias = gradient[:, :-1], gradient[:, -1]
    of_norm, of_norm_bias = (of_weight * weight).sum(0), (of_bias[:, None] * weight).sum(0)
    return of_norm, of_norm_bias, of_weight * norm + of_bias[:, None] * norm_bias, of_bias
