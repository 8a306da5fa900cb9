"""Refusals: what an operator cannot take, said in one sentence that names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def features(**tensors: Tensor) -> None:
    """Tensors that must share one floating dtype and one device, that of the first."""
    first_name, first = next(iter(tensors.items()))
    parameters(first, **tensors)
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{name} must have the dtype of {first_name}, {_short(first.dtype)}, "
                f"got {_short(tensor.dtype)}: convert one of them."
            )


def parameters(like: Tensor, **tensors: Tensor) -> None:
    """Floating tensors (tables, weights) of any precision on the device of `like`."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}.")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name} must be float32, bfloat16, float16 or float64, got "
                f"{_short(tensor.dtype)}: convert it."
            )
        if tensor.device != like.device:
            raise ValueError(
                f"{name} must be on {like.device} like the features, got {tensor.device}: move it."
            )


def labels(like: Tensor, name: str, tensor: Tensor) -> None:
    """A tensor of whole numbers on the device of `like`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}.")
    if tensor.dtype not in (torch.uint8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"{name} must hold integers, got {_short(tensor.dtype)}: convert it.")
    if tensor.device != like.device:
        raise ValueError(
            f"{name} must be on {like.device} like the features, got {tensor.device}: move it."
        )


def shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], meaning: str) -> None:
    """The expected shape, None standing for any size; `meaning` spells it, as in "(B, H, W, C)"."""
    matches = tensor.dim() == len(expected) and all(
        want is None or size == want for size, want in zip(tensor.shape, expected, strict=True)
    )
    if not matches:
        sizes = ", ".join("*" if want is None else str(want) for want in expected)
        raise ValueError(
            f"{name} must have the shape {meaning} = ({sizes}), got {tuple(tensor.shape)}."
        )


def feature_map(name: str, tensor: Tensor) -> None:
    """A channels-last map (B, H, W, C) with at least one pixel and one channel."""
    shape(name, tensor, (None, None, None, None), "(B, H, W, C)")
    if any(size == 0 for size in tensor.shape[1:]):
        raise ValueError(
            f"{name} must have at least one row, column and channel, got {tuple(tensor.shape)}."
        )


def given(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The optional tensors that are there, by name."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def positive(name: str, value: int, least: int = 1) -> None:
    """A whole number of at least `least`."""
    whole(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def whole(name: str, value: int) -> None:
    """An int (or a traced one)."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}.")


def divides(name: str, divisor: int, what: str, number: int) -> None:
    """A number that divides another without remainder."""
    if number % divisor != 0:
        raise ValueError(f"{name} must divide {what}, {number}, got {divisor}.")


def window_multiple(name: str, tensor: Tensor, window: tuple[int, int]) -> None:
    """A map whose height and width are multiples of the window."""
    height, width = tensor.shape[1:3]
    if height % window[0] != 0 or width % window[1] != 0:
        raise ValueError(
            f"{name} must have a height and width that are multiples of the window "
            f"{window[0]}x{window[1]}, got {height}x{width}: pad it first."
        )


def window_pair(name: str, value: int | tuple[int, int], least: int = 1) -> tuple[int, int]:
    """(height, width) of a window, or of what goes with one, given as one int or two."""
    if not isinstance(value, (int, torch.SymInt, tuple, list)):
        raise TypeError(
            f"{name} must be one int or (height, width), got a value of type "
            f"{type(value).__name__}."
        )
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be one int or (height, width), got {value}.")
    for length in pair:
        positive(name, length, least)
    return pair


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
