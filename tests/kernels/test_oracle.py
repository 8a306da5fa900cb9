"""Every reference against the float64 oracle of tests/oracle.py, to 1e-12 of the largest output."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import c2d_kernels
from tests import oracle


@pytest.fixture(autouse=True)
def reference_backend() -> Iterator[None]:
    with c2d_kernels.backend("reference"):
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float64
    assert actual.shape == expected.shape
    largest = expected.abs().max()
    assert largest > 0, "a case whose output is zero everywhere shows nothing"
    assert ((actual - expected).abs().max() / largest).item() < 1e-12


# --- selective scan ------------------------------------------------------------------------------

SCAN_SHAPES = {  # (B, D, L, N)
    "one-step": (1, 3, 1, 4),
    "one-of-each": (1, 1, 1, 1),
    "mamba-wide": (2, 48, 151, 16),
    "odd-channels": (2, 47, 129, 8),
    "long": (1, 8, 1134, 8),
    "many-states": (1, 2, 33, 256),
}


def projection(kind: str, shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """B or C: constant (D, N), one for all channels (B, N, L) or of `kind` groups (B, G, N, L)."""
    batch, channels, length, states = shape
    if kind == "constant":
        return random(channels, states, seed=seed)
    if kind == "shared":
        return random(batch, states, length, seed=seed)
    return random(batch, int(kind), states, length, seed=seed)


def check_scan(shape: tuple[int, int, int, int], b: str, c: str, **options: Tensor | bool) -> None:
    batch, channels, length, states = shape
    arguments = [
        random(batch, channels, length, seed=1),
        random(batch, channels, length, seed=2).abs() * 0.3,
        -random(channels, states, seed=3).exp(),
        projection(b, shape, 4),
        projection(c, shape, 5),
    ]
    expected, expected_state = oracle.selective_scan(*arguments, **options)
    actual, state = c2d_kernels.selective_scan(*arguments, **options, return_last_state=True)
    assert_equal(actual, expected)
    assert_equal(state, expected_state)
    assert torch.equal(c2d_kernels.selective_scan(*arguments, **options), actual)


@pytest.mark.parametrize("shape", SCAN_SHAPES.values(), ids=SCAN_SHAPES.keys())
def test_selective_scan_shapes(shape):
    batch, channels, length, _ = shape
    check_scan(
        shape,
        "shared",
        "shared",
        D=random(channels, seed=6),
        z=random(batch, channels, length, seed=7),
        delta_bias=random(channels, seed=8),
        delta_softplus=True,
    )


@pytest.mark.parametrize(
    ("b", "c"),
    [*itertools.product(["constant", "shared", "3"], repeat=2), ("1", "6"), ("2", "3")],
    ids=lambda kind: f"{kind}-groups" if kind.isdigit() else kind,
)
def test_selective_scan_projections(b, c):
    check_scan((2, 6, 17, 5), b, c)


@pytest.mark.parametrize(
    "used",
    [u for n in range(5) for u in itertools.combinations(("D", "z", "bias", "softplus"), n)],
    ids=lambda used: "+".join(used) or "none",
)
def test_selective_scan_options(used):
    options = {
        "D": ("D", random(6, seed=6)),
        "z": ("z", random(2, 6, 17, seed=7)),
        "bias": ("delta_bias", random(6, seed=8).abs()),
        "softplus": ("delta_softplus", True),
    }
    check_scan((2, 6, 17, 5), "2", "shared", **dict(options[name] for name in used))


@pytest.mark.parametrize(
    "bias", [0.0, 19.5, 20.0, 1e4, -800.0], ids=["small", "below-20", "at-20", "huge", "vanishing"]
)
def test_selective_scan_softplus_range(bias):
    """Around softplus's threshold, where the decay underflows to 0, and where delta does."""
    u = random(1, 4, 29, seed=1)
    delta, b, c = (random(1, 4, 29, seed=s) for s in (2, 4, 5))
    arguments = (u, delta, -random(4, 4, seed=3).exp(), b, c, torch.ones(4).double())
    options = {"delta_bias": torch.full((4,), bias).double(), "delta_softplus": True}
    expected, expected_state = oracle.selective_scan(*arguments, **options)
    actual, state = c2d_kernels.selective_scan(*arguments, **options, return_last_state=True)
    assert_equal(actual, expected)
    assert torch.isfinite(state).all()
    if bias == -800:  # e^-800 is 0 in float64: nothing enters the state, D u alone comes out
        assert torch.equal(actual, u) and not state.any() and not expected_state.any()
    else:
        assert_equal(state, expected_state)


