"""Layers that run as one operator of c2d_kernels where nobody has changed one of their modules."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2d_kernels import (
    attention_branch,
    conv_ffn,
    mlp_branch,
    permuted_window_attention,
    res_post_norm,
    window_attention,
)
from c2d_kernels.dispatch import plain
from c2d_kernels.frozen import FrozenWeights

from .layers import Conv3x3, DepthwiseBranch, DepthwiseConv, Mlp, PointwiseConv
from .preparable import Preparable


class Fused(Preparable):
    """A module that does the work of several in one operator, as long as they are as they were."""

    def layer_weights(
        self,
        name: str,
        modules: Mapping[str, nn.Module],
        *around: nn.Module,
        arrange: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda weights: weights,
    ) -> Mapping[str, Tensor] | None:
        """`weights_of` as the operator takes them; None if the modules must run one by one.

        Args:
            name: under which a prepared network keeps the answer.
            arrange: makes the operator's weights of the modules'.
        """

        def find() -> dict[str, Tensor] | None:
            weights = weights_of(modules, *around)
            return None if weights is None else arrange(weights)

        def freeze() -> FrozenWeights | None:
            weights = find()
            return None if weights is None else FrozenWeights(weights)

        keeper = self.keeper
        return find() if keeper is None else keeper.get(name, freeze, *modules.values(), *around)


class FusedMlp(Fused):
    """An MLP that runs in one operator with its norm and the residual connection."""

    def branch(self, x: Tensor, norm: nn.LayerNorm, *, norm_first: bool) -> Tensor | None:
        """feed_forward in one operator; None if a module was replaced, hooked or parametrized."""
        raise NotImplementedError


class FeedForward(Mlp, FusedMlp):
    """The plain MLP, in one operator if the norm comes first."""

    def branch(self, x: Tensor, norm: nn.LayerNorm, *, norm_first: bool) -> Tensor | None:
        modules = {"norm": norm, "fc1": self.fc1, "fc2": self.fc2}
        weights = self.layer_weights("branch", modules, self) if norm_first else None
        return None if weights is None else mlp_branch(x, weights, eps=norm.eps)


class ConvFFN(Mlp, FusedMlp):
    """SRFormer's feed-forward: the MLP, its hidden features plus a depthwise branch of them."""

    def __init__(self, dim: int, ratio: float):
        super().__init__(dim, ratio)
        self.dwconv = DepthwiseBranch(int(dim * ratio))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x))
        return self.fc2(hidden + self.dwconv(hidden))

    def branch(self, x: Tensor, norm: nn.LayerNorm, *, norm_first: bool) -> Tensor | None:
        if type(self.dwconv) is not DepthwiseBranch:
            return None
        conv, activation = self.dwconv.depthwise_conv
        modules = {"norm": norm, "fc1": self.fc1, "dwconv": conv, "fc2": self.fc2}
        around = (self, self.dwconv, self.dwconv.depthwise_conv, activation)
        weights = self.layer_weights("branch", modules, *around)
        if weights is None or type(activation) is not nn.GELU:
            return None
        return conv_ffn(x, weights, norm_first=norm_first, eps=norm.eps)


