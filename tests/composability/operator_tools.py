"""Other people's tools on an operator: each gives a result to be compared with another's.

`TOOLS` is a part of docs/composability.md's table. A tool gets the operator as a function of its
first argument alone, and that argument.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OperatorTool:
    """A use of an operator.

    Attributes:
        name: as the documentation's table has it.
        use: what is done; its result is compared with the reference's.
        remark: what a user should know about it.
        refusal: how the sentence begins by which it is refused; empty if it works.
    """

    name: str
    use: Callable[[Function, Tensor], Tensor]
    remark: str = ""
    refusal: str = ""


def _direction(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)


def _loss(f: Function) -> Function:
    return lambda x: f(x).square().sum()


def _jvp(f: Function, x: Tensor) -> Tensor:
    return torch.func.jvp(f, (x,), (_direction(x),))[1]


def _dual(f: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        out = f(forward_ad.make_dual(x.clone().requires_grad_(), _direction(x)))
        tangent = forward_ad.unpack_dual(out).tangent
        return torch.zeros_like(out) if tangent is None else tangent.detach()


def _forward_over_reverse(f: Function, x: Tensor) -> Tensor:
    return torch.func.jvp(torch.func.grad(_loss(f)), (x,), (_direction(x),))[1]


def _vjp(f: Function, x: Tensor) -> Tensor:
    out, pull = torch.func.vjp(f, x)
    return pull(_direction(out))[0]


def _two(x: Tensor) -> Tensor:
    return torch.stack([x, x.flip(1)])


def _jacrev(f: Function, x: Tensor) -> Tensor:
    return torch.func.jacrev(lambda x: f(x).flatten()[:3])(x)


def _batched_backward(f: Function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    out = f(x)
    grads = torch.stack([_direction(out), torch.ones_like(out)])
    return torch.autograd.grad(out, x, grads, is_grads_batched=True)[0]


def _checkpointed(reentrant: bool) -> Callable[[Function, Tensor], Tensor]:
    def use(f: Function, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        out = checkpoint(f, x, use_reentrant=reentrant)
        return torch.autograd.grad(out, x, _direction(out))[0] if not reentrant else _pulled(out, x)

    return use


def _pulled(out: Tensor, x: Tensor) -> Tensor:
    """The other kind of checkpoint knows backward() only."""
    out.backward(_direction(out))
    assert x.grad is not None
    return x.grad


def _compiled(f: Function, x: Tensor) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager")(x)


def _other_thread(f: Function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    out = f(x)
    thread = threading.Thread(target=lambda: _pulled(out, x))
    thread.start()
    thread.join()
    assert x.grad is not None
    return x.grad


def _twice(f: Function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


_REFERENCE = "by the reference"

TOOLS = [
    OperatorTool("torch.func.jvp", _jvp, _REFERENCE),
    OperatorTool("forward_ad.dual_level", _dual, _REFERENCE),
    OperatorTool("torch.func.grad", lambda f, x: torch.func.grad(_loss(f))(x), _REFERENCE),
    OperatorTool("torch.func.vjp", _vjp, _REFERENCE),
    OperatorTool("forward over reverse", _forward_over_reverse, _REFERENCE),
    OperatorTool("torch.vmap", lambda f, x: torch.vmap(f)(_two(x)), _REFERENCE),
    OperatorTool(
        "gradients of each sample",
        lambda f, x: torch.vmap(torch.func.grad(_loss(f)))(_two(x)),
        _REFERENCE,
    ),
    OperatorTool("torch.func.jacrev", _jacrev, _REFERENCE),
    OperatorTool(
        "is_grads_batched", _batched_backward, "the backward differentiates the reference"
    ),
    OperatorTool("checkpoint, use_reentrant=False", _checkpointed(False)),
    OperatorTool("checkpoint, use_reentrant=True", _checkpointed(True)),
    OperatorTool("torch.compile(fullgraph=True)", _compiled),
    OperatorTool("backward in another thread", _other_thread, "with the backend of its forward"),
    OperatorTool(
        "second derivative",
        _twice,
        'inside `c2d_kernels.backend("reference")`',
        refusal="has no second derivative as a kernel",
    ),
]