def test_selective_scan_of_strided_inputs():
    """A transposed (B, L, D) map, and B and C as slices of one projection."""
    u, delta = random(2, 31, 10, seed=1).mT, random(2, 31, 10, seed=2).abs().mT
    parts = random(2, 31, 3 + 4 + 4, seed=3)
    b, c = parts[..., 3:7].mT, parts[..., 7:].mT
    arguments = (u, delta, -random(10, 4, seed=4).exp(), b, c)
    assert_equal(c2d_kernels.selective_scan(*arguments), oracle.selective_scan(*arguments)[0])


# --- window attention ----------------------------------------------------------------------------

WINDOW_CASES = {  # (B, H, W, C, window, heads, shift, scale)
    "one-pixel": (1, 1, 1, 4, 1, 2, 0, None),
    "one-window": (2, 8, 8, 20, 8, 2, 0, None),
    "one-window-shifted": (1, 8, 8, 20, 8, 2, 4, None),
    "one-row-shifted": (1, 4, 20, 12, 4, 3, 2, None),
    "swinir-l": (2, 16, 24, 60, 8, 6, 0, None),
    "swinir-l-shifted": (2, 16, 24, 60, 8, 6, 4, None),
    "tall-shifted": (1, 40, 8, 20, 8, 2, 4, None),
    "uneven-shift": (1, 12, 18, 10, 6, 2, 1, None),
    "odd-window": (1, 14, 21, 24, 7, 2, 3, None),
    "wide-window": (1, 16, 32, 24, 16, 2, 8, None),
    "own-scale": (1, 8, 12, 10, 4, 1, 2, 0.7),
}


@pytest.mark.parametrize("case", WINDOW_CASES.values(), ids=WINDOW_CASES.keys())
def test_window_attention(case):
    batch, height, width, channels, window, heads, shift, scale = case
    qkv = random(batch, height, width, 3 * channels)
    table = random((2 * window - 1) ** 2, heads, seed=1)
    options = {"window_size": window, "num_heads": heads, "shift": shift, "scale": scale}
    actual = c2d_kernels.window_attention(qkv, table, **options)
    assert_equal(actual, oracle.window_attention(qkv, table, **options))


def test_window_attention_adds_the_mask():
    """-100 is added, not infinity: scores that large still reach across regions."""
    qkv = 20 * random(1, 8, 8, 3 * 4)
    table = random(7**2, 1, seed=1)
    options = {"window_size": 4, "num_heads": 1, "shift": 2}
    actual = c2d_kernels.window_attention(qkv, table, **options)
    assert_equal(actual, oracle.window_attention(qkv, table, **options))


PERMUTED_CASES = {  # (B, H, W, C, window, heads, shift, scale)
    "one-key": (1, 2, 2, 4, 2, 1, 0, None),
    "one-window": (2, 8, 8, 8, 8, 2, 0, None),
    "one-window-shifted": (1, 8, 8, 8, 8, 2, 4, None),
    "heads-straddle-cells": (2, 16, 8, 60, 8, 6, 4, None),
    "srformer-l": (1, 16, 32, 60, 16, 6, 8, None),
    "unshifted": (1, 8, 20, 12, 4, 3, 0, None),
    "uneven-shift": (1, 12, 24, 20, 12, 2, 2, None),
    "own-scale": (1, 12, 8, 8, 4, 1, 2, 0.7),
}


