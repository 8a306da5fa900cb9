"""The selective scan in the tables of the shared tests."""

from __future__ import annotations

import torch

from c2d_kernels.ops.selective_scan.op import flops
from tests.kernels.rows import B, Case, Export, Formula, L, empty, flat, grow, refusals, to


def scan(
    name: str, batch: int, channels: int, length: int, states: int, groups: int | None = None
) -> Case:
    matrix = (batch, states, length) if groups is None else (batch, groups, states, length)
    sequence = (batch, channels, length)
    return Case(
        name,
        "selective_scan",
        {
            "u": sequence,
            "delta": sequence,
            "A": (channels, states),
            "B": matrix,
            "C": matrix,
            "D": (channels,),
            "z": sequence,
            "delta_bias": (channels,),
        },
        {"delta_softplus": True, "return_last_state": True},
        ("u", "delta", "B", "C", "z"),
        prepare=lambda tensors: {**tensors, "A": -tensors["A"].exp()},
        result="u",
    )


SMALL = [
    scan("scan", 2, 3, 5, 2),
]
AWKWARD = [
    scan("scan-one-step", 2, 3, 1, 4),
    scan("scan-1134-steps", 1, 4, 1134, 3),
    scan("scan-47-channels", 1, 47, 33, 8),
    scan("scan-groups", 2, 6, 9, 3, groups=2),
    scan("scan-no-batch", 0, 3, 4, 2),
]
FLOPS = {  # of the small cases, by hand
    "scan": 18 * 2 * 3 * 5 * 2,
}
FORMULAS = [
    Formula(flops(1, 48, 100, 8), 18 * 48 * 100 * 8, "18 B L D N"),
]
LENGTHS = {0: B, 2: L}
EXPORTS = [
    Export(
        "scan",
        {"u": LENGTHS, "delta": LENGTHS, "z": LENGTHS, "B": LENGTHS, "C": LENGTHS},
        {B: 2, L: 6},
        {B: 3, L: 11},
        routes=("op", "auto"),  # the reference's loop is unrolled: its length is fixed
    ),
]
REFUSALS = refusals(
    SMALL[0],
    ({"u": [1.0]}, TypeError, "u must be a torch.Tensor, got list."),
    ({"u": to(torch.int64)}, TypeError, "u must be float32, bfloat16, float16 or"),
    ({"u": flat}, ValueError, "u must have the shape (batch, D, L) = (*, *, *), got"),
    ({"u": empty(1)}, ValueError, "u must have at least one channel, got (2, 0"),
    ({"delta": to(torch.float32)}, TypeError, "delta must have the dtype of u, float"),
    ({"delta": grow(2)}, ValueError, "delta must have the shape (batch, D, L) = (2, "),
    ({"delta": None}, TypeError, "delta must be a torch.Tensor, got NoneType."),
    ({"A": to(torch.complex64)}, TypeError, "A must be float32, bfloat16, float16 or"),
    ({"A": grow(0)}, ValueError, "A must have the shape (D, N) = (3, *), got (4, 2)."),
    ({"A": grow(1, 255)}, ValueError, "A must have 1 to 256 states, got 257."),
    ({"B": grow(1)}, ValueError, "B must have the shape (batch, N, L) = (2, 2, 5)"),
    ({"B": lambda x: x[0, 0]}, ValueError, "B must be (D, N), (batch, N, L) or (batch"),
    ({"C": lambda x: x[0]}, ValueError, "C must have the shape (D, N) = (3, 2), got"),
    (
        {"C": lambda x: x[:, None].expand(2, 2, 2, 5)},
        ValueError,
        "the groups G of C must divide the channels of u, 3, got 2.",
    ),
    ({"D": grow(0)}, ValueError, "D must have the shape (D,) = (3), got (4,)."),
    ({"z": grow(1)}, ValueError, "z must have the shape (batch, D, L) = (2, 3, 5)"),
    ({"z": to(torch.float16)}, TypeError, "z must have the dtype of u, float64, got"),
    ({"delta_bias": grow(0)}, ValueError, "delta_bias must have the shape (D,) = (3)"),
)
