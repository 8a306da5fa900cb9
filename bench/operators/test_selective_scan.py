"""Selective scan: the reference's loop over time, our kernels, and mamba_ssm's where it runs."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

import c2d_kernels
from bench import machine
from bench.contenders import (
    COMPILERS,
    REFERENCE,
    Contender,
    kernels_of,
    peer,
    unless,
    without_package,
)
from bench.workloads import Function, Workload, in_one_row_on_a_cpu, table

# MambaIRv2-L: 48 channels, 8 states, one token a pixel of the LR image (x4: 320x180 -> 1280x720),
# which it hands over channels-last: (B, L, D) in memory.
SHAPES = {
    "quick": {
        "B1 L256 (B,D,L)": {"batch": 1, "length": 256},
        "B1 L256 (B,L,D)": {"batch": 1, "length": 256, "channels_last": True},
    },
    "full": {
        "B4 L4096 (B,L,D)": {"batch": 4, "length": 64 * 64, "channels_last": True},
    },
}
# The reference walks all tokens in Python: on a CPU these in one dtype and one direction.
WHOLE = {
    "full": {
        "B1 L57600 (B,L,D)": {"batch": 1, "length": 320 * 180, "channels_last": True},
        "B4 L4096 (B,D,L)": {"batch": 4, "length": 64 * 64},
    }
}
LONGEST_UNROLLED = 64


def make(
    batch: int, length: int, channels: int = 48, states: int = 8, channels_last: bool = False
) -> dict[str, object]:
    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def sequence(*shape: int) -> Tensor:
            value = normal(*shape)
            return value.mT.contiguous().mT if channels_last else value

        return {
            "u": sequence(batch, channels, length),
            "delta": 0.5 * sequence(batch, channels, length),
            # Mamba's initial decay rates 1 .. N, and steps softplus(. - 3) of about 0.05
            "A": -torch.arange(1, states + 1, dtype=torch.float64).repeat(channels, 1),
            "B": sequence(batch, 1, states, length),
            "C": sequence(batch, 1, states, length),
            "D": normal(channels),
            "delta_bias": 0.5 * normal(channels) - 3,
        }

    def scan(tensors: dict[str, Tensor]) -> Tensor:
        return c2d_kernels.selective_scan(**tensors, delta_softplus=True)

    return {
        "function": scan,
        "tensors": tensors,
        "half": frozenset({"u", "delta", "B", "C"}),
        # u, delta, B and C in, y out
        "traffic": 4 * batch * length * (3 * channels + 2 * states),
    }


def mamba_ssm(workload: Workload, tensors: dict[str, Tensor]) -> Function:
    """The package that defined the operator; its kernel takes the same names."""
    module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    return lambda tensors: module.selective_scan_fn(**tensors, delta_softplus=True)


def too_long_to_unroll(workload: Workload) -> str | None:
    """torch.compile copies the body of the reference's loop into the graph for each token."""
    length = int(workload.shape.split()[1].removeprefix("L"))
    if length > LONGEST_UNROLLED:
        return f"torch.compile would unroll the reference's loop over {length} tokens"
    return None


def not_on_a_gpu(workload: Workload) -> str | None:
    if machine.device().type != "cuda":
        return "mamba_ssm's kernel runs on CUDA tensors only"
    return None


CONTENDERS: list[Contender] = [
    REFERENCE,
    *kernels_of("selective_scan"),
    *(unless(compiler, too_long_to_unroll) for compiler in COMPILERS),
    unless(peer("mamba_ssm", mamba_ssm, without_package("mamba_ssm")), not_on_a_gpu),
]


@pytest.mark.race(
    workloads=[
        *table("selective_scan", SHAPES, make),
        *table("selective_scan", WHOLE, make, **in_one_row_on_a_cpu()),
    ],
    contenders=CONTENDERS,
)
def test_selective_scan(workload: Workload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
