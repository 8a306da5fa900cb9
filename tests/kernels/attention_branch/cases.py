"""The attention branch in the tables of the shared tests."""

from __future__ import annotations

from c2d_kernels.ops.attention_branch.op import flops
from tests.kernels.rows import Case, Formula, matrices_that_keep_variance, weights_of


def branch(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    *,
    permuted: bool = False,
    window: int = 4,
    heads: int = 2,
    shift: int = 2,
) -> Case:
    inputs = {"q": channels, "kv": channels // 2} if permuted else {"qkv": 3 * channels}
    matrices = {module: (rows, channels) for module, rows in inputs.items()}
    matrices |= {"proj": (channels, channels), "norm": (channels,)}
    keys = window // 2 if permuted else window
    return Case(
        name,
        "attention_branch",
        {
            "x": (batch, height, width, channels),
            "bias_table": ((2 * keys - 1) ** 2, heads),
            **weights_of(matrices),
        },
        {"window_size": window, "num_heads": heads, "shift": shift},
        ("x",),
        prepare=matrices_that_keep_variance,
        result="x",
        composed=True,
        bfloat16_products=True,
    )


SMALL = [
    branch("branch", 1, 4, 6, 4, window=2, shift=1),
    branch("branch-permuted", 1, 8, 4, 4, permuted=True),
]
AWKWARD = [
    branch("branch-49-tokens", 2, 14, 7, 12, window=7, shift=3),
    branch("branch-no-batch", 0, 8, 4, 2),
    branch("branch-1x1", 1, 1, 1, 18, window=1, shift=0),
    branch("branch-srformer", 1, 32, 48, 60, permuted=True, window=16, heads=6, shift=8),
    branch("branch-permuted-9-keys", 2, 6, 12, 20, permuted=True, window=6, shift=4),
    branch("branch-permuted-49-keys", 1, 14, 28, 12, permuted=True, window=14, heads=3, shift=6),
    branch("branch-permuted-no-batch", 0, 8, 4, 4, permuted=True),
    branch("branch-permuted-2x2", 1, 2, 2, 4, permuted=True, window=2, shift=0),
]
FLOPS = {  # of the small cases, by hand
    "branch": 2 * 24 * (4 * 12 + 2 * 4 * 4 + 4 * 4),
    "branch-permuted": 2 * 32 * (4 * 6 + 2 * 4 * 4 + 4 * 4),
}
FORMULAS = [
    Formula(
        flops(1, 64, 64, 60, 8, False),
        2 * 4096 * (60 * 180 + 2 * 64 * 60 + 60 * 60),
        "qkv, attention, projection",
    ),
    Formula(
        flops(1, 64, 64, 60, 16, True),
        2 * 4096 * (60 * 90 + 2 * 64 * 60 + 60 * 60),
        "q, kv, permuted attention, projection",
    ),
]
