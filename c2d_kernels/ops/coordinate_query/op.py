"""The operator `c2d::coordinate_query` and its public functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from c2d_kernels import checks, dispatch
from c2d_kernels.operators import Operator, define

from . import native, native_training, reference, triton
from .decoder_shape import DecoderShape, grouped
from .positions import Queries, Region, neighbour_range

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .decoder_shape import Flat


def coordinate_query(
    features: Tensor,
    image: Tensor,
    weights: Mapping[str, Tensor] | reference.Layers,
    *,
    levels: int,
    heads: int,
    attentions: int = 1,
    size: tuple[int, int] | None = None,
    coords: Tensor | None = None,
    cell: Tensor | None = None,
    region: Region | None = None,
    moments: Sequence[Tensor] | None = None,
) -> Tensor:
    """The RGB value at continuous positions, decoded from features at LR size.

    Either `size` (a grid of pixel centres) or `coords` with `cell`. The four LR feature vectors
    around a query, weighted bilinearly and concatenated, pass through `levels` MLPs; MLP l also
    sees the l-th binary digit of the position inside its LR cell. After the first `attentions` MLPs
    linear attention runs over all queries. A bilinear sample of the image is added.

    Args:
        features: (B, H, W, C), float32, bfloat16, float16 or float64; any strides.
        image: (B, H, W, 3), the LR image. May be float32 beside half-precision features.
        weights: name -> tensor, as coordinate_query_weight_shapes(C, ...) lists them. May be
            float32 beside half-precision features. Or layer -> a function that does its work, such
            as "mlps.0.fc1" -> a module that is more than its weights: the reference calls them.
        levels: number of MLPs, at least 1.
        heads: of the attention; divides C.
        attentions: how many of them, less than levels.
        size: (H_out, W_out) of the output grid.
        coords: (B, Q, 2) = (y, x) in [-1, 1], pixel centres at (2i+1)/n - 1; float32 or float64.
            Positions take no gradient.
        cell: (B, 2) = (2/H_out, 2/W_out), the size of an output pixel (LIIF's units).
        region: with size: decode only these rows and columns of the grid, from a crop of the LR
            map; positions and rel_cell are those of the whole image.
        moments: (B, heads, C/heads, C/heads) for each attention: the mean of k^T v over ALL queries
            of the image, accumulated by coordinate_query_moments and divided by their number. Makes
            the result independent of how queries are split. None: the queries given here are all.

    Returns:
        (B, H_out, W_out, 3), or region's rows and columns of it, or (B, Q, 3); in the dtype of
        image. Not clamped to [0, 1].

    Raises:
        ValueError: a shape, number or name that does not fit, or a region whose crop lacks an LR
            pixel that it reads. TypeError: a dtype that does not fit.

    HIIF (2412.03748), section 3, with the positions and digits of `positions.py`.
    """
    checks.parameters(features, features=features, image=image)
    (features,) = dispatch.autocast(features)
    checks.feature_map("features", features)
    checks.shape("image", image, (*features.shape[:3], 3), "(B, H, W, 3)")
    shape = _decoder_shape(features.shape[-1], levels, heads, attentions)
    queries = Queries(size, coords, cell, region)
    ordered = _checked_weights(features, weights, shape)
    _check_positions(features, queries)
    if moments is not None:
        _check_moments(features, moments, shape)
        if len(moments) != attentions:
            raise ValueError(
                f"moments must hold one tensor per attention, {attentions}, got {len(moments)}."
            )
    if not ordered:
        return reference.coordinate_query(features, image, weights, shape, queries, moments)
    if region is None and moments is None:
        return _operator(features, image, ordered, levels, heads, attentions, size, coords, cell)
    tensors = [features, image, *ordered, *(moments or ())]
    tile = _tile_decoder("coordinate_query with region or moments", tensors, image, shape)
    with dispatch.without_autocast(features.device):
        return tile.coordinate_query(features, image, weights, shape, queries, moments)


def coordinate_query_moments(
    features: Tensor,
    weights: Mapping[str, Tensor] | reference.Layers,
    *,
    levels: int,
    heads: int,
    attentions: int = 1,
    size: tuple[int, int] | None = None,
    coords: Tensor | None = None,
    cell: Tensor | None = None,
    region: Region | None = None,
    moments: Sequence[Tensor] = (),
) -> Tensor:
    """These queries' moments for linear attention number len(moments) of coordinate_query.

    Sum the results over all tiles, divide by the number of queries of the whole image, and hand
    the means to coordinate_query; for a second attention, hand the first one's mean in first.

    Args:
        features, weights, levels, heads, attentions, size, coords, cell, region: as in
            coordinate_query.
        moments: the means of the attentions before this one.

    Returns:
        (B, heads, C/heads, C/heads): the sum of k^T v over the queries, float32 (float64 for
        float64 features).

    Raises:
        ValueError, TypeError: as coordinate_query.
    """
    checks.parameters(features, features=features)
    (features,) = dispatch.autocast(features)
    checks.feature_map("features", features)
    shape = _decoder_shape(features.shape[-1], levels, heads, attentions)
    queries = Queries(size, coords, cell, region)
    ordered = _checked_weights(features, weights, shape)
    _check_positions(features, queries)
    _check_moments(features, moments, shape)
    if len(moments) >= attentions:
        raise ValueError(
            f"moments must leave an attention to accumulate: there are {attentions}, "
            f"got {len(moments)} moments."
        )
    if not ordered:
        return reference.coordinate_query_moments(features, weights, shape, queries, moments)
    tile = _tile_decoder("coordinate_query_moments", [features, *ordered, *moments], None, shape)
    with dispatch.without_autocast(features.device):
        return tile.coordinate_query_moments(features, weights, shape, queries, moments)


def coordinate_query_weight_shapes(
    width: int, *, levels: int, heads: int, attentions: int = 1
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights of coordinate_query for features of `width` channels, in order.

    Raises:
        ValueError, TypeError: numbers that do not fit together.
    """
    checks.positive("width", width)
    return _decoder_shape(width, levels, heads, attentions).weight_shapes()


def flops(queries: int, shape: DecoderShape) -> int:
    """Operations of the definition for a number of queries: its matrix products, nothing folded."""
    matrices = (sizes for sizes in shape.weight_shapes().values() if len(sizes) == 2)
    products = sum(rows * columns for rows, columns in matrices)
    products += shape.attentions * 2 * shape.width * shape.head_dim  # k^T v, and q with it
    return 2 * queries * products


def _decoder_shape(width: int, levels: int, heads: int, attentions: int) -> DecoderShape:
    """The numbers in one, if they fit together."""
    checks.positive("levels", levels)
    checks.positive("heads", heads)
    checks.whole("attentions", attentions)
    checks.divides("heads", heads, "the channels of features", width)
    if not 0 <= attentions < levels:
        raise ValueError(
            f"attentions must be from 0 to levels - 1, {levels - 1}, got {attentions}."
        )
    return DecoderShape(width, levels, heads, attentions)


def _checked_weights(
    features: Tensor, weights: Mapping[str, Tensor] | reference.Layers, decoder: DecoderShape
) -> list[Tensor]:
    """The weights in the op's order; none for layers."""
    shapes = decoder.weight_shapes()
    called = not any(isinstance(weight, Tensor) for weight in weights.values())
    expected = {name.rpartition(".")[0] for name in shapes} if called and weights else shapes
    for name in expected:
        if name not in weights:
            raise ValueError(f"weights must hold {name!r}: see coordinate_query_weight_shapes.")
    for name in weights:
        if name not in expected:
            raise ValueError(f"weights holds {name!r}, which this decoder does not have.")
    if called:
        return []
    ordered: list[Tensor] = []
    for name, shape in shapes.items():
        weight: Any = weights[name]
        checks.parameters(features, **{f"weights[{name!r}]": weight})
        checks.shape(f"weights[{name!r}]", weight, shape, "its own")
        ordered.append(weight)
    return ordered


def _check_positions(features: Tensor, queries: Queries) -> None:
    size, coords, cell, region = queries.size, queries.coords, queries.cell, queries.region
    if size is not None:
        if coords is not None or cell is not None:
            raise ValueError("size and coords exclude each other: give a grid or coordinates.")
        if len(size) != 2:
            raise ValueError(f"size must be (H_out, W_out), got {tuple(size)}.")
        for length in size:
            checks.positive("size", length)
        if region is not None:
            _check_region(features, size, region)
        return
    if coords is None or cell is None:
        raise ValueError("size, or coords with cell, must be given.")
    if region is not None:
        raise ValueError("region must come with size: it is a part of a grid.")
    batch = features.shape[0]
    for name, tensor, shape, meaning in (
        ("coords", coords, (batch, None, 2), "(B, Q, 2)"),
        ("cell", cell, (batch, 2), "(B, 2)"),
    ):
        checks.parameters(features, **{name: tensor})
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{name} must be float32 or float64, got {str(tensor.dtype)[6:]}: half precision "
                "cannot tell neighbouring pixels apart."
            )
        checks.shape(name, tensor, shape, meaning)
        if tensor.requires_grad:
            raise ValueError(f"{name} must not require a gradient: positions have none; detach it.")


