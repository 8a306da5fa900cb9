"""Requirements on every network, with either up-sampler."""

import shutil

import pytest
import torch
from torch import nn

import c2d_kernels
from c2d_models import create
from c2d_models.networks.registry import NETWORKS

TINY = [
    "hiet_swinir_tiny",
    "swinir_l_tiny",
    "srformer_l",
    "swin2sr_l",
    "hat_s",
    "mambair_l",
    "mambairv2_l",
    "hit_sir_tiny",
    "hit_srf",
    "hit_sng",
    "hiet_srformer_tiny",
    "hiet_mambairv2_tiny",
]


def test_every_kind_of_network_is_in_the_table():
    kinds = {preset.constructor for preset in NETWORKS.values()}
    assert {NETWORKS[name].constructor for name in TINY} == kinds


# The reference of the scan is a loop over all pixels: few layers, and no wide windows' padding.
SMALL = {
    "srformer_l": {"dim": 24, "depths": [2]},
    "swin2sr_l": {"dim": 24, "depths": [2]},
    "hat_s": {
        "dim": 24,
        "depths": [2],
        "window_size": 8,
        "compress_ratio": 3,
        "overlap": 2,
        "upsampler": "pixelshuffledirect",
    },
    "mambair_l": {"dim": 12, "depths": [1], "d_state": 3, "squeeze_factor": 4},
    "hit_sir_tiny": {"groups": 1, "windows": [4, 16, 32]},
    "hit_srf": {"dim": 24, "groups": 1, "windows": [4, 16]},
    "hit_sng": {"dim": 24, "groups": 1, "windows": [4, 16]},
    "mambairv2_l": {"dim": 16, "depths": [2], "num_tokens": 8},
    "hiet_mambairv2_tiny": {"dim": 16, "blocks": 1, "windows": [32], "num_tokens": 8},
}
# The compiler's time grows with the layers.
ONE_BLOCK = {
    **SMALL,
    "hiet_swinir_tiny": {"blocks": 1, "windows": [16]},
    "hiet_srformer_tiny": {"blocks": 1, "windows": [16]},
    "hiet_mambairv2_tiny": {**SMALL["hiet_mambairv2_tiny"], "windows": [16]},
    "swinir_l_tiny": {"depths": [2]},
    "hit_sir_tiny": {"groups": 1, "windows": [4, 16]},
    "mambairv2_l": {**SMALL["mambairv2_l"], "depths": [1]},
}
SIZES = [(1, 1), (1, 9), (2, 1), (7, 65), (16, 8), (33, 21)]


def lively(
    name: str, scale: int | None, configs: dict[str, dict[str, object]] = SMALL
) -> nn.Module:
    """A network in evaluation mode whose up-sampler's last layer is not zero, as it is at first."""
    net = create(name, scale, config=configs.get(name)).eval()
    for name, parameter in net.named_parameters():
        if name.endswith(("upsample.0.weight", "fc2.weight")):
            nn.init.normal_(parameter, std=0.05)
    return net


def place(scale: int | None, height: int, width: int) -> dict:
    return {} if scale else {"size": (int(height * 2.6) + 1, int(width * 1.7) + 1)}


@pytest.fixture(params=TINY)
def name(request) -> str:
    return request.param


@pytest.fixture(params=[4, None], ids=["x4", "continuous"])
def scale(request) -> int | None:
    return request.param


@pytest.mark.parametrize(("height", "width"), SIZES, ids=[f"{h}x{w}" for h, w in SIZES])
def test_any_size(name, scale, height, width, rng):
    net = lively(name, scale)
    x = torch.rand(2, 3, height, width, generator=rng)
    where = place(scale, height, width)
    with torch.no_grad():
        y = net(x, **where)
        features = net.encode(x)
        assert features.shape[:3] == (2, height, width)
        assert torch.equal(net.decode(features, x, **where), y)
        alone = net(x[1:], **where)
    assert y.shape == (2, 3, *where.get("size", (4 * height, 4 * width)))
    assert y.isfinite().all()
    torch.testing.assert_close(y[1:], alone, atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (9, 5)], ids=["1x1", "1x7", "9x5"])
def test_any_size_with_published_hyperparameters(name, scale, height, width, rng):
    """The windows of 64 of HiT and HiET around a picture of one pixel, among others."""
    net = create(name, scale).eval()
    where = place(scale, height, width)
    with torch.no_grad():
        y = net(torch.rand(1, 3, height, width, generator=rng), **where)
    assert y.shape == (1, 3, *where.get("size", (4 * height, 4 * width)))
    assert y.isfinite().all()


