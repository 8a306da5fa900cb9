"""Every Triton kernel through Triton's front end, its arguments specialised as on a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import c2d_kernels
from tests.kernels.cases import AWKWARD, CASES, SMALL
from tests.kernels.channel_correlation import test_channel_correlation_triton as channel
from tests.kernels.coordinate_query import test_coordinate_query_triton as query
from tests.kernels.rows import Case
from tests.kernels.spatial_correlation import test_spatial_correlation_triton as spatial
from tests.kernels.triton_checks import needs_triton
from tests.kernels.triton_launches import ONE, SIXTEENS, launches
from tests.kernels.triton_worker import with_gradients
from tests.kernels.window_attention import test_window_attention_triton as window

Call = Callable[[], object]
PACKAGE = Path(c2d_kernels.__file__).parent

# Calls in which an integer is 1 that is larger in the test modules' own cases.
ONE_LARGE_HEAD = ("window_attention", 1, 1, 1, 64, 1, 1)
CHANNEL = {
    "one-split-window": (1, 20, 20, 4, 32),
    "one-split-row": (1, 1, 300, 4, (1, 300)),
    "one-split-column": (1, 300, 1, 4, (300, 1)),
}
SPATIAL = {"one-cell-one-channel": ((1, 32, 32, 1, 32, 1, 1), {})}
QUERY = {"one-pixel-to-one": ((1, 1, 1), (1, 1), (3, 2, 1, 1))}


def differentiated(operator: str, tensors: dict[str, Tensor], options: dict[str, object]) -> Call:
    """A call of the operator, forward and backward."""
    return partial(with_gradients, getattr(c2d_kernels, operator), tensors, options)


def window_calls(dtype: torch.dtype) -> Iterator[Call]:
    for case in [*(case.values for case in window.CASES + window.LARGE), ONE_LARGE_HEAD]:
        yield differentiated(case[0], *window.draw(*case, dtype=dtype))


def channel_calls(dtype: torch.dtype) -> Iterator[Call]:
    for *shape, size in (channel.CASES | channel.LARGE | CHANNEL).values():
        drawn = channel.draw(*shape, window=size, dtype=dtype)
        yield differentiated("channel_correlation", *drawn)


def spatial_calls(dtype: torch.dtype) -> Iterator[Call]:
    for shape, settings in (spatial.CASES | spatial.LARGE | SPATIAL).values():
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setattr(spatial.launch, name, value)
            yield differentiated(spatial.OPERATOR, *spatial.draw(*shape, dtype=dtype))


def query_calls(dtype: torch.dtype) -> Iterator[Call]:
    training = {"training": query.LARGE["hiif-l-training"]}
    wide = {} if dtype == torch.float32 else {"wide": query.WIDE}
    for case in (query.CASES | training | wide | QUERY).values():
        yield differentiated("coordinate_query", *query.draw(*case, dtype=dtype))


def layer_calls(operator: str, dtype: torch.dtype) -> Iterator[Call]:
    by_sixteens = [sixteen_tokens(CASES[name]) for name in ("post-norm", "mlp")]
    for case in [*SMALL, *AWKWARD, one_head(CASES["layer"]), *by_sixteens]:
        if case.operator == operator:
            yield torch.no_grad()(partial(case.outputs, case.tensors(dtype)))


def one_head(case: Case) -> Case:
    rows = case.shapes["bias_table"][0]
    shapes = {**case.shapes, "bias_table": (rows, 1)}
    return replace(case, shapes=shapes, options={**case.options, "num_heads": 1})


def sixteen_tokens(case: Case) -> Case:
    shapes = {
        name: (1, 4, 4, shape[3]) if len(shape) == 4 else shape
        for name, shape in case.shapes.items()
    }
    return replace(case, shapes=shapes)


# Files of kernels -> calls that launch all of them, and the integers that no call can make 1.
FILES = {
    "ops/window_attention/triton_kernels.py": (window_calls, set()),
    "ops/channel_correlation/triton_kernels.py": (channel_calls, {("gram", "span")}),
    "ops/spatial_correlation/triton_kernels.py": (
        spatial_calls,
        {("reduce", "area"), ("spread", "area"), ("spread", "parts")},
    ),
    "ops/coordinate_query/triton_kernels.py": (query_calls, set()),
    "ops/coordinate_query/triton_backward_kernels.py": (
        query_calls,
        {("mlp", "dy_stride"), ("first_mlp", "dy_stride"), ("sum_by_pixel", "places")},
    ),
    "ops/window_layer/triton_kernels.py": (partial(layer_calls, "window_layer"), set()),
    "ops/res_post_norm/triton_kernels.py": (partial(layer_calls, "res_post_norm"), set()),
    "ops/mlp_branch/triton_kernels.py": (partial(layer_calls, "mlp_branch"), set()),
}


def kernels(file: str) -> list[str]:
    """The kernels that a file defines."""
    module = importlib.import_module(f"c2d_kernels.{file[:-3].replace('/', '.')}")
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("calls", dict.fromkeys(calls for calls, _ in FILES.values()))
def test_kernels_compile_as_launched(monkeypatch: pytest.MonkeyPatch, calls, dtype) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with launches(monkeypatch) as met:
        for call in calls(dtype):
            call()
    launched = {file: never for file, (its_calls, never) in FILES.items() if its_calls is calls}
    names = {name: file for file in launched for name in kernels(file)}
    assert set(met) == set(names)
    for kernel, integers in met.items():
        never_one = {
            name
            for name, ways in integers.items()
            if ONE not in ways and not name.partition("[")[0].endswith("strides")
        }
        assert never_one == {name for k, name in launched[names[kernel]] if k == kernel}, kernel
        ways = set().union(*integers.values())
        assert SIXTEENS in ways and len(ways) > 1, kernel


def test_no_file_of_kernels_is_left_out() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*triton*kernels.py")}
    assert found == set(FILES)
