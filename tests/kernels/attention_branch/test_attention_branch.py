"""Refusals of the attention branch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.cases import CASES


def test_refusals() -> None:
    case = CASES["branch-permuted-9-keys"]
    tensors = case.tensors(torch.float32)
    refused = [
        ({"window_size": 3, "shift": 0}, "window_size must be even, since keys are cells of 2x2"),
        ({"shift": 3}, "shift must be even"),
        ({"num_heads": 3}, "num_heads must divide the channels of x, 20, got 3"),
        ({"window_size": 4, "shift": 0}, "multiples of the window 4x4, got 6x12"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            replace(case, options={**case.options, **options}).call(tensors)
    missing = {name: x for name, x in tensors.items() if name != "kv.bias"}
    both = {**tensors, "qkv.weight": tensors["q.weight"]}
    for wrong, message in ((missing, "must hold 'kv.bias'"), (both, "weights holds 'qkv.weight'")):
        with pytest.raises(ValueError, match=message):
            case.call(wrong)
