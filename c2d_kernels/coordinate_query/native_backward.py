"""The coordinate query's backward by the native CPU kernel (csrc/coordinate_query/backward.cpp).

The folded weights that the kernel reads are made by torch, and torch differentiates that; the
kernel goes through the decoder in segments, each cut behind an attention's k^T v, and gives the
gradients of the folded weights. k^T v gets its own from that of the matrix it is folded into.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..operators import _recording
from . import reference
from .native import Decoder


def backward(
    grad: Tensor,
    features: Tensor,
    image: Tensor,
    weights: Sequence[Tensor],
    levels: int,
    heads: int,
    attentions: int,
    size: Sequence[int] | None,
    coords: Tensor | None,
    cell: Tensor | None,
    mask: list[bool],
) -> list[Tensor | None]:
    """Gradients of features, image and weights; positions have none."""
    if grad.numel() == 0:
        return [*(torch.zeros_like(x) for x in (features, image, *weights)), None, None]
    names = reference.weight_shapes(features.shape[-1], levels, heads, attentions)
    where = (size, coords, cell, None)
    with _recording():
        leaves = [weight.detach().requires_grad_() for weight in weights]
        named = dict(zip(names, leaves, strict=True))
        decoder = Decoder(features.detach(), named, levels, heads, attentions, *where)
    y, x, rel_cell = reference.queries(decoder.features, levels, *where)
    grad = grad.reshape(features.shape[0], -1, 3)
    segments = _Segments(decoder, y, x, rel_cell)
    dfeatures, outputs, gradients = segments.backward(grad.to(decoder.dtype).contiguous())
    dweights = torch.autograd.grad(outputs, leaves, gradients)
    dimage = None
    if mask[1]:
        with _recording():
            leaf = image.detach().requires_grad_()
            bilinear = sum(reference.gather(leaf, y, x))
        (dimage,) = torch.autograd.grad(bilinear, leaf, grad.to(bilinear.dtype))
    return [dfeatures.to(features.dtype), dimage, *dweights, None, None]


class _Segments:
    """The decoder cut behind each attention's k^T v: forwards one by one, then back."""

    def __init__(self, decoder: Decoder, y: reference.Axis, x: reference.Axis, cell: Tensor):
        self.decoder = decoder
        batch = decoder.features.shape[0]
        self.positions = [
            places.expand(*places.shape[:-2], batch, -1).contiguous()
            for axis in (y, x)
            for places in (axis.low, axis.high, axis.t, torch.stack(axis.digits))
        ]
        self.positions.append(cell.to(decoder.dtype))
        self.states = [decoder.features.new_empty(0)]  # what each segment begins with
        self.means: list[Tensor] = []
        self.folds = decoder.folds([])
        for index in range(decoder.numbers[2]):
            op = torch.ops.c2d_native.coordinate_query_segment.default
            state, sums = op(*self._arguments(index))
            self.states.append(state)
            self.means.append((sums / decoder.queries).requires_grad_())
            with _recording():
                self.folds = decoder.folds(self.means)

    def backward(self, grad: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """From RGB's: that of the features, and tensors made of the weights with theirs."""
        op = torch.ops.c2d_native.coordinate_query_segment_backward.default
        dmoment = grad.new_empty(0)
        dline, dfolds = torch.zeros_like(self.decoder.line), torch.zeros_like(self.folds)
        for index in reversed(range(len(self.states))):
            grad, share, dfold = op(grad, dmoment, *self._arguments(index))
            dline += share
            if index > 0:
                dfolds[index - 1] = dfold
                # each mean is in its own fold only
                (dmean,) = torch.autograd.grad(
                    self.folds, self.means[index - 1], dfolds, retain_graph=True
                )
                dmoment = (dmean / self.decoder.queries).to(grad.dtype).contiguous()
        outputs, gradients = [self.decoder.line], [dline]
        if len(dfolds) > 0:
            outputs.append(self.folds)
            gradients.append(dfolds)
        return grad, outputs, gradients

    def _arguments(self, index: int) -> list[Tensor | int]:
        line, folds = self.decoder.line.detach(), self.folds.detach().to(self.decoder.dtype)
        numbers = self.decoder.numbers
        return [
            *(self.decoder.features, line, folds, *self.positions),
            *(*numbers, index, self.states[index]),
        ]
