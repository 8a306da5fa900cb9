"""Selective scan in plain PyTorch without a loop over the sequence, where no native kernel is.

The sequence is cut into K chunks of T steps. T operations walk all chunks at once, each from a zero
state; what a chunk hands on is its end state and, since A does not depend on time, the decay
exp(A * sum of delta). A scan over the K chunks in log2(K) operations gives the true states between
them, and T operations more the outputs. Nothing is ever divided by a running product.

Images and blocks of channels are independent: they are done one after the other, so that what an
operation touches stays in cache and memory stays bounded.

Measured at B 1, D 48, N 8, L 57,600, float32 on a shared AMD EPYC, least of three runs, one thread
and two: forward 67 and 42 ms, backward 142 and 118. Tried, one thread:
  tiles of 2^14, 2^16, 2^17, 2^18 numbers   126, 74, 67, 69 ms forward; 327, 170, 142, 235 backward
  chunks of 32, 64, 128 steps               72, 67, 73 ms forward; 164, 142, 230 backward
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels.dispatch import Kernel

from .reference import SOFTPLUS_THRESHOLD

LONGEST_CHUNK = 64
TILE = 2**17  # numbers that one operation works on, about: half a MB in float32


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """As reference.selective_scan; differentiate with `backward`, not with autograd."""
    scan = _Scan(u, delta, A, B, C, delta_bias, delta_softplus)
    y = torch.empty_like(scan.u)
    last = scan.u.new_empty(*u.shape[:2], A.shape[1])
    for tile in scan.tiles():
        h, last[tile.place] = tile.states()
        y[tile.place] = tile.join(tile.outputs(h))
    if D is not None:
        y += D.to(y)[:, None] * scan.u
    if z is not None:
        y *= F.silu(z.to(y))
    return y.to(u.dtype), last


def backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    mask: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the tensors that `mask` names, in the order of the arguments."""
    scan = _Scan(u, delta, A, B, C, delta_bias, delta_softplus)
    dy, dlast = grad_y.to(scan.u), grad_last_state.to(scan.u)
    dz = None
    if z is not None:
        wide_u, wide_delta, wide_A, wide_B, wide_C = (x.to(scan.u) for x in (u, delta, A, B, C))
        ungated, _ = selective_scan(
            wide_u, wide_delta, wide_A, wide_B, wide_C, D, None, delta_bias, delta_softplus
        )
        gate = z.to(dy)
        slope = torch.sigmoid(gate)
        dz = dy * ungated * slope * (1 + gate * (1 - slope))
        dy = dy * gate * slope
    through_B, through_decay = torch.empty_like(scan.u), torch.empty_like(scan.u)
    dA, dB, dC = torch.zeros_like(scan.A), torch.zeros_like(scan.B), torch.zeros_like(scan.C)
    for tile in scan.tiles():
        found = tile.gradients(tile.cut(dy[tile.place]), dlast[tile.place])
        through_B[tile.place], through_decay[tile.place] = map(tile.join, found[:2])
        dA[tile.channels] += found[2]
        tile.add_mixing(dB, found[3])
        tile.add_mixing(dC, found[4])
    du = scan.delta * through_B
    if D is not None:
        du += D.to(dy)[:, None] * dy
    ddelta = scan.u * through_B + through_decay
    if delta_softplus:
        before = scan.before_softplus
        ddelta *= torch.where(before > SOFTPLUS_THRESHOLD, 1, torch.sigmoid(before))
    gradients = (
        du,
        ddelta,
        dA,
        scan.unmixed(dB, B),
        scan.unmixed(dC, C),
        None if D is None else (dy * scan.u).sum((0, 2)),
        dz,
        None if delta_bias is None else ddelta.sum((0, 2)),
    )
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    return [
        gradient.to(x.dtype) if needed and gradient is not None and x is not None else None
        for gradient, x, needed in zip(gradients, inputs, mask, strict=True)
    ]


