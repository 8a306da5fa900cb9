"""Other people's tools on a network: each use asserts that the network stays right.

`TOOLS` is a part of docs/composability.md's table. A use gets a network in evaluation mode and a
function that calls a network on the test's picture.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import c2d_kernels
from c2d_models.networks.network import Network
from c2d_models.networks.wrappings import state_of
from tests.kernels.comparison import relative_error

Call = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Subject:
    """A network and its picture.

    call: a network's result for it. again: makes the same kind of network anew, in training mode.
    """

    net: Network
    x: Tensor
    size: dict[str, tuple[int, int]] = field(default_factory=dict)
    again: Callable[[], Network] = field(kw_only=True)

    def call(self, net: Callable[..., Tensor], x: Tensor | None = None) -> Tensor:
        return net(self.x if x is None else x, **self.size)


@dataclass(frozen=True)
class NetworkTool:
    """A use of a network, its name in the documentation's table, and what to know about it.

    `refusal` is a part of the sentence that it gets, if it is refused.
    """

    name: str
    use: Callable[[Subject], None]
    remark: str = ""
    needs: str = ""
    refusal: str = ""


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert relative_error(found.detach(), expected.detach().double()) < tolerance


def leaves(net: nn.Module) -> dict[str, nn.Module]:
    """The modules that compute: Linears, norms, convolutions, embeddings."""
    kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.Embedding)
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


def matrices(net: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, nn.Conv2d)
    return {name: module for name, module in leaves(net).items() if isinstance(module, kinds)}


def by_reference(use: Callable[[], Tensor]) -> Tensor:
    with c2d_kernels.backend("reference"):
        return use()


# ---- torch.func


def jvp(s: Subject) -> None:
    def tangent() -> Tensor:
        return torch.func.jvp(lambda x: s.call(s.net, x), (s.x,), (s.x.flip(2),))[1]

    expected = by_reference(tangent)
    assert expected.abs().max() > 0
    close(tangent(), expected)


def grad(s: Subject) -> None:
    def gradient() -> Tensor:
        return torch.func.grad(lambda x: s.call(s.net, x).square().sum())(s.x)

    close(gradient(), torch.autograd.grad(*_loss_and(s))[0])


def vjp(s: Subject) -> None:
    out, pull = torch.func.vjp(lambda x: s.call(s.net, x), s.x)
    x = s.x.clone().requires_grad_()
    close(pull(out)[0], torch.autograd.grad(s.call(s.net, x), x, out)[0])


def jacrev(s: Subject) -> None:
    """Gradients of three colours of the output by the input."""
    found = torch.func.jacrev(lambda x: s.call(s.net, x).flatten()[:3])(s.x)
    for index, row in enumerate(found):
        x = s.x.clone().requires_grad_()
        close(row, torch.autograd.grad(s.call(s.net, x).flatten()[index], x)[0])


def second_derivative(s: Subject) -> None:
    """Refused in a sentence that names the way out, which then works."""

    def twice() -> Tensor:
        loss, x = _loss_and(s)
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    with pytest.raises(
        RuntimeError, match=r'second derivative.*c2d_kernels.backend\("reference"\)'
    ):
        twice()
    assert by_reference(twice).abs().max() > 0


def _loss_and(s: Subject) -> tuple[Tensor, Tensor]:
    x = s.x.clone().requires_grad_()
    return s.call(s.net, x).square().sum(), x


def vmap(s: Subject) -> None:
    both = torch.stack([s.x, s.x.flip(3)])
    found = torch.vmap(lambda x: s.call(s.net, x))(both)
    close(found, torch.stack([s.call(s.net, x) for x in both]))


def per_sample_gradients(s: Subject) -> None:
    state = {name: x.detach() for name, x in s.net.named_parameters()}

    def loss(state: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(s.net, state, (x,), dict(s.size)).square().mean()

    pictures = [s.x, s.x.flip(3)]
    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, torch.stack(pictures))
    for index, x in enumerate(pictures):
        s.net.zero_grad()
        s.call(s.net, x).square().mean().backward()
        for name, parameter in s.net.named_parameters():
            if parameter.grad is not None:
                largest = parameter.grad.abs().max().item() + 1e-6
                assert (found[name][index] - parameter.grad).abs().max() < 1e-3 * largest, name


def functional_call(s: Subject) -> None:
    state = {name: 0.9 * x for name, x in s.net.state_dict().items()}
    s.net.prepare()
    s.call(s.net)
    with torch.no_grad():
        found = torch.func.functional_call(s.net, state, (s.x,), dict(s.size))
    other = copy.deepcopy(s.net)
    other.load_state_dict(state)
    close(found, s.call(other))


# ---- copies


def deepcopy(s: Subject) -> None:
    close(s.call(copy.deepcopy(s.net)), s.call(s.net), 1e-6)


def pickled(s: Subject) -> None:
    close(s.call(pickle.loads(pickle.dumps(s.net))), s.call(s.net), 1e-6)


def meta_init(s: Subject) -> None:
    for assign in (False, True):
        with torch.device("meta"):
            net = s.again()
        net = net if assign else net.to_empty(device="cpu")
        net.load_state_dict(s.net.state_dict(), assign=assign)
        close(s.call(net.eval()), s.call(s.net), 1e-6)


def average(s: Subject) -> None:
    close(s.call(AveragedModel(s.net).eval()), s.call(s.net), 1e-6)


def prepared_then_loaded(s: Subject) -> None:
    other = copy.deepcopy(s.net)
    for parameter in other.parameters():
        parameter.data.mul_(0.9)
    s.net.prepare()
    with torch.no_grad():
        s.call(s.net)
        s.net.load_state_dict(other.state_dict())
        close(s.call(s.net), s.call(other))


def replica(s: Subject) -> None:
    """By DataParallel's own code, but for the copies, which it makes on GPUs only."""
    places = {
        "_get_device_index": lambda device, optional: device,
        "_broadcast_coalesced_reshape": lambda tensors, devices, detach=False: [
            [tensor * 1 for tensor in tensors] for _ in devices
        ],
    }
    with patch.multiple("torch.nn.parallel.replicate", **places):
        first, second = nn.parallel.replicate(s.net, [0, 1])
    expected = s.call(s.net)
    close(s.call(first), expected)
    found = s.call(second)
    close(found, expected)
    found.square().sum().backward()
    assert not [n for n, p in s.net.named_parameters() if p.grad is None and ".route." not in n]


