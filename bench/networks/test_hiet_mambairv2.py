"""HiET-MambaIRv2: channel correlation or window attention, then a selective scan of all pixels."""

from __future__ import annotations

import pytest

from bench.contenders import Contender
from bench.networks.workloads import CONTENDERS, NetworkWorkload, workloads


@pytest.mark.race(
    workloads=workloads("hiet_mambairv2", tiny="hiet_mambairv2_tiny", continuous=True, scans=True),
    contenders=CONTENDERS,
)
def test_hiet_mambairv2(workload: NetworkWorkload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
