"""HiET-SRFormer: channel correlation in wide windows, permuted attention at the bottom."""

from __future__ import annotations

import pytest

from bench.contenders import Contender
from bench.networks.workloads import CONTENDERS, NetworkWorkload, workloads


@pytest.mark.race(
    workloads=workloads("hiet_srformer", tiny="hiet_srformer_tiny", continuous=True),
    contenders=CONTENDERS,
)
def test_hiet_srformer(workload: NetworkWorkload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