class _Scan:
    """The arguments in the dtype of computation, B and C as (batch or 1, groups, N, L or 1)."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> None:
        dtype = torch.promote_types(u.dtype, torch.float32)
        self.u, delta, self.A = (x.to(dtype) for x in (u, delta, A))
        # A decay rate of -inf times the zero step sizes behind the end would be NaN.
        self.A = self.A.clamp(min=torch.finfo(dtype).min)
        if delta_bias is not None:
            delta = delta + delta_bias.to(dtype)[:, None]
        self.before_softplus = delta
        self.delta = F.softplus(delta, threshold=SOFTPLUS_THRESHOLD) if delta_softplus else delta
        self.B, self.C = (self._mixed(x.to(dtype)) for x in (B, C))
        length = u.shape[2]
        self.steps = min(LONGEST_CHUNK, 2 ** math.ceil(math.log2(length) / 2))
        self.chunks = -(-length // self.steps)

    @staticmethod
    def _mixed(matrix: Tensor) -> Tensor:
        if matrix.dim() == 2:
            return matrix[None, :, :, None]
        return matrix[:, None] if matrix.dim() == 3 else matrix

    @staticmethod
    def unmixed(gradient: Tensor, like: Tensor) -> Tensor:
        """The gradient of `_mixed`'s result in the shape of its argument."""
        return gradient.reshape(like.shape)

    def tiles(self) -> Iterator[_Tile]:
        """Blocks of channels of each image."""
        batch, channels, _ = self.u.shape
        block = max(1, TILE // (self.A.shape[1] * self.chunks))
        for image in range(batch):
            for first in range(0, channels, block):
                yield _Tile(self, image, slice(first, min(first + block, channels)))


class _Tile:
    """Some channels of one image, cut into chunks: (T, channels, K), or (T, groups, N, K)."""

    def __init__(self, scan: _Scan, image: int, channels: slice) -> None:
        self.scan, self.image, self.channels, self.place = scan, image, channels, (image, channels)
        self.delta = self.cut(scan.delta[self.place])
        self.delta_u = self.cut(scan.delta[self.place] * scan.u[self.place])
        self.A = scan.A[channels, :, None]
        self.B, self.C = self._cut_mixing(scan.B), self._cut_mixing(scan.C)

    def cut(self, rows: Tensor) -> Tensor:
        """(..., L) -> (T, ..., K); zeros, which change nothing, behind the end."""
        scan = self.scan
        rows = F.pad(rows, (0, scan.chunks * scan.steps - rows.shape[-1]))
        return rows.unflatten(-1, (scan.chunks, scan.steps)).movedim(-1, 0).contiguous()

    def join(self, pieces: Tensor) -> Tensor:
        """cut's inverse."""
        return pieces.movedim(0, -1).flatten(-2)[..., : self.scan.u.shape[-1]]

    def _rows(self, matrix: Tensor) -> Tensor:
        """The group of each channel of the tile, or of all of them."""
        of_a_group = self.scan.u.shape[1] // matrix.shape[1]
        groups = torch.arange(self.channels.start, self.channels.stop, device=matrix.device)
        groups = groups // of_a_group
        return groups[:1] if groups[0] == groups[-1] else groups

    def _cut_mixing(self, matrix: Tensor) -> Tensor:
        rows = matrix[min(self.image, matrix.shape[0] - 1)].index_select(0, self._rows(matrix))
        return rows[None] if rows.shape[-1] == 1 else self.cut(rows)

    def add_mixing(self, gradient: Tensor, pieces: Tensor) -> None:
        """Adds what _cut_mixing's result gained to the gradient of the whole."""
        rows = pieces[0] if gradient.shape[-1] == 1 else self.join(pieces)
        image = min(self.image, gradient.shape[0] - 1)
        gradient[image].index_add_(0, self._rows(gradient), rows)

    def _decay(self, step: int, out: Tensor) -> Tensor:
        return torch.mul(self.A, self.delta[step][:, None], out=out).exp_()

    def _input(self, step: int) -> tuple[Tensor, Tensor]:
        return self.delta_u[step][:, None], self.B[step % len(self.B)]

    def _zeros(self) -> Tensor:
        return self.A.new_zeros(*self.A.shape[:2], self.scan.chunks)

    def states(self) -> tuple[Tensor, Tensor]:
        """The states before each chunk, (channels, N, K), and after the last one."""
        h, decay = self._zeros(), self._zeros()
        for step in range(self.scan.steps):
            h.mul_(self._decay(step, decay)).addcmul_(*self._input(step))
        after = _carry(torch.exp(self.A * self.delta.sum(0)[:, None]), h)
        return F.pad(after[..., :-1], (1, 0)), after[..., -1]

    def outputs(self, h: Tensor) -> Tensor:
        """sum_n C h, (T, channels, K), from the states before each chunk, which are used up."""
        decay, y = self._zeros(), torch.empty_like(self.delta)
        h = h.contiguous()
        for step in range(self.scan.steps):
            h.mul_(self._decay(step, decay)).addcmul_(*self._input(step))
            torch.sum(torch.mul(h, self.C[step % len(self.C)], out=decay), 1, out=y[step])
        return y

    def gradients(self, dy: Tensor, dlast: Tensor) -> tuple[Tensor, ...]:
        """The loss's gradients through B and through the decay, (T, channels, K); dA; dB; dC."""
        steps = self.scan.steps
        h = self.A.new_empty(steps + 1, *self.A.shape[:2], self.scan.chunks)
        decay = torch.empty_like(h[:-1])
        h[0], _ = self.states()
        for step in range(steps):
            torch.mul(h[step], self._decay(step, decay[step]), out=h[step + 1])
            h[step + 1].addcmul_(*self._input(step))

        carry = self._zeros()
        for step in reversed(range(steps)):
            carry.addcmul_(dy[step][:, None], self.C[step % len(self.C)]).mul_(decay[step])
        total = torch.exp(self.A * self.delta.sum(0)[:, None])
        carry[..., -1] += total[..., -1] * dlast
        before = _carry(total.flip(-1), carry.flip(-1)).flip(-1)
        carry = torch.cat([before[..., 1:], dlast[..., None]], dim=-1)

        through_B, through_decay = torch.empty_like(dy), torch.empty_like(dy)
        dA, dB, dC = torch.zeros_like(self.A), torch.zeros_like(self.B), torch.zeros_like(self.C)
        buffer = self._zeros()
        for step in reversed(range(steps)):
            delta_u, B = self._input(step)
            at_B, at_C = step % len(self.B), step % len(self.C)
            torch.mul(h[step + 1], dy[step][:, None], out=buffer)
            dC[at_C] += buffer.sum_to_size(dC[at_C].shape)
            carry.addcmul_(dy[step][:, None], self.C[at_C])
            torch.sum(torch.mul(carry, B, out=buffer), 1, out=through_B[step])
            dB[at_B] += torch.mul(carry, delta_u, out=buffer).sum_to_size(dB[at_B].shape)
            decayed = torch.mul(carry.mul_(decay[step]), h[step], out=buffer)
            dA += (decayed * self.delta[step][:, None]).sum(-1, keepdim=True)
            torch.sum(decayed.mul_(self.A), 1, out=through_decay[step])
        return through_B, through_decay, dA[..., 0], dB, dC


def _carry(decay: Tensor, end: Tensor) -> Tensor:
    """h_k = decay_k h_(k-1) + end_k along the last dimension, from zero, in log2(K) operations."""
    shift = 1
    while shift < end.shape[-1]:
        end = torch.cat(
            [end[..., :shift], end[..., shift:] + decay[..., shift:] * end[..., :-shift]], dim=-1
        )
        decay = torch.cat([decay[..., :shift], decay[..., shift:] * decay[..., :-shift]], dim=-1)
        shift *= 2
    return end


kernel = Kernel("selective_scan", "torch", lambda *args: None, selective_scan, backward)
