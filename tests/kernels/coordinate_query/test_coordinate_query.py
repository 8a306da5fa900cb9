"""Positions and digits against exact fractions; grids, coordinates and tiles against each other."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import c2d_kernels
from c2d_kernels import (
    Region,
    coordinate_query,
    coordinate_query_moments,
    coordinate_query_weight_shapes,
    native,
)
from c2d_kernels.dispatch import KEPT, NOTHING_KEPT
from c2d_kernels.ops.coordinate_query import native as native_query
from c2d_kernels.ops.coordinate_query.decoder_shape import DecoderShape
from c2d_kernels.ops.coordinate_query.positions import (
    Queries,
    axes,
    free_axis,
    grid_axis,
    neighbour_range,
)

HEIGHT, WIDTH, CHANNELS = 7, 9, 8
SIZES = {
    "to-512": (512, 333),
    "x2": (14, 18),
    "x4": (28, 36),
    "x1": (7, 9),
    "x2.7": (19, 24),
    "down": (4, 5),
}


def inputs(attentions: int = 1, batch: int = 1) -> tuple[Tensor, Tensor, dict[str, Tensor], dict]:
    """Features, image, weights and numbers of a decoder in float64."""
    generator = torch.Generator().manual_seed(3)
    numbers = {"levels": 3, "heads": 4, "attentions": attentions}

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shapes = coordinate_query_weight_shapes(CHANNELS, **numbers)
    weights = {name: draw(*shape) * 0.5 for name, shape in shapes.items()}
    maps = (draw(batch, HEIGHT, WIDTH, CHANNELS), draw(batch, HEIGHT, WIDTH, 3))
    return *maps, weights, numbers


def grid_coords(size: tuple[int, int], dtype: torch.dtype, batch: int = 1) -> tuple[Tensor, Tensor]:
    """The pixel centres of a grid as coords, and its cell."""
    axes = [(2 * torch.arange(n, dtype=dtype) + 1) / n - 1 for n in size]
    coords = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, 2)
    cell = torch.tensor([[2 / size[0], 2 / size[1]]], dtype=dtype)
    return coords.expand(batch, -1, -1), cell.expand(batch, -1)


@pytest.mark.parametrize(
    ("out", "length"), [(14, 7), (28, 7), (7, 7), (19, 7), (4, 7), (2561, 853), (4096, 1024)]
)
def test_grid_positions_are_exact(out: int, length: int) -> None:
    axis = grid_axis(0, out, out, length, 3, torch.float64, "cpu")
    low, high = neighbour_range(0, out, out, length)
    assert (low, high) == (axis.low.min(), axis.high.max())
    for i in range(out):
        u = Fraction((2 * i + 1) * length - out, 2 * out)
        cell = math.floor(u + Fraction(1, 2**13))
        t = u - cell
        assert axis.low[i] == min(max(cell, 0), length - 1)
        assert axis.high[i] == min(max(cell + 1, 0), length - 1)
        assert axis.t[i] == pytest.approx(float(t), abs=1e-15)
        for level in range(3):
            digit = math.floor(t * 2 ** (level + 1) + Fraction(1, 2**10))
            assert axis.digits[level][i] == min(max(digit, 0), 2 ** (level + 1) - 1) % 2


@pytest.mark.parametrize("q", range(1, 65))
def test_digits_are_those_of_rational_arithmetic(q: int) -> None:
    """At every scale p/q from 1/q to 4: floor(t 2^(l+1)) mod 2 itself, without an offset."""
    for p in range(1, 4 * q + 1):
        axis = grid_axis(0, p, p, q, 6, torch.float32, "cpu")
        remainder = ((2 * np.arange(p) + 1) * q - p) % (2 * p)  # t = remainder / (2 p)
        for level in range(6):  # HIIF's
            digit = remainder * 2 ** (level + 1) // (2 * p) % 2
            assert np.array_equal(axis.digits[level].numpy(), digit), (p, q, level)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("length", [48, 64, 339])
def test_float32_coordinates_keep_the_digits_of_the_grid(scale: int, length: int) -> None:
    """At x2 and x4 every position lies on a digit's boundary; float32 noise must not flip it."""
    out = scale * length
    exact = grid_axis(0, out, out, length, 3, torch.float32, "cpu")
    coordinate = (2 * torch.arange(out, dtype=torch.float32) + 1) / out - 1
    free = free_axis(coordinate, length, 3, torch.float32)
    assert torch.equal(free.low, exact.low) and torch.equal(free.high, exact.high)
    for got, want in zip(free.digits, exact.digits, strict=True):
        assert torch.equal(got, want)
    assert torch.allclose(free.t, exact.t, rtol=0, atol=length * 2e-7)


