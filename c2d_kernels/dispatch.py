"""Which implementation of an operator runs here, and why the others do not.

A backend is a kind of kernel: `cuda`, `triton`, `cpu` (native code), `torch` (a fast formulation in
plain PyTorch), or `reference`, the plain PyTorch that defines the operator and runs everywhere.
`auto` takes the first that can run and never raises; a backend asked for by name that cannot run
raises with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from . import native

KERNEL_BACKENDS = ("cuda", "triton", "cpu", "torch")  # in the order auto tries them
CHOICES = ("auto", *KERNEL_BACKENDS, "reference")

# The first number of what a forward hands to its backward (see Kernel).
KEPT, NOTHING_KEPT = 0, -1

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)

_outside = os.environ.get("C2D_BACKEND") or "auto"  # of any block
# Each thread and task has its own; for autograd's threads, operators.py keeps the forward's.
_requested: ContextVar[str] = ContextVar("c2d_backend", default=_outside)
# The blocks open in any thread and the newest one's backend, for torch.compile: it cannot trace a
# context variable, nor see that it changed.
_open: list[list[str]] = []
_newest = _outside
_kernels: dict[str, list[Kernel]] = {}


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot do this here; the sentence says why."""


@dataclass(frozen=True)
class Kernel:
    """One implementation of one operator.

    Each function takes the operator's own arguments. `can_run` gives the reason why it can not run
    on them, or None. `forward` returns what the operator returns. `backward` takes the gradients of
    the outputs first and a mask last, and returns one gradient (or None) for each tensor; without
    it, auto leaves what needs gradients to the reference, and a kernel asked for by name has the
    reference run again and differentiated.

    A kernel that `keeps` (see Operator.kept) takes one argument more in `forward`, whether there
    will be a backward, and returns one tensor more: what it keeps, whose first number is KEPT, if
    there will, else an empty one. Its `backward` gets that between the gradients and the arguments,
    or, from another kernel's forward, a tensor that begins with NOTHING_KEPT.

    `trains_slower` says of arguments that can run whether forward and backward take longer than the
    reference's: auto then leaves what needs gradients to the reference, too.

    `native_ops` are the private operators of the native library that it calls, without one of which
    it cannot run.
    """

    operator: str
    backend: str
    can_run: Callable[..., str | None]
    forward: Callable[..., Tensor | tuple[Tensor, ...]]
    backward: Callable[..., Sequence[Tensor | None]] | None = None
    keeps: bool = False
    trains_slower: Callable[..., bool] = lambda *args: False
    native_ops: tuple[str, ...] = ()

    def trains(self, *args: object) -> bool:
        """Whether auto takes it for what needs gradients."""
        return self.backward is not None and not self.trains_slower(*args)


def register(kernel: Kernel) -> None:
    """Make a kernel known; auto tries kernels in the order of KERNEL_BACKENDS."""
    lacking = native.lacking(kernel.native_ops)
    if lacking is not None:
        kernel = replace(kernel, can_run=lambda *args: lacking)
    kernels = _kernels.setdefault(kernel.operator, [])
    kernels.append(kernel)
    kernels.sort(key=lambda known: KERNEL_BACKENDS.index(known.backend))


def kernels(operator: str) -> tuple[Kernel, ...]:
    """The kernels of an operator, first choice first."""
    return tuple(_kernels.get(operator, ()))