def _check_region(features: Tensor, size: Sequence[int], region: Region) -> None:
    crop = features.shape[1:3]
    for axis, name in enumerate(("rows", "columns")):
        start, stop = region[axis]
        if not 0 <= start < stop <= size[axis]:
            raise ValueError(
                f"region.{name} must be a non-empty part of 0 to {size[axis]}, got {(start, stop)}."
            )
        origin, length = region.lr_origin[axis], region.lr_size[axis]
        if not 0 <= origin <= origin + crop[axis] <= length:
            raise ValueError(
                f"region.lr_origin must place the {crop[axis]} {name} of features inside the "
                f"{length} of region.lr_size, got {origin}."
            )
        first, last = neighbour_range(start, stop, size[axis], length)
        if first < origin or last >= origin + crop[axis]:
            raise ValueError(
                f"region.{name} {(start, stop)} reads LR {name} {first} to {last}, but features "
                f"hold only {origin} to {origin + crop[axis] - 1}: crop with more margin."
            )


def _check_moments(features: Tensor, moments: Sequence[Tensor], decoder: DecoderShape) -> None:
    shape = (features.shape[0], decoder.heads, decoder.head_dim, decoder.head_dim)
    for index, moment in enumerate(moments):
        name = f"moments[{index}]"
        checks.parameters(features, **{name: moment})
        checks.shape(name, moment, shape, "(B, heads, head_dim, head_dim)")


