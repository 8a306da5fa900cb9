"""From a reference to an operator: the custom ops `c2d::<name>` and `c2d::<name>_backward`.

Both are functional and opaque to tracing: fullgraph compile and export keep each as one node. At
run time they take the kernel that dispatch selects, and the reference where there is none. When the
reference is what would run anyway, or in a backward, `Operator.__call__` goes to it directly, in
plain ATen: autograd, torch.compile and ONNX then see inside, and nothing is computed twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import dispatch

_TENSOR_KINDS = ("Tensor", "Tensor?", "Tensor[]")
Result = TypeVar("Result", bound="Tensor | tuple[Tensor, ...]")
operators: dict[str, Operator[Any]] = {}
_as_defined = False
_BATCHED = torch._C._dispatch_key_parse("Batched")


@contextmanager
def counted_as_defined() -> Iterator[None]:
    """Inside, each call is one node of its op, for torch's FLOP counter to meet its formula.

    The reference, which else runs directly where no kernel does, may do less than its definition
    says: it folds.
    """
    global _as_defined
    previous, _as_defined = _as_defined, True
    try:
        yield
    finally:
        _as_defined = previous


@dataclass(frozen=True)
class Operator(Generic[Result]):
    """One public operator.

    Attributes:
        name: as in `torch.ops.c2d.<name>`.
        arguments: the schema's arguments, such as "Tensor q, SymInt window". No defaults.
        outputs: how many tensors it returns.
        reference: the specification, taking these arguments by position.
        fake: tensors of the outputs' shapes and dtypes, from the arguments.
        flops: operations of the definition, from the arguments with shapes for tensors.
        example: small arguments on a device; what info() asks the kernels about.
        kept: a tensor, from the arguments, of the shape and dtype of what a kernel may keep for its
            backward: one more output of the op, which only the backward sees. See Kernel.keeps.
        layouts: for each output the argument whose layout in memory it takes (as empty_like does),
            or None: contiguous. Empty: all contiguous.
        unrolls: tracing the reference would unroll a loop over the data, so that a compiled or
            exported program holds the op even where only the reference can run it.
        kinds: of the arguments, such as "Tensor", "Tensor[]" or "SymInt".
    """

    name: str
    arguments: str
    outputs: int
    reference: Callable[..., Result]
    fake: Callable[..., Result]
    flops: Callable[..., int]
    example: Callable[[torch.device], tuple[Any, ...]]
    kept: Callable[..., Tensor] | None = None
    layouts: tuple[int | None, ...] = ()
    unrolls: bool = False
    kinds: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        kinds = tuple(argument.split()[0] for argument in self.arguments.split(", "))
        object.__setattr__(self, "kinds", kinds)

    def __call__(self, *args: Any) -> Result:
        """Run checked arguments: through the op, or the reference directly (see the module)."""
        trains = torch.is_grad_enabled() and any(
            x.requires_grad for x in _tensors(self.kinds, args) if x is not None
        )
        kernel = dispatch.select(self.name, *args)
        named = dispatch.requested() != "auto"
        if kernel is not None and trains and not named and not kernel.trains(*args):
            kernel = None  # its backward is the reference's, which would run the forward once more
        traced = self.unrolls and dispatch.requested() != "reference"
        traced = traced and torch.compiler.is_compiling()
        if kernel is None and not (traced or _as_defined):
            with dispatch.without_autocast(args[0].device):
                return self.reference(*args)
        op = getattr(torch.ops.c2d, self.name).default
        if self.kept is None:
            return op(*args)
        found = op(*args, trains)
        return found[0] if self.outputs == 1 else found[:-1]


def define(operator: Operator[Result]) -> Operator[Result]:
    """Register the operator's two custom ops, their fakes, autograd and FLOP formulas."""
    operators[operator.name] = operator
    _CustomOps(operator).register()
    return operator


