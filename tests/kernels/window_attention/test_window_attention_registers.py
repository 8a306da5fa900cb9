"""Window attention in Triton as ptxas sees it, without a GPU: registers, spills, shared memory."""

from __future__ import annotations

import pytest
import torch

from c2d_kernels.ops.window_attention import triton as launch
from tests.kernels.triton_checks import needs_triton
from tests.kernels.triton_usage import usage

# dtype, window, cell, head_dim, kernel -> registers a thread, bytes spilled at most and bytes of
# shared memory a block, as measured with triton 3.9: on sm_80, then on sm_90.
USAGE = {
    ("bf16", 8, 1, 5): {
        "forward": ((145, 0, 11264), (113, 0, 5120)),
        "backward_tile": ((255, 8, 16384), (246, 0, 16384)),
    },
    ("fp32", 8, 1, 5): {
        "forward": ((144, 0, 12800), (128, 0, 12800)),
        "backward_tile": ((188, 0, 45056), (152, 0, 45056)),
    },
    ("bf16", 8, 1, 8): {
        "forward": ((145, 0, 11264), (113, 0, 5120)),
        "backward_tile": ((255, 8, 16384), (246, 0, 16384)),
    },
    ("fp32", 8, 1, 8): {
        "forward": ((144, 0, 12800), (128, 0, 12800)),
        "backward_tile": ((188, 0, 45056), (152, 0, 45056)),
    },
    ("bf16", 8, 1, 10): {
        "forward": ((145, 0, 11264), (113, 0, 5120)),
        "backward_tile": ((255, 8, 16384), (246, 0, 16384)),
    },
    ("fp32", 8, 1, 10): {
        "forward": ((144, 0, 12800), (128, 0, 12800)),
        "backward_tile": ((188, 0, 45056), (152, 0, 45056)),
    },
    ("bf16", 8, 1, 12): {
        "forward": ((145, 0, 11264), (113, 0, 5120)),
        "backward_tile": ((255, 8, 16384), (246, 0, 16384)),
    },
    ("fp32", 8, 1, 12): {
        "forward": ((144, 0, 12800), (128, 0, 12800)),
        "backward_tile": ((188, 0, 45056), (152, 0, 45056)),
    },
    ("bf16", 8, 1, 16): {
        "forward": ((147, 0, 11264), (115, 0, 5120)),
        "backward_tile": ((255, 0, 16384), (248, 0, 16384)),
    },
    ("fp32", 8, 1, 16): {
        "forward": ((128, 0, 12800), (128, 0, 12800)),
        "backward_tile": ((192, 0, 45056), (144, 0, 45056)),
    },
    ("bf16", 8, 1, 30): {
        "forward": ((208, 0, 14336), (183, 0, 8192)),
        "backward_tile": ((255, 16, 20480), (243, 0, 20480)),
    },
    ("fp32", 8, 1, 30): {
        "forward": ((128, 0, 12800), (134, 0, 12800)),
        "backward_queries": ((203, 0, 14336), (205, 0, 14336)),
        "backward_keys": ((168, 0, 16384), (136, 0, 16384)),
        "backward_tile": ((126, 0, 12288), (130, 0, 12288)),
    },
    ("bf16", 8, 1, 32): {
        "forward": ((209, 0, 14336), (188, 0, 8192)),
        "backward_tile": ((255, 8, 20480), (240, 0, 20480)),
    },
    ("fp32", 8, 1, 32): {
        "forward": ((128, 0, 12800), (134, 0, 12800)),
        "backward_queries": ((203, 0, 14336), (208, 0, 14336)),
        "backward_keys": ((166, 0, 16384), (136, 0, 16384)),
        "backward_tile": ((126, 0, 12288), (130, 0, 12288)),
    },
    ("bf16", 8, 1, 64): {
        "forward": ((245, 0, 20480), (190, 0, 20480)),
        "backward_queries": ((214, 0, 16384), (233, 0, 16384)),
        "backward_keys": ((161, 0, 20480), (163, 0, 20480)),
        "backward_tile": ((160, 0, 12288), (154, 0, 12288)),
    },
    ("fp32", 8, 1, 64): {
        "forward": ((126, 0, 24576), (126, 0, 24576)),
        "backward_queries": ((226, 0, 26624), (216, 0, 26624)),
        "backward_keys": ((128, 0, 28672), (128, 8, 28672)),
        "backward_tile": ((209, 0, 24576), (200, 0, 24576)),
    },
    ("bf16", 16, 1, 10): {
        "forward": ((164, 0, 11264), (152, 0, 5120)),
        "backward_queries": ((196, 0, 11264), (164, 0, 8192)),
        "backward_keys": ((152, 0, 10240), (160, 0, 12288)),
        "backward_tile": ((128, 0, 8192), (96, 0, 8192)),
    },
    ("bf16", 16, 2, 10): {
        "forward": ((165, 0, 11264), (168, 0, 11264)),
        "backward_queries": ((225, 0, 13312), (236, 0, 14336)),
        "backward_keys": ((127, 0, 14336), (162, 0, 16384)),
        "backward_tile": ((128, 0, 8192), (128, 0, 8192)),
    },
    ("fp32", 16, 1, 10): {
        "forward": ((128, 0, 14848), (114, 0, 14848)),
        "backward_queries": ((204, 0, 12288), (208, 0, 12288)),
        "backward_keys": ((168, 16, 16384), (172, 0, 16384)),
        "backward_tile": ((96, 0, 8192), (108, 0, 8192)),
    },
    ("fp32", 16, 2, 10): {
        "forward": ((116, 0, 12544), (128, 0, 12544)),
        "backward_queries": ((203, 0, 12288), (210, 0, 12288)),
        "backward_keys": ((164, 0, 16384), (137, 0, 16384)),
        "backward_tile": ((128, 0, 8192), (110, 0, 8192)),
    },
    ("bf16", 32, 1, 10): {
        "forward": ((164, 0, 11264), (124, 0, 5120)),
        "backward_queries": ((205, 0, 11264), (194, 0, 8192)),
        "backward_keys": ((163, 0, 10240), (162, 0, 12288)),
        "backward_tile": ((128, 0, 8192), (96, 0, 8192)),
    },
    ("fp32", 32, 1, 10): {
        "forward": ((128, 0, 14848), (128, 0, 14848)),
        "backward_queries": ((214, 0, 12288), (226, 0, 12288)),
        "backward_keys": ((168, 0, 16384), (174, 0, 16384)),
        "backward_tile": ((96, 32, 8192), (120, 0, 8192)),
    },
    ("bf16", 32, 1, 64): {
        "forward": ((252, 0, 20480), (200, 0, 20480)),
        "backward_queries": ((233, 0, 16384), (248, 0, 16384)),
        "backward_keys": ((193, 0, 20480), (196, 0, 20480)),
        "backward_tile": ((128, 0, 12288), (152, 0, 12288)),
    },
    ("fp32", 32, 1, 64): {
        "forward": ((128, 8, 24576), (128, 0, 24576)),
        "backward_queries": ((245, 0, 26624), (239, 0, 26624)),
        "backward_keys": ((128, 16, 28672), (126, 0, 28672)),
        "backward_tile": ((170, 0, 24576), (168, 0, 24576)),
    },
    ("fp32", 16, 1, 64): {
        "forward": ((128, 0, 24576), (128, 0, 24576)),
        "backward_queries": ((231, 0, 26624), (225, 0, 26624)),
        "backward_keys": ((128, 0, 28672), (128, 16, 28672)),
        "backward_tile": ((170, 0, 24576), (170, 0, 24576)),
    },
    ("fp16", 8, 1, 10): {
        "forward": ((145, 0, 11264), (113, 0, 5120)),
        "backward_tile": ((255, 8, 16384), (246, 0, 16384)),
    },
}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("case", "expected"), USAGE.items(), ids=["-".join(map(str, case)) for case in USAGE]
)
def test_registers_and_spills(case, expected, architecture, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from c2d_kernels.ops.window_attention import triton_kernels

    name, window, cell, head_dim = case
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    q = torch.empty(1, window, window, 6 * head_dim, dtype=dtype)
    shape = (q, window, 6, cell)
    constants = launch._constants(q, window, 6, window // 2, head_dim**-0.5, cell)
    whole = launch._whole_window(*shape)
    for kernel, measured in expected.items():
        backward = kernel != "forward"
        blocks = launch._blocks(*shape, backward=backward)
        if backward and whole is not None:
            blocks = whole
        fixed = {**constants, **blocks, "WHOLE": whole is not None, "BIAS": True}
        compiled = getattr(triton_kernels, kernel)
        found = usage(compiled, architecture, dtype, fixed, blocks["num_warps"])
        registers, stack, shared = measured[architecture == 90]
        assert found.registers <= 1.1 * registers, kernel
        assert found.stack <= stack, kernel
        assert found.shared <= shared, kernel
