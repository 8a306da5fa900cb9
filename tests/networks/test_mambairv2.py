"""MambaIRv2's routing, sorting and prompts."""

import pytest
import torch
from torch.nn import functional as F

from c2d_models import create
from c2d_models.networks.mambairv2 import AttentiveStateSpace, PromptedScan, class_order


def test_shift_alternates():
    net = create("mambairv2_l", 2)
    for group in net.layers:
        shifts = [layer.win_mhsa.shift for layer in group.residual_group.layers]
        assert shifts == [0, 8, 0, 8, 0]


@pytest.mark.parametrize(
    ("classes", "order"),
    [
        pytest.param([[0]], [0], id="one"),
        pytest.param([[2, 0, 1]], [1, 2, 0], id="sorted"),
        pytest.param([[1, 0, 1, 0, 1]], [1, 3, 0, 2, 4], id="equals-keep-their-order"),
        pytest.param([[2, 0], [1, 0]], [1, 0, 3, 2], id="images-stay-apart"),
    ],
)
def test_class_order(classes, order):
    there, back = class_order(torch.tensor(classes), 3)
    assert there.tolist() == order
    places = torch.arange(len(order))
    assert torch.equal(places[there][back], places)


def state_space(**changes) -> AttentiveStateSpace:
    """A small one whose tokens differ in class and prompt: a fresh one's hardly do."""
    options = {"d_state": 3, "inner_rank": 4, "num_tokens": 5, "routing": "argmax", **changes}
    module = AttentiveStateSpace(6, 1, **options).double().eval()
    for parameter in (module.embeddingB.weight, module.route[0].weight, module.route[2].weight):
        torch.nn.init.normal_(parameter)
    return module


def test_state_space_written_out(rng):
    """Token by token: sorted tokens meet the prompts of the unsorted ones."""
    module = state_space()
    x = torch.randn(1, 3, 4, 6, generator=rng, dtype=torch.float64)
    table = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        logits = module.route(x.reshape(12, 6)).log_softmax(-1)
        classes = [int(row.argmax()) for row in logits]
        assert len(set(classes)) > 1
        prompts = [module.embeddingB.weight[c] @ table for c in classes]
        image = x.permute(0, 3, 1, 2)
        inner = F.conv2d(image, module.in_proj[0].weight, module.in_proj[0].bias)
        gate = F.conv2d(inner, module.CPE[0].weight, module.CPE[0].bias, padding=1, groups=6)
        tokens = (inner * torch.sigmoid(gate)).flatten(2)[0].t()
        order = sorted(range(12), key=lambda token: classes[token])
        scan = module.selectiveScan
        state = torch.zeros(6, 3, dtype=torch.float64)
        expected = torch.zeros(12, 6, dtype=torch.float64)
        for step, token in enumerate(order):
            u = tokens[token]
            steps, entry, reading = (scan.x_proj_weight[0] @ u).split([1, 3, 3])
            delta = F.softplus(scan.dt_projs_weight[0] @ steps + scan.dt_projs_bias[0])[:, None]
            state = torch.exp(-delta * scan.A_logs.exp()) * state + delta * u[:, None] * entry
            y = state @ (reading + prompts[step]) + scan.Ds * u
            expected[token] = module.out_proj(module.out_norm(y))
        y = module(x, table)
    torch.testing.assert_close(y.reshape(12, 6), expected, atol=1e-13, rtol=0)


def test_prompt_is_that_of_the_class(rng):
    module = state_space()
    x = torch.randn(2, 7, 6, generator=rng, dtype=torch.float64)
    prompts = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    classes, prompt = module.classify(x, prompts)
    assert torch.equal(classes, module.route(x).argmax(-1))
    assert torch.equal(prompt, F.one_hot(classes, 5).double() @ prompts)


def test_the_first_of_equal_classes_wins():
    module = state_space()
    torch.nn.init.zeros_(module.route[2].weight)
    module.route[2].bias.data = torch.tensor([0.0, 2, 1, 2, 0]).double()
    classes, _ = module.classify(torch.zeros(1, 9, 6).double(), torch.zeros(5, 3).double())
    assert classes.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("routing", "training", "random"),
    [
        pytest.param("argmax", False, False, id="evaluation"),
        pytest.param("argmax", True, True, id="training"),
        pytest.param("gumbel", False, True, id="evaluation-as-the-authors"),
    ],
)
def test_routing_is_random_where_asked(routing, training, random, rng):
    module = state_space(routing=routing).train(training)
    x = torch.randn(1, 6, 6, 6, generator=rng, dtype=torch.float64)
    table = torch.randn(4, 3, generator=rng, dtype=torch.float64)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return module(x, table)

    assert torch.equal(run(1), run(1))
    assert torch.equal(run(1), run(2)) != random


def test_sampled_classes_follow_the_softmax():
    module = state_space(routing="gumbel")
    torch.nn.init.zeros_(module.route[2].weight)
    probability = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625], dtype=torch.float64)
    module.route[2].bias.data = probability.log()
    prompts = torch.eye(5, 3, dtype=torch.float64)
    classes, prompt = module.classify(torch.zeros(1, 20_000, 6).double(), prompts)
    share = torch.bincount(classes.flatten(), minlength=5) / 20_000
    torch.testing.assert_close(share.double(), probability, atol=0.015, rtol=0)
    torch.testing.assert_close(prompt, prompts[classes])  # hard, up to the rounding of p - p


def test_gradients_go_straight_through(rng):
    """A sampled choice is hard, its gradient that of the softmax of the same noisy logits."""
    module = state_space().train()
    x = torch.randn(1, 8, 6, generator=rng, dtype=torch.float64)
    prompts = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    weight = torch.randn(1, 8, 3, generator=rng, dtype=torch.float64)
    torch.manual_seed(5)
    (module.classify(x, prompts)[1] * weight).sum().backward()
    found = module.route[2].bias.grad.clone()
    module.zero_grad()
    torch.manual_seed(5)
    soft = F.gumbel_softmax(module.route(x), hard=False) @ prompts
    (soft * weight).sum().backward()
    torch.testing.assert_close(found, module.route[2].bias.grad, atol=1e-12, rtol=0)


def test_scan_starts_as_mamba_does():
    scan = PromptedScan(48, 8)
    torch.testing.assert_close(scan.A_logs.exp(), torch.arange(1.0, 9).expand(48, 8))
    steps = F.softplus(scan.dt_projs_bias)
    assert 0.001 < steps.min() < 0.004 and 0.025 < steps.max() < 0.1
    assert torch.equal(scan.Ds, torch.ones(48))
    assert [tuple(p.shape) for p in (scan.x_proj_weight, scan.dt_projs_weight)] == [
        (1, 19, 48),
        (1, 48, 3),
    ]