def requested() -> str:
    """The backend in force: backend()'s, else C2D_BACKEND's, else auto."""
    return _newest if torch.compiler.is_compiling() else _requested.get()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Ask for a backend by name inside a `with` block, in this thread (or asynchronous task).

    A backward takes the backend of its forward, wherever it runs.

    Args:
        name: "auto", "cuda", "triton", "cpu", "torch" or "reference". The environment variable
            C2D_BACKEND sets the one that holds outside of any block.

    Raises:
        ValueError: at once, for another name.
        BackendError: at the operator's call, if the named backend cannot run it; says why.
    """
    global _newest
    _check_name(name, "backend()")
    token, block = _requested.set(name), [name]
    _open.append(block)
    _newest = name
    try:
        yield
    finally:
        _requested.reset(token)
        _open[:] = [other for other in _open if other is not block]
        _newest = _open[-1][0] if _open else _outside


def transformed() -> bool:
    """Whether torch.func, forward-mode differentiation or batched gradients act on what runs now.

    They see through PyTorch's own operators only: a kernel would give a tangent of zero.
    """
    functorch = torch._C._functorch
    # isinstance, not `is None`: torch.compile sees None as an object here.
    return (
        isinstance(functorch.peek_interpreter_stack(), functorch.CInterpreter)
        or torch.autograd.forward_ad._current_level >= 0
    )


def plain(x: object) -> bool:
    """Whether x is memory that a kernel can read, not a tensor subclass that stands for something.

    Quantised and sharded weights are such; what compilers trace with counts as plain.
    """
    return type(x) in _PLAIN or isinstance(x, FakeTensor) or not isinstance(x, Tensor)


def select(operator: str, *args: object) -> Kernel | None:
    """The kernel that runs these arguments, or None: the reference does."""
    name = requested()
    if name == "reference":
        return None
    _check_name(name, "C2D_BACKEND")
    refusal = opaque(args)
    if refusal is not None:
        if name == "auto":
            return None
        raise cannot_run(operator, name, refusal)
    reason = f"this build has no {name} kernel for it"
    for kernel in _kernels.get(operator, ()):
        if name in ("auto", kernel.backend):
            refusal = kernel.can_run(*args)
            if refusal is None:
                return kernel
            reason = refusal
    if name == "auto":
        return None
    raise cannot_run(operator, name, reason)


def cannot_run(what: str, name: str, reason: str) -> BackendError:
    """The refusal of a backend that was asked for by name."""
    return BackendError(
        f"{what} cannot run on the backend {name!r}: {reason}; "
        'ask for backend("auto") to take one that can.'
    )


def in_one_piece(operator: str, *args: object) -> bool:
    """Whether a layer runs as one operator here, by the reference if that is asked for.

    Otherwise it is better composed of other operators: where the backend in force has no kernel for
    it, or has no gradients that are wanted (auto only: see Kernel).
    """
    name = requested()
    if name == "reference":
        return True
    if opaque(args) is not None:
        return False
    tensors = list(_flat(args))
    trains = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in tensors
    )
    return any(
        name in ("auto", kernel.backend)
        and kernel.can_run(*args) is None
        and not (name == "auto" and trains and not kernel.trains(*args))
        for kernel in kernels(operator)
    )


def opaque(args: Sequence[object]) -> str | None:
    """Why no kernel can take these arguments, or None."""
    if transformed():
        return "torch.func and forward-mode differentiation see through its reference only"
    for x in _flat(args):
        if not plain(x):
            return f"kernels read plain tensors, and among these is a {type(x).__name__}"
    return None


def _flat(args: Sequence[object]) -> Iterator[object]:
    for arg in args:
        if isinstance(arg, list):
            yield from arg
        else:
            yield arg


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Operators choose their own precision: inside them autocast is off."""
    if autocast_dtype(device) is not None:
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def autocast(*features: Tensor) -> tuple[Tensor, ...]:
    """Features in autocast's dtype where autocast is on; float64 stays, as in torch's own ops."""
    dtype = autocast_dtype(features[0].device)
    if dtype is None:
        return features
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in features)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that autocast rounds to there, or None where it is off."""
    on = device.type in _AUTOCASTS and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


# The meta device has no autocast, and asking for its state raises. torch.compile cannot trace the
# question whether a device has one (2.11), so it is asked here.
_AUTOCASTS = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "xpu", "mps")))


def _check_name(name: str, where: str) -> None:
    if name not in CHOICES:
        raise ValueError(f"{where} got {name!r}, but a backend is one of {', '.join(CHOICES)}.")