@pytest.mark.parametrize("case", PERMUTED_CASES.values(), ids=PERMUTED_CASES.keys())
def test_permuted_window_attention(case):
    batch, height, width, channels, window, heads, shift, scale = case
    q = random(batch, height, width, channels)
    kv = random(batch, height, width, channels // 2, seed=1)
    table = random((window - 1) ** 2, heads, seed=2)
    options = {"window_size": window, "num_heads": heads, "shift": shift, "scale": scale}
    actual = c2d_kernels.permuted_window_attention(q, kv, table, **options)
    assert_equal(actual, oracle.permuted_window_attention(q, kv, table, **options))


# --- window correlation --------------------------------------------------------------------------

CHANNEL_CASES = {  # (B, H, W, C, window)
    "one-pixel": (2, 1, 1, 3, 8),
    "whole-windows": (2, 8, 12, 10, 4),
    "border-windows": (2, 13, 18, 10, 8),
    "one-extra-column": (1, 8, 9, 6, 8),
    "smaller-than-a-window": (1, 5, 7, 30, 64),
    "oblong-window": (1, 11, 23, 6, (4, 10)),
    "windows-of-one": (1, 3, 4, 5, 1),
    "one-channel": (1, 9, 6, 1, (5, 4)),
    "hit-sr-64": (1, 70, 66, 30, 64),
}


@pytest.mark.parametrize("case", CHANNEL_CASES.values(), ids=CHANNEL_CASES.keys())
def test_channel_correlation(case):
    *shape, window = case
    q, v = random(*shape), random(*shape, seed=1)
    actual = c2d_kernels.channel_correlation(q, v, window_size=window)
    assert_equal(actual, oracle.channel_correlation(q, v, window_size=window))


def test_channel_correlation_of_slices():
    q, v = random(1, 9, 14, 20).chunk(2, -1)
    actual = c2d_kernels.channel_correlation(q, v, window_size=8)
    assert_equal(actual, oracle.channel_correlation(q, v, window_size=8))


SPATIAL_CASES = {  # (B, H, W, C, window, base_window, heads)
    "one-pixel": (1, 1, 1, 4, 1, 8, 2),
    "smaller-than-base": (2, 8, 12, 30, 4, 8, 6),
    "equal-to-base": (2, 8, 16, 30, 8, 8, 6),
    "ratio-2": (2, 16, 32, 30, 16, 8, 6),
    "ratio-4": (1, 32, 32, 20, 32, 8, 2),
    "ratio-8": (1, 64, 64, 10, 64, 8, 1),
    "one-cell": (1, 6, 12, 4, 6, 1, 2),
    "wide": (1, 8, 32, 12, (8, 16), 8, 2),
    "tall": (2, 24, 12, 12, (12, 2), 4, 3),
}


@pytest.mark.parametrize("case", SPATIAL_CASES.values(), ids=SPATIAL_CASES.keys())
def test_spatial_correlation(case):
    batch, height, width, channels, window, base, heads = case
    window_height, window_width = (window, window) if isinstance(window, int) else window
    cell = (window_height // min(window_height, base)) * (window_width // min(window_width, base))
    q, v = (random(batch, height, width, channels, seed=s) for s in (0, 1))
    weight, weight_bias = random(1, cell, seed=2), random(1, seed=3)
    table = random((2 * window_height - 1) * (2 * window_width - 1), heads, seed=4)
    arguments = (q, v, weight, weight_bias, table)
    options = {"window_size": window, "base_window": base, "num_heads": heads}
    actual = c2d_kernels.spatial_correlation(*arguments, **options)
    assert_equal(actual, oracle.spatial_correlation(*arguments, **options))


# --- coordinate query ----------------------------------------------------------------------------


def decoder(width: int, levels: int, heads: int, attentions: int) -> dict[str, Tensor]:
    """Random weights, scaled so that every layer's output stays near 1."""
    shapes = c2d_kernels.coordinate_query_weight_shapes(
        width, levels=levels, heads=heads, attentions=attentions
    )
    weights = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        weights[name] = random(*shape, seed=seed) / (shape[-1] ** 0.5 if len(shape) == 2 else 5)
        if name.endswith("norm.weight"):
            weights[name] += 1
    return weights


def lr_map(batch: int, height: int, width: int, channels: int) -> tuple[Tensor, Tensor]:
    return random(batch, height, width, channels), random(batch, height, width, 3, seed=1)


DECODERS = {  # width, levels, heads, attentions
    "hiif-l-like": (12, 3, 4, 1),
    "two-attentions": (8, 4, 2, 2),
    "no-attention": (6, 2, 1, 0),
}

GRIDS = {  # (B, H, W, H_out, W_out)
    "x1": (1, 5, 4, 5, 4),
    "x2": (2, 4, 3, 8, 6),
    "x4": (1, 3, 4, 12, 16),
    "x2.7": (2, 5, 7, 13, 19),
    "each-axis-its-own": (1, 6, 5, 7, 17),
    "from-one-pixel": (1, 1, 1, 5, 3),
    "to-one-pixel": (1, 4, 3, 1, 1),
    "reduced": (1, 9, 8, 4, 5),
}


@pytest.mark.parametrize("network", DECODERS.values(), ids=DECODERS.keys())
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_coordinate_query_on_grids(grid, network):
    batch, height, width, *size = grid
    channels, levels, heads, attentions = network
    features, image = lr_map(batch, height, width, channels)
    weights = decoder(*network)
    options = {"levels": levels, "heads": heads, "attentions": attentions, "size": tuple(size)}
    actual = c2d_kernels.coordinate_query(features, image, weights, **options)
    expected, sums = oracle.coordinate_query(features, image, weights, **options)
    assert_equal(actual, expected)
    queries = size[0] * size[1]
    for i in range(attentions):
        earlier = [total / queries for total in sums[:i]]
        moment = c2d_kernels.coordinate_query_moments(features, weights, **options, moments=earlier)
        assert_equal(moment, sums[i])


def test_coordinate_query_of_hiif_l():
    features, image = lr_map(1, 5, 6, 64)
    options = {"levels": 3, "heads": 4, "attentions": 1, "size": (11, 16)}
    weights = decoder(64, 3, 4, 1)
    actual = c2d_kernels.coordinate_query(features, image, weights, **options)
    assert_equal(actual, oracle.coordinate_query(features, image, weights, **options)[0])


@pytest.mark.parametrize("network", DECODERS.values(), ids=DECODERS.keys())
@pytest.mark.parametrize(
    "shape", [(2, 7, 4, 40), (1, 1, 1, 3), (3, 2, 9, 1)], ids=["7x4", "one-pixel", "one-query"]
)
def test_coordinate_query_at_coordinates(shape, network):
    batch, height, width, queries = shape
    channels, levels, heads, attentions = network
    features, image = lr_map(batch, height, width, channels)
    weights = decoder(*network)
    coords = random(batch, queries, 2, seed=2).sin()  # in [-1, 1], border cells included
    cell = random(batch, 2, seed=3).abs()
    options = {"levels": levels, "heads": heads, "attentions": attentions}
    options |= {"coords": coords, "cell": cell}
    actual = c2d_kernels.coordinate_query(features, image, weights, **options)
    expected, sums = oracle.coordinate_query(features, image, weights, **options)
    assert_equal(actual, expected)
    if attentions:
        assert_equal(c2d_kernels.coordinate_query_moments(features, weights, **options), sums[0])


TILES = {  # rows, columns of the 15 x 22 output of a 6 x 8 map
    "top-left": ((0, 8), (0, 9)),
    "top-right": ((0, 8), (9, 22)),
    "bottom-left": ((8, 15), (0, 9)),
    "bottom-right": ((8, 15), (9, 22)),
}


def tile_of(
    rows: tuple[int, int], columns: tuple[int, int]
) -> tuple[c2d_kernels.Region, tuple[slice, slice, slice]]:
    """The region, and the smallest crop of the LR map that its neighbours lie in."""
    crops = []
    for (start, stop), n, n_out in ((rows, 6, 15), (columns, 8, 22)):
        cells = oracle.grid_positions(n, n_out, 1)[0][start:stop]
        crops.append(slice(max(int(cells.min()), 0), min(int(cells.max()) + 1, n - 1) + 1))
    origin = (crops[0].start, crops[1].start)
    return c2d_kernels.Region(rows, columns, origin, (6, 8)), (slice(None), *crops)


@pytest.mark.parametrize("network", DECODERS.values(), ids=DECODERS.keys())
def test_coordinate_query_in_tiles(network):
    channels, levels, heads, attentions = network
    features, image = lr_map(2, 6, 8, channels)
    weights = decoder(*network)
    options = {"levels": levels, "heads": heads, "attentions": attentions, "size": (15, 22)}
    whole, sums = oracle.coordinate_query(features, image, weights, **options)
    tiles = [tile_of(*tile) for tile in TILES.values()]
    moments: list[Tensor] = []
    for i in range(attentions):
        total = sum(
            c2d_kernels.coordinate_query_moments(
                features[crop], weights, **options, region=region, moments=moments
            )
            for region, crop in tiles
        )
        assert_equal(total, sums[i])
        moments.append(total / (15 * 22))
    for region, crop in tiles:
        actual = c2d_kernels.coordinate_query(
            features[crop], image[crop], weights, **options, region=region, moments=moments
        )
        assert_equal(actual, whole[:, slice(*region.rows), slice(*region.columns)])


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES.keys())
def test_coordinate_query_of_a_tile_alone(tile):
    """Without moments the attention is over the region's own queries."""
    features, image = lr_map(1, 6, 8, 12)
    options = {"levels": 3, "heads": 4, "attentions": 1, "size": (15, 22)}
    weights = decoder(12, 3, 4, 1)
    region, crop = tile_of(*tile)
    actual = c2d_kernels.coordinate_query(
        features[crop], image[crop], weights, **options, region=region
    )
    rows, columns = (slice(*part) for part in tile)
    expected, _ = oracle.coordinate_query(
        features, image, weights, **options, rows=rows, columns=columns
    )
    assert_equal(actual, expected)


def test_given_moments_are_applied():
    features, image = lr_map(2, 4, 5, 8)
    options = {"levels": 4, "heads": 2, "attentions": 2, "size": (7, 9)}
    moments = [random(2, 2, 4, 4, seed=s) for s in (5, 6)]
    weights = decoder(8, 4, 2, 2)
    actual = c2d_kernels.coordinate_query(features, image, weights, **options, moments=moments)
    expected, _ = oracle.coordinate_query(features, image, weights, **options, moments=moments)
    assert_equal(actual, expected)


# --- hierarchical digits -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "digits"),
    # offsets of the first output pixels: x1 0; x2 3/4, 1/4; x4 5/8, 7/8, 1/8, 3/8; x8 9/16, 11/16..
    [
        (1, ["000"]),
        (2, ["110", "010"]),
        (4, ["101", "111", "001", "011"]),
        (8, ["100", "101", "110", "111", "000", "001", "010", "011"]),
    ],
    ids=["x1", "x2", "x4", "x8"],
)
def test_digits_of_whole_scales(scale, digits):
    """The binary digits of the offsets, worked out by hand, pixel after pixel."""
    _, _, actual = oracle.grid_positions(5, 5 * scale, 3)
    assert ["".join(map(str, row)) for row in actual.tolist()] == digits * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("n", "n_out"),
    [(48, 96), (48, 192), (64, 64), (53, 143), (37, 148), (101, 303), (1, 4)],
    ids=lambda n: str(n),
)
def test_coordinates_of_a_grid_have_the_grid_s_digits(n, n_out, dtype):
    """Pixel centres as rounded coordinates fall in the same cells with the same digits."""
    features, image = lr_map(1, n, 2, 6)
    weights = decoder(6, 3, 2, 1)
    y = (2 * torch.arange(n_out, dtype=dtype) + 1) / n_out - 1
    x = torch.tensor([-0.5, 0.5], dtype=dtype)
    coords = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(1, -1, 2)
    cell = torch.tensor([[2 / n_out, 1.0]], dtype=torch.float64)
    options = {"levels": 3, "heads": 2, "attentions": 1}
    actual = c2d_kernels.coordinate_query(
        features, image, weights, **options, coords=coords, cell=cell
    )
    expected, _ = oracle.coordinate_query(features, image, weights, **options, size=(n_out, 2))
    difference = (actual - expected.flatten(1, 2)).abs().max() / expected.abs().max()
    # A wrong digit moves the result by about 1; float32 coordinates lie 2^-24 n/2 pixels off.
    assert difference < (1e-12 if dtype == torch.float64 else 1e-4)
