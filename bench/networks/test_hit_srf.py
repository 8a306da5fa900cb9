"""HiT-SRF: HiT-SIR with SRFormer's ConvFFN."""

from __future__ import annotations

import pytest

from bench.contenders import Contender
from bench.networks.workloads import HIT_CONTENDERS, NetworkWorkload, workloads


@pytest.mark.race(workloads=workloads("hit_srf"), contenders=HIT_CONTENDERS)
def test_hit_srf(workload: NetworkWorkload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
