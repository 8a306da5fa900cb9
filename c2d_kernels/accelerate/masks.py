"""Index tensors and masks that a network hands to its layers at each call: are they Swin's?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .structure import position_index, shift_mask

_known: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""A tensor's version, and what it was found equal to."""


def are_swins(index: object, mask: object, size: tuple[int, int], window: int, shift: int) -> bool:
    """Whether a layer was given Swin's index into the bias table and its mask, if it is shifted."""
    return _equals(index, ("index", window)) and (
        not shift or _equals(mask, ("mask", *size, window, shift))
    )


def _equals(found: object, meaning: tuple[object, ...]) -> bool:
    """Compared once for each state of a tensor: a network hands the same one to all its layers."""
    if torch.compiler.is_compiling() or not isinstance(found, Tensor):
        return False
    version = 0 if found.is_inference() else found._version
    known = _known.get(found)
    if known is None or known[:2] != (version, meaning):
        known = _known[found] = (version, meaning, _compare(found, meaning))
    return known[2]


def _compare(found: Tensor, meaning: tuple[object, ...]) -> bool:
    kind, *numbers = meaning
    expected = (position_index if kind == "index" else shift_mask)(*numbers)  # type: ignore[arg-type]
    if kind == "index" and found.numel() == expected.numel():
        found = found.reshape(expected.shape)
    return found.shape == expected.shape and torch.equal(found.cpu().to(expected.dtype), expected)
