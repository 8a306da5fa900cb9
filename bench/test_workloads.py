"""Workloads of the networks' benchmarks: pictures by device, autocast, whole sizes."""

from __future__ import annotations

import pytest
import torch

from bench import machine
from bench.networks.workloads import NetworkWorkload, pictures
from bench.operators import races
from c2d_kernels.operators import operators


def test_every_operator_races() -> None:
    assert set(races()) == set(operators)


def full(network: str = "swinir_l", scans: bool = False) -> list[NetworkWorkload]:
    return [
        work for work in pictures(network, continuous=False, scans=scans) if work.size == "full"
    ]


def test_a_cpu_gets_one_picture_at_four() -> None:
    assert {(work.shape, work.dtype_name) for work in full()} == {
        ("320x180 to 1280x720", "float32"),
        ("320x180 to 1280x720", "bfloat16"),
    }
    assert {work.dtype_name for work in full("srformer_l")} == {"float32"}  # a minute a row


@pytest.mark.parametrize(("scans", "divisor"), [(False, 1), (True, 4)])
def test_a_gpu_gets_three_scales_and_eight_at_once(monkeypatch, scans: bool, divisor: int) -> None:
    monkeypatch.setattr(machine, "device", lambda: torch.device("cuda"))
    rows = full(scans=scans)
    assert {(work.scale, work.batch) for work in rows} == {
        (s, b) for s in (2, 3, 4) for b in (1, 8)
    }
    monkeypatch.undo()
    for work in rows:
        image = work.tensors(torch.Generator())["image"]
        assert image.shape[0] == work.batch
        reached = image.shape[-1] * work.scale * divisor
        assert abs(reached - 1280) <= work.scale * divisor / 2


def test_half_rows_run_under_autocast_and_their_truth_does_not() -> None:
    [work] = [
        work
        for work in pictures("swinir_l_tiny", continuous=False, scans=False)
        if work.size == "quick" and work.autocast
    ]
    products: list[torch.dtype] = []

    def watch(module, arguments, output):
        products.append(output.dtype)

    for exact in (False, True):
        job = work.job(exact=exact, build=lambda bound, tensors: watched(bound, watch))
        job.run()
    assert products == [torch.bfloat16, torch.float64]


def watched(bound, hook):
    """The workload's own function; the hook sees what the first convolution gives."""
    bound.net.conv_first.register_forward_hook(hook)
    return bound.function