def test_coords_are_the_grid(name, rng):
    net = lively(name, None)
    x = torch.rand(2, 3, 9, 12, generator=rng)
    rows, columns = ((2 * torch.arange(n) + 1) / n - 1 for n in (23, 31))
    coords = torch.cartesian_prod(rows, columns).expand(2, -1, -1)
    cell = torch.tensor([2 / 23, 2 / 31]).expand(2, 2)
    with torch.no_grad():
        points, grid = net(x, coords=coords, cell=cell), net(x, size=(23, 31))
    expected = points.transpose(1, 2).reshape(2, 3, 23, 31)
    torch.testing.assert_close(grid, expected, atol=1e-5, rtol=0)


def test_every_parameter_learns(name, scale, rng):
    net = lively(name, scale).train()
    x = torch.rand(2, 3, 16, 24, generator=rng)
    if scale:
        loss = (net(x) - 0.5).abs().mean()
    else:
        coords = torch.rand(2, 50, 2, generator=rng) * 2 - 1
        loss = (net(x, coords=coords, cell=torch.full((2, 2), 0.05)) - 0.5).abs().mean()
    loss.backward()
    idle = [
        key for key, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert idle == []


def test_features_depend_on_the_whole_margin_only(rng):
    """Decoding a piece with `decode_margin` pixels around it gives that piece."""
    for name in TINY:
        net = lively(name, 4)
        margin = net.decode_margin
        x = torch.rand(1, 3, 20, 12, generator=rng)
        with torch.no_grad():
            features, whole = net.encode(x), net(x)
            top, bottom = 6 - margin, 13 + margin
            piece = net.decode(features[:, top:bottom], x[:, :, top:bottom])
        piece = piece[:, :, 4 * margin : piece.shape[2] - 4 * margin]
        torch.testing.assert_close(piece, whole[:, :, 24:52], atol=1e-6, rtol=0)


def test_continuous_pieces_make_the_picture(name, rng):
    """Moments summed over strips, then strips decoded with them, equal the picture in one go."""
    net = lively(name, None)
    x = torch.rand(1, 3, 17, 14, generator=rng)
    size = (41, 33)
    strips = [((0, 20), (0, 10)), ((20, 41), (7, 17))]  # output rows, LR rows that they need
    with torch.no_grad():
        features, whole = net.encode(x), net(x, size=size)

        def crop(low: int, high: int, rows: tuple[int, int]) -> tuple:
            region = c2d_kernels.Region(rows, (0, size[1]), (low, 0), (17, 14))
            return features[:, low:high], x[:, :, low:high], region

        pieces = [crop(low, high, rows) for rows, (low, high) in strips]
        moments = sum(net.decode_moments(f, size=size, region=region) for f, _, region in pieces)
        moments = [moments / (size[0] * size[1])]
        parts = [
            net.decode(f, image, size=size, region=region, moments=moments)
            for f, image, region in pieces
        ]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=0)


def test_prepared_equals_unprepared(name, scale, rng):
    net = lively(name, scale)
    x = torch.rand(1, 3, 35, 70, generator=rng)
    where = place(scale, 35, 70)
    with torch.no_grad():
        before = net(x, **where)
        assert net.prepare() is net
        assert torch.equal(net(x, **where), before)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_stays_near(name, scale, half, rng):
    net = lively(name, scale)
    x = torch.rand(1, 3, 16, 24, generator=rng)
    where = place(scale, 16, 24)
    with torch.no_grad():
        expected = net(x, **where)
        y = net.to(half)(x.to(half), **where)
    assert y.dtype == half
    assert (y.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "config", "least", "example", "backend"),
    [
        pytest.param("swinir_l_tiny", {"depths": [2]}, 9, (19, 42), "reference", id="swinir"),
        # An export fixes an axis that has one window only: more than the widest, 16, are needed.
        pytest.param(
            "hiet_swinir_tiny", {"blocks": 1, "windows": [16]}, 17, (19, 42), "reference", id="hiet"
        ),
        pytest.param(
            "srformer_l", {"dim": 24, "depths": [2]}, 17, (19, 42), "reference", id="srformer"
        ),
        pytest.param(
            "hit_sir_tiny",
            {"groups": 1, "windows": [4, 16]},
            17,
            (19, 42),
            "reference",
            id="hit_sir",
        ),
        pytest.param(
            "hit_srf",
            {"dim": 24, "groups": 1, "windows": [4, 16]},
            17,
            (19, 42),
            "reference",
            id="hit_srf",
        ),
        pytest.param(
            "hiet_srformer_tiny",
            {"blocks": 1, "windows": [16]},
            17,
            (19, 42),
            "reference",
            id="hiet_srformer",
        ),
        # A scan stays one op: its reference would be unrolled for the example's sizes.
        pytest.param("mambairv2_l", {"depths": [1]}, 17, (19, 42), "auto", id="mambairv2"),
        pytest.param(
            "hiet_mambairv2_tiny",
            {"blocks": 1, "windows": [16]},
            17,
            (19, 42),
            "auto",
            id="hiet_mambairv2",
        ),
    ],
)
def test_export_with_dynamic_sizes(name, config, least, example, backend, rng):
    """To plain ATen and what must stay an op, with sizes that are no multiples of any window."""
    net = create(name, 2, config=config).eval()
    nn.init.normal_(net.upsample[0].weight, std=0.05)
    height, width = (torch.export.Dim(axis, min=least, max=4096) for axis in ("height", "width"))
    x = torch.rand(1, 3, *example, generator=rng)
    with torch.no_grad(), c2d_kernels.backend(backend):
        program = torch.export.export(
            net,
            (x,),
            dynamic_shapes={"x": {2: height, 3: width}},
            # That 8 n pixels make n windows is for a run-time check: the solver cannot tell.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        for size in [example, (least, least + 3), (2 * least + 1, least + 7)]:
            other = torch.rand(1, 3, *size, generator=rng)
            torch.testing.assert_close(program.module()(other), net(other), atol=1e-5, rtol=0)


def test_compiles_in_one_graph(name, rng):
    torch._dynamo.reset()
    net = lively(name, 2)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.rand(2, 3, 19, 12, generator=rng)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x), atol=1e-6, rtol=0)


