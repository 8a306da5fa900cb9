"""The coordinate query's backward by Triton kernels (triton_backward_kernels.py).

The tables and folded matrices that the kernels read are made of features and weights by torch, and
torch differentiates that; the kernels give the gradients of the tables. Nothing is kept from the
forward: one kernel makes the input of every MLP again, then each MLP is gone through backwards by
one launch, which leaves dx and the rows whose products over all queries are the matrices' gradients
(torch multiplies them). An attention's k^T v gets its gradient from that of the matrix it is folded
into. What queries give to LR pixels is summed pixel by pixel, in an order sorted once: no atomics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels import triton_support
from c2d_kernels.operators import recording

from . import reference
from .decoder_shape import DecoderShape
from .positions import Queries
from .triton_decoder import Decoder, launch_constants
from .triton_tables import (
    FIRST_BIAS,
    RGB,
    TAPS,
    Tables,
    fc1_matrix,
    fc2_matrix,
    folds,
    level_vectors,
    proj2_matrix,
    proj2_vector,
    tables,
)

PLACES = 32  # (pixel, tap) pairs that a program sums for


def backward(
    grad: Tensor,
    features: Tensor,
    image: Tensor,
    weights: Mapping[str, Tensor],
    shape: DecoderShape,
    queries: Queries,
    mask: list[bool],
) -> list[Tensor | None]:
    """Gradients of features, image and weights."""
    if grad.numel() == 0:
        return [torch.zeros_like(x) for x in (features, image, *weights.values())]
    with recording():
        leaves = [x.detach().requires_grad_() for x in (features, *weights.values())]
        named = dict(zip(weights, leaves[1:], strict=True))
        made = tables(leaves[0], named, shape)
    kept = Tables(*(x.detach() for x in made))
    decoder = Decoder(features, named, shape, queries, made=kept)
    means: list[Tensor] = []
    while len(means) < shape.attentions:
        means.append((decoder.moments(means) / queries.count).requires_grad_())
    with recording():
        folded = folds(leaves[0], named, shape, means)
    walk = _Walk(decoder, means, grad.reshape(decoder.batch, -1, 3).contiguous())
    for level in reversed(range(1, shape.levels)):
        walk.level(level)
        if level <= shape.attentions:
            dfold = walk.attention(level - 1)
            with recording():
                parts = [x[level - 1] for x in folded]
                (dmean,) = torch.autograd.grad(parts, means[level - 1], dfold, retain_graph=True)
            walk.moments(level - 1, dmean / queries.count)
    pixels, shares = _bilinear(features, shape.levels, queries)
    found = walk.first(pixels)
    outputs, gradients = [*made], [*found]
    if shape.attentions > 0:
        outputs += folded
        gradients += [walk.dfolds, walk.doffsets]
    pairs = [(x, dx) for x, dx in zip(outputs, gradients, strict=True) if x.requires_grad]
    outputs, gradients = [x for x, _ in pairs], [dx for _, dx in pairs]
    with recording():
        through = torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)
    grads = [
        torch.zeros_like(x) if dx is None else dx for x, dx in zip(leaves, through, strict=True)
    ]
    dimage = None
    if mask[1]:
        rows = F.pad(walk.grad, (0, RGB - 3)).reshape(-1, RGB)
        dimage = _by_pixel(decoder, rows, shares, pixels, image.dtype)[0]
        dimage = dimage.unflatten(0, (-1, TAPS)).sum(1)[:, :3].reshape(image.shape)
    return [grads[0], dimage, *grads[1:]]


class _Walk:
    """From the gradient of the RGB back to level 0, one MLP or attention after the other."""

    def __init__(self, decoder: Decoder, means: Sequence[Tensor], grad: Tensor) -> None:
        from . import triton_backward_kernels as kernels

        self.decoder, self.grad, self.kernels = decoder, grad, kernels
        self.made = decoder.tables
        self.shape = decoder.shape
        self.constants = {
            **decoder.constants,
            **launch_constants(self.made.matrices.shape[-1], self.narrow, backward=True),
        }
        self.block = self.constants["BLOCK"]
        self.programs = decoder.batch * -(-decoder.queries // self.block)
        self.count = decoder.batch * decoder.queries
        self.depth = self.constants["DEPTH"]
        self.folds = decoder.folds([x.detach() for x in means])
        self.dmatrices = torch.zeros_like(self.made.matrices)
        self.dvectors = torch.zeros_like(self.made.vectors)
        self.dkeys, self.dnorms = (torch.zeros_like(x) for x in (self.made.keys, self.made.norms))
        self.dfolds, self.doffsets = (torch.zeros_like(x) for x in self.folds)
        self.dy, self.stride = grad, 3
        self.states = self._rows(self.shape.levels - 1 + self.shape.attentions)
        if len(self.states) > 0:
            self._launch(kernels.keep_states, *decoder.read(self.folds), self.states, batch=True)

    @property
    def narrow(self) -> torch.dtype:
        return self.decoder.features.dtype

    def level(self, level: int) -> None:
        """Through the MLP of a level but the first."""
        x = self.states[level - 1 + min(level, self.shape.attentions)]
        normed = x.new_empty(self.count, self.depth + 2)
        dfirst, dsecond, *biases = self._mlp(x, normed, level, False)
        self.dmatrices[fc1_matrix(level)] = dfirst[0, : self.depth]
        self.dmatrices[fc2_matrix(level), :, : dsecond.shape[1]] = dsecond
        vectors = self.dvectors[level_vectors(level) :]
        vectors[:2] = dfirst[0, self.depth :]
        vectors[2] = biases[0].sum(0)
        vectors[3, : dsecond.shape[1]] = biases[1]

    def attention(self, index: int) -> list[Tensor]:
        """Through the two Linears after an attention: the gradient of the fold before them."""
        x = self.states[2 * index]
        dfirst, dsecond, *biases = self._mlp(x, x, index, True)
        self.dfolds[index], self.doffsets[index] = dfirst, biases[0]
        self.dmatrices[proj2_matrix(self.shape, index)] = dsecond
        self.dvectors[proj2_vector(self.shape, index)] = biases[1]
        return [self.dfolds[index], self.doffsets[index]]

    def moments(self, index: int, dmoment: Tensor) -> None:
        """Through k^T v of an attention."""
        heads, head = (self.decoder.heads[name] for name in ("HEADS", "HEAD"))
        pad = head - dmoment.shape[-1]
        dmoment = F.pad(dmoment, (0, pad, 0, pad)).to(self.made.norms.dtype)
        x = self.states[2 * index]
        rows = x.new_empty(self.count, 2, heads, head)
        partial = self.dy.new_empty(self.programs, 2, heads, 2, head)
        with triton_support.on_device(x):
            names = ("DEPTH", "BLOCK", "DOT", "SUM", "num_warps", "num_stages")
            self.kernels.attention[self.programs,](
                *(x, dmoment, self.dy, rows, self.made.keys, self.made.norms, partial),
                self.decoder.queries,
                INDEX=index,
                **self.decoder.heads,
                **{name: self.constants[name] for name in names},
            )
        product = x.mT @ rows.flatten(1)
        self.dkeys[index] = product.unflatten(1, (2, heads, head)).permute(1, 2, 0, 3)
        self.dnorms[index, :, :, 0] = rows.sum(0, dtype=self.dnorms.dtype)
        self.dnorms[index, :, :, 1:] = partial.sum(0)

    def first(self, pixels: Tensor) -> Tables:
        """Through level 0: the gradients of all tables."""
        products, stats, matrices, vectors, *_ = self.made
        du, hidden = vectors.new_empty(self.count, self.depth), self._rows()
        terms = vectors.new_empty(self.count, FIRST_BIAS + 1)
        shares = vectors.new_empty(self.count, TAPS, 3)
        read = [products, stats, *self.decoder.places, self.decoder.rel_cell, matrices, vectors]
        tensors = (*read, self.dy, du, hidden, terms, shares)
        self._launch(self.kernels.first_mlp, *tensors, stride=self.stride)
        dsecond, doffset = self._second(hidden)
        self.dmatrices[fc2_matrix(0), :, : dsecond.shape[1]] = dsecond
        self.dvectors[: FIRST_BIAS + 1] = terms.mT @ du
        self.dvectors[FIRST_BIAS + 1, : dsecond.shape[1]] = doffset
        dproducts, dstats = _by_pixel(self.decoder, du, shares, pixels, products.dtype)
        dstats = F.pad(dstats.unflatten(0, (-1, TAPS)).sum(1), (0, 1))
        dproducts = dproducts.reshape(products.shape)
        return Tables(dproducts, dstats, self.dmatrices, self.dvectors, self.dkeys, self.dnorms)

    def _mlp(self, x: Tensor, normed: Tensor, level: int, attention: bool) -> list[Tensor]:
        """Gradients of both matrices and both biases; dy becomes dx. A fold's are one per image."""
        hidden, dhidden = self._rows(), self._rows()
        dx = self.made.vectors.new_empty(self.count, self.depth)
        self._launch(
            self.kernels.mlp,
            *(x, self.dy, dx, normed, hidden, dhidden, *self.decoder.places),
            *(self.made.matrices, self.made.vectors, *self.folds),
            batch=True,
            stride=self.stride,
            LEVEL=level,
            ATTENTION=attention,
        )
        images = self.decoder.batch if attention else 1
        normed, dhidden = (a.unflatten(0, (images, -1)) for a in (normed, dhidden))
        dfirst = normed.mT @ dhidden
        doffset = dhidden.sum(1, dtype=dx.dtype)
        dsecond = self._second(hidden)
        self.dy, self.stride = dx, self.depth
        return [dfirst, dsecond[0], doffset, dsecond[1]]

    def _second(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        dy = self.dy.reshape(self.count, -1)
        return hidden.mT @ dy.to(hidden.dtype), dy.sum(0, dtype=self.made.vectors.dtype)

    def _rows(self, *more: int) -> Tensor:
        return self.made.matrices.new_empty(*more, self.count, self.depth)

    def _launch(
        self,
        kernel: Any,  # one of Triton's
        *tensors: Tensor,
        batch: bool = False,
        stride: int | None = None,
        **constants: object,
    ) -> None:
        size, images, *counts = self.decoder.sizes()
        numbers = [size, *([images] if batch else []), *counts]
        numbers += [] if stride is None else [stride]
        constants = {**self.constants, **constants}
        known = (*kernel.arg_names, "num_warps", "num_stages")
        constants = {name: value for name, value in constants.items() if name in known}
        with triton_support.on_device(self.grad):
            kernel[self.programs,](*tensors, *numbers, **constants)


def _bilinear(features: Tensor, levels: int, queries: Queries) -> tuple[Tensor, Tensor]:
    """LR pixels (B * queries, 4), and shares (B * queries, 4, 3): weight, 0, 0."""
    y, x, _ = reference.positions(features, levels, queries)
    batch, height, width, _ = features.shape
    origin = torch.arange(batch, device=features.device)[:, None] * (height * width)
    pixels, weights = [], []
    for row, weight_y in ((y.low, 1 - y.t), (y.high, y.t)):
        for column, weight_x in ((x.low, 1 - x.t), (x.high, x.t)):
            pixels.append(origin + row * width + column)
            weights.append((weight_y * weight_x).expand_as(pixels[-1]))
    shares = torch.stack(weights, -1).reshape(-1, TAPS, 1)
    return torch.stack(pixels, -1).reshape(-1, TAPS), F.pad(shares, (0, 2))


def _by_pixel(
    decoder: Decoder, rows: Tensor, shares: Tensor, pixels: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sums over queries for each (pixel, tap): (4 * pixels, row length) and (4 * pixels, 2)."""
    from . import triton_backward_kernels as kernels

    batch, height, width, _ = decoder.features.shape
    places = batch * height * width * TAPS
    place = (pixels * TAPS + torch.arange(TAPS, device=pixels.device)).flatten()
    place, order = torch.sort(place, stable=True)
    starts = torch.searchsorted(place, torch.arange(places + 1, device=pixels.device))
    sums = rows.new_empty((places, rows.shape[1]), dtype=dtype)
    dstats = shares.new_empty((places, 2))
    with triton_support.on_device(rows):
        kernels.sum_by_pixel[-(-places // PLACES),](
            *(rows, shares.contiguous(), order, starts, sums, dstats, places),
            DEPTH=rows.shape[1],
            PLACES=PLACES,
            SUM=decoder.constants["SUM"],
            num_warps=4,
        )
    return sums, dstats
