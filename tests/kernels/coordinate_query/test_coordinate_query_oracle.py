"""The coordinate query's reference against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import c2d_kernels
from tests import oracle
from tests.kernels.oracle_checks import assert_equal, random

pytestmark = pytest.mark.usefixtures("reference_backend")


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
