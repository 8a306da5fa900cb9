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
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import dispatch

_TENSOR_KINDS = ("Tensor", "Tensor?", "Tensor[]")
operators: dict[str, Operator] = {}
_as_defined = False


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
class Operator:
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
    """

    name: str
    arguments: str
    outputs: int
    reference: Callable[..., Tensor | tuple[Tensor, ...]]
    fake: Callable[..., Tensor | tuple[Tensor, ...]]
    flops: Callable[..., int]
    example: Callable[[torch.device], tuple]
    kept: Callable[..., Tensor] | None = None
    layouts: tuple[int | None, ...] = ()
    unrolls: bool = False

    def __call__(self, *args: object) -> Tensor | tuple[Tensor, ...]:
        """Run checked arguments: through the op, or the reference directly (see the module)."""
        trains = torch.is_grad_enabled() and any(
            x.requires_grad for x in _tensors(self._kinds, args) if x is not None
        )
        kernel = dispatch.select(self.name, *args)
        named = dispatch.requested() != "auto"
        if kernel is not None and trains and not named and not kernel.trains(*args):
            kernel = None  # without a backward it would be run for nothing: the reference would be
        traced = self.unrolls and dispatch.requested() != "reference"
        traced = traced and torch.compiler.is_compiling()
        if kernel is None and not (traced or _as_defined):
            with dispatch.without_autocast(args[0].device):
                return self.reference(*args)
        op = getattr(torch.ops.c2d, self.name).default
        if self.kept is None:
            return op(*args)
        *outputs, _ = op(*args, trains)
        return outputs[0] if self.outputs == 1 else tuple(outputs)

    @property
    def _kinds(self) -> list[str]:
        return [argument.split()[0] for argument in self.arguments.split(", ")]


def define(operator: Operator) -> Operator:
    """Register the operator's two custom ops, their fakes, autograd and FLOP formulas."""
    name, kinds = operator.name, operator._kinds
    operators[name] = operator
    count, keeps = len(kinds), operator.kept is not None
    returned = ["Tensor"] * (operator.outputs + keeps)
    returns = "Tensor" if len(returned) == 1 else f"({', '.join(returned)})"
    grads = ", ".join(f"Tensor grad_{i}" for i in range(operator.outputs))

    def forward(*args):
        inputs, trains = args[:count], any(args[count:])
        kernel = dispatch.select(name, *inputs)
        kept = []
        with dispatch.without_autocast(inputs[0].device):
            if keeps and kernel is not None and kernel.keeps:
                *out, state = kernel.forward(*inputs, trains)
                kept = [state]
            else:
                out = (operator.reference if kernel is None else kernel.forward)(*inputs)
                out = [out] if operator.outputs == 1 else out
                if keeps:  # nothing: a kernel that keeps something begins it with a 0
                    kept = [kept_fake(inputs, trains).fill_(-1)]
        layouts = operator.layouts or (None,) * operator.outputs
        models = (None if place is None else inputs[place] for place in layouts)
        out = [*map(_laid_out, out, models), *kept]
        return out[0] if len(out) == 1 else tuple(out)

    def fake(*args):
        inputs, trains = args[:count], any(args[count:])
        if not keeps:
            return operator.fake(*inputs)
        out = operator.fake(*inputs)
        return *((out,) if operator.outputs == 1 else out), kept_fake(inputs, trains)

    def kept_fake(inputs, trains):
        kept = operator.kept(*inputs)
        return kept if trains else kept.new_empty(0)

    def backward(*args):
        grads, mask = args[: operator.outputs], args[-1]
        kept, inputs = args[operator.outputs : -1 - count], args[-1 - count : -1]
        kernel = dispatch.select(name, *inputs)
        with dispatch.without_autocast(inputs[0].device):
            if kernel is not None and kernel.backward is not None:
                kept = kept if kernel.keeps else ()
                found = kernel.backward(*grads, *kept, *inputs, mask)
            else:
                found = _differentiate(operator.reference, kinds, grads, inputs, mask)
        return _owned(found, grads)

    def backward_fake(*args):
        inputs, mask = args[-1 - count : -1], args[-1]
        return [
            x.new_empty(x.shape) if needed else args[0].new_empty(0)
            for x, needed in zip(_tensors(kinds, inputs), mask, strict=True)
        ]

    def save(ctx, inputs, output):
        inputs = inputs[:count]
        tensors = _tensors(kinds, inputs)
        # The rest: what is not a tensor, and how long the lists are.
        ctx.inputs = _regroup(kinds, inputs, [None] * len(tensors))
        ctx.save_for_backward(*tensors, *(output[operator.outputs :] if keeps else ()))
        if keeps:
            ctx.mark_non_differentiable(output[-1])
            ctx.set_materialize_grads(False)  # zeros for what is kept would cost as much as it

    def differentiate(ctx, *grads):
        mask: list[bool] = []
        for kind, needed in zip(kinds, ctx.needs_input_grad[:count], strict=True):
            if kind in _TENSOR_KINDS:
                mask += needed if kind == "Tensor[]" else [needed]
        tensors = ctx.saved_tensors
        inputs = _regroup(kinds, ctx.inputs, tensors[: len(mask)])
        if keeps:
            models = operator.fake(*inputs)
            models = (models,) if operator.outputs == 1 else models
            grads = [
                torch.zeros_like(model) if grad is None else grad
                for grad, model in zip(grads[: operator.outputs], models, strict=True)
            ]
        op = getattr(torch.ops.c2d, f"{name}_backward").default
        found = op(*grads, *tensors[len(mask) :], *inputs, mask)
        found = [x if needed else None for x, needed in zip(found, mask, strict=True)]
        found = _regroup(kinds, ctx.inputs, found)
        found = [found[i] if kind in _TENSOR_KINDS else None for i, kind in enumerate(kinds)]
        # None for `trains`, which torch leaves out where it is False
        return (*found, *[None] * (len(ctx.needs_input_grad) - count))

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{name} has no second derivative as a kernel: run it inside "
            'c2d_kernels.backend("reference"), which torch differentiates any number of times.'
        )

    trains = ", bool trains=False" if keeps else ""
    schema = f"({operator.arguments}{trains}) -> {returns}"
    _register(f"c2d::{name}", schema, forward, fake, differentiate, save)
    kept = ", Tensor kept" if keeps else ""
    schema = f"({grads}{kept}, {operator.arguments}, bool[] mask) -> Tensor[]"
    _register(f"c2d::{name}_backward", schema, backward, backward_fake, refuse)

    @register_flop_formula(getattr(torch.ops.c2d, name))
    def forward_flops(*args, out_shape=None, **kwargs) -> int:
        return operator.flops(*args[:count])

    @register_flop_formula(getattr(torch.ops.c2d, f"{name}_backward"))
    def backward_flops(*args, out_shape=None, **kwargs) -> int:
        return 2 * operator.flops(*args[-1 - count : -1])

    return operator


