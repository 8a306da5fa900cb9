"""The drop-in's functions and its Mamba block against their formulas, one number at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2d_kernels.drop_in.functions import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_inner_fn,
    selective_scan_fn,
    selective_state_update,
)
from c2d_kernels.drop_in.mamba import Mamba
from c2d_kernels.drop_in.norms import RMSNorm, layer_norm_fn, rms_norm_fn


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y_t = b + sum_i w_i x_(t - W + 1 + i), with zeros before the first."""
    width, y = weight.shape[1], torch.zeros_like(x)
    for t in range(x.shape[-1]):
        for i in range(width):
            if t - width + 1 + i >= 0:
                y[..., t] += weight[:, i] * x[..., t - width + 1 + i]
    return y if bias is None else y + bias[:, None]


def scanned(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """The scan of one group, with steps after softplus: y and the last state."""
    h, ys = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[-1]):
        step = delta[..., t, None]
        h = torch.exp(step * A) * h + step * u[..., t, None] * B[:, None, :, t]
        ys.append((h * C[:, None, :, t]).sum(-1) + D * u[..., t])
    return torch.stack(ys, -1), h


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("bias", [None, draw(3)], ids=["no-bias", "bias"])
def test_causal_conv1d(activation: str | None, length: int, bias: Tensor | None) -> None:
    x, weight = draw(2, 3, length), draw(3, 4)
    expected = convolved(x, weight, bias)
    expected = expected if activation is None else expected / (1 + torch.exp(-expected))
    torch.testing.assert_close(causal_conv1d_fn(x, weight, bias, activation=activation), expected)


def test_causal_conv1d_in_pieces_and_steps() -> None:
    x, weight, bias = draw(2, 3, 11), draw(3, 4), draw(3)
    whole = causal_conv1d_fn(x, weight, bias, activation="silu")
    first, state = causal_conv1d_fn(
        x[..., :2], weight, bias, return_final_states=True, activation="silu"
    )
    torch.testing.assert_close(state, F.pad(x[..., :2], (1, 0)))
    second = causal_conv1d_fn(x[..., 2:7], weight, bias, initial_states=state, activation="silu")
    kept = F.pad(x[..., 2:7], (0, 0))  # the last five inputs, more than are needed
    steps = [causal_conv1d_update(x[..., t], kept, weight, bias, "silu")[..., None] for t in (7, 8)]
    torch.testing.assert_close(kept, x[..., 4:9])
    rest = causal_conv1d_update(x[..., 9:], kept, weight, bias, "silu")
    torch.testing.assert_close(torch.cat([first, second, *steps, rest], -1), whole)


def test_what_causal_conv1d_refuses() -> None:
    x, weight = draw(1, 2, 3), draw(2, 2)
    with pytest.raises(ValueError, match="seq_idx must be None: call"):
        causal_conv1d_fn(x, weight, seq_idx=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="activation must be None, 'silu' or 'swish', got 'gelu'"):
        causal_conv1d_fn(x, weight, activation="gelu")


@pytest.mark.parametrize("given", [(), ("B",), ("B", "C")], ids=["both-made", "B-given", "given"])
def test_mamba_inner_fn(given: tuple[str, ...]) -> None:
    channels, states, rank, length = 3, 2, 2, 7
    xz, conv, conv_bias = draw(2, 2 * channels, length), draw(channels, 1, 4), draw(channels)
    x_proj, dt_proj = draw(rank + 2 * states, channels), draw(channels, rank, seed=1)
    out_proj, out_bias = draw(5, channels), draw(5)
    A, D, delta_bias = -draw(channels, states).exp(), draw(channels, seed=2), draw(channels)
    biases = {"B_proj_bias": draw(states), "C_proj_bias": draw(states, seed=3)}
    fixed = {name: draw(2, states, length, seed=ord(name)) for name in given}

    x, z = xz.chunk(2, 1)
    x = F.silu(convolved(x, conv[:, 0], conv_bias))
    made = torch.einsum("rd,bdl->brl", x_proj, x)
    delta = torch.einsum("dr,brl->bdl", dt_proj, made[:, :rank]) + delta_bias[:, None]
    B = fixed.get("B", made[:, rank : rank + states] + biases["B_proj_bias"][:, None])
    C = fixed.get("C", made[:, -states:] + biases["C_proj_bias"][:, None])
    y, _ = scanned(x, torch.log1p(delta.exp()), A, B, C, D)
    expected = torch.einsum("od,bdl->blo", out_proj, y * F.silu(z)) + out_bias

    arguments = (xz, conv, conv_bias, x_proj, dt_proj, out_proj, out_bias, A)
    leaves = [x.requires_grad_() for x in arguments]
    found = mamba_inner_fn(*leaves, D=D, delta_bias=delta_bias, **fixed, **biases)
    torch.testing.assert_close(found, expected)
    for gradient in torch.autograd.grad(found.square().sum(), leaves):
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("gated", [False, True])
def test_selective_state_update_is_a_step_of_the_scan(gated: bool) -> None:
    u, dt, z = draw(2, 3, 5), draw(2, 3, 5, seed=1), draw(2, 3, 5, seed=2)
    A, B, C = -draw(3, 4).exp(), draw(2, 4, 5), draw(2, 4, 5, seed=3)
    D, bias = draw(3), draw(3, seed=4)
    gate = z if gated else None
    expected, last = selective_scan_fn(u, dt, A, B, C, D, gate, bias, True, return_last_state=True)
    state = torch.zeros(2, 3, 4, dtype=torch.float64)
    for t in range(5):
        y = selective_state_update(
            state,
            u[..., t],
            dt[..., t],
            A,
            B[..., t],
            C[..., t],
            D,
            z[..., t] if gated else None,
            bias,
            True,
        )
        torch.testing.assert_close(y, expected[..., t])
    torch.testing.assert_close(state, last)


