"""HiET-SwinIR: channel correlation in wide windows, window attention at each block's bottom."""

from __future__ import annotations

import pytest

from bench.contenders import Contender
from bench.networks.workloads import CONTENDERS, NetworkWorkload, workloads


@pytest.mark.race(
    workloads=workloads("hiet_swinir", tiny="hiet_swinir_tiny", continuous=True),
    contenders=CONTENDERS,
)
def test_hiet_swinir(workload: NetworkWorkload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
