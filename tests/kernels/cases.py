"""The table that the operator tests run over: each operator with small and awkward inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import c2d_kernels
from c2d_kernels.dispatch import Kernel, kernels
from c2d_kernels.operators import operators

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One operator called with one set of shapes.

    shapes: the tensor arguments; names are the public function's. options: the rest of its
    arguments. features: which tensors have the precision under test (the others may stay float32
    beside half precision). fixed: tensors that are data, with values of their own and no gradient.
    prepare: changes drawn values (for example, makes A negative). result: which tensor's dtype the
    result has.
    """

    name: str
    operator: str
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, object]
    features: tuple[str, ...]
    fixed: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    prepare: Callable[[Tensors], Tensors] = lambda tensors: tensors
    result: str = ""

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensors:
        """Seeded inputs: features in dtype, parameters in dtype or float32 if that is half."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }
        drawn = self.prepare(drawn)
        wide = torch.promote_types(dtype, torch.float32)
        cast = {name: x.to(dtype if name in self.features else wide) for name, x in drawn.items()}
        return {**cast, **{name: make() for name, make in self.fixed.items()}}

    def call(self, tensors: Tensors) -> Tensor | tuple[Tensor, ...]:
        """The public function on these tensors."""
        arguments = dict(tensors)
        for listed in ("parts", "encoding"):
            values = [arguments.pop(name) for name in tensors if name.startswith(listed + "-")]
            if values:
                arguments[listed] = values
        weights = {name: arguments.pop(name) for name in list(arguments) if "." in name}
        if weights:
            arguments["weights"] = weights
        return getattr(c2d_kernels, self.operator)(**arguments, **self.options)

    def outputs(self, tensors: Tensors) -> tuple[Tensor, ...]:
        """What the call returns, always as a tuple."""
        out = self.call(tensors)
        return out if isinstance(out, tuple) else (out,)


def _scan(
    name: str, batch: int, channels: int, length: int, states: int, groups: int | None = None
) -> Case:
    matrix = (batch, states, length) if groups is None else (batch, groups, states, length)
    sequence = (batch, channels, length)
    return Case(
        name,
        "selective_scan",
        {
            "u": sequence,
            "delta": sequence,
            "A": (channels, states),
            "B": matrix,
            "C": matrix,
            "D": (channels,),
            "z": sequence,
            "delta_bias": (channels,),
        },
        {"delta_softplus": True, "return_last_state": True},
        ("u", "delta", "B", "C", "z"),
        prepare=lambda tensors: {**tensors, "A": -tensors["A"].exp()},
        result="u",
    )


def _attention(
    name: str,
    batch: int,
    height: int,
    width: int,
    head_dim: int,
    *,
    window: int = 4,
    heads: int = 2,
    shift: int = 2,
) -> Case:
    return Case(
        name,
        "window_attention",
        {
            "qkv": (batch, height, width, 3 * heads * head_dim),
            "bias_table": ((2 * window - 1) ** 2, heads),
        },
        {"window_size": window, "num_heads": heads, "shift": shift},
        ("qkv",),
        result="qkv",
    )


def _layer(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    hidden: int,
    *,
    window: int = 4,
    heads: int = 2,
    shift: int = 2,
) -> Case:
    matrices = {
        "qkv": (3 * channels, channels),
        "proj": (channels, channels),
        "fc1": (hidden, channels),
        "fc2": (channels, hidden),
        "norm1": (channels,),
        "norm2": (channels,),
    }
    return Case(
        name,
        "window_layer",
        {
            "x": (batch, height, width, channels),
            "bias_table": ((2 * window - 1) ** 2, heads),
            **_modules(matrices),
        },
        {"window_size": window, "num_heads": heads, "shift": shift},
        ("x",),
        prepare=_matrices_that_keep_variance,
        result="x",
    )


def _post_norm(
    name: str, batch: int, height: int, width: int, channels: int, hidden: int | None, part: int
) -> Case:
    """Without an MLP if `hidden` is None."""
    modules = {"proj": (channels, 2 * part), "norm1": (channels,)}
    if hidden is not None:
        modules |= {"fc1": (hidden, channels), "fc2": (channels, hidden), "norm2": (channels,)}
    return Case(
        name,
        "res_post_norm",
        {
            "x": (batch, height, width, channels),
            "parts-1": (batch, height, width, part),
            "parts-2": (batch, height, width, part),
            **_modules(modules),
        },
        {},
        ("x", "parts-1", "parts-2"),
        prepare=_matrices_that_keep_variance,
        result="x",
    )


def _conv_ffn(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    hidden: int,
    *,
    norm_first: bool = True,
) -> Case:
    modules = {"norm": (channels,), "fc1": (hidden, channels), "fc2": (channels, hidden)}
    modules |= {"dwconv": (hidden, 1, 5, 5)}
    return Case(
        name,
        "conv_ffn",
        {"x": (batch, height, width, channels), **_modules(modules)},
        {"norm_first": norm_first},
        ("x",),
        prepare=_matrices_that_keep_variance,
        result="x",
    )


def _dual(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    hidden: int,
    *,
    encoding: bool = True,
) -> Case:
    modules = {"local": (hidden, channels), "conv": (hidden, hidden, 3, 3)}
    modules |= {"expand": (channels, hidden), "linear": (channels, channels)}
    places = {"encoding-1": (height, channels), "encoding-2": (width, channels)}
    return Case(
        name,
        "dual_features",
        {
            "x": (batch, height, width, channels),
            **(places if encoding else {}),
            **_modules(modules),
        },
        {},
        ("x",),
        prepare=_matrices_that_keep_variance,
        result="x",
    )


def _branch(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    *,
    permuted: bool = False,
    window: int = 4,
    heads: int = 2,
    shift: int = 2,
) -> Case:
    inputs = {"q": channels, "kv": channels // 2} if permuted else {"qkv": 3 * channels}
    matrices = {module: (rows, channels) for module, rows in inputs.items()}
    matrices |= {"proj": (channels, channels), "norm": (channels,)}
    keys = window // 2 if permuted else window
    return Case(
        name,
        "attention_branch",
        {
            "x": (batch, height, width, channels),
            "bias_table": ((2 * keys - 1) ** 2, heads),
            **_modules(matrices),
        },
        {"window_size": window, "num_heads": heads, "shift": shift},
        ("x",),
        prepare=_matrices_that_keep_variance,
        result="x",
    )


def _modules(matrices: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of modules' weights and biases."""
    both = {f"{module}.weight": shape for module, shape in matrices.items()}
    return both | {f"{module}.bias": shape[:1] for module, shape in matrices.items()}


