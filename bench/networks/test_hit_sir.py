"""HiT-SIR: spatial and channel correlation in windows of 4x4 to 64x64."""

from __future__ import annotations

import pytest

from bench.contenders import Contender
from bench.networks.workloads import HIT_CONTENDERS, NetworkWorkload, workloads


@pytest.mark.race(workloads=workloads("hit_sir", tiny="hit_sir_tiny"), contenders=HIT_CONTENDERS)
def test_hit_sir(workload: NetworkWorkload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
