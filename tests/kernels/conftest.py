"""The roads an operator's call can take, and a process without mamba_ssm, as fixtures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

import c2d_kernels
from c2d_kernels import dispatch, native
from tests.kernels.cases import KERNEL_ROUTES, opaque_kernel
from tests.kernels.rows import Case


@pytest.fixture
def reference_backend() -> Iterator[None]:
    """Inside, operators run their reference."""
    with c2d_kernels.backend("reference"):
        yield


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[Case, str], AbstractContextManager[None]]:
    """take(case, route): the custom op over the reference, plain ATen, or the native kernel."""

    @contextmanager
    def route(case: Case, name: str) -> Iterator[None]:
        if name == "op":
            kernels = {**dispatch._kernels, case.operator: [opaque_kernel(case.operator)]}
            monkeypatch.setattr(dispatch, "_kernels", kernels)
            with c2d_kernels.backend("cuda"):  # the opaque kernel's name
                yield
            return
        if name == "native" and native.missing is not None:
            pytest.skip(native.missing)
        with c2d_kernels.backend(KERNEL_ROUTES.get(name, name)):
            yield

    return route


@pytest.fixture
def clean() -> Iterator[None]:
    """sys.modules as it was, so that no other test meets a mamba_ssm of ours."""
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("mamba_ssm", "causal_conv1d"):
            del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without mamba_ssm, also where it is installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: (
            None
            if name in ("mamba_ssm", "causal_conv1d") and name not in sys.modules
            else find(name, package)
        ),
    )