def _matrices_that_keep_variance(drawn: Tensors) -> Tensors:
    return {
        name: x / x[0].numel() ** 0.5 if x.dim() > 1 and "." in name else x
        for name, x in drawn.items()
    }


def _permuted(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    *,
    window: int = 4,
    heads: int = 2,
    shift: int = 2,
) -> Case:
    return Case(
        name,
        "permuted_window_attention",
        {
            "q": (batch, height, width, channels),
            "kv": (batch, height, width, channels // 2),
            "bias_table": ((window - 1) ** 2, heads),
        },
        {"window_size": window, "num_heads": heads, "shift": shift},
        ("q", "kv"),
        result="q",
    )


def _channel(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    window: int | tuple[int, int] = (4, 3),
) -> Case:
    shape = (batch, height, width, channels)
    return Case(
        name,
        "channel_correlation",
        {"q": shape, "v": shape},
        {"window_size": window},
        ("q", "v"),
        result="q",
    )


def _spatial(
    name: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    *,
    window: tuple[int, int] = (4, 2),
    base: int = 2,
    heads: int = 2,
) -> Case:
    shape = (batch, height, width, channels)
    cell = (window[0] // min(base, window[0])) * (window[1] // min(base, window[1]))
    return Case(
        name,
        "spatial_correlation",
        {
            "q": shape,
            "v": shape,
            "weight": (1, cell),
            "weight_bias": (1,),
            "bias_table": ((2 * window[0] - 1) * (2 * window[1] - 1), heads),
        },
        {"window_size": window, "base_window": base, "num_heads": heads},
        ("q", "v"),
        result="q",
    )


def _query(
    name: str,
    batch: int,
    height: int,
    width: int,
    *,
    size: tuple[int, int] | None = None,
    queries: int | None = None,
    channels: int = 4,
    attentions: int = 1,
) -> Case:
    numbers = {"levels": attentions + 1, "heads": 2, "attentions": attentions}

    def coords() -> Tensor:
        generator = torch.Generator().manual_seed(7)
        shape = (batch, queries, 2)
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    fixed = {
        "coords": coords,
        "cell": lambda: torch.tensor([[0.11, 0.07]], dtype=torch.float64).repeat(batch, 1),
    }
    return Case(
        name,
        "coordinate_query",
        {
            "features": (batch, height, width, channels),
            "image": (batch, height, width, 3),
            **c2d_kernels.coordinate_query_weight_shapes(channels, **numbers),
        },
        numbers if size is None else {**numbers, "size": size},
        ("features", "image"),
        fixed=fixed if size is None else {},
        result="image",
    )


# Small cases, one of each form an operator has: gradcheck, opcheck, compile, autocast and the rest
# of the properties.
SMALL = [
    _scan("scan", 2, 3, 5, 2),
    _attention("attention", 1, 4, 6, 2, window=2, shift=1),
    _permuted("permuted", 1, 8, 4, 4),
    _layer("layer", 1, 4, 6, 4, 6, window=2, shift=1),
    _branch("branch", 1, 4, 6, 4, window=2, shift=1),
    _branch("branch-permuted", 1, 8, 4, 4, permuted=True),
    _post_norm("post-norm", 1, 2, 3, 4, 5, part=3),
    _post_norm("post-norm-no-mlp", 1, 2, 3, 4, None, part=3),
    _conv_ffn("conv-ffn", 1, 3, 4, 4, 5),
    _dual("dual", 1, 3, 4, 4, 3),
    _channel("channel", 2, 5, 4, 3),
    _spatial("spatial", 1, 4, 4, 4),
    _query("query-coords", 2, 2, 3, queries=5),
]

# The shapes that break implementations: each is compared with float64 at its own precision.
AWKWARD = [
    _scan("scan-one-step", 2, 3, 1, 4),
    _scan("scan-1134-steps", 1, 4, 1134, 3),
    _scan("scan-47-channels", 1, 47, 33, 8),
    _scan("scan-groups", 2, 6, 9, 3, groups=2),
    _scan("scan-no-batch", 0, 3, 4, 2),
    _attention("attention-head-dim-10", 1, 16, 24, 10, window=8, heads=6, shift=4),
    _attention("attention-one-window", 2, 4, 4, 5),
    _attention("attention-odd-shift", 1, 9, 6, 3, window=3, heads=1, shift=1),
    _attention("attention-no-batch", 0, 8, 4, 2),
    _attention("attention-1x1", 1, 1, 1, 2, window=1, shift=0),
    _permuted("permuted-head-dim-10", 1, 8, 16, 20, window=8, shift=4),
    _permuted("permuted-one-window", 2, 4, 4, 8, shift=0),
    _permuted("permuted-no-batch", 0, 8, 4, 4),
    _permuted("permuted-2x2", 1, 2, 2, 4, window=2, shift=0),
    _layer("layer-head-dim-10", 1, 16, 24, 60, 120, window=8, heads=6, shift=4),
    _layer("layer-49-tokens", 2, 14, 7, 12, 5, window=7, shift=3),
    _layer("layer-three-channels", 1, 4, 8, 3, 7, heads=3),
    _layer("layer-no-batch", 0, 8, 4, 2, 2),
    _layer("layer-1x1", 1, 1, 1, 18, 2, window=1, shift=0),
    _branch("branch-49-tokens", 2, 14, 7, 12, window=7, shift=3),
    _branch("branch-no-batch", 0, 8, 4, 2),
    _branch("branch-1x1", 1, 1, 1, 18, window=1, shift=0),
    _branch("branch-srformer", 1, 32, 48, 60, permuted=True, window=16, heads=6, shift=8),
    _branch("branch-permuted-9-keys", 2, 6, 12, 20, permuted=True, window=6, shift=4),
    _branch("branch-permuted-49-keys", 1, 14, 28, 12, permuted=True, window=14, heads=3, shift=6),
    _branch("branch-permuted-no-batch", 0, 8, 4, 4, permuted=True),
    _branch("branch-permuted-2x2", 1, 2, 2, 4, permuted=True, window=2, shift=0),
    _post_norm("post-norm-hiet", 1, 9, 15, 60, 120, part=30),
    _post_norm("post-norm-few-channels", 2, 5, 13, 3, 40, part=1),
    _post_norm("post-norm-no-batch", 0, 2, 3, 4, 5, part=2),
    _post_norm("post-norm-1x1", 1, 1, 1, 17, 33, part=19),
    _post_norm("post-norm-no-mlp-hiet", 1, 9, 15, 60, None, part=30),
    _post_norm("post-norm-no-mlp-few-channels", 2, 5, 13, 3, None, part=1),
    _post_norm("post-norm-no-mlp-no-batch", 0, 2, 3, 4, None, part=2),
    _post_norm("post-norm-no-mlp-1x1", 1, 1, 1, 17, None, part=19),
    _conv_ffn("conv-ffn-srformer", 1, 37, 126, 60, 120),
    _conv_ffn("conv-ffn-norm-last", 2, 9, 7, 18, 36, norm_first=False),
    _conv_ffn("conv-ffn-one-row", 1, 1, 260, 3, 4),
    _conv_ffn("conv-ffn-one-column", 1, 67, 1, 5, 3, norm_first=False),
    _conv_ffn("conv-ffn-no-batch", 0, 3, 4, 4, 5),
    _conv_ffn("conv-ffn-1x1", 1, 1, 1, 4, 70),
    _dual("dual-hiet", 1, 37, 127, 60, 12),
    _dual("dual-hit", 2, 9, 7, 18, 4, encoding=False),
    _dual("dual-one-row", 1, 1, 260, 5, 1),
    _dual("dual-one-column", 1, 67, 1, 3, 2, encoding=False),
    _dual("dual-no-batch", 0, 3, 4, 4, 5),
    _dual("dual-1x1", 1, 1, 1, 4, 20),
    _channel("channel-borders", 2, 13, 7, 6, window=(4, 8)),
    _channel("channel-window-over-map", 1, 5, 9, 10, window=64),
    _channel("channel-1x1", 1, 1, 1, 4, window=8),
    _channel("channel-one-column", 3, 21, 1, 5, window=8),
    _channel("channel-many-channels", 1, 9, 11, 70, window=(5, 4)),
    _channel("channel-no-batch", 0, 6, 5, 4),
    _spatial("spatial-rectangle", 2, 8, 6, 10, window=(8, 2), base=2),
    _spatial("spatial-small-window", 1, 4, 8, 6, window=(2, 4), base=8, heads=3),
    _spatial("spatial-no-batch", 0, 4, 4, 4),
    _spatial("spatial-1x1", 1, 1, 1, 4, window=(1, 1), base=8),
    _query("query-grid", 2, 3, 5, size=(8, 9)),
    _query("query-grid-down", 1, 7, 4, size=(3, 4)),
    _query("query-two-attentions", 1, 4, 3, size=(9, 8), attentions=2, channels=6),
    _query("query-1x1", 1, 1, 1, size=(1, 1)),
    _query("query-one", 1, 3, 4, queries=1),
    _query("query-no-batch", 0, 3, 4, size=(5, 6)),
]

# The roads a call can take: the custom op (over the reference), plain ATen, and the kernels that
# run on a CPU, each where the operator has one.
KERNEL_ROUTES = {"native": "cpu", "torch": "torch"}


def roads(cases: list[Case]) -> list:
    """Each case on each road it has, as parameters `case, route`."""
    known = {name: {kernel.backend for kernel in kernels(name)} for name in operators}
    return [
        pytest.param(case, route, id=f"{case.name}-{route}")
        for case in cases
        for route in ("op", "reference", *KERNEL_ROUTES)
        if KERNEL_ROUTES.get(route) in known[case.operator] or route not in KERNEL_ROUTES
    ]


def opaque_kernel(operator: str) -> Kernel:
    """A kernel that runs the reference, so that the public function takes the custom op's road."""
    return Kernel(operator, "cuda", lambda *args: None, operators[operator].reference)