@pytest.mark.parametrize("length", [1, 7, 64, 181, 256, 512])
def test_coordinates_fall_where_the_grid_does_at_every_length_to_512(length: int) -> None:
    """Also in float32: neighbours and the digits of all of HIIF's six levels."""
    for out in range(1, 513):
        exact = grid_axis(0, out, out, length, 6, torch.float32, "cpu")
        coordinate = (2 * torch.arange(out, dtype=torch.float32) + 1) / out - 1
        free = free_axis(coordinate, length, 6, torch.float32)
        assert torch.equal(free.low, exact.low) and torch.equal(free.high, exact.high), out
        for got, want in zip(free.digits, exact.digits, strict=True):
            assert torch.equal(got, want), out


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_grid_equals_its_coordinates(size: tuple[int, int]) -> None:
    features, image, weights, numbers = inputs(batch=2)
    grid = coordinate_query(features, image, weights, **numbers, size=size)
    coords, cell = grid_coords(size, torch.float64, 2)
    free = coordinate_query(features, image, weights, **numbers, coords=coords, cell=cell)
    assert grid.shape == (2, *size, 3)
    assert torch.allclose(free.reshape(grid.shape), grid, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_without_weights_it_is_a_bilinear_resize(size: tuple[int, int]) -> None:
    features, image, weights, numbers = inputs()
    zero = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    out = coordinate_query(features, image, zero, **numbers, size=size).movedim(-1, 1)
    resized = F.interpolate(image.movedim(-1, 1), size=size, mode="bilinear", align_corners=False)
    assert torch.allclose(out, resized, rtol=0, atol=1e-13)


TILES = {
    "halves": [(0, 10), (10, 19)],
    "thirds": [(0, 7), (7, 8), (8, 19)],
    "seven": [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 18), (18, 19)],
    "rows": [(i, i + 1) for i in range(19)],
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("attentions", [0, 1, 2])
@pytest.mark.parametrize("rows", TILES.values(), ids=TILES)
def test_tiles_equal_the_whole(rows: list[tuple[int, int]], attentions: int, backend: str) -> None:
    """However the queries are split, and from crops that hold only the LR pixels they read."""
    if backend == "cpu" and native.missing is not None:
        pytest.skip(native.missing)
    with c2d_kernels.backend(backend):
        check_tiles(rows, attentions)


def check_tiles(rows: list[tuple[int, int]], attentions: int) -> None:
    size, columns = SIZES["x2.7"], [(0, 11), (11, 24)]
    features, image, weights, numbers = inputs(attentions, batch=2)
    whole = coordinate_query(features, image, weights, **numbers, size=size)
    tiles = []
    for a, b in rows:
        for c, d in columns:
            top, bottom = neighbour_range(a, b, size[0], HEIGHT)
            left, right = neighbour_range(c, d, size[1], WIDTH)
            crop = (slice(None), slice(top, bottom + 1), slice(left, right + 1))
            region = Region((a, b), (c, d), (top, left), (HEIGHT, WIDTH))
            tiles.append((region, features[crop], image[crop]))
    means: list[Tensor] = []
    for _ in range(attentions):
        sums = [
            coordinate_query_moments(f, weights, **numbers, size=size, region=r, moments=means)
            for r, f, _ in tiles
        ]
        assert sums[0].shape == (2, 4, CHANNELS // 4, CHANNELS // 4)
        means.append(sum(sums) / (size[0] * size[1]))
    for region, f, i in tiles:
        tile = coordinate_query(f, i, weights, **numbers, size=size, region=region, moments=means)
        expected = whole[:, slice(*region.rows), slice(*region.columns)]
        assert torch.allclose(tile, expected, rtol=0, atol=1e-12)


def test_moments_are_kept_in_float32_for_half_features() -> None:
    features, _, weights, numbers = inputs()
    sums = coordinate_query_moments(features.bfloat16(), weights, **numbers, size=(8, 8))
    assert sums.dtype == torch.float32


def test_region_alone_attends_to_its_own_queries() -> None:
    """Without moments a region is a picture of its own: not the same as a part of the whole."""
    features, image, weights, numbers = inputs()
    size = SIZES["x2"]
    region = Region((0, 7), (0, 18), (0, 0), (HEIGHT, WIDTH))
    part = coordinate_query(features, image, weights, **numbers, size=size, region=region)
    whole = coordinate_query(features, image, weights, **numbers, size=size)[:, :7]
    assert part.shape == whole.shape
    assert (part - whole).abs().max() > 1e-3


def test_weight_shapes_are_the_published_decoders() -> None:
    small = coordinate_query_weight_shapes(64, levels=3, heads=4)
    assert len(small) == 3 * 6 + 10
    assert list(small)[:3] == ["mlps.0.norm.weight", "mlps.0.norm.bias", "mlps.0.fc1.weight"]
    assert list(small)[-1] == "attentions.0.proj2.bias"
    assert small["mlps.0.fc1.weight"] == (64, 260) and small["mlps.2.fc2.weight"] == (3, 64)
    assert small["attentions.0.k_norm.weight"] == (16,)
    large = coordinate_query_weight_shapes(256, levels=6, heads=16, attentions=2)
    assert large["mlps.5.fc1.weight"] == (256, 258) and "attentions.1.qkv.weight" in large


def test_image_keeps_its_precision_beside_half_features() -> None:
    features, image, weights, numbers = inputs()
    zero = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    out = coordinate_query(features.bfloat16(), image.float(), zero, **numbers, size=(7, 9))
    assert out.dtype == torch.float32
    assert torch.allclose(out, image.float(), rtol=0, atol=1e-6)


needs_native = pytest.mark.skipif(native.missing is not None, reason=str(native.missing))


def both(call) -> tuple[Tensor, Tensor]:
    """The results of the native kernel and of the reference for one call."""
    results = []
    for backend in ("cpu", "reference"):
        with torch.no_grad(), c2d_kernels.backend(backend):
            results.append(call())
    return results[0], results[1]


WHOLE = {  # LR size, output size: several bands of rows, several chunks, cut chunks, reductions
    "many-bands": ((40, 60), (90, 170)),
    "wide": ((3, 700), (7, 1500)),
    "tall": ((300, 2), (700, 3)),
    "one-pixel": ((1, 1), (70, 65)),
    "down": ((50, 40), (13, 7)),
    "same": ((21, 34), (21, 34)),
}


@needs_native
@pytest.mark.parametrize("width", [8, 20, 64])
@pytest.mark.parametrize(("lr", "size"), WHOLE.values(), ids=WHOLE)
def test_native_pictures(lr: tuple[int, int], size: tuple[int, int], width: int) -> None:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    numbers = {"levels": 3, "heads": 4, "attentions": 1}
    weights = {
        name: draw(*shape) / (shape[1] ** 0.5 if len(shape) == 2 else 1)
        for name, shape in coordinate_query_weight_shapes(width, **numbers).items()
    }
    features, image = draw(2, *lr, width), draw(2, *lr, 3)
    actual, expected = both(
        lambda: coordinate_query(features, image, weights, **numbers, size=size)
    )
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


def gradients(backend: str, width: int, batch: int, queries: int, **numbers: int) -> list[Tensor]:
    """Gradients of features, image and every weight, for random coordinates on a map of 9 x 11."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shapes = coordinate_query_weight_shapes(width, **numbers)
    weights = {
        name: draw(*shape) / (shape[1] ** 0.5 if len(shape) == 2 else 1)
        for name, shape in shapes.items()
    }
    features, image = draw(batch, 9, 11, width), draw(batch, 9, 11, 3)
    coords, cell = draw(batch, queries, 2).clamp(-1, 1), draw(batch, 2).abs()
    leaves = [x.requires_grad_() for x in (features, image, *weights.values())]
    with c2d_kernels.backend(backend):
        out = coordinate_query(features, image, weights, **numbers, coords=coords, cell=cell)
        return list(torch.autograd.grad(out, leaves, draw(batch, queries, 3)))


WALKS = {  # runs of 1024 queries, cut ones; several attentions; more runs than are kept together
    "hiif-l": {"width": 64, "batch": 2, "queries": 2500, "levels": 3, "heads": 4, "attentions": 1},
    "hiif": {"width": 48, "batch": 1, "queries": 1100, "levels": 6, "heads": 3, "attentions": 2},
    "hiif-256": {
        "width": 256, "batch": 1, "queries": 70, "levels": 6, "heads": 16, "attentions": 2
    },
    "no-attention": {
        "width": 12, "batch": 2, "queries": 70, "levels": 2, "heads": 1, "attentions": 0
    },
    "one-level": {"width": 7, "batch": 1, "queries": 65, "levels": 1, "heads": 1, "attentions": 0},
    "many-runs": {
        "width": 250, "batch": 3, "queries": 3000, "levels": 2, "heads": 5, "attentions": 1
    },
}  # fmt: skip


@needs_native
@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_native_gradients(walk: dict[str, int]) -> None:
    pairs = zip(gradients("cpu", **walk), gradients("reference", **walk), strict=True)
    for actual, expected in pairs:
        assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


@needs_native
@pytest.mark.parametrize("attentions", [0, 1, 2])
def test_gradients_are_the_same_whatever_was_kept(attentions: int) -> None:
    """The state that the forward keeps, and a backward after another kernel that kept nothing."""
    features, image, weights, numbers = inputs(attentions, batch=2)
    coords, cell = grid_coords((13, 10), torch.float64, 2)
    arguments = (features, image, list(weights.values()), *numbers.values(), None, coords, cell)
    with c2d_kernels.backend("cpu"):
        out, kept = torch.ops.c2d.coordinate_query(*arguments, True)
        assert torch.ops.c2d.coordinate_query(*arguments, False)[1].numel() == 0
        found = [
            torch.ops.c2d.coordinate_query_backward(
                torch.ones_like(out), state, *arguments, [True] * (len(weights) + 2) + [False] * 2
            )
            for state in (kept, torch.full_like(kept, NOTHING_KEPT), kept.new_empty(0))
        ]
    assert kept[0] == KEPT
    assert bool(kept.any()) is (attentions > 0)
    for gradients in zip(*found, strict=True):
        assert all(torch.equal(gradients[0], other) for other in gradients[1:])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coordinates", [torch.float32, torch.float64])
def test_native_positions_are_those_of_torch(dtype: torch.dtype, coordinates: torch.dtype) -> None:
    """To the bit: random ones, beyond the border, and grids, where rounding decides on digits."""
    generator = torch.Generator().manual_seed(6)
    features, levels = torch.empty(2, 48, 339, 1, dtype=dtype), 6
    anywhere = 2.2 * torch.rand(2, 9000, 2, generator=generator, dtype=coordinates) - 1.1
    for coords in (anywhere, grid_coords((96, 1017), coordinates, 2)[0]):
        found = torch.ops.c2d_native.coordinate_query_positions(coords, features, levels)
        *pair, _ = axes(features, levels, Queries(None, coords, torch.ones(2, 2)))
        wanted = [
            places
            for axis in pair
            for places in (axis.low, axis.high, axis.t, torch.stack(axis.digits))
        ]
        for got, want in zip(found, wanted, strict=True):
            assert torch.equal(got, want)


@needs_native
@pytest.mark.parametrize(("walk", "taken"), [("hiif-l", True), ("hiif-256", False)])
def test_auto_trains_on_the_kernel_where_it_is_faster(monkeypatch, walk, taken) -> None:
    """Wide decoders train on the reference, unless the kernel is asked for by name."""
    calls, backward = [], native_query.kernel.backward
    fields = native_query.kernel.__dict__  # of a frozen dataclass
    monkeypatch.setitem(fields, "backward", lambda *args: calls.append(walk) or backward(*args))
    gradients("auto", **WALKS[walk])
    assert bool(calls) is taken
    gradients("cpu", **WALKS[walk])
    assert len(calls) == 1 + taken


@needs_native
def test_native_gradients_are_the_same_for_any_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(gradients("cpu", **WALKS["hiif-l"]))
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@needs_native
def test_native_is_the_same_for_any_number_of_threads() -> None:
    features, image, weights, numbers = inputs(batch=2)
    before, pictures = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        pictures.append(coordinate_query(features, image, weights, **numbers, size=(300, 90)))
    torch.set_num_threads(before)
    assert torch.equal(*pictures)


@needs_native
def test_constant_features_do_not_cancel() -> None:
    """Features far from zero with little variance: what a variance by E[x^2] - E[x]^2 loses."""
    features, image, weights, numbers = inputs()
    features = 300 + 0.01 * features
    single = [features.float(), image.float(), {n: w.float() for n, w in weights.items()}]
    exact = coordinate_query(
        single[0].double(), image.float().double(), {n: w.double() for n, w in single[2].items()},
        **numbers, size=(20, 25),
    )  # fmt: skip
    actual, plain = both(lambda: coordinate_query(*single, **numbers, size=(20, 25)))
    largest = exact.abs().max()
    allowed = 2 * (plain - exact).abs().max() / largest + torch.finfo(torch.float32).eps
    assert (actual - exact).abs().max() / largest <= allowed


@needs_native
def test_the_native_op_refuses_places_off_the_map() -> None:
    features, image, weights, numbers = inputs()
    shape = DecoderShape(CHANNELS, **numbers)
    decoder = native_query.Decoder(features, weights, shape, Queries((14, 18)))
    arguments = decoder.arguments([torch.zeros(1, 4, 2, 2, dtype=torch.float64)])
    torch.ops.c2d_native.coordinate_query(features, image, *arguments)
    arguments[2] = arguments[2] + 5  # the rows' low neighbours
    with pytest.raises(RuntimeError, match="neighbours must be on the map"):
        torch.ops.c2d_native.coordinate_query(features, image, *arguments)
