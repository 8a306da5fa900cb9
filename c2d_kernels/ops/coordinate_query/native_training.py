"""The coordinate query in training by the native CPU kernel (csrc/coordinate_query/backward_*).

The folded weights that the kernel reads are made by torch, and torch differentiates that; the
kernel goes through the decoder in segments, each cut behind an attention's k^T v, and gives the
gradients of the folded weights. k^T v gets its own from that of the matrix it is folded into.

The forward keeps the means of k^T v and the states at the cuts; within a segment the backward
computes everything again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from c2d_kernels.dispatch import KEPT
from c2d_kernels.operators import recording

from . import reference
from .decoder_shape import DecoderShape
from .native_decoder import Decoder, for_kernel
from .positions import Queries

# Numbers before what is kept: the first says that it is (Kernel.keeps), all of them a vector.
HEADER = 16


def kept(features: Tensor, shape: DecoderShape, queries: Queries) -> Tensor:
    """Room for the means of k^T v and the states; on other devices no kernel keeps anything."""
    if features.device.type != "cpu":
        return features.new_empty(1)
    each = features.shape[0] * shape.width * (shape.head_dim + queries.count)
    numbers = HEADER + shape.attentions * each
    return features.new_empty(numbers, dtype=torch.promote_types(features.dtype, torch.float32))


def forward(
    features: Tensor,
    image: Tensor,
    weights: Mapping[str, Tensor],
    shape: DecoderShape,
    queries: Queries,
) -> tuple[Tensor, Tensor]:
    """The RGB, (B, Q, 3), and what is kept for the backward."""
    room = kept(features, shape, queries)
    room[:HEADER] = KEPT
    segments = _Segments(Decoder(features, weights, shape, queries), queries, image, room)
    segments.walk()
    return segments.rgb(), room


def backward(
    grad: Tensor,
    room: Tensor,
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
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        decoder = Decoder(features.detach(), leaves, shape, queries)
    grad = grad.reshape(features.shape[0], -1, 3).to(decoder.dtype).contiguous()
    found = room.numel() > 0 and room[0] == KEPT
    if not found:  # nothing was kept, or by another kernel
        room = kept(features, shape, queries)
    segments = _Segments(decoder, queries, image, room)
    if not found:
        segments.walk()
    dfeatures, dweights = segments.backward(grad, leaves)
    dimage = segments.image_grad(grad).to(image.dtype) if mask[1] else None
    return [dfeatures.to(features.dtype), dimage, *dweights.values()]


class _Segments:
    """The decoder cut behind each attention's k^T v, with room for what is kept at the cuts."""

    def __init__(self, decoder: Decoder, queries: Queries, image: Tensor, room: Tensor) -> None:
        self.decoder, self.image = decoder, image.detach().to(decoder.dtype)
        self.count, shape = queries.count, decoder.shape
        batch = decoder.features.shape[0]
        self.positions = decoder.positions
        if queries.size is not None:
            y, x, cell = reference.positions(decoder.features, shape.levels, queries)
            self.positions = [
                places.expand(*places.shape[:-2], batch, -1).contiguous()
                for axis in (y, x)
                for places in for_kernel(axis)
            ]
            self.positions.append(cell.to(decoder.dtype))
        mean = (shape.attentions, batch, shape.heads, shape.head_dim, shape.head_dim)
        state = (shape.attentions, batch, self.count, shape.width)
        sizes = [HEADER, math.prod(mean), math.prod(state)]
        _, means, states = room.detach().split(sizes)
        self.means, self.states = means.view(mean), states.view(state)

    def walk(self) -> None:
        """Find the means and the states."""
        for index in range(self.decoder.shape.attentions):
            folds = self.decoder.folds(self.means[:index])
            sums = self._forward(index, folds, self.states[index])
            self.means[index] = sums / self.count

    def rgb(self) -> Tensor:
        """The last segment's output for the state before it."""
        out = self.image.new_empty((*self.states.shape[1:3], 3))
        self._forward(self.decoder.shape.attentions, self.decoder.folds(self.means), out)
        return out

    def backward(self, grad: Tensor, leaves: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """From RGB's: that of the features, and those of the weights."""
        op = torch.ops.c2d_native.coordinate_query_segment_backward.default
        decoder, dmoment, shares = self.decoder, grad.new_empty(0), []
        dfolded: dict[str, Tensor] = {}
        means = [mean.double().requires_grad_() for mean in self.means]
        with recording():
            folds = [decoder.fold(index, mean) for index, mean in enumerate(means)]
        tensor = torch.stack(folds) if folds else decoder.folds([])
        for index in reversed(range(len(means) + 1)):
            grad, dline, dfold = op(grad, dmoment, *self._arguments(index, tensor))
            shares.append(dline)
            if index > 0:
                names = decoder.folded(index - 1)
                through = [means[index - 1], *(leaves[name] for name in names)]
                found = torch.autograd.grad(folds[index - 1], through, dfold.double())
                dmoment = (found[0] / self.count).to(grad.dtype).contiguous()
                dfolded.update(zip(names, found[1:], strict=True))
        found = torch.autograd.grad(
            decoder.line, list(leaves.values()), sum(shares[1:], shares[0]), materialize_grads=True
        )
        dweights = dict(zip(leaves, found, strict=True))
        return grad, {name: x + dfolded.get(name, 0) for name, x in dweights.items()}

    def image_grad(self, grad: Tensor) -> Tensor:
        """That of the picture whose bilinear samples are added to the RGB."""
        op = torch.ops.c2d_native.coordinate_query_image_backward.default
        y_low, y_high, y_t, _, x_low, x_high, x_t, _, _ = self.positions
        return op(grad, y_low, y_high, y_t, x_low, x_high, x_t, *self.image.shape[1:3])

    def _forward(self, index: int, folds: Tensor, out: Tensor) -> Tensor:
        op = torch.ops.c2d_native.coordinate_query_segment.default
        return op(*self._arguments(index, folds), self.image, out)

    def _arguments(self, index: int, folds: Tensor) -> list[Tensor | int]:
        line, folds = self.decoder.line.detach(), folds.detach().to(self.decoder.dtype)
        state = self.states[index - 1] if index > 0 else self.states.new_empty(0)
        numbers = (*self.decoder.numbers, index)
        return [self.decoder.features, line, folds, *self.positions, *numbers, state]