class Attention(Fused):
    """Common part of both window attentions: the bias table, `proj`, the residual connection.

    `projections` are the Linears that make the attention's inputs. `keys` is how many keys an axis
    of a window has.
    """

    projections: tuple[str, ...]

    def __init__(self, dim: int, window_size: int, num_heads: int, shift: int, keys: int):
        super().__init__()
        self.window_size, self.num_heads, self.shift = window_size, num_heads, shift
        table = torch.empty((2 * keys - 1) ** 2, num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.proj = nn.Linear(dim, dim)

    def attend(self, x: Tensor) -> Tensor:
        """All but the projection."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attend(x))

    def branch(
        self, x: Tensor, norm: nn.LayerNorm, projections: Mapping[str, nn.Module]
    ) -> Tensor | None:
        """x + attention(norm(x)) in one operator.

        None if a module was replaced, hooked or parametrized.
        """
        modules = {"norm": norm, **projections, "proj": self.proj}
        weights = self.layer_weights("branch", modules, self)
        if weights is None:
            return None
        return attention_branch(
            x,
            self.relative_position_bias_table,
            weights,
            window_size=self.window_size,
            num_heads=self.num_heads,
            shift=self.shift,
            eps=norm.eps,
        )


class ProjectedWindowAttention(Attention):
    """Multi-head self-attention in (shifted) windows with relative position bias (Swin, eq. 4).

    Of queries, keys and values that the layer around it has made: (B, H, W, 3 dim) -> (B, H, W,
    dim); H and W are multiples of `window_size`. Partition, shift, mask and bias are the operator's
    business.
    """

    projections: tuple[str, ...] = ()

    def __init__(self, dim: int, window_size: int, num_heads: int, shift: int = 0):
        super().__init__(dim, window_size, num_heads, shift, keys=window_size)

    def attend(self, qkv: Tensor) -> Tensor:
        return window_attention(
            qkv,
            self.relative_position_bias_table,
            window_size=self.window_size,
            num_heads=self.num_heads,
            shift=self.shift,
        )


class WindowAttention(ProjectedWindowAttention):
    """The same with its own projection, (B, H, W, dim) -> (B, H, W, dim)."""

    projections = ("qkv",)

    def __init__(self, dim: int, window_size: int, num_heads: int, shift: int = 0):
        super().__init__(dim, window_size, num_heads, shift)
        self.qkv = nn.Linear(dim, 3 * dim)

    def attend(self, x: Tensor) -> Tensor:
        return super().attend(self.qkv(x))


class PermutedWindowAttention(Attention):
    """SRFormer's self-attention: keys and values of a quarter of the width, 2x2 tokens per key.

    (B, H, W, dim) -> (B, H, W, dim); H and W are multiples of `window_size`, which is even.
    """

    projections = ("q", "kv")

    def __init__(self, dim: int, window_size: int, num_heads: int, shift: int = 0):
        super().__init__(dim, window_size, num_heads, shift, keys=window_size // 2)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim // 2)

    def attend(self, x: Tensor) -> Tensor:
        return permuted_window_attention(
            self.q(x),
            self.kv(x),
            self.relative_position_bias_table,
            window_size=self.window_size,
            num_heads=self.num_heads,
            shift=self.shift,
        )


def self_attention(x: Tensor, norm: nn.LayerNorm, attention: nn.Module) -> Tensor:
    """x + attention(norm(x)), in one operator if it can be."""
    done = None
    if isinstance(attention, Attention):
        projections = {name: getattr(attention, name) for name in attention.projections}
        done = attention.branch(x, norm, projections)
    return x + attention(norm(x)) if done is None else done


def feed_forward(x: Tensor, norm: nn.LayerNorm, mlp: nn.Module, *, norm_first: bool) -> Tensor:
    """x + MLP(norm(x)) or, the norm last, x + norm(MLP(x)), in one operator if it can be."""
    done = mlp.branch(x, norm, norm_first=norm_first) if isinstance(mlp, FusedMlp) else None
    if done is not None:
        return done
    return x + (mlp(norm(x)) if norm_first else norm(mlp(x)))


class Mixer(nn.Module):
    """The token mixer of a layer whose norms come last: `proj` of its `parts`, side by side."""

    proj: nn.Linear

    def parts(self, x: Tensor, *others: Tensor) -> list[Tensor]:
        """Maps as high and wide as x."""
        raise NotImplementedError


class PostNormLayer(Fused):
    """A layer whose norms come last: x + LN(mixer(x)), then x + LN(MLP(x)) (HiT-SR).

    A subclass has norm1, mlp, norm2 and a mixer.
    """

    norm1: nn.LayerNorm
    mlp: nn.Module
    norm2: nn.LayerNorm

    def mix_and_feed(self, x: Tensor, mixer: nn.Module, *others: Tensor) -> Tensor:
        """The layer with mixer(x, *others).

        What follows the parts is one operator, with the MLP if that is a plain one.
        """
        norm1, mlp, norm2 = self.norm1, self.mlp, self.norm2
        weights = None
        if isinstance(mixer, Mixer):
            first: dict[str, nn.Module] = {"proj": mixer.proj, "norm1": norm1}
            if type(mlp) is Mlp:
                plain = {"fc1": mlp.fc1, "fc2": mlp.fc2, "norm2": norm2}
                weights = self.layer_weights("layer", first | plain, mixer, mlp)
                if weights is not None:
                    return res_post_norm(x, mixer.parts(x, *others), weights, eps=norm1.eps)
            weights = self.layer_weights("mixer", first, mixer)
        if isinstance(mixer, Mixer) and weights is not None:
            x = res_post_norm(x, mixer.parts(x, *others), weights, eps=norm1.eps)
        else:
            x = x + norm1(mixer(x, *others))
        return feed_forward(x, norm2, mlp, norm_first=False)


def weights_of(modules: Mapping[str, nn.Module], *around: nn.Module) -> dict[str, Tensor] | None:
    """The modules' weights and biases for an operator that does their work, named as in `modules`.

    None if one has no bias, if a weight is not plain memory (quantised, sharded), or if a call of
    one of them, or of a module `around` them, does more than its class says: an adapter, a
    parametrization, quantisation, a hook or an exchanged `forward` must not be passed over.
    """
    known = (nn.Linear, nn.LayerNorm, PointwiseConv, Conv3x3, DepthwiseConv)
    if not all(type(module) in known for module in modules.values()):
        return None
    if not all(as_written(module) for module in (*modules.values(), *around)):
        return None
    weights = {
        f"{name}.{kind}": getattr(module, kind)
        for name, module in modules.items()
        for kind in ("weight", "bias")
    }
    return weights if all(x is not None and plain(x) for x in weights.values()) else None


def as_written(module: nn.Module) -> bool:
    """Whether a call of a module does what its class says, and that is ours or torch's."""
    ours = type(module).__module__.startswith(("c2d_models.", "torch.nn.modules."))
    hooks = module._forward_hooks or module._forward_pre_hooks
    hooks = hooks or module._backward_hooks or module._backward_pre_hooks
    return ours and not hooks and "forward" not in vars(module)


def matrix_of(linear: nn.Module, inputs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The weight (out, inputs) and bias (out,) of a Linear that is not called on its inputs.

    Its own where it is as its class says; of what has become of it otherwise (an adapter, a
    quantised or hooked one), those that its call shows, on each input alone and on none.

    Args:
        like: a tensor of the device and dtype that it would be called on.
    """
    weights = weights_of({"": linear})
    if weights is not None:
        return weights[".weight"], weights[".bias"]
    rows = linear(torch.eye(inputs + 1, inputs, dtype=like.dtype, device=like.device))
    return (rows[:-1] - rows[-1]).T, rows[-1]


def is_leaky(module: nn.Module) -> bool:
    """Whether this is the LeakyReLU of HiT-SR, the one that `dual_features` has."""
    return type(module) is nn.LeakyReLU and module.negative_slope == 0.2