# ---- processes


@cache
def group_of_one() -> None:
    """Make this process a group. It is never taken apart.

    A DistributedDataParallel that outlives its group waits, now and then, for a thread of gloo's
    that waits for Python's lock (torch 2.13; about once in 500 times).
    """
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


def distributed(s: Subject) -> None:
    group_of_one()
    expected = s.call(s.net)
    net = nn.parallel.DistributedDataParallel(s.net, find_unused_parameters=True)
    found = s.call(net)
    close(found, expected, 1e-6)
    found.square().sum().backward()


def sharded(s: Subject) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    group_of_one()
    expected = s.call(s.net).detach()
    mesh = init_device_mesh("cpu", (1,))
    for module in leaves(s.net).values():
        fully_shard(module, mesh=mesh)
    fully_shard(s.net, mesh=mesh)
    found = s.call(s.net)
    close(found, expected)
    found.square().sum().backward()


# ---- graphs


def checkpointed(s: Subject) -> None:
    expected = torch.autograd.grad(*_loss_and(s))[0]
    for reentrant in (False, True):
        x = s.x.clone().requires_grad_()
        checkpoint(lambda x: s.call(s.net, x), x, use_reentrant=reentrant).square().sum().backward()
        close(x.grad, expected)


# ---- weights that are made of others


def _changed(change: Callable[[nn.Module], object]) -> Callable[[Subject], None]:
    def use(s: Subject) -> None:
        changed = copy.deepcopy(s.net)
        for module in matrices(changed).values():
            change(module)
        changed.eval()
        for _ in range(2):
            found = s.call(changed)
            found.square().sum().backward()
        plain = copy.deepcopy(s.net)
        plain.load_state_dict(state_of(changed))
        close(found, s.call(plain), 1e-3)
        assert relative_error(found.detach(), s.call(s.net).detach().double()) > 1e-5
        unmoved = [
            n for n, p in changed.named_parameters() if p.grad is None and ".route." not in n
        ]
        assert not unmoved

    return use


def _half_norm(module: nn.Module, make: Callable[[nn.Module], object]) -> None:
    """The norm, of a weight that is then another, so that passing it over would be seen."""
    made = make(module)
    gain = getattr(module, "weight_g", None)
    if gain is None:
        gain = module.parametrizations.weight.original0
    gain.data.mul_(0.8)
    assert made is module


def _converged(module: nn.Module) -> None:
    """Spectral norm after enough steps for no weight, and so no cube of it, to overflow."""
    spectral_norm(module, n_power_iterations=20)
    for hook in module._forward_pre_hooks.values():
        hook.compute_weight(module, do_power_iteration=True)


def dropped(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 0.3)


def quantised_dynamic(s: Subject) -> None:
    expected = s.call(s.net)
    quantised = torch.ao.quantization.quantize_dynamic(s.net, {nn.Linear}, torch.qint8)
    with torch.no_grad():
        found = s.call(quantised)
        close(found, expected, 0.2)
        close(found, by_reference(lambda: s.call(quantised)), 1e-2)


def torchao(s: Subject) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    expected = s.call(s.net)
    quantization.quantize_(s.net, quantization.Int8WeightOnlyConfig())
    with torch.no_grad():
        found = s.call(s.net)
        close(found, expected, 0.2)
        close(found, by_reference(lambda: s.call(s.net)), 1e-2)