def _tile_decoder(
    what: str, tensors: Sequence[Tensor], image: Tensor | None, shape: DecoderShape
) -> ModuleType:
    """`triton`, `native` or `reference`, whichever runs tiles: they go past the custom op, whose
    schema knows nothing of them. With gradients or while tracing, it is the reference.
    """
    requested = dispatch.requested()
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    opaque = dispatch.opaque(tensors)
    refusal = "only the Triton and CPU kernels and the reference decode tiles"
    for name, module in (("triton", triton), ("cpu", native)):
        if requested not in ("auto", name):
            continue
        refusal = opaque or "it decodes tiles without gradients only"
        if not (opaque or trains or torch.compiler.is_compiling()):
            refusal = module.can_run(tensors[0], image, None, shape.levels)
        if refusal is None:
            return module
    if requested in ("auto", "reference"):
        return reference
    raise dispatch.cannot_run(what, requested, refusal)


def _reference(
    features: Tensor, image: Tensor, weights: Sequence[Tensor], *flat: Unpack[Flat]
) -> Tensor:
    shape, queries = grouped(features, *flat)
    return reference.coordinate_query(features, image, shape.named(weights), shape, queries)


def _fake(
    features: Tensor, image: Tensor, weights: Sequence[Tensor], *flat: Unpack[Flat]
) -> Tensor:
    _, queries = grouped(features, *flat)
    return image.new_empty((image.shape[0], *queries.extent, 3))


def _flops(
    features: Sequence[int],
    image: Sequence[int],
    weights: Sequence[Sequence[int]],
    levels: int,
    heads: int,
    attentions: int,
    size: Sequence[int] | None,
    coords: Sequence[int],
    cell: Sequence[int] | None,
) -> int:
    """With shapes for tensors."""
    places = coords[1] if size is None else size[0] * size[1]
    shape = DecoderShape(features[-1], levels, heads, attentions)
    return flops(features[0] * places, shape)


def _kept(
    features: Tensor, image: Tensor, weights: Sequence[Tensor], *flat: Unpack[Flat]
) -> Tensor:
    return native_training.kept(features, *grouped(features, *flat))


def _example(device: torch.device) -> tuple[Any, ...]:
    features, image = (torch.zeros(1, 2, 2, n, device=device) for n in (4, 3))
    shape = DecoderShape(width=4, levels=2, heads=2, attentions=1)
    weights = [torch.zeros(sizes, device=device) for sizes in shape.weight_shapes().values()]
    numbers = (shape.levels, shape.heads, shape.attentions)
    return features, image, weights, *numbers, (4, 4), None, None


_operator = define(
    Operator(
        name="coordinate_query",
        arguments="Tensor features, Tensor image, Tensor[] weights, SymInt levels, SymInt heads, "
        "SymInt attentions, SymInt[]? size, Tensor? coords, Tensor? cell",
        outputs=1,
        reference=_reference,
        fake=_fake,
        flops=_flops,
        example=_example,
        kept=_kept,
    )
)
dispatch.register(triton.kernel)
dispatch.register(native.kernel)
