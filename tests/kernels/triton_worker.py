"""A process of its own in which Triton's interpreter is on: importing triton decides it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import torch
from torch import Tensor

Run = Callable[..., list[Tensor]]


@contextmanager
def interpreter() -> Iterator[Run]:
    """run(operator, tensors, options, **settings) in the interpreter: outputs, then gradients.

    settings replace names of the operator's triton module, such as its block sizes, for the call.
    run.call(function, *args) calls any function of a module there.
    """
    previous = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        pool.submit(os.getpid).result()  # the process has started, with its own environment
    finally:
        del os.environ["TRITON_INTERPRET"]
        if previous is not None:
            os.environ["TRITON_INTERPRET"] = previous

    def run(operator: str, tensors: dict[str, Tensor], options: dict, **settings: int):
        request = io.BytesIO()
        torch.save((operator, tensors, options, settings), request)
        answer = pool.submit(_answer, request.getvalue()).result()
        return torch.load(io.BytesIO(answer))

    run.call = lambda function, *args: pool.submit(function, *args).result()
    with pool:
        yield run


def _answer(request: bytes) -> bytes:
    import importlib

    import c2d_kernels
    from c2d_kernels.operators import operators

    torch.set_num_threads(1)
    operator, tensors, options, settings = torch.load(io.BytesIO(request))
    package = operators[operator].reference.__module__.rpartition(".")[0]
    module = importlib.import_module(f"{package}.triton")
    previous = {name: getattr(module, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(module, name, value)
        with c2d_kernels.backend("triton"):
            found = with_gradients(getattr(c2d_kernels, operator), tensors, options)
    finally:
        for name, value in previous.items():
            setattr(module, name, value)
    answer = io.BytesIO()
    torch.save(found, answer)
    return answer.getvalue()


def with_gradients(function: Callable, tensors: dict[str, Tensor], options: dict) -> list[Tensor]:
    """The output, then the gradients of a fixed weighted sum of it."""
    inputs = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    arguments = {name: x for name, x in inputs.items() if "." not in name}
    if len(arguments) < len(inputs):  # the others are a decoder's
        arguments["weights"] = {name: x for name, x in inputs.items() if "." in name}
    out = function(**arguments, **options)
    generator = torch.Generator().manual_seed(99)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    # Rounded to half precision whatever the dtype, so that all see the same gradient.
    weight = weight.bfloat16().to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, list(inputs.values()), weight)]