def test_selective_state_update_with_heads() -> None:
    """Each head is a scan by itself; two of them share a group's B and C."""
    heads, channels, states = 4, 3, 2
    state = draw(2, heads, channels, states)
    x, dt = draw(2, heads, channels), draw(2, heads, channels, seed=1)
    A, D = -draw(heads, channels, states).exp(), draw(heads, channels)
    B, C = draw(2, 2, states), draw(2, 2, states, seed=1)
    each = [
        selective_state_update(
            state[:, h].clone(), x[:, h], dt[:, h], A[h], B[:, h // 2], C[:, h // 2], D[h]
        )
        for h in range(heads)
    ]
    y = selective_state_update(state, x, dt, A, B, C, D)
    torch.testing.assert_close(y, torch.stack(each, 1))


@pytest.mark.parametrize("with_residual", [False, True])
def test_norms(with_residual: bool) -> None:
    x, weight, bias = draw(2, 5), draw(5), draw(5, seed=1)
    residual = draw(2, 5, seed=2) if with_residual else None
    total = x if residual is None else x + residual
    mean = total.mean(-1, keepdim=True)
    variance = (total - mean).square().mean(-1, keepdim=True)
    found, kept = layer_norm_fn(x, weight, bias, residual, eps=1e-5, prenorm=True)
    torch.testing.assert_close(found, (total - mean) / (variance + 1e-5).sqrt() * weight + bias)
    torch.testing.assert_close(kept, total)
    scale = (total.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(
        rms_norm_fn(x, weight, bias, residual), total / scale * weight + bias
    )


def test_the_residual_may_be_wider_than_the_features() -> None:
    norm, x = RMSNorm(4, dtype=torch.bfloat16), draw(2, 4).bfloat16()
    assert list(norm.state_dict()) == ["weight"]
    found, kept = norm(x, prenorm=True, residual_in_fp32=True)
    assert (found.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    found, kept = norm(x, kept, prenorm=True)
    assert (found.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(kept, 2 * x.float())


def test_the_scan_keeps_dtypes_under_autocast_and_can_be_viewed() -> None:
    """Networks such as MambaIR assert float32 there, and take views of y."""
    u, delta = draw(2, 5, 3).float().mT, draw(2, 5, 3).float().mT
    A, B = -draw(3, 2).exp().float(), draw(2, 2, 5).float()
    expected = selective_scan_fn(u, delta, A, B, B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan_fn(u, delta, A, B, B)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
    assert y.view(2, 1, -1, 5).shape == (2, 1, 3, 5)


ORIGINAL = {  # names and shapes in mamba_ssm's files, for d_model 8, d_state 4
    "A_log": (16, 4),
    "D": (16,),
    "in_proj.weight": (32, 8),
    "conv1d.weight": (16, 1, 4),
    "conv1d.bias": (16,),
    "x_proj.weight": (9, 16),
    "dt_proj.weight": (16, 1),
    "dt_proj.bias": (16,),
    "out_proj.weight": (8, 16),
}


def original_weights() -> dict[str, Tensor]:
    return {name: 0.5 * draw(*shape) for name, shape in ORIGINAL.items()}


def block() -> Mamba:
    block = Mamba(8, d_state=4).double()
    block.load_state_dict(original_weights())
    return block


def by_formula(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    u, z = (x @ weights["in_proj.weight"].T).mT.chunk(2, 1)
    u = F.silu(convolved(u, weights["conv1d.weight"][:, 0], weights["conv1d.bias"]))
    made = torch.einsum("rd,bdl->brl", weights["x_proj.weight"], u)
    delta = torch.einsum("dr,brl->bdl", weights["dt_proj.weight"], made[:, :1])
    delta = torch.log1p(torch.exp(delta + weights["dt_proj.bias"][:, None]))
    A = -weights["A_log"].float().exp().double()  # the block computes A in float32
    y, _ = scanned(u, delta, A, made[:, 1:5], made[:, 5:], weights["D"])
    return (y * F.silu(z)).mT @ weights["out_proj.weight"].T


def test_mamba_is_its_formula() -> None:
    x = draw(2, 6, 8)
    torch.testing.assert_close(block()(x), by_formula(original_weights(), x), rtol=1e-6, atol=1e-7)


def test_mamba_step_by_step_is_mamba_at_once() -> None:
    net, x = block(), draw(2, 6, 8)
    whole = net(x)
    states = net.allocate_inference_cache(2, 6)
    steps = [net.step(x[:, t : t + 1], *states)[0] for t in range(6)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="must hold one token at a time, got 6"):
        net.step(x, *states)


def test_mamba_goes_on_from_a_prompt() -> None:
    net, x = block(), draw(2, 6, 8)
    params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    with pytest.raises(ValueError, match="layer_idx must be given"):
        net(x, params)
    net.layer_idx = 3
    with torch.no_grad():
        found = [net(x[:, :4], params)]
        for t in (4, 5):
            params.seqlen_offset = t
            found.append(net(x[:, t : t + 1], params))
        expected = net(x)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-6, atol=1e-7)


def test_mamba_starts_as_the_paper_says() -> None:
    net = Mamba(64, dt_min=0.01, dt_max=0.1)
    steps = F.softplus(net.dt_proj.bias)
    assert steps.min() * 1.001 >= 0.01
    assert steps.max() <= 0.1001
    assert net.dt_rank == math.ceil(64 / 16)
    torch.testing.assert_close(net.A_log.exp()[5], torch.arange(1.0, 17.0))
    with pytest.raises(ValueError, match="dt_init must be 'random' or 'constant', got 'zeros'"):
        Mamba(8, dt_init="zeros")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mamba_under_autocast(dtype: torch.dtype) -> None:
    net, x = block().float(), draw(2, 6, 8).float()
    expected = net(x)
    with torch.autocast("cpu", dtype=dtype):
        found = net(x)
    assert found.dtype == dtype
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


class VimBlock(nn.Module):
    """A block of a vision Mamba: residual, norm and a mixer in both directions of the tokens."""

    def __init__(self, dim: int) -> None:
        from mamba_ssm import Mamba
        from mamba_ssm.ops.triton.layernorm import RMSNorm

        super().__init__()
        self.norm = RMSNorm(dim)
        self.mixer = Mamba(d_model=dim, d_state=4, d_conv=4, expand=2, layer_idx=0)
        self.backward_mixer = Mamba(d_model=dim, d_state=4)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        from mamba_ssm.ops.triton.layernorm import rms_norm_fn

        x, residual = rms_norm_fn(
            x,
            self.norm.weight,
            self.norm.bias,
            residual=residual,
            prenorm=True,
            residual_in_fp32=True,
            eps=self.norm.eps,
        )
        return self.mixer(x) + self.backward_mixer(x.flip(1)).flip(1), residual


def test_a_vim_like_block(clean, absent) -> None:
    """Written against mamba_ssm: forward, backward, and weights of the original names."""
    import c2d_kernels

    c2d_kernels.install_as_mamba_ssm()
    net = VimBlock(8).double()
    weights = original_weights()
    state = {
        f"{mixer}.{name}": x for mixer in ("mixer", "backward_mixer") for name, x in weights.items()
    }
    net.load_state_dict({**state, "norm.weight": draw(8)})
    x = draw(2, 6, 8).requires_grad_()
    found, residual = net(x)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * net.norm.weight
    expected = by_formula(weights, normed) + by_formula(weights, normed.flip(1)).flip(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(residual, x)
    (gradient,) = torch.autograd.grad(found.square().sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(found.square().sum(), list(net.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