class _CustomOps:
    """`c2d::<name>` and `c2d::<name>_backward` of one operator, as torch.library wants them.

    The forward op takes the operator's arguments and, if kernels may keep something, `trains`; it
    returns the outputs and what was kept. The backward op takes the gradients of the outputs, what
    was kept, the arguments, and a mask of the gradients that are wanted.
    """

    def __init__(self, operator: Operator[Any]) -> None:
        self.operator = operator
        self.kinds = operator.kinds
        self.count = len(operator.kinds)
        self.keeps = operator.kept is not None

    def register(self) -> None:
        """Make both known to torch."""
        name, arguments = self.operator.name, self.operator.arguments
        returned = ["Tensor"] * (self.operator.outputs + self.keeps)
        returns = "Tensor" if len(returned) == 1 else f"({', '.join(returned)})"
        trains = ", bool trains=False" if self.keeps else ""
        schema = f"({arguments}{trains}) -> {returns}"
        forward = (self.forward, self.fake, self.differentiate, self.save)
        _register(f"c2d::{name}", schema, *forward)

        grads = ", ".join(f"Tensor grad_{i}" for i in range(self.operator.outputs))
        kept = ", Tensor kept" if self.keeps else ""
        schema = f"({grads}{kept}, {arguments}, bool[] mask) -> Tensor[]"
        backward = (self.backward, self.backward_fake, self.refuse_second_derivative)
        _register(f"c2d::{name}_backward", schema, *backward)

        packets = (getattr(torch.ops.c2d, op) for op in (name, f"{name}_backward"))
        for packet, formula in zip(packets, (self.flops, self.backward_flops), strict=True):
            register_flop_formula(packet)(formula)

    def forward(self, *args: Any) -> Tensor | tuple[Tensor, ...]:
        """The kernel that dispatch selects, or the reference."""
        operator, inputs = self.operator, args[: self.count]
        kernel = dispatch.select(operator.name, *inputs)
        out: Sequence[Tensor]
        kept: list[Tensor] = []
        with dispatch.without_autocast(inputs[0].device):
            if self.keeps and kernel is not None and kernel.keeps:
                *out, state = kernel.forward(*inputs, any(args[self.count :]))
                kept = [state]
            else:
                found: Any = (operator.reference if kernel is None else kernel.forward)(*inputs)
                out = [found] if operator.outputs == 1 else found
                if self.keeps:
                    kept = [self._kept_fake(*args).fill_(dispatch.NOTHING_KEPT)]
        layouts = operator.layouts or (None,) * operator.outputs
        models = (None if place is None else inputs[place] for place in layouts)
        out = [*map(_laid_out, out, models), *kept]
        return out[0] if len(out) == 1 else tuple(out)

    def fake(self, *args: Any) -> Tensor | tuple[Tensor, ...]:
        """The forward's results without numbers."""
        out = self.operator.fake(*args[: self.count])
        if not self.keeps:
            return out
        return *((out,) if self.operator.outputs == 1 else out), self._kept_fake(*args)

    def _kept_fake(self, *args: Any) -> Tensor:
        assert self.operator.kept is not None  # asked only where something may be kept
        kept = self.operator.kept(*args[: self.count])
        return kept if any(args[self.count :]) else kept.new_empty(0)

    def backward(self, *args: Any) -> list[Tensor]:
        """The kernel's backward, or the reference differentiated."""
        grads, kept, inputs, mask = self._parts(args)
        kernel = dispatch.select(self.operator.name, *inputs)
        with dispatch.without_autocast(inputs[0].device):
            if kernel is not None and kernel.backward is not None:
                kept = kept if kernel.keeps else ()
                found = kernel.backward(*grads, *kept, *inputs, mask)
            else:
                found = _differentiate(self.operator.reference, self.kinds, grads, inputs, mask)
        return _owned(found, grads)

    def backward_fake(self, *args: Any) -> list[Tensor]:
        """The backward's results without numbers."""
        grads, _, inputs, mask = self._parts(args)
        return [
            x.new_empty(x.shape) if needed and x is not None else grads[0].new_empty(0)
            for x, needed in zip(_tensors(self.kinds, inputs), mask, strict=True)
        ]

    def _parts(
        self, args: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Any, ...], list[bool]]:
        """The backward's arguments: gradients, what was kept (or nothing), inputs, mask."""
        outputs, first = self.operator.outputs, len(args) - 1 - self.count
        return args[:outputs], args[outputs:first], args[first:-1], args[-1]

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Tensors and arguments that the forward leaves for `differentiate`."""
        inputs = inputs[: self.count]
        tensors = _tensors(self.kinds, inputs)
        # Autograd may run the backward in another thread, or after `use_backend` was left.
        ctx.backend = dispatch.requested()
        # What is not a tensor, and the lengths of the lists.
        ctx.inputs = _regroup(self.kinds, inputs, [None] * len(tensors))
        ctx.save_for_backward(*tensors, *(output[self.operator.outputs :] if self.keeps else ()))
        if self.keeps:
            ctx.mark_non_differentiable(output[-1])
            ctx.set_materialize_grads(False)  # zeros would take as much memory as what is kept

    def differentiate(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Autograd's backward: the backward op, one gradient for each argument of the forward."""
        kinds, count, operator = self.kinds, self.count, self.operator
        mask: list[bool] = []
        for kind, needed in zip(kinds, ctx.needs_input_grad[:count], strict=True):
            if kind in _TENSOR_KINDS:
                mask += needed if kind == "Tensor[]" else [needed]
        tensors = ctx.saved_tensors
        inputs = _regroup(kinds, ctx.inputs, tensors[: len(mask)])
        if self.keeps:
            made = operator.fake(*inputs)
            models = (made,) if operator.outputs == 1 else made
            grads = tuple(
                torch.zeros_like(model) if grad is None else grad
                for grad, model in zip(grads[: operator.outputs], models, strict=True)
            )
        if dispatch.transformed() or any(map(_batched, grads)):
            found = _differentiate(operator.reference, kinds, grads, inputs, mask)
        else:
            op = getattr(torch.ops.c2d, f"{operator.name}_backward").default
            with dispatch.backend(ctx.backend):
                found = op(*grads, *tensors[len(mask) :], *inputs, mask)
        found = [x if needed else None for x, needed in zip(found, mask, strict=True)]
        found = _regroup(kinds, ctx.inputs, found)
        found = [found[i] if kind in _TENSOR_KINDS else None for i, kind in enumerate(kinds)]
        # None for `trains`, which torch leaves out where it is False
        return (*found, *[None] * (len(ctx.needs_input_grad) - count))

    def refuse_second_derivative(self, ctx: Any, *grads: Tensor) -> None:
        """Autograd's backward of the backward op."""
        raise dispatch.BackendError(
            f"{self.operator.name} has no second derivative as a kernel: run it inside "
            'c2d_kernels.backend("reference"), which torch differentiates any number of times.'
        )

    def flops(self, *args: Any, out_shape: object = None, **kwargs: object) -> int:
        """The forward's, for torch's counter, which gives shapes for tensors."""
        return self.operator.flops(*args[: self.count])

    def backward_flops(self, *args: Any, out_shape: object = None, **kwargs: object) -> int:
        """The backward's, twice the forward's."""
        return 2 * self.operator.flops(*args[-1 - self.count : -1])


