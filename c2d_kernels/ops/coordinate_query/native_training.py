"""The coordinate query in training by the native CPU kernel (csrc/coordinate_query/backward_*).

The folded weights that the kernel reads are made by torch, and torch differentiates that; the
kernel goes through the decoder in segments, each cut behind an attention's k^T v, and gives the
gradients of the folded weights. k^T v gets its own from that of the matrix it is folded into.

The forward keeps the means of k^T v and the states at the cuts; within a segment the backward
computes everything again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...operators import _recording
from . import reference
from .native_decoder import Decoder

# Numbers before what is kept: the first is 0 (Kernel.keeps), all of them a vector.
HEADER = 16


def kept(
    features: Tensor,
    image: Tensor,
    weights: Sequence[Tensor],
    levels: int,
    heads: int,
    attentions: int,
    size: Sequence[int] | None,
    coords: Tensor | None,
    cell: Tensor | None,
) -> Tensor:
    """Room for the means of k^T v and the states; on other devices no kernel keeps anything."""
    if features.device.type != "cpu":
        return features.new_empty(1)
    batch, _, _, width = features.shape
    queries = coords.shape[1] if size is None else size[0] * size[1]
    numbers = HEADER + attentions * batch * width * (width // heads + queries)
    return features.new_empty(numbers, dtype=torch.promote_types(features.dtype, torch.float32))


def forward(features: Tensor, image: Tensor, weights: Sequence[Tensor], *rest: object) -> tuple:
    """The RGB, (B, Q, 3), and what is kept for the backward."""
    levels, heads, attentions, *where = rest
    room = kept(features, image, weights, *rest)
    room[:HEADER] = 0
    names = reference.weight_shapes(features.shape[-1], levels, heads, attentions)
    named = dict(zip(names, weights, strict=True))
    decoder = Decoder(features, named, levels, heads, attentions, *where, None)
    segments = _Segments(decoder, where, image, room)
    segments.walk()
    return segments.rgb(), room


def backward(
    grad: Tensor,
    room: Tensor,
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
    where = (size, coords, cell)
    with _recording():
        leaves = [weight.detach().requires_grad_() for weight in weights]
        leaves = dict(zip(names, leaves, strict=True))
        decoder = Decoder(features.detach(), leaves, levels, heads, attentions, *where, None)
    grad = grad.reshape(features.shape[0], -1, 3).to(decoder.dtype).contiguous()
    found = room.numel() > 0 and room[0] == 0
    if not found:  # nothing was kept, or by another kernel
        room = kept(features, image, weights, levels, heads, attentions, *where)
    segments = _Segments(decoder, where, image, room)
    if not found:
        segments.walk()
    dfeatures, dweights = segments.backward(grad, leaves)
    dimage = segments.image_grad(grad).to(image.dtype) if mask[1] else None
    return [dfeatures.to(features.dtype), dimage, *dweights.values(), None, None]


class _Segments:
    """The decoder cut behind each attention's k^T v, with room for what is kept at the cuts."""

    def __init__(self, decoder: Decoder, where: Sequence, image: Tensor, room: Tensor):
        self.decoder, self.image = decoder, image.detach().to(decoder.dtype)
        levels, heads, attentions = decoder.numbers
        batch, _, _, width = decoder.features.shape
        self.positions = decoder.positions
        if where[0] is not None:
            y, x, cell = reference.queries(decoder.features, levels, *where, None)
            self.positions = [
                places.expand(*places.shape[:-2], batch, -1).contiguous()
                for axis in (y, x)
                for places in (axis.low, axis.high, axis.t, torch.stack(axis.digits))
            ]
            self.positions.append(cell.to(decoder.dtype))
        shapes = ((batch, heads, *2 * (width // heads,)), (batch, decoder.queries, width))
        means, states = (torch.Size((attentions, *shape)) for shape in shapes)
        _, means, states = room.detach().split([HEADER, means.numel(), states.numel()])
        self.means = means.view(attentions, *shapes[0])
        self.states = states.view(attentions, *shapes[1])

    def walk(self) -> None:
        """Find the means and the states."""
        for index in range(self.decoder.numbers[2]):
            folds = self.decoder.folds(self.means[:index])
            sums = self._forward(index, folds, self.states[index])
            self.means[index] = sums / self.decoder.queries

    def rgb(self) -> Tensor:
        """What the last segment makes of the state before it."""
        out = self.image.new_empty((*self.states.shape[1:3], 3))
        self._forward(self.decoder.numbers[2], self.decoder.folds(self.means), out)
        return out

    def backward(self, grad: Tensor, leaves: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """From RGB's: that of the features, and those of the weights."""
        op = torch.ops.c2d_native.coordinate_query_segment_backward.default
        decoder, dmoment, shares, dfolded = self.decoder, grad.new_empty(0), [], {}
        means = [mean.double().requires_grad_() for mean in self.means]
        with _recording():
            folds = [decoder.fold(index, mean) for index, mean in enumerate(means)]
        tensor = torch.stack(folds) if folds else decoder.folds([])
        for index in reversed(range(len(means) + 1)):
            grad, dline, dfold = op(grad, dmoment, *self._arguments(index, tensor))
            shares.append(dline)
            if index > 0:
                names = decoder.folded(index - 1)
                through = [means[index - 1], *(leaves[name] for name in names)]
                found = torch.autograd.grad(folds[index - 1], through, dfold.double())
                dmoment = (found[0] / decoder.queries).to(grad.dtype).contiguous()
                dfolded.update(zip(names, found[1:], strict=True))
        dweights = torch.autograd.grad(
            decoder.line, list(leaves.values()), sum(shares[1:], shares[0]), materialize_grads=True
        )
        dweights = dict(zip(leaves, dweights, strict=True))
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
