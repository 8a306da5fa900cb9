"""Mamba's selective scan in ten lines: python examples/selective_scan.py."""

import torch

import c2d_kernels

batch, channels, length, states = 1, 48, 4096, 16
u, delta = torch.randn(2, batch, channels, length, requires_grad=True).unbind()
a = -torch.rand(channels, states)  # decay rates, negative
b, c = torch.randn(2, batch, states, length).unbind()
y = c2d_kernels.selective_scan(u, delta, a, b, c, torch.ones(channels), delta_softplus=True)
y.square().mean().backward()
print(f"{tuple(y.shape)}, mean square {y.square().mean():.3f}")
