"""Each refusal: which error, and the sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from c2d_kernels import Region, coordinate_query, coordinate_query_moments
from c2d_kernels import coordinate_query_weight_shapes as weight_shapes
from tests.kernels.cases import SMALL

CASES = {case.operator: case for case in SMALL}


@dataclass(frozen=True)
class Refusal:
    """A call that must be refused: the small case with some arguments changed."""

    operator: str
    change: dict[str, object]  # argument -> value, or function of the value it had
    error: type[Exception]
    sentence: str

    @property
    def id(self) -> str:
        return f"{self.operator}-{self.sentence[:40]}"


def grow(axis: int, by: int = 1) -> Callable:
    def changed(x: torch.Tensor) -> torch.Tensor:
        shape = list(x.shape)
        shape[axis] += by
        return x.new_zeros(shape)

    return changed


def to(dtype: torch.dtype) -> Callable:
    return lambda x: x.to(dtype)


def empty(axis: int) -> Callable:
    return lambda x: x.narrow(axis, 0, 0)


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, 1)


SCAN, ATTENTION, PERMUTED = "selective_scan", "window_attention", "permuted_window_attention"
CHANNEL, SPATIAL, QUERY = "channel_correlation", "spatial_correlation", "coordinate_query"
NORM = "mlps.0.norm.weight"

REFUSALS = [
    Refusal(SCAN, {"u": [1.0]}, TypeError, "u must be a torch.Tensor, got list."),
    Refusal(SCAN, {"u": to(torch.int64)}, TypeError, "u must be float32, bfloat16, float16 or"),
    Refusal(SCAN, {"u": flat}, ValueError, "u must have the shape (batch, D, L) = (*, *, *), got"),
    Refusal(SCAN, {"u": empty(2)}, ValueError, "u must have a channel and a time step, got (2, 3"),
    Refusal(SCAN, {"delta": to(torch.float32)}, TypeError, "delta must have the dtype of u, float"),
    Refusal(SCAN, {"delta": grow(2)}, ValueError, "delta must have the shape (batch, D, L) = (2, "),
    Refusal(SCAN, {"delta": None}, TypeError, "delta must be a torch.Tensor, got NoneType."),
    Refusal(SCAN, {"A": to(torch.complex64)}, TypeError, "A must be float32, bfloat16, float16 or"),
    Refusal(SCAN, {"A": grow(0)}, ValueError, "A must have the shape (D, N) = (3, *), got (4, 2)."),
    Refusal(SCAN, {"A": grow(1, 255)}, ValueError, "A must have 1 to 256 states, got 257."),
    Refusal(SCAN, {"B": grow(1)}, ValueError, "B must have the shape (batch, N, L) = (2, 2, 5)"),
    Refusal(
        SCAN, {"B": lambda x: x[0, 0]}, ValueError, "B must be (D, N), (batch, N, L) or (batch"
    ),
    Refusal(SCAN, {"C": lambda x: x[0]}, ValueError, "C must have the shape (D, N) = (3, 2), got"),
    Refusal(
        SCAN,
        {"C": lambda x: x[:, None].expand(2, 2, 2, 5)},
        ValueError,
        "the groups G of C must divide the channels of u, 3, got 2.",
    ),
    Refusal(SCAN, {"D": grow(0)}, ValueError, "D must have the shape (D,) = (3), got (4,)."),
    Refusal(SCAN, {"z": grow(1)}, ValueError, "z must have the shape (batch, D, L) = (2, 3, 5)"),
    Refusal(SCAN, {"z": to(torch.float16)}, TypeError, "z must have the dtype of u, float64, got"),
    Refusal(SCAN, {"delta_bias": grow(0)}, ValueError, "delta_bias must have the shape (D,) = (3)"),
    Refusal(ATTENTION, {"qkv": flat}, ValueError, "qkv must have the shape (B, H, W, C) = (*, *"),
    Refusal(ATTENTION, {"qkv": empty(1)}, ValueError, "qkv must have at least one row, column and"),
    Refusal(
        ATTENTION,
        {"qkv": grow(1)},
        ValueError,
        "qkv must have a height and width that are multiples of the window 2x2, got 5x6: pad it",
    ),
    Refusal(ATTENTION, {"qkv": grow(3)}, ValueError, "3 * num_heads must divide the channels of"),
    Refusal(ATTENTION, {"window_size": 0}, ValueError, "window_size must be at least 1, got 0."),
    Refusal(ATTENTION, {"window_size": 4.0}, TypeError, "window_size must be an int, got float."),
    Refusal(ATTENTION, {"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0."),
    Refusal(
        ATTENTION, {"shift": 2}, ValueError, "shift must be from 0 to window_size - 1, 1, got 2"
    ),
    Refusal(
        ATTENTION, {"shift": -1}, ValueError, "shift must be from 0 to window_size - 1, 1, got"
    ),
    Refusal(
        ATTENTION,
        {"bias_table": grow(0)},
        ValueError,
        "bias_table must have the shape ((2w-1)^2, heads) = (9, 2), got (10, 2).",
    ),
    Refusal(
        ATTENTION, {"bias_table": to(torch.int32)}, TypeError, "bias_table must be float32, bf"
    ),
    Refusal(PERMUTED, {"kv": grow(3)}, ValueError, "kv must have the shape (B, H, W, C/2) = (1, 8"),
    Refusal(PERMUTED, {"kv": to(torch.float32)}, TypeError, "kv must have the dtype of q, float64"),
    Refusal(PERMUTED, {"shift": 1}, ValueError, "shift must be even, since keys are cells of 2x2"),
    Refusal(
        PERMUTED, {"window_size": 1, "shift": 0}, ValueError, "window_size must be even, since"
    ),
    Refusal(PERMUTED, {"num_heads": 3}, ValueError, "num_heads must divide the channels of q, 4"),
    Refusal(
        PERMUTED, {"bias_table": grow(1)}, ValueError, "bias_table must have the shape ((w-1)^"
    ),
    Refusal(CHANNEL, {"v": grow(2)}, ValueError, "v must have the shape (B, H, W, C) = (2, 5, 4, "),
    Refusal(CHANNEL, {"v": to(torch.float32)}, TypeError, "v must have the dtype of q, float64, g"),
    Refusal(CHANNEL, {"window_size": 0}, ValueError, "window_size must be at least 1, got 0."),
    Refusal(CHANNEL, {"window_size": (4, 4, 4)}, ValueError, "window_size must be one int or (hei"),
    Refusal(CHANNEL, {"window_size": "8"}, TypeError, "window_size must be one int or (height, wi"),
    Refusal(CHANNEL, {"q": empty(3)}, ValueError, "q must have at least one row, column and chan"),
    Refusal(SPATIAL, {"window_size": 3}, ValueError, "q must have a height and width that are mul"),
    Refusal(SPATIAL, {"base_window": 3}, ValueError, "base_window must divide the height of the w"),
    Refusal(SPATIAL, {"num_heads": 3}, ValueError, "num_heads must divide the channels of q, 4, g"),
    Refusal(SPATIAL, {"weight": grow(1)}, ValueError, "weight must have the shape (1, R_y R_x) = "),
    Refusal(SPATIAL, {"weight_bias": grow(0)}, ValueError, "weight_bias must have the shape (1,) "),
    Refusal(SPATIAL, {"bias_table": grow(0)}, ValueError, "bias_table must have the shape ((2h-1)"),
    Refusal(QUERY, {"image": grow(3)}, ValueError, "image must have the shape (B, H, W, 3) = (2, "),
    Refusal(QUERY, {"heads": 3}, ValueError, "heads must divide the channels of features, 4, got"),
    Refusal(
        QUERY, {"attentions": 2}, ValueError, "attentions must be from 0 to levels - 1, 1, got"
    ),
    Refusal(QUERY, {"levels": 3}, ValueError, "weights must hold 'mlps.2.norm.weight': see"),
    Refusal(QUERY, {"attentions": 0}, ValueError, "weights holds 'attentions.0.qkv.weight', which"),
    Refusal(
        QUERY, {NORM: grow(0)}, ValueError, "weights['mlps.0.norm.weight'] must have the shape"
    ),
    Refusal(QUERY, {"size": (4, 4)}, ValueError, "size and coords exclude each other: give a grid"),
    Refusal(QUERY, {"coords": None}, ValueError, "size, or coords with cell, must be given."),
    Refusal(QUERY, {"cell": None}, ValueError, "size, or coords with cell, must be given."),
    Refusal(QUERY, {"cell": grow(1)}, ValueError, "cell must have the shape (B, 2) = (2, 2), got"),
    Refusal(
        QUERY, {"coords": to(torch.float16)}, TypeError, "coords must be float32 or float64, g"
    ),
    Refusal(
        QUERY,
        {"coords": lambda x: x.requires_grad_()},
        ValueError,
        "coords must not require a gradient: positions have none; detach it.",
    ),
    Refusal(
        QUERY,
        {"region": Region((0, 1), (0, 1), (0, 0), (2, 3))},
        ValueError,
        "region must come with size: it is a part of a grid.",
    ),
    Refusal(
        QUERY, {"moments": []}, ValueError, "moments must hold one tensor an attention, 1, got"
    ),
    Refusal(
        QUERY,
        {"moments": [torch.zeros(2, 2, 2, 3)]},
        ValueError,
        "moments[0] must have the shape (B, heads, head_dim, head_dim) = (2, 2, 2, 2), got",
    ),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.id)
def test_refusal(refusal: Refusal) -> None:
    case = CASES[refusal.operator]
    tensors, options = case.tensors(), dict(case.options)
    for name, value in refusal.change.items():
        target = tensors if name in tensors else options
        target[name] = value(target[name]) if callable(value) else value
    changed = type(case)(**{**vars(case), "options": options})
    with pytest.raises(refusal.error) as caught:
        changed.call(tensors)
    message = str(caught.value)
    assert message.startswith(refusal.sentence)
    assert message.endswith(".") and "\n" not in message


GRID = {"levels": 2, "heads": 2, "size": (12, 10)}
CROP = Region((0, 6), (0, 5), (0, 0), (6, 5))
GRID_REFUSALS = [  # changes to a valid region query, the sentence
    ({"size": (12,)}, "size must be (H_out, W_out), got (12,)."),
    ({"size": (12, 0)}, "size must be at least 1, got 0."),
    ({"region": CROP._replace(rows=(3, 3))}, "region.rows must be a non-empty part of 0 to 12"),
    ({"region": CROP._replace(columns=(4, 11))}, "region.columns must be a non-empty part of 0 to"),
    ({"region": CROP._replace(lr_origin=(3, 0))}, "region.lr_origin must place the 4 rows of feat"),
    (
        {"region": CROP._replace(rows=(0, 8))},
        "region.rows (0, 8) reads LR rows 0 to 4, but features",
    ),
    ({"region": CROP._replace(lr_origin=(1, 0))}, "region.rows (0, 6) reads LR rows 0 to 3, but f"),
]


@pytest.mark.parametrize(("change", "sentence"), GRID_REFUSALS, ids=lambda value: str(value)[:50])
def test_grid_refusal(change: dict, sentence: str) -> None:
    features, image = torch.zeros(1, 4, 5, 4), torch.zeros(1, 4, 5, 3)
    weights = {n: torch.zeros(s) for n, s in weight_shapes(4, levels=2, heads=2).items()}
    arguments = {**GRID, "region": CROP}
    coordinate_query(features, image, weights, **arguments)
    with pytest.raises(ValueError) as caught:
        coordinate_query(features, image, weights, **{**arguments, **change})
    assert str(caught.value).startswith(sentence)
    with pytest.raises(ValueError, match="moments must leave an attention to accumulate: there"):
        coordinate_query_moments(features, weights, **arguments, moments=[torch.zeros(1, 2, 2, 2)])
