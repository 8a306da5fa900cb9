"""`accelerate(net)`: what is replaced computes the same, and nothing else about it changes."""

import copy
import io
import pickle

import pytest
import torch
from published_layers import Body, SwinTransformerBlock, randomised
from torch import nn

from c2d_kernels import AccelerationError, accelerate

SIZE = (12, 8)


def swinir(**options):
    return randomised(
        Body(SwinTransformerBlock(**options), SwinTransformerBlock(shift=2, **options))
    )


def features(dtype=torch.float32, batch=2):
    return torch.randn(batch, SIZE[0] * SIZE[1], 24, dtype=dtype)


def changed(net):
    """The layers whose class is another one than when they were written."""
    return [layer for layer in net.layers if type(layer) is not SwinTransformerBlock]


@pytest.mark.parametrize("size", [(12, 8), (8, 8), (4, 20)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_outputs_and_gradients(size, dtype):
    net = swinir().to(dtype)
    x = torch.randn(2, size[0] * size[1], 24, dtype=dtype, requires_grad=True)
    expected = net(x, size)
    wanted = torch.autograd.grad(expected.square().sum(), [x, *net.parameters()])
    report = accelerate(net)
    assert [row.path for row in report.replaced] == ["layers.0", "layers.1"] and not report.left
    out = net(x, size)
    found = torch.autograd.grad(out.square().sum(), [x, *net.parameters()])
    bound = 2e-5 if dtype == torch.float32 else 1e-12
    for mine, theirs in zip([out, *found], [expected, *wanted], strict=True):
        assert (mine - theirs).abs().max() <= bound * theirs.abs().max()
    with torch.no_grad():
        assert (net(x, size) - expected).abs().max() <= bound * expected.abs().max()


def test_revert_is_bit_exact():
    net, x = swinir(), features()
    before = net(x, SIZE)
    with accelerate(net):
        assert len(changed(net)) == 2
    assert changed(net) == [] and torch.equal(net(x, SIZE), before)
    assert all("_c2d_plan" not in vars(layer) for layer in net.layers)


def test_state_and_names_stay():
    net = swinir()
    state, names = net.state_dict(), [name for name, _ in net.named_modules()]
    accelerate(net)
    assert list(net.state_dict()) == list(state)
    assert [name for name, _ in net.named_modules()] == names
    other = swinir()
    net.load_state_dict(other.state_dict())
    x = features()
    assert torch.allclose(net(x, SIZE), other(x, SIZE), atol=1e-5)


def through_torch_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), through_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_are_of_the_plain_class(copied):
    net, x = swinir(), features()
    expected = net(x, SIZE)
    accelerate(net)
    twin = copied(net)
    assert changed(twin) == [] and len(changed(net)) == 2
    assert torch.equal(twin(x, SIZE), expected)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def exchange(layer):
    new = Doubled(24, 24)
    new.load_state_dict(layer.attn.proj.state_dict())
    layer.attn.proj = new


def hook(layer):
    layer.mlp.fc1.register_forward_hook(lambda module, args, out: 3 * out)


def parametrize(layer):
    nn.utils.parametrizations.weight_norm(layer.attn.qkv)
    layer.attn.qkv.parametrizations.weight.original0.data.mul_(2)


def own_forward(layer):
    layer.norm2.forward = lambda x: x


@pytest.mark.parametrize("change", [exchange, hook, parametrize, own_forward])
def test_what_changes_later_is_seen(change):
    net, x = swinir(), features()
    plain = copy.deepcopy(net)
    before = plain(x, SIZE)
    accelerate(net)
    for each in (net, plain):
        change(each.layers[1])
    with torch.no_grad():
        assert torch.allclose(net(x, SIZE), plain(x, SIZE), atol=1e-5)
    assert not torch.allclose(before, plain(x, SIZE), atol=1e-3)


@pytest.mark.parametrize("options", [{"attn_drop": 0.5}, {"path": 0.5}], ids=str)
def test_active_dropout_runs_as_written(options):
    net, x = swinir(**options), features()
    plain = copy.deepcopy(net)
    accelerate(net)
    for each in (net, plain):
        each.train()
    torch.manual_seed(1)
    expected = plain(x, SIZE)
    torch.manual_seed(1)
    assert torch.equal(net(x, SIZE), expected)


class LargerScale(SwinTransformerBlock):
    def __init__(self, **options):
        super().__init__(**options)
        self.attn.scale *= 1.01


class OwnMask(SwinTransformerBlock):
    def __init__(self, **options):
        super().__init__(**options)
        self.attn_mask = self.attn_mask * 0 if self.attn_mask is not None else None


class PostNorm(SwinTransformerBlock):
    def forward(self, x, x_size):
        x = x + self.norm1(self.mixed(x, x_size))
        return x + self.norm2(self.mlp(x))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (LargerScale, "scaled by"),
        (OwnMask, "attn_mask holds other values"),
        (PostNorm, "it differs from the operators by"),
    ],
)
def test_look_alikes_are_refused(kind, reason):
    kind.__name__ = "SwinTransformerBlock"
    layer = randomised(kind(shift=2))
    net, x = Body(layer), features()
    before = net(x, SIZE)
    report = accelerate(net)
    assert [row.path for row in report.left] == ["layers.0"] and reason in report.left[0].reason
    assert type(layer) is kind and torch.equal(net(x, SIZE), before)
    with pytest.raises(AccelerationError, match=reason):
        accelerate(net, strict=True)


def test_attention_of_an_unknown_kind_is_listed():
    net = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    (row,) = accelerate(net).left
    assert row.path == "1" and "no layer that is known" in row.reason


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_is_positive(tolerance):
    with pytest.raises(ValueError, match="tolerance must be positive"):
        accelerate(swinir(), tolerance=tolerance)
