"""Launches of Triton kernels as on a GPU, as far as the front end, without a GPU.

On a GPU the launcher specialises arguments before it compiles: an integer 1 becomes a constant,
and what is divisible by 16 is marked, also inside of tuples. The interpreter does not, and so it
runs kernels that would not compile. Here the launcher itself runs, with a stand-in for the driver:
each specialisation goes through the front end, which is where a type is wrong, and nothing is run.
Outputs hold whatever was in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import c2d_kernels
from c2d_kernels import triton_support

# How the launcher took an integer
ONE, SIXTEENS, ANY = "1", "16 n", "n"
Met = dict[str, dict[str, set[str]]]  # kernel -> integer argument -> how it was taken


class Driver:
    """A stand-in for the driver of a GPU that is not there."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return -1  # Triton keeps kernels by device: a GPU that is there keeps its own

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def launches(monkeypatch: pytest.MonkeyPatch, architecture: int = 90) -> Iterator[Met]:
    """Inside, Triton kernels take CPU tensors, and their launches go through the front end.

    A kernel that does not compile raises there. Yields what the launches specialised.
    """
    import triton
    from triton.compiler import ASTSource, make_backend

    driver = Driver(architecture)
    backend = make_backend(driver.target)
    options = backend.parse_options({})
    met: Met = defaultdict(lambda: defaultdict(set))
    seen = set()

    def launch(*, key, fn, compile, **_) -> bool:
        kernel, (attributes,) = fn.jit_function, compile["configs"]
        if (kernel, key) in seen:
            return True  # the launch itself is skipped
        seen.add((kernel, key))
        _note(met[kernel.__name__], kernel, compile["signature"], attributes)
        source = ASTSource(kernel, compile["signature"], compile["constants"], attributes)
        context = triton._C.libtriton.ir.context()
        triton._C.libtriton.ir.load_dialects(context)
        backend.load_dialects(context)
        generators = backend.get_codegen_implementation(options)
        source.make_ir(driver.target, options, generators, backend.get_module_map(), context)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(triton.runtime.driver, "_active", driver)
        patch.setattr(triton.knobs.runtime, "jit_cache_hook", launch)
        patch.setattr(triton_support, "refusal", lambda x: None)
        with c2d_kernels.backend("triton"):
            yield met


def _note(met: dict[str, set[str]], kernel, signature: dict, attributes: dict) -> None:
    """How the launcher took each integer of a launch."""

    def visit(name: str, kind: object, path: tuple[int, ...]) -> None:
        if isinstance(kind, tuple):
            for place, part in enumerate(kind):
                visit(f"{name}[{place}]", part, (*path, place))
        elif kind == "constexpr":
            met[name].add(ONE)
        elif not kind.startswith("*"):
            met[name].add(SIXTEENS if attributes.get(path) else ANY)

    for place, parameter in enumerate(kernel.params):
        if not parameter.is_constexpr:
            visit(parameter.name, signature[parameter.name], (place,))