def _register(
    name: str,
    schema: str,
    run: Callable,
    fake: Callable,
    differentiate: Callable,
    save: Callable | None = None,
) -> None:
    """What torch.library.custom_op does, without its import of the compiler at the first call.

    That import takes longer than the upscaling of a small picture. The compiler must not trace into
    a kernel from a frame that it left to Python, which only matters once something imported it.
    """

    def kernel(*args):
        hidden = torch.compiler.disable(run) if "torch._dynamo" in sys.modules else run
        return hidden(*args)

    torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(name, "default", kernel)
    torch.library.register_fake(name, fake)
    torch.library.register_autograd(name, differentiate, setup_context=save)


def _differentiate(
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    kinds: list[str],
    grads: Sequence[Tensor],
    inputs: Sequence[object],
    mask: Sequence[bool],
) -> list[Tensor | None]:
    """Run the reference again and pull the gradients back to the tensors that the mask names."""
    tensors = [
        x if x is None else x.detach().requires_grad_(needed)
        for x, needed in zip(_tensors(kinds, inputs), mask, strict=True)
    ]
    with _recording():
        outputs = reference(*_regroup(kinds, inputs, tensors))
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        wanted = [x for x, needed in zip(tensors, mask, strict=True) if needed]
        found = iter(
            torch.autograd.grad(outputs, wanted, grads, allow_unused=True, materialize_grads=True)
        )
    return [next(found) if needed else None for needed in mask]


@contextmanager
def _recording() -> Iterator[None]:
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


def _laid_out(out: Tensor, model: Tensor | None) -> Tensor:
    """An output with the strides that its fake promises; a reference may return any."""
    if model is None:
        return out.contiguous()
    promised = torch.empty_like(model, device="meta").stride()
    return out if out.stride() == promised else torch.empty_like(model, dtype=out.dtype).copy_(out)


def _tensors(kinds: list[str], inputs: Sequence[object]) -> list[Tensor | None]:
    """The tensor arguments in one flat list, optional ones as they are."""
    flat: list[Tensor | None] = []
    for kind, value in zip(kinds, inputs, strict=True):
        if kind == "Tensor[]":
            flat += value
        elif kind in _TENSOR_KINDS:
            flat.append(value)
    return flat


def _regroup(
    kinds: list[str], inputs: Sequence[object], flat: Sequence[Tensor | None]
) -> list[object]:
    """The arguments again, their tensors replaced by those of a flat list."""
    values = iter(flat)
    return [
        [next(values) for _ in value]
        if kind == "Tensor[]"
        else (next(values) if kind in _TENSOR_KINDS else value)
        for kind, value in zip(kinds, inputs, strict=True)
    ]


def _owned(found: Sequence[Tensor | None], grads: Sequence[Tensor]) -> list[Tensor]:
    """What a custom op may return: no None (empty tensors instead), no alias, contiguous."""
    taken = {grad.untyped_storage()._cdata for grad in grads}
    owned = []
    for gradient in found:
        gradient = grads[0].new_empty(0) if gradient is None else gradient.contiguous()
        if gradient.untyped_storage()._cdata in taken:
            gradient = gradient.clone()
        taken.add(gradient.untyped_storage()._cdata)
        owned.append(gradient)
    return owned
