"""`python -m bench.utilisation`: how much of a core's arithmetic the native operators use.

C2D_ISA=avx2 python -m bench.utilisation        # one thread, forward, float32; a table

Each operator runs in turns with a product of two 2048 x 2048 matrices in the same process; its row
is what it reaches of that product's speed. Multiply-adds are those that its kernel executes, which
the kernel's header in csrc counts; norms, GELUs and exponentials are not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

import c2d_kernels
from bench import machine
from bench.stored import markdown

SIDE = 2048  # of the matrices
_RUNS = 9


@dataclass(frozen=True)
class Row:
    """An operator's call, and the multiply-adds of it."""

    name: str
    call: Callable[[], Tensor]
    multiply_adds: float


def _weights(**modules: tuple[int, ...]) -> dict[str, Tensor]:
    found = {}
    for name, shape in modules.items():
        matrix = torch.randn(shape)
        found[f"{name}.weight"] = matrix / matrix[0].numel() ** 0.5 if len(shape) > 1 else matrix
        found[f"{name}.bias"] = torch.randn(shape[:1])
    return found


def layers(side: int, C: int, window: int, heads: int) -> list[Row]:
    """The layers of SwinIR, HiET and SRFormer, of C channels and twice as many hidden ones."""
    x, tokens, hidden = torch.randn(1, side, side, C), side * side, 2 * C
    square, norm = (C, C), (C,)
    mlp = {"fc1": (hidden, C), "fc2": (C, hidden)}
    qkv = {"qkv": (3 * C, C), "proj": square}
    table = torch.randn((2 * window - 1) ** 2, heads)
    options = {"window_size": window, "num_heads": heads, "shift": window // 2}
    of_layer = _weights(norm1=norm, norm2=norm, **qkv, **mlp)
    of_branch = _weights(norm=norm, **qkv)
    of_post = _weights(norm1=norm, norm2=norm, proj=square, **mlp)
    of_conv = _weights(norm=norm, dwconv=(hidden, 1, 5, 5), **mlp)
    of_mlp = _weights(norm=norm, **mlp)
    branch = 4 * C**2 + 2 * window**2 * C
    size = f"{side}², C = {C}"
    return [
        Row(
            f"`window_layer`, {size}, window {window}",
            lambda: c2d_kernels.window_layer(x, table, of_layer, **options),
            tokens * (branch + 2 * C * hidden),
        ),
        Row(
            f"`attention_branch`, {size}, window {window}",
            lambda: c2d_kernels.attention_branch(x, table, of_branch, **options),
            tokens * branch,
        ),
        Row(
            f"`res_post_norm`, {size}",
            lambda: c2d_kernels.res_post_norm(x, [x], of_post),
            tokens * (C**2 + 2 * C * hidden),
        ),
        Row(
            f"`mlp_branch`, {size}",
            lambda: c2d_kernels.mlp_branch(x, of_mlp),
            tokens * 2 * C * hidden,
        ),
        Row(
            f"`conv_ffn`, {size}",
            lambda: c2d_kernels.conv_ffn(x, of_conv, norm_first=True),
            tokens * (2 * C * hidden + 25 * hidden),
        ),
    ]


def correlations(side: int, C: int, window: int) -> list[Row]:
    """HiT's channel correlation of C channels."""
    q, v = torch.randn(2, 1, side, side, C)
    return [
        Row(
            f"`channel_correlation`, {side}², C = {C}, window {window}",
            lambda: c2d_kernels.channel_correlation(q, v, window_size=window),
            side * side * 2 * C**2,
        )
    ]


def decoder(side: int, scale: int, width: int = 64) -> list[Row]:
    """HIIF-L's decoder, at every pixel of the larger picture."""
    sizes = {"levels": 3, "heads": 4, "attentions": 1}
    shapes = c2d_kernels.coordinate_query_weight_shapes(width, **sizes)
    weights = {
        name: torch.randn(shape) / (shape[1] ** 0.5 if len(shape) == 2 else 1)
        for name, shape in shapes.items()
    }
    features, image = torch.randn(1, side, side, width), torch.rand(1, side, side, 3)
    to = (scale * side, scale * side)
    return [
        Row(
            f"`coordinate_query`, {side}² to {to[0]}², width {width}",
            lambda: c2d_kernels.coordinate_query(
                features, image, weights=weights, size=to, **sizes
            ),
            to[0] * to[1] * 14 * width**2,
        )
    ]


def seconds(calls: Sequence[Callable[[], Tensor]]) -> list[float]:
    """Medians of processor time, in turns."""
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(_RUNS + 1):
        for call, times in zip(calls, found, strict=True):
            begin = time.process_time()
            call()
            if turn:
                times.append(time.process_time() - begin)
    return [median(times) for times in found]


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.utilisation", description=__doc__)
    parser.add_argument("--side", type=int, default=192, help="of the maps, in pixels")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    a, b = torch.randn(2, SIDE, SIDE)
    rows = []
    for row in [
        *layers(options.side, 60, 8, 6),
        *layers(options.side, 180, 8, 6),
        *correlations(options.side, 30, 64),
        *decoder(options.side // 4, 4),
    ]:
        product, took = seconds([lambda: a @ b, row.call])
        ceiling, speed = 2 * SIDE**3 / product / 1e9, 2 * row.multiply_adds / took / 1e9
        rows.append([row.name, f"{speed:.0f}", f"{ceiling:.0f}", f"{100 * speed / ceiling:.0f} %"])
        print(" | ".join(rows[-1]), flush=True)
    about = machine.describe()
    print(f"\n{about['processor']}, {about['isa']}, torch {about['torch']}; one thread\n")
    print("\n".join(markdown(["operator", "GFLOP/s", "the product's", "share"], rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
