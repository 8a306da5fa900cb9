"""MambaIRv2-L: window attention, then a selective scan of all pixels sorted by class."""

from __future__ import annotations

import pytest

from bench.contenders import Contender
from bench.networks.workloads import CONTENDERS, NetworkWorkload, workloads


@pytest.mark.race(workloads=workloads("mambairv2_l", scans=True), contenders=CONTENDERS)
def test_mambairv2(workload: NetworkWorkload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