def _register(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    differentiate: Callable[..., Any],
    save: Callable[..., None] | None = None,
) -> None:
    """Stand-in for torch.library.custom_op that does not import the compiler at the first call.

    That import takes longer than the upscaling of a small picture. The compiler must not trace into
    a kernel from a frame that it left to Python, which only matters once something imported it.
    """

    def kernel(*args: Any) -> Any:
        hidden = torch.compiler.disable(run) if "torch._dynamo" in sys.modules else run
        return hidden(*args)

    torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(name, "default", kernel)
    torch.library.register_fake(name, fake)
    torch.library.register_autograd(name, differentiate, setup_context=save)


def _differentiate(
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    kinds: Sequence[str],
    grads: Sequence[Tensor | None],
    inputs: Sequence[Any],
    mask: Sequence[bool],
) -> list[Tensor | None]:
    """Run the reference again and pull the gradients back to the tensors that the mask names."""
    tensors = [
        x if x is None else x.detach().requires_grad_(needed)
        for x, needed in zip(_tensors(kinds, inputs), mask, strict=True)
    ]
    with recording():
        found = reference(*_regroup(kinds, inputs, tensors))
        outputs = [found] if isinstance(found, Tensor) else list(found)
        wanted = [x for x, needed in zip(tensors, mask, strict=True) if needed and x is not None]
        gradients = iter(
            torch.autograd.grad(outputs, wanted, grads, allow_unused=True, materialize_grads=True)
        )
    return [next(gradients) if needed else None for needed in mask]


@contextmanager
def recording() -> Iterator[None]:
    """Autograd inside a custom op, below whose dispatch keys it is otherwise switched off.

    enable_grad alone does not bring it back, and torch.func fails under any dispatch mode (a FLOP
    counter, selective checkpointing), since modes shut functorch out.
    """
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def _batched(grad: Tensor | None) -> bool:
    """Whether this stands for many gradients (torch.autograd.grad's is_grads_batched)."""
    return grad is not None and torch._C._dispatch_keys(grad).has(_BATCHED)


def _laid_out(out: Tensor, model: Tensor | None) -> Tensor:
    """An output with the strides that its fake promises; a reference may return any."""
    if model is None:
        out = out.contiguous()
    elif out.stride() != torch.empty_like(model, device="meta").stride():
        out = torch.empty_like(model, dtype=out.dtype).copy_(out)
    # Autograd forbids in-place writes to a view made in here: the same memory, but not as a view.
    if not out._is_view():
        return out
    memory = out.untyped_storage()
    return out.new_empty(0).set_(memory, out.storage_offset(), out.shape, out.stride())


def _tensors(kinds: Sequence[str], inputs: Sequence[Any]) -> list[Tensor | None]:
    """The tensor arguments in one flat list, optional ones as they are."""
    flat: list[Tensor | None] = []
    for kind, value in zip(kinds, inputs, strict=True):
        if kind == "Tensor[]":
            flat += value
        elif kind in _TENSOR_KINDS:
            flat.append(value)
    return flat


def _regroup(
    kinds: Sequence[str], inputs: Sequence[Any], flat: Sequence[Tensor | None]
) -> list[Any]:
    """The arguments again, their tensors replaced by those of a flat list."""
    values = iter(flat)
    return [
        [next(values) for _ in value]
        if kind == "Tensor[]"
        else (next(values) if kind in _TENSOR_KINDS else value)
        for kind, value in zip(kinds, inputs, strict=True)
    ]


def _owned(found: Sequence[Tensor | None], grads: Sequence[Tensor]) -> list[Tensor]:
    """Make outputs fit for a custom op: no None (empty tensors instead), no alias, contiguous."""
    taken = {grad.untyped_storage()._cdata for grad in grads}
    owned = []
    for gradient in found:
        gradient = grads[0].new_empty(0) if gradient is None else gradient.contiguous()
        if gradient.untyped_storage()._cdata in taken:
            gradient = gradient.clone()
        taken.add(gradient.untyped_storage()._cdata)
        owned.append(gradient)
    return owned