def lora(s: Subject) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    from peft.tuners.tuners_utils import BaseTunerLayer

    before = s.call(s.net).detach()
    names = [
        name
        for name, module in leaves(s.net).items()
        if isinstance(module, (nn.Linear, nn.Embedding))
        or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    config = peft.LoraConfig(target_modules=names, r=2, init_lora_weights=False)
    net = peft.inject_adapter_in_model(config, s.net).eval()
    found = s.call(net)
    assert relative_error(found.detach(), before.double()) > 1e-5
    found.square().sum().backward()
    adapters = {name: x for name, x in net.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * len(names)
    assert not [n for n, x in adapters.items() if x.grad is None and ".route." not in n]
    for module in net.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    close(s.call(net), found, 1e-3)


# ---- hooks and precision


def hooks(s: Subject) -> None:
    expected = s.call(s.net).detach()
    seen: dict[str, set[str]] = {"pre": set(), "forward": set(), "backward": set(), "kwargs": set()}
    for name, module in leaves(s.net).items():
        module.register_forward_pre_hook(lambda *_, n=name: seen["pre"].add(n))
        module.register_forward_hook(lambda *_, n=name: seen["forward"].add(n))
        module.register_forward_hook(lambda *_, n=name: seen["kwargs"].add(n), with_kwargs=True)
        module.register_full_backward_hook(lambda *_, n=name: seen["backward"].add(n))
    found = s.call(s.net)
    close(found, expected)
    found.square().sum().backward()
    every = set(leaves(s.net))
    assert seen["pre"] == seen["forward"] == seen["kwargs"] == every
    assert every - seen["backward"] <= {name for name in every if ".route." in name}


def doubling_hooks(s: Subject) -> None:
    """A hook that changes what a module gives, as steering and quantisers' observers do."""
    doubled = copy.deepcopy(s.net)
    for module in matrices(s.net).values():
        module.register_forward_hook(lambda module, args, out: 1.1 * out)
    for module in matrices(doubled).values():
        for parameter in module.parameters():
            parameter.data.mul_(1.1)
    close(s.call(s.net), s.call(doubled))


def autocast(dtype: torch.dtype) -> Callable[[Subject], None]:
    def use(s: Subject) -> None:
        with torch.autocast("cpu", dtype=dtype):
            found = s.call(s.net)
            found.float().square().sum().backward()
        close(found, s.call(s.net), 0.2)
        assert all(p.grad is None or p.grad.isfinite().all() for p in s.net.parameters())

    return use


_BY_REFERENCE = "by the operators' references"
_CALLED = "a module that is more than its weights is called, no longer part of a fused operator"

TOOLS = [
    NetworkTool("torch.func.jvp", jvp, _BY_REFERENCE),
    NetworkTool("torch.func.grad", grad, _BY_REFERENCE),
    NetworkTool("torch.func.vjp", vjp, _BY_REFERENCE),
    NetworkTool("torch.func.jacrev", jacrev, _BY_REFERENCE),
    NetworkTool(
        "second derivative",
        second_derivative,
        'right inside `c2d_kernels.backend("reference")`',
        refusal="has no second derivative as a kernel",
    ),
    NetworkTool("torch.vmap", vmap, _BY_REFERENCE),
    NetworkTool("gradients of each sample", per_sample_gradients, _BY_REFERENCE),
    NetworkTool("functional_call, of a prepared network too", functional_call),
    NetworkTool("copy.deepcopy", deepcopy),
    NetworkTool("pickle", pickled),
    NetworkTool("meta init, then load_state_dict", meta_init, "with `assign=True` too"),
    NetworkTool("prepare, then load_state_dict", prepared_then_loaded),
    NetworkTool("AveragedModel", average),
    NetworkTool("DataParallel's replicas", replica),
    NetworkTool("DistributedDataParallel", distributed),
    NetworkTool("FSDP2, fully_shard of each module", sharded, _CALLED),
    NetworkTool("checkpoint of both kinds", checkpointed),
    NetworkTool("weight_norm (hook)", _changed(lambda m: _half_norm(m, weight_norm)), _CALLED),
    NetworkTool(
        "weight_norm", _changed(lambda m: _half_norm(m, parametrizations.weight_norm)), _CALLED
    ),
    NetworkTool("spectral_norm (hook)", _changed(_converged), _CALLED),
    NetworkTool("spectral_norm", _changed(parametrizations.spectral_norm), _CALLED),
    NetworkTool("prune", _changed(dropped), _CALLED),
    NetworkTool("quantize_dynamic", quantised_dynamic, _CALLED),
    NetworkTool("torchao, Int8WeightOnlyConfig", torchao, _CALLED, needs="torchao"),
    NetworkTool("peft, LoRA on Linears, convolutions and embeddings", lora, _CALLED, needs="peft"),
    NetworkTool("hooks of every kind", hooks, _CALLED),
    NetworkTool("hooks that change a result", doubling_hooks, _CALLED),
    NetworkTool("autocast, bfloat16", autocast(torch.bfloat16)),
    NetworkTool("autocast, float16", autocast(torch.float16)),
]