def gradients(net: nn.Module, x: torch.Tensor, function) -> dict[str, torch.Tensor]:
    """Gradients of one step's loss, by parameter; HiET rolls its encoding by the same numbers."""
    net.zero_grad()
    torch.manual_seed(0)
    (function(x) - 0.5).square().mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


@pytest.mark.slow
def test_trains_compiled_in_one_graph(name, rng):
    torch._dynamo.reset()
    net = lively(name, 2, ONE_BLOCK).train()
    x = torch.rand(2, 3, 19, 12, generator=rng)
    expected = gradients(net, x, net)
    actual = gradients(net, x, torch.compile(net, fullgraph=True, backend="aot_eager"))
    for parameter, want in expected.items():
        assert want.abs().max() > 0, parameter
        error = (actual[parameter] - want).abs().max() / want.abs().max()
        assert error <= 1e-5, parameter


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler")
def test_trains_compiled_by_inductor(rng):
    """Two layers of SwinIR, one shifted, with the operators inside what Inductor makes."""
    torch._dynamo.reset()
    net = lively("swinir_l_tiny", 2, ONE_BLOCK).train()
    x = torch.rand(1, 3, 11, 16, generator=rng)
    expected = gradients(net, x, net)
    actual = gradients(net, x, torch.compile(net, fullgraph=True))
    for parameter, want in expected.items():
        error = (actual[parameter] - want).abs().max() / want.abs().max()
        assert error <= 1e-4, parameter


@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        pytest.param(
            torch.zeros(3, 8, 8), ValueError, r"shape \(B, 3, H, W\), RGB; got \(3, 8, 8\)", id="3d"
        ),
        pytest.param(torch.zeros(1, 1, 8, 8), ValueError, r"got \(1, 1, 8, 8\).*grey", id="grey"),
        pytest.param(
            torch.zeros(1, 8, 8, 3), ValueError, r"got \(1, 8, 8, 3\)", id="channels-last"
        ),
        pytest.param(
            torch.zeros(1, 3, 0, 8),
            ValueError,
            r"at least one pixel; got \(1, 3, 0, 8\)",
            id="empty",
        ),
        pytest.param(
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            TypeError,
            r"floating-point tensor with values in \[0, 1\]; got torch.uint8",
            id="bytes",
        ),
        pytest.param([[0.0]], TypeError, r"floating-point tensor .*; got list", id="list"),
    ],
)
def test_refuses_what_is_no_image(name, x, error, sentence):
    with pytest.raises(error, match=sentence):
        create(name, 4)(x)


def test_a_fixed_scale_takes_no_place(name):
    with pytest.raises(ValueError, match=rf"{name} enlarges by 4 only: call net\(x\)"):
        create(name, 4)(torch.zeros(1, 3, 8, 8), size=(20, 20))
    with pytest.raises(ValueError, match=rf"{name} enlarges by 4 only: it has no attention"):
        create(name, 4).decode_moments(torch.zeros(1, 8, 8, 48), size=(20, 20))


def test_a_continuous_network_needs_a_place(name):
    with pytest.raises(ValueError, match="size"):
        create(name, None)(torch.zeros(1, 3, 8, 8))
